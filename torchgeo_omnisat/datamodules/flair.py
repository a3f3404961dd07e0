# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Datamodule of FLAIR."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torchgeo.datasets import DatasetNotFoundError

from ..datasets import FLAIR
from ..datasets.flair import AERIAL_MEAN, AERIAL_STD, flair_class_names
from ..modality import Modality
from ..utils.checks import check_choice
from ..utils.signatures import with_arguments_of
from .base import NOT_PASSED, Missing, MultimodalDataModule
from .common.statistics import BandMoments


class FLAIRDataModule(MultimodalDataModule):
    """Datamodule of FLAIR #1 and #2, with the official domains of FLAIR #2.

    Each stage requires only its splits, so training does not need the test domains.

    Aerial images are normalised by the published statistics of the training domains, and Sentinel-2 by those of
    the valid dates of up to 1000 training patches.
    """

    patch_size = 10.24
    label_gsd = FLAIR.label_gsd

    @with_arguments_of(FLAIR, without=NOT_PASSED, missing=Missing)
    def __init__(self, root: str = 'data', *, num_classes: int = 13, **kwargs: Any) -> None:
        """Initialize without reading files.

        Args:
            root: Directory of the dataset (see :class:`~torchgeo_omnisat.datasets.FLAIR`).
            num_classes: 13, of which ``'other'``, the last, is ignored, or 19.
            **kwargs: Arguments of :class:`.MultimodalDataModule`.
        """
        check_choice(num_classes=(num_classes, (13, 19)))
        super().__init__(FLAIR, root=root, num_classes=num_classes, **kwargs)
        self.add_defaults()
        self.num_classes = num_classes
        self.labels = list(flair_class_names(num_classes))
        self.ignore_index = 12 if num_classes == 13 else None

    def official(self, dataset: FLAIR, modality: Modality) -> BandMoments | None:
        """Return the published statistics of the aerial bands; Sentinel-2 has none."""
        if modality.name != 'aerial':
            return None
        return torch.tensor(AERIAL_MEAN, dtype=torch.float64), torch.tensor(AERIAL_STD, dtype=torch.float64)

    def measured_dataset(self, dataset: FLAIR, names: Sequence[str]) -> FLAIR:
        """Return the training split, or the split of *dataset* if it does not exist."""
        try:
            return super().measured_dataset(dataset, names)
        except DatasetNotFoundError:
            warnings.warn(
                f'{dataset.path} contains no training split, so statistics of {list(names)} are computed from '
                f'{dataset.split!r}; a checkpoint uses those of its training',
                stacklevel=2,
            )
            return self.make_dataset(dataset.split, **self.whole_series(names))
