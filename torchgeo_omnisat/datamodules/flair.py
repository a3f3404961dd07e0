# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""FLAIR in its official domains."""

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torchgeo.datasets import DatasetNotFoundError

from ..datasets import FLAIR
from ..datasets.flair import AERIAL_MEAN, AERIAL_STD, flair_class_names
from ..modality import Modality
from .base import MultimodalDataModule
from .statistics import BandMoments


class FLAIRDataModule(MultimodalDataModule):
    """FLAIR #1 and #2, trained, validated and tested on FLAIR #2's domains.

    A split is asked for when a stage needs it, so a root without the test domains trains.

    Aerial images are normalised by the published statistics of the training domains, Sentinel-2
    by the statistics of the valid dates of up to 1000 patches of the training split.
    """

    patch_size = 10.24
    label_gsd = FLAIR.label_gsd

    def __init__(
        self,
        root: str = 'data',
        modalities: tuple[str, ...] | None = None,
        bands: dict[str, tuple[str, ...]] | None = None,
        num_classes: int = 13,
        cloud_probability: float = 60,
        cloud_cover: float = 0.5,
        max_dates: int | None = None,
        missing: Literal['error', 'allow'] = 'error',
        download: bool = False,
        checksum: bool = False,
        **kwargs: Any,
    ) -> None:
        """Keep the arguments; nothing is read yet.

        Args:
            root: Directory of the dataset (see :class:`~torchgeo_omnisat.datasets.FLAIR`).
            modalities: ``'aerial'``, ``'s2'`` or both; None for all that the root holds.
            bands: Bands to keep by modality, such as ``{'aerial': ('R', 'G', 'B')}``.
            num_classes: 13, of which ``'other'``, the last, is ignored, or 19.
            cloud_probability: From which probability on, in %, a pixel is snow or cloud.
            cloud_cover: Which share of such pixels makes a date not valid.
            max_dates: How many days of a series to read, spread evenly; None for all.
            missing: ``'allow'`` takes a missing image for a modality that was not acquired.
            download: Whether to download what a stage needs.
            checksum: Whether to check the MD5 of archives.
            **kwargs: Arguments of :class:`.MultimodalDataModule`.

        Raises:
            ValueError: If there is no such number of classes.
        """
        if num_classes not in (13, 19):
            raise ValueError(f'num_classes is {num_classes!r}, expected one of [13, 19]')
        super().__init__(
            FLAIR,
            root=root,
            modalities=modalities,
            bands=bands,
            num_classes=num_classes,
            cloud_probability=cloud_probability,
            cloud_cover=cloud_cover,
            max_dates=max_dates,
            missing=missing,
            download=download,
            checksum=checksum,
            **kwargs,
        )
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
                f'{dataset.path} holds no training split, so {list(names)} is measured on {dataset.split!r}; '
                'a checkpoint brings the statistics that it was trained with',
                stacklevel=2,
            )
            return self.make_dataset(dataset.split, **self.whole_series(names))
