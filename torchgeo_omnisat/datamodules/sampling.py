# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Sampling: which samples make a batch, in an order that follows from (seed, epoch) alone."""

import math
from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from ..batch import fill


class Order(Protocol):
    """What a dataset is asked for in an epoch, and in which order."""

    def __len__(self) -> int:
        """How many samples an epoch has."""

    def __call__(self, seed: int) -> Sequence[Any]:
        """Return indices, or other keys of the dataset, that depend only on *seed*."""


@dataclass(frozen=True)
class RandomOrder:
    """Every sample once, in an order that is drawn.

    Args:
        count: Number of samples.
    """

    count: int

    def __len__(self) -> int:
        """Return the number of samples."""
        return self.count

    def __call__(self, seed: int) -> list[int]:
        """Return the indices in the order of *seed*."""
        shuffled: list[int] = np.random.default_rng(seed).permutation(self.count).tolist()
        return shuffled


@dataclass(frozen=True, eq=False)
class SpatialOrder:
    """Every sample once, such that those of a batch are neighbours on the ground.

    The ground is halved again and again, across the longer side of what is left, until each
    part is one batch; the axes are turned anew for every cut, so that a sample has other
    neighbours in every order.

    Args:
        positions: Where samples lie, ``(N, 2)`` in metres.
        size: Samples in a batch, of all processes together.

    Raises:
        ValueError: If a position is not known.
    """

    positions: NDArray[np.float64]
    size: int

    def __post_init__(self) -> None:
        """Refuse what cannot be sorted."""
        shape, unknown = self.positions.shape, int((~np.isfinite(self.positions)).any(-1).sum())
        if len(shape) != 2 or shape[1] != 2 or unknown:
            raise ValueError(
                f'positions have shape {shape} and {unknown} of them are not finite, expected (N, 2) in metres'
            )

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.positions)

    def __call__(self, seed: int) -> list[int]:
        """Return the indices in the order of *seed*: batch after batch, the remainder at the end."""
        rng = np.random.default_rng(seed)
        parts = self._halve(rng.permutation(len(self.positions)), rng)
        whole = [part for part in parts if len(part) == self.size]
        batches = [whole[i] for i in rng.permutation(len(whole))] + [p for p in parts if len(p) < self.size]
        return [int(index) for batch in batches for index in rng.permutation(batch)]

    def _halve(self, members: NDArray[np.int64], rng: np.random.Generator) -> list[NDArray[np.int64]]:
        """Neighbours together, each part a batch except for one that may be smaller."""
        if len(members) <= self.size:
            return [members]
        angle = rng.uniform(0, 2 * math.pi)
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        here = self.positions[members] @ turn
        axis = int(np.ptp(here, axis=0).argmax())
        members = members[here[:, axis].argsort(kind='stable')]
        half = self.size * math.ceil(len(members) / self.size / 2)
        return self._halve(members[:half], rng) + self._halve(members[half:], rng)


@dataclass
class Progress:
    """How far training has come.

    Attributes:
        seed: What every draw follows from; None until it is needed.
        epoch: The epoch.
        batches: How many batches of it are done, when it is taken up again.
        draws: Where the random numbers of the batch at hand are, between its augmentation and its step.
    """

    seed: int | None = None
    epoch: int = 0
    batches: int = 0
    draws: dict[str, Any] | None = field(default=None, repr=False, compare=False)


class Draw(NamedTuple):
    """One sample of an epoch: what the dataset is asked for, and what its draws follow from."""

    item: Any
    seed: int


class EpochSampler(DistributedSampler[Draw]):
    """Deals an order to the processes, whole batches of all of them at a time.

    A batch of all processes together holds the same samples for any number of processes.
    Lightning takes a ``DistributedSampler`` for one that has dealt already, with or without
    ``use_distributed_sampler``.

    Args:
        order: The order.
        place: Where to begin; :meth:`set_epoch` moves it on.
        batch_size: Samples in a batch of one process.
        drop_last: Whether to leave out an incomplete batch. Otherwise samples are repeated
            until every process has as many.
        rank: Which process this is.
        world_size: Number of processes.
    """

    def __init__(
        self, order: Order, place: Progress, batch_size: int, drop_last: bool = True, rank: int = 0, world_size: int = 1
    ) -> None:
        """Keep the arguments; nothing is drawn yet."""
        super().__init__(order, world_size, rank, drop_last=drop_last)  # type: ignore[arg-type]
        self.order, self.place, self.batch_size = order, place, batch_size
        self.turn: tuple[int, ...] = ()
        self.skipped: int | None = None

    def __len__(self) -> int:
        """Return the number of samples of a whole epoch on this rank, wherever it begins."""
        joint = self.batch_size * self.num_replicas
        if self.drop_last:
            return len(self.order) // joint * self.batch_size
        return math.ceil(len(self.order) / self.num_replicas)

    def __iter__(self) -> Iterator[Draw]:
        """Yield the remaining samples of this epoch."""
        assert self.place.seed is not None
        key = (self.place.seed, self.place.epoch, *self.turn)
        items = self.order(mix(*key))
        joint = self.batch_size * self.num_replicas
        skipped = self.place.batches if self.skipped is None else self.skipped
        for begin in range(skipped * joint, len(self) * self.num_replicas, joint):
            numbers = np.arange(begin, min(begin + joint, len(self) * self.num_replicas))
            for number in numbers.reshape(self.num_replicas, -1)[self.rank].tolist():
                yield Draw(items[number % len(items)], mix(*key, number))

    def take_turn(self, turn: tuple[int, ...], skipped: int) -> None:
        """Make what is dealt next one of several rounds of an epoch, each with an order of its own.

        Args:
            turn: Which round.
            skipped: How many batches of it were dealt already.
        """
        self.turn, self.skipped = turn, skipped

    def set_epoch(self, epoch: int) -> None:
        """Begin another epoch; the one that is being taken up again is not begun anew.

        Args:
            epoch: Its number.
        """
        if epoch != self.place.epoch:
            self.place.epoch, self.place.batches = epoch, 0


class RepeatedSampler(EpochSampler, SequentialSampler):  # type: ignore[misc]
    """The same samples with the same draws in every epoch, for ``--trainer.overfit_batches``.

    Lightning leaves a ``SequentialSampler`` where it is, and puts one of its own, which draws
    nothing, in the place of any other.
    """

    def set_epoch(self, epoch: int) -> None:
        """Begin another epoch as the first one.

        Args:
            epoch: Its number.
        """
        if epoch != getattr(self, 'begun', epoch):
            self.place.batches = 0
        self.begun = epoch


class Filler(NamedTuple):
    """A sample that a rank reads for want of another one, and that does not count."""

    item: int


class DealtDataset(Dataset[Any]):
    """A dataset that can be asked for a :class:`Filler`.

    Args:
        dataset: The samples.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.dataset)

    def __getitem__(self, item: Any) -> Any:
        """One sample."""
        return fill(self.dataset[item.item]) if isinstance(item, Filler) else self.dataset[item]


class DealtSampler(DistributedSampler[Any], SequentialSampler):
    """Deals samples to the ranks in their order, each of them once.

    Every rank has as many batches, because steps of an evaluation exchange messages: a rank that has
    a batch less gets one of a single :class:`Filler`.

    Args:
        dataset: The samples.
        batch_size: Samples in a batch of one rank.
        rank: Which rank this is.
        world_size: Number of ranks.
        fill: Whether a rank may get a filler; otherwise it has a batch less.
    """

    def __init__(
        self, dataset: Sized, batch_size: int = 1, rank: int = 0, world_size: int = 1, fill: bool = True
    ) -> None:
        """Deal."""
        super().__init__(dataset, world_size, rank, shuffle=False)  # type: ignore[arg-type]
        self.items: list[Any] = list(range(rank, len(dataset), world_size))
        most = math.ceil(len(range(0, len(dataset), world_size)) / batch_size)
        if fill and math.ceil(len(self.items) / batch_size) < most:
            self.items.append(Filler(0))

    def __len__(self) -> int:
        """Return the number of samples of this rank."""
        return len(self.items)

    def __iter__(self) -> Iterator[Any]:
        """Yield the samples of this rank."""
        return iter(self.items)


def mix(*numbers: int) -> int:
    """Return a seed of 64 bits that depends on non-negative numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
