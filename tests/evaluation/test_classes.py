# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Scores by class agree with TorchGeo's metrics, and tables stay short."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torchmetrics.classification import MulticlassConfusionMatrix, MultilabelConfusionMatrix

from torchgeo_omnisat.evaluation.classes import (
    class_rows,
    draw_confusion,
    format_classes,
    format_subsets,
    write_classes,
    write_confusion,
)
from torchgeo_omnisat.evaluation.subsets import SubsetRow
from torchgeo_omnisat.tasks.supervised import classification_metrics

NAMES = ['a', 'b', 'c', 'd', 'void']
COLUMNS = {'iou': 'JaccardIndex', 'f1': 'F1Score', 'precision': 'Precision', 'recall': 'Recall'}


def test_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    truth, answer = (torch.randint(0, k, (4, 9, 9), generator=generator) for k in (5, 4))
    confusion = MulticlassConfusionMatrix(5, ignore_index=4)
    confusion.update(answer, truth)
    metrics = classification_metrics('multiclass', num_classes=5, labels=NAMES, ignore_index=4)
    rows = class_rows(confusion.compute().numpy(), NAMES, ignored=4)
    assert [row.label for row in rows] == NAMES[:4]
    assert [row.amount for row in rows] == [int((truth == k).sum()) for k in range(4)]
    for column, name in COLUMNS.items():
        values = {key.rpartition('_')[2]: v for key, v in metrics[name].clone()(answer, truth).items()}
        for row in rows:
            assert getattr(row, column) == pytest.approx(float(values[row.label]), abs=1e-6)


def test_tiles_with_several_labels() -> None:
    generator = torch.Generator().manual_seed(0)
    truth, answer = torch.randint(0, 2, (30, 5), generator=generator), torch.rand(30, 5, generator=generator)
    confusion = MultilabelConfusionMatrix(5)
    confusion.update(answer, truth)
    metrics = classification_metrics('multilabel', num_labels=5, labels=NAMES)
    rows = class_rows(confusion.compute().numpy(), NAMES)
    values = {key.rpartition('_')[2]: v for key, v in metrics['F1Score'].clone()(answer, truth).items()}
    for row in rows:
        assert row.f1 == pytest.approx(float(values[row.label]), abs=1e-6)
        assert row.amount == int(truth[:, NAMES.index(row.label)].sum())


def test_classes_that_do_not_occur() -> None:
    matrix = np.zeros((3, 3), dtype=int)
    matrix[0] = 6, 2, 0
    rows = class_rows(matrix, ['a', 'b', 'c'])
    assert rows[0].iou == 0.75
    assert rows[1].iou == 0  # predicted, but it does not occur
    assert math.isnan(rows[1].recall)
    assert math.isnan(rows[2].iou)
    text = format_classes(rows, 'pixels')
    assert 'neither in the labels nor predicted: c' in text
    assert '0.750' in text


def test_tables_are_short() -> None:
    names = [f'class {k}' for k in range(100)]
    text = format_classes(class_rows(np.diag(np.arange(1, 101)), names), 'pixels')
    assert len(text.splitlines()) == 32
    assert 'class 99 ' in text
    assert 'class 0 ' not in text
    rows = [SubsetRow(f's{k}', 1 + k % 5, {'mean_iou': 0.5}, 1, 1, 0) for k in range(40)]
    assert len(format_subsets(rows).splitlines()) <= 18
    assert format_subsets(rows[:3]).splitlines()[0].split() == ['sensors', 'mean', 'IoU', 'samples']


def test_escapes_are_not_printed() -> None:
    text = format_classes(class_rows(np.eye(2, dtype=int), ['\x1b[31mred', 'b']), 'pixels')
    assert '\x1b' not in text


def test_files(tmp_path: Path) -> None:
    names = ['$x$', 'b,c', 'never']
    matrix = np.array([[3, 1, 0], [0, 5, 0], [0, 0, 0]])
    write_confusion(matrix, names, tmp_path / 'confusion.csv')
    read = pd.read_csv(tmp_path / 'confusion.csv', index_col=0)
    assert read.loc['$x$', 'b,c'] == 1
    write_classes(class_rows(matrix, names), tmp_path / 'classes.csv', 'pixels')
    table = pd.read_csv(tmp_path / 'classes.csv')
    assert list(table.columns) == ['class', 'pixels', 'predicted', 'iou', 'f1', 'precision', 'recall']
    assert table['recall'].tolist()[:2] == [0.75, 1.0]
    labels = [text.get_text() for text in draw_confusion(matrix, names).axes[0].get_xticklabels()]
    assert labels == ['$x$', 'b,c']
    draw_confusion(matrix, names).savefig(tmp_path / 'figure.png')
