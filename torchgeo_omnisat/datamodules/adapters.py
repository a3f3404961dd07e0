# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""MappedDataModule: any TorchGeo NonGeoDataset from a YAML file, by a mapping of keys."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from torchgeo.datasets import NonGeoDataset

from ..datasets.adapters import MappedDataset
from ..datasets.arguments import class_at, name_classes
from ..modality import as_modalities
from .base import MultimodalDataModule


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
