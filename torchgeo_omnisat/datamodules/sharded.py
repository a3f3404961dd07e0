# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""ShardedDataModule: any of our datamodules' samples from shards, for many nodes and object stores."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..datasets.shards import ShardedDataset, read_description
from .base import MultimodalDataModule
from .sampling import Order

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
