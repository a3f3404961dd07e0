# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Scores of every class and the confusion matrix of a test: tables for the console, CSV files and a figure."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..utils.atomic import atomic_file
from ..utils.cli.console import abbreviate, align
from ..utils.figures import plain_text
from ..utils.plurals import counted
from .subsets import SubsetRow

#: Maximum number of classes and of subsets in a table on the console.
MOST_CLASSES, MOST_SUBSETS = 30, 16
#: Maximum number of classes of a confusion matrix with numbers.
NUMBERED = 20


class ClassRow(NamedTuple):
    """Scores of one class.

    Attributes:
        label: Name of the class.
        amount: Number of pixels, or of tiles, that have the class.
        predicted: Number of pixels or tiles that are predicted to have it.
        iou: Intersection over union (Jaccard index); NaN if the class neither occurs nor is predicted.
        f1: Harmonic mean of precision and recall; NaN in the same cases.
        precision: Fraction of the predicted ones that are correct; NaN if none is predicted.
        recall: Fraction of the true ones that are predicted, the accuracy of the class; NaN if it does not occur.
    """

    label: str
    amount: int
    predicted: int
    iou: float
    f1: float
    precision: float
    recall: float


def class_rows(confusion: NDArray[Any], labels: Sequence[str], ignored: int | None = None) -> list[ClassRow]:
    """Return the scores of every class but an ignored one.

    Args:
        confusion: Number of pixels by true and predicted class, ``(K, K)``, or of tiles by absence and presence of
            each label, true and predicted, ``(K, 2, 2)``.
        labels: Names of the K classes.
        ignored: Index of a class to leave out.
    """
    if confusion.ndim == 3:
        both, true, predicted = confusion[:, 1, 1], confusion[:, 1].sum(1), confusion[:, :, 1].sum(1)
    else:
        both, true, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    rows = []
    for index, (label, hits, there, found) in enumerate(zip(labels, both, true, predicted, strict=True)):
        if index != ignored:
            ratios = (hits, there + found - hits), (2 * hits, there + found), (hits, found), (hits, there)
            rows.append(ClassRow(label, int(there), int(found), *(_ratio(*pair) for pair in ratios)))
    return rows


def format_classes(rows: Sequence[ClassRow], unit: str) -> str:
    """Return a table of the classes that occur or are predicted, the most frequent ones if there are many.

    Args:
        rows: Scores by class.
        unit: What is counted, such as ``'pixels'``.
    """
    there = [row for row in rows if row.amount or row.predicted]
    often = {row.label for row in sorted(there, key=lambda row: -row.amount)[:MOST_CLASSES]}
    cells = [['class', unit, 'IoU', 'F1', 'precision', 'recall']]
    for row in there:
        if row.label in often:
            scores = (row.iou, row.f1, row.precision, row.recall)
            cells.append([abbreviate(row.label, 32), f'{row.amount:,}', *(_score(score) for score in scores)])
    lines = [align(cells, '<>>>>>')]
    if len(there) > len(often):
        lines.append(f'... {counted(len(there) - len(often), "less frequent class")}: see classes.csv')
    if len(rows) > len(there):
        names = abbreviate(', '.join(row.label for row in rows if not (row.amount or row.predicted)), 80)
        lines.append(f'neither in the labels nor predicted: {names}')
    return '\n'.join(lines)


def format_subsets(rows: Sequence[SubsetRow]) -> str:
    """Return a table of the scores of subsets of the modalities; of many, all, all but one, and single ones."""
    most = max(row.modalities for row in rows)
    kept = rows if len(rows) <= MOST_SUBSETS else [row for row in rows if row.modalities in (most, most - 1, 1)]
    kept = kept[:MOST_SUBSETS]
    cells = [['sensors', *(metric_title(column) for column in rows[0].scores), 'samples']]
    cells += [[row.subset, *(_score(score) for score in row.scores.values()), f'{row.samples:,}'] for row in kept]
    text = align(cells, '<' + '>' * (len(cells[0]) - 1))
    return text + (
        f'\n... {counted(len(rows) - len(kept), "more subset")}: see subsets.csv' if len(rows) > len(kept) else ''
    )


def write_classes(rows: Sequence[ClassRow], path: Path, unit: str) -> None:
    """Write the scores of every class as CSV; undefined ones are ``nan``."""
    columns = {'label': 'class', 'amount': unit}
    table = pd.DataFrame([row._asdict() for row in rows], columns=ClassRow._fields).rename(columns=columns)
    with atomic_file(path) as temporary:
        table.to_csv(temporary, index=False, float_format='%.6f', na_rep='nan')


def write_confusion(confusion: NDArray[Any], labels: Sequence[str], path: Path) -> None:
    """Write a confusion matrix ``(K, K)`` as CSV: a row per true class, a column per predicted class."""
    with atomic_file(path) as temporary:
        pd.DataFrame(confusion, labels, labels).to_csv(temporary, index_label='true class')


def write_scores(scores: Mapping[str, float], path: Path) -> None:
    """Write all metrics as CSV with the columns ``metric`` and ``score``."""
    with atomic_file(path) as temporary:
        pd.DataFrame({'metric': list(scores), 'score': list(scores.values())}).to_csv(
            temporary, index=False, float_format='%.6f', na_rep='nan'
        )


@plain_text()  # a class may be called $x$
def draw_confusion(confusion: NDArray[Any], labels: Sequence[str]) -> Figure:
    """Draw the confusion matrix ``(K, K)`` of classes that occur or are predicted, in percent of each true class."""
    kept = np.flatnonzero(confusion.sum(0) + confusion.sum(1))
    kept = kept if len(kept) else np.arange(min(1, len(labels)))
    counts = confusion[np.ix_(kept, kept)]
    totals = counts.sum(1, keepdims=True)
    percent = np.where(totals > 0, 100 * counts / np.maximum(totals, 1), np.nan)
    names = [abbreviate(labels[index], 24) for index in kept.tolist()]
    side = 2.2 + 0.36 * max(len(kept), 4)
    figure, axes = plt.subplots(figsize=(side + 1, side), layout='constrained')
    shown = axes.imshow(percent, cmap='Blues', vmin=0, vmax=100)
    axes.set_xticks(range(len(kept)), names, rotation=90, fontsize=8)
    axes.set_yticks(range(len(kept)), names, fontsize=8)
    axes.set(xlabel='predicted class', ylabel='true class')
    figure.colorbar(shown, ax=axes, label='pixels of the true class (%)', shrink=0.8)
    if len(kept) <= NUMBERED:
        for (row, column), value in np.ndenumerate(percent):
            if value >= 0.5:
                color = 'white' if value > 55 else 'black'
                axes.text(column, row, f'{value:.0f}', ha='center', va='center', fontsize=7, color=color)
    return figure


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else math.nan


def _score(value: float) -> str:
    return '-' if math.isnan(value) else f'{value:.3f}'


def metric_title(column: str) -> str:
    """Return the title of a column of ``subsets.csv``, such as ``mean IoU``."""
    words = {'iou': 'IoU', 'f1': 'F1', 'r2': 'R2', 'mae': 'MAE', 'rmse': 'RMSE'}
    return ' '.join(words.get(word, word) for word in column.split('_'))
