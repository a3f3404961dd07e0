"""Random batches of three modalities, made to be padded, shuffled and emptied."""

import functools

import pytest
import torch

from torchgeo_omnisat import Modality
from torchgeo_omnisat.models import OmniSatSegmenter, late_fusion, omnisat_tiny

S2 = Modality('s2', ('B02', 'B03', 'B04', 'B08'), 10.0, True)
S1A = Modality('s1a', ('VV', 'VH'), 10.0, True)
SPOT = Modality('spot', ('R', 'G', 'B'), 2.5, False)
MODALITIES = {m.name: m for m in (S2, S1A, SPOT)}


def random_batch(size=3, lengths=(5, 4), pixels=16, seed=0, modalities=MODALITIES):
    """A batch with everything valid: S2 and S1A of 10 m, SPOT of 2.5 m."""
    generator = torch.Generator().manual_seed(seed)
    batch = {}
    for modality, length in zip(modalities.values(), (*lengths, 1), strict=False):
        side = round(pixels * 10 / modality.gsd)
        lead = (size, length) if modality.temporal else (size,)
        batch[modality.image_key] = torch.randn(*lead, len(modality.bands), side, side, generator=generator)
        dates = torch.randperm(380, generator=generator)[: size * length].view(size, length) + 17_800
        batch[modality.dates_key] = dates if modality.temporal else torch.zeros(size, 1, dtype=torch.int64)
        batch[modality.valid_key] = torch.ones(size, length, dtype=torch.bool)
    return batch


def assert_same(a, b, tolerance=1e-5):
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


@pytest.fixture
def modalities():
    return MODALITIES


@pytest.fixture
def batch():
    return random_batch()


@functools.cache
def build(kind):
    """Return a segmenter and a copy of its initial state."""
    torch.manual_seed(0)
    if kind == 'late fusion':
        backbone = late_fusion(MODALITIES, widths=(16, 32), image_widths=(16, 16, 32, 32), width=16)
    elif kind == 'per date':
        encoder = {'name': 'resnet10t', 'channels': [16, 16, 32, 32], 'width': 16}
        backbone = omnisat_tiny(MODALITIES, encoders={'s2': encoder, 's1a': encoder})
    else:
        backbone = omnisat_tiny(MODALITIES, encoders={'s2': kind, 's1a': kind})
    model = OmniSatSegmenter(backbone, num_classes=5, label_gsd=10.0, experts=kind in ('utae', 'per date'))
    return model, {name: value.clone() for name, value in model.state_dict().items()}


@pytest.fixture(params=['utae', 'ltae', 'late fusion', 'per date'])
def model(request):
    """A segmenter in training mode, with or without experts: what must not matter must not matter there either.

    It is built once, and each test gets it in its initial state.
    """
    model, state = build(request.param)
    torch.manual_seed(0)
    model.load_state_dict(state)
    model.zero_grad()
    return model
