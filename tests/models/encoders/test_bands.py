# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""First layers: what a missing band adds, and what it does not."""

import pytest
import torch
from torch import nn

from torchgeo_omnisat.models import ImageEncoder
from torchgeo_omnisat.models.encoders.bands import BandConv2d, BandLinear, add_missing

PAIRS = [
    (BandConv2d, nn.Conv2d, (3, 4, 3, 1, 1), (2, 3, 6, 6)),
    (BandLinear, nn.Linear, (3, 4), (2, 36, 3)),
]


@pytest.mark.parametrize(('ours', 'plain', 'sizes', 'shape'), PAIRS)
def test_without_missing_bands_it_is_the_plain_layer(ours, plain, sizes, shape) -> None:
    """From one seed the same weights, and as many numbers are drawn."""
    torch.manual_seed(0)
    layer, after = ours(*sizes), torch.rand(1)
    torch.manual_seed(0)
    expected, as_much = plain(*sizes), torch.rand(1)
    x = torch.randn(shape)
    assert torch.equal(after, as_much)
    assert torch.equal(layer(x), expected(x))
    layer.load_state_dict(expected.state_dict())
    assert layer.missing.abs().sum() == 0


@pytest.mark.parametrize('value', [float('nan'), float('inf'), float('-inf')])
def test_missing_bands_match_naive_loop(value: float) -> None:
    torch.manual_seed(0)
    conv, x = BandConv2d(3, 4, 3, 1, 1), torch.randn(2, 3, 6, 6)
    nn.init.normal_(conv.missing)
    x[0, 1, :, :3] = x[1, :, 2, 2] = x[1, 0, 4, 4] = value  # a band, a pixel, a band of a pixel
    flags = torch.zeros_like(x)
    flags[0, 1, :, :3] = flags[1, 0, 4, 4] = 1
    filled = torch.where(x.isfinite(), x, 0)
    expected = torch.zeros(2, 4, 6, 6) + conv.bias[:, None, None]
    for inputs, weight in ((filled, conv.weight), (flags, conv.missing)):
        padded = nn.functional.pad(inputs, (1, 1, 1, 1))
        for row in range(6):
            for column in range(6):
                window = padded[:, :, row : row + 3, column : column + 3]
                expected[:, :, row, column] += torch.einsum('bcij,ocij->bo', window, weight)
    torch.testing.assert_close(conv(x), expected, rtol=0, atol=1e-5)
    pixels = BandLinear(3, 4)
    pixels.weight, pixels.bias = nn.Parameter(conv.weight[..., 1, 1]), conv.bias
    pixels.missing = nn.Parameter(conv.missing[..., 1, 1])
    centre = nn.functional.conv2d(filled, conv.weight[..., 1:2, 1:2], conv.bias)
    centre = centre + nn.functional.conv2d(flags, conv.missing[..., 1:2, 1:2])
    torch.testing.assert_close(pixels(x.movedim(1, -1)), centre.movedim(1, -1), rtol=0, atol=1e-5)


@pytest.mark.parametrize('backbone', ['resnet10t', 'convnext_atto', 'test_vit', 'test_efficientnet', 'test_byobnet'])
def test_timm_backbones_are_told(backbone: str) -> None:
    """The draws are those of the plain backbone, and a band that is missing is not one that is 0."""
    torch.manual_seed(0)
    encoder = ImageEncoder(4, backbone)
    image, valid = torch.randn(2, 4, 40, 52), torch.ones(2, dtype=torch.bool)
    image[0, 2] = float('nan')
    filled = image.nan_to_num(0.0)
    torch.testing.assert_close(encoder(image, valid), encoder(filled, valid), rtol=0, atol=1e-5)
    stem = next(m for m in encoder.modules() if isinstance(m, BandConv2d))
    nn.init.normal_(stem.missing)
    told, untold = encoder(image, valid)[-1], encoder(filled, valid)[-1]
    assert told.isfinite().all()
    assert (told - untold)[0].abs().amax() > 1e-4
    torch.testing.assert_close(told[1], untold[1], rtol=0, atol=1e-5)


def test_backbone_that_begins_otherwise_takes_the_mean() -> None:
    """Its first convolution is of another type, so nothing is said of missing bands; NaN does not reach it."""
    encoder = ImageEncoder(4, 'tf_mobilenetv3_small_minimal_100')
    assert not any(isinstance(m, BandConv2d) for m in encoder.modules())
    image, valid = torch.randn(2, 4, 40, 52), torch.ones(2, dtype=torch.bool)
    image[0, 2] = float('-inf')
    filled = torch.where(image.isfinite(), image, 0)
    torch.testing.assert_close(encoder(image, valid), encoder(filled, valid), rtol=0, atol=1e-5)


def test_saved_without_missing_bands() -> None:
    own = nn.Sequential(BandConv2d(3, 4, 1), nn.Conv2d(4, 4, 1)).state_dict()
    old = {name: value + 1 for name, value in own.items() if not name.endswith('missing')}
    added = add_missing(old, own)
    assert added.keys() == own.keys()
    assert added['0.missing'].abs().sum() == 0
    assert torch.equal(add_missing({'0.missing': own['0.weight']}, own)['0.missing'], own['0.weight'])
    assert add_missing({'1.weight': own['1.weight']}, own).keys() == {'1.weight'}
