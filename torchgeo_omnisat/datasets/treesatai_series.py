# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""The series of TreeSatAI Time-Series: products, clouds and frames of an HDF5 file."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from io import FileIO
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from .addresses import Piece, piece_of_hdf5
from .decoding import GREATEST
from .series import choose_clear, parse_dates
from .treesatai_layout import MODALITIES, SERIES, Series


@contextmanager
def open_series(path: Path) -> Iterator[Mapping[str, h5py.Dataset]]:
    """A file of series, whose faults are told with its name.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is truncated, no HDF5, or lacks a dataset.
    """
    try:
        with h5py.File(path, 'r') as file:
            yield file
    except FileNotFoundError:
        raise FileNotFoundError(f'{path} does not exist, expected HDF5 with series of Sentinel-1 and -2') from None
    except (OSError, KeyError) as error:
        raise ValueError(f'{path} cannot be read ({error}), expected HDF5 with series of Sentinel-1 and -2') from error


def read_days(file: Mapping[str, h5py.Dataset], series: Series, path: Path) -> bytes:
    """Days since 1970-01-01 of the frames, as bytes of int64, from the names of their products."""
    key = f'{series.prefix}-products'
    try:
        return _product_days(tuple(file[key][()].tolist()), series.date_field)
    except ValueError as error:
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
    file: Mapping[str, h5py.Dataset], series: Series, shape: Sequence[int], probability: float, path: Path
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
    dataset = file[key]
    if dataset.ndim != 4 or dataset.shape[1] < 2 or (dataset.shape[0], *dataset.shape[2:]) != tuple(shape):
        expected = f'({shape[0]}, 2, {shape[1]}, {shape[2]}), snow and cloud first, or more channels that are empty'
        raise ValueError(f'{key} of {path} has shape {dataset.shape}, expected {expected}')
    clear = (dataset[:, :2] < probability).all(1)
    hidden: NDArray[np.float64] = 1 - clear.mean((1, 2))
    return hidden


@dataclass(frozen=True)
class Survey:
    """What a file says of a series, but for its pixels.

    Args:
        days: Days since 1970-01-01 of the T frames, as bytes that plots under one orbit share.
        clear: Which frames are not under clouds, packed into bits.
        shape: T, C, H and W of its images.
        piece: Where they lie; None if the file is to be asked for them.
    """

    days: bytes
    clear: bytes
    shape: tuple[int, ...]
    piece: Piece | None


def survey(path: Path, names: Sequence[str], extent: float, probability: float, cover: float) -> tuple[Survey, ...]:
    """What a file says of series, all but their pixels.

    Args:
        path: The file.
        names: The modalities.
        extent: Side of the plot in metres.
        probability: From which probability on, in %, a pixel is hidden by snow or clouds.
        cover: Which share of such pixels makes a frame not clear.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or a series is not as described.
    """
    found = []
    with open_series(path) as file:
        for name in names:
            series, modality = SERIES[name], MODALITIES[name]
            days, side = read_days(file, series, path), modality.pixels(extent)
            shape = (len(days) // 8, len(modality.bands), side, side)
            clear = read_hidden(file, series, (shape[0], side, side), probability, path) < cover
            key = f'{series.prefix}-data'
            dataset = file[key]
            if dataset.shape != shape or dataset.dtype.kind not in 'iuf':
                what = f'{shape[0]} products of {shape[1]} bands and {side} by {side} pixels'
                raise ValueError(f'{key} of {path} is {dataset.dtype} {dataset.shape}, expected {shape}: {what}')
            found.append(Survey(days, np.packbits(clear).tobytes(), shape, piece_of_hdf5(dataset)))
    return tuple(found)


@lru_cache(maxsize=4096)
def plan(
    days: bytes, clear: bytes, span: tuple[int, int] | None, max_dates: int | None
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Which frames of a series are read, their days, and on which of these, each once, anything is clear.

    Args:
        days: As in :class:`Survey`.
        clear: As in :class:`Survey`.
        span: First and last day to keep.
        max_dates: How many days to keep.
    """
    every = np.frombuffer(days, dtype=np.int64)
    flags = np.unpackbits(np.frombuffer(clear, dtype=np.uint8), count=len(every)).astype(bool)
    frames = choose_clear(every, flags, span, max_dates)
    return frames, every[frames], np.isin(np.unique(every[frames]), every[flags])


def read_frames(
    file: FileIO, found: Survey, series: Series, frames: NDArray[np.int64], path: Path
) -> NDArray[np.float32]:
    """Some frames of a series, NaN where nothing was measured, radar still in linear power.

    Sentinel-2 was not measured where all its bands are zero, Sentinel-1 where a band is.

    Args:
        file: The open file.
        found: What it says of the series.
        series: Which series.
        frames: Which frames, in the order in which they are wanted.
        path: Where the file is.

    Raises:
        EOFError: If it ends early.
    """
    first, last = int(frames.min()), int(frames.max())
    if found.piece is None:
        with open_series(path) as hdf5:
            stored = hdf5[f'{series.prefix}-data'][first : last + 1]
    else:
        stored = found.piece.read(file, first, np.empty((last + 1 - first, *found.shape[1:]), found.piece.dtype))
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
