# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Few labels: a part of the training tiles, again and again, so that an epoch is as long as ever."""

import math
import random
from collections.abc import Sequence
from typing import Any

from torchgeo_omnisat.datamodules import PASTISMultimodalDataModule, SyntheticLandscapesDataModule
from torchgeo_omnisat.datamodules.pastis import FoldsDataModule
from torchgeo_omnisat.datasets import PASTISMultimodal


class Few(FoldsDataModule):
    """Trains on a part of the tiles; they are as many as there were, the same ones repeated."""

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
        """All training tiles: mean and deviation take no labels."""
        return super().make_dataset('train', **self.whole_series(names))


class FewSyntheticLandscapesDataModule(Few, SyntheticLandscapesDataModule):
    """A part of the synthetic landscapes.

    Args:
        part: Part of the training tiles, at least one.
        draw: Seed of which ones.
        **kwargs: See :class:`.SyntheticLandscapesDataModule`.
    """

    def __init__(self, part: float = 0.1, draw: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.part, self.draw = part, draw


class FewPASTISDataModule(Few, PASTISMultimodalDataModule):
    """A part of PASTIS.

    Args:
        part: Part of the training tiles, at least one.
        draw: Seed of which ones.
        **kwargs: See :class:`.PASTISMultimodalDataModule`.
    """

    def __init__(self, part: float = 0.1, draw: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.part, self.draw = part, draw
