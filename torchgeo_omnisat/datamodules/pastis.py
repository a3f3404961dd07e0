# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""PASTIS in its official folds."""

from typing import Any, Literal

import torch

from ..datasets import PASTISMultimodal
from ..datasets.pastis import CLASSES, FOLDS
from ..modality import Modality
from .base import MultimodalDataModule
from .statistics import BandMoments, read_statistics


class PASTISMultimodalDataModule(MultimodalDataModule):
    """PASTIS-R or PASTIS-HD, trained on three folds, validated on one, tested on one.

    Images are normalised by the mean of the training folds' entries in
    ``NORM_<MODALITY>_patch.json``. Where that file is not there (SPOT has none), each
    training fold is measured over all dates, and their mean is taken as well.
    """

    num_classes = len(CLASSES)
    labels = list(CLASSES)
    ignore_index = PASTISMultimodal.ignore_index
    patch_size = 40.0
    label_gsd = PASTISMultimodal.label_gsd
    max_measured = None
    dataset_class: type[PASTISMultimodal]

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
        """Keep the arguments; nothing is read yet.

        Args:
            root: Directory of the dataset (see
                :class:`~torchgeo_omnisat.datasets.PASTISMultimodal`).
            fold: Which official split, 1 to 5: training, validation and test on the folds
                123/4/5, 234/5/1, 345/1/2, 451/2/3 or 512/3/4.
            modalities: Names of the modalities; None for all that the root holds.
            bands: Bands to keep by modality, such as ``{'s1a': ('VV', 'VH')}``.
            batch_size: Samples in a batch.
            max_dates: How many days of a series to read, spread evenly; None for all.
            date_range: First and last day to read.
            missing: ``'allow'`` takes a missing file for a modality that was not acquired.
            download: Whether to download what is not there: PASTIS-HD if ``'spot'`` is among
                *modalities*, else PASTIS-R.
            checksum: Whether to check the archive's MD5, or files that are there already.
            **kwargs: Arguments of :class:`.MultimodalDataModule`.

        Raises:
            ValueError: If there is no such fold.
        """
        if fold not in FOLDS:
            raise ValueError(f'fold is {fold!r}, expected one of {list(FOLDS)}')
        super().__init__(
            PASTISMultimodal,
            batch_size=batch_size,
            root=root,
            modalities=modalities,
            bands=bands,
            max_dates=max_dates,
            date_range=date_range,
            missing=missing,
            download=download,
            checksum=checksum,
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
