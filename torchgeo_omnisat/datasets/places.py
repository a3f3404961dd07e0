# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""TilePlaces: where on a grid a tile lies within the ground, however scattered that ground is."""

from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from ..grid import Grid

#: Blocks that a search keeps at once; beyond it, places are tried rather than searched.
MOST = 20_000
#: Fraction of a piece's rectangle in which tiles must fit for it to be drawn from as a whole.
ENOUGH = 1 / 8
#: Attempts of one draw, each of which succeeds with a probability of about ENOUGH or more.
TRIES = 10_000

#: Top, left, bottom and right (N, 4) of blocks of tile positions; the last two are exclusive.
Blocks = NDArray[np.int64]


class TilePlaces:
    """The positions on a grid at which a tile lies within the ground.

    The ground is searched piece by piece with a quadtree of positions, so what lies between
    pieces costs nothing. Nothing depends on the number of vertices but the one preparation.

    Args:
        ground: A geometry in the CRS of *grid*. A tile may pass it by a millionth of a pixel.
        grid: Its pixels count the positions.
        across: Side of a tile in pixels.
    """

    def __init__(self, ground: Any, grid: Grid, across: int) -> None:
        """Prepare the ground, once; positions are searched by :meth:`fits` and :meth:`draw`."""
        self.grid, self.across = grid, across
        self.ground = ground.buffer(1e-6 * grid.step, join_style='mitre')
        shapely.prepare(self.ground)
        self._leaves: list[NDArray[np.int64]] | None = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Prepare the ground again in another process."""
        self.__dict__.update(state)
        shapely.prepare(self.ground)

    def fits(self) -> bool:
        """Whether there is any place for a tile."""
        open_ = [self._root(piece) for piece in shapely.get_parts(self.ground)]
        stack = [block for block in open_ if block is not None]
        while stack:
            inside, mixed = self._sort(_children(stack.pop()))
            if len(inside):
                return True
            stack += np.array_split(mixed, max(1, len(mixed) // 256)) if len(mixed) else []
        return False

    def draw(self, rng: np.random.Generator) -> tuple[int, int] | None:
        """Draw the row and column of a tile within the ground; None if there is no place.

        The centre of the tile is uniform over the ground; tiles that would pass the rectangle of
        their piece are pulled back into it: otherwise pixels at its border would hardly ever be drawn.
        """
        if self._leaves is None:
            self._leaves = self._search()
        blocks, low, high = self._leaves
        if not len(blocks):
            return None
        weights = np.prod((high - low).astype(np.float64), axis=1)
        edges = np.cumsum(weights / weights.sum())
        for _ in range(TRIES):
            chosen = 0 if len(blocks) == 1 else min(int(np.searchsorted(edges, rng.random(), 'right')), len(blocks) - 1)
            row, column = (
                min(max(int(rng.integers(low[chosen, axis], high[chosen, axis])), int(first)), int(last) - 1)
                for axis, (first, last) in enumerate(zip(blocks[chosen, :2], blocks[chosen, 2:], strict=True))
            )
            if self.ground.contains(shapely.box(*self.grid.box(row, column, self.across, self.across))):
                return row, column
        return None

    def _search(self) -> list[NDArray[np.int64]]:
        """Blocks to draw from, and the ranges (N, 2) from which rows and columns are drawn before they are pulled back.

        A piece that fills most of its rectangle is one block. Of others there are as many smaller
        ones as it takes for draws to succeed.
        """
        half = self.across // 2
        found: list[list[NDArray[np.int64]]] = [[], [], []]
        for piece in shapely.get_parts(self.ground):
            root = self._root(piece)
            if root is None:
                continue
            blocks = self._refine(root, half)
            for part, values in zip(found, (blocks, *_ranges(blocks, root, half)), strict=True):
                part.append(values)
        return [np.concatenate(part) if part else np.zeros((0, 2), np.int64) for part in found]

    def _refine(self, root: Blocks, half: int) -> Blocks:
        """Blocks of a piece that hold all its places: *root* itself, if enough of it are places."""

        def weight(blocks: Blocks) -> float:
            low, high = _ranges(blocks, root, half)
            return float(np.prod((high - low).astype(np.float64), axis=1).sum())

        inside, mixed = self._sort(root)
        while len(mixed) and len(mixed) < MOST and weight(inside) < (weight(inside) + weight(mixed)) / 4:
            more, mixed = self._sort(_children(mixed))
            inside = np.concatenate([inside, more])
        return root if weight(inside) >= ENOUGH * weight(root) else np.concatenate([inside, mixed])

    def _root(self, piece: Any) -> Blocks | None:
        """All positions at which a tile lies in the rectangle of a piece; None if it is too small."""
        (x, y), step = self.grid.corner, self.grid.step
        xmin, ymin, xmax, ymax = piece.bounds
        top, left = np.ceil((y - ymax) / step), np.ceil((xmin - x) / step)
        bottom, right = (np.floor(far / step) - self.across + 1 for far in (y - ymin, xmax - x))
        if top >= bottom or left >= right:
            return None
        return np.array([[top, left, bottom, right]], np.int64)

    def _sort(self, blocks: Blocks) -> tuple[Blocks, Blocks]:
        """Blocks all of whose positions are places, and those that may have some."""
        top, left, bottom, right = blocks.T
        hulls = self._boxes(top, left, bottom - 1 + self.across, right - 1 + self.across)
        full = shapely.contains(self.ground, hulls)
        # What all tiles of a block share must lie within the ground, or none of them does.
        cores = self._boxes(
            np.minimum(bottom - 1, top + self.across),
            np.minimum(right - 1, left + self.across),
            np.maximum(bottom - 1, top + self.across),
            np.maximum(right - 1, left + self.across),
        )
        shared = (bottom - 1 < top + self.across) & (right - 1 < left + self.across)
        single = (bottom - top == 1) & (right - left == 1)
        possible = (
            ~full
            & ~single
            & np.where(shared, shapely.contains(self.ground, cores), shapely.intersects(self.ground, hulls))
        )
        return blocks[full], blocks[possible]

    def _boxes(self, top: Any, left: Any, bottom: Any, right: Any) -> Any:
        """Rectangles of rows and columns."""
        (x, y), step = self.grid.corner, self.grid.step
        return shapely.box(x + left * step, y - bottom * step, x + right * step, y - top * step)


def tiles_over(ground: Any, grid: Grid, across: int) -> Blocks:
    """Rows and columns (N, 2) of the tiles side by side, from the corner of a grid on, that reach into the ground.

    Args:
        ground: A geometry in the CRS of *grid*; of what lies between its pieces nothing is listed.
        grid: Its pixels count rows and columns.
        across: Side of a tile in pixels.
    """
    shapely.prepare(ground)
    (x, y), side, margin = grid.corner, grid.step * across, 1e-6 * grid.step  # what only touches a tile is not in it
    blocks = np.array([[0, 0, -(-grid.height // across), -(-grid.width // across)]], np.int64)
    while True:
        top, left, bottom, right = blocks.T
        boxes = shapely.box(
            x + left * side + margin, y - bottom * side + margin, x + right * side - margin, y - top * side - margin
        )
        blocks = blocks[shapely.intersects(ground, boxes)]
        if ((blocks[:, 2:] - blocks[:, :2]) == 1).all():
            break
        blocks = _children(blocks)
    starts = blocks[:, :2] * across
    return starts[np.lexsort((starts[:, 1], starts[:, 0]))]


def _children(blocks: Blocks) -> Blocks:
    """The quarters of blocks, without empty ones."""
    top, left, bottom, right = blocks.T
    row, column = (top + bottom + 1) // 2, (left + right + 1) // 2
    quarters = [(top, left, row, column), (top, column, row, right), (row, left, bottom, column)]
    children = np.concatenate([np.stack(part, axis=1) for part in (*quarters, (row, column, bottom, right))])
    return children[(children[:, 0] < children[:, 2]) & (children[:, 1] < children[:, 3])]


def _ranges(blocks: Blocks, root: Blocks, half: int) -> tuple[Blocks, Blocks]:
    """First and last (exclusive) numbers of rows and columns to draw from: beyond the rectangle by half a tile."""
    low = blocks[:, :2] - half * (blocks[:, :2] == root[0, :2])
    high = blocks[:, 2:] + half * (blocks[:, 2:] == root[0, 2:])
    return low, high
