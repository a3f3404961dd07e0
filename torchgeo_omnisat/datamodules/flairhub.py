# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Datamodule of FLAIR-HUB."""

from typing import Any

from torchgeo.datamodules import flair as published

from ..datasets import FLAIRHUBMultimodal
from ..datasets.flairhub import SPLIT_COLUMNS, TYPES, ignored, palette
from ..modality import Modality
from ..utils.checks import check_choice
from ..utils.signatures import with_arguments_of
from .base import NOT_PASSED, Missing, MultimodalDataModule
from .common.statistics import BandMoments

#: Mean and standard deviation of single images, as published in TorchGeo.
_PUBLISHED = {
    'aerial': (published.AERIAL_RGBI_MEAN, published.AERIAL_RGBI_STD),
    'spot': (published.SPOT_RGBI_MEAN, published.SPOT_RGBI_STD),
    'dem': (published.DEM_ELEV_MEAN, published.DEM_ELEV_STD),
    'aerial_rlt': (published.AERIAL_RLT_PAN_MEAN, published.AERIAL_RLT_PAN_STD),
}


class FLAIRHUBMultimodalDataModule(MultimodalDataModule):
    """Datamodule of FLAIR-HUB, with one of its official splits.

    Single images are normalised by the published statistics, and time series by those of the valid dates of up to
    1000 training patches.
    """

    patch_size = 10.24
    label_gsd = FLAIRHUBMultimodal.label_gsd

    @with_arguments_of(FLAIRHUBMultimodal, without=NOT_PASSED, missing=Missing)
    def __init__(
        self, root: str = 'data', *, split_column: str = 'split_1', dataset_type: str = 'land_cover', **kwargs: Any
    ) -> None:
        """Initialize without reading files.

        Args:
            root: Directory of the dataset (see
                :class:`~torchgeo_omnisat.datasets.FLAIRHUBMultimodal`).
            split_column: Official split, such as ``'split_1'``.
            dataset_type: ``'land_cover'``, ``'crop_type'``, ``'crop_type_2'`` or
                ``'crop_type_3'``.
            **kwargs: Arguments of :class:`.MultimodalDataModule`.
        """
        check_choice(split_column=(split_column, SPLIT_COLUMNS), dataset_type=(dataset_type, TYPES))
        super().__init__(FLAIRHUBMultimodal, root=root, split_column=split_column, dataset_type=dataset_type, **kwargs)
        self.add_defaults()
        self.labels = list(palette(dataset_type).labels)
        self.num_classes = len(self.labels)
        self.ignore_index = ignored(dataset_type)

    def official(self, dataset: Any, modality: Modality) -> BandMoments | None:
        """Return the published statistics of single images; time series have none."""
        if modality.name not in _PUBLISHED:
            return None
        mean, std = _PUBLISHED[modality.name]
        return mean.double(), std.double()
