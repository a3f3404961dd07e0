"""Invariances that hold for every encoder: of models with several, and of the maps of one."""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from ... import test_invariance
from ...conftest import S2, random_batch

#: Arguments after the modality by test; None for tests without a modality. The others are about layers of ours.
INVARIANCES = {
    'test_padding_is_invisible': (float('nan'),),
    'test_absent_modality_is_invisible': (1e4,),
    'test_absent_keys_equal_absent_everywhere': (),
    'test_order_of_dates_is_invisible': (),
    'test_dates_matter': (),
    'test_other_samples_are_invisible': None,
    'test_nan_image_equals_absent_image': None,
    'test_nan_date_equals_invalid_date': (),
    'test_unmeasured_patch_takes_no_part': None,
    'test_nothing_available_is_finite': None,
    'test_restricting_equals_encoding_less': None,
    'test_pixel_without_any_band_adds_nothing': (),
}


def check(name, segmenter, pixels=16):
    """Run a test of the module with a copy of a segmenter of ``s2``, ``s1a`` and ``spot``."""
    arguments = INVARIANCES[name]
    batch = random_batch(pixels=pixels, modalities=segmenter.backbone.modalities)
    rest = () if arguments is None else (S2, *arguments)
    getattr(test_invariance, name)(copy.deepcopy(segmenter), batch, *rest)


def learn(built: nn.Module) -> None:
    """Set the parameters of missing and extra bands, as training does."""
    for key, parameter in built.named_parameters():
        if key.endswith(('.missing', '.extra')):
            nn.init.normal_(parameter, std=0.1)


def check_series(built: Any, bands: int) -> None:
    """Compare maps of time series: padding, the order of dates, other samples, and the content of invalid dates."""
    learn(built.train())
    image, dates = torch.randn(2, 3, bands, 40, 40), torch.tensor([[18000, 18030, 18060], [18010, 18100, 18200]])
    valid = torch.tensor([[True, True, False], [True, True, True]])
    image[0, 0, 0, :8] = image[1, 1, :, 8:16] = torch.nan
    expected = built(image, dates, valid)
    assert all(m.isfinite().all() for m in expected)
    assert [m.shape[-1] for m in expected] == [math.ceil(40 / stride) for stride in built.strides]

    def same(maps: list[Tensor], samples: Any = slice(None)) -> None:
        for a, b in zip(maps, expected, strict=True):
            torch.testing.assert_close(a, b[samples], rtol=1e-4, atol=1e-4)

    order = [2, 0, 1]
    same(built(image[:, order], dates[:, order], valid[:, order]))
    same(built(image[:1], dates[:1], valid[:1]), slice(1))
    more = torch.cat([image, torch.full((2, 2, bands, 40, 40), torch.nan)], 1)
    same(built(more, torch.cat([dates, dates[:, :2]], 1), torch.cat([valid, torch.zeros(2, 2, dtype=torch.bool)], 1)))
    image[0, 2] = 1e4
    same(built(image, dates, valid))
    image[0, 2], valid[0, 2] = torch.nan, True
    same(built(image, dates, valid))
    nothing = built(image, dates, torch.zeros_like(valid))
    assert all(m.isfinite().all() for m in nothing)


def check_images(built: Any, bands: int) -> None:
    """Compare maps of single images: other samples, the content of invalid ones, and nodata."""
    learn(built.train())
    image, valid = torch.randn(3, bands, 40, 56), torch.tensor([True, False, True])
    image[0, 0] = image[2, :, 8:16] = torch.nan
    expected = built(image, valid)
    assert all(m.isfinite().all() and m[1].abs().sum() == 0 for m in expected)
    image[1] = 1e4
    alone = built(image[2:], valid[2:])
    for a, b, c in zip(built(image, valid), expected, alone, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(c[0], b[2], rtol=1e-4, atol=1e-4)
    measured = built(torch.where(image.isnan(), 0.0, image), valid)
    assert all((a - b)[0].abs().amax() > 1e-4 for a, b in zip(measured, expected, strict=True))
