# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""The metric equals that of the published code of U-TAE, whose formula is written again here, on random maps."""

from pathlib import Path

import numpy as np
import pytest
import torch

from torchgeo_omnisat.reproduction.scores import SCORES, mean_iou, overall_accuracy
from torchgeo_omnisat.tasks import OmniSatSegmentation
from torchgeo_omnisat.tasks.supervised import classification_metrics

VOID, CLASSES = 19, 20
PAGE = Path(__file__).parents[2] / 'docs/results.md'


def published_scores(counts: np.ndarray) -> tuple[float, float]:
    """IoU = true positives / (true positives + false positives + false negatives), without the row and column of void.

    The mean ignores classes that are neither predicted nor there.
    """
    counts = counts.copy()
    counts[VOID], counts[:, VOID] = 0, 0
    ious = []
    for k in range(CLASSES):
        hits = counts[k, k]
        false_positives = sum(counts[i, k] for i in range(CLASSES) if i != k)
        false_negatives = sum(counts[k, i] for i in range(CLASSES) if i != k)
        if hits + false_positives + false_negatives:
            ious.append(hits / (hits + false_positives + false_negatives))
    return 100 * sum(ious) / len(ious), 100 * np.trace(counts) / counts.sum()


def random_maps(seed: int, absent: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions without void, and masks with it, in which a class that is predicted never occurs."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.randint(0, CLASSES, (3, 16, 16), generator=generator)
    prediction = torch.where(torch.rand(mask.shape, generator=generator) < 0.5, mask, (mask * 7) % VOID)
    return prediction.where(prediction != VOID, 0), mask.where(mask != absent, VOID)


@pytest.mark.parametrize('seed', range(4))
def test_metric_of_the_published_code(seed: int) -> None:
    metrics = classification_metrics('multiclass', num_classes=CLASSES, labels=None, ignore_index=VOID)
    ours = {column: metrics[name].clone() for column, name in OmniSatSegmentation.subset_metrics.items()}
    counts = np.zeros((CLASSES, CLASSES), np.int64)
    for tile in range(2):
        prediction, mask = random_maps(10 * tile + seed, absent=4 + seed)
        for metric in ours.values():
            metric.update(prediction, mask)
        for p, t in zip(prediction.flatten().tolist(), mask.flatten().tolist(), strict=True):
            counts[t, p] += 1
    assert counts[4 + seed].sum() == 0 < counts[:, 4 + seed].sum()
    iou, accuracy = published_scores(counts)
    assert np.isclose(100 * float(ours['mean_iou'].compute()), iou)
    assert np.isclose(100 * float(ours['overall_accuracy'].compute()), accuracy)
    kept = ours['mean_iou'].confmat.numpy()
    assert np.isclose(mean_iou(kept), iou)
    assert np.isclose(overall_accuracy(kept), accuracy)


def test_nothing_counted() -> None:
    assert np.isnan(mean_iou(np.zeros((2, 2), np.int64)))
    assert np.isnan(overall_accuracy(np.zeros((2, 2), np.int64)))


@pytest.mark.skipif(not PAGE.is_file(), reason='the site is not here')
@pytest.mark.parametrize('name', ['pastis', 'pastis-hd', 'treesatai'])
def test_scores_are_those_of_the_page(name: str) -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith('|')]
    for score in SCORES[name]:
        model = score.model.split(',')[0].split()[0].removesuffix('-L')
        assert any(model in row and f'| {score.score} |' in row for row in rows), score
