# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""GeoTiles: a joined area cut into tiles, on a grid or at random, to be asked for by number."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import shapely
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rasterio.features import geometry_mask
from torchgeo.datasets import NonGeoDataset
from torchgeo.datasets.utils import Sample

from ..grid import Grid
from ..modality import Modality
from .geoparts import parts
from .integrity import Part
from .multimodal import MultimodalGeoDataset

#: Places to try before a ground counts as too small for a tile.
TRIES = 10_000


class GeoTiles(NonGeoDataset):
    """Tiles of the ground of a join, side by side, or as many as are wanted at random.

    Tiles side by side begin at the upper left corner of the ground and pass its border;
    random ones lie within it. Labels beyond the ground are ignored, so that splits which
    meet within a tile do not see each other's.

    Args:
        dataset: The join, on the ground of one split.
        size: Side of a tile in metres, a multiple of the join's ``step``.
        count: How many tiles to draw; each access draws anew. None for tiles side by side.
        path: Directory of the data, where statistics are kept.
        split: What the ground is for.

    Raises:
        ValueError: If *size* is no such length, or the ground has no room for a random tile.
    """

    layout: ClassVar[str] = 'Rasters'

    def __init__(
        self,
        dataset: MultimodalGeoDataset,
        size: float,
        count: int | None = None,
        path: str = '.',
        split: str = 'train',
    ) -> None:
        """Lay out the tiles; nothing is read."""
        if size <= 0 or abs(size / dataset.step - round(size / dataset.step)) > 1e-6:
            raise ValueError(
                f'tile_size is {size:g} m, expected a multiple of {dataset.step:g} m, where patches and the pixels of '
                'all modalities meet'
            )
        self.dataset, self.size, self.count = dataset, size, count
        self.path, self.split = Path(path), split
        self.area = dataset.area
        self.grid = Grid.over(dataset.crs, self.area.bounds, dataset.lattice, dataset.corner)
        self.across = round(size / dataset.lattice)
        self.places = self._side_by_side() if count is None else np.zeros((count, 2), np.int64)
        if count is not None:
            self._draw(np.random.default_rng(0))

    @property
    def modalities(self) -> dict[str, Modality]:
        """The modalities, by name."""
        return self.dataset.modalities

    @property
    def all_modalities(self) -> dict[str, Modality]:
        """The same: every band that is configured is read."""
        return self.dataset.modalities

    @property
    def ids(self) -> list[str]:
        """What to call each tile: the coordinates of its centre, or, at random, its number."""
        if self.positions is None:
            return [str(index) for index in range(len(self))]
        return [f'{x:.10g}_{y:.10g}' for x, y in self.positions]

    @property
    def positions(self) -> NDArray[np.float64] | None:
        """Centres (N, 2) in metres; None for tiles that are drawn anew each time."""
        if self.count is not None:
            return None
        (x, y), step = self.grid.corner, self.grid.step
        middle = self.places + self.across / 2
        return np.stack([x + middle[:, 1] * step, y - middle[:, 0] * step], axis=1)

    def __len__(self) -> int:
        """Number of tiles."""
        return len(self.places)

    def __getitem__(self, index: int) -> Sample:
        """One tile.

        Args:
            index: Its number. Of random tiles each access draws another, by PyTorch's generator.

        Returns:
            The sample.
        """
        row, column = self.places[index]
        if self.count is not None:
            row, column = self._draw(np.random.default_rng(int(torch.randint(2**62, ()))))
        sample = self.dataset[self.grid.slices(int(row), int(column), self.across, self.across)]
        return self._ignore_beyond(sample)

    def parts(self, index: int) -> Iterator[Part]:
        """The files below a tile, for :mod:`torchgeo_omnisat.datasets.inspection`."""
        row, column = map(int, self.places[index])
        return parts(self.dataset, self.grid.slices(row, column, self.across, self.across))

    def plot(self, sample: Sample, show_titles: bool = True, suptitle: str | None = None) -> Figure:
        """Show a sample as :meth:`.MultimodalGeoDataset.plot` does."""
        return self.dataset.plot(sample, show_titles, suptitle)

    def _side_by_side(self) -> NDArray[np.int64]:
        """Rows and columns of the tiles that the ground reaches into."""
        starts = [
            (row, column)
            for row in range(0, self.grid.height, self.across)
            for column in range(0, self.grid.width, self.across)
        ]
        boxes = [shapely.box(*self.grid.box(*start, self.across, self.across)) for start in starts]
        inside = shapely.area(shapely.intersection(boxes, self.area)) > 1e-6 * self.grid.step**2
        return np.array(starts, np.int64)[inside]

    def _draw(self, rng: np.random.Generator) -> tuple[int, int]:
        """Row and column of a tile that lies within the ground.

        Its centre is drawn from all of the ground, and the tile then pulled back into the ground's
        rectangle: otherwise pixels at its border would hardly ever be drawn.
        """
        ground = self.area.buffer(1e-6 * self.grid.step)
        shapely.prepare(ground)
        rooms = [self.grid.height - self.across, self.grid.width - self.across]
        half = self.across // 2
        for _ in range(TRIES if min(rooms) >= 0 else 0):
            row, column = (min(max(int(rng.integers(-half, room + half + 1)), 0), room) for room in rooms)
            if ground.contains(shapely.box(*self.grid.box(row, column, self.across, self.across))):
                return row, column
        xmin, ymin, xmax, ymax = self.area.bounds
        raise ValueError(
            f'the ground of {self.split!r}, {xmax - xmin:g} x {ymax - ymin:g} m around, has no room for a tile of '
            f'{self.size:g} m, expected a smaller tile_size or a larger ground'
        )

    def _ignore_beyond(self, sample: Sample) -> Sample:
        """A sample whose labels beyond the ground are ignored."""
        if 'mask' not in sample:
            return sample
        xmin, xmax, step, ymin, ymax = sample['bounds'][:5].tolist()
        if self.area.contains(shapely.box(xmin, ymin, xmax, ymax)):
            return sample
        grid = Grid.over(self.dataset.crs, (xmin, ymin, xmax, ymax), step)
        beyond = geometry_mask([self.area], tuple(sample['mask'].shape), grid.transform)
        mask = sample['mask'].masked_fill(torch.from_numpy(beyond), self.dataset.ignore_index)
        return {**sample, 'mask': mask}


def disjoint(grounds: Sequence[tuple[str, object]]) -> None:
    """Refuse splits that share ground.

    Args:
        grounds: Names and geometries.

    Raises:
        ValueError: If two of them overlap.
    """
    for number, (name, ground) in enumerate(grounds):
        for other, part in grounds[:number]:
            shared = shapely.area(shapely.intersection(ground, part))
            if shared > 1e-9 * shapely.area(ground):
                raise ValueError(f'{other!r} and {name!r} share {shared:g} m2, expected splits that do not overlap')
