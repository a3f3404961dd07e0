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
    time. The calendar begins with the months of the longest series of the first batch in training. It grows by those of
    the others, up to *months*, and is saved with the model. A series is shifted by whole years so that most of its
    dates are in these months, and by as few as possible; in training, one that shares no month with the calendar
    follows it. Other months of a series are not used, except that later ones fill missing months by interpolation.
    Every series has values in all months of the calendar, so all series should cover about the same season. With
    several ranks, the saved calendar is that of rank zero, so each rank needs dates of all months. DDP copies it to the
    other ranks before each step.

    Args:
        in_channels: Number of bands.
        width: Number of features.
        months: Number of months of the calendar.
    """

    months_since_1970: Tensor
    #: First month of the calendar, since January 1970.
    start: Tensor
    #: Number of months of the calendar; 0 before the training.
    length: Tensor
    #: Number of months of the calendar before that of the first weights, which are a ring of months.
    earlier: Tensor

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
        self.register_buffer('earlier', torch.tensor(0))
        self.register_load_state_dict_pre_hook(_without_growth)

    def forward(
        self, image: Float[Tensor, 'b t c h w'], dates: Int[Tensor, 'b t'], valid: Bool[Tensor, 'b t']
    ) -> list[Tensor]:
        """Return one map ``(B, width, H, W)``; arguments as in :meth:`.UTAEEncoder.forward`."""
        seen = observed(image) & valid[..., None, None, None]
        place = self._place(seen, dates)
        composites = interpolate(self.composites(image, seen, place))
        length = torch.where(self.length > 0, self.length, self.months)
        unused = torch.arange(self.months, device=image.device) >= length
        composites = composites.masked_fill(unused.view(-1, 1, 1, 1), 0)  # else the last month counts several times
        ring = torch.remainder(torch.arange(self.months, device=image.device) + self.earlier, self.months)
        composites = composites.index_select(1, ring)
        features = F.gelu(self.hidden(rearrange(composites, 'b m c h w -> b h w (m c)')))
        return [rearrange(features, 'b h w d -> b d h w')]

    def extend_calendar(
        self, image: Float[Tensor, 'b t c h w'], dates: Int[Tensor, 'b t'], valid: Bool[Tensor, 'b t']
    ) -> None:
        """Extend the calendar by the months of a batch in training, before parts of it are encoded."""
        if self.training:
            self._place(observed(image) & valid[..., None, None, None], dates)

    def _place(self, seen: Bool[Tensor, 'b t c h w'], dates: Int[Tensor, 'b t']) -> Int[Tensor, 'b t']:
        month = torch.bucketize(dates, self.months_since_1970, right=True) - 1
        return self.place(month, seen.flatten(2).any(2))

    def place(self, month: Int[Tensor, 'b t'], dated: Bool[Tensor, 'b t']) -> Int[Tensor, 'b t']:
        """Return the month of each date in the calendar.

        Args:
            month: Months since 1970.
            dated: Dates with observed values; the others have no influence.
        """
        first = torch.where(dated, month, len(_MONTHS)).amin(1, keepdim=True)
        if self.training and self.length == 0 and bool(dated.any()):
            self._begin(month, dated)
        start = torch.where(self.length > 0, self.start, first)
        shifts = torch.arange(_SHIFTS.start, _SHIFTS.stop, device=month.device)
        years = torch.div(first - start, _YEAR, rounding_mode='floor') + shifts
        places = month.unsqueeze(2) - (start + _YEAR * years).unsqueeze(1)
        usable = dated.unsqueeze(2) & (places >= 0)
        trained = (usable & (places < self.length)).sum(1)
        used = (usable & (places < self.months)).any(1)
        best = used & (trained == trained.amax(1, keepdim=True))
        fewest = torch.where(best, years.abs(), 2 * len(_MONTHS)).argmin(1)
        place = (places * F.one_hot(fewest, len(_SHIFTS)).unsqueeze(1)).sum(2)
        return place + self._extend(place, dated) if self.training else place

    def _begin(self, month: Int[Tensor, 'b t'], dated: Bool[Tensor, 'b t']) -> None:
        """Set the calendar to the months of the longest series of a batch."""
        first = torch.where(dated, month, len(_MONTHS)).amin(1)
        length = torch.where(dated, month + 1, 0).amax(1) - first
        longest = length.argmax()
        self.start.copy_(first[longest])
        self.length.copy_(length[longest].clamp(max=self.months))

    def _extend(self, place: Int[Tensor, 'b t'], dated: Bool[Tensor, 'b t']) -> Int[Tensor, '']:
        """Extend the calendar by later months, then by earlier ones, if they fit; return the number of earlier ones."""
        last = torch.where(dated & (place < self.months), place + 1, 0).max()
        self.length.copy_(torch.maximum(self.length, last))
        fits = dated & (place >= self.length - self.months)
        earlier = -torch.where(fits, place, 0).min().clamp(max=0)
        self.start.sub_(earlier)
        self.length.add_(earlier)
        self.earlier.add_(earlier)
        return earlier

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


def _without_growth(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Complete a state from before calendars grew to earlier months."""
    if f'{prefix}start' in state:
        state.setdefault(f'{prefix}earlier', torch.tensor(0))
