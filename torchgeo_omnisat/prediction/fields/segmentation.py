# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Segmentation of fields: a watershed of the predicted distance and boundary maps, exact in blocks.

The surface is the distance minus the probability of a boundary. It is smoothed by a binomial filter of 3 x 3 pixels,
without which a pixel at the corner of a field would follow the neighbouring field. Its h-maxima are the seeds of a
watershed in the mask of fields. Pixels of equal height are ordered by their position, so there are no plateaus: each
pixel belongs to the basin of the peak at which its steepest ascent ends. A basin whose peak rises less than *h* above
its highest saddle becomes part of the basin behind that saddle. This depends neither on the blocks nor on the size of
the fields, unlike the watershed of scikit-image, which breaks ties by the order in which pixels are reached. Without
ties, the two differ in single pixels at saddles.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.windows import Window as RasterWindow
from scipy.ndimage import find_objects

from ..raster import BLOCK, CACHE, FIELD_BANDS
from ..tiling import Window

#: Stored value of 1, as in the bytes of a map.
STEPS = 250
#: Side of the blocks in which a map is segmented, in pixels.
SEGMENT_BLOCK = 1024
#: Sum of the weights of the filter that smooths the surface.
_WEIGHT = 16
#: Bits of the position of a pixel in its key.
_BITS = 40
#: Key of pixels outside of the mask.
_OUTSIDE = np.int64(-(2**62))

Keys = NDArray[np.int64]
Ids = NDArray[np.int32]


@dataclass(frozen=True)
class FieldOptions:
    """Settings of the segmentation and the outlines of fields.

    Args:
        threshold: Minimum probability of interior and boundary of a field together, exclusive.
        h: Minimum height of the peak of a field above the saddle to a higher peak; see :func:`.segment_fields`.
        smallest: Minimum area of a field in hectares; smaller ones are removed.
        largest: Maximum area of a field in hectares; larger ones are removed, because most of them are errors, and
            memory grows with the extent of the largest one.
        hole: Maximum area of holes in a field that are closed, in hectares.
        simplify: Tolerance of simplification in pixels: the square root of the area of the triangles that are
            removed at most. 0 keeps the sides of the pixels.
        code_list: URL of the list of crop codes, for the column ``crop:code_list`` of fiboa.

    Raises:
        ValueError: If a value is out of range.
    """

    threshold: float = 0.5
    h: float = 0.2
    smallest: float = 0.1
    largest: float = 1000.0
    hole: float = 0.1
    simplify: float = 1.5
    code_list: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < 1 or not 0 < self.h <= 2:
            raise ValueError(
                f'threshold is {self.threshold} and h {self.h}, expected 0 <= threshold < 1 and 0 < h <= 2'
            )
        for name in ('smallest', 'hole', 'simplify'):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f'{name} is {getattr(self, name)}, expected at least 0')
        if not self.largest > self.smallest:
            raise ValueError(f'largest is {self.largest} hectares, expected more than smallest, {self.smallest}')


def segment_fields(
    extent: NDArray[np.floating[Any]],
    distance: NDArray[np.floating[Any]],
    observed: NDArray[np.bool_] | None = None,
    *,
    threshold: float = 0.5,
    h: float = 0.2,
    smallest: int = 1,
    block: int = SEGMENT_BLOCK,
) -> Ids:
    """Return the fields of predicted maps, touching ones apart.

    Values are rounded to steps of 0.004, as in a map.

    Args:
        extent: ``(3, H, W)``, probabilities of other, interior and boundary.
        distance: ``(H, W)``, distance to the edge of the field over its maximum in the field, 0 to 1.
        observed: ``(H, W)``, pixels that may belong to a field; defaults to all. NaN never does.
        threshold: Minimum probability of interior and boundary together, exclusive.
        h: Minimum height of the peak of a field above the saddle to a higher peak, in units of distance and
            probability: 0 to 2. A larger value merges more.
        smallest: Minimum size of a field in pixels; smaller ones are removed.
        block: Side of the blocks in pixels. The result does not depend on it.

    Returns:
        ``(H, W)`` int32: ids from 1, in the order of the first pixel of each field in row-major order; 0 elsewhere.
        Each field is connected by sides of its pixels.

    Raises:
        ValueError: If a shape or an argument is invalid.
    """
    if extent.ndim != 3 or extent.shape[0] != 3 or extent.shape[1:] != distance.shape:
        raise ValueError(
            f'extent has shape {extent.shape} and distance {distance.shape}, expected (3, H, W) and (H, W)'
        )
    if observed is not None and observed.shape != distance.shape:
        raise ValueError(f'observed has shape {observed.shape}, expected that of distance, {distance.shape}')
    finite = np.isfinite(extent).all(0) & np.isfinite(distance)
    interior, boundary, distances = (
        np.rint(np.where(finite, band, 0) * STEPS).astype(np.int32) for band in (extent[1], extent[2], distance)
    )
    inside = finite if observed is None else finite & observed
    inside = inside & (interior + boundary > threshold * STEPS)
    levels = _smooth(np.where(inside, distances - boundary, -STEPS))
    nodes = np.zeros(distance.shape, np.int32)

    def read(window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        return levels[_slices(window)], inside[_slices(window)]

    def write(window: Window, labels: Ids) -> None:
        nodes[_slices(window)] = labels

    table = label_basins(read, write, distance.shape, h * STEPS * _WEIGHT, (smallest, math.inf), block)
    return table.ids[nodes]


def segment_map(
    path: Path, output: Path, scratch: Path, options: FieldOptions | None = None, block: int = SEGMENT_BLOCK
) -> 'FieldTable':
    """Segment the fields of a map, and write the id of the field of each pixel to a GeoTIFF of int32, 0 for none.

    Fields are those of :func:`.segment_fields` on the bands of the map.

    Args:
        path: Map with bands of field boundaries, as :class:`.GeoTIFFWriter` writes it for fields.
        output: GeoTIFF to write; it is not written atomically.
        scratch: Temporary file of about the same size, which is removed.
        options: Settings; only ``threshold``, ``h``, ``smallest`` and ``largest`` are used.
        block: Side of the blocks in pixels. The result does not depend on it.

    Raises:
        ValueError: If the map has no such bands, or its CRS is not projected.
    """
    options = options or FieldOptions()
    layout = {'driver': 'GTiff', 'dtype': 'int32', 'count': 1, 'tiled': True, 'blockxsize': BLOCK, 'blockysize': BLOCK}
    layout |= {'compress': 'lzw', 'bigtiff': 'IF_SAFER'}
    with rasterio.Env(GDAL_CACHEMAX=CACHE), rasterio.open(path) as file:
        hectare = hectares(file)
        if missing := [name for name in FIELD_BANDS if name not in file.descriptions]:
            raise ValueError(
                f'{path} has bands {file.descriptions}, expected also {missing}: predict with fields, with a model '
                'that was trained with instances'
            )
        bands = [file.descriptions.index(name) + 1 for name in FIELD_BANDS]
        steps = round(1 / file.scales[bands[0] - 1])
        place = {'height': file.height, 'width': file.width, 'crs': file.crs, 'transform': file.transform}

        def read(window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
            around, core = _with_margin(window, file.shape)
            interior, boundary, distance = file.read(bands, window=raster_window(around)).astype(np.int32)
            inside = (interior != file.nodata) & (interior + boundary > options.threshold * steps)
            return _smooth(np.where(inside, distance - boundary, -steps))[core], inside[core]

        least = math.ceil(options.smallest / hectare - 1e-9)
        sizes = least, max(least, options.largest / hectare)
        with rasterio.open(scratch, 'w', **layout, **place) as sink:

            def write(window: Window, labels: Ids) -> None:
                sink.write(labels, 1, window=raster_window(window))

            table = label_basins(read, write, file.shape, options.h * steps * _WEIGHT, sizes, block)
        with rasterio.open(scratch) as labels, rasterio.open(output, 'w', **layout, **place, nodata=0) as sink:
            for window in windows_of(file.height, file.width, block):
                ids = table.ids[labels.read(1, window=raster_window(window))]
                sink.write(ids, 1, window=raster_window(window))
                table.extend_boxes(window, ids)
    scratch.unlink()
    return table


def hectares(file: Any) -> float:
    """Return the area of a pixel of an open raster in hectares.

    Raises:
        ValueError: If its CRS is not projected.
    """
    if not file.crs or not file.crs.is_projected:
        raise ValueError(f'CRS of {file.name} is {file.crs}, expected a projected one for areas in hectares')
    return float(abs(file.transform.a * file.transform.e) * file.crs.linear_units_factor[1] ** 2 / 1e4)


@dataclass(frozen=True)
class FieldTable:
    """Fields of a map, from id 1, in the order of their first pixels.

    Attributes:
        ids: Id of the field of each label that was written, 0 for none; label 0 is not a field.
        sizes: Number of pixels of each field.
        firsts: Position of the first pixel of each field in row-major order.
        boxes: First row, first column, last row and last column (both exclusive) of each field, once
            :meth:`extend_boxes` was called for all of its pixels.
        removed: Number of fields that were too small, and that were too large.
    """

    ids: Ids
    sizes: NDArray[np.int64]
    firsts: NDArray[np.int64]
    boxes: Ids
    removed: tuple[int, int]

    def extend_boxes(self, window: Window, ids: Ids) -> None:
        """Extend the bounding boxes by the pixels of a window."""
        found, numbers = np.unique(ids, return_inverse=True)
        corner = np.array([window.row, window.column])
        for field, slices in zip(found.tolist(), find_objects(numbers.reshape(ids.shape) + 1), strict=True):
            if field:
                box = self.boxes[field - 1]
                box[:2] = np.minimum(box[:2], [part.start for part in slices] + corner)
                box[2:] = np.maximum(box[2:], [part.stop for part in slices] + corner)


def label_basins(
    read: Callable[[Window], tuple[NDArray[Any], NDArray[np.bool_]]],
    write: Callable[[Window, Ids], None],
    shape: tuple[int, ...],
    h: float,
    sizes: tuple[float, float] = (1, math.inf),
    block: int = SEGMENT_BLOCK,
) -> FieldTable:
    """Label the basins of a surface block by block, and return which of them form a field.

    Memory is that of a block, of a row of pixels, and of 24 bytes per field and per basin at the right and lower
    sides of blocks, regardless of the area.

    Args:
        read: Function that returns the surface of a window in integers, and its mask.
        write: Function that stores the labels of a window.
        shape: Rows and columns of the surface.
        h: Minimum height of the peak of a field above the saddle to a higher peak.
        sizes: Minimum and maximum size of a field in pixels.
        block: Side of the blocks in pixels.

    Raises:
        ValueError: If *h*, *sizes* or *block* is out of range.
    """
    if not h > 0:
        raise ValueError(f'h is {h} steps, expected more than 0')
    if not 0 <= sizes[0] <= sizes[1] or block < 1:
        raise ValueError(f'sizes are {sizes} and block is {block} pixels, expected at least 0 and 1')
    basins = _Basins(shape[0], shape[1], h)
    for window in windows_of(shape[0], shape[1], block):
        write(window, basins.add(window, _padded(read, window, shape)))
    return basins.finish(*sizes)


class _Edges(NamedTuple):
    """Saddles between pairs of basins.

    Attributes:
        one: Number of one basin.
        two: Number of the other.
        saddle: Key of the lower pixel of the highest pair of adjacent pixels.
        higher: Key of the other pixel of the pair; it decides between saddles at the same pixel.
    """

    one: NDArray[np.int64]
    two: NDArray[np.int64]
    saddle: Keys
    higher: Keys

    def where(self, index: NDArray[Any]) -> '_Edges':
        """Return some of the edges."""
        return _Edges(*(values[index] for values in self))


class _Basins:
    """Basins of the blocks so far, and the saddles over which they may merge; blocks come in row-major order.

    A basin that continues in a later block is numbered as an open one, and linked to its continuation when that block
    is added. Basin 0 stands for pixels outside of the mask.

    Args:
        height: Rows of the map.
        width: Columns of the map.
        h: Minimum height of the peak of a field above its saddle.
    """

    def __init__(self, height: int, width: int, h: float) -> None:
        self.height, self.width, self.h = height, width, h
        #: Key of the peak; of an open basin that of the pixel where it leaves its block, which is below its peak.
        self.peaks = np.array([_OUTSIDE])
        self.sizes = np.zeros(1, np.int64)
        #: Position of the first pixel.
        self.firsts = np.array([np.iinfo(np.int64).max])
        self.edges: list[_Edges] = []
        self.links: list[NDArray[np.int64]] = [np.zeros((2, 0), np.int64)]
        self._above, self._below = np.zeros((2, width), np.int64)
        self._down, self._next_down = np.zeros((2, width), np.int64)
        self._left = self._across = np.zeros(0, np.int64)

    def add(self, window: Window, keys: Keys) -> Ids:
        """Add a block, given the keys of its pixels and of one pixel around it, and return its labels."""
        top, left, height, width = window
        if left == 0:  # a new row of blocks
            self._above, self._below = self._below, self._above
            self._down, self._next_down = self._next_down, np.zeros_like(self._down)
            self._left = self._across = np.zeros(height, np.int64)
        columns = slice(left, left + width)
        adjacent = np.zeros(keys.shape, np.int64)  # basins of the neighbouring pixels of earlier blocks
        adjacent[0, 1:-1], adjacent[1:-1, 0] = self._above[columns], self._left
        roots = _climb(keys)[1:-1, 1:-1]
        inside = keys[1:-1, 1:-1] != _OUTSIDE
        # Number the basins: earlier ones, then those with a peak in the block or a way out of it.
        border = np.flatnonzero(adjacent)
        earlier, numbers_of = np.unique(adjacent.ravel()[border], return_inverse=True)
        numbers = np.zeros(keys.size, np.int64)
        numbers[border] = numbers_of + 1
        is_top = np.zeros(keys.size, bool)
        is_top[roots[inside]] = True
        tops = np.flatnonzero(is_top & (numbers == 0))
        labels = numbers.reshape(keys.shape).copy()
        numbers[tops] = len(earlier) + 1 + np.arange(len(tops))
        labels[1:-1, 1:-1] = np.where(inside, numbers[roots], 0)
        core = labels[1:-1, 1:-1]

        rows_of, columns_of = np.divmod(tops, keys.shape[1])
        leaves = (rows_of > height) | (columns_of > width)
        peaks = np.concatenate([[_OUTSIDE], self.peaks[earlier], keys.ravel()[tops]])
        total = len(peaks)
        open_ = np.zeros(total, bool)
        open_[: len(earlier) + 1], open_[len(earlier) + 1 :] = True, leaves
        if top + height < self.height:
            open_[core[-1]] = True
        if left + width < self.width:
            open_[core[:, -1]] = True
        target, edges = merge_basins(_saddles(labels, keys), peaks, open_, self.h)

        positions = (top + np.arange(height))[:, None] * self.width + left + np.arange(width)
        firsts = np.full(total, np.iinfo(np.int64).max)
        firsts[core.ravel()[::-1]] = positions.ravel()[::-1]  # of several values, the last one is assigned
        kept = np.flatnonzero(target == np.arange(total))
        new = kept[kept > len(earlier)]
        names = np.concatenate([[0], earlier, np.zeros(len(tops), np.int64)])
        names[new] = len(self.peaks) + np.arange(len(new))
        names = names[target]
        self.peaks = np.concatenate([self.peaks, peaks[new]])
        self.sizes = np.concatenate([self.sizes, np.zeros(len(new), np.int64)])
        self.firsts = np.concatenate([self.firsts, np.full(len(new), np.iinfo(np.int64).max)])
        np.add.at(self.sizes, names, np.bincount(core.ravel(), minlength=total))
        np.minimum.at(self.firsts, names, firsts)
        self.edges.append(edges._replace(one=names[edges.one], two=names[edges.two]))

        result = names[core]
        for arriving, continued in ((self._down[columns], result[0]), (self._across, result[:, 0])):
            self.links.append(np.stack([arriving, continued])[:, arriving > 0])
        self._below[columns], self._left = result[-1], result[:, -1]
        self._across = np.zeros(height, np.int64)
        out = names[numbers[tops[leaves]]]
        down = rows_of[leaves] > height
        self._next_down[left + columns_of[leaves][down] - 1] = out[down]
        self._across[rows_of[leaves][~down] - 1] = out[~down]
        return result.astype(np.int32)

    def finish(self, least: float, most: float) -> FieldTable:
        """Merge the basins of all blocks, and number the fields."""
        total = len(self.peaks)
        target = np.arange(total)
        here, there = np.concatenate(self.links, axis=1)
        target[here] = there
        target = _follow(target)
        peaks = self.peaks.copy()
        edges = _Edges(*(np.concatenate(values) for values in zip(*self.edges, strict=True)))
        edges = edges._replace(one=target[edges.one], two=target[edges.two])
        merged, _ = merge_basins(edges, peaks, np.zeros(total, bool), self.h)
        target = merged[target]
        sizes, firsts = np.zeros(total, np.int64), np.full(total, np.iinfo(np.int64).max)
        np.add.at(sizes, target, self.sizes)
        np.minimum.at(firsts, target, self.firsts)
        is_field = sizes > 0
        is_field[0] = False
        chosen = np.flatnonzero(is_field & (sizes >= least) & (sizes <= most))
        chosen = chosen[np.argsort(firsts[chosen])]
        ids = np.zeros(total, np.int32)
        ids[chosen] = np.arange(1, len(chosen) + 1)
        boxes = np.tile(np.array([self.height, self.width, 0, 0], np.int32), (len(chosen), 1))
        removed = int((is_field & (sizes < least)).sum()), int((is_field & (sizes > most)).sum())
        return FieldTable(ids[target], sizes[chosen], firsts[chosen], boxes, removed)


def merge_basins(edges: _Edges, peaks: Keys, is_open: NDArray[np.bool_], h: float) -> tuple[NDArray[np.int64], _Edges]:
    """Merge basins whose peak is less than *h* above their highest saddle, if that leads to a higher peak.

    In the order of saddles from the highest down, this is the first merge of such a basin. So it is final, and all of
    them merge at once; this is repeated until there are none.

    Args:
        edges: Saddles.
        peaks: Keys of the peaks of the basins.
        is_open: Basins of which not all saddles are known, which remain.
        h: Minimum height.

    Returns:
        Number of the basin that each one becomes part of, and the remaining saddles.
    """
    target = np.arange(len(peaks))
    while True:
        edges = _highest(edges, peaks, h)
        one, two = np.concatenate([edges.one, edges.two]), np.concatenate([edges.two, edges.one])
        order = np.lexsort([np.tile(edges.higher, 2), np.tile(edges.saddle, 2), one])
        last = np.append(one[order][1:] != one[order][:-1], True)[: len(order)]
        lower, upper = one[order][last], two[order][last]
        merges = (peaks[upper] > peaks[lower]) & ~is_open[lower]
        if not merges.any():
            return target, edges
        step = np.arange(len(peaks))
        step[lower[merges]] = upper[merges]
        step = _follow(step)
        target = step[target]
        edges = edges._replace(one=step[edges.one], two=step[edges.two])


def _highest(edges: _Edges, peaks: Keys, h: float) -> _Edges:
    """Return the highest saddle of each pair of basins, without those at which both peaks rise by *h* or more."""
    least = np.minimum(peaks[edges.one], peaks[edges.two])
    edges = edges.where((edges.one != edges.two) & ((least >> _BITS) - (edges.saddle >> _BITS) < h))
    one, two = np.minimum(edges.one, edges.two), np.maximum(edges.one, edges.two)
    order = np.lexsort([edges.higher, edges.saddle, two, one])
    one, two = one[order], two[order]
    last = np.append((one[1:] != one[:-1]) | (two[1:] != two[:-1]), True)[: len(order)]
    return edges.where(order[last])


def _follow(target: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the root of each node of a forest, given its parents; roots are their own parents."""
    while not np.array_equal(following := target[target], target):
        target = following
    return target


def _climb(keys: Keys) -> NDArray[np.int64]:
    """Return the flat index of the pixel at which the steepest ascent from each pixel ends.

    Pixels of the border are not left, because their neighbours are unknown.
    """
    height, width = keys.shape
    best = keys[1:-1, 1:-1].copy()
    steps = np.zeros(best.shape, np.int64)
    for step, (row, column) in ((-width, (0, 1)), (-1, (1, 0)), (1, (1, 2)), (width, (2, 1))):
        neighbours = keys[row : row + height - 2, column : column + width - 2]
        higher = neighbours > best
        best[higher], steps[higher] = neighbours[higher], step
    steps[keys[1:-1, 1:-1] == _OUTSIDE] = 0
    parents = np.arange(keys.size).reshape(keys.shape)
    parents[1:-1, 1:-1] += steps
    return _follow(parents.ravel()).reshape(keys.shape)


def _saddles(labels: NDArray[np.int64], keys: Keys) -> _Edges:
    """Return all pairs of adjacent pixels of two basins; one pixel of the pair is inside of the block."""
    parts = []
    for these, those in (
        ((slice(None, -1), slice(1, -1)), (slice(1, None), slice(1, -1))),
        ((slice(1, -1), slice(None, -1)), (slice(1, -1), slice(1, None))),
    ):
        one, two = labels[these], labels[those]
        differ = (one != two) & (one > 0) & (two > 0)
        first, second = keys[these][differ], keys[those][differ]
        parts.append((one[differ], two[differ], np.minimum(first, second), np.maximum(first, second)))
    return _Edges(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def _padded(
    read: Callable[[Window], tuple[NDArray[Any], NDArray[np.bool_]]], window: Window, shape: tuple[int, ...]
) -> Keys:
    """Return the keys of a window and of one pixel around it: height, then position, so that no two are equal."""
    around, core = _with_margin(window, shape)
    top, left, height, width = around
    levels, inside = read(around)
    positions = np.arange(top, top + height)[:, None] * shape[1] + np.arange(left, left + width)
    keys = np.full((window.height + 2, window.width + 2), _OUTSIDE)
    place = _slices(Window(1 - core[0].start, 1 - core[1].start, height, width))
    keys[place] = np.where(inside, (levels.astype(np.int64) << _BITS) + (2**_BITS - 1 - positions), _OUTSIDE)
    return keys


def _smooth(levels: NDArray[np.integer[Any]]) -> NDArray[np.integer[Any]]:
    """Return the sums of 3 x 3 pixels with binomial weights, which add up to 16; pixels at the border are repeated."""
    padded = np.pad(levels, 1, mode='edge')
    rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    return rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]


def _with_margin(window: Window, shape: tuple[int, ...]) -> tuple[Window, tuple[slice, slice]]:
    """Return a window with one more pixel on each side, as far as there are any, and the place of the window in it."""
    top, left = max(0, window.row - 1), max(0, window.column - 1)
    bottom = min(shape[0], window.row + window.height + 1)
    right = min(shape[1], window.column + window.width + 1)
    core = Window(window.row - top, window.column - left, window.height, window.width)
    return Window(top, left, bottom - top, right - left), _slices(core)


def windows_of(height: int, width: int, block: int) -> Iterator[Window]:
    """Yield the blocks of a raster in row-major order."""
    for row in range(0, height, block):
        for column in range(0, width, block):
            yield Window(row, column, min(block, height - row), min(block, width - column))


def _slices(window: Window) -> tuple[slice, slice]:
    return slice(window.row, window.row + window.height), slice(window.column, window.column + window.width)


def raster_window(window: Window) -> RasterWindow:
    """Return a window as rasterio takes it."""
    return RasterWindow(window.column, window.row, window.width, window.height)
