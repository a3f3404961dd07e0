# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Addresses: where arrays lie in files, so that a file that is known is read without being parsed again."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray
from rasterio.enums import Interleaving
from rasterio.io import DatasetReader

from .fingerprint import State, state_of

#: What is known of a file, with what tells whether it is still the same file, by path and kind.
_KNOWN: dict[tuple[str, Any], tuple[State | None, Any]] = {}
#: So many files are known at most; a few hundred bytes each.
_MOST = 2**18


class Piece(NamedTuple):
    """An array that lies in one piece in a file, neither compressed nor chunked.

    Args:
        offset: Its first byte.
        shape: Its sizes.
        dtype: Its type, with the order of bytes.
    """

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def row(self) -> int:
        """Bytes of one element of its first axis."""
        return self.dtype.itemsize * int(np.prod(self.shape[1:]))

    def read(self, file: FileIO, first: int, out: NDArray[Any]) -> NDArray[Any]:
        """Part of the first axis.

        Args:
            file: The open file.
            first: Where to begin.
            out: Where to put as many as there is room for.

        Raises:
            EOFError: If the file ends before, which :func:`known` tells of.
        """
        view = out.reshape(-1).view(np.uint8).data
        file.seek(self.offset + first * self.row)
        if file.readinto(view) != out.nbytes:
            raise EOFError(f'it ends before all of {self.dtype} {self.shape}')
        return out


@contextmanager
def known[T](path: Path, expected: str, kind: Any, find: Callable[[], T]) -> Iterator[tuple[FileIO, T]]:
    """A file, open, and what is known of it, which is found out once for as long as the file does not change.

    Args:
        path: The file.
        expected: What it should hold, for an error.
        kind: What is to be known.
        find: Finds it out, or raises.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no file that can be opened, or ends early.
    """
    try:
        file = FileIO(str(path))
    except FileNotFoundError:
        raise FileNotFoundError(f'{path} does not exist, expected {expected}') from None
    except OSError as error:
        raise ValueError(f'{path} cannot be read ({error}), expected {expected}') from error
    with file:
        # From its first byte on the kernel reads a file ahead; where reading begins with much, it waits for all of it.
        file.read(1)
        state, key = state_of(file.fileno()), (str(path), kind)
        entry = _KNOWN.get(key)
        if entry is None or entry[0] != state:
            if len(_KNOWN) >= _MOST:
                forget()
            entry = _KNOWN[key] = state, find()
        try:
            yield file, entry[1]
        except EOFError as error:
            raise ValueError(f'{path} cannot be read ({error}), expected {expected}') from error


def forget() -> None:
    """Know nothing of any file."""
    _KNOWN.clear()


def piece_of_array(array: NDArray[Any]) -> Piece | None:
    """Where an array lies that is mapped into memory; None if not in the order of its axes."""
    if isinstance(array, np.memmap) and array.flags.c_contiguous and array.size:
        return Piece(array.offset, array.shape, array.dtype)
    return None


def piece_of_hdf5(dataset: h5py.Dataset) -> Piece | None:
    """Where an array of an HDF5 file lies; None if it is chunked, compressed or elsewhere."""
    offset = dataset.id.get_offset()
    if offset is None or dataset.chunks or dataset.external or dataset.id.get_storage_size() != dataset.nbytes:
        return None
    return Piece(offset, dataset.shape, dataset.dtype)


def piece_of_raster(source: DatasetReader) -> tuple[Piece, bool] | None:
    """Where the bytes of a GeoTIFF lie, and whether bands alternate from pixel to pixel; None if not in one piece."""
    whole = np.dtype(source.dtypes[0]) == np.uint8 and len(set(source.dtypes)) == 1
    if source.driver != 'GTiff' or source.compression is not None or source.profile.get('tiled') or not whole:
        return None
    if 'NBITS' in source.tags(ns='IMAGE_STRUCTURE', bidx=1):
        return None
    pixel = source.interleaving == Interleaving.pixel
    bands = (1,) if pixel else source.indexes
    rows = source.block_shapes[0][0]
    first = next_byte = None
    for band in bands:
        for block in range(-(-source.height // rows)):
            offset, size = (
                source.get_tag_item(f'BLOCK_{what}_0_{block}', 'TIFF', bidx=band) for what in ('OFFSET', 'SIZE')
            )
            held = min(rows, source.height - block * rows) * source.width * (source.count if pixel else 1)
            if offset is None or int(size) != held or next_byte not in (None, int(offset)):
                return None
            first, next_byte = int(offset) if first is None else first, int(offset) + held
    shape = (source.height, source.width, source.count) if pixel else (source.count, source.height, source.width)
    return Piece(int(first or 0), shape, np.dtype(np.uint8)), pixel
