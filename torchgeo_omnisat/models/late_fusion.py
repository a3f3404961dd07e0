# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Late fusion: one encoder-decoder per modality, whose outputs are averaged for each pixel.

The dual-stream baseline, after Garnot, Landrieu and Chehata, "Multi-Modal Temporal Attention
Models for Crop Mapping from Satellite Time Series" (arXiv 2112.07558). With one time series it is
U-TAE (arXiv 2107.07933) with GroupNorm.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..modality import Modality, as_modalities
from .encoders import Encoder, build_encoders
from .encoders.series.utae import UpBlock, conv_block, decode_pyramid, group_norm
from .omnisat import OmniSat, channels_last, check_ground, check_size, split_location
from .segmentation import resize

#: Backbones with one stream per modality; their inputs are one time series, all time series, all modalities.
LATE_FUSION = ('utae', 'dual_stream', 'late_fusion')


class Stream(nn.Module):
    """Encoder with the decoder of U-TAE, which returns one map near a target resolution.

    Args:
        encoder: Encoder with the ``channels`` and ``strides`` of its maps, fine to coarse.
        gsd: GSD of the images in metres.
        target_gsd: Target GSD of the map in metres.
        width: Channels of the map.
        linear: Whether the last layer is linear in the features of each pixel, instead of a convolution.
    """

    def __init__(
        self, encoder: nn.Module, gsd: float, target_gsd: float, width: int = 32, linear: bool = False
    ) -> None:
        super().__init__()
        channels: Sequence[int] = encoder.channels  # type: ignore[assignment]
        strides: Sequence[int] = encoder.strides  # type: ignore[assignment]
        finest = min(range(len(strides)), key=lambda level: abs(math.log2(gsd * strides[level] / target_gsd)))
        widths = [min(c, width * 2 ** max(0, level - 1)) for level, c in enumerate(channels[:-1])] + [channels[-1]]
        self.encoder, self.finest = encoder, finest
        self.up_blocks = nn.ModuleList(
            UpBlock(widths[level + 1], channels[level], widths[level], 'zeros', group_norm)
            for level in reversed(range(finest, len(channels) - 1))
        )
        self.head = nn.Conv2d(widths[finest], width, 1) if linear else conv_block(widths[finest], width)
        self.channels, self.strides = (width,), (strides[finest],)

    def forward(self, *images: Tensor) -> list[Tensor]:
        """Return the map of the encoder's input, ``(image, dates, valid)`` or ``(image, valid)``."""
        maps = self.encoder(*images)[self.finest :]
        return [self.head(decode_pyramid(self.up_blocks, maps)[-1])]


class GridTokens(nn.Module):
    """Conversion of a map to tokens, one per cell of the grid."""

    def forward(self, maps: Sequence[Tensor], grid: tuple[int, int]) -> Float[Tensor, 'b n d']:
        """Average or interpolate the map."""
        return rearrange(resize(maps[0], grid), 'b d h w -> b (h w) d')


class MeanFusion(nn.Module):
    """Mean over the modalities that observed a cell; zero if none did."""

    def forward(
        self, tokens: Float[Tensor, 'b n m d'], seen: Bool[Tensor, 'b n m'], grid: tuple[int, int]
    ) -> Float[Tensor, 'b n d']:
        """Average the tokens of each cell; see :meth:`.Fusion.forward`."""
        hidden = ~seen.unsqueeze(-1)
        return tokens.masked_fill(hidden, 0).sum(2) / seen.sum(2, keepdim=True).clamp(min=1)


class LateFusion(OmniSat):
    """Late-fusion baseline with one stream per modality; a replacement for :class:`OmniSat`.

    There is one token per pixel, so a decoder only classifies tokens. The streams
    are independent: absent modalities and other samples of the batch have no influence.

    Args:
        modalities: Modalities, each with a stream. A batch may contain others.
        patch_size: Side of a token in metres, usually the GSD of the labels.
        encoders: See :class:`OmniSat`.
        widths: Channels of the levels of a U-TAE encoder; published by default.
        image_widths: Channels of the stages of the default image encoder, a ResNet-18.
        width: Output channels of a stream.
        linear: Whether streams end with a linear layer, so that logits are linear in the features of the encoders,
            averaged over the modalities. Few labels suffice to train it.
        checkpointing: See :class:`OmniSat`; the features of the decoders are kept.

    Raises:
        ValueError: If *encoders* has a modality that is not in *modalities*, or an encoder is unknown, or the location
            is a modality, or a size is not positive and finite or implausibly large.
    """

    def __init__(
        self,
        modalities: Mapping[str, Modality] | Iterable[Modality | Mapping[str, Any]],
        patch_size: float = 10.0,
        encoders: Mapping[str, Encoder] | None = None,
        widths: Sequence[int] = (64, 64, 64, 128),
        image_widths: Sequence[int] = (64, 128, 256, 512),
        width: int = 32,
        linear: bool = False,
        checkpointing: bool | int = False,
    ) -> None:
        nn.Module.__init__(self)
        self.modalities, encoders, location = split_location(modalities, encoders)
        if location is not None:
            raise ValueError(
                'late fusion averages one map per modality, expected modalities with images: the location needs the '
                'attention of omnisat_tiny, omnisat_small or omnisat_base'
            )
        check_size('width', width)
        check_ground(self.modalities, patch_size, widths, image_widths)
        self.location = None
        self.embed_dim, self.patch_size = width, float(patch_size)
        chosen = build_encoders(self.modalities, encoders, widths, image_widths, checkpointing)
        gsds = {name: modality.gsd for name, modality in self.modalities.items()}
        self.encoders = nn.ModuleDict(
            {name: Stream(encoder, gsds[name], self.patch_size, width, linear) for name, encoder in chosen.items()}
        )
        self.heads = nn.ModuleDict({name: GridTokens() for name in self.modalities})
        self.fusion, self.context = MeanFusion(), None
        channels_last(self)

    def _validate(self, batch: Mapping[str, Tensor]) -> None:
        """Validate the batch as :class:`OmniSat` does, but allow other images."""
        others = {key for key in batch if key.startswith('image')} - {m.image_key for m in self.modalities.values()}
        super()._validate({key: value for key, value in batch.items() if key not in others})


def taken(backbone: str, modalities: Any, series: str | None = None) -> dict[str, Modality]:
    """Return the modalities that a backbone uses.

    Args:
        backbone: Name of a builder.
        modalities: Available modalities; see :class:`OmniSat`.
        series: Name of the time series for ``'utae'``; None for the only optical one, or the only one.

    Returns:
        One time series for ``'utae'``, all time series for ``'dual_stream'``, otherwise all.

    Raises:
        ValueError: If no time series matches, or more than one does.
    """
    known = as_modalities(modalities)
    if backbone not in ('utae', 'dual_stream'):
        return known
    series_names = [modality.name for modality in known.values() if modality.temporal]
    if not series_names:
        raise ValueError(f'modalities are {list(known)}, expected at least one time series for {backbone}')
    if backbone == 'dual_stream':
        return {name: known[name] for name in series_names}
    choices = [series] if series else [name for name in series_names if known[name].kind == 'optical'] or series_names
    if series is None and all(known[name].kind is None for name in series_names):
        choices = [name for name in series_names if name == 's2'] or series_names  # as before modalities had a kind
    if len(choices) > 1 or choices[0] not in series_names:
        raise ValueError(f'series of utae is {series!r}, expected one of {series_names}')
    return {choices[0]: known[choices[0]]}


def dual_stream(modalities: Any, **kwargs: Any) -> LateFusion:
    """Build the late-fusion baseline for Sentinel-1 and 2, with one U-TAE stream per time series.

    Single images are ignored; :func:`late_fusion` uses them too.

    Args:
        modalities: See :class:`OmniSat`.
        **kwargs: Any other argument of :class:`LateFusion`.
    """
    return LateFusion(taken('dual_stream', modalities), **kwargs)


def late_fusion(modalities: Any, **kwargs: Any) -> LateFusion:
    """Build a late-fusion model with a U-TAE for each time series and a U-Net for each image.

    Args:
        modalities: See :class:`OmniSat`.
        **kwargs: Any other argument of :class:`LateFusion`.
    """
    return LateFusion(modalities, **kwargs)
