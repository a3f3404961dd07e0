# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""U-TAE: convolutions on every date, temporal attention at the coarsest level.

Garnot and Landrieu, "Panoptic Segmentation of Satellite Image Time Series with
Convolutional Temporal Attention Networks" (arXiv 2107.07933). Implemented from the paper;
the published code is MIT-licensed.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ....utils.checks import check_integer
from ....utils.tensors.devices import readable
from ....utils.tensors.observed import observed_pixels
from ....utils.tensors.pooling import any_pool
from ....utils.tensors.selection import valid_indices
from ..bands import BandConv2d
from ..packing import add_up, gather_valid, images_per_block, scatter_valid, split_images
from ..published import UTAE_ARGUMENTS, UTAE_FIXED, UTAE_NAMES, published_arguments, renamed
from ..recomputation import recomputed_levels, run
from ..registry import register_encoder
from .temporal import PUBLISHED_REFERENCE, SinusoidDates, TemporalAttention

#: Padding mode of convolutions.
Padding = Literal['zeros', 'reflect']


def group_norm(channels: int) -> nn.GroupNorm:
    """Return a GroupNorm of four groups."""
    return nn.GroupNorm(4, channels)


def conv_block(
    in_channels: int,
    out_channels: int,
    kernel: int = 3,
    stride: int = 1,
    padding_mode: Padding = 'zeros',
    norm: Callable[[int], nn.Module] = group_norm,
    layer: Callable[..., nn.Conv2d] = nn.Conv2d,
) -> nn.Sequential:
    """Return a convolution, normalisation and ReLU."""
    conv = layer(in_channels, out_channels, kernel, stride, padding=1, padding_mode=padding_mode)
    return nn.Sequential(conv, norm(out_channels), nn.ReLU(inplace=True))


class DownBlock(nn.Module):
    """Downsampling block: a strided convolution, a plain one and a residual one."""

    def __init__(self, in_channels: int, out_channels: int, padding_mode: Padding) -> None:
        super().__init__()
        self.down = conv_block(in_channels, in_channels, 4, 2, padding_mode)
        self.conv1 = conv_block(in_channels, out_channels, padding_mode=padding_mode)
        self.conv2 = conv_block(out_channels, out_channels, padding_mode=padding_mode)

    def forward(self, x: Float[Tensor, 's c h w']) -> Float[Tensor, 's d i j']:
        """Apply to S images; those of one pixel are padded to the size of the kernel."""
        height, width = x.shape[-2:]
        if min(height, width) < 2:
            x = F.pad(x, (0, max(2 - width, 0), 0, max(2 - height, 0)))
        x = self.conv1(self.down(x))
        return x + self.conv2(x)


@register_encoder('utae', temporal=True, sizes=('widths', 'dim', 'checkpointing'))
class UTAEEncoder(nn.Module):
    """U-TAE encoder of time series, which returns a feature pyramid without a time axis.

    The convolutions are shared by all dates and only computed for valid ones. The attention
    weights of the coarsest level are upsampled and reused for all finer levels. A processor
    computes a few dates at a time, whose maps fit in its cache. The upsampled weights are recomputed in
    the backward pass, which takes no longer than to keep them. ``torch.func.grad`` does not support this.

    Args:
        in_channels: Number of bands.
        widths: Channels of each level; each halves the resolution of the previous one.
        num_heads: Heads of the temporal attention; every width is a multiple of it.
        key_dim: Width of a query.
        dim: Width of the temporal attention.
        dates: Module that encodes dates; ``None`` for ``AnnualDates``.
        padding_mode: ``'zeros'``, or ``'reflect'`` as published, which copies every map and has no
            parameters for missing bands.
        batch_norm: BatchNorm after the temporal attention, as published.
        dropout: Dropout after the temporal attention.
        checkpointing: Number of finest levels whose maps of single dates are recomputed in the backward
            pass; True for two.
    """

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int] = (64, 64, 64, 128),
        num_heads: int = 16,
        key_dim: int = 4,
        dim: int | None = 256,
        dates: nn.Module | None = None,
        padding_mode: Padding = 'zeros',
        batch_norm: bool = False,
        dropout: float = 0.0,
        checkpointing: bool | int = False,
    ) -> None:
        super().__init__()
        self.channels, self.recomputed = tuple(widths), recomputed_levels(checkpointing)
        self.strides = tuple(2**level for level in range(len(widths)))
        first = functools.partial(BandConv2d, learn=padding_mode == 'zeros')
        self.in_conv = nn.Sequential(
            conv_block(in_channels, widths[0], padding_mode=padding_mode, layer=first),
            conv_block(widths[0], widths[0], padding_mode=padding_mode),
        )
        self.down_blocks = nn.ModuleList(DownBlock(i, o, padding_mode) for i, o in pairwise(widths))
        self.temporal = TemporalAttention(
            widths[-1], (widths[-1],), dim, num_heads, key_dim, dates, batch_norm=batch_norm, dropout=dropout
        )
        self.sums = WeightedSums()

    def forward(
        self, image: Float[Tensor, 'b t c h w'], dates: Int[Tensor, 'b t'], valid: Bool[Tensor, 'b t']
    ) -> list[Tensor]:
        """Encode time series.

        Args:
            image: Normalised bands; NaN is nodata.
            dates: Days since 1970-01-01.
            valid: Valid dates; the others are not computed.

        Returns:
            Maps of shape ``(B, C_l, H / 2^l, W / 2^l)``, fine to coarse, of :attr:`channels`.
        """
        return self.attend(image, dates, valid)[0]

    def attend(
        self, image: Float[Tensor, 'b t c h w'], dates: Int[Tensor, 'b t'], valid: Bool[Tensor, 'b t']
    ) -> tuple[list[Tensor], Float[Tensor, 'b t g i j']]:
        """Return the maps of :meth:`forward`, and the attention weights at the coarsest level."""
        index = valid_indices(valid)
        packed = gather_valid(image.flatten(0, 1), index)
        seen = observed_pixels(packed) & gather_valid(valid.flatten(), index).view(-1, 1, 1, 1)
        of_blocks = [self._pyramid(block) for block in split_images(packed, images_per_block(packed, self.channels[0]))]
        *finer, coarsest = (list(level) for level in zip(*of_blocks, strict=True))
        coarse, weights = attend(self.temporal, torch.cat(coarsest), seen, dates, index)
        packed_weights = gather_valid(weights.flatten(0, 1), index)
        sums = functools.partial(run, self.sums, recompute=True)
        maps = [_collapse_blocks(level, packed_weights, seen, index, valid, sums) for level in finer]
        return [*maps, coarse], weights

    def _pyramid(self, block: Float[Tensor, 's c h w']) -> list[Tensor]:
        """Return the maps of S images of single dates, fine to coarse."""
        pyramid: list[Tensor] = []
        for level, layer in enumerate((self._finest, *self.down_blocks)):
            pyramid.append(run(layer, pyramid[-1] if pyramid else block, recompute=level < self.recomputed))
        return pyramid

    def _finest(self, block: Float[Tensor, 's c h w']) -> Float[Tensor, 's d h w']:
        return self.in_conv(block.contiguous(memory_format=torch.channels_last))


def attend(
    temporal: Any,
    x: Float[Tensor, 's c i j'],
    seen: Bool[Tensor, 's 1 h w'],
    dates: Int[Tensor, 'b t'],
    index: Tensor | None,
) -> tuple[Float[Tensor, 'b c i j'], Float[Tensor, 'b t g i j']]:
    """Collapse the maps of single dates by temporal attention.

    Args:
        temporal: L-TAE.
        x: Maps of S valid dates.
        seen: Valid pixels of their images.
        dates: Days since 1970-01-01.
        index: Indices of the valid dates, see ``valid_indices``.

    Returns:
        Map of each time series, and the weights of its dates.
    """
    height, width = x.shape[-2:]
    measured = any_pool(seen, (height, width))
    series = scatter_valid(rearrange(x, 's c h w -> s (h w) c'), index, dates.numel())
    series = series.unflatten(0, dates.shape)
    measured = scatter_valid(measured.flatten(1), index, dates.numel()).unflatten(0, dates.shape)
    out, weights = temporal(series, dates, measured)
    return (
        rearrange(out, 'b (h w) c -> b c h w', h=height),
        rearrange(weights, 'b t (h w) g -> b t g h w', h=height),
    )


def collapse(
    level: Float[Tensor, 's c h w'],
    weights: Float[Tensor, 's g i j'],
    seen: Bool[Tensor, 's 1 k l'],
    index: Int[Tensor, ' s'] | None,
    valid: Bool[Tensor, 'b t'],
) -> Float[Tensor, 'b c h w']:
    """Sum the dates of a finer level with the attention weights of the coarsest one.

    Head g weights the g-th group of channels. If a pixel is not observed on a date, unlike its coarse neighbourhood,
    its weights of the other dates are increased.
    """
    blocks = split_images(level, images_per_block(level, level.shape[1]))
    return _collapse_blocks(blocks, weights, seen, index, valid, WeightedSums())


def _collapse_blocks(
    blocks: Sequence[Tensor],
    weights: Tensor,
    seen: Tensor,
    index: Tensor | None,
    valid: Tensor,
    sums: Callable[..., tuple[Tensor, ...]],
) -> Tensor:
    """Return the output of :func:`collapse` for a level whose S images are split into blocks."""
    count = blocks[0].shape[0]
    sample = None if len(blocks) == 1 and index is None else _samples(index, valid)
    masked = not readable(seen) or not bool(seen.all())
    parts = zip(
        blocks,
        split_images(weights, count),
        split_images(seen, count) if masked else [None] * len(blocks),
        [None] if sample is None else split_images(sample, count),
        strict=True,
    )
    found = [sums(*part, valid) for part in parts]
    total, *norms = (functools.reduce(torch.add, each) for each in zip(*found, strict=True))
    return rearrange(total / norms[0].clamp(min=1e-3) if masked else total, 'b h w g c -> b (g c) h w')


def _samples(index: Tensor | None, valid: Tensor) -> Int[Tensor, ' s']:
    """Return the sample of each of S images."""
    index = torch.arange(valid.numel(), device=valid.device) if index is None else index
    return index // valid.shape[1]


class WeightedSums(nn.Module):
    """Sum of the dates of each sample at one level, with the attention weights of a coarser level."""

    def forward(
        self,
        block: Float[Tensor, 's c h w'],
        weights: Float[Tensor, 's g i j'],
        seen: Bool[Tensor, 's 1 k l'] | None,
        sample: Int[Tensor, ' s'] | None,
        valid: Bool[Tensor, 'b t'],
    ) -> tuple[Tensor, ...]:
        """Return the weighted sum, and with *seen* also the sum of the weights.

        Args:
            block: Maps of S images.
            weights: Attention weights of each head.
            seen: Observed pixels of the images.
            sample: Sample of each image; None if every sample has all its T images.
            valid: Flags, of which only the shape counts.
        """
        height, width = size = block.shape[-2:]
        weights = F.interpolate(weights, size, mode='bilinear', align_corners=False)
        weights = rearrange(weights, 's g h w -> s h w g 1')
        if seen is not None:
            weights = weights * rearrange(any_pool(seen, (height, width)).to(block.dtype), 's 1 h w -> s h w 1 1')
        grouped = rearrange(block, 's (g c) h w -> s h w g c', g=weights.shape[3])
        summed = (grouped * weights,) if seen is None else (grouped * weights, weights)
        return tuple(add_up(x, sample, valid.shape) for x in summed)


class UpBlock(nn.Module):
    """Upsampling block: a transposed convolution, the skip, a plain and a residual convolution."""

    def __init__(
        self,
        in_channels: int,
        skip_channels: int,
        out_channels: int,
        padding_mode: Padding,
        norm: Callable[[int], nn.Module],
    ) -> None:
        super().__init__()
        up = nn.ConvTranspose2d(in_channels, out_channels, 4, 2, 1)
        self.up = nn.Sequential(up, norm(out_channels), nn.ReLU(inplace=True))
        skip = nn.Conv2d(skip_channels, skip_channels, 1)
        self.skip = nn.Sequential(skip, norm(skip_channels), nn.ReLU(inplace=True))
        self.conv1 = conv_block(out_channels + skip_channels, out_channels, padding_mode=padding_mode, norm=norm)
        self.conv2 = conv_block(out_channels, out_channels, padding_mode=padding_mode, norm=norm)

    def forward(self, x: Float[Tensor, 'b c i j'], skip: Float[Tensor, 'b e h w']) -> Float[Tensor, 'b d h w']:
        """Apply to the maps of B samples; maps of odd size are interpolated."""
        up = self.up(x)
        if up.shape[-2:] != skip.shape[-2:]:
            up = F.interpolate(up, skip.shape[-2:], mode='bilinear', align_corners=False)
        x = self.conv1(torch.cat([up, self.skip(skip)], dim=1))
        return x + self.conv2(x)


def decode_pyramid(blocks: Iterable[nn.Module], maps: Sequence[Tensor]) -> list[Tensor]:
    """Return the maps of a decoder, coarse to fine, from those of the encoder, fine to coarse."""
    *skips, coarse = maps
    decoded = [coarse]
    for block, skip in zip(blocks, reversed(skips), strict=True):
        decoded.append(block(decoded[-1], skip))
    return decoded


class UTAE(nn.Module):
    """U-TAE for semantic segmentation of time series of one sensor.

    Differences from the published code, even with its weights: an extra forward pass that
    only determines a shape is omitted, and padded dates are excluded from the normalisation.

    Args:
        in_channels: Number of bands.
        num_classes: Number of classes K.
        widths: Channels of the encoder's levels, fine to coarse.
        decoder_widths: Channels of the decoder's levels, fine to coarse; the last equals the
            last of *widths*.
        hidden: Channels before the classes.
        num_heads: Heads of the temporal attention.
        key_dim: Width of a query.
        dim: Width of the temporal attention.
        published: Whether to build the published model: BatchNorm in the decoder, reflection
            padding, a sinusoid of the days since 2018-09-01, and ReLU on the logits.
            Otherwise the output of a sample does not depend on other samples of the batch.
        reference_date: Day zero of the published sinusoid, in days since 1970-01-01.

    Raises:
        ValueError: If *decoder_widths* and *widths* differ in length or in the last width.
    """

    def __init__(
        self,
        in_channels: int = 10,
        num_classes: int = 20,
        widths: Sequence[int] = (64, 64, 64, 128),
        decoder_widths: Sequence[int] = (32, 32, 64, 128),
        hidden: int = 32,
        num_heads: int = 16,
        key_dim: int = 4,
        dim: int = 256,
        published: bool = False,
        reference_date: int = PUBLISHED_REFERENCE,
    ) -> None:
        super().__init__()
        check_integer(1, in_channels=in_channels, num_classes=num_classes)
        if len(widths) != len(decoder_widths) or widths[-1] != decoder_widths[-1]:
            raise ValueError(
                f'decoder_widths {tuple(decoder_widths)} must have the length and the last width of {tuple(widths)}'
            )
        mode: Padding = 'reflect' if published else 'zeros'
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d if published else group_norm
        dates = SinusoidDates(dim, num_heads, 1000, reference_date) if published else None
        self.encoder = UTAEEncoder(in_channels, widths, num_heads, key_dim, dim, dates, mode, batch_norm=published)
        levels = list(zip(reversed(widths[:-1]), pairwise(reversed(decoder_widths)), strict=True))
        self.up_blocks = nn.ModuleList(UpBlock(i, skip, o, mode, norm) for skip, (i, o) in levels)
        last = nn.Conv2d(hidden, num_classes, 3, padding=1, padding_mode=mode)
        self.head = nn.Sequential(
            conv_block(decoder_widths[0], hidden, padding_mode=mode, norm=norm),
            nn.Sequential(last, nn.BatchNorm2d(num_classes), nn.ReLU()) if published else last,
        )
        self.to(memory_format=torch.channels_last)

    def forward(
        self, image: Float[Tensor, 'b t c h w'], dates: Int[Tensor, 'b t'], valid: Bool[Tensor, 'b t']
    ) -> Float[Tensor, 'b k h w']:
        """Return the logits of time series; see :meth:`UTAEEncoder.forward`."""
        return self.head(self.features(image, dates, valid)[-1])

    def features(
        self, image: Float[Tensor, 'b t c h w'], dates: Int[Tensor, 'b t'], valid: Bool[Tensor, 'b t']
    ) -> list[Tensor]:
        """Return the maps of the decoder, coarse to fine; the first is that of the encoder."""
        return decode_pyramid(self.up_blocks, self.encoder(image, dates, valid))

    @classmethod
    def from_published(
        cls, state_dict: Mapping[str, Tensor], reference_date: int = PUBLISHED_REFERENCE, **ctor: Any
    ) -> 'UTAE':
        """Build the published model with its weights.

        Args:
            state_dict: Parameters under the published names.
            reference_date: Day zero of its dates, in days since 1970-01-01.
            **ctor: Arguments of the published constructor; those without effect are accepted.

        Returns:
            Model in evaluation mode.

        Raises:
            ValueError: If an argument has a value that is not supported, or is unknown.
            RuntimeError: If the parameters are not those of such a model.
        """
        chosen = published_arguments('U-TAE', ctor, UTAE_ARGUMENTS, UTAE_FIXED)
        hidden, classes = chosen.pop('out_conv', (32, 20))
        model = cls(num_classes=classes, hidden=hidden, published=True, reference_date=reference_date, **chosen)
        model.load_state_dict(renamed(state_dict, UTAE_NAMES))
        return model.eval()
