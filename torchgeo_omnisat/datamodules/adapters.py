# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Datamodules of other sources: datasets of TorchGeo by a mapping of keys, and shards."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from pyproj import CRS
from torch import Tensor
from torchgeo.datasets import NonGeoDataset

from ..datasets.adapters import MappedDataset
from ..datasets.common.arguments import SPLITS, class_at, continuous_settings, name_classes
from ..datasets.shards import ShardedDataset, read_description
from ..modality import as_modalities
from ..utils.checks import EmptySplitError
from ..utils.plurals import counted
from .base import MultimodalDataModule
from .common.sampling import Order
from .common.statistics import settings_group


class MappedDataModule(MultimodalDataModule):
    """Datamodule of any TorchGeo ``NonGeoDataset``, by a mapping of keys.

    All arguments are plain values, so that a YAML file can contain them:

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

    Statistics are computed from up to 1000 samples of the training split.
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
        fractions: list[float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Initialize without reading files.

        Args:
            dataset: ``class_path`` and ``init_args`` of a ``NonGeoDataset``.
            modalities: ``name``, ``bands``, ``gsd`` and ``temporal`` of each modality.
            keys: Keys and channels of the modalities in a sample, and ``mask`` or ``label``, as in
                :class:`~torchgeo_omnisat.datasets.MappedDataset`. A mask with ``continuous: true`` has no classes;
                ``value_unit`` is the unit of its values.
            patch_size: Side of a token on the ground in metres.
            labels: Names of the classes.
            num_classes: Number of classes; defaults to that of *labels*.
            ignore_index: Label that is ignored in training and metrics.
            label_gsd: GSD of the mask in metres; defaults to that of the first modality.
            splits: Arguments of the dataset for ``train``, ``val`` and ``test``, such as
                ``{'val': {'split': 'test'}}``; defaults to ``split=<name>``.
            fractions: Fractions of the samples of the training split for training, validation and test, drawn at
                random with a fixed seed, for datasets with a single labelled split; None for the splits of the dataset.
            **kwargs: Arguments of :class:`.MultimodalDataModule`.
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
        known = {name: {'split': name} for name in SPLITS}
        if unknown := set(splits or {}) - set(known):
            raise ValueError(f'splits has {sorted(unknown)}, expected some of {list(known)}')
        self.splits = known | dict(splits or {})
        if fractions is not None and (len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6):
            raise ValueError(f'fractions is {fractions}, expected three that sum to 1, such as [0.8, 0.1, 0.1]')
        if fractions is not None and splits:
            raise ValueError(f'fractions is {fractions} and splits {splits}, expected one of both')
        self.fractions = fractions
        mask = keys.get('mask')
        self.continuous, self.target_unit = continuous_settings(mask if isinstance(mask, Mapping) else None)
        with_classes = bool({'mask', 'label'} & set(keys)) and not self.continuous
        self.labels = name_classes(labels, num_classes, least=2 if with_classes else 0)
        self.num_classes = len(self.labels)
        self.ignore_index = ignore_index
        self.patch_size = patch_size
        if 'mask' in keys:
            self.label_gsd = next(iter(self.declared.values())).gsd if label_gsd is None else label_gsd

    def make_dataset(self, split: str, **changes: Any) -> MappedDataset:
        """Return the dataset of a split."""
        kind, arguments = self.made_of
        given = kind(**{**arguments, **self.splits[split if self.fractions is None else 'train']})
        root = str(getattr(given, 'root', arguments.get('root', '.')))
        indices = None if self.fractions is None else self._drawn(len(given), split)
        return MappedDataset(given, self.declared, self.keys, self.num_classes, root, split, indices)

    def _drawn(self, count: int, split: str) -> list[int]:
        """Return the indices of the samples of a split, in ascending order.

        Raises:
            EmptySplitError: If there are none.
        """
        edges = np.rint(np.cumsum([0.0, *(self.fractions or ())]) * count).astype(int)
        place = SPLITS.index(split)
        drawn: list[int] = np.random.default_rng(0).permutation(count)[edges[place] : edges[place + 1]].tolist()
        if not drawn:
            raise EmptySplitError(f'fractions {self.fractions} of {counted(count, "sample")} leave none for {split!r}')
        return sorted(drawn)

    def whole_series(self, names: Sequence[str] | None = None) -> dict[str, Any]:
        """Return no arguments: samples always have all bands and dates."""
        return {}

    def groups(self, dataset: Any) -> list[str]:
        """Return one group for all samples, named after the settings that its statistics depend on."""
        kind, arguments = self.made_of
        settings = [kind.__qualname__, arguments, self.splits['train'], self.keys]
        settings += [] if self.fractions is None else [self.fractions]
        return [settings_group(settings)] * len(dataset)


#: Attributes of a datamodule that tasks read.
ATTRIBUTES = ('num_classes', 'labels', 'label_names', 'ignore_index', 'patch_size', 'label_gsd', 'synthetic')


def describe_samples(datamodule: MultimodalDataModule) -> dict[str, Any]:
    """Return the attributes that tasks read from a datamodule after ``setup('fit')``, in plain types."""
    attributes = {name: getattr(datamodule, name, None) for name in ATTRIBUTES}
    modalities = [modality.as_dict() for modality in datamodule.modalities.values()]
    measured = {kind: {name: x.tolist() for name, x in getattr(datamodule, kind).items()} for kind in ('mean', 'std')}
    crs = getattr(datamodule.train_dataset, 'crs', None)
    place = None if crs is None else CRS.from_user_input(crs).to_wkt()
    target = None
    if datamodule.target_moments is not None:
        target = {'mean': datamodule.target_mean, 'std': datamodule.target_std, 'unit': datamodule.target_unit}
    return {
        'made_from': datamodule.origin,
        'target': target,
        'modalities': modalities,
        'crs': place,
        **measured,
        **attributes,
    }


@dataclass(frozen=True)
class ByShard:
    """Random order of all samples in which each rank reads different shards, few of them at a time.

    Shards and the samples of each shard (*lengths*) are shuffled. Each rank gets a contiguous part, in which the
    samples of *window* shards are shuffled together. A shard at the edge of a part is read by two ranks. Remaining
    samples come last.
    """

    lengths: tuple[int, ...]
    batch_size: int
    processes: int
    window: int = 4

    def __len__(self) -> int:
        return sum(self.lengths)

    def __call__(self, seed: int) -> Sequence[int]:
        """Return the indices of the joint batches of all ranks in the order of *seed*."""
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


def _check_description(description: Mapping[str, Any], root: str) -> None:
    """Check the attributes of the original datamodule, from which models are built."""

    def refuse(key: str, expected: str) -> None:
        value = repr(description.get(key))
        raise ValueError(f'{key} in {root} is {value[:200]}, expected {expected}, as shard wrote')

    if missing := [key for key in (*ATTRIBUTES, 'mean', 'std', 'made_from') if key not in description]:
        refuse(missing[0], 'a value')
    target = description.get('target')  # shards of older versions have none
    if target is not None:
        numbers = [target.get(key) for key in ('mean', 'std')] if isinstance(target, dict) else []
        finite = [x for x in numbers if isinstance(x, int | float) and math.isfinite(x)]
        if len(finite) != 2 or finite[1] < 0 or not isinstance(target.get('unit'), str | None):
            refuse('target', 'null, or mean, std and unit of continuous labels')
    for key, least in (('num_classes', 1 if target is None else 0), ('ignore_index', -(2**31))):
        value = description[key]
        if value is not None and not (type(value) is int and least <= value <= 2**31):
            refuse(key, 'an integer or null')
    for key in ('patch_size', 'label_gsd'):
        value = description[key]
        if value is not None and not (type(value) in (int, float) and 0 < value < math.inf):
            refuse(key, 'a length in metres')
    for key in ('mean', 'std'):
        bands = {modality['name']: len(modality['bands']) for modality in description['modalities']}
        values = description[key]
        if not isinstance(values, dict) or not values.keys() <= bands.keys():
            refuse(key, f'numbers of {list(bands)}')
        for name, numbers in values.items():
            fits = isinstance(numbers, list) and len(numbers) == bands[name]
            if not fits or not all(type(x) in (int, float) and math.isfinite(x) for x in numbers):
                refuse(key, f'{counted(bands[name], "finite number")} of {name!r}')
            if key == 'std' and min(numbers) < 0:
                refuse(key, 'no negative number')


class ShardedDataModule(MultimodalDataModule):
    """Datamodule of shards written by ``python -m torchgeo_omnisat shard``, in a directory or an object store.

    Classes, modalities, mean and standard deviation are those of the original datamodule. In distributed training,
    each rank reads different shards. The order depends only on the seed, and training can resume in the middle of
    an epoch.
    """

    max_counted = 0  # counting labels would download one sample of each of many shards

    def __init__(
        self, root: str = 'data/shards', cache: str | None = None, allow_outside: bool = False, **kwargs: Any
    ) -> None:
        """Read the description of the shards, but no sample.

        Args:
            root: Directory, or a URL that litdata supports, such as ``s3://bucket/folder``.
            cache: Directory for downloaded shards; the default of litdata if None.
            allow_outside: Whether symbolic links in *root* may lead out of it.
            **kwargs: Arguments of :class:`.MultimodalDataModule`.
        """
        super().__init__(ShardedDataset, root=root, cache=cache, allow_outside=allow_outside, **kwargs)
        self.description = read_description(root)
        _check_description(self.description, root)
        self.continuous = self.description.get('target') is not None
        self.target_unit = self.description['target']['unit'] if self.continuous else None
        for name in ('num_classes', 'labels', 'ignore_index', 'patch_size', 'label_gsd'):
            if self.description[name] is not None:
                setattr(self, name, self.description[name])

    @property
    def label_names(self) -> list[str]:
        """Names of the classes of ``label``."""
        names: list[str] = self.description['label_names']
        return names

    @cached_property
    def target_moments(self) -> tuple[float, float] | None:
        """Mean and standard deviation of continuous labels, from the description of the shards; None for classes."""
        target = self.description.get('target')
        return None if target is None else (float(target['mean']), float(target['std']))

    @property
    def origin(self) -> str:
        """Name of the original datamodule."""
        return str(self.description['made_from'])

    @property
    def synthetic(self) -> bool:
        """Whether the samples are synthetic."""
        return bool(self.description['synthetic'])

    def make_dataset(self, split: str, **changes: Any) -> ShardedDataset:
        """Return the dataset of a split."""
        return ShardedDataset(split=split, **self.kwargs)

    def statistics(self, dataset: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return mean and standard deviation of each band, from the description of the shards."""
        mean, std = ({name: torch.tensor(x) for name, x in self.description[kind].items()} for kind in ('mean', 'std'))
        return mean, std

    def measure(self) -> Any:
        """Raise an error, because shards contain their statistics."""
        raise TypeError('shards contain their statistics, expected the original datamodule')

    def order(self, dataset: Any, size: int) -> Order:
        """Return the order of the training samples.

        Raises:
            ValueError: If *batches* is ``'region'``, because shards contain no positions.
        """
        if self.batches != 'anywhere':
            return super().order(dataset, size)
        return ByShard(dataset.lengths, self.batch_size, size // self.batch_size)
