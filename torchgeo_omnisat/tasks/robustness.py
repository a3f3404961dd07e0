# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Robustness: the score of every subset of the modalities, as a table and a figure."""

import csv
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import multiclass_confusion_matrix

from ..modality import subset_name, subsets
from .outputs import replacing


class SubsetRow(NamedTuple):
    """What came out for one subset of the modalities.

    Attributes:
        subset: Its name, such as ``'s1a+s2'``.
        modalities: How many modalities it has.
        mean_iou: Mean intersection over union of the scored classes that occur.
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


class SubsetScores(Metric):
    """A confusion matrix for every subset of the modalities, summed over all processes.

    Args:
        names: Names of M modalities.
        num_classes: Number of classes K.
        ignore_index: Label that is not scored.
    """

    confusion: Tensor
    counts: Tensor
    full_state_update = False

    def __init__(self, names: Iterable[str], num_classes: int, ignore_index: int | None = None) -> None:
        """Begin with nothing counted."""
        super().__init__()
        self.subsets = subsets(names)
        self.num_classes, self.ignore_index = num_classes, ignore_index
        shape = len(self.subsets), num_classes, num_classes
        self.add_state('confusion', torch.zeros(shape, dtype=torch.int64), dist_reduce_fx='sum')
        self.add_state('counts', torch.zeros(len(self.subsets), 3, dtype=torch.int64), dist_reduce_fx='sum')

    def update(self, subset: tuple[str, ...], prediction: Tensor | None, mask: Tensor, held: Tensor) -> None:
        """Count a batch for one subset.

        Args:
            subset: Names of its S modalities.
            prediction: Classes ``(B, H, W)``; None if no sample has any of the modalities.
            mask: Labels ``(B, H, W)``.
            held: Which of them each sample has, ``(B, S)`` bool.
        """
        row = self.subsets.index(subset)
        some, every = held.any(1), held.all(1)
        self.counts[row] += torch.stack([some.sum(), every.sum(), (~some).sum()])
        if prediction is not None and some.any():
            self.confusion[row] += multiclass_confusion_matrix(
                prediction[some], mask[some], self.num_classes, ignore_index=self.ignore_index, validate_args=False
            )

    def compute(self) -> list[SubsetRow]:
        """One row a subset, the largest subsets first."""
        rows = []
        for subset, matrix, counts in zip(self.subsets, self.confusion.double(), self.counts.tolist(), strict=True):
            hits, union = matrix.diag(), matrix.sum(0) + matrix.sum(1) - matrix.diag()
            occurs = union > 0
            if self.ignore_index is not None and 0 <= self.ignore_index < self.num_classes:
                occurs[self.ignore_index] = False
            iou = (hits[occurs] / union[occurs]).mean().item()
            accuracy = (hits.sum() / matrix.sum()).item()
            rows.append(SubsetRow(subset_name(subset), len(subset), iou, accuracy, *counts))
        return rows


def write_table(rows: Sequence[SubsetRow], path: Path, data: str) -> None:
    """Write the rows as CSV, a column for each attribute; what could not be scored is ``nan``.

    Args:
        rows: The rows.
        path: The file; it is there whole or not at all.
        data: What was scored, the last column.
    """
    with replacing(path) as temporary, temporary.open('w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow([*SubsetRow._fields, 'data'])
        writer.writerows([*(f'{v:.6f}' if isinstance(v, float) else v for v in row), data] for row in rows)


def write_figure(rows: Sequence[SubsetRow], path: Path, data: str) -> None:
    """Write :func:`draw_subsets` as PNG.

    Args:
        rows: The rows.
        path: The file; it is there whole or not at all.
        data: What was scored.
    """
    figure = draw_subsets(rows, data)
    with replacing(path) as temporary:
        figure.savefig(temporary, format='png', dpi=150)
    plt.close(figure)


def draw_subsets(rows: Sequence[SubsetRow], data: str) -> Figure:
    """The mean IoU of every subset as bars, above dots that say which modalities it has.

    Subsets stand in order of their size, then of their score. The subset of all
    modalities is darker than the others. Position and length alone carry the meaning.

    Args:
        rows: The rows; those without a score are left out.
        data: What was scored, for the label of the axis.

    Returns:
        The figure.
    """
    rows = sorted((r for r in rows if math.isfinite(r.mean_iou)), key=lambda r: (-r.modalities, -r.mean_iou))
    names = sorted({name for row in rows for name in row.subset.split('+')})
    size = (max(4.0, 1.6 + 0.55 * len(rows)), 3.2 + 0.3 * len(names))
    figure, (bars, dots) = plt.subplots(
        2, 1, sharex=True, figsize=size, height_ratios=(3.0, 0.4 + 0.35 * len(names)), layout='constrained'
    )
    dark, blue, grey = '#08306b', '#4292c6', '#d9d9d9'
    most = max((row.modalities for row in rows), default=0)
    for x, row in enumerate(rows):
        bar = bars.bar(x, 100 * row.mean_iou, width=0.7, color=dark if row.modalities == most else blue)
        bars.bar_label(bar, fmt='%.1f', padding=2, fontsize=8)
        held = [names.index(name) for name in row.subset.split('+')]
        dots.plot([x, x], [min(held), max(held)], color=dark, linewidth=2, zorder=1)
        dots.scatter([x] * len(names), range(len(names)), s=70, color=grey, zorder=0)
        dots.scatter([x] * len(held), held, s=70, color=dark, zorder=2)
    bars.set_ylabel(f'mean IoU (%)\n{data}')
    bars.set_ylim(0, max([112 * row.mean_iou for row in rows] + [1.0]))
    bars.spines[['top', 'right']].set_visible(False)
    bars.tick_params(axis='x', bottom=False)
    dots.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5), xticks=[])
    dots.spines[:].set_visible(False)
    dots.tick_params(axis='y', left=False)
    return figure
