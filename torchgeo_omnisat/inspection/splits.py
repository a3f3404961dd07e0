# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""A split of labelled ground in which every class is in training, validation and test, as far as possible."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import einops
import numpy as np
import shapely
import torch.nn.functional as F
from numpy.typing import NDArray

from ..datasets.common.arguments import SPLITS
from ..datasets.geo.join import MultimodalGeoDataset
from ..datasets.rasters.georeference import Span
from ..grid import Grid

#: Fractions of training, validation and test.
FRACTIONS = (0.6, 0.2, 0.2)
#: Maximum number of blocks and of cells along a side, and of label pixels along the side of a cell.
_BLOCKS, _CELLS, _PIXELS = 24, 96, 32
#: Numbers of blocks along the longer side that are tried.
_DIVISIONS = (5, 10, 20)
#: Number of random assignments of blocks that are compared, and their seed.
_DRAWS, _SEED = 2000, 0
#: Gain in coverage that justifies a less simple split.
_WORTH = 0.02

Counts = NDArray[np.int64]


class Blocks(NamedTuple):
    """Labelled pixels of each class in square cells of ground.

    Attributes:
        cells: Number of pixels of each cell ``(R f, C f, K)``, from north to south and west to east.
        grid: Grid of R x C blocks of f x f cells.
        labelled: Estimated number of labelled pixels at the GSD of the labels.
    """

    cells: Counts
    grid: Grid
    labelled: int

    @property
    def counts(self) -> Counts:
        """Number of pixels of each block ``(R, C, K)``."""
        f = len(self.cells) // self.grid.height
        return einops.reduce(self.cells, '(r f) (c g) k -> r c k', 'sum', f=f, g=f)


def count_blocks(dataset: MultimodalGeoDataset, side: float, classes: int) -> Blocks:
    """Count labels in blocks of at least *side* metres, a multiple of the tile size, and in the cells of blocks."""
    xmin, ymin, xmax, ymax = dataset.area.bounds
    side *= max(1, math.ceil(max(xmax - xmin, ymax - ymin) / side / _BLOCKS))
    grid = Grid.over(dataset.crs, (xmin, ymin, xmax, ymax), side, (xmin, ymax))
    factor = max(1, _CELLS // max(grid.height, grid.width))
    pixels = int(np.clip(math.ceil(side / factor / dataset.label_gsd), 1, _PIXELS))
    span: Span = (dataset.index.index.left.min(), dataset.index.index.right.max())
    rows = []
    for row in range(grid.height):
        box = grid.box(row, 0, 1, grid.width)
        fine = Grid.over(dataset.crs, box, side / factor / pixels, (box[0], box[3]))
        assert dataset.labels is not None
        mask = dataset.labels.read(fine, span, classes, strict=False)[: factor * pixels, : grid.width * factor * pixels]
        each = F.one_hot(mask.clamp(0, classes), classes + 1)[..., :classes]
        rows.append(einops.reduce(each, '(r p) (c q) k -> r c k', 'sum', p=pixels, q=pixels).numpy())
    cells = np.concatenate(rows)
    scale = (side / factor / pixels / dataset.label_gsd) ** 2
    return Blocks(cells, grid, round(float(cells.sum()) * scale))


def coverage(parts: Sequence[Counts]) -> float:
    """Return how evenly classes are in all splits, from 0 to 1, from the counts ``(K,)`` of each split.

    Of each class, a split should have at least half of its fraction of the pixels. Training counts twice, because a
    class cannot be learnt without it.
    """
    counts = np.stack(parts).astype(np.float64)
    present = counts.sum(0) > 0
    if not present.any():
        return 0.0
    share = counts[:, present] / counts[:, present].sum(0)
    even = np.minimum(share / (0.5 * np.array(FRACTIONS)[:, None]), 1)
    return float(np.average(even, axis=0, weights=(2, 1, 1)).mean())


def choose_split(dataset: MultimodalGeoDataset, tile: float, classes: int) -> dict[str, Any]:
    """Return the setting ``split`` of the datamodule.

    The simplest split with nearly the best :func:`coverage` is chosen: fractions along an axis, else large blocks of
    ground, else smaller ones, at least *tile* metres a side.
    """
    xmin, ymin, xmax, ymax = dataset.area.bounds
    most = max(xmax - xmin, ymax - ymin)
    sides = sorted({tile * max(1, round(most / number / tile)) for number in _DIVISIONS}, reverse=True)
    every = [count_blocks(dataset, side, classes) for side in sides]
    best, score = _by_axis(every[-1], 'x')
    candidates = [_by_axis(every[-1], 'y')]
    if max(score, candidates[0][1]) < 1 - _WORTH:
        candidates += [_by_blocks(blocks, in_strips) for blocks in every for in_strips in (True, False)]
    for found, other in candidates:
        if other > score + _WORTH:
            best, score = found, other
    return best


def _by_axis(blocks: Blocks, axis: str) -> tuple[dict[str, Any], float]:
    along = blocks.cells.sum(0) if axis == 'x' else blocks.cells.sum(1)[::-1]
    edges = np.round(np.cumsum((0, *FRACTIONS)) * len(along)).astype(int)
    if (np.diff(edges) < 1).any():
        return {'axis': axis, 'fractions': list(FRACTIONS)}, 0.0
    parts = [along[low:high].sum(0) for low, high in itertools.pairwise(edges)]
    return {'axis': axis, 'fractions': list(FRACTIONS)}, coverage(parts)


def _by_blocks(blocks: Blocks, in_strips: bool) -> tuple[dict[str, Any], float]:
    """Return the best of many random assignments of blocks, or of whole strips of blocks, to splits."""
    rows, columns, classes = blocks.counts.shape
    strips = np.arange(rows)[:, None] if rows >= columns else np.arange(columns)[None]
    units = np.broadcast_to(strips, (rows, columns)) if in_strips else np.arange(rows * columns).reshape(rows, columns)
    number = int(units.max()) + 1
    if number < len(SPLITS):
        return {}, 0.0
    counts = np.zeros((number, classes), np.int64)
    np.add.at(counts, units.ravel(), blocks.counts.reshape(-1, classes))
    labelled = np.flatnonzero(counts.sum(1))
    if len(labelled) < len(SPLITS):
        return {}, 0.0
    rng = np.random.default_rng(_SEED)
    edges = np.clip(np.round(np.cumsum(FRACTIONS) * len(labelled)).astype(int), 1, len(labelled))
    edges = np.minimum(edges, [len(labelled) - 2, len(labelled) - 1, len(labelled)])
    order, best = labelled, -1.0
    for _ in range(_DRAWS):
        drawn = rng.permutation(labelled)
        found = coverage([counts[part].sum(0) for part in np.split(drawn, edges[:2])])
        if found > best + 1e-9:
            order, best = drawn, found
    split = np.full(number, 0)  # blocks without labels belong to training
    for index, part in enumerate(np.split(order, edges[:2])):
        split[part] = index
    chosen = split[units]
    return {name: _boxes(blocks.grid, chosen == index) for index, name in enumerate(SPLITS)}, best


def _boxes(grid: Grid, chosen: NDArray[np.bool_]) -> list[list[float]]:
    """Return few boxes (xmin, ymin, xmax, ymax) that cover the chosen blocks."""
    left, rows = chosen.copy(), []
    while left.any():
        row, column = (int(index) for index in np.argwhere(left)[0])
        width = 1
        while column + width < left.shape[1] and left[row, column + width]:
            width += 1
        height = 1
        while row + height < left.shape[0] and left[row + height, column : column + width].all():
            height += 1
        left[row : row + height, column : column + width] = False
        rows.append([_plain(edge) for edge in grid.box(row, column, height, width)])
    return rows


def _plain(number: float) -> float:
    return int(number) if float(number).is_integer() else round(float(number), 6)


def describe(split: dict[str, Any], crs: str) -> str:
    """Describe a split in a line, with the CRS of its boxes."""
    if 'axis' in split:
        first, last = ('west', 'east') if split['axis'] == 'x' else ('south', 'north')
        return f'training, validation and test from {first} to {last}'
    area = [sum(shapely.box(*box).area for box in split[name]) for name in SPLITS]
    shares = ', '.join(f'{100 * part / sum(area):.0f} %' for part in area)
    return f'boxes xmin, ymin, xmax, ymax in {crs} ({shares} of the ground), so that most classes are in all splits'
