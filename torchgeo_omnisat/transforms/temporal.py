# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Temporal transforms: dropout, subsampling and shift of dates."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torchgeo.datasets.utils import Sample

from ..modality import Modality
from ..utils.checks import check_integer, check_least
from ..utils.tensors.devices import wide
from .base import Chance, Modalities, Params, Transform, keep_some, probability, probability_ranges


class TemporalTransform(Transform):
    """Base class of transforms of time series; single images do not change."""

    def present(self, batch: Mapping[str, Tensor]) -> Iterator[Modality]:
        """Yield the time series whose keys are in a batch."""
        return (m for m in super().present(batch) if m.temporal)


class RandomTemporalDropout(TemporalTransform):
    """Drop random dates of each time series, but never all; only ``valid`` changes.

    With a range of probabilities, some series stay long and others become short, so that a model learns from both.

    Args:
        modalities: Modalities of the batch.
        p: Probability of dropping a valid date, or its minimum and maximum, between which it is drawn for each time
            series. Either may depend on the modality: a dictionary, 0 for missing names.
        same_on_batch: Whether all samples share one draw.
    """

    def __init__(
        self, modalities: Modalities, p: Chance | Mapping[str, Chance] = 0.2, same_on_batch: bool = False
    ) -> None:
        super().__init__(modalities, same_on_batch)
        self.p = probability_ranges(p, self.modalities)

    def draw(self, batch: Mapping[str, Tensor]) -> Params:
        """Draw flags ``<name>`` (B, T) of the dates that are kept."""
        drawn = {}
        for modality in self.present(batch):
            valid = batch[modality.valid_key]
            random, priority = self.random(batch, 2, valid.shape[1]).unbind(1)
            low, high = self.p[modality.name]
            chance = low + (high - low) * self.random(batch, 1) if high > low else low
            drawn[modality.name] = keep_some(valid, chance, random, priority)
        return drawn

    def replay(self, batch: Mapping[str, Tensor], params: Params) -> Sample:
        """Drop dates; all tensors but ``valid_*`` are shared with *batch*."""
        return {**batch, **{m.valid_key: batch[m.valid_key] & params[m.name] for m in self.present(batch)}}


class TemporalSubsample(TemporalTransform):
    """Keep at most a given number of valid dates of each time series, in order.

    In training mode, random dates are kept, with equal probability. In evaluation mode, the kept
    dates are those nearest to evenly spaced days between the first and the last valid date.
    Samples with at most *max_dates* valid dates keep all.

    Args:
        modalities: Modalities of the batch.
        max_dates: Maximum number of dates.
        same_on_batch: Whether all samples share one draw.
    """

    def __init__(self, modalities: Modalities, max_dates: int = 16, same_on_batch: bool = False) -> None:
        super().__init__(modalities, same_on_batch)
        check_integer(1, max_dates=max_dates)
        self.max_dates = max_dates

    def draw(self, batch: Mapping[str, Tensor]) -> Params:
        """Draw ``<name>`` (B, n), indices of the frames to keep, in order."""
        drawn = {}
        for modality in self.present(batch):
            dates, valid = batch[modality.dates_key], batch[modality.valid_key]
            count = min(self.max_dates, valid.shape[1])
            if self.training:
                chosen = self.random(batch, valid.shape[1]).masked_fill(~valid, 2).topk(count, largest=False).indices
            else:
                chosen = _evenly(dates, valid, count)
            drawn[modality.name] = chosen.sort(-1).values
        return drawn

    def replay(self, batch: Mapping[str, Tensor], params: Params) -> Sample:
        """Select the drawn frames."""
        changed = dict(batch)
        for modality in self.present(batch):
            chosen = params[modality.name]
            sample = torch.arange(len(chosen), device=chosen.device)[:, None]
            changed |= {key: batch[key][sample, chosen] for key in modality.keys}
        return changed


class RandomDateShift(Transform):
    """Shift the acquisition dates of each tile by a random number of days, equal for all modalities.

    Seasons start early in some years and late in others; shifting dates helps a model generalise
    to other years. Invalid dates do not change, nor does the 0 of a single image without a date.

    Args:
        modalities: Modalities of the batch.
        days: Maximum shift in either direction; all whole numbers of days are equally likely.
        p: Probability that the dates of a tile are shifted.
        same_on_batch: Whether all samples share one draw.
    """

    def __init__(self, modalities: Modalities, days: int = 15, p: float = 1.0, same_on_batch: bool = False) -> None:
        super().__init__(modalities, same_on_batch)
        check_least(0, days=days)
        self.days = days
        self.p = probability(p)

    def draw(self, batch: Mapping[str, Tensor]) -> Params:
        """Draw ``days`` (B,), the shift of each sample."""
        chance, shift = self.random(batch, 2).unbind(-1)
        days = (shift * (2 * self.days + 1)).long() - self.days
        return {'days': torch.where(chance < self.p, days, 0)}

    def replay(self, batch: Mapping[str, Tensor], params: Params) -> Sample:
        """Shift the dates; all tensors but ``dates_*`` are shared with *batch*."""
        changed = dict(batch)
        for modality in self.present(batch):
            dates = batch[modality.dates_key]
            moves = batch[modality.valid_key] if modality.temporal else dates != 0
            changed[modality.dates_key] = torch.where(moves, dates + params['days'][:, None], dates)
        return changed


def _evenly(dates: Tensor, valid: Tensor, count: int) -> Tensor:
    """Return indices ``(B, count)`` of different frames, valid ones first, nearest to evenly spaced days."""
    dtype = wide(dates.device)
    days = dates.to(dtype)
    far = days.abs().max() + 1e6
    first = days.masked_fill(~valid, far).amin(-1)
    last = days.masked_fill(~valid, -far).amax(-1)
    steps = torch.linspace(0, 1, count, dtype=dtype, device=dates.device) if count > 1 else days.new_full((1,), 0.5)
    targets = first[:, None] + (last - first)[:, None] * steps
    taken = torch.where(valid, 0, 1e9).to(
        dtype
    )  # finite for invalid dates, so that each frame is selected at most once
    chosen = []
    for target in targets.unbind(-1):
        nearest = ((days - target[:, None]).abs().clamp(max=1e8) + taken).argmin(-1, keepdim=True)
        taken = taken.scatter(-1, nearest, torch.inf)
        chosen.append(nearest)
    return torch.cat(chosen, -1)
