# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Mixing: batches of several loaders, one at a time."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from lightning.pytorch.utilities import CombinedLoader
from numpy.typing import NDArray
from torch.utils.data import Dataset
from torchgeo.datasets.utils import Sample


def schedule(lengths: Sequence[int], temperature: float, seed: int) -> NDArray[np.int64]:
    """Which loader gives each batch of an epoch.

    Args:
        lengths: Batches of each loader.
        temperature: The share of a loader is its length to the power of one over this: 1 for
            proportional shares, infinite for equal ones.
        seed: What the order follows from.

    Returns:
        Indices of loaders, as many as there are batches in all, each loader at least once.
    """
    shares = np.array(lengths, dtype=np.float64) ** (1 / temperature)
    ends = np.cumsum(shares / shares.sum()) * sum(lengths)
    counts = np.diff(np.round(ends, 6).round().astype(np.int64), prepend=0)
    drawn = np.repeat(np.arange(len(lengths)), np.maximum(counts, 1))
    return np.random.default_rng(seed).permutation(drawn)


class MixedLoader(CombinedLoader):
    """Lightning's combined loader, in a drawn order of single batches.

    A loader that is through begins again. Lightning's limit of batches is one of each loader.

    Args:
        loaders: The loaders.
        temperature: See :func:`schedule`.
        seed: What the order of the first epoch follows from.
    """

    def __init__(self, loaders: Sequence[Any], temperature: float = 1.0, seed: int = 0) -> None:
        """Keep the loaders."""
        super().__init__(list(loaders), mode='max_size_cycle')
        self.temperature, self.seed, self.epochs = temperature, seed, 0

    def __iter__(self) -> 'MixedLoader':
        """Begin an epoch, in another order than the last."""
        limits: list[float] = [math.inf if limit is None else limit for limit in self.limits or ()]
        limits = limits or [math.inf] * len(self.flattened)
        lengths = [int(min(len(loader), limit)) for loader, limit in zip(self.flattened, limits, strict=True)]
        self.order = schedule(lengths, self.temperature, self.seed + self.epochs)
        self.epochs += 1
        self.parts = [iter(loader) for loader in self.flattened]
        self.done = 0
        self._iterator = iter(())  # type: ignore[assignment]
        return self

    def __next__(self) -> tuple[Any, int, int]:
        """A batch, its number, and 0: to Lightning this is one loader."""
        if self.done >= len(self):
            raise StopIteration
        index = int(self.order[self.done])
        try:
            batch = next(self.parts[index])
        except StopIteration:
            self.parts[index] = iter(self.flattened[index])
            batch = next(self.parts[index])
        self.done += 1
        return batch, self.done - 1, 0

    def __len__(self) -> int:
        """Number of batches of the epoch that was begun."""
        return len(self.order)

    def reset(self) -> None:
        """End the epoch."""
        self._iterator = None
        super().reset()


class Batches(Dataset[Sample]):
    """The batches of several datasets, one dataset after the other.

    Args:
        datasets: The datasets.
        collate_fns: What joins the samples of each.
        batch_sizes: How many samples each joins.
    """

    def __init__(self, datasets: Sequence[Any], collate_fns: Sequence[Any], batch_sizes: Sequence[int]) -> None:
        """Lay out the batches."""
        self.datasets, self.collate_fns = datasets, collate_fns
        self.parts = list(self._lay_out(batch_sizes))

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.parts)

    def __getitem__(self, index: int) -> Sample:
        """One batch."""
        source, members = self.parts[index]
        batch: Sample = self.collate_fns[source]([self.datasets[source][member] for member in members])
        return batch

    def _lay_out(self, sizes: Sequence[int]) -> Iterator[tuple[int, range]]:
        """The dataset of each batch, and its samples."""
        for source, (dataset, size) in enumerate(zip(self.datasets, sizes, strict=True)):
            for begin in range(0, len(dataset), size):
                yield source, range(begin, min(begin + size, len(dataset)))
