# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt

from torchgeo_omnisat.losses import FieldLoss, field_targets
from torchgeo_omnisat.losses.fields import boundaries, edge_distance

#: Two touching fields, 7 and 9, beside ground that belongs to no field.
TOUCHING = torch.tensor(
    [
        [
            [7, 7, 7, 7, 7, 9, 9, 0],
            [7, 7, 7, 7, 7, 9, 9, 0],
            [7, 7, 7, 7, 7, 9, 9, 0],
        ]
    ]
)


def test_targets_of_two_touching_fields() -> None:
    """Both have a boundary where they touch; the border of the tile is none."""
    targets = field_targets(TOUCHING)
    assert targets.extent.tolist() == [[[1, 1, 1, 1, 2, 2, 2, 0]] * 3]
    assert targets.distance.tolist() == [[[1.0, *torch.tensor([4, 3, 2, 1]).div(5).tolist(), 1.0, 1.0, 0.0]] * 3]


def test_fields_of_other_samples_do_not_matter() -> None:
    other = torch.full_like(TOUCHING, 7)
    both = field_targets(torch.cat([TOUCHING, other]))
    assert torch.equal(both.distance[:1], field_targets(TOUCHING).distance)
    assert (both.extent[1] == 1).all()
    assert (both.distance[1] == 1).all()


def test_distance_is_that_of_scipy() -> None:
    blocks = np.random.default_rng(0).integers(0, 4, (3, 5, 7))
    ids = np.concatenate([blocks.repeat(4, 1).repeat(3, 2), blocks.repeat(4, 1).repeat(3, 2)[:, ::-1]], 1)
    ids[2, 5:30, 3:19] = 2  # an L of a field around others
    ids[2, 9:21, 8:16] = 3
    expected = [sum(distance_transform_edt(sample == number) for number in range(1, 4)) for sample in ids]
    assert np.allclose(edge_distance(torch.from_numpy(ids)), np.stack(expected), atol=1e-6)
    assert torch.equal(boundaries(torch.from_numpy(ids)), field_targets(torch.from_numpy(ids)).extent == 2)


def test_nearest_edge_is_almost_as_far_in_columns_as_in_its_row() -> None:
    """The pixel in the middle is 10 pixels from the edges in its row and column, and 9 columns from the nearest one."""
    ids = torch.zeros(1, 25, 25, dtype=torch.int64)
    ids[0, 3:22, 3:22] = 1
    ids[0, 16, 21] = 2
    assert edge_distance(ids)[0, 12, 12] == pytest.approx(97**0.5)


def test_void_and_a_perfect_prediction_have_no_loss() -> None:
    targets, labelled = field_targets(TOUCHING), torch.ones_like(TOUCHING, dtype=torch.bool)
    labelled[..., 5] = False
    logits = 100.0 * torch.nn.functional.one_hot(targets.extent, 3).movedim(-1, 1)
    distance = targets.distance.clone()
    logits[..., 5], distance[..., 5] = logits[..., 0].clone(), 0.5
    assert FieldLoss()(logits, distance, field_targets(TOUCHING), labelled) == pytest.approx(0, abs=1e-6)
    assert FieldLoss()(logits, distance, field_targets(TOUCHING), torch.ones_like(labelled)) > 1
    wrong = FieldLoss(beta=0.1)(logits, distance * 0 + 0.2, targets, labelled)
    errors = (targets.distance - 0.2).abs()[labelled & (TOUCHING > 0)]
    assert wrong == pytest.approx(torch.where(errors < 0.1, errors**2 / 0.2, errors - 0.05).mean().item(), abs=1e-5)


def test_without_labels_there_is_no_gradient() -> None:
    logits, distance = torch.randn(1, 3, 3, 8, requires_grad=True), torch.rand(1, 3, 8, requires_grad=True)
    loss = FieldLoss()(logits, distance, field_targets(TOUCHING), torch.zeros_like(TOUCHING, dtype=torch.bool))
    loss.backward()
    assert loss == 0
    assert not logits.grad.any()
    assert not distance.grad.any()
