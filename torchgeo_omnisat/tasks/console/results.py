# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""What a test prints and writes: scores by class, confusion matrix and examples."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchgeo.datasets import RGBBandsMissingError
from torchmetrics import Metric

from ...evaluation.classes import (
    class_rows,
    draw_confusion,
    format_classes,
    format_subsets,
    write_classes,
    write_confusion,
    write_scores,
)
from ...evaluation.plots import write_figure
from ...evaluation.subsets import SubsetRow
from ...utils.atomic import atomic_file
from ...utils.cli.console import printable, say
from ...utils.figures import save_figure

#: Minimum and maximum number of figures of examples, if there are enough batches.
FEWEST_EXAMPLES, MOST_EXAMPLES = 4, 8
#: Fraction of a tile that a class must cover to be an example of it.
SMALLEST = 0.02


def take_verbose(loop: Any) -> bool:
    """Return whether Lightning would print all metrics of a validation or test, and prevent it."""
    verbose, loop.verbose = bool(loop.verbose), False
    return verbose


def print_above(trainer: Any, text: str) -> None:
    """Print on rank 0, above the progress bar if there is one."""
    bar = trainer.progress_bar_callback
    if not trainer.is_global_zero:
        return
    if bar is not None and bar.is_enabled:
        bar.print(printable(text, kept='\n'))
    else:
        say(text)


class Examples:
    """Figures of test tiles that together show as many classes as possible, on rank 0.

    Args:
        folder: Folder for the PNG files and ``examples.json``, the classes by file.
        labels: Names of the classes; empty if the target is continuous.
    """

    def __init__(self, folder: Path, labels: Sequence[str]) -> None:
        self.folder, self.labels = folder, list(labels)
        self.files: dict[str, list[str]] = {}
        self._shown: set[int] = set()

    def choose(self, there: Tensor | None) -> int | None:
        """Return the index of the sample with the most classes that no figure shows yet; None if no figure is needed.

        Args:
            there: Whether each sample has each class, ``(B, K)``; None for continuous values.
        """
        if len(self.files) >= MOST_EXAMPLES:
            return None
        few = 0 if len(self.files) < FEWEST_EXAMPLES else None
        if there is None:
            return few
        fresh = there.clone()
        fresh[:, sorted(self._shown)] = False
        counts = fresh.sum(1)
        best = int(counts.argmax())
        return best if counts[best] > 0 else few

    def add(self, there: Tensor | None, draw: Callable[[], Figure]) -> None:
        """Draw a sample with the classes *there*, ``(K,)`` bool, and write it."""
        classes = [] if there is None else torch.nonzero(there)[:, 0].tolist()
        self._shown |= set(classes)
        try:
            figure = draw()
        except RGBBandsMissingError:
            return
        name = f'{len(self.files)}.png'
        with atomic_file(self.folder / name) as path:
            save_figure(figure, path)
        plt.close(figure)
        self.files[name] = [self.labels[index] for index in classes]

    def write(self) -> None:
        """Write the classes by file."""
        if self.files:
            with atomic_file(self.folder / 'examples.json') as path:
                path.write_text(json.dumps(self.files, indent=1) + '\n', encoding='utf-8')


def report(
    title: str,
    scores: Mapping[str, float],
    summary: Mapping[str, str],
    confusion: Metric | None,
    labels: Sequence[str],
    ignored: int | None,
    rows: Sequence[SubsetRow] = (),
    folder: Path | None = None,
) -> str:
    """Return the tables of a validation or test for the console, and write its files if there is a folder.

    Args:
        title: First line.
        scores: All metrics by name, without the prefix of the stage.
        summary: Names of the metrics of the summary, by title.
        confusion: Confusion matrix ``(K, K)``, or ``(K, 2, 2)`` by label.
        labels: Names of the K classes.
        ignored: Index of a class without scores.
        rows: Scores of subsets of the modalities.
        folder: Folder for ``classes.csv``, ``confusion.csv``, ``confusion.png`` and ``scores.csv``.
    """
    found = [f'{name} {scores[metric]:.3f}' for name, metric in summary.items() if metric in scores]
    parts = [title, ', '.join(found) or 'no labels, so no scores']
    written: list[str] = []
    if folder is not None:
        write_scores(scores, folder / 'scores.csv')
        written.append('scores.csv')
    if confusion is not None and scores:
        matrix = confusion.compute().cpu().numpy()
        unit = 'tiles' if matrix.ndim == 3 else 'pixels'
        classes = class_rows(matrix, labels, ignored)
        parts.append(format_classes(classes, unit))
        if folder is not None:
            write_classes(classes, folder / 'classes.csv', unit)
            written.append('classes.csv')
            if matrix.ndim == 2:
                write_confusion(matrix, labels, folder / 'confusion.csv')
                write_figure(draw_confusion(matrix, labels), folder / 'confusion.png')
                written += ['confusion.csv', 'confusion.png']
    if rows:
        parts.append(format_subsets(rows))
    if folder is not None:
        parts.append(f'Written to {folder}: {", ".join([*written, "subsets.csv", "subsets.png"])}')
    return '\n\n'.join(['', *parts])
