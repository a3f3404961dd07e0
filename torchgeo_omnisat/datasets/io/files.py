# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Files: arrays, rasters and archives, each with one error that names the file."""

import math
import shutil
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from rasterio.enums import MaskFlags
from rasterio.errors import RasterioError
from torchgeo.datasets.utils import extract_archive

from ...utils.atomic import publish, scratch_folder
from ...utils.jsonfile import parse_json
from .decoding import GREATEST
from .headers import refuse_complex
from .opening import open_raster, sidecars

#: So many bytes are read at a time: few enough to stay in the processor's cache, enough to keep a disk busy.
_CACHED = 2**21
#: Content of an archive by its size, which labels of one class may reach, and from how many bytes on that counts.
_GREATEST_RATIO, _SMALL = 200, 2**27
#: Numbers that a tile may have at most; a file that claims more is refused before memory is allocated.
MOST_VALUES = 2**28


def open_array(path: Path, expected: str, shape: tuple[int, ...] | None = None) -> NDArray[np.generic]:
    """Map a ``.npy`` file into memory, so that bytes are read when they are indexed.

    Args:
        path: The file.
        expected: Expected content, for an error.
        shape: Expected shape, if known.

    Returns:
        The array, read-only.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is truncated, no such file, or holds something else.
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


def refuse_special(path: Path, expected: str) -> None:
    """Refuse what is no regular file: a named pipe, for example, would be waited for without end.

    Raises:
        FileNotFoundError: If there is nothing.
        ValueError: If there is something else.
    """
    if not path.exists():
        raise FileNotFoundError(f'{path} does not exist, expected {expected}')
    if not path.is_file():
        what = 'a directory' if path.is_dir() else 'no regular file'
        raise ValueError(f'{path} cannot be read (it is {what}), expected {expected}')


def read_json(path: Path, expected: str) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Args:
        path: The file.
        expected: Expected content, for an error.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not valid JSON, or not an object.
    """
    refuse_special(path, expected)
    try:
        content = parse_json(path.read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f'{path} cannot be read ({error}), expected {expected}') from error
    if not isinstance(content, dict):
        raise ValueError(f'{path} holds {type(content).__name__}, expected {expected}')
    return content


class Raster(NamedTuple):
    """What a raster holds.

    Args:
        array: All bands, ``(C, H, W)``; where they alternate from pixel to pixel, a view of them as stored.
        nodata: The number by which it says *not measured*.
        transform: From pixels to the ground.
        shown: Where its mask, within or beside the file, shows something, ``(H, W)``; None without one.
    """

    array: NDArray[np.generic]
    nodata: float | None
    transform: rasterio.Affine
    shown: NDArray[np.bool_] | None = None


def read_raster(path: Path, expected: str, shape: tuple[int, ...] | None = None) -> Raster:
    """Read all bands of a raster; its shape is checked before any pixel is read.

    Args:
        path: The file.
        expected: Expected content, for an error.
        shape: Expected shape, if known.

    Returns:
        The array, and what the file says of it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is truncated, no raster, or of another shape.
    """
    refuse_special(path, expected)
    try:
        with sidecars(), open_raster(str(path)) as source:
            refuse_complex(source.dtypes, path)
            found = source.count, source.height, source.width
            if (shape is not None and found != shape) or math.prod(found) > MOST_VALUES:
                raise ValueError(f'{path} has shape {found}, expected {expected}')
            shown = source.read_masks(1) > 0 if _is_masked(source) else None
            return Raster(source.read(), source.nodata, source.transform, shown)
    except RasterioError as error:
        raise ValueError(f'{path} cannot be read ({error}), expected {expected}') from error


def _is_masked(source: Any) -> bool:
    """Whether a raster has a mask; near infrared is declared to be alpha by default, so alpha is none here."""
    return source.mask_flag_enums[0] == [MaskFlags.per_dataset]


def measured(
    array: NDArray[np.generic],
    dtype: str,
    nodata: float | None,
    path: Path,
    out: NDArray[np.float32] | None = None,
    shown: NDArray[np.bool_] | None = None,
) -> NDArray[np.float32]:
    """Numbers as float32 with NaN where nothing was measured.

    Args:
        array: What is in the file.
        dtype: What it should be stored as; integers leave no room for NaN.
        nodata: The number that says *not measured*.
        path: The file, for an error.
        out: Where to put them; None for a new array.
        shown: Where a mask shows something, ``(H, W)``; None for everywhere.

    Returns:
        The array, finite but for NaN.

    Raises:
        ValueError: If NaN or infinity is among what should be integers.
    """
    image = np.empty(array.shape, dtype=np.float32) if out is None else out
    if array.dtype in (np.float16, np.uint8):
        # PyTorch has the processor's instructions for half precision and for bytes, NumPy has not.
        torch.from_numpy(image).copy_(torch.from_numpy(np.require(array, requirements='W')))
    else:
        with np.errstate(over='ignore'):
            np.copyto(image, array, casting='same_kind' if array.dtype.kind == 'f' else 'unsafe')
    if shown is not None:
        image[..., ~shown] = np.nan
    if array.dtype.kind in 'iu':
        if nodata is not None and array.size and float(array.min()) <= nodata:
            image[array == nodata] = np.nan
        return image
    known = np.abs(image) <= GREATEST
    if np.issubdtype(dtype, np.integer) and not known.all():
        raise ValueError(f'{path} holds {array.dtype} with {(~known).sum()} that are not finite, expected {dtype}')
    if nodata is not None:
        known &= image != nodata
    if not known.all():
        image[~known] = np.nan
    return image


def read_array(path: Path, expected: str, shape: tuple[int, ...] | None = None) -> NDArray[np.generic]:
    """Read all of a ``.npy`` file; see :func:`open_array`."""
    array = open_array(path, expected, shape)
    if array.size > MOST_VALUES:
        raise ValueError(f'{path} has shape {array.shape}, expected {expected}')
    return np.array(array)


def read_frames(
    path: Path,
    expected: str,
    shape: tuple[int, ...],
    frames: NDArray[np.int64],
    dtype: str,
    nodata: float | None,
) -> NDArray[np.float32]:
    """Read some frames of a ``.npy`` file as :func:`measured` gives them.

    Few are converted at a time, so that they stay in the processor's cache.

    Args:
        path: The file.
        expected: Expected content, for an error.
        shape: Expected shape ``(T, ...)``.
        frames: Indices of the frames, in the order in which they are wanted; at least one.
        dtype: Type that the file should have.
        nodata: The number that says *not measured*.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is truncated, no such file, of another shape, or if NaN or infinity is
            among what should be integers.
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


def seen(image: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which frames ``(T, ...)`` have a finite pixel; most have one at once, and are not searched."""
    return np.array([bool(np.isfinite(frame.flat[0]) or np.isfinite(frame).any()) for frame in image])


def occurring(mask: NDArray[np.integer[Any]], count: int) -> NDArray[np.float32]:
    """1 for each of the classes 0 to *count* - 1 that a mask holds, 0 for the others."""
    if mask.dtype == np.uint8:
        # Looking for a byte is quicker than counting them, for which each would become eight.
        held = mask.tobytes()
        return np.array([code in held for code in range(count)], dtype=np.float32)
    return (np.bincount(mask.ravel(), minlength=count)[:count] > 0).astype(np.float32)


def extract_directory(archive: Path, directory: str) -> None:
    """Unpack one directory, or one file, of a zip archive beside it, completely or not at all.

    The archive is unpacked into a temporary directory, from which nothing but *directory* is kept,
    so what an archive puts elsewhere never gets anywhere.

    Args:
        archive: The archive.
        directory: Name of the directory or file in it, or a pattern of it.

    Raises:
        RuntimeError: If the archive is damaged, encrypted, larger than the disk or implausibly
            compressed, or holds no such directory.
    """
    with scratch_folder(archive.with_name(archive.stem)) as temporary:
        try:
            _check_size(archive)
            extract_archive(archive, temporary / 'content')
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError) as error:
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
    """Refuse an archive whose content, as declared, fills the disk or is a bomb; no more than that is unpacked."""
    with zipfile.ZipFile(archive) as file:
        total = sum(entry.file_size for entry in file.infolist())
    size, free = archive.stat().st_size, shutil.disk_usage(archive.parent).free
    if total > free:
        raise OSError(f'it holds {total} bytes, expected at most the {free} that are free')
    if total > max(_GREATEST_RATIO * size, _SMALL):
        raise OSError(f'its {size} bytes hold {total}, expected at most {_GREATEST_RATIO} times as many')
