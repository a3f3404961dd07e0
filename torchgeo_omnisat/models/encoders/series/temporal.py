# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Temporal attention with one learned query per head (L-TAE)."""

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ....utils.tensors.dates import annual_code
from ....utils.tensors.devices import readable

#: 2018-09-01 in days since 1970-01-01, the reference date of the published models.
PUBLISHED_REFERENCE = 17775


class AnnualDates(nn.Module):
    """Date encoding of the day of the year and the time since the first valid date.

    The day of the year encodes the season of any year; the time since the first date
    distinguishes the years of a time series.

    Angles are always computed in single precision: half precision would round them to weeks.

    Args:
        dim: Width of the encoding.
        harmonics: Number of harmonics of a year; four resolve about a month.
    """

    def __init__(self, dim: int, harmonics: int = 4) -> None:
        super().__init__()
        self.harmonics = harmonics
        self.proj = nn.Linear(2 * harmonics + 4, dim)

    def forward(self, dates: Int[Tensor, 'b t'], valid: Bool[Tensor, 'b t']) -> Float[Tensor, 'b t d']:
        """Encode dates.

        Args:
            dates: Days since 1970-01-01.
            valid: Valid dates; the encoding of the others is undefined.
        """
        code = annual_code(dates, valid, self.harmonics)
        return self.proj(code.to(next(self.proj.parameters(), code).dtype))


class SinusoidDates(nn.Module):
    """Sinusoidal encoding of the days since a reference date, as published.

    Garnot and Landrieu (arXiv 2007.00586), eq. 2, repeated for every head, always in single
    precision.

    Args:
        dim: Width of the encoding.
        num_heads: Number of heads; each has the same ``dim / num_heads`` values.
        period: Base of the wavelengths, T in the paper.
        reference_date: Day zero, in days since 1970-01-01.
    """

    def __init__(
        self, dim: int, num_heads: int, period: float = 1000, reference_date: int = PUBLISHED_REFERENCE
    ) -> None:
        super().__init__()
        self.channels, self.period = dim // num_heads, period
        self.num_heads, self.reference_date = num_heads, reference_date

    def forward(self, dates: Int[Tensor, 'b t'], valid: Bool[Tensor, 'b t']) -> Float[Tensor, 'b t d']:
        """Encode dates, given in days since 1970-01-01; *valid* is ignored."""
        channel = torch.arange(self.channels, device=dates.device)
        frequency = 1 / self.period ** (2 * (channel // 2).float() / self.channels)
        phase = (channel % 2).float() * math.pi / 2
        days = (dates - self.reference_date).float().unsqueeze(-1)
        return (days * frequency + phase).sin().repeat(1, 1, self.num_heads)


class SeriesGroupNorm(nn.GroupNorm):
    """GroupNorm over the observed dates of a pixel.

    Padded dates are excluded from the statistics, unlike in the published code.
    """

    def forward(self, x: Float[Tensor, 'b t p c'], seen: Bool[Tensor, 'b t p']) -> Float[Tensor, 'b t p c']:  # type: ignore[override]
        """Normalise over the channels of a group and the observed dates."""
        wide = torch.promote_types(x.dtype, torch.float32)
        grouped = rearrange(x.to(wide), 'b t p (g c) -> b t p g c', g=self.num_groups)
        weight = rearrange(seen, 'b t p -> b t p 1 1').to(wide)
        count = (weight.sum(1, keepdim=True) * grouped.shape[-1]).clamp(min=1)
        weighted = not readable(seen) or not bool(seen.all())

        def average(values: Tensor) -> Tensor:
            values = values * weight if weighted else values
            return values.sum(1, keepdim=True).sum(-1, keepdim=True) / count

        centred = grouped - average(grouped)
        scale = (average(centred.square()) + self.eps).rsqrt() * self.weight.view(self.num_groups, -1)
        normed = torch.addcmul(self.bias.view(self.num_groups, -1).to(wide), centred, scale)
        return rearrange(normed, 'b t p g c -> b t p (g c)').to(x.dtype)


class MasterQuery(nn.Module):
    """Scores of one learned query per head with keys that are a linear map of the input."""

    def __init__(self, dim: int, num_heads: int, key_dim: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(num_heads, key_dim))
        self.key = nn.Linear(dim, num_heads * key_dim)
        nn.init.normal_(self.query, std=math.sqrt(2 / key_dim))
        nn.init.normal_(self.key.weight, std=math.sqrt(2 / key_dim))

    def forward(self, x: Float[Tensor, '... d']) -> Float[Tensor, '... g']:
        """Return the scores of every head.

        The query does not depend on the input, so query and key map are folded into one
        linear map with one output per head: ``key_dim`` times fewer products.
        """
        return F.linear(x, *self.folded())

    def folded(self) -> tuple[Float[Tensor, 'g d'], Float[Tensor, ' g']]:
        """Return the weight and bias of the linear map from the input to the scores."""
        heads, width = self.query.shape
        weight = torch.einsum('gk,gkd->gd', self.query, self.key.weight.view(heads, width, -1))
        bias = (self.query * self.key.bias.view(heads, width)).sum(-1)
        return weight / math.sqrt(width), bias / math.sqrt(width)


class TemporalAttention(nn.Module):
    """L-TAE temporal attention, which sums the dates of each pixel with learned weights.

    Garnot and Landrieu, "Lightweight Temporal Self-Attention" (arXiv 2007.00586).
    Values are the channels of the input, one slice per head, without projection.

    Autocast is disabled: in bfloat16 the norm over the dates and the softmax lose more
    accuracy than all convolutions together, and take a small part of the time.

    Args:
        in_channels: Input channels.
        mlp: Widths of the layers after the heads; the last one is that of the output.
        dim: Width of keys and values; ``None`` keeps *in_channels*.
        num_heads: Number of heads; *dim* is a multiple of it.
        key_dim: Width of a query.
        dates: Module that encodes ``(dates, valid)``; ``None`` for ``AnnualDates``.
        in_norm: Whether the input is normalised over its dates.
        batch_norm: BatchNorm in the MLP, as published, instead of LayerNorm.
        dropout: Dropout after the MLP.
    """

    def __init__(
        self,
        in_channels: int,
        mlp: Sequence[int],
        dim: int | None = None,
        num_heads: int = 16,
        key_dim: int = 4,
        dates: nn.Module | None = None,
        in_norm: bool = True,
        batch_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        widths = [dim or in_channels, *mlp]
        self.num_heads = num_heads
        self.in_norm = SeriesGroupNorm(_groups(num_heads, in_channels), in_channels) if in_norm else None
        self.in_proj = nn.Linear(in_channels, dim) if dim else None
        self.dates = dates or AnnualDates(widths[0])
        self.heads = MasterQuery(widths[0], num_heads, key_dim)
        self.mlp = nn.ModuleList(
            nn.Sequential(nn.Linear(i, o), nn.BatchNorm1d(o) if batch_norm else nn.LayerNorm(o), nn.ReLU())
            for i, o in pairwise(widths)
        )
        self.dropout = nn.Dropout(dropout)
        self.out_norm = nn.GroupNorm(_groups(num_heads, widths[-1]), widths[-1])

    def forward(
        self,
        x: Float[Tensor, 'b t p c'],
        dates: Int[Tensor, 'b t'],
        seen: Bool[Tensor, 'b t p'],
        proj: nn.Linear | None = None,
        valid: Bool[Tensor, 'b t'] | None = None,
    ) -> tuple[Float[Tensor, 'b p d'], Float[Tensor, 'b t p g']]:
        """Collapse the dates of every pixel.

        Args:
            x: Features of P pixels at T dates.
            dates: Days since 1970-01-01.
            seen: Pixels observed on each date; the others are ignored.
            proj: Linear layer of the features, if it was not yet applied; only without normalisation and
                projection of the input.
            valid: Dates with an observed pixel of the whole image, if these are only some of its pixels.

        Returns:
            One vector per pixel, and the weights of the dates, which sum to one for each pixel
            and head, or to zero for a pixel that was never observed.
        """
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.out_norm.weight.dtype)
            code = self.dates(dates, seen.any(-1) if valid is None else valid).to(x.dtype)
            if self.in_norm is not None:
                x = self.in_norm(x, seen)
            proj = proj or self.in_proj
            collapse = self._collapse if proj is None else partial(self._collapse_projected, proj)
            out, weights = collapse(x, code, ~seen.unsqueeze(-1))
            return self._finish(out), weights

    def _collapse(self, x: Tensor, code: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        x = x + code.unsqueeze(2)
        weights = _date_weights(self.heads(x), hidden)
        values = rearrange(x, 'b t p (g c) -> b t p g c', g=self.num_heads)
        return (values * weights.unsqueeze(-1)).sum(1), weights

    def _collapse_projected(self, proj: nn.Linear, x: Tensor, code: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Collapse ``proj(x) + code`` without computing it for every date.

        The projection commutes with the sum over the dates, so it is applied to one vector per pixel and head instead
        of one per pixel and date.
        """
        code = code + proj.bias
        weight, bias = self.heads.folded()
        scores = F.linear(x, weight @ proj.weight) + F.linear(code, weight, bias).unsqueeze(2)
        weights = _date_weights(scores, hidden)
        summed = torch.einsum('b t p g, b t p i -> b p g i', weights, x)
        of_heads = proj.weight.unflatten(0, (self.num_heads, -1))  # einops of a Parameter would compile twice
        codes = rearrange(code, 'b t (g c) -> b t g c', g=self.num_heads)
        out = torch.einsum('b p g i, g c i -> b p g c', summed, of_heads)
        return out + torch.einsum('b t p g, b t g c -> b p g c', weights, codes), weights

    def _finish(self, out: Float[Tensor, 'b p g c']) -> Float[Tensor, 'b p d']:
        length = out.shape[0]
        out = rearrange(out, 'b p g c -> (b p) (g c)')
        for layer in self.mlp:
            out = layer(out)
        out = self.out_norm(self.dropout(out))
        return rearrange(out, '(b p) d -> b p d', b=length)


def _date_weights(scores: Float[Tensor, 'b t p g'], hidden: Bool[Tensor, 'b t p 1']) -> Float[Tensor, 'b t p g']:
    """Return the softmax over the dates that are not hidden, zero where all are."""
    if readable(hidden) and not bool(hidden.any()):
        return scores.softmax(dim=1)
    return scores.masked_fill(hidden, torch.finfo(scores.dtype).min).softmax(dim=1).masked_fill(hidden, 0)


def _groups(num_heads: int, channels: int) -> int:
    """Return one group per head, but of at least four channels: normalising one channel would erase it."""
    return math.gcd(num_heads, channels // 4)
