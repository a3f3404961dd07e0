# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Small training tiles: windows that are cut from blocks in memory, and places around labelled pixels."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchgeo.datasets.utils import Sample

from ...grid import Grid
from ...modality import Modality, half_up
from ..rasters.georeference import where
from .join import MultimodalGeoDataset, pixels

#: Places of random training tiles: anywhere, or around a random labelled pixel.
Places = Literal['anywhere', 'labels']
#: Maximum number of bytes of the blocks of a dataset that stay in memory.
MEMORY = 2**29
#: Attempts to place a tile around a labelled pixel at the border of the footprint.
TRIES = 20


class BlockReader:
    """Reader of windows of one size, which keeps the blocks of ground that contain them in memory.

    A block is read once, unless all blocks exceed :data:`MEMORY`. The oldest ones are then removed.

    Args:
        dataset: Join without transforms and instances.
        grid: Grid of the windows, whose pixels are the ``lattice`` of the join.
        side: Side of a block in pixels of the grid.
        across: Side of a window in pixels of the grid; windows begin within a block and may exceed it.
    """

    def __init__(self, dataset: MultimodalGeoDataset, grid: Grid, side: int, across: int) -> None:
        self.dataset, self.grid, self.side, self.across = dataset, grid, side, across
        period = dataset._disambiguate_slice(slice(None))[2]
        self.span = (period.start, period.stop)
        self._blocks = OrderedDict[tuple[int, int], Sample]()
        self._bytes = 0

    def read(self, row: int, column: int) -> Sample:
        """Return the sample of the window that begins at a row and column of the grid."""
        top, left = row // self.side * self.side, column // self.side * self.side
        block = self._block(top, left)
        sample = cut(block, self.dataset.modalities, self.grid.step, row - top, column - left, self.across)
        scale = self.grid.step / self.dataset.label_gsd
        if 'mask' in block:
            sample['mask'] = _window(block['mask'], scale, row - top, column - left, self.across)
        box = self.grid.box(row, column, self.across, self.across)
        return sample | where(pixels(self.dataset.crs, box, self.dataset.label_gsd), self.span)

    def _block(self, top: int, left: int) -> Sample:
        if (top, left) in self._blocks:
            self._blocks.move_to_end((top, left))
            return self._blocks[top, left]
        size = self.side + self.across
        block = self.dataset[self.grid.slices(top, left, size, size)]
        self._blocks[top, left] = block
        self._bytes += _bytes(block)
        while self._bytes > MEMORY and len(self._blocks) > 1:
            self._bytes -= _bytes(self._blocks.popitem(last=False)[1])
        return block


def cut(
    block: Mapping[str, Tensor], modalities: Mapping[str, Modality], step: float, row: int, column: int, across: int
) -> Sample:
    """Return the images, dates and valid of a window of a block.

    Dates at which the window has no finite pixel are not valid, as if the window had been read from its files.

    Args:
        block: Sample of the block.
        modalities: Modalities by name.
        step: Size in metres of the pixels in which the window is given.
        row: First row.
        column: First column.
        across: Number of rows and of columns.
    """
    sample: Sample = {}
    for modality in modalities.values():
        if modality.image_key in block:
            image = _window(block[modality.image_key], step / modality.gsd, row, column, across)
            finite = image.isfinite()
            seen = finite.flatten(1).any(1) if modality.temporal else finite.any().reshape(1)
            sample[modality.image_key] = image
            sample[modality.dates_key] = block[modality.dates_key]
            sample[modality.valid_key] = block[modality.valid_key] & seen
    return sample


def _window(image: Tensor, scale: float, row: int, column: int, across: int) -> Tensor:
    top, left, size = half_up(row * scale), half_up(column * scale), half_up(across * scale)
    return image[..., top : top + size, left : left + size]


def _bytes(sample: Mapping[str, Any]) -> int:
    return sum(value.nbytes for value in sample.values() if isinstance(value, Tensor))


class LabelPlaces:
    """Sampler of tiles that contain a labelled pixel.

    Args:
        cells: Row and column ``(N, 2)`` of pixels of the grid of the tiles that have a label.
        across: Side of a tile in pixels of this grid.
    """

    def __init__(self, cells: NDArray[np.int32], across: int) -> None:
        self.cells, self.across = cells, across

    def draw(self, rng: np.random.Generator, fits: Callable[[int, int], bool]) -> tuple[int, int] | None:
        """Draw the row and column of a tile; None without labels, or if no tile fits around the labelled pixel.

        Args:
            rng: Random generator.
            fits: Whether a tile at a row and column lies within the footprint.
        """
        if not len(self.cells):
            return None
        row, column = self.cells[rng.integers(len(self.cells))].tolist()
        for _ in range(TRIES if self.across > 1 else 1):
            down, right = rng.integers(self.across, size=2).tolist()
            if fits(row - down, column - right):
                return row - down, column - right
        return None


def labelled_cells(mask: Tensor, ignore_index: int, factor: int) -> NDArray[np.int32]:
    """Return row and column ``(N, 2)`` of the cells of *factor* x *factor* pixels with a label."""
    known = mask.isfinite() if mask.is_floating_point() else mask != ignore_index
    cells = (known.nonzero() // factor).to(torch.int32)
    return cells.unique(dim=0).numpy() if factor > 1 and len(cells) else cells.numpy()
