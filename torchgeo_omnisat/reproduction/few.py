# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Datamodules of few labels: a part of the training tiles is repeated, so that an epoch has the same length."""

import math
import random
from collections.abc import Sequence
from typing import Any

from ..datamodules import PASTISMultimodalDataModule, SyntheticLandscapesDataModule
from ..datamodules.pastis import FoldsDataModule
from ..datasets import PASTISMultimodal


class Few(FoldsDataModule):
    """Datamodule base class that trains on a random part of the tiles, repeated to the original number."""

    part: float
    draw: int

    def make_dataset(self, split: str, **changes: Any) -> PASTISMultimodal:
        """Return the dataset of a split; ``'train'`` is a random subset, and larger subsets contain smaller ones."""
        dataset = super().make_dataset(split, **changes)
        if split == 'train':
            every = list(dataset.patches)
            order = random.Random(self.draw).sample(every, len(every))
            kept = order[: max(1, round(self.part * len(every)))]
            dataset.patches = (kept * math.ceil(len(every) / len(kept)))[: len(every)]
        return dataset

    def measured_dataset(self, dataset: Any, names: Sequence[str]) -> PASTISMultimodal:
        """Return all training tiles, because statistics require no labels."""
        return super().make_dataset('train', **self.whole_series(names))


class FewSyntheticLandscapesDataModule(Few, SyntheticLandscapesDataModule):
    """Datamodule of a part of the training tiles of the synthetic landscapes.

    Args:
        part: Fraction of the training tiles, at least one tile.
        draw: Seed of their selection.
        **kwargs: See :class:`.SyntheticLandscapesDataModule`.
    """

    def __init__(self, part: float = 0.1, draw: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.part, self.draw = part, draw


class FewPASTISDataModule(Few, PASTISMultimodalDataModule):
    """Datamodule of a part of the training tiles of PASTIS.

    Args:
        part: Fraction of the training tiles, at least one tile.
        draw: Seed of their selection.
        **kwargs: See :class:`.PASTISMultimodalDataModule`.
    """

    def __init__(self, part: float = 0.1, draw: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.part, self.draw = part, draw
