# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Files: arrays, rasters and archives, each with one error that names the file."""

import os
import tempfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from torchgeo.datasets.utils import extract_archive


def open_array(path: Path, expected: str) -> NDArray[np.generic]:
    """A ``.npy`` file mapped into memory: bytes are read when they are indexed.

    Args:
        path: The file.
        expected: What it should hold, for an error.

    Returns:
        The array, read-only.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is truncated, is no such file, or holds something else than numbers.
    """
    try:
        array = np.load(path, mmap_mode='r')
    except FileNotFoundError:
        raise FileNotFoundError(f'{path} does not exist, expected {expected}') from None
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f'{path} cannot be read ({error}), expected {expected}') from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in 'iuf':
        raise ValueError(f'{path} holds {getattr(array, "dtype", type(array).__name__)}, expected {expected}')
    return array


def read_raster(path: Path, expected: str) -> NDArray[np.generic]:
    """All bands of a raster, ``(C, H, W)``; floating point with NaN if it declares nodata.

    Args:
        path: The file.
        expected: What it should hold, for an error.

    Returns:
        The array.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is truncated or no raster.
    """
    if not path.exists():
        raise FileNotFoundError(f'{path} does not exist, expected {expected}')
    try:
        with rasterio.open(path) as source:
            array = source.read()
            nodata = source.nodata
    except RasterioError as error:
        raise ValueError(f'{path} cannot be read ({error}), expected {expected}') from error
    if nodata is None:
        return array
    return np.where(array == nodata, np.float32(np.nan), array.astype(np.float32))


def extract_directory(archive: Path, directory: str) -> None:
    """Unpack one directory of an archive beside it, whole or not at all.

    The archive is unpacked into a temporary directory, from which nothing but
    *directory* is kept, so what an archive puts elsewhere never gets anywhere.

    Args:
        archive: The archive.
        directory: Name of the directory in it.

    Raises:
        RuntimeError: If the archive is damaged or holds no such directory.
    """
    with tempfile.TemporaryDirectory(dir=archive.parent, prefix=f'.{directory}-') as temporary:
        try:
            extract_archive(archive, temporary)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise RuntimeError(f'Dataset found, but corrupted. {archive} cannot be unpacked: {error}') from error
        if not (Path(temporary) / directory).is_dir():
            raise RuntimeError(f'Dataset found, but corrupted. {archive} holds no directory {directory!r}')
        try:
            os.replace(Path(temporary) / directory, archive.parent / directory)
        except OSError as error:
            place = archive.parent / directory
            raise RuntimeError(f'{place} is in the way of {archive}, expected to unpack it there: {error}') from error
