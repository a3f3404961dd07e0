# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Datamodule of several datasets, for joint training."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import torch
from lightning.pytorch.utilities import CombinedLoader
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchgeo.datamodules import BaseDataModule
from torchgeo.datasets.utils import Sample

from ..batch import fill
from ..modality import Modality
from ..utils.checks import check_choice, check_least
from .base import MultimodalDataModule
from .common.plausibility import GuardMode
from .common.sampling import DealtSampler, Filler, Progress, ResumableDataModule, mix


def schedule(lengths: Sequence[int], temperature: float, seed: int) -> NDArray[np.int64]:
    """Return the index of the loader of each batch of an epoch; each loader occurs at least once.

    The fraction of batches of a loader is proportional to its length to the power of 1 / *temperature*: 1 for
    proportional fractions, infinity for equal ones.
    """
    shares = np.array(lengths, dtype=np.float64) ** (1 / temperature)
    ends = np.cumsum(shares / shares.sum()) * sum(lengths)
    counts = np.diff(np.round(ends, 6).round().astype(np.int64), prepend=0)
    drawn = np.repeat(np.arange(len(lengths)), np.maximum(counts, 1))
    return np.random.default_rng(seed).permutation(drawn)


class MixedLoader(CombinedLoader):
    """Combined loader of Lightning that yields single batches of *loaders* in random order, see :func:`schedule`.

    The order depends only on the seed and the epoch, so that training can resume after any batch, and all ranks use the
    same loader at the same time. An exhausted loader restarts in another order. Lightning's limit of batches applies to
    each loader. *place* is the progress to start from, which the samplers of the loaders share and update.

    With the modes of Lightning's ``CombinedLoader`` instead, ``test_batches_are_of_one_datamodule_each`` fails: each
    step gets a batch of every loader, and training does not support ``'sequential'``.
    """

    def __init__(self, loaders: Sequence[Any], place: Progress, temperature: float = 1.0) -> None:
        super().__init__(list(loaders), mode='max_size_cycle')
        self.place, self.temperature = place, temperature
        self._batches: Iterator[tuple[Any, int, int]] = iter(())

    def __iter__(self) -> 'MixedLoader':
        """Start an epoch; Lightning sets its index before it requests the first batch."""
        self._batches = self._remaining_batches()
        self._iterator = iter(())  # type: ignore[assignment]
        return self

    def __next__(self) -> tuple[Any, int, int]:
        """Return a batch, its index, and 0 for the index of the loader."""
        return next(self._batches)

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch."""
        return len(self._schedule(0))

    def reset(self) -> None:
        """End the epoch."""
        self._iterator = None
        super().reset()

    def _remaining_batches(self) -> Iterator[tuple[Any, int, int]]:
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
        """Return the loader of each batch of an epoch, with Lightning's limit of batches."""
        limits: list[float] = [math.inf if limit is None else limit for limit in self.limits or ()]
        limits = limits or [math.inf] * len(self.flattened)
        lengths = [int(min(len(loader), limit)) for loader, limit in zip(self.flattened, limits, strict=True)]
        return schedule(lengths, self.temperature, seed)


class Batches(Dataset[Sample]):
    """Dataset of the batches of several datasets, one dataset after the other."""

    def __init__(self, datasets: Sequence[Any], collate_fns: Sequence[Any], batch_sizes: Sequence[int]) -> None:
        self.datasets, self.collate_fns = datasets, collate_fns
        self.parts = list(self._lay_out(batch_sizes))

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: Any) -> Sample:
        """Return a batch; for a :class:`.Filler`, a padding batch."""
        filler = isinstance(index, Filler)
        source, members = self.parts[index.item if filler else index]
        members = members[:1] if filler else members
        batch: Sample = self.collate_fns[source]([self.datasets[source][member] for member in members])
        return fill(batch) if filler else batch

    def _lay_out(self, sizes: Sequence[int]) -> Iterator[tuple[int, range]]:
        for source, (dataset, size) in enumerate(zip(self.datasets, sizes, strict=True)):
            for begin in range(0, len(dataset), size):
                yield source, range(begin, min(begin + size, len(dataset)))


#: Key of the datamodule's index in a batch, until it is augmented.
SOURCE = 'source'
#: Attributes that the mixture has if they are equal in all datamodules.
COMMON = ('num_classes', 'labels', 'label_names', 'ignore_index', 'label_gsd', 'background')


class MixedDataModule(ResumableDataModule, BaseDataModule):
    """Mixture of datamodules, in which each batch is from one of them.

    Each datamodule keeps its statistics (:attr:`sources`), augmentation and batch size. ``mean`` and ``std`` of a
    modality are those of the first datamodule that has it. Modalities with the same name must be equal; *rename*
    gives others another name. Attributes such as ``labels`` are set if they are equal in all datamodules. For
    pre-training on all and fine-tuning on one, run the mixture first, then that datamodule with the weights.

    Training can resume in the middle of an epoch. In distributed training (DDP), batches of all ranks are from the
    same datamodule, with different samples.
    """

    mean: dict[str, Tensor]  # type: ignore[assignment]
    std: dict[str, Tensor]  # type: ignore[assignment]
    #: By datamodule: ``mean`` and ``std`` of its modalities, under the names of the mixture, and ``data``, its class.
    sources: dict[str, dict[str, Any]]
    #: Name of the datamodule of the latest batch.
    latest: str | None = None

    def __init__(
        self,
        datamodules: dict[str, MultimodalDataModule],
        temperature: float = 1.0,
        rename: dict[str, dict[str, str]] | None = None,
        patch_size: float | None = None,
        guard: GuardMode | None = None,
    ) -> None:
        """Initialize without reading files.

        Args:
            datamodules: Datamodules by name.
            temperature: 1 for batches in proportion to the size of each datamodule; larger values make
                the fractions more equal.
            rename: New names of modalities, such as ``{'flair': {'s2': 's2_flair'}}``.
            patch_size: Side of a token on the ground in metres; defaults to that of the datamodules, if equal.
            guard: Handling of tiles that do not match the statistics of a checkpoint, in all datamodules:
                ``'warn'``, ``'error'`` or ``'off'``; defaults to that of each datamodule.

        Raises:
            ValueError: If there is no datamodule, or *temperature* is below 1.
        """
        if not datamodules:
            raise ValueError('datamodules is empty, expected at least one')
        check_least(1, temperature=temperature)
        unknown = set(rename or {}) - set(datamodules)
        if unknown:
            raise ValueError(f'rename names {sorted(unknown)}, expected some of {list(datamodules)}')
        first = next(iter(datamodules.values()))
        super().__init__(first.dataset_class)
        self.datamodules = dict(datamodules)
        self.temperature = temperature
        self.rename = {name: dict((rename or {}).get(name, {})) for name in datamodules}
        sizes = {name: module.patch_size for name, module in self.datamodules.items()}
        if patch_size is None and len(set(sizes.values())) > 1:
            raise ValueError(f'patches of the datamodules are {sizes} m, expected patch_size to be given')
        self.patch_size = first.patch_size if patch_size is None else patch_size
        if guard is not None:
            check_choice(guard=(guard, get_args(GuardMode)))
            for module in self.datamodules.values():
                module.guard = guard

    @property
    def synthetic(self) -> bool:
        """Whether any samples are synthetic, so that results are reported as such."""
        return any(module.synthetic for module in self.datamodules.values())

    def prepare_data(self) -> None:
        """Prepare the data of all datamodules."""
        for module in self._parts():
            module.prepare_data()

    def setup(self, stage: str) -> None:
        """Set up all datamodules, and join their modalities and statistics.

        Raises:
            ValueError: If modalities with the same name differ, or *stage* is ``'predict'``.
        """
        if stage == 'predict':
            raise ValueError(f'a mixture of {list(self.datamodules)} has no map, expected one datamodule to predict')
        if stage == 'fit':
            self.begin()
        self.modalities: dict[str, Modality] = {}
        self.mean, self.std, self.sources = {}, {}, {}
        for index, (name, module) in enumerate(zip(self.datamodules, self._parts(), strict=True)):
            module.setup(stage)
            if not isinstance(module.collate_fn, _Tagging):
                module.collate_fn = _Tagging(module.collate_fn, index)
            self._join(name, module)
        for fact in COMMON:
            values = [getattr(module, fact, None) for module in self.datamodules.values()]
            setattr(self, fact, values[0] if all(value == values[0] for value in values) else None)

    def train_dataloader(self) -> MixedLoader:
        """Return a loader of the training batches of all datamodules in random order."""
        if self.trainer is None:
            self.start_anew()
        self.choose_seed()
        loaders = []
        for module in self._parts():
            module.place = self.place
            loaders.append(module.train_dataloader())
        self.cut_epoch(
            {
                'lengths': [len(loader) for loader in loaders],
                'batch_size': [loader.batch_size for loader in loaders],
                'processes': self.trainer.world_size if self.trainer else 1,
                'temperature': self.temperature,
                'limit': self.trainer.limit_train_batches if self.trainer else None,
            }
        )
        return MixedLoader(loaders, self.place, self.temperature)

    def whole(self, shape: dict[str, Any]) -> int:
        """Return the approximate number of batches of an epoch."""
        return sum(shape['lengths'])

    def val_dataloader(self) -> DataLoader[Sample]:
        """Return a loader of the validation batches of all datamodules, one after the other."""
        return self._one_after_the_other('val')

    def test_dataloader(self) -> DataLoader[Sample]:
        """Return a loader of the test batches of all datamodules, one after the other."""
        return self._one_after_the_other('test')

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch to a device, without its source, which the host reads."""
        if SOURCE not in batch:
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        images = {key: value for key, value in batch.items() if key != SOURCE}
        return {**super().transfer_batch_to_device(images, device, dataloader_idx), SOURCE: batch[SOURCE]}

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augment and normalise a batch with its datamodule, and rename its modalities."""
        if SOURCE not in batch:
            return batch
        batch = dict(batch)
        self.latest = list(self.datamodules)[int(batch.pop(SOURCE))]
        batch = self.datamodules[self.latest].on_after_batch_transfer(batch, dataloader_idx)
        keys = self._keys(self.latest)
        return {keys.get(key, key): value for key, value in batch.items()}

    def teardown(self, stage: str) -> None:
        """Tear down all datamodules."""
        for module in self.datamodules.values():
            module.teardown(stage)

    def plot(self, sample: Sample, *args: Any, **kwargs: Any) -> Figure:
        """Plot a sample of the latest batch with its datamodule."""
        latest = self.latest or next(iter(self.datamodules))
        keys = {new: old for old, new in self._keys(latest).items()}
        return self.datamodules[latest].plot({keys.get(k, k): v for k, v in sample.items()}, *args, **kwargs)

    def _keys(self, name: str) -> dict[str, str]:
        keys: dict[str, str] = {}
        for old, modality in self.datamodules[name].modalities.items():
            keys |= dict(zip(modality.keys, replace(modality, name=self._named(name, old)).keys, strict=True))
        return keys

    def _join(self, name: str, module: MultimodalDataModule) -> None:
        unknown = set(self.rename[name]) - set(module.modalities)
        if unknown:
            raise ValueError(f'rename of {name!r} has {sorted(unknown)}, expected some of {list(module.modalities)}')
        for old, modality in module.modalities.items():
            new = self._named(name, old)
            renamed = replace(modality, name=new)
            known = self.modalities.get(new, renamed)
            if not known.agrees(renamed):
                raise ValueError(
                    f'{new!r} of {name!r} is {renamed}, but another datamodule has {known}; expected the same, or '
                    f"rename={{{name!r}: {{{old!r}: '{new}_{name}'}}}}"
                )
            self.modalities[new] = known.joined(renamed)
            self.mean.setdefault(new, module.mean[old])
            self.std.setdefault(new, module.std[old])
        named = {old: self._named(name, old) for old in module.modalities}
        module.source, module.names_in_mixture = name, named
        numbers = {
            kind: {new: values[old] for old, new in named.items()}
            for kind, values in (('mean', module.mean), ('std', module.std))
        }
        self.sources[name] = {'data': module.origin, **numbers}

    def _named(self, name: str, modality: str) -> str:
        return self.rename[name].get(modality, modality)

    def _parts(self) -> Sequence[MultimodalDataModule]:
        for module in self.datamodules.values():
            module.trainer = self.trainer
        return list(self.datamodules.values())

    def _one_after_the_other(self, split: str) -> DataLoader[Sample]:
        """Return one loader of a split of all datamodules that have it, so that metrics have one name."""
        parts = [module for module in self._parts() if getattr(module, f'{split}_dataset') is not None]
        datasets = [getattr(module, f'{split}_dataset') for module in parts]
        batches = Batches(datasets, [module.collate_fn for module in parts], [module.batch_size for module in parts])
        workers = max((module.num_workers for module in parts), default=0)
        rank, ranks = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        sampler = DealtSampler(batches, 1, rank, ranks)
        return DataLoader(batches, batch_size=None, sampler=sampler, num_workers=workers, generator=torch.Generator())


class _Tagging:
    """Collate function that adds the index of the datamodule."""

    def __init__(self, collate_fn: Callable[[Any], Mapping[str, Any]], index: int) -> None:
        self.collate_fn, self.index = collate_fn, index

    def __call__(self, samples: Any) -> dict[str, Any]:
        return {**self.collate_fn(samples), SOURCE: self.index}
