"""Dates are weighed and added up where they were measured."""

import pytest
import torch

from torchgeo_omnisat.models import UTAE, UTAEEncoder
from torchgeo_omnisat.models.encoders import packing
from torchgeo_omnisat.models.encoders.series.utae import collapse

from ...conftest import assert_same


def test_functional_gradients():
    torch.manual_seed(0)
    encoder = UTAEEncoder(3, (16, 16, 16))
    inputs = torch.randn(2, 3, 3, 8, 8), torch.arange(6).view(2, 3), torch.ones(2, 3, dtype=torch.bool)
    parameters = dict(encoder.named_parameters())

    def loss(parameters):
        return sum(x.square().mean() for x in torch.func.functional_call(encoder, parameters, inputs))

    found = torch.func.grad(loss)(parameters)
    expected = torch.autograd.grad(loss(parameters), list(parameters.values()), materialize_grads=True)
    for name, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(found[name], gradient, msg=name)


def test_a_class_is_needed():
    with pytest.raises(ValueError, match='num_classes is 0, expected an integer'):
        UTAE(num_classes=0)


def test_collapse_matches_naive_loop():
    """Two samples of three and two dates; the weights go to where a pixel was measured."""
    torch.manual_seed(0)
    valid, index = torch.ones(2, 3, dtype=torch.bool), torch.tensor([0, 1, 2, 3, 5])
    level, weights = torch.randn(5, 8, 6, 6), torch.rand(5, 4, 6, 6)
    seen = torch.rand(5, 1, 6, 6) > 0.4
    expected = torch.zeros(2, 8, 6, 6)
    for sample, dates in ((0, (0, 1, 2)), (1, (3, 4))):
        for head in range(4):
            total = sum(weights[s, head] * seen[s, 0] for s in dates).clamp(min=1e-3)
            for channel in (2 * head, 2 * head + 1):
                expected[sample, channel] = (
                    sum(level[s, channel] * weights[s, head] * seen[s, 0] for s in dates) / total
                )
    assert_same(collapse(level, weights, seen, index, valid), expected, 1e-5)


def test_dates_that_all_saw_a_pixel_keep_their_weights():
    level, weights = torch.randn(2, 4, 4, 4), torch.rand(2, 2, 4, 4)
    seen = torch.ones(2, 1, 4, 4, dtype=torch.bool)
    expected = (level.unflatten(1, (2, 2)) * weights[:, :, None]).sum(0).flatten(0, 1)
    assert_same(collapse(level, weights, seen, None, torch.ones(1, 2, dtype=torch.bool))[0], expected, 1e-6)


def test_weights_add_up_to_one():
    encoder = UTAEEncoder(3, (16, 32), num_heads=8)
    valid = torch.tensor([[True, True, False], [False, False, False]])
    maps, weights = encoder.attend(torch.randn(2, 3, 3, 8, 8), torch.tensor([[17_800, 17_900, 0]] * 2), valid)
    assert [tuple(x.shape) for x in maps] == [(2, 16, 8, 8), (2, 32, 4, 4)]
    assert_same(weights[0].sum(0), torch.ones(8, 4, 4))
    assert weights[0, 2].abs().sum() == weights[1].abs().sum() == 0


def test_padding_is_invisible_to_utae():
    """As a model of its own, in training mode."""
    torch.manual_seed(0)
    model = UTAE(3, 5).train()
    image, dates = torch.randn(2, 4, 3, 16, 16), torch.arange(17_800, 18_200, 100).repeat(2, 1)
    valid = torch.tensor([[True] * 4, [True, True, False, False]])
    logits = model(image, dates, valid)
    assert logits.shape == (2, 5, 16, 16)
    assert logits.min() < 0
    assert_same(model(image[1:, :2], dates[1:, :2], valid[1:, :2])[0], logits[1])
    assert model(image[..., :13, :11], dates, valid).shape == (2, 5, 13, 11)


@pytest.mark.parametrize('samples', [1, 2])
def test_few_dates_at_a_time(samples, monkeypatch):
    """On a processor the maps of a block fit in its cache, and all blocks together give the same maps and gradients."""
    torch.manual_seed(0)
    encoder = UTAEEncoder(3, (16, 32, 32), num_heads=8, checkpointing=True).double()
    image, dates = torch.randn(samples, 5, 3, 16, 16).double(), torch.arange(17_800, 18_300, 100).repeat(samples, 1)
    image[0, 1, :, :9] = torch.nan
    valid = torch.tensor([[True, True, True, True, False], [True] * 5])[-samples:]
    sizes = []
    encoder.in_conv.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))

    def run():
        encoder.zero_grad()
        maps = encoder(image, dates, valid)
        sum(x.square().mean() for x in maps).backward()
        return [*maps, *(p.grad.clone() for p in encoder.parameters() if p.grad is not None)]

    whole = run()
    assert sizes == [valid.sum(), valid.sum()]
    sizes.clear()
    monkeypatch.setattr(packing, 'BLOCK', 2 * 16 * 16 * 16)  # two images
    blocks = run()
    assert set(sizes) <= {1, 2}
    for one, other in zip(blocks, whole, strict=True):
        torch.testing.assert_close(one, other)


def test_upsampled_weights_are_recomputed():
    """Of the attention weights, only those of the coarsest level are kept for the backward pass."""
    kept = set()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.add(tuple(x.shape)) or x, lambda x: x):
        maps = UTAEEncoder(2, widths=(16, 32))(torch.randn(1, 3, 2, 8, 8), torch.arange(3)[None], torch.ones(1, 3) > 0)
    assert (3, 16, 8, 8) in kept  # maps of the dates
    assert (3, 8, 8, 16, 1) not in kept
    maps[0].sum().backward()
