# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""The series of TreeSatAI Time-Series: products, clouds and frames of an HDF5 file."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from .decoding import GREATEST
from .files import refuse_special
from .fingerprint import State
from .series import choose_clear, parse_dates
from .treesatai_layout import MODALITIES, SERIES, Series

EXPECTED = 'HDF5 with series of Sentinel-1 and -2'
#: Names of products that a series may have at most.
_MOST_DATES = 10_000


@contextmanager
def open_series(path: Path) -> Iterator[h5py.File]:
    """Open a file of series; every fault of its structure is an error with its name.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is truncated, no HDF5, or lacks a dataset.
    """
    refuse_special(path, EXPECTED)
    try:
        with h5py.File(path, 'r') as file:
            yield file
    except (OSError, KeyError, RuntimeError, TypeError) as error:
        raise ValueError(f'{path} cannot be read ({error}), expected {EXPECTED}') from error


def dataset_of(file: h5py.File, key: str) -> h5py.Dataset:
    """Return a dataset whose values lie in the file itself.

    Raises:
        KeyError: If there is none, or if its values lie in other files, which a file from elsewhere
            must not choose.
    """
    if not isinstance(file.get(key, getlink=True), h5py.HardLink):
        raise KeyError(f'{key} is no dataset of the file itself')
    found = file[key]
    if not isinstance(found, h5py.Dataset) or found.external or found.is_virtual:
        raise KeyError(f'{key} is no dataset of the file itself')
    return found


def read_days(file: h5py.File, series: Series, path: Path) -> bytes:
    """Days since 1970-01-01 of the frames, as bytes of int64, from the names of their products."""
    key = f'{series.prefix}-products'
    stored = dataset_of(file, key)
    if stored.ndim != 1 or len(stored) > _MOST_DATES or stored.dtype.kind not in 'OSU':
        raise ValueError(f'{key} of {path} is {stored.dtype} {stored.shape}, expected names of products (T,)')
    try:
        return _product_days(tuple(stored[()].tolist()), series.date_field)
    except (ValueError, AttributeError) as error:
        raise ValueError(f'{key} of {path}: {error}') from error


@lru_cache(maxsize=512)
def _product_days(products: Sequence[bytes | str], place: int) -> bytes:
    """Days since 1970-01-01 in the names of products, which all plots under an orbit share."""
    stamps = []
    for stored in products:
        name = stored.decode() if isinstance(stored, bytes) else stored
        parts = name.split('_', place + 1)
        if len(parts) <= place:
            raise ValueError(f'has {name!r}, expected a date in field {place} of the name')
        stamps.append(parts[place][:8])
    return parse_dates(stamps, 'the names of products').tobytes()


def read_file_days(path: Path, series: Series) -> NDArray[np.int64]:
    """Days since 1970-01-01 of the frames of a file that is not open yet."""
    with open_series(path) as file:
        return np.frombuffer(read_days(file, series, path), dtype=np.int64)


def read_hidden(
    file: h5py.File, series: Series, shape: Sequence[int], probability: float, path: Path
) -> NDArray[np.float64]:
    """Share of each frame that is under snow or clouds.

    Args:
        file: The open file.
        series: Which series; one without masks is hidden nowhere.
        shape: T, H and W of its images.
        probability: From which probability on, in %, a pixel is hidden. One whose
            probability is not known is hidden too.
        path: The file, for an error.

    Returns:
        Shares (T,) from 0 to 1.

    Raises:
        ValueError: If the masks do not fit the images.
    """
    key = f'{series.prefix}-masks'
    if series.radar or key not in file:
        return np.zeros(shape[0])
    dataset = dataset_of(file, key)
    if dataset.ndim != 4 or dataset.shape[1] < 2 or (dataset.shape[0], *dataset.shape[2:]) != tuple(shape):
        expected = f'({shape[0]}, 2, {shape[1]}, {shape[2]}), snow and cloud first, or more channels that are empty'
        raise ValueError(f'{key} of {path} has shape {dataset.shape}, expected {expected}')
    clear = (dataset[:, :2] < probability).all(1)
    hidden: NDArray[np.float64] = 1 - clear.mean((1, 2))
    return hidden


def read_clear(
    file: h5py.File, series: Series, shape: Sequence[int], probability: float, cover: float, path: Path
) -> bytes:
    """Read which frames are not under snow or clouds, packed into bits.

    Args:
        file: The open file.
        series: Which series.
        shape: T, C, H and W of its images.
        probability: From which probability on, in %, a pixel is hidden.
        cover: Which share of such pixels makes a frame not clear.
        path: The file, for an error.
    """
    hidden = read_hidden(file, series, (shape[0], *shape[2:]), probability, path)
    return np.packbits(hidden < cover).tobytes()


@lru_cache(maxsize=2**16)
def survey(
    path: Path, state: State | None, names: Sequence[str], extent: float, probability: float, cover: float
) -> tuple[tuple[bytes, bytes], ...]:
    """Read dates and clouds of series, once for as long as a file does not change.

    Args:
        path: The file.
        state: Its state.
        names: The modalities.
        extent: Side of the plot in metres.
        probability: From which probability on, in %, a pixel is hidden by snow or clouds.
        cover: Which share of such pixels makes a frame not clear.

    Returns:
        For each modality days since 1970-01-01 as bytes of int64, and which frames are clear, packed into bits.
    """
    found = []
    with open_series(path) as file:
        for name in names:
            days = read_days(file, SERIES[name], path)
            images = images_of(file, name, len(days) // 8, extent, path)
            found.append((days, read_clear(file, SERIES[name], images.shape, probability, cover, path)))
    return tuple(found)


def images_of(file: h5py.File, name: str, count: int, extent: float, path: Path) -> h5py.Dataset:
    """Return the images of a series, ``(T, C, H, W)``, not read yet.

    Args:
        file: The open file.
        name: The modality.
        count: Number of dates.
        extent: Side of the plot in metres.
        path: The file, for an error.

    Raises:
        ValueError: If they have another shape or are no numbers.
    """
    modality, key = MODALITIES[name], f'{SERIES[name].prefix}-data'
    side = modality.pixels(extent)
    shape, dataset = (count, len(modality.bands), side, side), dataset_of(file, key)
    if dataset.shape != shape or dataset.dtype.kind not in 'iuf':
        what = f'{count} products of {shape[1]} bands and {side} by {side} pixels'
        raise ValueError(f'{key} of {path} is {dataset.dtype} {dataset.shape}, expected {shape}: {what}')
    return dataset


@lru_cache(maxsize=4096)
def plan(
    days: bytes, clear: bytes, span: tuple[int, int] | None, max_dates: int | None
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Which frames of a series are read, their days, and on which of these, each once, anything is clear.

    Args:
        days: Days since 1970-01-01 of the T frames, as bytes of int64.
        clear: Which frames are not under clouds, packed into bits.
        span: First and last day to keep.
        max_dates: How many days to keep.
    """
    every = np.frombuffer(days, dtype=np.int64)
    flags = np.unpackbits(np.frombuffer(clear, dtype=np.uint8), count=len(every)).astype(bool)
    frames = choose_clear(every, flags, span, max_dates)
    return frames, every[frames], np.isin(np.unique(every[frames]), every[flags])


def read_frames(file: h5py.File, series: Series, frames: NDArray[np.int64]) -> NDArray[np.float32]:
    """Read some frames of a series, NaN where nothing was measured, radar still in linear power.

    Sentinel-2 was not measured where all its bands are zero, Sentinel-1 where a band is.

    Args:
        file: The open file, which :func:`survey` has checked.
        series: Which series.
        frames: Indices of the frames, in the order in which they are wanted.
    """
    first, last = int(frames.min()), int(frames.max())
    stored = _rows(file, f'{series.prefix}-data', first, last + 1)
    if not (len(frames) == len(stored) and (np.diff(frames) == 1).all()):
        stored = stored[frames - first]
    image: NDArray[np.float32] = stored.astype(np.float32, copy=False)
    known = (
        (image > 0) & (image <= GREATEST)
        if series.radar
        else (np.abs(image) <= GREATEST) & (image != 0).any(1, keepdims=True)
    )
    if not known.all():
        image[~known] = np.nan
    return image


def _rows(file: h5py.File, key: str, first: int, stop: int) -> NDArray[Any]:
    """Read part of the first axis of a dataset by h5py's low level, in a third of the time of its high one."""
    dataset = h5py.h5d.open(file.id, key.encode())
    rows = np.empty((stop - first, *dataset.shape[1:]), dataset.dtype)
    space = dataset.get_space()
    space.select_hyperslab((first, *(0,) * (rows.ndim - 1)), rows.shape)
    dataset.read(h5py.h5s.create_simple(rows.shape), space, rows)
    return rows
