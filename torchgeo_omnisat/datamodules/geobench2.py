# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Datamodule of GEO-Bench-2."""

from typing import Any, Literal

from ..datasets import GeoBench2
from ..datasets.geobench2 import label_arguments
from ..utils.signatures import with_arguments_of
from .base import NOT_PASSED, MultimodalDataModule


class GeoBench2DataModule(MultimodalDataModule):
    """Datamodule of the datasets of GEO-Bench-2 in :class:`.GeoBench2`, with its splits.

    ``pastis`` is for ``omnisat``, ``treesatai`` for ``omnisat_classification`` and ``biomassters`` for
    ``omnisat_regression``. Each modality is normalised by the statistics of the valid dates of up to 1000 training
    samples, instead of the published ones of GEO-Bench-2.
    """

    @with_arguments_of(GeoBench2, without=NOT_PASSED)
    def __init__(
        self, root: str = 'data', name: Literal['pastis', 'treesatai', 'biomassters'] = 'pastis', **kwargs: Any
    ) -> None:
        """Initialize without reading files.

        Args:
            root: Directory of the dataset (see :class:`~torchgeo_omnisat.datasets.GeoBench2`).
            name: ``'pastis'``, ``'treesatai'`` or ``'biomassters'``.
            **kwargs: Arguments of :class:`.MultimodalDataModule`.
        """
        for attribute, value in label_arguments(name).items():
            setattr(self, attribute, value)
        super().__init__(GeoBench2, root=root, name=name, **kwargs)
        self.add_defaults()
        self.patch_size = 10.0 if name == 'treesatai' else 40.0
        if name != 'treesatai':
            self.label_gsd = 10.0
        self.background = 0 if name == 'pastis' else None
        if name == 'biomassters':
            self.continuous, self.target_unit = True, 't'

    @property
    def label_names(self) -> list[str]:
        """Names of the labels of whole samples."""
        return self.labels[1 : self.ignore_index] if self.ignore_index is not None else self.labels
