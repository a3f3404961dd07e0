"""Activation checkpointing: the same results and gradients, less kept for the backward pass."""

import torch

from torchgeo_omnisat.models import OmniSatSegmenter, omnisat_tiny

from .conftest import MODALITIES, random_batch


def step(checkpointing):
    """Logits, gradients, and the bytes that were kept between forward and backward."""
    torch.manual_seed(0)
    model = OmniSatSegmenter(omnisat_tiny(MODALITIES, checkpointing=checkpointing), num_classes=3)
    kept = {}

    def keep(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        logits = model(random_batch())
    logits.square().mean().backward()
    return logits, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, sum(kept.values())


def test_results_are_equal_and_less_is_kept():
    logits, gradients, kept = step(False)
    again, found, kept_then = step(True)
    assert torch.equal(again, logits)
    assert set(found) == set(gradients)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-8, msg=name)
    assert kept_then < 0.8 * kept
