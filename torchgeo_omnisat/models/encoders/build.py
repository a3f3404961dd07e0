# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Construction of the encoder of each modality."""

import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import timm
from torch import nn

from ...modality import Modality
from .image import ImageEncoder
from .pretrained.freezing import FreezableEncoder
from .pretrained.images.backbone import PretrainedEncoder
from .pretrained.per_date import PerDate
from .pretrained.sources import find_entry, model_of
from .recomputation import recomputed_levels
from .registry import ENCODERS, Encoder, as_specification, builds_checkpoint, call_builder, check_encoder, import_class

#: Arguments of ``PerDate`` in a specification.
_PER_DATE = ('width', 'num_heads', 'key_dim', 'dim', 'attention_stride')


def build_encoders(
    modalities: Mapping[str, Modality],
    encoders: Mapping[str, Encoder] | None,
    widths: Sequence[int],
    image_widths: Sequence[int],
    checkpointing: bool | int = False,
) -> dict[str, nn.Module]:
    """Return one encoder per modality; the arguments and errors are those of :class:`.OmniSat`."""
    chosen = dict(encoders or {})
    if unknown := sorted(set(chosen) - set(modalities)):
        raise ValueError(f'encoders names {unknown}, expected some of {list(modalities)}')
    recomputed_levels(checkpointing)  # an error even if no encoder takes it
    sizes: dict[str, Any] = {'widths': tuple(widths), 'image_widths': tuple(image_widths)}
    sizes |= {'checkpointing': checkpointing, 'dim': 2 * widths[-1]}
    return {name: _build_encoder(modality, chosen.get(name), sizes) for name, modality in modalities.items()}


def _build_encoder(modality: Modality, encoder: Encoder | None, sizes: Mapping[str, Any]) -> nn.Module:
    if encoder is None:
        return _default(modality, sizes)
    encoder = as_specification(modality.name, encoder)
    if isinstance(encoder, nn.Module):
        return check_encoder(modality.name, encoder)
    if isinstance(encoder, str):
        encoder = {'name': encoder}
    if not isinstance(encoder, Mapping):
        return call_builder(modality, encoder, {})
    arguments = dict(encoder)
    if path := arguments.pop('class_path', None):
        given = arguments.get('init_args') or {}
        return _warn_if_random(modality, call_builder(modality, import_class(modality.name, path), given), given)
    name = arguments.pop('name', None)
    if name is None:
        weights = find_entry(None, arguments['weights'])
        if weights is None:
            raise ValueError(
                f'encoder of {modality.name!r} has the weights {arguments["weights"]!r} but no name, expected the name '
                "of its backbone, or weights such as 'ResNet50_Weights.SENTINEL2_ALL_MOCO'"
            )
        name = model_of(weights)
        name = name if name in ENCODERS else next((key for key in ENCODERS if name.startswith(f'{key}_')), name)
    if name in ENCODERS:
        entry = ENCODERS[name]
        if entry.temporal not in (None, modality.temporal) and not entry.per_date:
            kinds = {True: 'a time series', False: 'single images'}
            raise ValueError(
                f'encoder {name!r} of {modality.name!r} takes {kinds[bool(entry.temporal)]}, expected one for '
                f'{kinds[modality.temporal]}: {_names(modality)}'
            )
        temporal = _per_date_arguments(modality, arguments) if entry.per_date else {}
        built = call_builder(modality, entry.build, {**{key: sizes[key] for key in entry.sizes}, **arguments})
        _warn_if_random(modality, built, arguments)
        return _per_date(modality, built, temporal, sizes) if entry.per_date else built
    return _backbone(modality, name, arguments, sizes)


def _warn_if_random(modality: Modality, encoder: nn.Module, arguments: Mapping[str, Any]) -> nn.Module:
    """Warn if an encoder is frozen with random weights that no checkpoint replaces."""
    is_random = arguments.get('pretrained') is False and arguments.get('weights') is None
    loads = arguments.get('load', True) and not builds_checkpoint()
    if is_random and loads and isinstance(encoder, FreezableEncoder) and encoder.frozen:
        warnings.warn(
            f'encoder of {modality.name!r} is frozen with random weights, expected pretrained: true, weights or '
            'freeze: false, unless a checkpoint provides its weights',
            stacklevel=2,
        )
    return encoder


def _backbone(modality: Modality, name: str, arguments: dict[str, Any], sizes: Mapping[str, Any]) -> nn.Module:
    """Return an encoder with a backbone of timm or torchvision, on each date of a time series."""
    temporal = _per_date_arguments(modality, arguments)
    pretrained = arguments.pop('pretrained', None)
    if pretrained not in (None, True, False):
        raise ValueError(f'pretrained is {pretrained!r} for {modality.name!r}, expected true or false')
    encoder: nn.Module
    if pretrained or arguments.get('weights') is not None:
        names = list(inspect.signature(PretrainedEncoder).parameters)
        if unknown := sorted(set(arguments) - set(names)):
            raise ValueError(f'encoder of {modality.name!r} has {unknown}, expected some of {[*names[1:], *_PER_DATE]}')
        encoder = PretrainedEncoder(modality, name, pretrained=bool(pretrained), **arguments)
    else:
        if pretrained is None and '.' in name and timm.is_model(name):
            raise ValueError(
                f'encoder {name!r} of {modality.name!r} names pre-trained weights, expected '
                f'{{name: {name}, pretrained: true}} to load them, or pretrained: false for random weights'
            )
        if modality.temporal and not timm.is_model(name):
            raise ValueError(
                f'encoder {name!r} of the series {modality.name!r} is unknown, expected one of {_names(modality)}, or '
                'a backbone of timm'
            )
        if arguments.pop('freeze', None):
            raise ValueError(
                f'encoder {name!r} of {modality.name!r} has freeze but random weights, expected pretrained: true, '
                'weights, or no freeze'
            )
        only = {key: value for key, value in arguments.items() if key not in ('load', 'weights')}
        encoder = ImageEncoder(len(modality.bands), name, **only)
    return _per_date(modality, encoder, temporal, sizes)


def _per_date_arguments(modality: Modality, arguments: dict[str, Any]) -> dict[str, Any]:
    """Remove the arguments of ``PerDate`` from a specification and return them."""
    temporal = {key: arguments.pop(key) for key in _PER_DATE if key in arguments}
    if temporal and not modality.temporal:
        raise ValueError(f'encoder of {modality.name!r} has {sorted(temporal)}, expected them only for a time series')
    return temporal


def _per_date(
    modality: Modality, encoder: nn.Module, temporal: Mapping[str, Any], sizes: Mapping[str, Any]
) -> nn.Module:
    if not modality.temporal:
        return encoder
    return PerDate(encoder, len(modality.bands), **{'width': max(16, sizes['widths'][0] // 16 * 16), **temporal})


def _names(modality: Modality) -> str:
    return ', '.join(
        name for name, entry in ENCODERS.items() if entry.per_date or entry.temporal in (None, modality.temporal)
    )


def _default(modality: Modality, sizes: Mapping[str, Any]) -> nn.Module:
    if modality.temporal:
        return _build_encoder(modality, 'utae', sizes)
    levels = sizes['checkpointing']
    return _resnet(len(modality.bands), sizes['image_widths'], 0 if isinstance(levels, bool) else levels)


def _resnet(bands: int, widths: tuple[int, ...], checkpointing: int) -> ImageEncoder:
    """Return a ResNet-18 of these widths, with a narrow stem if it is narrower than the original.

    The original stem always has 64 channels, which at a GSD of 1 m took half the time of a
    training step of :func:`.omnisat_tiny`.
    """
    stem: dict[str, Any] = {'stem_type': 'deep', 'stem_width': 8} if widths[0] < 64 else {}
    return ImageEncoder(bands, 'resnet18', checkpointing=checkpointing, channels=widths, **stem)
