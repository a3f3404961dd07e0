# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""A file that is known is read where its array lies, with the same values and the same errors."""

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import rasterio

from torchgeo_omnisat.datasets import addresses, files
from torchgeo_omnisat.datasets.addresses import known, piece_of_hdf5, piece_of_raster
from torchgeo_omnisat.datasets.files import read_array, read_raster


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, '_KNOWN', {})


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every raster that GDAL is asked to open."""
    calls: list[str] = []
    original = rasterio.open

    def count(path: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(str(path))
        return original(path, *args, **kwargs)

    monkeypatch.setattr(files.rasterio, 'open', count)
    return calls


def write(path: Path, dtype: str = 'uint8', count: int = 3, seed: int = 0, **profile: Any) -> np.ndarray:
    image = np.random.default_rng(seed).integers(0, 200, (count, 40, 64)).astype(dtype)
    size = {'driver': 'GTiff', 'dtype': dtype, 'count': count, 'height': 40, 'width': 64}
    transform = rasterio.Affine(0.2, 0, 7e5, 0, -0.2, 6e6)
    with rasterio.open(path, 'w', crs='EPSG:2154', transform=transform, **size, **profile) as file:
        file.write(image)
    return image


#: Profiles, and whether the image lies in one piece.
RASTERS: list[tuple[dict[str, Any], bool]] = [
    ({'interleave': 'pixel'}, True),
    ({'interleave': 'band'}, True),
    ({'interleave': 'pixel', 'blockysize': 7}, True),
    ({'interleave': 'band', 'blockysize': 16}, True),
    ({'nodata': 3}, True),
    ({'count': 1}, True),
    ({'BIGTIFF': 'YES'}, True),
    ({'compress': 'deflate'}, False),
    ({'compress': 'zstd', 'predictor': 2}, False),
    ({'compress': 'lzw', 'interleave': 'band'}, False),
    ({'tiled': True, 'blockxsize': 16, 'blockysize': 16}, False),
    ({'dtype': 'uint16'}, False),
    ({'dtype': 'float32'}, False),
    ({'count': 1, 'NBITS': 4, 'dtype': 'uint8'}, False),
]


class TestRaster:
    @pytest.mark.parametrize(('profile', 'whole'), RASTERS, ids=str)
    def test_is_what_gdal_reads(self, tmp_path: Path, profile: dict[str, Any], whole: bool, opened: list[str]) -> None:
        path = tmp_path / 'image.tif'
        write(path, **profile)
        with rasterio.open(path) as source:
            assert (piece_of_raster(source) is not None) == whole
            stored, nodata, transform = source.read(), source.nodata, source.transform
        opened.clear()
        for _ in range(3):
            found = read_raster(path, 'an image', stored.shape)
            assert np.array_equal(found.array, stored)
            assert (found.array.dtype, found.nodata, found.transform) == (stored.dtype, nodata, transform)
            assert found.array.flags.writeable
        assert len(opened) == (1 if whole else 3)

    @pytest.mark.parametrize('profile', [{}, {'compress': 'zstd'}], ids=str)
    def test_another_file_in_its_place(self, tmp_path: Path, profile: dict[str, Any]) -> None:
        path = tmp_path / 'image.tif'
        for seed in range(3):
            other = tmp_path / 'other.tif'
            image = write(other, seed=seed, **(profile if seed != 1 else {'compress': 'deflate', 'interleave': 'band'}))
            other.replace(path)
            for _ in range(2):
                assert np.array_equal(read_raster(path, 'an image').array, image)

    @pytest.mark.parametrize('left', [0, 100, 3000])
    @pytest.mark.parametrize('before', [True, False])
    @pytest.mark.parametrize('profile', [{}, {'compress': 'zstd'}], ids=str)
    def test_truncated(self, tmp_path: Path, profile: dict[str, Any], before: bool, left: int) -> None:
        path = tmp_path / 'image.tif'
        write(path, **profile)
        if before:
            read_raster(path, 'an image')
        path.write_bytes(path.read_bytes()[:left])
        for _ in range(2):
            with pytest.raises(ValueError, match=r'image\.tif cannot be read \(.*\), expected an image'):
                read_raster(path, 'an image')

    @pytest.mark.parametrize('before', [True, False])
    def test_gone_or_of_another_shape(self, tmp_path: Path, before: bool) -> None:
        path = tmp_path / 'image.tif'
        write(path)
        if before:
            read_raster(path, 'an image')
        with pytest.raises(ValueError, match=r'image\.tif has shape \(3, 40, 64\), expected an image'):
            read_raster(path, 'an image', (4, 40, 64))
        path.unlink()
        with pytest.raises(FileNotFoundError, match=r'image\.tif does not exist, expected an image'):
            read_raster(path, 'an image')
        path.mkdir()
        with pytest.raises(ValueError, match=r'image\.tif cannot be read \(.*directory'):
            read_raster(path, 'an image')


class TestHDF5:
    @pytest.mark.parametrize('dtype', ['float32', '>f4', 'float64', 'uint16'])
    def test_in_one_piece(self, tmp_path: Path, dtype: str) -> None:
        array = np.random.default_rng(0).normal(100, 9, (9, 2, 6, 6)).astype(dtype)
        with h5py.File(tmp_path / 'a.h5', 'w', userblock_size=512) as file:
            file['other'], file['data'] = np.zeros(77), array
        with h5py.File(tmp_path / 'a.h5') as file:
            piece = piece_of_hdf5(file['data'])
        assert piece is not None
        with (tmp_path / 'a.h5').open('rb', buffering=0) as file:
            assert np.array_equal(piece.read(file, 3, np.empty((4, 2, 6, 6), piece.dtype)), array[3:7])

    @pytest.mark.parametrize(
        'options', [{'chunks': (1, 2, 6, 6)}, {'compression': 'gzip'}, {'maxshape': (None, 2, 6, 6)}]
    )
    def test_not_in_one_piece(self, tmp_path: Path, options: dict[str, Any]) -> None:
        with h5py.File(tmp_path / 'a.h5', 'w') as file:
            assert piece_of_hdf5(file.create_dataset('data', data=np.ones((9, 2, 6, 6)), **options)) is None
            assert piece_of_hdf5(file.create_dataset('nothing', (9, 2, 6, 6), 'f4')) is None


class TestKnown:
    def test_asks_once_until_the_file_changes(self, tmp_path: Path) -> None:
        path, asked = tmp_path / 'a.npy', []

        def look() -> None:
            with known(path, 'an array', 'kind', lambda: asked.append(1)):
                pass

        for count in (1, 1, 1):
            np.save(path, np.zeros(3)) if not asked else None
            look()
            assert len(asked) == count
        status = path.stat()
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        look()
        assert len(asked) == 2
        path.write_bytes(path.read_bytes() + b'0')
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        look()
        assert len(asked) == 3

    def test_does_not_grow_for_ever(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(addresses, '_MOST', 2)
        for number in range(5):
            np.save(tmp_path / f'{number}.npy', np.full(3, number))
            assert read_array(tmp_path / f'{number}.npy', 'an array').tolist() == [number] * 3
            assert len(addresses._KNOWN) <= 2

    def test_what_cannot_be_found_out_is_asked_again(self, tmp_path: Path) -> None:
        path = tmp_path / 'a.npy'
        path.write_bytes(b'nothing')
        for _ in range(2):
            with pytest.raises(ValueError, match=r'a\.npy cannot be read'):
                read_array(path, 'an array')
        assert not addresses._KNOWN
