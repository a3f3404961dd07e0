# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Pixel-wise encoder of time series: temporal attention first, then convolutions."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ....utils.tensors.devices import readable
from ....utils.tensors.observed import all_observed, observed
from ....utils.tensors.selection import valid_indices
from ..bands import BandLinear
from ..packing import BLOCK, gather_valid, scatter_valid
from ..registry import register_encoder
from .temporal import TemporalAttention
from .utae import DownBlock


@register_encoder('ltae', temporal=True, sizes=('widths',))
class LTAEEncoder(nn.Module):
    """L-TAE encoder of time series, which returns a feature pyramid.

    As in OmniSat's published encoder (arXiv 2404.08351), a pixel-wise MLP and temporal
    attention with one query per head come before the convolutions. These are computed for
    one image instead of T, which is much cheaper than
    :class:`~torchgeo_omnisat.models.encoders.series.utae.UTAEEncoder`.

    Args:
        in_channels: Number of bands.
        widths: Channels of each level; each halves the resolution of the previous one.
        num_heads: Heads of the temporal attention; the first width is a multiple of it.
        key_dim: Width of a query.
    """

    def __init__(
        self, in_channels: int, widths: Sequence[int] = (64, 64, 64, 128), num_heads: int = 16, key_dim: int = 8
    ) -> None:
        super().__init__()
        self.channels = tuple(widths)
        self.strides = tuple(2**level for level in range(len(widths)))
        width = widths[0]
        self.pixel = nn.Sequential(BandLinear(in_channels, width), nn.GELU(), nn.Linear(width, width))
        # A norm over the dates of a pixel would remove its brightness, which no other layer keeps.
        self.temporal = TemporalAttention(width, (width,), None, num_heads, key_dim, in_norm=False)
        self.down_blocks = nn.ModuleList(DownBlock(i, o, 'zeros') for i, o in pairwise(widths))

    def forward(
        self, image: Float[Tensor, 'b t c h w'], dates: Int[Tensor, 'b t'], valid: Bool[Tensor, 'b t']
    ) -> list[Tensor]:
        """Return maps ``(B, C_l, H / 2^l, W / 2^l)``, fine to coarse; arguments as in :meth:`.UTAEEncoder.forward`."""
        index, shown = valid_indices(valid), valid
        if not all_observed(image):
            shown = valid & observed(image).flatten(2).any(2)
            index = valid_indices(shown) if readable(shown) else index
        parts = image.split(self._rows(image), -2)
        maps = [torch.cat([self._collapse(part, dates, shown, index) for part in parts], -2)]
        for block in self.down_blocks:
            maps.append(block(maps[-1]))
        return maps

    def _rows(self, image: Tensor) -> int:
        """Return the number of rows that are computed at once: on a processor, those that fit in its cache."""
        if image.device.type != 'cpu' or torch.compiler.is_compiling():
            return image.shape[-2]
        b, t, _, _, w = image.shape
        return max(1, BLOCK // max(1, b * t * w * self.channels[0]))

    def _collapse(self, image: Tensor, dates: Tensor, valid: Tensor, index: Tensor | None) -> Float[Tensor, 'b c h w']:
        packed = rearrange(gather_valid(image.flatten(0, 1), index), 's c h w -> s (h w) c')
        first, activation, last = self.pixel
        series = scatter_valid(activation(first(packed)), index, valid.numel()).unflatten(0, valid.shape)
        seen = scatter_valid(observed(packed).any(-1), index, valid.numel()).unflatten(
            0, valid.shape
        ) & valid.unsqueeze(-1)
        collapsed, _ = self.temporal(series, dates, seen, last, valid)
        return rearrange(collapsed, 'b (h w) c -> b c h w', h=image.shape[-2])
