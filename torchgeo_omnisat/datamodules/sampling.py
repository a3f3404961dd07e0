# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Order of the training samples, and training that resumes in the middle of an epoch.

The order and every random number of a sample or batch depend only on the seed, the epoch and the index. A checkpoint
therefore holds the seed and the number of processed batches, not the states of generators or workers.

Transforms, layers and users draw from the global generators of Python, NumPy and PyTorch. These are seeded while a
sample is read, and while a batch is augmented and trained on; :func:`borrowed` restores the user's states afterwards.
"""

import math
import os
import random
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from lightning.fabric.utilities.seed import _collect_rng_states, _set_rng_states
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.seed import isolate_rng
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, SequentialSampler
from torch.utils.data.distributed import DistributedSampler
from torchgeo.datasets.utils import Sample

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


class SeededDataset(Dataset[Sample]):
    """A dataset whose every draw, in whatever worker, follows from what it is asked for.

    Args:
        dataset: The dataset.
    """

    def __init__(self, dataset: Dataset[Sample]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, draw: Draw) -> Sample:
        """One sample; the process's own random numbers stay as they were."""
        with isolate_rng(include_cuda=False):
            seed_draws(draw.seed, devices=False)
            return self.dataset[draw.item]


class ResumableLoader(DataLoader[Sample]):
    """A loader that Lightning knows to be resumable; nothing is read before the first batch is wanted."""

    def __iter__(self) -> Iterator[Sample]:  # type: ignore[override]
        """Batches; Lightning makes iterators before it says which epoch it is."""
        yield from super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the datamodule keeps the place. Lightning 2.6 forgets a loader's where a scheduler counts steps."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Do nothing."""


class ResumableDataModule(LightningDataModule):
    """A datamodule that goes on in the middle of an epoch, with the draws it would have had.

    A subclass makes its training loader with :meth:`resumable_loader`, and calls
    :meth:`begin` when it is set up to fit. The seed is that of Lightning's
    ``seed_everything`` if there was one, else the one number that is then drawn from PyTorch's generator.
    """

    place: Progress

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.start_anew()

    def start_anew(self) -> None:
        """Forget where an earlier training was."""
        self.place = Progress()
        self._seed: int | None = None
        self._shape: dict[str, Any] = {}
        self._loaded: dict[str, Any] = {}

    def begin(self) -> None:
        """Start anew, with a seed of its own."""
        self.start_anew()
        self._seed = _draw_seed()

    def resumable_loader(
        self, dataset: Dataset[Sample], order: Order, batch_size: int, drop_last: bool, **kwargs: Any
    ) -> ResumableLoader:
        """Return the loader of a training split.

        Args:
            dataset: Dataset of the items of *order*.
            order: The order of an epoch.
            batch_size: Samples in a batch of one process.
            drop_last: Whether to leave out an incomplete batch.
            **kwargs: Other arguments of a ``DataLoader``.

        Raises:
            ValueError: If training goes on in the middle of an epoch that was cut otherwise.
        """
        trainer = self.trainer
        rank, processes = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        if trainer is None:
            self.start_anew()  # batches that a user inspects differ each time
        self.choose_seed()
        self.cut_epoch({'samples': len(order), 'batch_size': batch_size, 'processes': processes})
        kind = RepeatedSampler if getattr(trainer, 'overfit_batches', 0) else EpochSampler
        sampler = kind(order, self.place, batch_size, drop_last, rank, processes)
        if trainer is not None:
            SeededStep.install(trainer.strategy, self.place)
        return ResumableLoader(
            SeededDataset(dataset),
            batch_size=batch_size,
            sampler=sampler,
            drop_last=drop_last,
            generator=torch.Generator(),  # or the seed of the workers would be drawn from the user's
            **kwargs,
        )

    def on_after_batch_transfer(self, batch: Sample, dataloader_idx: int) -> Sample:
        """Augment or normalise a batch; what is drawn for a training batch follows from the seed and its number.

        The training step goes on from there (:class:`SeededStep`).

        Args:
            batch: A batch.
            dataloader_idx: Index of the dataloader.

        Returns:
            The batch as the datamodule augments or normalises it.
        """
        trainer = self.trainer
        augmented: Sample
        if not trainer or not trainer.training or self.place.seed is None:
            augmented = super().on_after_batch_transfer(batch, dataloader_idx)
            return augmented
        done = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        seed = mix(self.place.seed, self.place.epoch, done, 1 + trainer.global_rank)
        with borrowed(lambda: seed_draws(seed)):
            augmented = super().on_after_batch_transfer(batch, dataloader_idx)
            self.place.draws = _collect_rng_states()
        return augmented

    def state_dict(self) -> dict[str, Any]:
        """Return the seed and the number of batches of this epoch that were trained on."""
        if self.trainer is None or self.place.seed is None:
            return {}
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress.current
        return {'seed': self.place.seed, 'epoch': self.place.epoch, 'batches': progress.processed, **self._shape}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a checkpoint was written.

        Args:
            state: What :meth:`state_dict` gave.
        """
        # In place: FSDP restores after a scheduler has asked for the loader.
        self.place.seed, self.place.epoch, self.place.batches = (state[k] for k in ('seed', 'epoch', 'batches'))
        self._loaded = {key: value for key, value in state.items() if key not in ('seed', 'epoch', 'batches')}
        self.cut_epoch(self._shape)

    def cut_epoch(self, shape: dict[str, Any]) -> None:
        """Say what an epoch consists of.

        Args:
            shape: Everything that the number and the members of its batches follow from.

        Raises:
            ValueError: If training goes on in the middle of an epoch that was cut otherwise.
        """
        self._shape = shape
        here, there = self._shape, self._loaded
        if not here or not there or here == there:
            return
        whole = self.whole(there)
        if 0 < self.place.batches < whole:
            raise ValueError(
                f'the checkpoint was written after {self.place.batches} of {whole} batches of an epoch of {there}, '
                f'and cannot go on with {here}: expected the same, or a checkpoint from the end of an epoch'
            )

    def whole(self, shape: dict[str, Any]) -> int:
        """Whole batches of an epoch.

        Args:
            shape: What :meth:`cut_epoch` was given.
        """
        return int(shape['samples'] // (shape['batch_size'] * shape['processes']))

    def choose_seed(self) -> None:
        """Have one seed for all processes, if there is none yet."""
        if self.place.seed is not None:
            return
        seed = _draw_seed() if self._seed is None else self._seed
        if self.trainer is not None:
            seed = int(self.trainer.strategy.broadcast(int(os.environ.get('PL_GLOBAL_SEED', seed))))
        self.place.seed = seed


class SeededStep:
    """The training step of a strategy, whose draws go on from those of the batch's augmentation.

    Args:
        step: The training step.
        place: Holds the state of the draws.
    """

    def __init__(self, step: Callable[..., Any], place: Progress) -> None:
        self.step, self.place = step, place

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Do the step; the user's random numbers stay as they were."""
        draws, self.place.draws = self.place.draws, None
        if draws is None:
            return self.step(*args, **kwargs)
        with borrowed(lambda: _set_rng_states(draws)):
            return self.step(*args, **kwargs)

    @classmethod
    def install(cls, strategy: Any, place: Progress) -> None:
        """Put the step of a strategy in its place, once."""
        step = strategy.training_step
        strategy.training_step = cls(step.step if isinstance(step, cls) else step, place)


def _draw_seed() -> int:
    return int(torch.empty((), dtype=torch.int64).random_())


@contextmanager
def borrowed(begin: Callable[[], object]) -> Iterator[None]:
    """Use the global generators, from the state that *begin* gives them, and put the user's state back."""
    before = _collect_rng_states()
    try:
        begin()
        yield
    finally:
        _set_rng_states(before)


def seed_draws(seed: int, devices: bool = True) -> None:
    """Seed Python, NumPy and PyTorch.

    Args:
        seed: The seed.
        devices: Whether to seed PyTorch on every device, or on the processor alone.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (the draws of others)
    if devices:
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)
