# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Encoder of embedding rasters: a linear projection of every pixel."""

from jaxtyping import Float
from torch import Tensor, nn

from ...utils.tensors.observed import observed
from .bands import BandConv2d
from .image import SingleImageEncoder
from .registry import register_encoder


@register_encoder('projection', temporal=False)
class ProjectionEncoder(SingleImageEncoder):
    """Linear projection of the vector of each pixel, with GELU and normalisation over the channels.

    It suits embeddings, such as AlphaEarth's, which are features of the surroundings already.

    Args:
        in_channels: Number of dimensions.
        width: Channels of the map.
    """

    def __init__(self, in_channels: int, width: int = 64) -> None:
        super().__init__()
        self.channels, self.strides = (width,), (1,)
        self.projection = BandConv2d(in_channels, width, 1)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Sequential(nn.GELU(), nn.Conv2d(width, width, 1))

    def encode(self, image: Float[Tensor, 's c h w']) -> list[Tensor]:
        """Return the map of S images, 0 where a pixel has no value."""
        seen = observed(image).any(1, keepdim=True)
        normalised = self.norm(self.projection(image).movedim(1, -1)).movedim(-1, 1)
        return [self.out(normalised) * seen]
