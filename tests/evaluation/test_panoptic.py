# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Panoptic quality by hand, and of the published evaluation of PASTIS."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from torchgeo_omnisat.evaluation import PanopticQuality

PUBLISHED = Path(__file__).parents[3] / 'shared' / 'fixtures' / 'panoptic_quality.pt'
NAMES = ('instance_pred', 'semantic_pred', 'instance_true', 'semantic_true')


def row(*values: int) -> Tensor:
    """Map of one row."""
    return torch.tensor([[values]])


@pytest.fixture
def metric() -> PanopticQuality:
    return PanopticQuality(5, background=0, void=4)


def test_matches_misses_and_false_alarms(metric: PanopticQuality) -> None:
    """Class 1: one of two fields is found with an IoU of 3/4. Class 2: one false alarm. Class 3: not there."""
    metric.update(
        row(1, 1, 1, 0, 0, 0, 2, 2),
        row(1, 1, 1, 0, 0, 0, 2, 2),
        row(1, 1, 1, 1, 5, 5, 0, 0),
        row(1, 1, 1, 1, 1, 1, 0, 0),
    )
    scores = metric.compute()
    assert scores['pq_per_class'].tolist() == pytest.approx(
        [math.nan, 0.75 * 2 / 3, 0, math.nan, math.nan], nan_ok=True
    )
    assert scores['sq'] == pytest.approx(0.375)
    assert scores['rq'] == pytest.approx(1 / 3)
    assert scores['pq'] == pytest.approx(0.25)


def test_touching_fields_of_one_class_are_two(metric: PanopticQuality) -> None:
    classes = row(1, 1, 1, 1)
    metric.update(row(7, 7, 9, 9), classes, row(1, 1, 2, 2), classes)
    assert metric.compute()['pq'] == 1
    metric.reset()
    metric.update(row(7, 7, 7, 7), classes, row(1, 1, 2, 2), classes)  # IoU 0.5 is no match
    assert metric.compute()['pq'] == 0


def test_another_class_is_a_miss_and_a_false_alarm(metric: PanopticQuality) -> None:
    """The class of a field is the most frequent one of its pixels."""
    metric.update(row(1, 1, 1), row(2, 2, 1), row(1, 1, 1), row(1, 1, 1))
    assert metric.compute()['rq_per_class'][1:3].tolist() == [0, 0]


def test_void_is_not_scored(metric: PanopticQuality) -> None:
    """Neither a prediction on a void field, nor void pixels of a prediction on another field, nor unlabelled void."""
    pred = row(1, 1, 1, 2, 2, 2, 3, 3, 3)
    metric.update(pred, pred, row(5, 5, 0, 6, 6, 6, 0, 0, 0), row(1, 1, 4, 4, 4, 4, 4, 4, 4))
    scores = metric.compute()
    assert scores['pq_per_class'][1] == 1
    assert scores['pq_per_class'][2].isnan()
    assert scores['pq_per_class'][3] == 0  # void pixels without an instance do not hide a false alarm


def test_samples_are_separate_and_their_order_is_free() -> None:
    torch.manual_seed(0)
    fields = torch.arange(16).view(1, 4, 4).repeat_interleave(5, 1).repeat_interleave(5, 2).expand(6, -1, -1)
    classes = torch.stack([torch.randint(4, (16,))[sample] for sample in fields])
    kept = torch.rand(6, 20, 20) < torch.linspace(0.3, 1, 6).view(6, 1, 1)  # IoUs from 0.3 to 1
    maps = [fields * kept, classes, fields, classes]
    whole, parts, joined = (PanopticQuality(4) for _ in range(3))
    whole.update(*maps)
    for index in torch.randperm(6):
        parts.update(*(x[index : index + 1] for x in maps))
    joined.update(*(x.flatten(0, 1)[None] for x in maps))
    assert whole.compute()['pq'] == parts.compute()['pq']
    assert whole.compute()['pq'] != joined.compute()['pq']


@pytest.mark.parametrize(
    ('changes', 'named'),
    [
        ({'semantic_pred': row(5, 0)}, ('semantic_pred', '5', '0 to 4')),
        ({'semantic_true': row(-1, 0)}, ('semantic_true', '-1', '0 to 4')),
        ({'instance_true': row(1)}, ('instance_true', '(1, 1, 1)', '(B, H, W)')),
    ],
)
def test_bad_maps(metric: PanopticQuality, changes: dict[str, Tensor], named: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=named[0]) as error:
        metric.update(**{name: row(0, 0) for name in NAMES} | changes)
    assert all(text in str(error.value) for text in named)


def test_classes_that_do_not_exist() -> None:
    with pytest.raises(ValueError, match=r'void.*\b19\b.*\b18\b'):
        PanopticQuality(19, void=19)


def test_without_instances(metric: PanopticQuality) -> None:
    zeros = row(0, 0)
    metric.update(zeros, zeros, zeros, zeros)
    assert metric.compute()['pq'].isnan()


@pytest.mark.skipif(not PUBLISHED.exists(), reason='the published values are not here')
def test_published_values() -> None:
    for case in torch.load(PUBLISHED, weights_only=True):
        metric = PanopticQuality(20, background=0, void=19)
        metric.update(*(case[name] for name in NAMES))
        scores = metric.compute()
        for name in ('sq', 'rq', 'pq'):
            torch.testing.assert_close(scores[name], case[name].float(), atol=1e-6, rtol=0)
        found = scores['pq_per_class'][1:19]
        torch.testing.assert_close(found, case['pq_per_class'].float(), atol=1e-6, rtol=0, equal_nan=True)
        counts = torch.stack([metric.matched, metric.predicted - metric.matched, metric.true - metric.matched], 1)
        torch.testing.assert_close(counts[1:19], case['counts'].long())
