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

from ..batch import fill
from .sampling import Filler, Place, mix


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

    The order of an epoch and the batches of each loader follow from the seed and the epoch, so
    that training can go on after any batch, and are of the same loader in all processes. A loader
    that is through begins again in another order. Lightning's limit of batches is one of each
    loader.

    Args:
        loaders: The loaders, whose samplers are :class:`.EpochSampler`.
        place: Where to begin; the samplers move it on, for it is theirs.
        temperature: See :func:`schedule`.
    """

    def __init__(self, loaders: Sequence[Any], place: Place, temperature: float = 1.0) -> None:
        super().__init__(list(loaders), mode='max_size_cycle')
        self.place, self.temperature = place, temperature
        self._batches: Iterator[tuple[Any, int, int]] = iter(())

    def __iter__(self) -> 'MixedLoader':
        """Begin an epoch; which one, Lightning says before it wants the first batch."""
        self._batches = self._go_on()
        self._iterator = iter(())  # type: ignore[assignment]
        return self

    def __next__(self) -> tuple[Any, int, int]:
        """A batch, its number, and 0: to Lightning this is one loader."""
        return next(self._batches)

    def __len__(self) -> int:
        """Number of batches of a whole epoch, wherever it begins."""
        return len(self._schedule(0))

    def reset(self) -> None:
        """End the epoch."""
        self._iterator = None
        super().reset()

    def _go_on(self) -> Iterator[tuple[Any, int, int]]:
        """The batches that are still to come in this epoch."""
        assert self.place.seed is not None
        order, begin = self._schedule(mix(self.place.seed, self.place.epoch)), self.place.batches
        done = np.bincount(order[:begin], minlength=len(self.flattened))
        parts: dict[int, Iterator[Any]] = {}
        for number, index in enumerate(order[begin:].tolist(), begin):
            loader = self.flattened[index]
            turn, skipped = divmod(int(done[index]), len(loader))
            if index not in parts or skipped == 0:
                loader.sampler.take_turn((index, turn), skipped)
                parts[index] = iter(loader)
            yield next(parts[index]), number, 0
            done[index] += 1

    def _schedule(self, seed: int) -> NDArray[np.int64]:
        """Which loader gives each batch of an epoch, with no more of each than Lightning's limit."""
        limits: list[float] = [math.inf if limit is None else limit for limit in self.limits or ()]
        limits = limits or [math.inf] * len(self.flattened)
        lengths = [int(min(len(loader), limit)) for loader, limit in zip(self.flattened, limits, strict=True)]
        return schedule(lengths, self.temperature, seed)


class Batches(Dataset[Sample]):
    """The batches of several datasets, one dataset after the other.

    Args:
        datasets: The datasets.
        collate_fns: What joins the samples of each.
        batch_sizes: How many samples each joins.
    """

    def __init__(self, datasets: Sequence[Any], collate_fns: Sequence[Any], batch_sizes: Sequence[int]) -> None:
        self.datasets, self.collate_fns = datasets, collate_fns
        self.parts = list(self._lay_out(batch_sizes))

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.parts)

    def __getitem__(self, index: Any) -> Sample:
        """One batch, or a :class:`.Filler`."""
        filler = isinstance(index, Filler)
        source, members = self.parts[index.item if filler else index]
        members = members[:1] if filler else members
        batch: Sample = self.collate_fns[source]([self.datasets[source][member] for member in members])
        return fill(batch) if filler else batch

    def _lay_out(self, sizes: Sequence[int]) -> Iterator[tuple[int, range]]:
        """The dataset of each batch, and its samples."""
        for source, (dataset, size) in enumerate(zip(self.datasets, sizes, strict=True)):
            for begin in range(0, len(dataset), size):
                yield source, range(begin, min(begin + size, len(dataset)))
