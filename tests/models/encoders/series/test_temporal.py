# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Dates and norms over dates, beside their formulas written out."""

import datetime
import math

import pytest
import torch
from torch import nn

from torchgeo_omnisat.models.encoders.series.temporal import (
    AnnualDates,
    SeriesGroupNorm,
    SinusoidDates,
    TemporalAttention,
)
from torchgeo_omnisat.utils.tensors.dates import YEAR

EPOCH = datetime.date(1970, 1, 1)


def days(*dates: tuple[int, int, int]) -> torch.Tensor:
    """Days since 1970-01-01 of a series."""
    return torch.tensor([[(datetime.date(*date) - EPOCH).days for date in dates]])


def test_annual_dates_are_the_season_and_the_time_since_the_first() -> None:
    dates, valid = days((2018, 9, 1), (2018, 11, 1), (2019, 11, 1)), torch.tensor([[False, True, True]])
    encoding = AnnualDates(12, harmonics=4)
    encoding.proj = nn.Identity()  # type: ignore[assignment]
    season, since, _, _ = encoding(dates, valid)[0].split([4, 2, 4, 2], dim=-1)
    turns = dates[0, 0].item() / YEAR % 1
    torch.testing.assert_close(season[0], (2 * math.pi * turns * torch.arange(1, 5)).sin(), atol=1e-3, rtol=0)
    torch.testing.assert_close(season[1], season[2], atol=0.05, rtol=0)  # the same day of two years
    torch.testing.assert_close(since[1], torch.zeros(2))
    torch.testing.assert_close(since[2], (2 * math.pi * 365 / YEAR / torch.tensor([2.0, 8.0])).sin())


def test_sinusoids_are_the_published_formula() -> None:
    dates, encoding = days((2018, 9, 2), (2019, 3, 1)), SinusoidDates(8, 2, period=1000)
    found = encoding(dates, torch.ones(1, 2, dtype=torch.bool))[0]
    for row, day in zip(found, dates[0].tolist(), strict=True):
        since = day - encoding.reference_date
        head = [f(since / 1000 ** (2 * i / 4)) for i in (0, 1) for f in (math.sin, math.cos)]
        torch.testing.assert_close(row, torch.tensor(head * 2), atol=1e-4, rtol=0)
    assert not encoding.state_dict()


def test_norm_over_dates_is_group_norm_of_those_seen() -> None:
    torch.manual_seed(0)
    x, seen = 3 + 2 * torch.randn(2, 5, 3, 8), torch.ones(2, 5, 3, dtype=torch.bool)
    seen[1, 3:] = False
    norm = SeriesGroupNorm(4, 8)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    found = norm(x, seen)
    for tile, count in ((0, 5), (1, 3)):
        series = x[tile, :count].permute(1, 2, 0)  # a pixel is a sample of channels and dates
        wanted = nn.functional.group_norm(series, 4, norm.weight, norm.bias, norm.eps).permute(2, 0, 1)
        torch.testing.assert_close(found[tile, :count], wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(norm(x[:1], seen[:1]), found[:1])  # without a missing date


def test_the_sum_over_dates_is_that_of_projected_dates() -> None:
    torch.manual_seed(0)
    dates, seen = days((2019, 1, 1), (2019, 4, 1), (2019, 7, 1)), torch.rand(1, 3, 5) > 0.3
    x, attention = torch.randn(1, 3, 5, 16, requires_grad=True), TemporalAttention(16, (16,), 32, num_heads=4)
    assert attention.in_norm is not None
    assert attention.in_proj is not None
    projected = attention.in_proj(attention.in_norm(x, seen)) + attention.dates(dates, seen.any(-1)).unsqueeze(2)
    scores = attention.heads(projected).masked_fill(~seen.unsqueeze(-1), -1e9)
    weights = scores.softmax(1) * seen.unsqueeze(-1)
    expected = attention._finish((projected.unflatten(-1, (4, 8)) * weights.unsqueeze(-1)).sum(1))
    found, found_weights = attention(x, dates, seen)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found_weights, weights)
    inputs = [x, *attention.parameters()]
    for own, plain in zip(*(torch.autograd.grad(y.square().sum(), inputs) for y in (found, expected)), strict=True):
        torch.testing.assert_close(own, plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('in_norm', [True, False])
def test_brightness_is_normalised_away_only_if_asked(in_norm: bool) -> None:
    torch.manual_seed(0)
    dates, seen = days(*((2019, month, 1) for month in (1, 4, 7, 10))), torch.ones(1, 4, 3, dtype=torch.bool)
    x, attention = torch.randn(1, 4, 3, 16), TemporalAttention(16, (16,), num_heads=4, in_norm=in_norm).eval()
    dark, bright = (attention(pixels, dates, seen)[0] for pixels in (x, 3 * x))
    assert torch.allclose(dark, bright, atol=1e-3) == in_norm
