# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

import pytest
import torch

from torchgeo_omnisat import Modality
from torchgeo_omnisat.models import attention, late_fusion, omnisat_tiny

S2 = Modality('s2', ('B04', 'B08'), 10.0, True)
S1 = Modality('s1', ('VV',), 10.0, True)
SPOT = Modality('spot', ('R',), 5.0, False)


@pytest.fixture
def batch():
    torch.manual_seed(0)
    valid = torch.tensor([[True, True, False], [True, True, True]])
    return {
        'image_s2': torch.randn(2, 3, 2, 16, 32),
        'dates_s2': torch.tensor([[18000, 18100, 0], [18000, 18050, 18090]]),
        'valid_s2': valid,
        'image_s1': torch.randn(2, 2, 1, 16, 32),
        'dates_s1': torch.tensor([[18000, 18010]] * 2),
        'valid_s1': torch.tensor([[True, True], [False, False]]),
        'image_spot': torch.randn(2, 1, 32, 64),
        'dates_spot': torch.zeros(2, 1, dtype=torch.int64),
        'valid_spot': torch.ones(2, 1, dtype=torch.bool),
    }


@pytest.mark.parametrize('encoder', ['utae', 'ltae'])
def test_weights_add_up_to_one_over_what_was_seen(batch, encoder):
    model = omnisat_tiny([S2, S1, SPOT], patch_size=40.0, encoders={'s2': encoder}).eval()
    found = attention(model, batch)
    assert found.grid == (4, 8)
    assert found.dates['s2'].shape == (2, 3, 32)
    assert found.modalities.shape == (2, 32, 3)
    torch.testing.assert_close(found.dates['s2'].sum(1), torch.ones(2, 32))
    torch.testing.assert_close(found.modalities.sum(-1), torch.ones(2, 32))
    assert set(found.dates) == {'s1', 's2'}
    assert not found.dates['s2'][0, 2].any()  # not valid
    assert not found.dates['s1'][1].any()
    assert not found.modalities[1, :, 1].any()
    assert found.modalities[0, :, 1].all()


def test_patches_lie_where_they_lie_on_the_ground(batch):
    model = omnisat_tiny([S2, S1, SPOT], patch_size=40.0, encoders={'s2': 'ltae'}).eval()
    batch['image_s2'][1, :2, :, :4, :8] = torch.nan  # row 0, columns 0 and 1: the third date alone is left
    last = attention(model, batch).dates['s2'][1, 2].unflatten(-1, (4, 8))
    torch.testing.assert_close(last[0, :2], torch.ones(2))
    assert (last[1:] < 1).all()
    assert (last[:, 2:] < 1).all()


def test_weights_are_those_that_the_fusion_uses(batch):
    model = omnisat_tiny([S2, SPOT], patch_size=40.0).eval()
    batch = {key: value for key, value in batch.items() if not key.endswith('_s1')}
    with torch.no_grad():
        model.fusion.modalities.scores.weight.zero_()
        model.fusion.modalities.scores.bias.zero_()
    torch.testing.assert_close(attention(model, batch).modalities, torch.full((2, 32, 2), 0.5))


def test_looking_changes_nothing(batch):
    model = omnisat_tiny([S2, S1, SPOT], patch_size=40.0).eval()
    before = model(batch).fused
    found = attention(model, batch)
    assert not found.modalities.requires_grad
    assert not any(part._forward_hooks for part in model.modules())
    torch.testing.assert_close(model(batch).fused, before)


def test_a_fusion_without_attention_is_refused(batch):
    with pytest.raises(ValueError, match='LateFusion'):
        attention(late_fusion([S2, S1, SPOT]), batch)
