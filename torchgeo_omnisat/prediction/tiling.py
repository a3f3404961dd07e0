# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Overlapping tiles of an area: tiling, loading in batches, and stitching of their predictions."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from torchgeo.datasets.utils import Sample


class Window(NamedTuple):
    """Window of the output grid, as in the key ``window`` of a sample."""

    row: int
    column: int
    height: int
    width: int


class Strip(NamedTuple):
    """Unit of work: the pixels of a column band that are final once a row of tiles is predicted."""

    band: int
    row: int


@dataclass(frozen=True)
class Tiling:
    """Tiling of an area into overlapping tiles.

    Args:
        height: Rows of the area.
        width: Columns of the area.
        size: Side of a tile in pixels, a multiple of *patch*.
        overlap: Minimum overlap of neighbouring tiles: a fraction of *size* if below 1, else pixels. It is
            larger where tiles would cut patches or exceed the area.
        patch: Side of a ground patch in pixels; tiles begin at multiples of it.
        band: Approximate maximum width of a column band in pixels. Memory grows with it; tiles at the border
            of two bands are predicted twice. None for a single band.

    Raises:
        ValueError: If an argument is out of range.
    """

    height: int
    width: int
    size: int
    overlap: float = 0.25
    patch: int = 1
    band: int | None = None

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ValueError(f'area has {self.height} x {self.width} pixels, expected at least 1 x 1')
        if self.size < 1 or self.size % self.patch:
            raise ValueError(f'size of tiles is {self.size} pixels, expected a multiple of the patch, {self.patch}')
        if not 0 <= self.overlap < 1 and not 1 <= self.overlap <= self.size - self.patch:
            raise ValueError(
                f'overlap is {self.overlap}, expected a fraction below 1, or 1 to {self.size - self.patch} '
                f'pixels for tiles of {self.size} pixels and patches of {self.patch}'
            )

    @property
    def stride(self) -> int:
        """Maximum distance between neighbouring tiles in pixels."""
        shared = self.overlap * self.size if self.overlap < 1 else self.overlap
        return max(1, math.floor((self.size - shared) / self.patch + 1e-9)) * self.patch

    @cached_property
    def rows(self) -> tuple[int, ...]:
        """First pixel row of each row of tiles."""
        return self._starts(self.height)

    @cached_property
    def columns(self) -> tuple[int, ...]:
        """First pixel column of each column of tiles."""
        return self._starts(self.width)

    @cached_property
    def bands(self) -> tuple[tuple[int, int], ...]:
        """First and last (exclusive) pixel column of each band."""
        edges, columns = [0], self.columns
        widest = max(self.band or self.width, 4 * self.size)
        for this, following in zip(columns, columns[1:] + (self.width,), strict=True):
            if following - edges[-1] > widest and this > edges[-1]:
                edges.append(this)
        return tuple(zip(edges, edges[1:] + [self.width], strict=True))

    @cached_property
    def weights(self) -> NDArray[np.float32]:
        """Blending weights of the pixels of a tile: a raised cosine over the overlap, 1 inside.

        The weights of two tiles with regular overlap add up to 1.
        """
        ramp = min(self.size - self.stride, self.size // 2)
        rise = np.sin(np.pi / 2 * (np.arange(ramp) + 0.5) / max(1, ramp)) ** 2
        side = np.concatenate([rise, np.ones(self.size - 2 * ramp), rise[::-1]])
        return np.outer(side, side).astype(np.float32)

    def strips(self) -> list[Strip]:
        """Return all strips in the order of prediction."""
        return [Strip(band, row) for band in range(len(self.bands)) for row in range(len(self.rows))]

    def extent(self, strip: Strip) -> Window:
        """Return the window of a strip."""
        top, (left, right) = self.rows[strip.row], self.bands[strip.band]
        bottom = (self.rows + (self.height,))[strip.row + 1]
        return Window(top, left, bottom - top, right - left)

    def tiles(self, strip: Strip) -> list[Window]:
        """Return the tiles of a row that intersect a band."""
        left, right = self.bands[strip.band]
        touching = [column for column in self.columns if column < right and column + self.size > left]
        return [Window(self.rows[strip.row], column, self.size, self.size) for column in touching]

    def passes(self, strips: Sequence[Strip]) -> Iterator[tuple[Strip, bool]]:
        """Yield the rows of tiles to predict for some strips.

        Yields:
            Row of tiles in a band, and whether its strip is among *strips*. The other rows overlap one of
            them from above.
        """
        runs = groupby(enumerate(strips), lambda item: (item[1].band, item[1].row - item[0]))
        for (band, _), run in runs:
            wanted = [strip.row for _, strip in run]
            top = self.rows[wanted[0]]
            first = next(row for row, start in enumerate(self.rows) if start + self.size > top)
            for row in range(first, wanted[-1] + 1):
                yield Strip(band, row), row >= wanted[0]

    def finer(self, factor: int) -> 'Tiling':
        """Return the same tiles, with *factor* x *factor* pixels for each pixel."""
        sizes = {name: factor * getattr(self, name) for name in ('height', 'width', 'size', 'patch')}
        overlap = self.overlap if self.overlap < 1 else factor * self.overlap
        return replace(self, **sizes, overlap=overlap, band=None if self.band is None else factor * self.band)

    def _starts(self, length: int) -> tuple[int, ...]:
        patches = max(0, math.ceil((length - self.size) / self.patch))
        gaps = math.ceil(patches * self.patch / self.stride)
        return tuple(index * patches // max(1, gaps) * self.patch for index in range(gaps + 1))


def share(strips: Sequence[Strip], rank: int, processes: int) -> list[Strip]:
    """Return the contiguous strips of one rank; the last one of all if there are fewer strips than ranks."""
    begin, end = (len(strips) * (rank + i) // processes for i in (0, 1))
    return list(strips[begin:end]) or list(strips[-1:])


def patch_pixels(patch_size: float, gsd: float, most: int = 64) -> int:
    """Return the smallest whole number of pixels that is a multiple of the ground patch.

    Args:
        patch_size: Side of a ground patch in metres.
        gsd: GSD of the output in metres.
        most: Maximum number of patches.

    Returns:
        Number of pixels: 4 for 40 m at 10 m, 256 for 10.24 m at 0.2 m. 1 if there is none.
    """
    for count in range(1, most + 1):
        pixels = count * patch_size / gsd
        if pixels > 0.5 and abs(pixels - round(pixels)) < 1e-6 * pixels:
            return round(pixels)
    return 1


class Stitcher:
    """Weighted mean of overlapping tiles, one strip at a time.

    Rows of tiles must be added in the order of :meth:`.Tiling.passes`. Memory is that of one row of tiles
    over one band, regardless of the area.

    Args:
        tiling: Tiling of the area.
        classes: Number of classes K.
    """

    def __init__(self, tiling: Tiling, classes: int) -> None:
        self.tiling, self.classes = tiling, classes
        self.strip: Strip | None = None
        self.total = np.zeros((0, 0, 0), np.float32)
        self.weight = np.zeros((0, 0), np.float32)
        self.seen = np.zeros((0, 0), np.uint16)

    def begin(self, strip: Strip) -> None:
        """Start a row of tiles; sums of pixels above it are dropped."""
        last, self.strip = self.strip, strip
        if last == Strip(strip.band, strip.row - 1):
            done = self.tiling.rows[strip.row] - self.tiling.rows[strip.row - 1]
            for buffer in (self.total, self.weight, self.seen):
                buffer[..., :-done, :] = buffer[..., done:, :]
                buffer[..., max(0, self.tiling.size - done) :, :] = 0
            return
        size = self.tiling.size, self.tiling.extent(strip).width
        self.total = np.zeros((self.classes, *size), np.float32)
        self.weight, self.seen = np.zeros(size, np.float32), np.zeros(size, np.uint16)

    def add(self, window: Window, probabilities: NDArray[np.float32], seen: NDArray[np.uint16]) -> None:
        """Add one tile of the row.

        Args:
            window: Window of the tile.
            probabilities: ``(K, height, width)``.
            seen: ``(height, width)``, bit flags of the modalities that observed the pixel.
        """
        assert self.strip is not None
        left, right = self.tiling.bands[self.strip.band]
        begin, end = max(window.column, left), min(window.column + window.width, right)
        inside, outside = slice(begin - window.column, end - window.column), slice(begin - left, end - left)
        weights = self.tiling.weights[:, inside]
        self.total[:, :, outside] += weights * probabilities[:, :, inside]
        self.weight[:, outside] += weights
        self.seen[:, outside] |= seen[:, inside]

    def finish(self) -> tuple[NDArray[np.float32], NDArray[np.uint16]]:
        """Return probabilities ``(K, rows, columns)`` and bit flags of the strip of the current row."""
        assert self.strip is not None
        rows = self.tiling.extent(self.strip).height
        return self.total[:, :rows] / self.weight[:rows], self.seen[:rows].copy()


class Tiles(Protocol):
    """Protocol of a reader of tiles of an area, such as :class:`.AreaTiles`."""

    def __getitem__(self, window: Window) -> Sample:
        """Return the sample of a tile, with the key ``window``; all modalities may be missing."""


class TileBatches(Dataset[Sample]):
    """Dataset of batches of tiles, each from a single row of tiles.

    The batch of a tile depends neither on where a run was resumed nor on the world size, so results are
    identical bit for bit.
    """

    def __init__(
        self,
        tiles: Tiles,
        tiling: Tiling,
        strips: Sequence[Strip],
        batch_size: int,
        collate_fn: Callable[[list[Sample]], Sample],
    ) -> None:
        self.tiles, self.collate_fn, self.batch_size, self.tiling = tiles, collate_fn, batch_size, tiling
        self.parts = list(self._split(strips))

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> Sample:
        """Return a batch."""
        strip, begin = self.parts[index]
        windows = self.tiling.tiles(strip)[begin : begin + self.batch_size]
        return self.collate_fn([self.tiles[window] for window in windows])

    def _split(self, strips: Sequence[Strip]) -> Iterator[tuple[Strip, int]]:
        for strip, _ in self.tiling.passes(strips):
            for begin in range(0, len(self.tiling.tiles(strip)), self.batch_size):
                yield strip, begin


def tile_loader(
    tiles: Tiles,
    tiling: Tiling,
    collate_fn: Callable[[list[Sample]], Sample],
    strips: Sequence[Strip] | None = None,
    batch_size: int = 4,
    num_workers: int = 0,
) -> DataLoader[Sample]:
    """Return the dataloader of an area for ``predict``.

    Args:
        tiles: Reader of tiles.
        tiling: Tiling of the area.
        collate_fn: Function that collates samples, such as :func:`.collate` with the modalities.
        strips: Strips to predict; defaults to all. :class:`.GeoTIFFWriter` passes the unfinished ones of
            this rank.
        batch_size: Number of tiles in a batch.
        num_workers: Number of worker processes.

    Returns:
        Dataloader of batches with ``window``; Lightning does not split it among ranks again.
    """
    batches = TileBatches(tiles, tiling, tiling.strips() if strips is None else strips, batch_size, collate_fn)
    in_order: DistributedSampler[Sample] = DistributedSampler(batches, num_replicas=1, rank=0, shuffle=False)
    return DataLoader(batches, batch_size=None, sampler=in_order, num_workers=num_workers)


def area_loader(datamodule: Any) -> DataLoader[Sample]:
    """Return the ``predict_dataloader`` of a datamodule with an area.

    Args:
        datamodule: Datamodule with ``predict_dataset`` (:class:`.AreaTiles`), ``tiling``, ``collate_fn``,
            ``batch_size``, ``num_workers``, and ``plan``, which is None or set by :class:`.GeoTIFFWriter`.
    """
    tiling, strips = datamodule.plan() if datamodule.plan else (datamodule.tiling, None)
    return tile_loader(
        datamodule.predict_dataset, tiling, datamodule.collate_fn, strips, datamodule.batch_size, datamodule.num_workers
    )
