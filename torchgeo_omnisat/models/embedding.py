# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Dense embeddings: one unit vector per pixel from the output of an OmniSat."""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..modality import half_up
from ..utils.plurals import counted
from ..utils.tensors.pooling import any_pool
from .omnisat import OmniSat, OmniSatOutput, check_size
from .segmentation import Decoder, MeanSkip, maps_near, resize

#: Limits of the dimension of an embedding.
DIMENSIONS = (2, 1024)


class DenseEmbedding(nn.Module):
    """Head that decodes fused tokens and feature maps to one unit vector per pixel.

    It is the sum of three parts: the decoder of :class:`.OmniSatSegmenter`, with the embedding in place of the logits;
    a linear projection of the fused tokens; and the mean of linear projections of the feature maps of the modalities
    that observed a pixel. The linear parts keep what the backbone knows of a pixel from the first step on.

    Args:
        backbone: Backbone whose tokens and feature maps are decoded.
        dim: Dimension D of the embedding.
        gsd: GSD of the embedding in metres.

    Raises:
        ValueError: If *dim* is out of range or *gsd* is not positive.
    """

    def __init__(self, backbone: OmniSat, dim: int = 64, gsd: float = 10.0) -> None:
        super().__init__()
        check_size('embedding_dim', dim, *DIMENSIONS)
        if not 0 < gsd <= backbone.patch_size:
            raise ValueError(f'embedding_gsd is {gsd}, expected metres, at most the patch of {backbone.patch_size}')
        self.dim, self.gsd = dim, float(gsd)
        self.decoder = Decoder(backbone, dim, self.gsd, width=dim)
        assert self.decoder.head.bias is not None
        nn.init.normal_(self.decoder.head.bias, std=0.01)  # a pixel whose features are all 0 has a direction, too
        self.tokens = nn.Conv2d(backbone.embed_dim, dim, 1)
        levels = maps_near(backbone, self.gsd)
        self.skip = MeanSkip(levels, dim) if levels else None
        self.to(memory_format=torch.channels_last)

    def forward(self, out: OmniSatOutput, size: tuple[int, int] | None = None) -> Float[Tensor, 'b d h w']:
        """Return the embeddings of a batch.

        Args:
            out: Output of the backbone.
            size: Height and width in pixels; by default those of the extent at *gsd*.
        """
        size = size or pixels_of(out.extent, self.gsd)
        tokens = rearrange(out.fused, 'b (h w) d -> b d h w', h=out.grid[0], w=out.grid[1])
        x = self.decoder(out, size) + resize(self.tokens(tokens), size)
        if self.skip is not None:
            x = x + self.skip(out.maps, x, size)
        return F.normalize(x, dim=1)


class ProjectedEmbedding(nn.Module):
    """Projection of the features of a backbone without a head to one unit vector per pixel.

    The features are those of :func:`dense_features`, centred and scaled, then multiplied by the components of a
    principal component analysis that is fitted outside.

    Args:
        mean: Mean of the F features.
        scale: Standard deviation of the F features.
        components: Principal components ``(D, F)``.
        gsd: GSD of the embedding in metres.
    """

    mean: Tensor
    scale: Tensor
    components: Tensor

    def __init__(self, mean: Tensor, scale: Tensor, components: Tensor, gsd: float = 10.0) -> None:
        super().__init__()
        self.dim, self.gsd = len(components), float(gsd)
        for name, value in (('mean', mean), ('scale', scale), ('components', components)):
            self.register_buffer(name, value.float())

    def forward(
        self, backbone: OmniSat, out: OmniSatOutput, size: tuple[int, int] | None = None
    ) -> Float[Tensor, 'b d h w']:
        """Return the embeddings of a batch; see :meth:`DenseEmbedding.forward`."""
        features = dense_features(backbone, out, size or pixels_of(out.extent, self.gsd)).float()
        if features.shape[1] != len(self.mean):
            raise ValueError(
                f'the backbone has {counted(features.shape[1], "feature")}, expected {len(self.mean)} as in the '
                'projection: remove its file to fit it again'
            )
        standardised = (features - self.mean[:, None, None]) / self.scale[:, None, None]
        return F.normalize(torch.einsum('bfhw,df->bdhw', standardised, self.components), dim=1)


def dense_features(backbone: OmniSat, out: OmniSatOutput, size: tuple[int, int]) -> Float[Tensor, 'b f h w']:
    """Return fused tokens and the finest feature map of every modality, resized to *size* and concatenated.

    Features are zero where their modality observed nothing.
    """
    rows, columns = out.grid
    fused = rearrange(out.fused, 'b (h w) d -> b d h w', h=rows, w=columns)
    parts = [resize(fused, size)]
    for name, encoder in backbone.encoders.items():
        channels: int = encoder.channels[0]  # type: ignore[index, assignment]
        if name in out.maps:
            seen = any_pool(out.maps[name].seen, size).to(fused.dtype)
            parts.append(seen * resize(out.maps[name].maps[0].to(fused.dtype), size))
        else:
            parts.append(fused.new_zeros(fused.shape[0], channels, *size))
    return torch.cat(parts, dim=1)


def pixels_of(extent: tuple[float, float], gsd: float) -> tuple[int, int]:
    """Return height and width in metres as numbers of pixels of *gsd* metres."""
    rows, columns = (max(1, half_up(side / gsd)) for side in extent)
    return rows, columns


def any_observed(out: OmniSatOutput, size: tuple[int, int]) -> Bool[Tensor, 'b h w']:
    """Return the pixels of *size* that any modality observed."""
    flags = [any_pool(found.seen, size)[:, 0] for found in out.maps.values()]
    return torch.stack(flags).any(0)
