# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""TreeSatAI Time-Series in its published lists."""

from typing import Any, Literal

from ..datasets import TreeSatAITimeSeries
from ..datasets.treesatai import GENERA
from .base import MultimodalDataModule


class TreeSatAITimeSeriesDataModule(MultimodalDataModule):
    """TreeSatAI Time-Series, trained, validated and tested on its published lists.

    Samples have a ``label`` of 15 genera and no mask: train
    :class:`~torchgeo_omnisat.tasks.OmniSatClassification` on them. Without a list for
    validation a tenth of the training list is held out.

    Each modality is normalised by the statistics of the valid dates of up to 1000 plots of
    the training list.
    """

    num_classes = len(GENERA)
    labels = list(GENERA)
    patch_size = 10.0

    def __init__(
        self,
        root: str = 'data',
        modalities: tuple[str, ...] | None = None,
        bands: dict[str, tuple[str, ...]] | None = None,
        batch_size: int = 8,
        max_dates: int | None = None,
        date_range: tuple[str, str] | None = None,
        cloud_probability: float = 60,
        cloud_cover: float = 0.5,
        missing: Literal['error', 'allow'] = 'error',
        download: bool = False,
        checksum: bool = False,
        **kwargs: Any,
    ) -> None:
        """Keep the arguments; nothing is read yet.

        Args:
            root: Directory of the dataset (see
                :class:`~torchgeo_omnisat.datasets.TreeSatAITimeSeries`).
            modalities: Names of the modalities; None for all that the root holds.
            bands: Bands to keep by modality, such as ``{'s1a': ('VV',)}``.
            batch_size: Samples in a batch.
            max_dates: How many days of a series to read, spread evenly; None for all.
            date_range: First and last day to read.
            cloud_probability: From which probability on, in %, a pixel is snow or cloud.
            cloud_cover: Which share of such pixels makes a date not valid.
            missing: ``'allow'`` takes a missing file for a modality that was not acquired.
            download: Whether to download the archives that are not there.
            checksum: Whether to check the SHA-256 of archives.
            **kwargs: Arguments of :class:`.MultimodalDataModule`.
        """
        super().__init__(
            TreeSatAITimeSeries,
            batch_size=batch_size,
            root=root,
            modalities=modalities,
            bands=bands,
            max_dates=max_dates,
            date_range=date_range,
            cloud_probability=cloud_probability,
            cloud_cover=cloud_cover,
            missing=missing,
            download=download,
            checksum=checksum,
            **kwargs,
        )
