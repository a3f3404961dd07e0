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

from ...batch import fill
from ...utils.tensors.devices import movable


class Order(Protocol):
    """Order of the samples of an epoch."""

    def __len__(self) -> int:
        """Return the number of samples of an epoch."""

    def __call__(self, seed: int) -> Sequence[Any]:
        """Return indices, or other keys of the dataset. They depend only on *seed*."""


@dataclass(frozen=True)
class RandomOrder:
    """Random order of all samples."""

    count: int

    def __len__(self) -> int:
        return self.count

    def __call__(self, seed: int) -> list[int]:
        """Return the indices in the order of *seed*."""
        shuffled: list[int] = np.random.default_rng(seed).permutation(self.count).tolist()
        return shuffled


@dataclass(frozen=True, eq=False)
class SpatialOrder:
    """Random order of all samples in which each batch consists of neighbours on the ground.

    The samples at *positions* ``(N, 2)`` in metres are divided in half recursively, across the longer side of each
    part, until each part is one batch of *size* samples of all ranks. The axes are rotated at random for each division,
    so that a sample has different neighbours in each epoch.
    """

    positions: NDArray[np.float64]
    size: int

    def __post_init__(self) -> None:
        shape, unknown = self.positions.shape, int((~np.isfinite(self.positions)).any(-1).sum())
        if len(shape) != 2 or shape[1] != 2 or unknown:
            raise ValueError(f'positions {shape} have {unknown} that are not finite, expected (N, 2) in metres')

    def __len__(self) -> int:
        return len(self.positions)

    def __call__(self, seed: int) -> list[int]:
        """Return the indices of whole batches in the order of *seed*, then the remainder."""
        rng = np.random.default_rng(seed)
        parts = self._halve(rng.permutation(len(self.positions)), rng)
        whole = [part for part in parts if len(part) == self.size]
        batches = [whole[i] for i in rng.permutation(len(whole))] + [p for p in parts if len(p) < self.size]
        return [int(index) for batch in batches for index in rng.permutation(batch)]

    def _halve(self, members: NDArray[np.int64], rng: np.random.Generator) -> list[NDArray[np.int64]]:
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
    """Progress of a training.

    Attributes:
        seed: Random seed; None until it is needed.
        epoch: Index of the epoch.
        batches: Number of batches of this epoch that were processed before training resumed.
        draws: States of the random generators between augmentation and training step of a batch.
    """

    seed: int | None = None
    epoch: int = 0
    batches: int = 0
    draws: dict[str, Any] | None = field(default=None, repr=False, compare=False)


class Draw(NamedTuple):
    """Key of a sample in the dataset, and the random seed of the sample."""

    item: Any
    seed: int


class EpochSampler(DistributedSampler[Draw]):
    """Distributed sampler that can resume in the middle of an epoch, at *place*.

    The batch of all ranks together contains the same samples for any world size. Lightning does not replace a
    ``DistributedSampler``, with or without ``use_distributed_sampler``. Without *drop_last*, samples are repeated until
    all ranks have the same number.
    """

    def __init__(
        self, order: Order, place: Progress, batch_size: int, drop_last: bool = True, rank: int = 0, world_size: int = 1
    ) -> None:
        super().__init__(order, world_size, rank, drop_last=drop_last)  # type: ignore[arg-type]
        self.order, self.place, self.batch_size = order, place, batch_size
        self.turn: tuple[int, ...] = ()
        self.skipped: int | None = None

    def __len__(self) -> int:
        """Return the number of samples of a whole epoch on this rank."""
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
        """Select one of several rounds of an epoch; each round has a different order."""
        self.turn, self.skipped = turn, skipped

    def set_epoch(self, epoch: int) -> None:
        """Start an epoch, unless it is the one that is being resumed."""
        if epoch != self.place.epoch:
            self.place.epoch, self.place.batches = epoch, 0


class RepeatedSampler(EpochSampler, SequentialSampler):  # type: ignore[misc]
    """Sampler with the same samples and random numbers in every epoch, for ``--trainer.overfit_batches``.

    Lightning replaces every sampler that is not a ``SequentialSampler``.
    """

    def set_epoch(self, epoch: int) -> None:
        """Start an epoch with the order of the first one."""
        if epoch != getattr(self, 'begun', epoch):
            self.place.batches = 0
        self.begun = epoch


class Filler(NamedTuple):
    """Padding sample of a rank with one batch fewer than others; it is not scored."""

    item: int


class DealtDataset(Dataset[Any]):
    """Dataset that accepts a :class:`Filler` as index."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: Any) -> Any:
        return fill(self.dataset[item.item]) if isinstance(item, Filler) else self.dataset[item]


class DealtSampler(DistributedSampler[Any], SequentialSampler):
    """Distributed sampler for evaluation: each sample once, in order.

    All ranks have the same number of batches, because evaluation steps communicate. With *fill*, a rank with one batch
    fewer gets one with a single :class:`Filler`.
    """

    def __init__(
        self, dataset: Sized, batch_size: int = 1, rank: int = 0, world_size: int = 1, fill: bool = True
    ) -> None:
        super().__init__(dataset, world_size, rank, shuffle=False)  # type: ignore[arg-type]
        self.items: list[Any] = list(range(rank, len(dataset), world_size))
        most = math.ceil(len(range(0, len(dataset), world_size)) / batch_size)
        if fill and math.ceil(len(self.items) / batch_size) < most:
            self.items.append(Filler(0))

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


def mix(*numbers: int) -> int:
    """Return a seed of 64 bits that depends on non-negative numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


class SeededDataset(Dataset[Sample]):
    """Dataset that seeds the random generators for each sample, in any worker."""

    def __init__(self, dataset: Dataset[Sample]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, draw: Draw) -> Sample:
        """Return a sample, and restore the generators of the process."""
        with isolate_rng(include_cuda=False):
            seed_draws(draw.seed, devices=False)
            return self.dataset[draw.item]


class ResumableLoader(DataLoader[Sample]):
    """Data loader that Lightning accepts as resumable. It reads nothing before the first batch is requested.

    With torchdata's ``StatefulDataLoader`` instead, ``test_goes_on_as_if_not_stopped`` fails: a run that is resumed
    by Lightning 2.6 starts with other samples, and random numbers of samples and steps are not restored.
    """

    def __iter__(self) -> Iterator[Sample]:  # type: ignore[override]
        """Yield batches. This is a generator, because Lightning creates iterators before it sets the epoch."""
        yield from super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state, because the datamodule stores it.

        Lightning 2.6 loses the state of loaders if a scheduler uses ``estimated_stepping_batches``.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Do nothing."""


class ResumableDataModule(LightningDataModule):
    """Datamodule base class for training that resumes in the middle of an epoch, bit for bit.

    Subclasses create the training loader with :meth:`resumable_loader`, and call :meth:`begin` in ``setup('fit')``.
    The seed is that of Lightning's ``seed_everything``, or else one number from PyTorch's generator.
    """

    place: Progress

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.start_anew()

    def start_anew(self) -> None:
        """Reset the progress of an earlier training."""
        self.place = Progress()
        self._seed: int | None = None
        self._shape: dict[str, Any] = {}
        self._loaded: dict[str, Any] = {}

    def begin(self) -> None:
        """Reset the progress and draw a seed."""
        self.start_anew()
        self._seed = _draw_seed()

    def resumable_loader(
        self, dataset: Dataset[Sample], order: Order, batch_size: int, drop_last: bool, **kwargs: Any
    ) -> ResumableLoader:
        """Return the loader of a training split.

        Args:
            dataset: Dataset of the keys of *order*.
            order: Order of an epoch.
            batch_size: Samples per batch of one rank.
            drop_last: Whether to drop an incomplete batch.
            **kwargs: Other arguments of a ``DataLoader``.

        Raises:
            ValueError: If training resumes in the middle of an epoch with different batches.
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

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch to a device; float64 stays on the CPU if the device has none."""
        if not isinstance(batch, dict):
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        moved, stays = movable(batch, device)
        return {**super().transfer_batch_to_device(moved, device, dataloader_idx), **stays}

    def on_after_batch_transfer(self, batch: Sample, dataloader_idx: int) -> Sample:
        """Augment or normalise a batch; seed the generators for each training batch.

        The training step continues from this state of the generators (:class:`SeededStep`).
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
        """Return the seed and the number of processed batches of this epoch."""
        if self.trainer is None or self.place.seed is None:
            return {}
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress.current
        return {'seed': self.place.seed, 'epoch': self.place.epoch, 'batches': progress.processed, **self._shape}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from the state of a checkpoint."""
        # In place: FSDP restores after a scheduler has requested the loader.
        self.place.seed, self.place.epoch, self.place.batches = (state[k] for k in ('seed', 'epoch', 'batches'))
        self._loaded = {key: value for key, value in state.items() if key not in ('seed', 'epoch', 'batches')}
        self.cut_epoch(self._shape)

    def cut_epoch(self, shape: dict[str, Any]) -> None:
        """Set the settings that define the batches of an epoch.

        Raises:
            ValueError: If training resumes in the middle of an epoch with other settings.
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
        """Return the number of whole batches of an epoch."""
        return int(shape['samples'] // (shape['batch_size'] * shape['processes']))

    def choose_seed(self) -> None:
        """Set one seed for all ranks, unless it is set."""
        if self.place.seed is not None:
            return
        seed = _draw_seed() if self._seed is None else self._seed
        if self.trainer is not None:
            seed = int(self.trainer.strategy.broadcast(int(os.environ.get('PL_GLOBAL_SEED', seed))))
        self.place.seed = seed


class SeededStep:
    """Training step of a strategy that continues from the generator states of the batch's augmentation."""

    def __init__(self, step: Callable[..., Any], place: Progress) -> None:
        self.step, self.place = step, place

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the step, and restore the user's generators."""
        draws, self.place.draws = self.place.draws, None
        if draws is None:
            return self.step(*args, **kwargs)
        with borrowed(lambda: _set_rng_states(draws)):
            return self.step(*args, **kwargs)

    @classmethod
    def install(cls, strategy: Any, place: Progress) -> None:
        """Wrap the training step of a strategy, once."""
        step = strategy.training_step
        strategy.training_step = cls(step.step if isinstance(step, cls) else step, place)


def _draw_seed() -> int:
    return int(torch.empty((), dtype=torch.int64).random_())


@contextmanager
def borrowed(begin: Callable[[], object]) -> Iterator[None]:
    """Use the global generators in a context, and restore their states afterwards."""
    before = _collect_rng_states()
    try:
        begin()
        yield
    finally:
        _set_rng_states(before)


def seed_draws(seed: int, devices: bool = True) -> None:
    """Seed Python, NumPy and PyTorch, on all *devices* or on the CPU only."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (for other libraries)
    if devices:
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)
