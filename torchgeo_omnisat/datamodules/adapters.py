# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Datamodules of other sources: datasets of TorchGeo by a mapping of keys, and shards."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchgeo.datasets import NonGeoDataset

from ..datasets.adapters import MappedDataset
from ..datasets.arguments import class_at, name_classes
from ..datasets.shards import ShardedDataset, read_description
from ..modality import as_modalities
from .base import MultimodalDataModule
from .sampling import Order


class MappedDataModule(MultimodalDataModule):
    """A dataset of TorchGeo's whose keys are put under ours, alone or in a :class:`.MixedDataModule`.

    Everything is in the arguments, which are plain, so that a YAML file can hold them:

    .. code-block:: yaml

        dataset: {class_path: torchgeo.datasets.BigEarthNet, init_args: {root: data/bigearthnet}}
        modalities:
        - {name: s1, bands: [VV, VH], gsd: 10, temporal: false}
        - {name: s2, bands: [B01, B02, B03, B04, B05, B06, B07, B08, B8A, B09, B11, B12], gsd: 10, temporal: false}
        keys:
          s1: {key: image, channels: [1, 0]}
          s2: {key: image, channels: [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]}
          label: label
        num_classes: 19
        patch_size: 40

    Each modality is normalised by the statistics of up to 1000 samples of the training split.
    """

    published = False

    def __init__(
        self,
        dataset: dict[str, Any],
        modalities: list[dict[str, Any]],
        keys: dict[str, Any],
        patch_size: float,
        labels: list[str] | None = None,
        num_classes: int | None = None,
        ignore_index: int | None = None,
        label_gsd: float | None = None,
        splits: dict[str, dict[str, Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        """Keep the arguments; nothing is read yet.

        Args:
            dataset: ``class_path`` and ``init_args`` of a ``NonGeoDataset``.
            modalities: What its images are: ``name``, ``bands``, ``gsd`` and ``temporal`` of each.
            keys: Where they are in a sample, and ``mask`` or ``label``:
                :class:`~torchgeo_omnisat.datasets.MappedDataset`.
            patch_size: Side of the ground that a token stands for, in metres.
            labels: Names of the classes.
            num_classes: Their number; as many as *labels* by default.
            ignore_index: The label that is neither learnt nor scored.
            label_gsd: GSD of the mask in metres; that of the first modality by default.
            splits: Arguments of the dataset for ``train``, ``val`` and ``test``, such as
                ``{'val': {'split': 'test'}}``; ``split`` with that name by default.
            **kwargs: Arguments of :class:`.MultimodalDataModule`.

        Raises:
            ValueError: If an argument is not as described.
        """
        super().__init__(MappedDataset, **kwargs)
        if self.kwargs:
            raise TypeError(f'got an unexpected keyword argument {next(iter(self.kwargs))!r}')
        if not isinstance(dataset, dict) or 'class_path' not in dataset:
            raise ValueError(f'dataset is {dataset!r}, expected class_path and init_args of a dataset')
        kind = class_at(dataset['class_path'], NonGeoDataset, 'dataset')
        self.made_of = kind, dict(dataset.get('init_args') or {})
        self.declared = as_modalities(modalities)
        self.keys = keys
        known = {name: {'split': name} for name in ('train', 'val', 'test')}
        if unknown := set(splits or {}) - set(known):
            raise ValueError(f'splits has {sorted(unknown)}, expected some of {list(known)}')
        self.splits = known | dict(splits or {})
        self.labels = name_classes(labels, num_classes, least=2 if {'mask', 'label'} & set(keys) else 0)
        self.num_classes = len(self.labels)
        self.ignore_index = ignore_index
        self.patch_size = patch_size
        if 'mask' in keys:
            self.label_gsd = next(iter(self.declared.values())).gsd if label_gsd is None else label_gsd

    def make_dataset(self, split: str, **changes: Any) -> MappedDataset:
        """Return the samples of ``'train'``, ``'val'`` or ``'test'`` with our keys.

        Args:
            split: Which split.
            **changes: Nothing: samples are always read with all their bands.
        """
        kind, arguments = self.made_of
        given = kind(**{**arguments, **self.splits[split]})
        root = str(getattr(given, 'root', arguments.get('root', '.')))
        return MappedDataset(given, self.declared, self.keys, self.num_classes, root, split)

    def whole_series(self, names: Sequence[str] | None = None) -> dict[str, Any]:
        """Nothing: samples have all their bands and dates."""
        return {}

    def groups(self, dataset: Any) -> list[str]:
        """One group, named after all that its statistics depend on."""
        kind, arguments = self.made_of
        told = [kind.__qualname__, arguments, self.splits['train'], self.keys]
        digest = hashlib.sha256(json.dumps(told, default=str, sort_keys=True).encode()).hexdigest()[:12]
        return [f'train {digest}'] * len(dataset)


#: What a task asks a datamodule for.
ATTRIBUTES = ('num_classes', 'labels', 'label_names', 'ignore_index', 'patch_size', 'label_gsd', 'synthetic')


def describe_samples(datamodule: MultimodalDataModule) -> dict[str, Any]:
    """Return the attributes that tasks read from a datamodule, in plain types; it must be set up to fit."""
    told = {name: getattr(datamodule, name, None) for name in ATTRIBUTES}
    modalities = [modality.as_dict() for modality in datamodule.modalities.values()]
    measured = {kind: {name: x.tolist() for name, x in getattr(datamodule, kind).items()} for kind in ('mean', 'std')}
    return {'made_from': datamodule.origin, 'modalities': modalities, **measured, **told}


@dataclass(frozen=True)
class ByShard:
    """Every sample once, such that a process reads shards of its own, few of them at a time.

    Shards are drawn into an order, and samples within each; every process gets a run of as
    many samples, and mixes those of *window* shards with each other. A shard at the end of a
    run is read by two processes. What is left over comes last.

    Args:
        lengths: Number of samples in each shard.
        batch_size: Samples in a batch of one process.
        processes: Number of processes.
        window: Shards whose samples are mixed.
    """

    lengths: tuple[int, ...]
    batch_size: int
    processes: int
    window: int = 4

    def __len__(self) -> int:
        """Return the number of samples."""
        return sum(self.lengths)

    def __call__(self, seed: int) -> Sequence[int]:
        """Return the indices in the order of *seed*: batch after batch of all ranks."""
        rng = np.random.default_rng(seed)
        starts = np.cumsum([0, *self.lengths])
        line = np.concatenate(
            [starts[i] + rng.permutation(self.lengths[i]) for i in rng.permutation(len(self.lengths))]
        )
        rounds = len(line) // (self.batch_size * self.processes)
        runs, rest = np.split(line, [rounds * self.batch_size * self.processes])
        size = max(1, self.window * round(len(self) / len(self.lengths)))
        runs = runs.reshape(self.processes, -1)
        for start in range(0, runs.shape[1], size):
            runs[:, start : start + size] = rng.permuted(runs[:, start : start + size], axis=1)
        dealt = runs.reshape(self.processes, rounds, self.batch_size).swapaxes(0, 1)
        return [int(index) for index in np.concatenate([dealt.ravel(), rest])]


class ShardedDataModule(MultimodalDataModule):
    """Samples that ``python -m torchgeo_omnisat shard`` wrote, from a folder or an object store.

    Classes, modalities, mean and standard deviation are those of the datamodule that they were written
    from. The processes of a training read disjoint samples, each from shards of its own;
    everything follows from the seed, and training resumes in the middle of an epoch.
    """

    max_counted = 0  # or one sample each of many shards would be fetched

    def __init__(self, root: str = 'data/shards', cache: str | None = None, **kwargs: Any) -> None:
        """Read what the shards hold, but no sample.

        Args:
            root: Folder, or an address that litdata knows, such as ``s3://bucket/folder``.
            cache: Folder for what is fetched from an address; one of litdata's by default.
            **kwargs: Arguments of :class:`.MultimodalDataModule`.

        Raises:
            ValueError: If there are no shards.
        """
        super().__init__(ShardedDataset, root=root, cache=cache, **kwargs)
        self.description = read_description(root)
        for name in ('num_classes', 'labels', 'ignore_index', 'patch_size', 'label_gsd'):
            if self.description[name] is not None:
                setattr(self, name, self.description[name])

    @property
    def label_names(self) -> list[str]:
        """Names of what ``label`` tells of, as they were."""
        names: list[str] = self.description['label_names']
        return names

    @property
    def origin(self) -> str:
        """The datamodule that the samples were written from."""
        return str(self.description['made_from'])

    @property
    def synthetic(self) -> bool:
        """Whether the samples are synthetic."""
        return bool(self.description['synthetic'])

    def make_dataset(self, split: str, **changes: Any) -> ShardedDataset:
        """Return the samples of ``'train'``, ``'val'`` or ``'test'``.

        Args:
            split: Which split.
            **changes: Nothing: samples are as they were written.
        """
        return ShardedDataset(split=split, **self.kwargs)

    def statistics(self, dataset: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Mean and standard deviation of every band, as they came with the shards."""
        mean, std = ({name: torch.tensor(x) for name, x in self.description[kind].items()} for kind in ('mean', 'std'))
        return mean, std

    def measure(self) -> Any:
        """Refuse to; statistics came with the shards.

        Raises:
            TypeError: Always.
        """
        raise TypeError('shards bring their statistics, expected the datamodule that they were written from')

    def order(self, dataset: Any, size: int) -> Order:
        """Return the order in which a dataset is trained on.

        Raises:
            ValueError: If *batches* is ``'region'``: shards store no positions.
        """
        if self.batches != 'anywhere':
            return super().order(dataset, size)
        return ByShard(dataset.lengths, self.batch_size, size // self.batch_size)
