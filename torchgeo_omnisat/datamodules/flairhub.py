# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""FLAIR-HUB in its official splits."""

from typing import Any, Literal

from torchgeo.datamodules import flair as published

from ..datasets import FLAIRHUBMultimodal
from ..datasets.arguments import check_choice
from ..datasets.flairhub import SPLITS, TYPES, ignored, palette
from ..modality import Modality
from .base import MultimodalDataModule
from .statistics import BandMoments

#: What TorchGeo knows of the mean and standard deviation of single images.
_PUBLISHED = {
    'aerial': (published.AERIAL_RGBI_MEAN, published.AERIAL_RGBI_STD),
    'spot': (published.SPOT_RGBI_MEAN, published.SPOT_RGBI_STD),
    'dem': (published.DEM_ELEV_MEAN, published.DEM_ELEV_STD),
    'aerial_rlt': (published.AERIAL_RLT_PAN_MEAN, published.AERIAL_RLT_PAN_STD),
}


class FLAIRHUBMultimodalDataModule(MultimodalDataModule):
    """FLAIR-HUB, trained, validated and tested on one of its official splits.

    Single images are normalised by the published statistics, series by the statistics of the
    valid dates of up to 1000 patches of the training split.
    """

    patch_size = 10.24
    label_gsd = FLAIRHUBMultimodal.label_gsd

    def __init__(
        self,
        root: str = 'data',
        modalities: tuple[str, ...] | None = None,
        bands: dict[str, tuple[str, ...]] | None = None,
        domains: tuple[str, ...] | None = None,
        split_column: str = 'split_1',
        dataset_type: str = 'land_cover',
        decibels: bool = False,
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
            root: Directory of the dataset (see
                :class:`~torchgeo_omnisat.datasets.FLAIRHUBMultimodal`).
            modalities: Names of the modalities; None for all that the root holds.
            bands: Bands to keep by modality, such as ``{'aerial': ('R', 'G', 'B')}``.
            domains: Domains and years such as ``('D004-2021',)``; None for those that are there.
            split_column: Which of the official splits to follow, such as ``'split_1'``.
            dataset_type: ``'land_cover'``, ``'crop_type'``, ``'crop_type_2'`` or
                ``'crop_type_3'``.
            decibels: Whether Sentinel-1 is stored in dB and not as power.
            cloud_probability: From which probability on, in %, a pixel is snow or cloud.
            cloud_cover: Which share of such pixels makes a date not valid.
            max_dates: How many days of a series to read, spread evenly; None for all.
            missing: ``'allow'`` takes a missing image for a modality that was not acquired.
            download: Whether to download the archives that are not there.
            checksum: Whether to check the SHA-256 of archives.
            **kwargs: Arguments of :class:`.MultimodalDataModule`.

        Raises:
            ValueError: If there is no such split or type of labels.
        """
        check_choice(split_column=(split_column, SPLITS), dataset_type=(dataset_type, TYPES))
        super().__init__(
            FLAIRHUBMultimodal,
            root=root,
            modalities=modalities,
            bands=bands,
            domains=domains,
            split_column=split_column,
            dataset_type=dataset_type,
            decibels=decibels,
            cloud_probability=cloud_probability,
            cloud_cover=cloud_cover,
            max_dates=max_dates,
            missing=missing,
            download=download,
            checksum=checksum,
            **kwargs,
        )
        self.labels = list(palette(dataset_type).labels)
        self.num_classes = len(self.labels)
        self.ignore_index = ignored(dataset_type)

    def official(self, dataset: Any, modality: Modality) -> BandMoments | None:
        """Return the published statistics of single images; time series have none."""
        if modality.name not in _PUBLISHED:
            return None
        mean, std = _PUBLISHED[modality.name]
        return mean.double(), std.double()
