# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Datamodule of FLAIR."""

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
    """Datamodule of FLAIR #1 and #2, with the official domains of FLAIR #2.

    Each stage requires only its splits, so training does not need the test domains.

    Aerial images are normalised by the published statistics of the training domains, and Sentinel-2 by those of
    the valid dates of up to 1000 training patches.
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
        """Initialize without reading files.

        Args:
            root: Directory of the dataset (see :class:`~torchgeo_omnisat.datasets.FLAIR`).
            modalities: ``'aerial'``, ``'s2'`` or both; None for all that *root* contains.
            bands: Bands to read by modality, such as ``{'aerial': ('R', 'G', 'B')}``.
            num_classes: 13, of which ``'other'``, the last, is ignored, or 19.
            cloud_probability: Probability in % from which a pixel counts as snow or cloud.
            cloud_cover: Fraction of such pixels from which a date is invalid.
            max_dates: Maximum number of evenly spaced dates of a time series; None for all.
            missing: How to handle missing images: ``'error'`` raises, ``'allow'`` treats the modality as not acquired.
            download: Whether to download the files of a stage.
            checksum: Whether to check the MD5 of archives.
            **kwargs: Arguments of :class:`.MultimodalDataModule`.

        Raises:
            ValueError: If *num_classes* is neither 13 nor 19.
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
                f'{dataset.path} contains no training split, so statistics of {list(names)} are computed from '
                f'{dataset.split!r}; a checkpoint uses those of its training',
                stacklevel=2,
            )
            return self.make_dataset(dataset.split, **self.whole_series(names))
