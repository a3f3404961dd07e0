# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Loading: the tiles of an area as batches, in the order in which strips become final."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from torch.utils.data import DataLoader, Dataset, DistributedSampler
from torchgeo.datasets.utils import Sample

from .tiling import Strip, Tiling, Window


class Tiles(Protocol):
    """What reads one tile of an area; :class:`.AreaTiles` does."""

    def __getitem__(self, window: Window) -> Sample:
        """The sample of a tile, with the key ``window``; no modality needs to be there."""


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
        """Number of batches."""
        return len(self.parts)

    def __getitem__(self, index: int) -> Sample:
        """One batch."""
        strip, begin = self.parts[index]
        windows = self.tiling.tiles(strip)[begin : begin + self.batch_size]
        return self.collate_fn([self.tiles[window] for window in windows])

    def _split(self, strips: Sequence[Strip]) -> Iterator[tuple[Strip, int]]:
        """A row of tiles and the index of the first one of a batch."""
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
    """The dataloader of an area for ``predict``.

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
    """What the ``predict_dataloader`` of a datamodule with an area returns.

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
