"""Compare a compiled model with itself; run by ``test_compiling.py``."""

import copy

import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from torchgeo_omnisat.models import OmniSatSegmenter, omnisat_tiny
from torchgeo_omnisat.models.compiling import compile_regions, regions

from .conftest import MODALITIES, random_batch

SMALL = {'patch_size': 40.0, 'widths': (16, 16), 'image_widths': (16, 16, 16, 16)}


def marked(batch):
    """The batch, its numbers of dates free to change."""
    for modality in MODALITIES.values():
        for key in modality.keys if modality.temporal else ():
            torch._dynamo.mark_dynamic(batch[key], 1)
    return batch


def main():
    """Trace without a break, then call with other numbers of dates: no second graph."""
    torch.manual_seed(0)
    model = OmniSatSegmenter(omnisat_tiny(MODALITIES, **SMALL), num_classes=3)
    compiled = torch.compile(model, fullgraph=True, backend='eager')
    compiled(marked(random_batch(lengths=(8, 7))))
    with torch.compiler.set_stance('fail_on_recompile'):
        for lengths in ((12, 9), (9, 10)):
            assert_equal_steps(compiled, model, random_batch(lengths=lengths))


def assert_equal_steps(ours, reference, batch):
    """Logits and gradients of both models are equal."""
    gradients = []
    expected = reference(batch)
    for call in (reference, ours):
        logits = call(batch)
        parameters = [p for p in call.parameters() if p.requires_grad]
        gradients.append(torch.autograd.grad(logits.square().mean(), parameters, materialize_grads=True))
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    whole = torch.cat([gradient.flatten() for gradient in gradients[0]]).norm()
    for found, wanted in zip(*reversed(gradients), strict=True):
        assert (found - wanted).norm() <= 1e-4 * whole


def partial_batch(seed, lengths=(8, 7), without=None):
    """A batch with dates that are not valid, and samples and a batch without a modality."""
    batch = random_batch(4, lengths, seed=seed)
    batch['valid_s2'][0, 1] = batch['valid_s1a'][1] = batch['valid_spot'][0] = False
    return {key: value for key, value in batch.items() if without is None or not key.endswith(f'_{without}')}


def in_regions():
    """Regions have no break; modules of the same shapes share a graph, which serves all dates and modalities."""
    torch.manual_seed(0)
    model = OmniSatSegmenter(omnisat_tiny(MODALITIES, **SMALL, depth=3, checkpointing=True), 3, experts=True)
    reference = copy.deepcopy(model)
    counter = CompileCounterWithBackend('aot_eager')
    found = compile_regions(model, counter)
    assert compile_regions(model, counter) == found == [name for name, _, _ in regions(model)]
    assert list(model.state_dict()) == list(reference.state_dict())
    # On CPUs, the graph of a convolution also depends on whether there are 16 images.
    assert_equal_steps(model, reference, random_batch(4, (8, 7)))
    # The last levels of both series, three blocks of the fusion, and heads and experts of both series share graphs.
    assert counter.frame_count <= len(found) - 6, (counter.frame_count, len(found))
    assert_equal_steps(model, reference, partial_batch(1))
    # With a selection of images, the sums of dates have a second graph.
    assert counter.frame_count <= len(found)
    with torch.compiler.set_stance('fail_on_recompile'):
        for lengths in ((12, 9), (6, 7)):
            assert_equal_steps(model, reference, partial_batch(2, lengths))
            assert_equal_steps(model, reference, random_batch(4, lengths))
        for name in MODALITIES:
            assert_equal_steps(model, reference, partial_batch(3, without=name))
    assert not counters['graph_break'], counters['graph_break']
    apart = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in apart.parameters():
            parameter.zero_()
    assert not torch.equal(apart(partial_batch(4)), model(partial_batch(4)))


def by_inductor():
    """A step of one encoder, compiled to machine code."""
    torch.manual_seed(0)
    s2 = {'s2': MODALITIES['s2']}
    model = OmniSatSegmenter(omnisat_tiny(s2, patch_size=20.0, widths=(16, 16), depth=0), 3)
    reference = copy.deepcopy(model)
    compile_regions(model)
    for lengths in ((4,), (5,)):
        assert_equal_steps(model, reference, random_batch(lengths=lengths, modalities=s2))
