# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Datamodule of TreeSatAI Time-Series."""

from typing import Any

from ..datasets import TreeSatAITimeSeries
from ..datasets.treesatai import GENERA
from ..utils.signatures import with_arguments_of
from .base import NOT_PASSED, Missing, MultimodalDataModule


class TreeSatAITimeSeriesDataModule(MultimodalDataModule):
    """Datamodule of TreeSatAI Time-Series, with its published splits.

    Samples have a ``label`` of 15 genera and no mask, for :class:`~torchgeo_omnisat.tasks.OmniSatClassification`.
    Without a list for validation, 10 % of the training list are held out.

    Each modality is normalised by the statistics of the valid dates of up to 1000 training plots.
    """

    num_classes = len(GENERA)
    labels = list(GENERA)
    patch_size = 10.0

    @with_arguments_of(TreeSatAITimeSeries, without=NOT_PASSED, missing=Missing)
    def __init__(self, root: str = 'data', *, batch_size: int = 8, **kwargs: Any) -> None:
        """Initialize without reading files.

        Args:
            root: Directory of the dataset (see
                :class:`~torchgeo_omnisat.datasets.TreeSatAITimeSeries`).
            batch_size: Samples per batch.
            **kwargs: Arguments of :class:`.MultimodalDataModule`.
        """
        super().__init__(TreeSatAITimeSeries, batch_size=batch_size, root=root, **kwargs)
        self.add_defaults()
