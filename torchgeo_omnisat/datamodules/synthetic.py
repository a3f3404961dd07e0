# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Synthetic landscapes in the folds of PASTIS."""

from typing import Any, ClassVar

from ..datasets import SyntheticLandscapes
from .pastis import PASTISMultimodalDataModule


class SyntheticLandscapesDataModule(PASTISMultimodalDataModule):
    """Synthetic landscapes, trained on three folds, validated on one, tested on one.

    They are written when the data are prepared, in one process, and are small enough
    to train on in minutes.
    """

    #: The data are synthetic; results are labelled as such.
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
        **kwargs: Any,
    ) -> None:
        """Keep the arguments; nothing is written or read yet.

        Args:
            root: Directory to write to: absent, empty, or holding these landscapes.
            fold: Which split, 1 to 5, as PASTIS's official ones.
            num_tiles: Number of tiles in all, dealt to the five folds in turn.
            seed: Seed of the landscapes.
            size: Pixels of 10 m a side, a multiple of 4.
            dates: Least and greatest number of dates of a series.
            batch_size: Samples in a batch.
            **kwargs: Arguments of :class:`.PASTISMultimodalDataModule`, but *missing*, *download* and *checksum*.

        Raises:
            ValueError: If there is no such fold.
        """
        # These are not arguments of this class, because synthetic data are complete.
        super().__init__(
            root=root, fold=fold, batch_size=batch_size, missing='error', download=False, checksum=False, **kwargs
        )
        self.dataset_class = SyntheticLandscapes
        self.kwargs |= {'num_tiles': num_tiles, 'seed': seed, 'size': size, 'dates': tuple(dates)}
        for name in ('missing', 'download', 'checksum'):
            del self.kwargs[name]
