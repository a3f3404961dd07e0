# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Pre-trained encoders on a simulated device: the outputs of the CPU, and no wait for images."""

from typing import Any

import pytest
import torch

from torchgeo_omnisat import Modality
from torchgeo_omnisat.models import omnisat_tiny
from torchgeo_omnisat.models.context import GeoContext
from torchgeo_omnisat.models.encoders.location import SatCLIPLocation, ScaledLocation

from ....devices import fetch, place, simulated
from .images.tiny import shrink

OPTICAL = Modality('s2', ('B02', 'B03', 'B04'), 10.0, False, 'optical', 'dn', (492.4, 559.8, 664.6))
PLACES = torch.tensor([[2.0, 48.0], [12.0, -3.0]], dtype=torch.float64)
LOCATIONS: dict[str, Any] = {
    'scaled': lambda: ScaledLocation(dim=8),
    'satclip': lambda: SatCLIPLocation(legendre_polys=4, capacity=8, embed_dim=8),
}


def outputs(module: Any, *inputs: Any) -> tuple[Any, Any, Any]:
    """Outputs on the CPU and on the device, and the waits of the latter."""
    expected = module(*inputs)
    with simulated() as mode:
        module._apply(place)
        given = place(inputs)
        mode.waits.clear()
        found = fetch(module(*given))
        return expected, found, dict(mode.waits)


@pytest.mark.parametrize('freeze', [True, False])
@pytest.mark.parametrize('name', ['croma', 'copernicusfm', 'deo', 'dofa', 'panopticon'])
def test_images(name: str, freeze: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    shrink(monkeypatch)
    spec = {'name': name, 'units': 'standardised', 'pretrained': False, 'freeze': freeze}
    encoder: Any = omnisat_tiny([OPTICAL], encoders={'s2': spec}).encoders['s2'].eval()
    image = torch.randn(2, 3, 32, 32)
    image[0, 1, :4] = torch.nan
    encoder.forward = encoder.encode  # the selection of valid images is that of all models
    expected, found, waits = outputs(encoder, image)
    assert bool(waits) == (name == 'panopticon')  # TorchGeo selects the optical channels by flags
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('name', LOCATIONS)
def test_location(name: str) -> None:
    torch.manual_seed(0)
    expected, found, waits = outputs(LOCATIONS[name]().eval(), PLACES)
    assert bool(waits) == (name == 'satclip')  # TorchGeo computes its harmonics from constants on the CPU
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_context_reads_the_regions() -> None:
    """The prototypes of the regions of a batch are those of the CPU, after one wait."""
    fused, counted = torch.randn(2, 16, 8), torch.rand(2, 16) < 0.8
    contexts = [GeoContext(8, 10.0, 4) for _ in range(2)]
    contexts[0].update(fused, counted, PLACES, [2])
    with simulated() as mode:
        contexts[1]._apply(place)
        given = place((fused, counted, PLACES))
        contexts[1].update(*given, [2])
        assert sum(mode.waits.values()) == 1, mode.waits
        state = fetch(dict(contexts[1].state_dict()))
    for name, value in contexts[0].state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=1e-5, atol=1e-5)
    assert contexts[0].bank.updates.sum() == 2
