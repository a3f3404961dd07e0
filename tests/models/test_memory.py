# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Memory of a training step by count: parameters, gradients, optimiser and what is kept for the backward pass."""

import pytest
import torch

from torchgeo_omnisat import Modality
from torchgeo_omnisat.models import OmniSatSegmenter, omnisat, omnisat_base
from torchgeo_omnisat.models.encoders import image
from torchgeo_omnisat.models.encoders.series import utae

#: Modalities of PASTIS-HD, and the number of dates of its tiles of 128 pixels of 10 m.
SERIES = {'s2': (10, 40), 's1a': (3, 50), 's1d': (3, 50)}
LIMIT = 24e9


def kept(checkpointing: bool, batch_size: int = 8) -> float:
    """Return the bytes of a step of omnisat_base in bfloat16, without its largest temporary tensors.

    Meta tensors have shapes and no values.
    """
    modalities = [Modality(name, tuple('abcdefghij'[:bands]), 10.0, True) for name, (bands, _) in SERIES.items()]
    modalities.append(Modality('spot', ('R', 'G', 'B'), 1.0, False))
    model = OmniSatSegmenter(omnisat_base(modalities, checkpointing=checkpointing), num_classes=20, experts=True)
    model = model.bfloat16().to('meta')
    batch = {}
    for modality in modalities:
        dates, bands = (SERIES[modality.name][1] if modality.temporal else 1), len(modality.bands)
        side = modality.pixels(1280.0)
        shape = (batch_size, dates, bands, side, side) if modality.temporal else (batch_size, bands, side, side)
        batch[modality.image_key] = torch.empty(shape, dtype=torch.bfloat16, device='meta')
        batch[modality.dates_key] = torch.zeros(batch_size, dates, dtype=torch.int64, device='meta')
        batch[modality.valid_key] = torch.ones(batch_size, dates, dtype=torch.bool, device='meta')
    storages = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        storages[x.untyped_storage()._cdata] = x.untyped_storage()
        return x

    for x in batch.values():
        keep(x)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        keep(model(batch))
    states = 4 * sum(p.numel() * p.element_size() for p in model.parameters())  # weights, gradients, AdamW's two
    return states + sum(storage.nbytes() for storage in storages.values())


@pytest.mark.slow
def test_base_on_whole_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Activation checkpointing keeps less than two thirds."""
    autocast = torch.autocast
    monkeypatch.setattr(torch, 'autocast', lambda device, *args, **kwargs: autocast('cpu', *args, **kwargs))
    monkeypatch.setattr(omnisat, 'read_valid', lambda flags: None)
    for module in (utae, image):
        monkeypatch.setattr(module, 'valid_indices', lambda valid: None)
    whole, part = kept(False), kept(True)
    assert whole < 0.8 * LIMIT
    assert part < 0.65 * whole
