# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Resuming: a datamodule that goes on in the middle of an epoch, as if it had not been stopped.

Whatever is drawn for a sample or a batch follows from (seed, epoch, its number), so that a
checkpoint needs the seed and the number of batches that were trained on, not the state of
any generator, and not what workers happened to read ahead.

Transforms, layers and users draw from the global generators of Python, NumPy and PyTorch. These are
seeded while a sample is read, and while a batch is augmented and trained on; afterwards they are as
the user left them (:func:`borrowed`).
"""

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.seed import _collect_rng_states, _set_rng_states
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils.data import DataLoader, Dataset
from torchgeo.datasets.utils import Sample

from .sampling import Draw, EpochSampler, Order, Progress, RepeatedSampler, mix


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
