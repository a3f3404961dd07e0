# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Published encoders of OmniSat, which encode each ground patch independently.

Astruc et al., "OmniSat: Self-Supervised Modality Fusion for Earth Observation" (arXiv
2404.08351). Implemented from the paper, to load published weights and for comparison.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ...utils.tensors.observed import observed
from ...utils.tensors.selection import valid_indices
from .packing import gather_valid, scatter_valid
from .published import (
    IMAGE_ARGUMENTS,
    IMAGE_FIXED,
    IMAGE_NAMES,
    SERIES_ARGUMENTS,
    SERIES_FIXED,
    SERIES_NAMES,
    published_arguments,
    renamed,
)
from .series.temporal import PUBLISHED_REFERENCE, SinusoidDates, TemporalAttention


class SeriesPatchEncoder(nn.Module):
    """Published time series encoder: an MLP on each patch and date, then temporal attention.

    Args:
        in_channels: Number of bands.
        patch_size: Side of a patch in pixels; 1 for single pixels.
        mlp_in: Widths of the layers before the attention.
        mlp: Widths of the layers after it; the last one is D.
        num_heads: Number of heads.
        key_dim: Width of a query.
        in_norm: Whether to normalise the input of the attention over the dates.
        dropout: Dropout of both MLPs.
        period: Base of the wavelengths of the date encoding.
        reference_date: Day zero of the date encoding, in days since 1970-01-01.
    """

    def __init__(
        self,
        in_channels: int,
        patch_size: int = 1,
        mlp_in: Sequence[int] = (32, 128, 256),
        mlp: Sequence[int] = (256, 512, 256),
        num_heads: int = 16,
        key_dim: int = 8,
        in_norm: bool = True,
        dropout: float = 0.2,
        period: float = 734,
        reference_date: int = PUBLISHED_REFERENCE,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        widths = [in_channels * patch_size**2, *mlp_in]
        self.embed = nn.ModuleList(
            nn.Sequential(nn.Linear(i, o), nn.BatchNorm1d(o), nn.ReLU(), nn.Dropout(dropout))
            for i, o in pairwise(widths)
        )
        dates = SinusoidDates(widths[-1], num_heads, period, reference_date)
        self.temporal = TemporalAttention(
            widths[-1], mlp, None, num_heads, key_dim, dates, in_norm, batch_norm=True, dropout=dropout
        )

    def forward(
        self, image: Float[Tensor, 'b t c h w'], dates: Int[Tensor, 'b t'], valid: Bool[Tensor, 'b t']
    ) -> Float[Tensor, 'b n d']:
        """Return one token per patch.

        Args:
            image: Normalised bands; NaN is nodata, and counts as 0 as published.
            dates: Days since 1970-01-01.
            valid: Valid dates.
        """
        index, side = valid_indices(valid), self.patch_size
        patches = rearrange(
            gather_valid(image.flatten(0, 1), index), 's c (h p) (w q) -> s (h w) (c p q)', p=side, q=side
        )
        missing = ~observed(patches)
        x = rearrange(patches.masked_fill(missing, 0), 's n c -> (s n) c')
        for layer in self.embed:
            x = layer(x)
        series = scatter_valid(rearrange(x, '(s n) c -> s n c', n=patches.shape[1]), index, valid.numel())
        seen = scatter_valid(~missing.all(-1), index, valid.numel()).unflatten(0, valid.shape) & valid.unsqueeze(-1)
        return self.temporal(series.unflatten(0, valid.shape), dates, seen)[0]

    @classmethod
    def from_published(
        cls, state_dict: Mapping[str, Tensor], reference_date: int = PUBLISHED_REFERENCE, **ctor: Any
    ) -> 'SeriesPatchEncoder':
        """Build the published encoder with its weights, in evaluation mode; see :meth:`.UTAE.from_published`."""
        chosen = published_arguments('the series encoder', ctor, SERIES_ARGUMENTS, SERIES_FIXED)
        model = cls(**chosen, reference_date=reference_date)
        model.load_state_dict(renamed(state_dict, SERIES_NAMES))
        return model.eval()


class ResidualBlock(nn.Module):
    """Two convolutions that share one GroupNorm, as published."""

    def __init__(self, dim: int, groups: int, bias: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1, bias=bias)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1, bias=bias)
        self.norm = nn.GroupNorm(groups, dim)

    def forward(self, x: Float[Tensor, 'n d h w']) -> Float[Tensor, 'n d h w']:
        """Apply to N patches."""
        inner = F.gelu(self.norm(self.conv1(x)))
        return F.gelu(x + self.norm(self.conv2(inner)))


class ImagePatchEncoder(nn.Module):
    """Published image encoder: convolutions and pooling of each patch to one token.

    Args:
        in_channels: Number of bands.
        patch_size: Side of a patch in pixels, 32 to 63.
        dim: Width D of a token.
        groups: Groups of the GroupNorm.
        bias: Whether residual convolutions have biases.

    Raises:
        ValueError: If a patch of that size is not pooled to one pixel.
    """

    def __init__(
        self, in_channels: int, patch_size: int = 40, dim: int = 256, groups: int = 4, bias: bool = False
    ) -> None:
        super().__init__()
        if not 32 <= patch_size < 64:
            raise ValueError(f'patch_size {patch_size} does not shrink to one pixel, expected 32 to 63')
        self.patch_size = patch_size
        stem = [nn.Conv2d(in_channels, dim, 3, 2, 1), nn.BatchNorm2d(dim), nn.GELU(), nn.MaxPool2d(2)]
        blocks = [layer for _ in range(3) for layer in (ResidualBlock(dim, groups, bias), nn.MaxPool2d(2))]
        self.layers = nn.Sequential(*stem, *blocks)

    def forward(self, image: Float[Tensor, 'b c h w']) -> Float[Tensor, 'b n d']:
        """Return one token per patch; nodata (NaN) counts as 0."""
        side = self.patch_size
        image = image.masked_fill(~observed(image), 0)
        patches = rearrange(image, 'b c (h p) (w q) -> (b h w) c p q', p=side, q=side)
        return rearrange(self.layers(patches), '(b n) d 1 1 -> b n d', b=image.shape[0])

    @classmethod
    def from_published(cls, state_dict: Mapping[str, Tensor], **ctor: Any) -> 'ImagePatchEncoder':
        """Build the published encoder with its weights, in evaluation mode; see :meth:`.UTAE.from_published`."""
        model = cls(**published_arguments('the image encoder', ctor, IMAGE_ARGUMENTS, IMAGE_FIXED))
        model.load_state_dict(renamed(state_dict, IMAGE_NAMES))
        return model.eval()
