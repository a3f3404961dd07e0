# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Made-up landscapes in PASTIS's folds."""

from typing import ClassVar, Literal

from ..datasets import SyntheticLandscapes
from .pastis import PASTISMultimodalDataModule


class SyntheticLandscapesDataModule(PASTISMultimodalDataModule):
    """Synthetic landscapes, trained on three folds, validated on one, tested on one.

    They are written when the data are prepared, in one process, and are small enough
    to train on in minutes.
    """

    #: The data are made up, and whoever shows results from them says so.
    synthetic: ClassVar[bool] = True

    def __init__(
        self,
        root: str = 'data/synthetic',
        fold: int = 1,
        num_tiles: int = 160,
        seed: int = 0,
        size: int = 32,
        dates: tuple[int, int] = (8, 14),
        modalities: tuple[str, ...] | None = None,
        bands: dict[str, tuple[str, ...]] | None = None,
        batch_size: int = 8,
        num_workers: int = 0,
        max_dates: int | None = None,
        date_range: tuple[str, str] | None = None,
        exclude: str | None = None,
        dihedral: bool = True,
        temporal_dropout: float = 0.2,
        speckle: float = 10.0,
        jitter: float = 0.05,
        batches: Literal['anywhere', 'region'] = 'anywhere',
    ) -> None:
        """Keep the arguments; nothing is written or read yet.

        Args:
            root: Directory to write to: absent, empty, or holding these landscapes.
            fold: Which split, 1 to 5, as PASTIS's official ones.
            num_tiles: Number of tiles in all, dealt to the five folds in turn.
            seed: Seed of the landscapes.
            size: Pixels of 10 m a side, a multiple of 4.
            dates: Least and greatest number of dates of a series.
            modalities: Names of the modalities; None for all.
            bands: Bands to keep by modality, such as ``{'s1a': ('VV', 'VH')}``.
            batch_size: Samples in a batch.
            num_workers: Processes that read.
            max_dates: How many days of a series to read, spread evenly; None for all.
            date_range: First and last day to read.
            exclude: What ``python -m torchgeo_omnisat check`` wrote: samples with a problem are left out.
            dihedral: Whether to turn and mirror training tiles.
            temporal_dropout: Probability of losing each date of a training series; 0 for none.
            speckle: Looks of the speckle added to radar images in training; 0 for none.
            jitter: Greatest change of gain and offset in training, in deviations; 0 for none.
            batches: Whether the tiles of a training batch come from anywhere or are neighbours on the ground.

        Raises:
            ValueError: If there is no such fold.
        """
        super().__init__(
            root=root,
            fold=fold,
            modalities=modalities,
            bands=bands,
            batch_size=batch_size,
            num_workers=num_workers,
            exclude=exclude,
            dihedral=dihedral,
            temporal_dropout=temporal_dropout,
            speckle=speckle,
            jitter=jitter,
            batches=batches,
            max_dates=max_dates,
            date_range=date_range,
        )
        self.dataset_class = SyntheticLandscapes
        self.kwargs |= {'num_tiles': num_tiles, 'seed': seed, 'size': size, 'dates': tuple(dates)}
        for name in ('missing', 'download', 'checksum'):
            del self.kwargs[name]
