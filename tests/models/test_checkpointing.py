"""Activation checkpointing: the same results and gradients, less kept for the backward pass with each level."""

import pytest
import torch

from torchgeo_omnisat.models import OmniSatSegmenter, late_fusion, omnisat_small, omnisat_tiny
from torchgeo_omnisat.models.encoders.image import ImageEncoder
from torchgeo_omnisat.models.encoders.recomputation import RecomputedStages

from .conftest import MODALITIES, random_batch

NARROW = {'widths': (16, 16, 16), 'image_widths': (16, 16, 16, 16)}


def step(checkpointing, build=omnisat_tiny):
    """Logits, gradients, and the bytes that were kept between forward and backward."""
    torch.manual_seed(0)
    model = OmniSatSegmenter(build(MODALITIES, checkpointing=checkpointing, **NARROW), num_classes=3)
    kept = {}

    def keep(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        logits = model(random_batch())
    logits.square().mean().backward()
    return logits, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, sum(kept.values())


def test_results_are_equal_and_each_level_keeps_less():
    logits, gradients, before = step(False)
    kept = {False: before}
    for checkpointing in (1, True, 2, 5):
        again, found, kept[checkpointing, type(checkpointing)] = step(checkpointing)
        assert torch.equal(again, logits)
        assert set(found) == set(gradients)
        for name, gradient in gradients.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-8, msg=name)
    sizes = list(kept.values())
    assert sizes[0] > 1.1 * sizes[1]
    # True is two levels of time series; 1 also has the finest stage of SPOT.
    assert sizes[0] > 1.1 * sizes[2]
    assert min(sizes[1:3]) > 1.1 * sizes[3] > 1.1 * 1.1 * sizes[4]


def test_encoders_of_late_fusion_keep_less():
    logits, gradients, before = step(False, late_fusion)
    again, found, kept = step(5, late_fusion)
    assert torch.equal(again, logits)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-8, msg=name)
    assert before > 1.1 * kept


def test_true_is_two_levels_of_time_series():
    """As in checkpoints that were written when there was no other choice."""
    encoders = omnisat_small(MODALITIES).encoders
    assert [encoders[name].recomputed for name in ('s2', 's1a')] == [2, 2]
    assert not isinstance(encoders['spot'].backbone, RecomputedStages)
    one = omnisat_small(MODALITIES, checkpointing=1)
    assert (one.encoders['s2'].recomputed, one.encoders['spot'].backbone.levels) == (1, 1)
    assert list(one.state_dict()) == list(omnisat_small(MODALITIES).state_dict())


def test_negative_number_of_levels_is_an_error():
    with pytest.raises(ValueError, match='checkpointing is -1'):
        omnisat_tiny(MODALITIES, checkpointing=-1)


def test_value_that_no_encoder_takes_is_an_error():
    encoders = {'s2': 'ltae', 's1a': 'ltae', 'spot': 'resnet18'}
    with pytest.raises(ValueError, match='checkpointing is -2'):
        omnisat_tiny(MODALITIES, checkpointing=-2, encoders=encoders)


def test_backbone_without_stages_is_an_error():
    with pytest.raises(ValueError, match='checkpointing is 1'):
        ImageEncoder(3, 'test_vit', checkpointing=1)


@pytest.mark.parametrize(
    ('backbone', 'settings'),
    [
        ('resnet18', {'drop_path_rate': 0.5}),
        ('resnet18', {'drop_block_rate': 0.5}),
        ('test_convnext', {'drop_path_rate': 0.5}),
    ],
)
def test_random_layers_drop_the_same_again(backbone, settings):
    found = []
    for checkpointing in (0, 5):
        torch.manual_seed(0)
        encoder = ImageEncoder(3, backbone, checkpointing=checkpointing, **settings).train()
        maps = encoder(torch.randn(8, 3, 32, 32), torch.ones(8, dtype=torch.bool))
        sum(x.square().mean() for x in maps).backward()
        found.append(torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-8)
