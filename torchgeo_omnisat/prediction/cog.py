# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""COG: a map as one Cloud-Optimised GeoTIFF, its legend inside."""

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import rasterio
from matplotlib import colormaps
from matplotlib.colors import to_rgb
from numpy.typing import NDArray
from pyproj import CRS as ProjCRS
from rasterio import Affine
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.shutil import copy
from rasterio.windows import Window as RasterWindow

from ..grid import Grid
from .encoding import Bands
from .tiling import Window

#: Side of a block in pixels, and megabytes of blocks that GDAL may hold.
BLOCK, CACHE = 256, 64
#: The TIFF tag of a colour table.
_COLORMAP = 320

Colors = NDArray[np.uint8]


@dataclass(frozen=True)
class Place:
    """Where pixels lie that are no :class:`.Grid`, because they are turned or, without a CRS, lie nowhere."""

    crs: ProjCRS | None
    transform: Affine
    height: int
    width: int


def write_map(
    path: Path,
    scratch: Path,
    grid: Grid | Place,
    bands: Bands,
    parts: Iterable[tuple[Window, NDArray[Any]]],
    colors: Colors,
    tags: Mapping[str, str] | None = None,
) -> int:
    """Write parts as they come, then overviews, then all of it in the order of a COG.

    Args:
        path: The file. It is written in place: whoever calls this renames it.
        scratch: Another file on the same disk, of about the same size, which is removed.
        grid: Where the pixels lie.
        bands: The bands, whose class names and modalities become tags.
        parts: Windows and their bands, ``(bands, height, width)``; nodata elsewhere.
        colors: Red, green and blue of every class, ``(K, 3)``.
        tags: Further tags of the file.

    Returns:
        Number of pixels that are not nodata.
    """
    profile = {
        'driver': 'GTiff',
        'height': grid.height,
        'width': grid.width,
        'count': len(bands.names),
        'dtype': bands.dtype,
        'nodata': bands.nodata,
    }
    if grid.crs is not None:
        code = grid.crs.to_epsg()
        profile['crs'] = CRS.from_wkt(grid.crs.to_wkt('WKT1_GDAL')) if code is None else code
        profile['transform'] = grid.transform
    layout = {'tiled': True, 'blockxsize': BLOCK, 'blockysize': BLOCK, 'interleave': 'band', 'bigtiff': 'IF_SAFER'}
    written = 0
    with rasterio.Env(GDAL_CACHEMAX=CACHE):
        with rasterio.open(scratch, 'w', **profile, **layout, compress='lzw') as file:
            _label(file, bands, tags or {})
            for window, values in parts:
                where = RasterWindow(window.column, window.row, window.width, window.height)
                file.write(values, window=where)
                written += int((values[1] != bands.nodata).sum())
        if factors := _factors(grid):
            with rasterio.open(scratch, 'r+') as file:
                file.build_overviews(factors, Resampling.nearest)
        options = {'compress': 'DEFLATE', 'photometric': 'PALETTE', 'copy_src_overviews': True}
        copy(scratch, path, driver='GTiff', **layout, **options)
    scratch.unlink()
    set_colors(path, colors)
    return written


def class_colors(count: int, colors: Sequence[Any] | None = None) -> Colors:
    """Red, green and blue of every class, ``(K, 3)``.

    Args:
        count: Number of classes.
        colors: A colour for every class; those of a qualitative colour map by default.

    Raises:
        ValueError: If there are not as many colours as classes.
    """
    if colors is None:
        wheel = colormaps['tab10' if count <= 10 else 'tab20'] if count <= 20 else colormaps['gist_rainbow']
        colors = [wheel(index if count <= 20 else index / (count - 1)) for index in range(count)]
    if len(colors) != count:
        raise ValueError(f'there are {len(colors)} colors, expected one for each of {count} classes')
    return np.rint(255 * np.array([to_rgb(color) for color in colors])).astype(np.uint8)


def set_colors(path: Path, colors: Colors) -> int:
    """Fill in the colour tables that a GeoTIFF has.

    GDAL lays them out in a file of several bands but does not fill them, so this does. No
    byte of the file moves.

    Args:
        path: A GeoTIFF that was made with ``photometric='PALETTE'``.
        colors: ``(K, 3)``; numbers from K up become black.

    Returns:
        How many tables there were: one, and one for every overview.
    """
    with path.open('r+b') as file:
        places = list(_color_tables(file))
        for order, offset, entries in places:
            table = np.zeros((3, entries), f'{order}u2')
            table[:, : len(colors)] = colors.T.astype(np.uint16) * 257
            file.seek(offset)
            file.write(table.tobytes())
    return len(places)


def _color_tables(file: BinaryIO) -> Iterable[tuple[str, int, int]]:
    """Byte order, place and entries of each colour table of a TIFF or BigTIFF."""
    head = file.read(16)
    order = {b'II': '<', b'MM': '>'}[head[:2]]
    big = struct.unpack_from(f'{order}H', head, 2) == (43,)
    word, count_format, entry = ('Q', 'Q', 20) if big else ('I', 'H', 12)
    (place,) = struct.unpack_from(order + word, head, 8 if big else 4)
    while place:
        file.seek(place)
        (count,) = struct.unpack(order + count_format, file.read(struct.calcsize(count_format)))
        entries = file.read(count * entry)
        (place,) = struct.unpack(order + word, file.read(struct.calcsize(word)))
        for begin in range(0, len(entries), entry):
            tag, _, values, offset = struct.unpack_from(f'{order}HH{word}{word}', entries, begin)
            if tag == _COLORMAP:
                yield order, offset, values // 3


def _label(file: Any, bands: Bands, tags: Mapping[str, str]) -> None:
    """Say inside the file what its bands and numbers mean."""
    file.update_tags(**tags)
    file.descriptions = bands.names
    file.update_tags(1, **{f'CLASS_{index}': label for index, label in enumerate(bands.labels)})
    file.update_tags(2, **{f'BIT_{index}': name for index, name in enumerate(bands.modalities)})
    file.scales = [1.0, 1.0, *(bands.scale for _ in bands.names[2:])]


def _factors(grid: Grid | Place) -> list[int]:
    """By how much overviews are smaller, until one is a block."""
    factors, factor = [], 2
    while max(grid.height, grid.width) > factor / 2 * BLOCK:
        factors.append(factor)
        factor *= 2
    return factors
