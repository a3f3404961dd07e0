# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Cut an area into overlapping tiles, load them as batches, and stitch their predictions."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from torchgeo.datasets.utils import Sample


class Window(NamedTuple):
    """A part of the output grid; the four numbers of the key ``window`` of a sample."""

    row: int
    column: int
    height: int
    width: int


class Strip(NamedTuple):
    """The part of an area that is final once a row of tiles is: the unit of finished work."""

    band: int
    row: int


@dataclass(frozen=True)
class Tiling:
    """Tiles of *size* pixels that overlap.

    Args:
        height: Rows of the area.
        width: Columns of the area.
        size: Side of a tile, a multiple of *patch*.
        overlap: What neighbouring tiles share at least: below 1 a fraction of *size*, else
            pixels. It is more where patches would be cut or tiles would pass the border.
        patch: Pixels after which a tile may begin: a ground patch.
        band: Widest band, about; memory grows with it, and at every border between bands
            tiles are predicted twice. None for a single one.

    Raises:
        ValueError: If one of these is no such number.
    """

    height: int
    width: int
    size: int
    overlap: float = 0.25
    patch: int = 1
    band: int | None = None

    def __post_init__(self) -> None:
        """Refuse what is no tiling."""
        if self.height < 1 or self.width < 1:
            raise ValueError(f'the area has {self.height} x {self.width} pixels, expected at least one')
        if self.size < 1 or self.size % self.patch:
            raise ValueError(f'tiles have {self.size} pixels a side, expected a multiple of {self.patch}, a patch')
        if not 0 <= self.overlap < 1 and not 1 <= self.overlap <= self.size - self.patch:
            raise ValueError(
                f'overlap is {self.overlap}, expected a fraction from 0 to below 1, or 1 to {self.size - self.patch} '
                f'pixels for tiles of {self.size} pixels and patches of {self.patch}'
            )

    @property
    def stride(self) -> int:
        """Pixels from one tile to the next, at most."""
        shared = self.overlap * self.size if self.overlap < 1 else self.overlap
        return max(1, math.floor((self.size - shared) / self.patch + 1e-9)) * self.patch

    @cached_property
    def rows(self) -> tuple[int, ...]:
        """Where the rows of tiles begin."""
        return self._starts(self.height)

    @cached_property
    def columns(self) -> tuple[int, ...]:
        """Where the columns of tiles begin."""
        return self._starts(self.width)

    @cached_property
    def bands(self) -> tuple[tuple[int, int], ...]:
        """First and last column of pixels, exclusive, of every band."""
        edges, columns = [0], self.columns
        widest = max(self.band or self.width, 4 * self.size)
        for this, following in zip(columns, columns[1:] + (self.width,), strict=True):
            if following - edges[-1] > widest and this > edges[-1]:
                edges.append(this)
        return tuple(zip(edges, edges[1:] + [self.width], strict=True))

    @cached_property
    def weights(self) -> NDArray[np.float32]:
        """How much each pixel of a tile counts: a raised cosine over the overlap, flat inside.

        Where two tiles overlap in a regular way, their weights add up to one.
        """
        ramp = min(self.size - self.stride, self.size // 2)
        rise = np.sin(np.pi / 2 * (np.arange(ramp) + 0.5) / max(1, ramp)) ** 2
        side = np.concatenate([rise, np.ones(self.size - 2 * ramp), rise[::-1]])
        return np.outer(side, side).astype(np.float32)

    def strips(self) -> list[Strip]:
        """All strips, in the order in which they are made."""
        return [Strip(band, row) for band in range(len(self.bands)) for row in range(len(self.rows))]

    def extent(self, strip: Strip) -> Window:
        """Return the pixels of a strip."""
        top, (left, right) = self.rows[strip.row], self.bands[strip.band]
        bottom = (self.rows + (self.height,))[strip.row + 1]
        return Window(top, left, bottom - top, right - left)

    def tiles(self, strip: Strip) -> list[Window]:
        """Return the tiles of a row that touch a band."""
        left, right = self.bands[strip.band]
        touching = [column for column in self.columns if column < right and column + self.size > left]
        return [Window(self.rows[strip.row], column, self.size, self.size) for column in touching]

    def passes(self, strips: Sequence[Strip]) -> Iterator[tuple[Strip, bool]]:
        """Yield the rows of tiles to predict for some strips in order.

        Yields:
            A row of tiles in a band, and whether the strip of that name is wanted. Others
            come first, because they reach into one that is.
        """
        runs = groupby(enumerate(strips), lambda item: (item[1].band, item[1].row - item[0]))
        for (band, _), run in runs:
            wanted = [strip.row for _, strip in run]
            top = self.rows[wanted[0]]
            first = next(row for row, start in enumerate(self.rows) if start + self.size > top)
            for row in range(first, wanted[-1] + 1):
                yield Strip(band, row), row >= wanted[0]

    def _starts(self, length: int) -> tuple[int, ...]:
        """Beginnings of tiles along a side, as few as there may be and evenly spread."""
        patches = max(0, math.ceil((length - self.size) / self.patch))
        gaps = math.ceil(patches * self.patch / self.stride)
        return tuple(index * patches // max(1, gaps) * self.patch for index in range(gaps + 1))


def share(strips: Sequence[Strip], rank: int, processes: int) -> list[Strip]:
    """Return the strips of one rank: neighbouring strips, and never an empty list.

    Args:
        strips: What is to be done, at least one.
        rank: Which process this is.
        processes: How many there are.

    Returns:
        Its strips. A process that nothing is left for repeats the last one.
    """
    begin, end = (len(strips) * (rank + i) // processes for i in (0, 1))
    return list(strips[begin:end]) or list(strips[-1:])


def patch_pixels(patch_size: float, gsd: float, most: int = 64) -> int:
    """Pixels after which tiles may begin so that they hold whole ground patches.

    Args:
        patch_size: Side of a ground patch in metres.
        gsd: GSD of the output in metres.
        most: Patches to try together.

    Returns:
        The pixels of the fewest patches that are a whole number of pixels: 4 for 40 m at
        10 m, 256 for 10.24 m at 0.2 m. 1 if there are none.
    """
    for count in range(1, most + 1):
        pixels = count * patch_size / gsd
        if pixels > 0.5 and abs(pixels - round(pixels)) < 1e-6 * pixels:
            return round(pixels)
    return 1


class Stitcher:
    """Weighted mean of overlapping tiles, one strip at a time.

    Rows of tiles come in the order of :meth:`.Tiling.passes`. No more is held than one row
    of tiles over one band, whatever the area.

    Args:
        tiling: The tiles.
        classes: Number of classes K.
    """

    def __init__(self, tiling: Tiling, classes: int) -> None:
        self.tiling, self.classes = tiling, classes
        self.strip: Strip | None = None
        self.total = np.zeros((0, 0, 0), np.float32)
        self.weight = np.zeros((0, 0), np.float32)
        self.seen = np.zeros((0, 0), np.uint16)

    def begin(self, strip: Strip) -> None:
        """Start a row of tiles; rows above it are forgotten, those below the last one kept."""
        last, self.strip = self.strip, strip
        if last == Strip(strip.band, strip.row - 1):
            done = self.tiling.rows[strip.row] - self.tiling.rows[strip.row - 1]
            for held in (self.total, self.weight, self.seen):
                held[..., :-done, :] = held[..., done:, :]
                held[..., max(0, self.tiling.size - done) :, :] = 0
            return
        size = self.tiling.size, self.tiling.extent(strip).width
        self.total = np.zeros((self.classes, *size), np.float32)
        self.weight, self.seen = np.zeros(size, np.float32), np.zeros(size, np.uint16)

    def add(self, window: Window, probabilities: NDArray[np.float32], seen: NDArray[np.uint16]) -> None:
        """Add one tile of the row.

        Args:
            window: Where it lies.
            probabilities: ``(K, height, width)``.
            seen: ``(height, width)``, a bit for every modality that measured the pixel.
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
        """Return the strip of the row that was added.

        Returns:
            Probabilities ``(K, rows, columns)`` and the bits of the modalities.
        """
        assert self.strip is not None
        rows = self.tiling.extent(self.strip).height
        return self.total[:, :rows] / self.weight[:rows], self.seen[:rows].copy()


class Tiles(Protocol):
    """What reads one tile of an area; :class:`.AreaTiles` does."""

    def __getitem__(self, window: Window) -> Sample:
        """Return the sample of a tile, with the key ``window``; all modalities may be missing."""


class TileBatches(Dataset[Sample]):
    """Batches of tiles, none of which lies in two rows of tiles.

    So the batch that a tile sits in does not depend on where a run began or on how many
    processes share the work, and results are the same to the last bit.

    Args:
        tiles: What reads a tile.
        tiling: The tiling of the area.
        strips: The strips to predict.
        batch_size: Tiles in a batch.
        collate_fn: Joins samples.
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
        """Return the number of batches."""
        return len(self.parts)

    def __getitem__(self, index: int) -> Sample:
        """One batch."""
        strip, begin = self.parts[index]
        windows = self.tiling.tiles(strip)[begin : begin + self.batch_size]
        return self.collate_fn([self.tiles[window] for window in windows])

    def _split(self, strips: Sequence[Strip]) -> Iterator[tuple[Strip, int]]:
        """Yield a row of tiles and the index of the first one of a batch."""
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
        tiles: What reads a tile.
        tiling: The tiling of the area.
        collate_fn: Joins samples, :func:`.collate` with the modalities.
        strips: The strips to predict, all by default. A :class:`.GeoTIFFWriter` chooses
            those that this process is to do and that are not done yet.
        batch_size: Tiles in a batch.
        num_workers: Processes that read.

    Returns:
        Batches with ``window``, which Lightning does not share among processes again.
    """
    batches = TileBatches(tiles, tiling, tiling.strips() if strips is None else strips, batch_size, collate_fn)
    in_order: DistributedSampler[Sample] = DistributedSampler(batches, num_replicas=1, rank=0, shuffle=False)
    return DataLoader(batches, batch_size=None, sampler=in_order, num_workers=num_workers)


def area_loader(datamodule: Any) -> DataLoader[Sample]:
    """Return the ``predict_dataloader`` of a datamodule with an area.

    Args:
        datamodule: Has ``predict_dataset`` (:class:`.AreaTiles`), ``tiling``, ``collate_fn``,
            ``batch_size``, ``num_workers``, and ``plan``: None, unless a
            :class:`.GeoTIFFWriter` put its own there.
    """
    tiling, strips = datamodule.plan() if datamodule.plan else (datamodule.tiling, None)
    return tile_loader(
        datamodule.predict_dataset,
        tiling,
        datamodule.collate_fn,
        strips,
        datamodule.batch_size,
        datamodule.num_workers,
    )
