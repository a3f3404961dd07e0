# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

import pytest
import torch
from torch import nn

from torchgeo_omnisat import Modality
from torchgeo_omnisat.models import attention, omnisat_tiny
from torchgeo_omnisat.models.encoders.series import ltae
from torchgeo_omnisat.models.encoders.series.ltae import LTAEEncoder


@pytest.fixture
def series():
    torch.manual_seed(0)
    image = torch.randn(2, 6, 3, 8, 5, dtype=torch.float64)
    image[0, 0, :, 4:] = torch.nan  # the first date is observed only in the upper rows
    image[1, 2, 1, 3] = torch.nan
    valid = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    return image, 20 * torch.arange(6).repeat(2, 1), valid


class EveryDate(nn.Module):
    """Temporal attention of features that are projected on every date first."""

    def __init__(self, temporal):
        super().__init__()
        self.temporal = temporal

    def forward(self, x, dates, seen, proj, valid):
        return self.temporal(proj(x), dates, seen, None, valid)


def test_projection_after_the_sum_over_dates(series):
    encoder = LTAEEncoder(3, (32,)).double()
    (found,) = encoder(*series)
    found.square().mean().backward()
    gradients = [p.grad.clone() for p in encoder.parameters()]
    encoder.zero_grad()
    encoder.temporal = EveryDate(encoder.temporal)
    (expected,) = encoder(*series)
    expected.square().mean().backward()
    torch.testing.assert_close(found, expected)
    for gradient, parameter in zip(gradients, encoder.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


def test_blocks_of_rows(series, monkeypatch):
    encoder = LTAEEncoder(3, (16, 32)).double()
    whole = encoder(*series)
    monkeypatch.setattr(ltae, 'BLOCK', 3 * 2 * 6 * 5 * 16)
    assert encoder._rows(series[0]) == 3
    for one, other in zip(encoder(*series), whole, strict=True):
        torch.testing.assert_close(one, other)


def test_attention_weights_of_blocks(series, monkeypatch):
    model = omnisat_tiny([Modality('s2', ('a', 'b', 'c'), 10.0, True)], patch_size=10.0, encoders={'s2': 'ltae'})
    keys = ('image_s2', 'dates_s2', 'valid_s2')
    batch = {k: x.float() if x.is_floating_point() else x for k, x in zip(keys, series, strict=True)}
    whole = attention(model.eval(), batch).dates['s2']
    monkeypatch.setattr(ltae, 'BLOCK', 1)
    torch.testing.assert_close(attention(model, batch).dates['s2'], whole)
