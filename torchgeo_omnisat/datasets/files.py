# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Files: arrays, rasters and archives, each with one error that names the file."""

import os
import tempfile
import zipfile
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from rasterio.enums import MaskFlags
from rasterio.errors import RasterioError
from torchgeo.datasets.utils import extract_archive

from .addresses import known, piece_of_array, piece_of_raster
from .decoding import GREATEST
from .headers import refuse_complex
from .opening import open_raster, sidecars

#: So many bytes are read at a time: few enough to stay in the processor's cache, enough to keep a disk busy.
_CACHED = 2**21


def open_array(path: Path, expected: str, shape: tuple[int, ...] | None = None) -> NDArray[np.generic]:
    """A ``.npy`` file mapped into memory: bytes are read when they are indexed.

    Args:
        path: The file.
        expected: What it should hold, for an error.
        shape: The shape that it should have, if that is known.

    Returns:
        The array, read-only.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is truncated, is no such file, or holds something else.
    """
    try:
        array = np.load(path, mmap_mode='r')
    except FileNotFoundError:
        raise FileNotFoundError(f'{path} does not exist, expected {expected}') from None
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f'{path} cannot be read ({error}), expected {expected}') from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in 'iuf':
        raise ValueError(f'{path} holds {getattr(array, "dtype", type(array).__name__)}, expected {expected}')
    if shape is not None and array.shape != shape:
        raise ValueError(f'{path} has shape {array.shape}, expected {expected}')
    return array


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
    """All bands of a raster; one in a single piece is parsed once, and its bytes are read afterwards.

    Args:
        path: The file.
        expected: What it should hold, for an error.
        shape: The shape that it should have, if that is known.

    Returns:
        The array, and what the file says of it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is truncated, no raster, or of another shape.
    """
    try:
        decoded: list[Raster] = []
        with known(path, expected, 'raster', lambda: _survey(path, decoded)) as (file, fact):
            found, place, nodata, transform = fact
            if shape is not None and found != shape:
                raise ValueError(f'{path} has shape {found}, expected {expected}')
            if place is None:
                return decoded[0] if decoded else _decode(path)
            piece, pixel = place
            array = piece.read(file, 0, np.empty(piece.shape, piece.dtype))
            return Raster(array.transpose(2, 0, 1) if pixel else array, nodata, transform)
    except RasterioError as error:
        raise ValueError(f'{path} cannot be read ({error}), expected {expected}') from error


def _survey(path: Path, decoded: list[Raster]) -> tuple[Any, ...]:
    """Shape, place, nodata and transform of a raster, which is put into *decoded* if it lies in no single piece."""
    with sidecars(), open_raster(str(path)) as source:
        refuse_complex(source.dtypes, path)
        place = None if _is_masked(source) else piece_of_raster(source)
        if place is None:
            decoded.append(_whole(source))
        return (source.count, source.height, source.width), place, source.nodata, source.transform


def _decode(path: Path) -> Raster:
    """What GDAL makes of a raster."""
    with sidecars(), open_raster(str(path)) as source:
        return _whole(source)


def _whole(source: Any) -> Raster:
    shown = source.read_masks(1) > 0 if _is_masked(source) else None
    return Raster(source.read(), source.nodata, source.transform, shown)


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


def read_array(path: Path, expected: str) -> NDArray[np.generic]:
    """All of a ``.npy`` file, as :func:`open_array` has it."""
    with known(path, expected, 'npy', lambda: piece_of_array(open_array(path, expected))) as (file, piece):
        if piece is None:
            return np.array(open_array(path, expected))
        return piece.read(file, 0, np.empty(piece.shape, piece.dtype))


def read_frames(
    path: Path,
    expected: str,
    shape: tuple[int, ...],
    frames: NDArray[np.int64],
    dtype: str,
    nodata: float | None,
) -> NDArray[np.float32]:
    """Some frames of a ``.npy`` file, as :func:`measured` gives them.

    They are read and converted few at a time, which stay in the processor's cache, and by reading
    the file, which the kernel does ahead, as it does not where pages of a map are touched.

    Args:
        path: The file.
        expected: What it should hold, for an error.
        shape: The shape that it should have, ``(T, ...)``.
        frames: Which frames, in the order in which they are wanted; at least one.
        dtype: What it should be stored as.
        nodata: The number that says *not measured*.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is truncated, no such file, of another shape, or if NaN or infinity is
            among what should be integers.
    """
    with known(path, expected, 'npy', lambda: piece_of_array(open_array(path, expected))) as (file, piece):
        if piece is None or piece.shape != shape:
            return measured(open_array(path, expected, shape)[frames], dtype, nodata, path)
        image = np.empty((len(frames), *shape[1:]), dtype=np.float32)
        buffer = np.empty((max(1, min(len(frames), _CACHED // max(piece.row, 1))), *shape[1:]), dtype=piece.dtype)
        starts = np.flatnonzero(np.diff(frames, prepend=frames[:1] - 2) != 1)
        for first, stop in pairwise([*starts.tolist(), len(frames)]):
            for place in range(first, stop, len(buffer)):
                part = buffer[: min(len(buffer), stop - place)]
                piece.read(file, int(frames[first]) + place - first, part)
                measured(part, dtype, nodata, path, image[place : place + len(part)])
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
    """Unpack one directory, or one file, of an archive beside it, whole or not at all.

    The archive is unpacked into a temporary directory, from which nothing but
    *directory* is kept, so what an archive puts elsewhere never gets anywhere.

    Args:
        archive: The archive.
        directory: Name of the directory or file in it, or a pattern of it.

    Raises:
        RuntimeError: If the archive is damaged or holds no such directory.
    """
    with tempfile.TemporaryDirectory(dir=archive.parent, prefix=f'.{archive.stem}-') as temporary:
        try:
            extract_archive(archive, temporary)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise RuntimeError(f'Dataset found, but corrupted. {archive} cannot be unpacked: {error}') from error
        found = next(Path(temporary).glob(directory), None)
        if found is None:
            raise RuntimeError(f'Dataset found, but corrupted. {archive} holds no directory {directory!r}')
        place = archive.parent / found.name
        try:
            os.replace(found, place)
        except OSError as error:
            raise RuntimeError(f'{place} is in the way of {archive}, expected to unpack it there: {error}') from error
