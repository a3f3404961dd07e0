# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Datamodule of TreeSatAI Time-Series."""

from typing import Any, Literal

from ..datasets import TreeSatAITimeSeries
from ..datasets.treesatai import GENERA
from .base import MultimodalDataModule


class TreeSatAITimeSeriesDataModule(MultimodalDataModule):
    """Datamodule of TreeSatAI Time-Series, with its published splits.

    Samples have a ``label`` of 15 genera and no mask, for :class:`~torchgeo_omnisat.tasks.OmniSatClassification`.
    Without a list for validation, 10 % of the training list are held out.

    Each modality is normalised by the statistics of the valid dates of up to 1000 training plots.
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
        """Initialize without reading files.

        Args:
            root: Directory of the dataset (see
                :class:`~torchgeo_omnisat.datasets.TreeSatAITimeSeries`).
            modalities: Names of the modalities; None for all that *root* contains.
            bands: Bands to read by modality, such as ``{'s1a': ('VV',)}``.
            batch_size: Samples per batch.
            max_dates: Maximum number of evenly spaced dates of a time series; None for all.
            date_range: First and last day (YYYY-MM-DD), inclusive; None for all.
            cloud_probability: Probability in % from which a pixel counts as snow or cloud.
            cloud_cover: Fraction of such pixels from which a date is invalid.
            missing: How to handle missing files: ``'error'`` raises, ``'allow'`` treats the modality as not acquired.
            download: Whether to download missing archives.
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
