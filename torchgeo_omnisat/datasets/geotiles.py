# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""GeoTiles: a joined area cut into tiles, on a grid or at random, to be asked for by number."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import shapely
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rasterio.features import geometry_mask
from torch import Tensor
from torchgeo.datasets import NonGeoDataset
from torchgeo.datasets.utils import Sample

from ..grid import Grid
from ..modality import Modality
from .geoparts import parts
from .integrity import Part
from .multimodal import MultimodalGeoDataset
from .places import TilePlaces, tiles_over


class NoRoomError(ValueError):
    """The ground of a split has no room for a tile.

    Args:
        split: What the ground is for.
        ground: Its geometry.
        size: Side of the tile in metres.
        largest: Side of the largest tile that would fit, in metres; 0 if none does.
    """

    def __init__(self, split: str, ground: Any, size: float, largest: float) -> None:
        self.split, self.size, self.largest = split, size, largest
        xmin, ymin, xmax, ymax = ground.bounds
        count = len(shapely.get_parts(ground))
        pieces = f'{count} pieces within ' if count > 1 else ''
        super().__init__(
            f'the ground of {split!r}, {pieces}{xmax - xmin:g} x {ymax - ymin:g} m, has no room for a tile of '
            f'{size:g} m, expected '
            + (f'a tile_size of at most {largest:g}' if largest else 'a larger ground: no tile fits, however small')
        )


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
        shapely.prepare(self.area)
        self._room: TilePlaces | None = None
        if count is None:
            self.places = tiles_over(self.area, self.grid, self.across)
            return
        self.places = np.zeros((count, 2), np.int64)
        self._room = TilePlaces(self.area, self.grid, self.across)
        self._draw(np.random.default_rng(0))

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Prepare the ground again in another process."""
        self.__dict__.update(state)
        shapely.prepare(self.area)

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

    def image_files(self, name: str, indices: Iterable[int]) -> list[str]:
        """Return the files that a modality is read from on the ground of all tiles.

        Args:
            name: The modality.
            indices: Numbers of samples, which make no difference: tiles share files.
        """
        return self.dataset.image_files(name)

    def parts(self, index: int) -> Iterator[Part]:
        """The files below a tile, for :mod:`torchgeo_omnisat.datasets.inspection`."""
        row, column = map(int, self.places[index])
        x, y = self.grid.slices(row, column, self.across, self.across)[:2]
        for part in parts(self.dataset, (x, y)):
            if part.name == 'mask':
                yield replace(part, read=partial(self._read_mask, part.read, self.dataset.snap(x, y)))
            else:
                yield part

    def plot(self, sample: Sample, show_titles: bool = True, suptitle: str | None = None) -> Figure:
        """Show a sample as :meth:`.MultimodalGeoDataset.plot` does."""
        return self.dataset.plot(sample, show_titles, suptitle)

    def _draw(self, rng: np.random.Generator) -> tuple[int, int]:
        """Row and column of a tile within the ground, see :meth:`.TilePlaces.draw`."""
        assert self._room is not None
        place = self._room.draw(rng)
        if place is None:
            raise NoRoomError(self.split, self.area, self.size, largest_tile(self.dataset))
        return place

    def _read_mask(self, read: Callable[[], Tensor], window: Sequence[float]) -> Tensor:
        """Return the labels of a window, without those beyond the ground."""
        (xmin, ymin, xmax, ymax), step = window, self.dataset.label_gsd
        bounds = torch.tensor([xmin, xmax, step, ymin, ymax], dtype=torch.float64)
        return self._ignore_beyond({'mask': read(), 'bounds': bounds})['mask']

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


def largest_tile(dataset: MultimodalGeoDataset) -> float:
    """Side in metres of the largest tile that lies within the ground of a join.

    Args:
        dataset: The join, on the ground of one split.

    Returns:
        A multiple of the join's ``step``; 0 if no tile fits.
    """
    area, step = dataset.area, round(dataset.step / dataset.lattice)
    grid = Grid.over(dataset.crs, area.bounds, dataset.lattice, dataset.corner)
    room = TilePlaces(area, grid, step)
    fitting, beyond = 0, min(grid.height, grid.width) // step + 1
    while beyond - fitting > 1:
        room.across = (fitting + beyond) // 2 * step
        fitting, beyond = (room.across // step, beyond) if room.fits() else (fitting, room.across // step)
    return fitting * dataset.step


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
