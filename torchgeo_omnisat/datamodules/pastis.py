# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Datamodule of PASTIS with its official folds."""

from pathlib import Path
from typing import Any

import torch

from ..datasets import PASTISMultimodal
from ..datasets.common.arguments import SPLITS
from ..datasets.pastis import CLASSES, FOLDS
from ..modality import Modality
from ..utils.checks import check_choice
from ..utils.signatures import with_arguments_of
from .base import NOT_PASSED, Missing, MultimodalDataModule
from .common.statistics import BandMoments, read_statistics


class FoldsDataModule(MultimodalDataModule):
    """Datamodule base class for the five official folds of PASTIS: three to train, one to validate, one to test."""

    num_classes = len(CLASSES)
    labels = list(CLASSES)
    ignore_index = PASTISMultimodal.ignore_index
    patch_size = 40.0
    label_gsd = PASTISMultimodal.label_gsd
    background = 0
    max_measured = None

    @with_arguments_of(PASTISMultimodal, without=(*NOT_PASSED, 'missing', 'download', 'checksum'))
    def __init__(
        self,
        dataset_class: type[PASTISMultimodal],
        root: str = 'data',
        fold: int = 1,
        *,
        batch_size: int = 1,
        **kwargs: Any,
    ) -> None:
        """Initialize without reading files.

        Args:
            dataset_class: Dataset with folds in the layout of PASTIS.
            root: Directory of the dataset.
            fold: Official split, 1 to 5: training, validation and test on the folds 123/4/5, 234/5/1, 345/1/2,
                451/2/3 or 512/3/4.
            batch_size: Samples per batch.
            **kwargs: Other arguments of the dataset and of :class:`.MultimodalDataModule`.
        """
        check_choice(fold=(fold, tuple(FOLDS)))
        super().__init__(dataset_class, batch_size=batch_size, root=root, **kwargs)
        self.add_defaults()
        self.folds = dict(zip(SPLITS, FOLDS[fold], strict=True))

    @property
    def label_names(self) -> list[str]:
        """Names of the 18 crops: neither background nor void is among them."""
        return self.labels[1 : self.ignore_index]

    def selection(self, split: str) -> dict[str, Any]:
        """Return the folds of ``'train'``, ``'val'`` or ``'test'``, or its part of *splits*."""
        return {'folds': self.folds[split]} if self.kwargs.get('splits') is None else {'split': split}

    def official(self, dataset: PASTISMultimodal, modality: Modality) -> BandMoments | None:
        """Return the mean over the training folds in ``NORM_<MODALITY>_patch.json``; SPOT has no such file."""
        path = dataset.path / f'NORM_{modality.name.upper()}_patch.json'
        if dataset.split is not None or not path.exists():
            return None
        folds = [read_statistics(path, f'Fold_{fold}', len(modality.bands)) for fold in self.folds['train']]
        mean, std = torch.stack([torch.stack(fold) for fold in folds]).mean(0)
        return mean, std

    def groups(self, dataset: PASTISMultimodal) -> list[str]:
        """Return the fold of each patch, so that statistics can be reused, or its split of *splits*."""
        if dataset.split is not None:
            return [f'{Path(self.kwargs["splits"]).stem}_{dataset.split}'] * len(dataset)
        return [f'Fold_{patch.fold}' for patch in dataset.patches]


class PASTISMultimodalDataModule(FoldsDataModule):
    """Datamodule of PASTIS-R and PASTIS-HD in the official folds.

    Images are normalised by the mean of the training folds' entries in ``NORM_<MODALITY>_patch.json``. Where this
    file does not exist (SPOT has none), statistics are computed for each training fold over all dates and averaged.
    With *splits*, they are computed over the training tiles of these.
    """

    @with_arguments_of(PASTISMultimodal, without=NOT_PASSED, missing=Missing)
    def __init__(self, root: str = 'data', fold: int = 1, **kwargs: Any) -> None:
        """Initialize without reading files.

        Args:
            root: Directory of the dataset (see :class:`~torchgeo_omnisat.datasets.PASTISMultimodal`).
            fold: Official split, 1 to 5: training, validation and test on the folds 123/4/5, 234/5/1, 345/1/2,
                451/2/3 or 512/3/4. It is not used with *splits*.
            **kwargs: Arguments of :class:`.MultimodalDataModule`.
        """
        super().__init__(PASTISMultimodal, root, fold, **kwargs)
