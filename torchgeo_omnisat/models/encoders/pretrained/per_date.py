# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Encoder of time series by an image encoder on every date, and temporal attention."""

import math
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ....utils.tensors.observed import observed_pixels
from ....utils.tensors.pooling import average_pool
from ....utils.tensors.selection import valid_indices
from ..packing import gather_valid
from ..series.ltae import LTAEEncoder
from ..series.temporal import TemporalAttention
from ..series.utae import attend, collapse


class PerDate(nn.Module):
    """Image encoder that is applied to every valid date, followed by temporal attention at every level.

    The attention (L-TAE) is computed at one level; its weights are resized and shared by all others, as in U-TAE.
    These backbones are coarse, so the finest map is that of :class:`.LTAEEncoder` at full resolution.

    Args:
        encoder: Encoder of single images with ``channels``, ``strides`` and ``encode``.
        bands: Number of bands.
        width: Channels of the map at full resolution, a multiple of 16.
        num_heads: Maximum number of heads.
        key_dim: Width of a query.
        dim: Width of the temporal attention.
        attention_stride: Stride of the level at which the attention is computed, or the next finer one.
    """

    def __init__(
        self,
        encoder: nn.Module,
        bands: int,
        width: int = 64,
        num_heads: int = 16,
        key_dim: int = 4,
        dim: int = 256,
        attention_stride: int = 8,
    ) -> None:
        super().__init__()
        channels: Any = encoder.channels
        strides: Any = encoder.strides
        self.encoder = encoder
        self.fine = LTAEEncoder(bands, (width,))
        self.channels, self.strides = (width, *channels), (1, *strides)
        fit = [level for level, stride in enumerate(strides) if stride <= attention_stride]
        self.level = fit[-1] if fit else 0
        heads = math.gcd(num_heads, dim, *channels)
        self.temporal = TemporalAttention(channels[self.level], (channels[self.level],), dim, heads, key_dim)

    def forward(
        self, image: Float[Tensor, 'b t c h w'], dates: Int[Tensor, 'b t'], valid: Bool[Tensor, 'b t']
    ) -> list[Tensor]:
        """Return maps ``(B, C_l, H / stride_l, W / stride_l)``; arguments as in :meth:`.UTAEEncoder.forward`."""
        index = valid_indices(valid)
        packed = gather_valid(image.flatten(0, 1), index)
        seen = observed_pixels(packed) & gather_valid(valid.flatten(), index).view(-1, 1, 1, 1)
        encoder: Any = self.encoder
        pyramid = encoder.encode(packed)
        attended, weights = attend(self.temporal, pyramid[self.level], seen, dates, index)
        maps = [*self.fine(image, dates, valid)]
        for level, x in enumerate(pyramid):
            if level == self.level:
                maps.append(attended)
                continue
            shared = gather_valid(weights.flatten(0, 1), index)
            if x.shape[-1] < shared.shape[-1] or x.shape[-2] < shared.shape[-2]:
                shared = average_pool(shared, (x.shape[-2], x.shape[-1]))
            maps.append(collapse(x, shared, seen, index, valid))
        return maps
