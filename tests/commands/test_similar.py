# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Commands `similar` and `change`."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from pyproj import Transformer

from tests.prediction.embeddings.files import UTM, X, Y, landscape, write_codes, write_scaled
from torchgeo_omnisat.__main__ import main

VECTORS, CLASSES = landscape(noise=0.1)
VECTORS[:, 10, 10] = np.nan
TO_DEGREES = Transformer.from_crs(UTM, 'EPSG:4326', always_xy=True)


def at(row: int, column: int) -> list[str]:
    return ['--at', *map(str, TO_DEGREES.transform(X + 10 * column + 5, Y - 10 * row - 5))]


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        assert (file.count, file.dtypes[0], file.crs) == (1, 'float32', UTM)
        assert np.isnan(file.nodata)
        return file.read(1)


def test_similarity_is_the_cosine_to_the_pixel(tmp_path: Path) -> None:
    path = write_codes(tmp_path / 'a.tiff', VECTORS, flipped=True)
    assert main(['similar', '--embeddings', str(path), *at(20, 30), '--output', str(tmp_path / 's.tif')]) == 0
    found = read(tmp_path / 's.tif')
    expected = np.einsum('dhw,d->hw', VECTORS, VECTORS[:, 20, 30])
    assert np.isnan(found[10, 10])
    assert found[20, 30] == pytest.approx(1, abs=1e-5)
    assert np.nanmax(np.abs(found - expected)) < 0.02
    alike = CLASSES[20, 30] == CLASSES
    assert np.nanmin(found[alike]) > np.nanmax(found[~alike])


def test_several_places_are_averaged_and_length_does_not_matter(tmp_path: Path) -> None:
    path = write_scaled(tmp_path / 'grid_1_2_2024.tif', 7 * np.nan_to_num(VECTORS, nan=1))
    words = ['--embeddings', str(path), *at(20, 30), *at(3, 4), '--output', str(tmp_path / 's.tif')]
    assert main(['similar', *words]) == 0
    mean = VECTORS[:, 20, 30] + VECTORS[:, 3, 4]
    expected = np.einsum('dhw,d->hw', VECTORS, mean / np.linalg.norm(mean))
    assert np.nanmax(np.abs(read(tmp_path / 's.tif') - expected)[:, 12:]) < 0.02


@pytest.mark.parametrize('place', [at(10, 10), at(-500, 3)])
def test_place_without_an_embedding(tmp_path: Path, place: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    path = write_codes(tmp_path / 'a.tif', VECTORS)
    with pytest.raises(SystemExit):
        main(['similar', '--embeddings', str(path), *place, '--output', str(tmp_path / 's.tif')])
    assert f'no embedding at longitude {float(place[1]):g}' in capsys.readouterr().err
    assert not (tmp_path / 's.tif').exists()


@pytest.mark.parametrize(
    ('place', 'output', 'fragment'),
    [
        (['--at', 'nan', '51'], 's.tif', 'longitude nan'),
        (['--at', '51', '181'], 's.tif', 'latitude 181'),
        (at(20, 30), 'a.tif', 'a.tif'),
        (at(20, 30), 's.png', 's.png'),
        (at(20, 30), 'folder.tif', 'folder.tif'),
    ],
)
def test_invalid_places_and_outputs(
    tmp_path: Path, place: list[str], output: str, fragment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_codes(tmp_path / 'a.tif', VECTORS)
    before = path.read_bytes()
    (tmp_path / 'folder.tif').mkdir()
    with pytest.raises(SystemExit):
        main(['similar', '--embeddings', str(path), *place, '--output', str(tmp_path / output)])
    assert fragment in capsys.readouterr().err
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ['a.tif', 'folder.tif']
    with pytest.raises(SystemExit):
        main(['change', '--before', str(path), '--after', str(path), '--output', str(path)])


def test_change_is_one_minus_the_cosine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    after = VECTORS.copy()
    after[:, 20:30, 5:9] = -after[:, 20:30, 5:9]
    after[:, 40] = np.nan
    before, later = write_codes(tmp_path / 'a.tif', VECTORS), write_codes(tmp_path / 'b.tif', after, flipped=True)
    words = ['change', '--before', str(before), '--after', str(later), '--output', str(tmp_path / 'c.tif')]
    assert main(words) == 0
    found = read(tmp_path / 'c.tif')
    changed = np.zeros(found.shape, bool)
    changed[20:30, 5:9] = True
    assert np.allclose(found[changed], 2, atol=1e-5)
    assert np.nanmax(np.abs(found[~changed])) < 1e-5
    assert np.isnan(found[40]).all()
    for image, settings, fragment in (
        (VECTORS[:5], {}, 'b.tif has 5 dimensions, expected 8 as in'),
        (VECTORS[:, :40], {}, 'b.tif extends over'),
        (VECTORS, {'origin': (X + 3, Y)}, 'shifted by 0.3 pixels'),
    ):
        write_codes(later, image, **settings)
        with pytest.raises(SystemExit):
            main(words)
        assert fragment in capsys.readouterr().err
    assert np.array_equal(read(tmp_path / 'c.tif'), found, equal_nan=True)


def test_change_between_different_weights_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [write_codes(tmp_path / f'{name}.tif', VECTORS) for name in 'ab']
    words = ['change', '--before', str(paths[0]), '--after', str(paths[1]), '--output', str(tmp_path / 'c.tif')]
    for weights, expected in ((('x', 'x'), False), (('x', 'y'), True)):
        for path, digest in zip(paths, weights, strict=True):
            with rasterio.open(path, 'r+') as file:
                file.update_tags(WEIGHTS_SHA256=digest)
        assert main(words) == 0
        assert ('different weights' in capsys.readouterr().err) is expected


def test_output_inside_of_an_input_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / 'map.zarr').mkdir()
    output = tmp_path / 'map.zarr' / 's.tif'
    with pytest.raises(SystemExit):
        main(['similar', '--embeddings', str(tmp_path / 'map.zarr'), *at(20, 30), '--output', str(output)])
    assert f"output '{output}' lies in the input" in capsys.readouterr().err
