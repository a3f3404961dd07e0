# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""AreaTiles: the tiles of a map that is to be made, read from any GeoDataset."""

from collections.abc import Sequence
from typing import Any

import torch
from torchgeo.datasets.utils import Sample

from ..grid import Grid


class AreaTiles:
    """Reads one window of a grid at a time; where the data have nothing, so has the sample.

    Samples have the images, ``dates`` and ``valid`` of every modality that is there, and
    ``window``: row, column, height and width on the grid.

    Args:
        dataset: A GeoDataset whose samples follow :mod:`torchgeo_omnisat.batch`. It answers
            slices of x, y and time, and raises IndexError where it has nothing.
        grid: The pixels of the map, in the CRS of *dataset*.

    Raises:
        ValueError: If the grid is in another CRS, or nowhere touches the data.
    """

    def __init__(self, dataset: Any, grid: Grid) -> None:
        if grid.crs != dataset.crs:
            raise ValueError(f'the grid is in {grid.crs.to_string()}, expected the CRS of the data, {dataset.crs}')
        x, y, self.time = dataset.bounds
        xmin, ymin, xmax, ymax = grid.bounds
        if x.start >= xmax or x.stop <= xmin or y.start >= ymax or y.stop <= ymin:
            raise ValueError(
                f'the area {grid.bounds} lies outside of the data, which cover x from {x.start} to {x.stop} and y from '
                f'{y.start} to {y.stop} in {grid.crs.to_string()}'
            )
        self.dataset, self.grid = dataset, grid

    def __getitem__(self, window: Sequence[int]) -> Sample:
        """The sample of a window, which may pass the border of the grid."""
        row, column, height, width = window
        x, y = self.grid.slices(row, column, height, width)
        try:
            sample = self.dataset[x, y, slice(self.time.start, self.time.stop)]
        except IndexError:
            sample = {}
        if 'bounds' in sample:
            corner, asked = (float(sample['bounds'][0]), float(sample['bounds'][4])), (x.start, y.stop)
            if max(abs(here - there) for here, there in zip(corner, asked, strict=True)) > self.grid.step / 2:
                raise ValueError(
                    f'the data have pixels at {corner} where the grid has them at {asked}, '
                    'expected a grid whose tiles begin where pixels of all modalities meet'
                )
        kinds = ('image_', 'dates_', 'valid_')
        kept: Sample = {key: value for key, value in sample.items() if key.startswith(kinds)}
        return kept | {'window': torch.tensor([row, column, height, width])}
