# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Datamodule of the synthetic landscapes."""

from typing import Any, ClassVar

from ..datasets import SyntheticLandscapes
from .pastis import FoldsDataModule


class SyntheticLandscapesDataModule(FoldsDataModule):
    """Datamodule of the synthetic landscapes, with three folds to train, one to validate and one to test.

    Rank zero writes the data in ``prepare_data``. They are small enough to train on in minutes.
    """

    #: Whether the data are synthetic, so that results are reported as such.
    synthetic: ClassVar[bool] = True

    def __init__(
        self,
        root: str = 'data/synthetic',
        fold: int = 1,
        num_tiles: int = 160,
        seed: int = 0,
        size: int = 32,
        dates: tuple[int, int] = (8, 14),
        batch_size: int = 8,
        instances: bool = False,
        version: int = 1,
        regions: int = 0,
        **kwargs: Any,
    ) -> None:
        """Initialize without reading or writing files.

        Args:
            root: Directory of the data, which is written if it does not exist or is empty.
            fold: Split, 1 to 5, as the official ones of PASTIS.
            num_tiles: Number of tiles, assigned to the five folds in turn.
            seed: Random seed.
            size: Side of a tile in pixels of 10 m, a multiple of 4.
            dates: Minimum and maximum number of dates of a time series.
            batch_size: Samples per batch.
            instances: Whether samples have ``instances``, the parcel of each pixel.
            version: Version of the landscapes, 1 or 2; see :class:`.SyntheticLandscapes`.
            regions: Number of regions with their own crop calendars, a multiple of five; 0 for none.
            **kwargs: *modalities*, *bands*, *max_dates* and *date_range* as in
                :class:`.PASTISMultimodalDataModule`, and arguments of :class:`.MultimodalDataModule`.
        """
        super().__init__(
            SyntheticLandscapes,
            root=root,
            fold=fold,
            batch_size=batch_size,
            num_tiles=num_tiles,
            seed=seed,
            size=size,
            dates=tuple(dates),
            version=version,
            regions=regions,
            instances=instances,
            **kwargs,
        )
