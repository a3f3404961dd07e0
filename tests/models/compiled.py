"""Compare a compiled model with itself; run by ``test_compiling.py``."""

import copy

import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters
from torch.utils._pytree import tree_leaves

from torchgeo_omnisat.models import (
    OmniSatClassifier,
    OmniSatSegmenter,
    late_fusion,
    omnisat_base,
    omnisat_small,
    omnisat_tiny,
    utae,
)
from torchgeo_omnisat.models.compiling import compile_regions, regions
from torchgeo_omnisat.tasks import OmniSatPretraining
from torchgeo_omnisat.tasks.views import draw_views

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
    model = OmniSatSegmenter(omnisat_tiny(MODALITIES, **SMALL, depth=3, checkpointing=1), 3, experts=True)
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


def every_model():
    """No model has a graph break in encode, fuse or decode, whatever is missing; the output is that of the model."""
    for build in (fields, regression, labels, other_encoders, baselines, pretraining):
        torch.manual_seed(0)
        for function, arguments in build():
            torch._dynamo.reset()
            torch.manual_seed(1)
            found = tree_leaves(torch.compile(function, fullgraph=True, backend='eager')(*arguments))
            torch.manual_seed(1)
            expected = tree_leaves(function(*arguments))
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, msg=lambda x, build=build: f'{build} {x}')


NARROW = {'widths': [16, 16], 'image_widths': [16, 16, 16, 16], 'depth': 1, 'embed_dim': 32, 'num_heads': 2}


def located(batch):
    """The batch with the location of some tiles."""
    places = [[2.0, 48.0], [12.0, -3.0], [torch.nan, torch.nan], [0.0, 1.0]]
    return {**batch, 'coordinates': torch.tensor(places, dtype=torch.float64)}


def fields():
    """Experts, and fields at half the GSD of the labels."""
    model = OmniSatSegmenter(omnisat_tiny(MODALITIES, **NARROW), 3, experts=True, instances=True, field_gsd=5.0)
    yield lambda batch: model.decode_fields(model.backbone(batch)), [partial_batch(1)]


def regression():
    """One output, a location, no SPOT, and levels that are recomputed."""
    backbone = omnisat_small(MODALITIES, **NARROW, checkpointing=1, encoders={'location': 'scaled'})
    yield OmniSatSegmenter(backbone, 1, experts=True).forward, [located(partial_batch(1, without='spot'))]


def labels():
    yield (
        OmniSatClassifier(omnisat_base(MODALITIES, **NARROW, context_degrees=10.0), 3).forward,
        [located(partial_batch(1))],
    )


def other_encoders():
    """L-TAE, and a backbone of timm on each date."""
    encoders = {'s2': 'ltae', 's1a': {'name': 'resnet10t', 'channels': [16] * 4, 'width': 16}}
    yield OmniSatSegmenter(omnisat_tiny(MODALITIES, **NARROW, encoders=encoders), 3).forward, [partial_batch(1)]


def baselines():
    sizes = {name: NARROW[name] for name in ('widths', 'image_widths')}
    yield OmniSatSegmenter(late_fusion(MODALITIES, **sizes, width=16), 3).forward, [partial_batch(1)]
    batch = random_batch(1, (4,))
    image = torch.cat([batch['image_s2']] * 3, 2)[:, :, :10]
    yield utae(), [image, batch['dates_s2'], batch['valid_s2']]


def pretraining():
    """All losses, with a location and regions."""
    backbone = {**NARROW, 'encoders': {'location': 'scaled'}, 'context_degrees': 10.0, 'context_prototypes': 4}
    dense = {'embedding_dim': 16, 'embedding_gsd': 10.0}
    grains = {'object_weight': 1.0, 'granularity': ['pixel', 'object', 'image'], 'granularity_prototypes': 8}
    known = {name: MODALITIES[name] for name in ('s2', 'spot')}
    task = OmniSatPretraining(
        'omnisat_tiny', known, 40.0, backbone_args=backbone, max_dates=2, **grains, **dense
    ).train()
    batch = located(partial_batch(1, without='s1a'))
    sizes = task.model.grid(batch), 0.5, torch.device('cpu'), task.model.pixel_grid(batch), 8
    yield task.model.views, [batch, draw_views([0], [4], 2, *sizes), [0.3, 0.3]]


def by_inductor():
    """A step of one encoder, compiled to machine code."""
    torch.manual_seed(0)
    s2 = {'s2': MODALITIES['s2']}
    model = OmniSatSegmenter(omnisat_tiny(s2, patch_size=20.0, widths=(16, 16), depth=0), 3)
    reference = copy.deepcopy(model)
    compile_regions(model)
    for lengths in ((4,), (5,)):
        assert_equal_steps(model, reference, random_batch(lengths=lengths, modalities=s2))
