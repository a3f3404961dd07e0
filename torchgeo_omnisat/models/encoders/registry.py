# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Construction of the encoder of each modality, by name or by default."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from ...modality import Modality
from .image import ImageEncoder
from .ltae import LTAEEncoder
from .utae import UTAEEncoder
from .weights import published_encoder

#: Encoder as a name, a module, or a function that builds one from the number of bands.
Encoder = str | nn.Module | Callable[[int], nn.Module]


def build_encoders(
    modalities: Mapping[str, Modality],
    encoders: Mapping[str, Encoder] | None,
    widths: Sequence[int],
    image_widths: Sequence[int],
    checkpointing: bool = False,
) -> dict[str, nn.Module]:
    """Return one encoder per modality; the arguments and errors are those of :class:`.OmniSat`."""
    chosen = dict(encoders or {})
    if unknown := sorted(set(chosen) - set(modalities)):
        raise ValueError(f'encoders names {unknown}, expected some of {list(modalities)}')
    sizes = tuple(widths), tuple(image_widths), checkpointing
    return {name: _build_encoder(modality, chosen.get(name), *sizes) for name, modality in modalities.items()}


def _build_encoder(
    modality: Modality,
    encoder: Encoder | None,
    widths: tuple[int, ...],
    image_widths: tuple[int, ...],
    checkpointing: bool,
) -> nn.Module:
    bands = len(modality.bands)
    if isinstance(encoder, nn.Module):
        return encoder
    if encoder is not None and not isinstance(encoder, str):
        return encoder(bands)
    if not modality.temporal:
        return ImageEncoder(bands, encoder) if encoder else _resnet(bands, image_widths)
    if encoder in (None, 'utae'):
        return UTAEEncoder(bands, widths, dim=2 * widths[-1], checkpointing=checkpointing)
    if encoder == 'ltae':
        return LTAEEncoder(bands, widths)
    if encoder == 'utae_published':
        return published_encoder(bands)
    raise ValueError(
        f"encoder {encoder!r} of the series {modality.name!r} is unknown, expected 'utae', 'utae_published' or 'ltae'"
    )


def _resnet(bands: int, widths: tuple[int, ...]) -> ImageEncoder:
    """Return a ResNet-18 of these widths, with a narrow stem if it is narrower than the original.

    The original stem always has 64 channels, which at a GSD of 1 m took half the time of a
    training step of :func:`.omnisat_tiny`.
    """
    stem: dict[str, Any] = {'stem_type': 'deep', 'stem_width': 8} if widths[0] < 64 else {}
    return ImageEncoder(bands, 'resnet18', channels=widths, **stem)
