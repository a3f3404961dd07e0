# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Late fusion: every modality goes its own way to the pixels, where what they say is averaged.

The dual-stream baseline, after Garnot, Landrieu and Chehata, "Multi-Modal Temporal Attention
Models for Crop Mapping from Satellite Time Series" (arXiv 2112.07558). With one series it is
U-TAE (arXiv 2107.07933) with GroupNorm.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..modality import Modality, as_modalities
from .encoders.registry import Encoder, build_encoders
from .encoders.utae import UpBlock, climb, conv_block, group_norm
from .omnisat import OmniSat, channels_last
from .segmentation import resize

#: Backbones of one stream a modality, and what each takes: one series, the series, everything.
LATE_FUSION = ('utae', 'dual_stream', 'late_fusion')


class Stream(nn.Module):
    """An encoder with U-TAE's decoder: one map, about as fine as is asked for.

    Args:
        encoder: Has ``channels`` and ``strides`` of its maps, fine to coarse.
        gsd: Metres a pixel of the images.
        target_gsd: Metres a pixel that the map is to come near.
        width: Channels of the map.
    """

    def __init__(self, encoder: nn.Module, gsd: float, target_gsd: float, width: int = 32) -> None:
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
        self.head = conv_block(widths[finest], width)
        self.channels, self.strides = (width,), (strides[finest],)

    def forward(self, *images: Tensor) -> list[Tensor]:
        """The map of what the encoder takes: ``(image, dates, valid)`` or ``(image, valid)``."""
        maps = self.encoder(*images)[self.finest :]
        return [self.head(climb(self.up_blocks, maps)[-1])]


class Grid(nn.Module):
    """A map as tokens, one a place of the grid."""

    def forward(self, maps: Sequence[Tensor], grid: tuple[int, int]) -> Float[Tensor, 'b n d']:
        """Average or interpolate the only map."""
        return rearrange(resize(maps[0], grid), 'b d h w -> b (h w) d')


class MeanFusion(nn.Module):
    """The mean over the modalities that saw a place; zero where none did."""

    def forward(
        self, tokens: Float[Tensor, 'b n m d'], seen: Bool[Tensor, 'b n m'], grid: tuple[int, int]
    ) -> Float[Tensor, 'b n d']:
        """Average the tokens of each place; see :meth:`.Fusion.forward`."""
        hidden = ~seen.unsqueeze(-1)
        return tokens.masked_fill(hidden, 0).sum(2) / seen.sum(2, keepdim=True).clamp(min=1)


class LateFusion(OmniSat):
    """One stream a modality, averaged at the end; takes the place of an :class:`OmniSat`.

    Its tokens are those of single pixels, so a decoder has nothing left to do but to tell
    classes. No modality knows of another: what is absent has no influence, and neither has
    the batch.

    Args:
        modalities: The modalities, each of which gets a stream. A batch may hold others.
        patch_size: Side of what a token stands for, in metres: a pixel of the label.
        encoders: See :class:`OmniSat`.
        widths: Channels of the levels of a U-TAE encoder, as published.
        image_widths: Channels of the stages of the default image encoder, a ResNet-18.
        width: Channels of what a stream ends in.
    """

    def __init__(
        self,
        modalities: Mapping[str, Modality] | Iterable[Modality | Mapping[str, Any]],
        patch_size: float = 10.0,
        encoders: Mapping[str, Encoder] | None = None,
        widths: Sequence[int] = (64, 64, 64, 128),
        image_widths: Sequence[int] = (64, 128, 256, 512),
        width: int = 32,
    ) -> None:
        nn.Module.__init__(self)
        self.modalities = as_modalities(modalities)
        self.embed_dim, self.patch_size = width, float(patch_size)
        chosen = build_encoders(self.modalities, encoders, widths, image_widths)
        gsds = {name: modality.gsd for name, modality in self.modalities.items()}
        self.encoders = nn.ModuleDict(
            {name: Stream(encoder, gsds[name], self.patch_size, width) for name, encoder in chosen.items()}
        )
        self.heads = nn.ModuleDict({name: Grid() for name in self.modalities})
        self.fusion = MeanFusion()
        channels_last(self)

    def _refuse(self, batch: Mapping[str, Tensor]) -> None:
        """As :meth:`OmniSat._refuse`, but other images are let pass."""
        others = {key for key in batch if key.startswith('image')} - {m.image_key for m in self.modalities.values()}
        super()._refuse({key: value for key, value in batch.items() if key not in others})


def taken(backbone: str, modalities: Any, series: str | None = None) -> dict[str, Modality]:
    """The modalities that a backbone takes of those that there are.

    Args:
        backbone: Name of a builder.
        modalities: The modalities; see :class:`OmniSat`.
        series: Name of the one series for ``'utae'``; None for the only optical one, or the only one.

    Returns:
        Of ``'utae'`` one series, of ``'dual_stream'`` every series, otherwise all.

    Raises:
        ValueError: If there is no such series, or more than one to choose from.
    """
    known = as_modalities(modalities)
    if backbone not in ('utae', 'dual_stream'):
        return known
    found = [modality.name for modality in known.values() if modality.temporal]
    if not found:
        raise ValueError(f'{backbone} takes series, expected one among the modalities {list(known)}')
    if backbone == 'dual_stream':
        return {name: known[name] for name in found}
    choices = [series] if series else [name for name in found if known[name].kind == 'optical'] or found
    if series is None and all(known[name].kind is None for name in found):
        choices = [name for name in found if name == 's2'] or found  # as before modalities had a kind
    if len(choices) > 1 or choices[0] not in found:
        raise ValueError(f'series of utae is {series!r}, expected one of {found}')
    return {choices[0]: known[choices[0]]}


def dual_stream(modalities: Any, **kwargs: Any) -> LateFusion:
    """One U-TAE stream a series, averaged at the end: the baseline for Sentinel-1 and 2.

    Single images among the modalities are left aside; :func:`late_fusion` takes them too.

    Args:
        modalities: See :class:`OmniSat`.
        **kwargs: Any other argument of :class:`LateFusion`.
    """
    return LateFusion(taken('dual_stream', modalities), **kwargs)


def late_fusion(modalities: Any, **kwargs: Any) -> LateFusion:
    """One stream a modality, a U-TAE for a series and a U-Net for an image, averaged at the end.

    Args:
        modalities: See :class:`OmniSat`.
        **kwargs: Any other argument of :class:`LateFusion`.
    """
    return LateFusion(modalities, **kwargs)
