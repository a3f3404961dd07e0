# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Scores of every subset of the modalities, as a table."""

import csv
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import multiclass_confusion_matrix

from ..modality import Which, subset_name, subsets
from ..utils.atomic import atomic_file


class SubsetRow(NamedTuple):
    """Scores of one subset of the modalities, in segmentation.

    Attributes:
        subset: Its name, such as ``'s1a+s2'``.
        modalities: How many modalities it has.
        mean_iou: Mean intersection over union of the scored classes that occur in labels or answers.
        overall_accuracy: Share of the labelled pixels that are right.
        samples: Samples that were scored: they have at least one modality of the subset.
        complete_samples: Those among them that have all of them.
        blind_samples: Samples that have none of them and were left out, as any answer
            would have been a guess.
    """

    subset: str
    modalities: int
    mean_iou: float
    overall_accuracy: float
    samples: int
    complete_samples: int
    blind_samples: int

    @property
    def title(self) -> str:
        """Name of :attr:`score`."""
        return 'mean IoU'

    @property
    def score(self) -> float:
        """Main score."""
        return self.mean_iou


class LabelRow(NamedTuple):
    """Scores of one subset of the modalities, in multi-label classification.

    Attributes:
        subset: Its name, such as ``'s1a+s2'``.
        modalities: How many modalities it has.
        macro_f1: F1 of each label, averaged; a label that neither occurs nor is given has 0.
        weighted_f1: The same, weighted by how many samples have the label.
        samples: As in :class:`SubsetRow`, with the two that follow.
        complete_samples: See there.
        blind_samples: See there.
    """

    subset: str
    modalities: int
    macro_f1: float
    weighted_f1: float
    samples: int
    complete_samples: int
    blind_samples: int

    @property
    def title(self) -> str:
        """Name of :attr:`score`."""
        return 'macro F1'

    @property
    def score(self) -> float:
        """Main score."""
        return self.macro_f1


#: Scores of one subset, for either task.
Row = SubsetRow | LabelRow


class SubsetScores(Metric, ABC):
    """Metric of every subset of the modalities, from counts summed over all ranks.

    Args:
        names: Names of M modalities.
        which: Subsets to score; see :func:`.subsets`.
        shape: Shape of the counts of one subset.
    """

    counted: Tensor
    counts: Tensor
    full_state_update = False

    def __init__(self, names: Iterable[str], which: Which, *shape: int) -> None:
        super().__init__()
        self.subsets = subsets(names, which)
        rows = len(self.subsets)
        self.add_state('counted', torch.zeros(rows, *shape, dtype=torch.int64), dist_reduce_fx='sum')
        self.add_state('counts', torch.zeros(rows, 3, dtype=torch.int64), dist_reduce_fx='sum')

    @abstractmethod
    def count(self, answer: Tensor, target: Tensor) -> Tensor:
        """Return the counts of a batch for a subset."""

    @abstractmethod
    def score(self, counted: Tensor) -> tuple[float, float]:
        """Return the two scores of a row from the counts of its subset, in double precision."""

    @abstractmethod
    def row(self, subset: tuple[str, ...], scores: tuple[float, float], counts: list[int]) -> Row:
        """Return a row of the table."""

    def update(self, subset: tuple[str, ...], answer: Tensor | None, target: Tensor, held: Tensor) -> None:
        """Update the counts of one subset.

        Args:
            subset: Names of its S modalities.
            answer: Predictions for B samples; None if no sample has any of the modalities.
            target: Targets of the samples.
            held: Modalities available in each sample, ``(B, S)`` bool.
        """
        row = self.subsets.index(subset)
        some, every = held.any(1), held.all(1)
        self.counts[row] += torch.stack([some.sum(), every.sum(), (~some).sum()])
        if answer is not None and some.any():
            self.counted[row] += self.count(answer[some], target[some])

    def compute(self) -> list[Row]:
        """Return one row per subset, the largest subsets first."""
        return [
            self.row(subset, self.score(counted), counts)
            for subset, counted, counts in zip(self.subsets, self.counted.double(), self.counts.tolist(), strict=True)
        ]


class SegmentationScores(SubsetScores):
    """Segmentation scores of every subset, from predictions and targets ``(B, H, W)``.

    Args:
        names: Names of M modalities.
        num_classes: Number of classes K.
        ignore_index: Label to ignore.
        which: Subsets to score; see :func:`.subsets`.
    """

    def __init__(
        self, names: Iterable[str], num_classes: int, ignore_index: int | None = None, which: Which = 'auto'
    ) -> None:
        super().__init__(names, which, num_classes, num_classes)
        self.num_classes, self.ignore_index = num_classes, ignore_index

    def count(self, answer: Tensor, target: Tensor) -> Tensor:
        """Return the confusion matrix ``(K, K)`` of a batch."""
        return multiclass_confusion_matrix(
            answer, target, self.num_classes, ignore_index=self.ignore_index, validate_args=False
        )

    def score(self, counted: Tensor) -> tuple[float, float]:
        """Return mean IoU and overall accuracy."""
        hits, union = counted.diag(), counted.sum(0) + counted.sum(1) - counted.diag()
        occurs = union > 0
        if self.ignore_index is not None and 0 <= self.ignore_index < self.num_classes:
            occurs[self.ignore_index] = False
        return (hits[occurs] / union[occurs]).mean().item(), (hits.sum() / counted.sum()).item()

    def row(self, subset: tuple[str, ...], scores: tuple[float, float], counts: list[int]) -> SubsetRow:
        """Return a row of the table."""
        return SubsetRow(subset_name(subset), len(subset), *scores, *counts)


class ClassificationScores(SubsetScores):
    """Multi-label classification scores of every subset, from probabilities and targets ``(B, K)``.

    Args:
        names: Names of M modalities.
        num_labels: Number of labels K.
        which: Subsets to score; see :func:`.subsets`.
    """

    def __init__(self, names: Iterable[str], num_labels: int, which: Which = 'auto') -> None:
        super().__init__(names, which, num_labels, 3)

    def count(self, answer: Tensor, target: Tensor) -> Tensor:
        """Return the counts ``(K, 3)`` of a batch of probabilities, with a threshold of one half."""
        said, true = answer > 0.5, target > 0.5
        return torch.stack([(said & true).sum(0), (said & ~true).sum(0), (~said & true).sum(0)], dim=1)

    def score(self, counted: Tensor) -> tuple[float, float]:
        """Return macro and weighted F1."""
        hits, alarms, misses = counted.unbind(1)
        f1 = 2 * hits / (2 * hits + alarms + misses).clamp(min=1)
        occurs = hits + misses
        return f1.mean().item(), ((f1 * occurs).sum() / occurs.sum()).item()

    def row(self, subset: tuple[str, ...], scores: tuple[float, float], counts: list[int]) -> LabelRow:
        """Return a row of the table; its scores are NaN without samples."""
        macro, weighted = scores if counts[0] else (math.nan, math.nan)
        return LabelRow(subset_name(subset), len(subset), macro, weighted, *counts)


def write_table(rows: Sequence[Row], path: Path, data: str) -> None:
    """Write the rows as CSV with one column per attribute; missing scores are ``nan``.

    Args:
        rows: At least one row.
        path: Output file, written atomically.
        data: Name of the data, the last column.
    """
    with atomic_file(path) as temporary, temporary.open('w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow([*rows[0]._fields, 'data'])
        writer.writerows([*(f'{v:.6f}' if isinstance(v, float) else v for v in row), data] for row in rows)
