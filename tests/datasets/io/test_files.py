# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from tests.geo_tree import write as write_raster
from torchgeo_omnisat.datasets.io.files import (
    has_values,
    measured,
    occurring,
    read_array,
    read_array_frames,
    read_raster,
)

FRAMES = {
    'all': np.arange(9),
    'some': np.array([1, 2, 3, 7]),
    'turned': np.array([8, 0, 1, 5, 4, 4]),
    'none': np.array([], dtype=np.int64),
}


def write(
    path: Path, dtype: str, shape: tuple[int, ...] = (9, 3, 5, 7)
) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    """An array with nodata in it."""
    array = np.random.default_rng(0).integers(-500, 500, shape).astype(dtype)
    array[2, 1, 0, 0] = array[7, 0, 4, 6] = -10000
    np.save(path, array)
    return array


class TestReadFrames:
    @pytest.mark.parametrize('dtype', ['int16', '>i2', 'float16', 'float32', 'float64'])
    @pytest.mark.parametrize('frames', FRAMES.values(), ids=FRAMES)
    def test_is_what_is_in_the_file(self, tmp_path: Path, dtype: str, frames: np.ndarray) -> None:
        path = tmp_path / 'array.npy'
        array = write(path, dtype)[frames].astype(np.float32)
        image = read_array_frames(path, 'an array', (9, 3, 5, 7), frames, 'int16', -10000)
        assert (image.dtype, image.shape) == (np.dtype('float32'), array.shape)
        assert np.array_equal(image, np.where(array == -10000, np.nan, array), equal_nan=True)

    def test_more_than_the_cache_holds(self, tmp_path: Path) -> None:
        path = tmp_path / 'array.npy'
        array = write(path, 'int16', (9, 3, 256, 256))
        image = read_array_frames(path, 'an array', (9, 3, 256, 256), np.arange(9), 'int16', None)
        assert np.array_equal(image, array.astype(np.float32))

    def test_other_order_in_memory(self, tmp_path: Path) -> None:
        path = tmp_path / 'array.npy'
        array = np.asfortranarray(np.arange(120.0).reshape(4, 2, 3, 5))
        np.save(path, array)
        image = read_array_frames(path, 'an array', (4, 2, 3, 5), np.array([3, 1]), 'float64', None)
        assert np.array_equal(image, array[[3, 1]])
        assert np.array_equal(read_array(path, 'an array'), array)

    def test_file_that_shrinks(self, tmp_path: Path) -> None:
        path = tmp_path / 'array.npy'
        write(path, 'int16')
        for _ in range(2):
            read_array_frames(path, 'an array', (9, 3, 5, 7), np.arange(9), 'int16', None)
        path.write_bytes(path.read_bytes()[:-10])
        with pytest.raises(ValueError, match=r'array\.npy.*array'):
            read_array_frames(path, 'an array', (9, 3, 5, 7), np.arange(9), 'int16', None)

    def test_integers_that_are_not(self, tmp_path: Path) -> None:
        path = tmp_path / 'array.npy'
        np.save(path, np.full((2, 1, 2, 2), np.inf))
        with pytest.raises(ValueError, match=r'float64.*8.*int16'):
            read_array_frames(path, 'an array', (2, 1, 2, 2), np.arange(2), 'int16', None)


@pytest.mark.parametrize('dtype', ['float16', 'float32'])
def test_what_is_not_finite_is_not_measured(dtype: str) -> None:
    stored = np.array([1.5, np.inf, -np.inf, np.nan, -2.25], dtype=dtype)
    stored[1] = 1e30 if dtype == 'float32' else np.inf
    image = measured(stored, dtype, -2.25, Path('x'))
    assert np.array_equal(image, [1.5, np.nan, np.nan, np.nan, np.nan], equal_nan=True)


def test_numbers_below_nodata_are_kept() -> None:
    image = measured(np.array([-20000, -10000, 3], dtype=np.int16), 'int16', -10000, Path('x'))
    assert np.array_equal(image, [-20000, np.nan, 3], equal_nan=True)


@pytest.mark.parametrize('stored', [np.array([3, -10000], np.int16).view(np.uint16), np.array([3.0, 55536.0]), [70000]])
def test_numbers_beyond_the_expected_type_are_refused(stored: Any) -> None:
    """Nodata of -10000 in an unsigned type is 55536, which would pass for reflectance."""
    with pytest.raises(ValueError, match=r'x holds .*(55536|70000).*expected int16'):
        measured(np.asarray(stored), 'int16', -10000, Path('x'))
    assert measured(np.array([3.0, -10000]), 'int16', -10000, Path('x')).tolist()[0] == 3
    signed = measured(np.array([3, -9999], np.int16), 'uint8', -9999, Path('x'))  # nodata may be beyond the type
    assert signed[0] == 3
    assert np.isnan(signed[1])


def test_frames_that_are_seen() -> None:
    image = np.full((3, 4), np.nan, dtype=np.float32)
    image[0], image[1, 3] = 1, 2
    assert has_values(image).tolist() == [True, True, False]


def test_classes_that_occur() -> None:
    assert occurring(np.array([[3, 0], [7, 3]]), 5).tolist() == [1, 0, 0, 1, 0]


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r'none.npy.*mask'):
        read_array(tmp_path / 'none.npy', 'a mask')


@pytest.mark.parametrize('internal', [False, True])
@pytest.mark.parametrize('hide', [False, True])
def test_masks_and_nodata_beside_published_rasters_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, internal: bool, hide: bool
) -> None:
    shown = np.ones((6, 6), np.uint8) * 255
    shown[2] = 0
    path = write_raster(tmp_path / 'a.tif', np.full((3, 6, 6), 7, np.uint8))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=internal), rasterio.open(path, 'r+') as file:
        file.write_mask(shown)
    if hide:
        monkeypatch.setenv('GDAL_DISABLE_READDIR_ON_OPEN', 'EMPTY_DIR')
    for _ in range(2):
        array, nodata, _, mask = read_raster(path, 'an image')
        image = measured(array, 'uint8', nodata, path, shown=mask)
        assert np.isnan(image).any((0, 2)).tolist() == [False, False, True, False, False, False]
    other = write_raster(tmp_path / 'b.tif', np.full((3, 6, 6), 7, np.uint8))
    (tmp_path / 'b.tif.aux.xml').write_text(
        '<PAMDataset><PAMRasterBand band="1"><NoDataValue>7</NoDataValue></PAMRasterBand></PAMDataset>'
    )
    assert read_raster(other, 'an image').nodata == 7


def test_complex_rasters_are_refused(tmp_path: Path) -> None:
    path = write_raster(tmp_path / 'a.tif', np.full((1, 6, 6), 3 + 4j, np.complex64))
    with pytest.raises(ValueError, match=r'a\.tif.*complex64'):
        read_raster(path, 'an image')
