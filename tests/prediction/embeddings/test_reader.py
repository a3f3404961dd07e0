# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Embedding maps: the same vectors from each layout, mosaics, nodata, and errors."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyproj import CRS
from rasterio import Affine
from torchgeo.datasets import GoogleSatelliteEmbedding

from tests.prediction.embeddings.files import X, Y, landscape, write_codes, write_raster, write_scaled
from torchgeo_omnisat.datasets import EmbeddingRasters
from torchgeo_omnisat.grid import Grid
from torchgeo_omnisat.prediction import EmbeddingBands
from torchgeo_omnisat.prediction.embeddings import reader
from torchgeo_omnisat.prediction.embeddings.reader import EmbeddingMap
from torchgeo_omnisat.prediction.embeddings.writer import write_embeddings
from torchgeo_omnisat.prediction.tiling import Window

VECTORS, _ = landscape(dims=8)
VECTORS[:, 3, 5] = np.nan
WHOLE = Window(0, 0, *VECTORS.shape[1:])

LAYOUTS: dict[str, tuple[Callable[..., Path], dict[str, Any], float]] = {
    'ours.tif': (write_codes, {}, 8e-3),
    'alphaearth.tiff': (write_codes, {'flipped': True}, 8e-3),
    'grid_0.15_52.05_2024.tiff': (write_scaled, {}, 4e-3),
    'grid_0.25_52.05_2024.tif': (write_scaled, {'npy': True}, 4e-3),
    'grid_0.35_52.05_2024.tif': (write_scaled, {'flipped': True}, 4e-3),
    'grid_0.45_52.05_2024.tif': (write_raster, {}, 1e-7),
    'floats.tif': (write_raster, {'nodata': -1.0}, 1e-7),
}


@pytest.mark.parametrize('name', LAYOUTS)
def test_vectors_of_every_layout(tmp_path: Path, name: str) -> None:
    write, settings, tolerance = LAYOUTS[name]
    vectors = np.nan_to_num(VECTORS, nan=-1.0) if 'nodata' in settings else VECTORS
    embeddings = EmbeddingMap([write(tmp_path / name, vectors, **settings)])
    assert len(embeddings) == 8
    assert embeddings.grid.bounds == (X, Y - 480, X + 640, Y)
    read = embeddings.read(WHOLE)
    assert np.isnan(read[:, 3, 5]).all()
    assert np.array_equal(np.isnan(read), np.isnan(VECTORS))
    assert np.nanmax(np.abs(read - VECTORS)) < tolerance
    part = embeddings.read(Window(1, 2, 9, 30))
    assert np.array_equal(part, read[:, 1:10, 2:32], equal_nan=True)
    at = embeddings.vectors(np.array([47, 0, 3, -1]), np.array([63, 7, 5, 0]))
    assert np.array_equal(at[:2], read[:, [47, 0], [63, 7]].T)
    assert np.isnan(at[2:]).all()


def test_blocks_cover_the_map_once_and_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings = EmbeddingMap([write_codes(tmp_path / 'a.tif', VECTORS)])
    monkeypatch.setattr(reader, 'BLOCK', 16)
    monkeypatch.setattr(reader, 'VALUES', 8 * 16 * 16)
    counts = np.zeros(VECTORS.shape[1:], int)
    for row, column, height, width in embeddings.blocks():
        assert 8 * height * width <= reader.VALUES
        counts[row : row + height, column : column + width] += 1
    assert (counts == 1).all()


def test_sensors_are_a_band_but_no_dimension(tmp_path: Path) -> None:
    seen = np.full(VECTORS.shape[1:], 1)
    seen[:, 40:], seen[3, 5] = 3, -128
    embeddings = EmbeddingMap([write_codes(tmp_path / 'a.tif', VECTORS, seen)])
    assert (len(embeddings), embeddings.sensors) == (8, ['s2', 's1'])
    bits = embeddings.read_sensors(WHOLE, embeddings.read(WHOLE))
    assert (bits[0, 0], bits[0, 63], bits[3, 5]) == (1, 3, 0)
    plain = EmbeddingMap([write_codes(tmp_path / 'b.tif', VECTORS)])
    assert plain.sensors == ['embedding']
    assert plain.read_sensors(WHOLE, plain.read(WHOLE)).sum() == 48 * 64 - 1


def test_files_are_a_mosaic_in_which_the_first_wins(tmp_path: Path) -> None:
    first = write_codes(tmp_path / 'a.tif', VECTORS)
    second = write_codes(tmp_path / 'b.tif', -VECTORS[:, :, :32], origin=(X + 480, Y))
    mosaic = EmbeddingMap([first, second])
    assert mosaic.grid.width == 80
    read = mosaic.read(Window(0, 0, 48, 80))
    assert np.array_equal(read[..., :64], EmbeddingMap([first]).read(WHOLE), equal_nan=True)
    assert np.nanmax(np.abs(read[..., 64:] + VECTORS[..., 16:32])) < 8e-3


@pytest.mark.parametrize('dimension', [0, 5])
def test_an_incomplete_vector_of_a_mosaic_is_that_of_the_next_file(tmp_path: Path, dimension: int) -> None:
    incomplete = VECTORS.copy()
    incomplete[dimension, 8, 9] = np.nan
    mosaic = EmbeddingMap([write_raster(tmp_path / 'a.tif', incomplete), write_raster(tmp_path / 'b.tif', -VECTORS)])
    assert np.array_equal(mosaic.read(WHOLE)[:, 8, 9], -VECTORS[:, 8, 9])


@pytest.mark.parametrize(
    ('image', 'settings', 'match'),
    [
        (np.zeros((4, 8, 8), np.uint8), {}, r'b.tif has 4 bands of uint8, expected an embedding'),
        (np.zeros((1, 8, 8), np.float32), {}, r'b.tif has 1 band of float32, expected an embedding'),
        (np.zeros((7, 8, 8), np.float32), {}, r'b.tif has 7 dimensions, expected 8 as in .*a.tif'),
        (np.zeros((8, 8, 8), np.float32), {'crs': 'EPSG:32632'}, r'b.tif has the CRS EPSG:32632, expected EPSG:32631'),
        (np.zeros((8, 8, 8), np.float32), {'step': 20.0}, r'b.tif has pixels of 20, expected 10'),
        (np.zeros((8, 8, 8), np.float32), {'origin': (X + 4, Y)}, r'b.tif has a pixel grid .* 0.4 pixels'),
        (np.zeros((8, 8, 8), np.float32), {'crs': None}, r'b.tif states no CRS'),
    ],
)
def test_files_that_do_not_fit(tmp_path: Path, image: Any, settings: dict[str, Any], match: str) -> None:
    first = write_codes(tmp_path / 'a.tif', VECTORS)
    with pytest.raises(ValueError, match=match):
        EmbeddingMap([first, write_raster(tmp_path / 'b.tif', image, **settings)])


def test_codes_of_tessera_need_their_scales(tmp_path: Path) -> None:
    path = write_scaled(tmp_path / 'grid_0.15_52.05_2024.tiff', VECTORS)
    scales = tmp_path / 'grid_0.15_52.05_2024_scales.tiff'
    embeddings = EmbeddingMap([path])
    write_raster(scales, np.ones((1, 5, 5), np.float32))
    with pytest.raises(ValueError, match=r'_scales.tiff has \(5, 5\) pixels, expected \(48, 64\)'):
        embeddings.read(WHOLE)
    scales.unlink()
    with pytest.raises(ValueError, match=r'grid_0.15_52.05_2024.tiff has int8 codes .* _scales'):
        EmbeddingMap([path])


def test_map_that_this_package_writes(tmp_path: Path) -> None:
    bands = EmbeddingBands(8, ['s2', 's1'], ['s1'])
    seen = np.full(VECTORS.shape[1:], 3, np.uint16)
    seen[:, :9], seen[3, 5] = 2, 0
    values = np.concatenate([np.nan_to_num(VECTORS), np.full((1, 48, 64), 0.5, np.float32)])
    grid = Grid(CRS.from_epsg(32631), Affine(10, 0, X, 0, -10, Y), 48, 64)
    parts = [(WHOLE, bands.encode(values, seen))]
    path, year = tmp_path / 'map.tif', tmp_path / 'map_2021.tif'
    assert write_embeddings(path, tmp_path / 'scratch.tif', grid, bands, parts, {}) == 48 * 64 - 1
    embeddings = EmbeddingMap([path])
    read = embeddings.read(WHOLE)
    assert (len(embeddings), embeddings.sensors) == (8, ['s2', 's1'])
    assert np.array_equal(np.isnan(read), np.isnan(VECTORS))
    assert np.nanmax(np.abs(read - VECTORS)) < 8e-3
    assert np.array_equal(embeddings.read_sensors(WHOLE, read), seen)
    path.rename(year)
    dataset = EmbeddingRasters(year)
    assert dataset.bands == tuple(f'A{index:02}' for index in range(8))
    sample = dataset[slice(X, X + 640), slice(Y - 480, Y)]
    assert np.array_equal(sample['image_embeddings'].numpy(), read, equal_nan=True)


@pytest.mark.parametrize('beside', ['file', 'folder'])
def test_map_opens_as_google_satellite_embedding(tmp_path: Path, beside: str) -> None:
    """TorchGeo's own class reads the codes of a map of 64 dimensions, without the bands that are no dimension."""
    bands = EmbeddingBands(64, ['s2'], ['s2'])
    grid = Grid(CRS.from_epsg(32631), Affine(10, 0, X, 0, -10, Y), 48, 64)
    vectors = landscape(dims=64)[0]
    values = np.concatenate([vectors, np.ones((1, 48, 64), np.float32)])
    codes = bands.encode(values, np.ones((48, 64), np.uint16))
    path = tmp_path / '2024/map.tif'
    path.parent.mkdir()
    write_embeddings(path, tmp_path / 'scratch.tif', grid, bands, [(WHOLE, codes)], {})
    path.with_suffix('.json').write_text('{}')
    dataset = GoogleSatelliteEmbedding(path if beside == 'file' else tmp_path)
    assert (len(dataset), dataset.index.index[0].left.year) == (1, 2024)
    assert np.array_equal(dataset[dataset.bounds]['image'].numpy(), codes[:64])
