# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Datamodule of tables of pixel time series."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from ..datasets.common.arguments import SPLITS
from ..datasets.tables import PixelTable
from .base import MultimodalDataModule
from .common.statistics import settings_group


class PixelTableDataModule(MultimodalDataModule):
    """Datamodule of a Parquet table of pixel time series, split by blocks on the ground.

    Samples are tiles of one pixel with a mask of one pixel, so a model of ``omnisat`` with pixel-wise encoders, such as
    ``presto``, ``tessera`` or ``ltae``, is trained on points and predicts maps of rasters with the same bands. Requires
    pyarrow: ``pip install torchgeo_omnisat[parquet]``.

    Statistics are computed from the training pixels.
    """

    published = False

    def __init__(
        self,
        root: str = 'data/points.parquet',
        *,
        series: dict[str, dict[str, Any]],
        label: str | None = None,
        labels: list[str] | None = None,
        classes: dict[Any, Any] | None = None,
        other: str | None = None,
        start: str | None = None,
        date: str | None = None,
        pixel: str | None = None,
        coordinates: tuple[str, str] | None = ('lon', 'lat'),
        nodata: float | list[float] | None = None,
        split_column: str | None = None,
        fractions: Sequence[float] = (0.6, 0.2, 0.2),
        block: float = 0.1,
        seed: int = 0,
        ignore_index: int = 255,
        batch_size: int = 64,
        **kwargs: Any,
    ) -> None:
        """Initialize without reading the table.

        Args:
            root: Parquet file.
            series: Bands and columns of each modality, see :class:`~torchgeo_omnisat.datasets.PixelTable`.
            label: Column of the class.
            labels: Class names; defaults to those of *classes*, or the sorted values of the column.
            classes: Class name by value of the column.
            other: Class of all values that are not in *classes*.
            start: Column with the first month of each pixel of a table with one row per pixel.
            date: Column with the date of each row of a table with one row per pixel and date.
            pixel: Column with the identifier of a pixel.
            coordinates: Columns of longitude and latitude in degrees.
            nodata: One or several values that are missing.
            split_column: Column with ``train``, ``val`` or ``test``, instead of blocks.
            fractions: Approximate fractions of the pixels in training, validation and test split.
            block: Side in degrees of the blocks that are assigned to a split as a whole.
            seed: Seed of the assignment.
            ignore_index: Class index of pixels without a label.
            batch_size: Pixels per batch.
            **kwargs: Arguments of :class:`.MultimodalDataModule`.
        """
        settings: dict[str, Any] = {
            'series': series,
            'label': label,
            'labels': tuple(labels or ()),
            'classes': classes,
            'other': other,
            'start': start,
            'date': date,
            'pixel': pixel,
            'coordinates': coordinates,
            'nodata': nodata,
            'split_column': split_column,
            'fractions': fractions,
            'block': block,
            'seed': seed,
            'ignore_index': ignore_index,
        }
        super().__init__(PixelTable, batch_size, root=root, **settings, **kwargs)
        self.ignore_index = ignore_index

    @cached_property
    def _every(self) -> PixelTable:
        return PixelTable(**self.kwargs)

    @property
    def labels(self) -> list[str]:  # type: ignore[override]
        """Names of the classes."""
        return list(self._every.labels or ())

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        """Number of classes."""
        return len(self.labels)

    @property
    def patch_size(self) -> float:  # type: ignore[override]
        """Side of a pixel in metres, which is a token."""
        return max(modality.gsd for modality in self._every.modalities.values())

    @property
    def label_gsd(self) -> float:  # type: ignore[override]
        """Side of a pixel in metres."""
        return self.patch_size

    def left_out(self) -> list[str]:
        """Return the splits with a fraction of 0."""
        fractions = () if self.kwargs['split_column'] else self.kwargs['fractions']
        return [split for split, fraction in zip(SPLITS, fractions, strict=False) if fraction == 0 and split != 'train']

    def groups(self, dataset: Any) -> list[str]:
        """Return one group for all pixels, named after the settings that its statistics depend on."""
        return [settings_group([str(dataset.file), self.kwargs])] * len(dataset)
