# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Tiles of a joined dataset, on a grid or at random positions."""

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
from torchgeo.datasets.utils import Sample

from ...grid import Grid
from ...modality import Modality, half_up
from ...utils.checks import EmptySplitError
from ...utils.tensors.coordinates import COORDINATES, centre_coordinates
from ..base import MultimodalDataset
from ..common.integrity import Part
from .join import MultimodalGeoDataset, pixels
from .parts import parts
from .small import BlockReader, LabelPlaces, Places, labelled_cells

#: Maximum number of blocks of a search; above it, positions are sampled by rejection.
MAX_BLOCKS = 20_000
#: Minimum fraction of a polygon's bounding box with valid positions for the box to be sampled as a whole.
ENOUGH = 1 / 8
#: Attempts of one draw, each of which succeeds with a probability of about ENOUGH or higher.
TRIES = 10_000

#: Approximate side, in pixels of the grid of the tiles, of the blocks of labels that are read at once.
BLOCK = 256

#: Top, left, bottom and right (N, 4) of blocks of tile positions; the last two are exclusive.
Blocks = NDArray[np.int64]


class TilePlaces:
    """Sampler of tile positions on a grid whose tiles, *across* pixels a side, lie within a footprint *ground*.

    Each polygon of the footprint is searched with a quadtree of positions, so gaps between polygons take no time. Only
    the preparation of the geometry depends on its number of vertices. A tile may exceed it by a millionth of a pixel.
    """

    def __init__(self, ground: Any, grid: Grid, across: int) -> None:
        self.grid, self.across = grid, across
        self.ground = ground.buffer(1e-6 * grid.step, join_style='mitre')
        shapely.prepare(self.ground)
        self._leaves: list[NDArray[np.int64]] | None = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        shapely.prepare(self.ground)

    def fits(self) -> bool:
        """Return whether there is a position for a tile."""
        open_ = [self._root(piece) for piece in shapely.get_parts(self.ground)]
        stack = [block for block in open_ if block is not None]
        while stack:
            inside, mixed = self._sort(_children(stack.pop()))
            if len(inside):
                return True
            stack += np.array_split(mixed, max(1, len(mixed) // 256)) if len(mixed) else []
        return False

    def draw(self, rng: np.random.Generator) -> tuple[int, int] | None:
        """Draw the row and column of a tile within the footprint; None if no tile fits.

        The centre of the tile is uniform over the footprint. A tile that would exceed the bounding box
        of its polygon is moved back into it, as pixels at the border would otherwise rarely be drawn.
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
            if self.contains(row, column):
                return row, column
        return None

    def contains(self, row: int, column: int) -> bool:
        """Return whether a tile lies within the footprint."""
        return bool(self.ground.contains(shapely.box(*self.grid.box(row, column, self.across, self.across))))

    def _search(self) -> list[NDArray[np.int64]]:
        """Return the blocks to draw from, and the ranges (N, 2) of rows and columns before tiles are moved back.

        A polygon that fills most of its bounding box is one block. Others are split into smaller blocks
        until draws succeed often enough.
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
        """Return blocks that contain all positions of a polygon: *root* itself, if enough of them are valid."""

        def weight(blocks: Blocks) -> float:
            low, high = _ranges(blocks, root, half)
            return float(np.prod((high - low).astype(np.float64), axis=1).sum())

        inside, mixed = self._sort(root)
        while len(mixed) and len(mixed) < MAX_BLOCKS and weight(inside) < (weight(inside) + weight(mixed)) / 4:
            more, mixed = self._sort(_children(mixed))
            inside = np.concatenate([inside, more])
        return root if weight(inside) >= ENOUGH * weight(root) else np.concatenate([inside, mixed])

    def _root(self, piece: Any) -> Blocks | None:
        (x, y), step = self.grid.corner, self.grid.step
        xmin, ymin, xmax, ymax = piece.bounds
        top, left = np.ceil((y - ymax) / step), np.ceil((xmin - x) / step)
        bottom, right = (np.floor(far / step) - self.across + 1 for far in (y - ymin, xmax - x))
        if top >= bottom or left >= right:
            return None
        return np.array([[top, left, bottom, right]], np.int64)

    def _sort(self, blocks: Blocks) -> tuple[Blocks, Blocks]:
        """Return the blocks whose positions are all valid, and those with some that may be."""
        top, left, bottom, right = blocks.T
        hulls = self._boxes(top, left, bottom - 1 + self.across, right - 1 + self.across)
        full = shapely.contains(self.ground, hulls)
        # The intersection of all tiles of a block must lie within the footprint, or none of the tiles does.
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
        (x, y), step = self.grid.corner, self.grid.step
        return shapely.box(x + left * step, y - bottom * step, x + right * step, y - top * step)


def tiles_over(ground: Any, grid: Grid, across: int) -> Blocks:
    """Return rows and columns (N, 2) of the adjacent tiles, from the corner of a grid, that intersect *ground*."""
    shapely.prepare(ground)
    (x, y), side, margin = grid.corner, grid.step * across, 1e-6 * grid.step  # excludes tiles that only touch
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
    """Split blocks into quarters, without empty ones."""
    top, left, bottom, right = blocks.T
    row, column = (top + bottom + 1) // 2, (left + right + 1) // 2
    quarters = [(top, left, row, column), (top, column, row, right), (row, left, bottom, column)]
    children = np.concatenate([np.stack(part, axis=1) for part in (*quarters, (row, column, bottom, right))])
    return children[(children[:, 0] < children[:, 2]) & (children[:, 1] < children[:, 3])]


def _ranges(blocks: Blocks, root: Blocks, half: int) -> tuple[Blocks, Blocks]:
    """Return the ranges (exclusive at the end) of rows and columns, extended by half a tile at the bounding box."""
    low = blocks[:, :2] - half * (blocks[:, :2] == root[0, :2])
    high = blocks[:, 2:] + half * (blocks[:, 2:] == root[0, 2:])
    return low, high


class AreaTiles:
    """Dataset of the windows of an output grid, for prediction.

    Samples have the images, ``dates`` and ``valid`` of every available modality, and
    ``window``: row, column, height and width on the grid.

    Args:
        dataset: GeoDataset whose samples follow :mod:`torchgeo_omnisat.batch`. It is indexed by
            slices of x, y and time, and raises IndexError outside its footprint.
        grid: Pixel grid of the map, in the CRS of *dataset*.

    Raises:
        ValueError: If the grid is in another CRS, or does not intersect the data.
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
        """Return the sample of a window, which may exceed the grid; without images where there are no data.

        ``coordinates`` are those of the centre of the window.
        """
        row, column, height, width = window
        x, y = self.grid.slices(row, column, height, width)
        try:
            sample = self.dataset[x, y, slice(self.time.start, self.time.stop)]
        except IndexError:
            sample = {}
        if 'bounds' in sample:
            corner, expected = (float(sample['bounds'][0]), float(sample['bounds'][4])), (x.start, y.stop)
            if max(abs(here - there) for here, there in zip(corner, expected, strict=True)) > self.grid.step / 2:
                raise ValueError(
                    f'the data have pixels at {corner} where the grid has them at {expected}, '
                    'expected a grid that is aligned with the pixels of all modalities'
                )
        kinds = ('image_', 'dates_', 'valid_')
        kept: Sample = {key: value for key, value in sample.items() if key.startswith(kinds)}
        edges = [x.start, x.stop, self.grid.step, y.start, y.stop, self.grid.step, *[torch.nan] * 3]
        bounds = torch.tensor(edges, dtype=torch.float64)
        kept[COORDINATES] = centre_coordinates(bounds, self.grid.crs)
        return kept | {'window': torch.tensor([row, column, height, width])}


class NoRoomError(EmptySplitError):
    """Error of a split whose footprint is too small for a tile; *largest* is the side of one that fits, or 0."""

    def __init__(self, split: str, ground: Any, size: float, largest: float) -> None:
        self.split, self.size, self.largest = split, size, largest
        xmin, ymin, xmax, ymax = ground.bounds
        count = len(shapely.get_parts(ground))
        pieces = f'{count} pieces within ' if count > 1 else ''
        super().__init__(
            f'the area of {split!r}, {pieces}{xmax - xmin:g} x {ymax - ymin:g} m, is smaller than a tile of '
            f'{size:g} m, expected '
            + (f'a tile_size of at most {largest:g}' if largest else 'a larger area: no tile of any size fits')
        )


class GeoTiles(MultimodalDataset):
    """Dataset of tiles of a join: adjacent tiles, or a number of random ones.

    Adjacent tiles begin at the upper left corner of the footprint and may exceed its border;
    random tiles lie within it. Labels outside the footprint are ignored, so that no label of
    another split is used where two splits share a tile.

    Args:
        dataset: Join, restricted to the footprint of one split.
        size: Side of a tile in metres, a multiple of the join's ``step``.
        count: Number of random tiles; each access draws a new position. None for adjacent tiles.
        path: Directory of the data, where statistics are stored.
        split: Name of the split.
        places: Where random tiles are drawn: ``'anywhere'``, or around a random labelled pixel, ``'labels'``. Then the
            labels of the footprint are read once.
        block: Side in metres of blocks that are kept in memory, from which random tiles are cut; None to read tiles
            from files.

    Raises:
        ValueError: If *size* is not such a multiple, or no tile fits in the footprint.
    """

    layout: ClassVar[str] = 'Rasters'

    def __init__(
        self,
        dataset: MultimodalGeoDataset,
        size: float,
        count: int | None = None,
        path: str = '.',
        split: str = 'train',
        places: Places = 'anywhere',
        block: float | None = None,
    ) -> None:
        if size <= 0 or abs(size / dataset.step - round(size / dataset.step)) > 1e-6:
            name = 'tile_size' if block is None else 'train_tile_size'
            raise ValueError(
                f'{name} is {size:g} m, expected a multiple of {dataset.step:g} m, where patches and pixels of '
                'all modalities align'
            )
        self.dataset, self.size, self.count = dataset, size, count
        self.path, self.split = Path(path), split
        self.area = dataset.area
        self.grid = Grid.over(dataset.crs, self.area.bounds, dataset.lattice, dataset.corner)
        self.across = round(size / dataset.lattice)
        shapely.prepare(self.area)
        self._room: TilePlaces | None = None
        self._labels: LabelPlaces | None = None
        self._blocks: BlockReader | None = None
        if count is None:
            self.places = tiles_over(self.area, self.grid, self.across)
            return
        self.places = np.zeros((count, 2), np.int64)
        self._room = TilePlaces(self.area, self.grid, self.across)
        self._draw_anywhere(np.random.default_rng(0))
        if block is not None and not dataset.instances and dataset.transforms is None:
            side = self.across * max(1, half_up(block / size))
            self._blocks = BlockReader(dataset, self.grid, side, self.across)
        if places != 'anywhere':
            self._labels = LabelPlaces(self._labelled_cells(), self.across)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        shapely.prepare(self.area)

    @property
    def modalities(self) -> dict[str, Modality]:  # type: ignore[override]
        """Modalities by name."""
        return self.dataset.modalities

    @property
    def ids(self) -> list[str]:
        """Name of each tile: the coordinates of its centre, or its index if positions are random."""
        if self.positions is None:
            return [str(index) for index in range(len(self))]
        return [f'{x:.10g}_{y:.10g}' for x, y in self.positions]

    @property
    def positions(self) -> NDArray[np.float64] | None:
        """Centres (N, 2) of the tiles in metres; None for random tiles."""
        if self.count is not None:
            return None
        (x, y), step = self.grid.corner, self.grid.step
        middle = self.places + self.across / 2
        return np.stack([x + middle[:, 1] * step, y - middle[:, 0] * step], axis=1)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Sample:
        """Return a tile; a random one is drawn with PyTorch's global generator."""
        row, column = self.places[index]
        if self.count is not None:
            row, column = self._draw(np.random.default_rng(int(torch.randint(2**62, ()))))
        if self._blocks is not None:
            return self._ignore_beyond(self._blocks.read(int(row), int(column)))
        sample = self.dataset[self.grid.slices(int(row), int(column), self.across, self.across)]
        return self._ignore_beyond(sample)

    def image_files(self, name: str, indices: Iterable[int]) -> list[str]:
        """Return the files of a modality that intersect the footprint of all tiles."""
        return self.dataset.image_files(name)

    def label_files(self) -> list[str]:
        """Return the files of the labels that intersect the footprint of all tiles."""
        return [] if self.dataset.labels is None else self.dataset.labels.files(self.area)

    def parts(self, index: int) -> Iterator[Part]:
        """Yield the files that intersect a tile, for ``torchgeo_omnisat.datasets.common.integrity``."""
        row, column = map(int, self.places[index])
        x, y = self.grid.slices(row, column, self.across, self.across)[:2]
        for part in parts(self.dataset, (x, y)):
            if part.name == 'mask':
                yield replace(part, read=partial(self._read_mask, part.read, self.dataset.snap(x, y)))
            else:
                yield part

    def plot(self, sample: Sample, show_titles: bool = True, suptitle: str | None = None) -> Figure:
        """Plot a sample, see :meth:`.MultimodalGeoDataset.plot`."""
        return self.dataset.plot(sample, show_titles, suptitle)

    def _draw(self, rng: np.random.Generator) -> tuple[int, int]:
        assert self._room is not None
        place = None if self._labels is None else self._labels.draw(rng, self._room.contains)
        return place or self._draw_anywhere(rng)

    def _labelled_cells(self) -> NDArray[np.int32]:
        """Return row and column (N, 2) of the pixels of the grid with a label in the footprint."""
        join, found = self.dataset, [np.zeros((0, 2), np.int32)]
        labels = join.labels
        if labels is None:
            return found[0]
        period = join._disambiguate_slice(slice(None))[2]
        side = self.across * max(1, BLOCK // self.across)
        for row, column in tiles_over(self.area, self.grid, side).tolist():
            window = self.grid.box(row, column, side, side)
            read = partial(
                labels.read,
                pixels(join.crs, window, join.label_gsd),
                (period.start, period.stop),
                join.ignore_index,
                strict=False,
            )
            mask = self._read_mask(read, window)
            cells = labelled_cells(mask, join.ignore_index, half_up(self.grid.step / join.label_gsd))
            found.append(cells + np.array([row, column], np.int32))
        return np.concatenate(found)

    def _draw_anywhere(self, rng: np.random.Generator) -> tuple[int, int]:
        assert self._room is not None
        place = self._room.draw(rng)
        if place is None:
            raise NoRoomError(self.split, self.area, self.size, largest_tile(self.dataset))
        return place

    def _read_mask(self, read: Callable[[], Tensor], window: Sequence[float]) -> Tensor:
        (xmin, ymin, xmax, ymax), step = window, self.dataset.label_gsd
        bounds = torch.tensor([xmin, xmax, step, ymin, ymax], dtype=torch.float64)
        return self._ignore_beyond({'mask': read(), 'bounds': bounds})['mask']

    def _ignore_beyond(self, sample: Sample) -> Sample:
        """Set labels outside the footprint to ``ignore_index``."""
        if 'mask' not in sample:
            return sample
        xmin, xmax, step, ymin, ymax = sample['bounds'][:5].tolist()
        if self.area.contains(shapely.box(xmin, ymin, xmax, ymax)):
            return sample
        grid = Grid.over(self.dataset.crs, (xmin, ymin, xmax, ymax), step)
        beyond = geometry_mask([self.area], tuple(sample['mask'].shape), grid.transform)
        mask = sample['mask']
        outside = torch.nan if mask.is_floating_point() else self.dataset.ignore_index
        return {**sample, 'mask': mask.masked_fill(torch.from_numpy(beyond), outside)}


def largest_tile(dataset: MultimodalGeoDataset) -> float:
    """Return the side in metres of the largest tile that fits, a multiple of the join's ``step``; 0 if none."""
    area, step = dataset.area, round(dataset.step / dataset.lattice)
    grid = Grid.over(dataset.crs, area.bounds, dataset.lattice, dataset.corner)
    room = TilePlaces(area, grid, step)
    fitting, beyond = 0, min(grid.height, grid.width) // step + 1
    while beyond - fitting > 1:
        room.across = (fitting + beyond) // 2 * step
        fitting, beyond = (room.across // step, beyond) if room.fits() else (fitting, room.across // step)
    return fitting * dataset.step


def disjoint(grounds: Sequence[tuple[str, object]]) -> None:
    """Check that splits do not overlap."""
    for number, (name, ground) in enumerate(grounds):
        for other, part in grounds[:number]:
            shared = shapely.area(shapely.intersection(ground, part))
            if shared > 1e-9 * shapely.area(ground):
                raise ValueError(f'{other!r} and {name!r} share {shared:g} m2, expected splits that do not overlap')
