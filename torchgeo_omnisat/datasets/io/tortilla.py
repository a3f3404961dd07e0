# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Reading of tortilla files, containers of other files with a table of contents.

A file starts with a header of 200 bytes: the magic number ``#y``, then offset and length of the table as little-endian
unsigned integers of 64 bits. The table is Parquet, a row per file with its name, format, split, offset and length
within the container, and further columns. A file of the format ``TORTILLA`` is a container itself.

The layout is that of the files of GEO-Bench-2, https://github.com/The-AI-Alliance/GEO-Bench-2, as written by version
0 of tacotoolbox. Later versions of the format are ZIP archives, and are not read.
"""

import io
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.io import MemoryFile

from ...utils.checks import require_pyarrow
from ...utils.plurals import counted
from ...utils.reading import refuse_special
from .files import MOST_VALUES

MAGIC = b'#y'
#: Length of the header in bytes.
HEADER = 200
#: Maximum length of a table and of a file that is not a container itself, in bytes.
MOST_TABLE, MOST_FILE = 2**28, 2**31
#: Columns of each table.
COLUMNS = ('tortilla:id', 'tortilla:file_format', 'tortilla:data_split', 'tortilla:offset', 'tortilla:length')


@dataclass(frozen=True)
class Entry:
    """File in a container.

    Args:
        path: Path of the outermost container.
        offset: Position of the file in it, in bytes.
        length: Length in bytes.
        fields: All columns of its row.
    """

    path: Path
    offset: int
    length: int
    fields: Mapping[str, Any]

    @property
    def id(self) -> str:
        """Name of the file."""
        return str(self.fields['tortilla:id'])

    @property
    def where(self) -> str:
        """The file in errors."""
        return f'{self.id!r} in {self.path}'

    def read(self) -> bytes:
        """Read the content."""
        return _read(self.path, self.offset, self.length, self.where, MOST_FILE)

    def entries(self) -> list['Entry']:
        """Read the table of a file that is a container itself."""
        return _table(self.path, self.offset, self.length, self.where)

    def raster(self, expected: str) -> NDArray[Any]:
        """Read all bands ``(C, H, W)`` of a GeoTIFF."""
        try:
            with MemoryFile(self.read()) as memory, memory.open(driver='GTiff') as source:
                if source.count * source.height * source.width > MOST_VALUES:
                    raise ValueError(
                        f'{self.where} has {counted(source.count, "band")} of {source.height} by {source.width} '
                        f'pixels, expected {expected}'
                    )
                found: NDArray[Any] = source.read()
        except RasterioError as error:
            raise ValueError(f'{self.where} cannot be read ({error}), expected {expected}') from error
        return found

    def array(self, key: str, expected: str) -> NDArray[Any]:
        """Read an array of an HDF5 file that is stored in the file itself."""
        try:
            with h5py.File(io.BytesIO(self.read()), 'r') as file:
                if not isinstance(file.get(key, getlink=True), h5py.HardLink):
                    raise KeyError(f'{key} is not a dataset in the file itself')
                dataset = file[key]
                if not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual:
                    raise KeyError(f'{key} is not a dataset in the file itself')
                if dataset.size > MOST_VALUES or dataset.dtype.kind not in 'iuf':
                    raise TypeError(f'{key} is {dataset.dtype} {dataset.shape}')
                found: NDArray[Any] = dataset[()]
        except (OSError, KeyError, RuntimeError, TypeError) as error:
            raise ValueError(f'{self.where} cannot be read ({error}), expected {expected}') from error
        return found


def read_tortilla(path: Path) -> list[Entry]:
    """Read the table of a file.

    Raises:
        FileNotFoundError: If the file does not exist.
        ImportError: If pyarrow is not installed.
        ValueError: If it is not a tortilla file, or is incomplete.
    """
    refuse_special(path, 'a tortilla file')
    return _table(path, 0, os.path.getsize(path), str(path))


def _table(path: Path, start: int, length: int, where: str) -> list[Entry]:
    require_pyarrow(path)
    from pyarrow import ArrowException, parquet

    header = _read(path, start, min(HEADER, length), where, HEADER)
    if len(header) < HEADER or not header.startswith(MAGIC):
        raise ValueError(f'{where} starts with {header[:4]!r}, expected a tortilla file with {MAGIC!r}')
    offset, size = struct.unpack('<QQ', header[2:18])
    if offset + size > length:
        raise ValueError(f'{where} has {length} bytes, expected {offset + size}: it is incomplete')
    try:
        rows = parquet.read_table(io.BytesIO(_read(path, start + offset, size, where, MOST_TABLE))).to_pylist()
    except (ArrowException, OSError, ValueError) as error:
        raise ValueError(f'{where} cannot be read ({error}), expected a table in Parquet at byte {offset}') from error
    found = []
    for number, row in enumerate(rows):
        if lacking := [name for name in COLUMNS if row.get(name) is None and name != 'tortilla:data_split']:
            raise ValueError(f'row {number} of the table of {where} has no {lacking[0]!r}, expected {COLUMNS}')
        first, count = int(row['tortilla:offset']), int(row['tortilla:length'])
        if first < 0 or count < 0 or first + count > length:
            raise ValueError(
                f'{row["tortilla:id"]!r} in {where} ends at byte {first + count}, expected at most {length}'
            )
        found.append(Entry(path, start + first, count, row))
    return found


def _read(path: Path, offset: int, length: int, where: str, most: int) -> bytes:
    if length > most:
        raise ValueError(f'{where} has {length} bytes to read, expected at most {most}')
    with open(path, 'rb') as file:
        file.seek(offset)
        return file.read(length)
