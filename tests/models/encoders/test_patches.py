# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""The published encoders of patches, without their weights: what goes into a token, and what does not."""

import pytest
import torch

from torchgeo_omnisat.models import ImagePatchEncoder, SeriesPatchEncoder

SMALL = {'mlp_in': (8, 16), 'mlp': (16, 32, 24), 'num_heads': 4, 'key_dim': 2}


@pytest.fixture
def series() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Three dates of a sample, the last of them padding."""
    torch.manual_seed(0)
    return torch.randn(2, 3, 5, 4, 6), torch.tensor([[18000, 18030, 0]] * 2), torch.tensor([[True, True, False]] * 2)


@pytest.mark.parametrize(('side', 'patches'), [(1, 24), (2, 6)])
def test_padding_and_the_order_of_dates_change_no_token(
    side: int, patches: int, series: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> None:
    image, dates, valid = series
    model = SeriesPatchEncoder(5, side, **SMALL).eval()
    tokens = model(image, dates, valid)
    assert tokens.shape == (2, patches, 24)
    image[:, 2] = torch.nan
    torch.testing.assert_close(model(image, dates, valid), tokens)
    torch.testing.assert_close(model(image[:, :2], dates[:, :2], valid[:, :2]), tokens)
    order = [2, 1, 0]
    torch.testing.assert_close(model(image[:, order], dates[:, order], valid[:, order]), tokens)


def test_a_token_of_a_series_is_its_patch_and_its_dates(
    series: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    image, dates, valid = series
    model = SeriesPatchEncoder(5, 2, **SMALL).eval()
    tokens = model(image, dates, valid)
    image[:, 0, :, 2:, 4:] += 1  # the last of 2 x 3 patches
    changed = (model(image, dates, valid) - tokens).abs().amax((0, 2)) > 1e-4
    assert changed.tolist() == [False] * 5 + [True]
    assert not torch.allclose(model(image, dates + torch.tensor([0, 90, 0]), valid), tokens, atol=1e-3)


def test_a_token_of_an_image_is_its_patch() -> None:
    torch.manual_seed(0)
    model, image = ImagePatchEncoder(3, 32, dim=8).eval(), torch.randn(2, 3, 64, 96)
    tokens = model(image)
    assert tokens.shape == (2, 6, 8)
    image[:, :, 32:, :32] += 1  # the fourth of 2 x 3
    changed = (model(image) - tokens).abs().amax((0, 2)) > 1e-5
    assert changed.tolist() == [False] * 3 + [True] + [False] * 2


@pytest.mark.parametrize('value', [float('nan'), float('inf'), float('-inf')])
def test_what_was_not_measured_counts_as_the_mean(
    value: float, series: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> None:
    """As published: there are no parameters to tell it apart."""
    image, dates, valid = series
    image[0, 0, 1, :2] = value
    of_series, of_images = SeriesPatchEncoder(5, 2, **SMALL).eval(), ImagePatchEncoder(5, 32, dim=8).eval()
    tokens = of_series(image, dates, valid)
    single = image[:, 0].repeat(1, 1, 8, 6)[..., :32, :32]
    torch.testing.assert_close(tokens, of_series(torch.where(image.isfinite(), image, 0), dates, valid))
    torch.testing.assert_close(of_images(single), of_images(torch.where(single.isfinite(), single, 0)))


def test_a_patch_that_leaves_more_than_a_pixel_is_refused() -> None:
    with pytest.raises(ValueError, match=r'patch_size 64.*32.*63'):
        ImagePatchEncoder(3, 64)


def test_foreign_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match='series encoder'):
        SeriesPatchEncoder.from_published({}, in_channels=5, colour=3)
