# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Pixel-wise encoder of time series: one hidden layer on monthly composites."""

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ....utils.tensors.observed import observed
from ..registry import register_encoder

#: First day of each month from January 1970, in days; later dates are in the last month.
_MONTHS = np.arange('1970-01', '2201-01', dtype='datetime64[M]').astype('datetime64[D]').astype(np.int64)
#: Number of months of the calendar by default.
MONTHS = 24
#: Number of months in a year, and whole years, from that of the first date on, by which a series may be shifted.
_YEAR, _SHIFTS = 12, range(-1, 4)


@register_encoder('monthly', temporal=True)
class MonthlyEncoder(nn.Module):
    """Linear layer with GELU on the monthly composites of a pixel, for few labels.

    It has no spatial context, and each month has its own weights, as in classifiers of stacked bands. Compared with
    temporal attention it needs fewer labels, but it expects the same season in training and prediction.

    The composites are means of the valid dates of each calendar month; a missing month is interpolated linearly in
    time. The first batch in training sets the first month of the calendar, and the last month of all batches in
    training its length; both are saved with the model. A series is shifted by the whole years, as few as possible, with
    which most of its dates are in these months. Later months only fill missing ones by interpolation, and earlier
    months are not used. Thus the first batch should have the whole season. With several ranks, the saved calendar is
    that of rank zero, so each rank needs dates of all months. DDP copies it to the other ranks before each step.

    Args:
        in_channels: Number of bands.
        width: Number of features.
        months: Number of months of the calendar.
    """

    months_since_1970: Tensor
    start: Tensor
    length: Tensor

    def __init__(self, in_channels: int, width: int = 128, months: int = MONTHS) -> None:
        super().__init__()
        if months < 1:
            raise ValueError(f'months is {months}, expected at least 1')
        self.channels, self.strides = (width,), (1,)
        self.months = months
        self.hidden = nn.Linear(months * in_channels, width)
        self.register_buffer('months_since_1970', torch.from_numpy(_MONTHS), persistent=False)
        self.register_buffer('start', torch.tensor(-1))
        self.register_buffer('length', torch.tensor(0))

    def forward(
        self, image: Float[Tensor, 'b t c h w'], dates: Int[Tensor, 'b t'], valid: Bool[Tensor, 'b t']
    ) -> list[Tensor]:
        """Encode time series.

        Args:
            image: Normalised bands; NaN is nodata.
            dates: Days since 1970-01-01.
            valid: Valid dates; the others are ignored.

        Returns:
            One map of shape ``(B, width, H, W)``.
        """
        seen = observed(image) & valid[..., None, None, None]
        month = torch.bucketize(dates, self.months_since_1970, right=True) - 1
        place = self.place(month, seen.flatten(2).any(2))
        composites = interpolate(self.composites(image, seen, place))
        length = torch.where(self.length > 0, self.length, self.months)
        unused = torch.arange(self.months, device=image.device) >= length
        composites = composites.masked_fill(unused.view(-1, 1, 1, 1), 0)  # else the last month counts several times
        features = F.gelu(self.hidden(rearrange(composites, 'b m c h w -> b h w (m c)')))
        return [rearrange(features, 'b h w d -> b d h w')]

    def place(self, month: Int[Tensor, 'b t'], dated: Bool[Tensor, 'b t']) -> Int[Tensor, 'b t']:
        """Return the month of each date in the calendar.

        Args:
            month: Months since 1970.
            dated: Dates with observed values; the others have no influence.
        """
        first = torch.where(dated, month, len(_MONTHS)).amin(1, keepdim=True)
        if self.training and self.start < 0 and bool(dated.any()):
            self.start.copy_(first.min())
            last = torch.where(dated, month - first + (first - self.start) % _YEAR, 0).max()
            self.length.copy_((last + 1).clamp(max=self.months))
        start = torch.where(self.start < 0, first, self.start)
        shifts = torch.arange(_SHIFTS.start, _SHIFTS.stop, device=month.device)
        years = torch.div(first - start, _YEAR, rounding_mode='floor') + shifts
        places = month.unsqueeze(2) - (start + _YEAR * years).unsqueeze(1)
        usable = dated.unsqueeze(2) & (places >= 0)
        trained = (usable & (places < self.length)).sum(1)
        used = (usable & (places < self.months)).any(1)
        best = used & (trained == trained.amax(1, keepdim=True))
        fewest = torch.where(best, years.abs(), 2 * len(_MONTHS)).argmin(1)
        place = (places * F.one_hot(fewest, len(_SHIFTS)).unsqueeze(1)).sum(2)
        if self.training:
            longest = torch.where(dated & (place < self.months), place + 1, 0).max()
            self.length.copy_(torch.maximum(self.length, longest))
        return place

    def composites(
        self, image: Float[Tensor, 'b t c h w'], seen: Bool[Tensor, 'b t c h w'], place: Int[Tensor, 'b t']
    ) -> Float[Tensor, 'b m c h w']:
        """Return the mean of each month, NaN where it is not observed.

        Args:
            image: Normalised bands.
            seen: Observed values.
            place: Month of each date in the calendar; others than 0 to M - 1 are ignored.
        """
        chosen = (place.unsqueeze(-1) == torch.arange(self.months, device=place.device)).to(image.dtype)
        total = torch.einsum('btm,btchw->bmchw', chosen, image.masked_fill(~seen, 0))
        count = torch.einsum('btm,btchw->bmchw', chosen, seen.to(image.dtype))
        return total / count.masked_fill(count == 0, torch.nan)


def interpolate(x: Float[Tensor, 'b m c h w']) -> Float[Tensor, 'b m c h w']:
    """Interpolate NaN linearly over the months; before the first and after the last value it is constant.

    Series without a value become zero.
    """
    missing = x.isnan()
    last = x.shape[1] - 1
    index = torch.arange(last + 1, device=x.device).view(-1, 1, 1, 1)
    before = running_max(torch.where(missing, -1, index))
    after = last - running_max(torch.where(missing, -1, last - index).flip(1)).flip(1)
    low, high = before.where(before >= 0, after.clamp(max=last)), after.where(after <= last, before.clamp(min=0))
    x = x.nan_to_num(0)
    weight = (index - low) / (high - low).clamp(min=1)
    return torch.lerp(x.gather(1, low), x.gather(1, high), weight.to(x.dtype))


def running_max(x: Int[Tensor, 'b m c h w']) -> Int[Tensor, 'b m c h w']:
    """Return the cumulative maximum over the months; ONNX has no operator for `torch.cummax`."""
    step = 1
    while step < x.shape[1]:
        x = torch.cat([x[:, :step], torch.maximum(x[:, step:], x[:, :-step])], 1)
        step *= 2
    return x
