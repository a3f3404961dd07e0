# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Scores of delineated fields by hand."""

import math

import pytest
import torch
from torch import Tensor

from torchgeo_omnisat.evaluation import FieldScores, PanopticQuality, connected_components
from torchgeo_omnisat.evaluation.fields import merge_small

VOID = 4


def row(*values: int) -> Tensor:
    """Map of one row."""
    return torch.tensor([[values]])


def scores(pred: Tensor, true: Tensor, classes: Tensor | None = None) -> dict[str, float]:
    metric = FieldScores(VOID)
    metric.update(pred, torch.ones_like(pred), true, torch.ones_like(true) if classes is None else classes)
    return {name: float(value) for name, value in metric.compute().items()}


def test_objects_are_matched_above_an_iou_of_half() -> None:
    """The first field is found with an IoU of 3/4; the second with 1/2, which is no match; the third not at all."""
    found = scores(row(1, 1, 1, 0, 2, 0, 0, 0, 0), row(5, 5, 5, 5, 6, 6, 0, 7, 7))
    assert found['object_f1'] == pytest.approx(2 * 1 / (3 + 2))
    assert found['over_segmentation'] == pytest.approx((1 / 4 + 1 / 2 + 1) / 3)
    assert found['under_segmentation'] == 0


def test_merged_fields_are_under_segmented_and_split_ones_over_segmented() -> None:
    merged = scores(row(1, 1, 1, 1), row(5, 5, 5, 6))
    assert merged['under_segmentation'] == pytest.approx((1 / 4 + 3 / 4) / 2)
    assert merged['over_segmentation'] == 0
    split = scores(row(1, 1, 1, 2), row(5, 5, 5, 5))
    assert split['over_segmentation'] == pytest.approx(1 / 4)
    assert split['under_segmentation'] == 0


def test_boundaries_match_within_one_pixel() -> None:
    """The true boundary is between columns 3 and 4, the predicted ones one and three columns beside it."""
    true = row(*[1] * 4, *[2] * 6).repeat(1, 3, 1)
    assert scores(row(*[1] * 5, *[2] * 5).repeat(1, 3, 1), true)['boundary_f1'] == 1
    far = scores(row(*[1] * 6, *[2] * 4).repeat(1, 3, 1), true)['boundary_f1']
    assert far == pytest.approx(0.5)  # pixels 5 and 6 are predicted, and 3 and 4 are true: 4 and 5 are neighbours
    assert scores(row(*[1] * 8, *[2] * 2).repeat(1, 3, 1), true)['boundary_f1'] == 0


def test_void_is_excluded() -> None:
    """Field 6 and half of field 5 are void; the prediction 3 is mostly on void."""
    pred, true = row(1, 1, 2, 2, 2, 3, 3, 3, 0), row(5, 5, 5, 5, 6, 6, 6, 0, 0)
    found = scores(pred, true, row(1, 1, 4, 4, 4, 4, 4, 1, 0))
    assert found['object_f1'] == 1
    assert found['over_segmentation'] == found['under_segmentation'] == 0


def test_without_fields_scores_are_undefined_and_false_alarms_count() -> None:
    nothing = torch.zeros(1, 2, 4, dtype=torch.int64)
    assert all(math.isnan(value) for value in scores(nothing, nothing).values())
    false_alarm = scores(nothing + 1, nothing)
    assert false_alarm['object_f1'] == 0
    assert math.isnan(false_alarm['over_segmentation'])


def test_batches_and_ranks_add_up() -> None:
    """The states of two ranks are summed, and ids of different samples are different fields."""
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randint(0, high, (4, 8, 8), generator=generator) for high in (5, 2, 6, 5)]
    together, ranks = FieldScores(VOID), [FieldScores(VOID), FieldScores(VOID)]
    together.update(*maps)
    for rank, part in zip(ranks, (slice(0, 1), slice(1, 4)), strict=True):
        rank.update(*(values[part] for values in maps))
    for name in ('objects', 'segmentation', 'edges'):
        summed = getattr(ranks[0], name) + getattr(ranks[1], name)
        assert torch.equal(summed, getattr(together, name))


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r'instance_true.*\(1, 1, 3\).*\(1, 1, 4\)'):
        scores(row(1, 1, 1, 1), row(1, 1, 1))


def test_connected_components_join_touching_fields_of_one_class() -> None:
    classes = torch.tensor([[[1, 1, 2, 0], [0, 2, 2, 1]]])
    ids = connected_components(classes, background=0)
    assert (ids > 0).eq(classes > 0).all()
    assert len(ids.unique()) == 4
    assert ids[0, 0, 2] == ids[0, 1, 1]
    assert ids[0, 0, 0] != ids[0, 1, 3]
    assert len(connected_components(classes)[0].unique()) == 5


def test_small_components_are_merged_into_their_largest_neighbour() -> None:
    classes = torch.ones(1, 6, 6, dtype=torch.int64)
    classes[:, :, 4:] = 2
    classes[:, 1, 1], classes[:, 2, 4] = 3, 5
    merged = merge_small(classes, 2)
    assert merged.dtype == torch.int64
    assert merged[0, 1, 1] == merged[0, 2, 4] == 1
    assert torch.equal(merge_small(classes, 1), classes)
    assert torch.equal(merge_small(classes, 36), classes)  # a tile has 36 pixels, so all components are too small


def test_panoptic_quality_without_background() -> None:
    """Class 0 may be a crop: its field is scored."""
    metric = PanopticQuality(3, background=None, void=2)
    metric.update(row(1, 1, 0), row(0, 0, 0), row(5, 5, 0), row(0, 0, 2))
    assert metric.compute()['pq'] == 1
