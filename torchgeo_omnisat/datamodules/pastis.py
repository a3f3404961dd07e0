# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Datamodule of PASTIS with its official folds."""

from typing import Any, Literal

import torch

from ..datasets import PASTISMultimodal
from ..datasets.pastis import CLASSES, FOLDS
from ..modality import Modality
from .base import MultimodalDataModule
from .statistics import BandMoments, read_statistics


class FoldsDataModule(MultimodalDataModule):
    """Datamodule base class for the five official folds of PASTIS: three to train, one to validate, one to test."""

    num_classes = len(CLASSES)
    labels = list(CLASSES)
    ignore_index = PASTISMultimodal.ignore_index
    patch_size = 40.0
    label_gsd = PASTISMultimodal.label_gsd
    max_measured = None

    def __init__(
        self,
        dataset_class: type[PASTISMultimodal],
        root: str = 'data',
        fold: int = 1,
        modalities: tuple[str, ...] | None = None,
        bands: dict[str, tuple[str, ...]] | None = None,
        batch_size: int = 1,
        max_dates: int | None = None,
        date_range: tuple[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Initialize without reading files.

        Args:
            dataset_class: Dataset with folds in the layout of PASTIS.
            root: Directory of the dataset.
            fold: Official split, 1 to 5: training, validation and test on the folds 123/4/5, 234/5/1, 345/1/2,
                451/2/3 or 512/3/4.
            modalities: Names of the modalities; None for all that *root* contains.
            bands: Bands to read by modality, such as ``{'s1a': ('VV', 'VH')}``.
            batch_size: Samples per batch.
            max_dates: Maximum number of evenly spaced dates of a time series; None for all.
            date_range: First and last day (YYYY-MM-DD), inclusive; None for all.
            **kwargs: Other arguments of the dataset and of :class:`.MultimodalDataModule`.

        Raises:
            ValueError: If *fold* is not 1 to 5.
        """
        if fold not in FOLDS:
            raise ValueError(f'fold is {fold!r}, expected one of {list(FOLDS)}')
        super().__init__(
            dataset_class,
            batch_size=batch_size,
            root=root,
            modalities=modalities,
            bands=bands,
            max_dates=max_dates,
            date_range=date_range,
            **kwargs,
        )
        self.folds = dict(zip(('train', 'val', 'test'), FOLDS[fold], strict=True))

    @property
    def label_names(self) -> list[str]:
        """Names of the 18 crops: neither background nor void is among them."""
        return self.labels[1 : self.ignore_index]

    def selection(self, split: str) -> dict[str, Any]:
        """Return the folds of ``'train'``, ``'val'`` or ``'test'``."""
        return {'folds': self.folds[split]}

    def official(self, dataset: PASTISMultimodal, modality: Modality) -> BandMoments | None:
        """Return the mean over the training folds in ``NORM_<MODALITY>_patch.json``; SPOT has no such file."""
        path = dataset.path / f'NORM_{modality.name.upper()}_patch.json'
        if not path.exists():
            return None
        folds = [read_statistics(path, f'Fold_{fold}', len(modality.bands)) for fold in self.folds['train']]
        mean, std = torch.stack([torch.stack(fold) for fold in folds]).mean(0)
        return mean, std

    def groups(self, dataset: PASTISMultimodal) -> list[str]:
        """Return the fold of each patch, so that statistics can be reused for other splits."""
        return [f'Fold_{patch.fold}' for patch in dataset.patches]


class PASTISMultimodalDataModule(FoldsDataModule):
    """Datamodule of PASTIS-R and PASTIS-HD in the official folds.

    Images are normalised by the mean of the training folds' entries in ``NORM_<MODALITY>_patch.json``. Where this
    file does not exist (SPOT has none), statistics are computed for each training fold over all dates and averaged.
    """

    def __init__(
        self,
        root: str = 'data',
        fold: int = 1,
        modalities: tuple[str, ...] | None = None,
        bands: dict[str, tuple[str, ...]] | None = None,
        batch_size: int = 1,
        max_dates: int | None = None,
        date_range: tuple[str, str] | None = None,
        missing: Literal['error', 'allow'] = 'error',
        download: bool = False,
        checksum: bool = False,
        **kwargs: Any,
    ) -> None:
        """Initialize without reading files.

        Args:
            root: Directory of the dataset (see :class:`~torchgeo_omnisat.datasets.PASTISMultimodal`).
            fold: Official split, 1 to 5: training, validation and test on the folds 123/4/5, 234/5/1, 345/1/2,
                451/2/3 or 512/3/4.
            modalities: Names of the modalities; None for all that *root* contains.
            bands: Bands to read by modality, such as ``{'s1a': ('VV', 'VH')}``.
            batch_size: Samples per batch.
            max_dates: Maximum number of evenly spaced dates of a time series; None for all.
            date_range: First and last day (YYYY-MM-DD), inclusive; None for all.
            missing: How to handle missing files: ``'error'`` raises, ``'allow'`` treats the modality as not acquired.
            download: Whether to download missing files: PASTIS-HD if ``'spot'`` is among *modalities*, else PASTIS-R.
            checksum: Whether to check the MD5 of the archive, or of existing files.
            **kwargs: Arguments of :class:`.MultimodalDataModule`.

        Raises:
            ValueError: If *fold* is not 1 to 5.
        """
        super().__init__(
            PASTISMultimodal,
            root,
            fold,
            modalities,
            bands,
            batch_size,
            max_dates,
            date_range,
            missing=missing,
            download=download,
            checksum=checksum,
            **kwargs,
        )
