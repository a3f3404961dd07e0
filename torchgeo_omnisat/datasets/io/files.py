# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Readers of arrays, rasters, tables and archives, whose errors name the file."""

import math
import shutil
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import rasterio
import torch
from numpy.typing import NDArray
from rasterio.enums import MaskFlags
from rasterio.errors import RasterioError
from torchgeo.datasets.utils import extract_archive

from ...utils.atomic import publish, scratch_folder
from ...utils.reading import parse_json, refuse_special
from ...utils.tensors.observed import MAX_RAW
from .headers import refuse_complex
from .opening import open_within, sidecars

#: Number of bytes that are read at a time, chosen for the processor's cache and the throughput of disks.
_CACHED = 2**21
#: Maximum compression ratio of an archive, as of labels of one class, and minimum content in bytes to check it.
_GREATEST_RATIO, _SMALL = 200, 2**27
#: Maximum number of values of a tile; a larger file raises an error before memory is allocated.
MOST_VALUES = 2**28


def open_array(path: Path, expected: str, shape: tuple[int, ...] | None = None) -> NDArray[np.generic]:
    """Map a ``.npy`` file into memory, so that bytes are read when they are indexed.

    *expected* is the content in errors; *shape* may be None for any.
    """
    refuse_special(path, expected)
    try:
        array = np.load(path, mmap_mode='r')
    except Exception as error:  # a damaged header may raise anything
        raise ValueError(f'{path} cannot be read ({error}), expected {expected}') from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in 'iuf':
        raise ValueError(f'{path} holds {getattr(array, "dtype", type(array).__name__)}, expected {expected}')
    if shape is not None and array.shape != shape:
        raise ValueError(f'{path} has shape {array.shape}, expected {expected}')
    return array


def read_json(path: Path, expected: str) -> dict[str, Any]:
    """Read a JSON file with an object; *expected* is the content in errors."""
    refuse_special(path, expected)
    try:
        content = parse_json(path.read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f'{path} cannot be read ({error}), expected {expected}') from error
    if not isinstance(content, dict):
        raise ValueError(f'{path} holds {type(content).__name__}, expected {expected}')
    return content


def read_csv(path: Path | str, **options: Any) -> pd.DataFrame:
    """Read a table with :func:`pandas.read_csv`.

    Raises:
        ValueError: If rows have more fields than the header; pandas would take the first ones for its index.
    """
    table: pd.DataFrame = pd.read_csv(path, **options)
    if not isinstance(table.index, pd.RangeIndex):
        raise ValueError(f'its rows have more fields than the {len(table.columns)} columns of its header')
    return table


class Raster(NamedTuple):
    """Content of a raster.

    Args:
        array: All bands, ``(C, H, W)``; for pixel-interleaved files, a view of the stored layout.
        nodata: Nodata value; None if the file states none.
        transform: Affine transform from pixels to coordinates.
        shown: Valid pixels of its internal or external mask, ``(H, W)``; None without a mask.
    """

    array: NDArray[np.generic]
    nodata: float | None
    transform: rasterio.Affine
    shown: NDArray[np.bool_] | None = None


def read_raster(path: Path, expected: str, shape: tuple[int, ...] | None = None) -> Raster:
    """Read all bands of a raster; its shape is checked before any pixel is read."""
    refuse_special(path, expected)
    try:
        with sidecars(), open_within(str(path)) as source:
            refuse_complex(source.dtypes, path)
            found = source.count, source.height, source.width
            if (shape is not None and found != shape) or math.prod(found) > MOST_VALUES:
                raise ValueError(f'{path} has shape {found}, expected {expected}')
            shown = source.read_masks(1) > 0 if _is_masked(source) else None
            return Raster(source.read(), source.nodata, source.transform, shown)
    except RasterioError as error:
        raise ValueError(f'{path} cannot be read ({error}), expected {expected}') from error


def _is_masked(source: Any) -> bool:
    """Return whether a raster has a mask, except for alpha bands, which may be near infrared."""
    return source.mask_flag_enums[0] == [MaskFlags.per_dataset]


def measured(
    array: NDArray[np.generic],
    dtype: str,
    nodata: float | None,
    path: Path,
    out: NDArray[np.float32] | None = None,
    shown: NDArray[np.bool_] | None = None,
) -> NDArray[np.float32]:
    """Convert the content of a file to float32, with NaN for nodata, outside *shown* and for infinite values.

    An integer *dtype*, the expected data type of the file, excludes NaN, infinity and numbers beyond its range: they
    raise ValueError.
    """
    image = np.empty(array.shape, dtype=np.float32) if out is None else out
    if array.dtype in (np.float16, np.uint8):
        # PyTorch uses vectorized instructions for float16 and uint8, NumPy does not.
        torch.from_numpy(image).copy_(torch.from_numpy(np.require(array, requirements='W')))
    else:
        with np.errstate(over='ignore'):
            np.copyto(image, array, casting='same_kind' if array.dtype.kind == 'f' else 'unsafe')
    if shown is not None:
        image[..., ~shown] = np.nan
    if array.dtype.kind in 'iu':
        _check_range(array, dtype, nodata, path)
        if nodata is not None and array.size and float(array.min()) <= nodata:
            image[array == nodata] = np.nan
        return image
    known = np.abs(image) <= MAX_RAW
    if np.issubdtype(dtype, np.integer) and not known.all():
        raise ValueError(f'{path} holds {array.dtype} with {(~known).sum()} that are not finite, expected {dtype}')
    _check_range(array, dtype, nodata, path)
    if nodata is not None:
        known &= image != nodata
    if not known.all():
        image[~known] = np.nan
    return image


def _check_range(array: NDArray[np.generic], dtype: str, nodata: float | None, path: Path) -> None:
    """Check the numbers of a file of another type than the expected integers, such as nodata in an unsigned type."""
    if not np.issubdtype(dtype, np.integer) or array.dtype == dtype:
        return
    array = array if nodata is None else array[array != nodata]
    if not array.size:
        return
    span, (low, high) = np.iinfo(dtype), (float(array.min()), float(array.max()))
    if low < span.min or high > span.max:
        raise ValueError(f'{path} holds {array.dtype} from {low:g} to {high:g}, expected {dtype}')


def read_array(path: Path, expected: str, shape: tuple[int, ...] | None = None) -> NDArray[np.generic]:
    """Read a whole ``.npy`` file into memory, see :func:`open_array`."""
    array = open_array(path, expected, shape)
    if array.size > MOST_VALUES:
        raise ValueError(f'{path} has shape {array.shape}, expected {expected}')
    return np.array(array)


def read_array_frames(
    path: Path,
    expected: str,
    shape: tuple[int, ...],
    frames: NDArray[np.int64],
    dtype: str,
    nodata: float | None,
) -> NDArray[np.float32]:
    """Read *frames*, at least one, of a ``.npy`` file ``(T, ...)`` as float32, see :func:`measured`.

    Frames are converted in chunks that fit the processor's cache.
    """
    array = open_array(path, expected, shape)
    image = np.empty((len(frames), *shape[1:]), dtype=np.float32)
    step = max(1, _CACHED // max(array[:1].nbytes, 1))
    for first in range(0, len(frames), step):
        chosen = frames[first : first + step]
        in_a_row = bool((np.diff(chosen) == 1).all())
        part = array[chosen[0] : chosen[-1] + 1] if in_a_row else array[chosen]
        measured(part, dtype, nodata, path, image[first : first + len(chosen)])
    return image


def has_values(image: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return which frames ``(T, ...)`` have a finite pixel; the first pixel suffices for most."""
    return np.array([bool(np.isfinite(frame.flat[0]) or np.isfinite(frame).any()) for frame in image])


def occurring(mask: NDArray[np.integer[Any]], count: int) -> NDArray[np.float32]:
    """Return 1 for each of the classes 0 to *count* - 1 in a mask, and 0 for the others."""
    if mask.dtype == np.uint8:
        # Searching bytes is faster than np.bincount, which converts each to int64.
        content = mask.tobytes()
        return np.array([code in content for code in range(count)], dtype=np.float32)
    return (np.bincount(mask.ravel(), minlength=count)[:count] > 0).astype(np.float32)


def extract_directory(archive: Path, directory: str) -> None:
    """Unpack one directory or file, by name or pattern, of a zip archive next to it, atomically.

    Raise RuntimeError if the archive is damaged, encrypted, larger than the free disk space, has an implausible
    compression ratio, or lacks *directory*.
    """
    with scratch_folder(archive.with_name(archive.stem)) as temporary:
        try:
            refuse_special(archive, 'a zip archive')
            _check_size(archive)
            extract_archive(archive, temporary / 'content')
        except (
            zipfile.BadZipFile,
            zlib.error,
            EOFError,
            OSError,
            RuntimeError,
            ValueError,
        ) as error:
            raise RuntimeError(f'Dataset found, but corrupted. {archive} cannot be unpacked: {error}') from error
        found = next((temporary / 'content').glob(directory), None)
        if found is None:
            raise RuntimeError(f'Dataset found, but corrupted. {archive} holds no directory {directory!r}')
        place = archive.parent / found.name
        try:
            publish(found, place)
        except OSError as error:
            raise RuntimeError(f'{place} is in the way of {archive}, expected to unpack it there: {error}') from error


def _check_size(archive: Path) -> None:
    """Raise OSError if the declared content of an archive exceeds the free disk space, or is a zip bomb."""
    with zipfile.ZipFile(archive) as file:
        total = sum(entry.file_size for entry in file.infolist())
    size, free = archive.stat().st_size, shutil.disk_usage(archive.parent).free
    if total > free:
        raise OSError(f'it holds {total} bytes, expected at most the {free} that are free')
    if total > max(_GREATEST_RATIO * size, _SMALL):
        raise OSError(f'its {size} bytes hold {total}, expected at most {_GREATEST_RATIO} times as many')
