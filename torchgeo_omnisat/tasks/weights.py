# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Weights: a backbone that continues from a checkpoint, part by part."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from ..modality import Modality


def load_backbone(backbone: nn.Module, path: str | Path, modalities: Mapping[str, Modality]) -> dict[str, list[str]]:
    """Load what a checkpoint knows into a backbone, and log what was loaded, new and ignored.

    A backbone has one part for each modality (encoder, head, embedding) and one for each
    thing they share. A part is loaded whole or not at all: where the names or shapes of
    its tensors differ, or the bands of its modality, it stays as it is.

    Args:
        backbone: The backbone; changed in place.
        path: A checkpoint of one of our tasks, or a file with a state dict. Only tensors
            and plain types are read (``weights_only=True``).
        modalities: The modalities of *backbone*.

    Returns:
        Names of the parts that were ``'loaded'``, are ``'new'`` and were ``'ignored'``.

    Raises:
        FileNotFoundError: If *path* is no file.
        ValueError: If it cannot be read safely, or no part of it fits.
    """
    checkpoint = _read(path)
    content = checkpoint.get('state_dict', checkpoint)
    state = (
        {key: value for key, value in content.items() if isinstance(value, Tensor)} if isinstance(content, dict) else {}
    )
    own = backbone.state_dict()
    found = _parts(_strip(state, own), modalities)
    expected = _parts(own, modalities)
    told = checkpoint.get('hyper_parameters') or {}
    bands = {m['name']: m['bands'] for m in told.get('modalities') or ()}
    reasons = {
        part: _difference(expected[part], found[part])
        or (
            f'bands {bands[part]} instead of {list(modalities[part].bands)}'
            if part in modalities and bands.get(part, list(modalities[part].bands)) != list(modalities[part].bands)
            else ''
        )
        for part in expected
        if part in found
    }
    loaded = [part for part, reason in reasons.items() if not reason]
    report = {
        'loaded': loaded,
        'new': [part for part in expected if part not in loaded],
        'ignored': [f'{part} ({reasons[part]})' if part in reasons else part for part in found if part not in loaded],
    }
    said = '; '.join(f'{kind}: {", ".join(names) or "nothing"}' for kind, names in report.items())
    if not loaded:
        raise ValueError(f'no part of {path} fits the backbone, expected some of {list(expected)} ({said})')
    backbone.load_state_dict({key: value for part in loaded for key, value in found[part].items()}, strict=False)
    rank_zero_info(f'Weights from {path}: {said}')
    return report


def _read(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint, a dictionary of tensors and plain types."""
    if not Path(path).is_file():
        raise FileNotFoundError(f'weights {str(path)!r} is no file, expected a checkpoint')
    try:
        checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f'{path} cannot be read as a checkpoint of tensors and plain types alone, expected one that '
            f'torch.load(weights_only=True) accepts: {reason}'
        ) from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f'{path} holds a {type(checkpoint).__name__}, expected a dictionary with a state_dict')
    return checkpoint


def _strip(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The backbone's share of a state dict: without the prefix under which most names are known."""
    prefixes = sorted({key.removesuffix(name) for key in state for name in own if key.endswith(name)}) or ['']
    shares = [{k.removeprefix(p): v for k, v in state.items() if k.startswith(p)} for p in prefixes]
    return max(shares, key=lambda share: len(share.keys() & own.keys()))


def _parts(state: Mapping[str, Tensor], modalities: Mapping[str, Modality]) -> dict[str, dict[str, Tensor]]:
    """Tensors by part: a modality's own, whatever module they are in, and the rest by module."""
    names = {key.split('.')[1] for key in state if key.startswith('encoders.')} | set(modalities)
    parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, value in state.items():
        path = key.split('.')
        parts[next((step for step in path if step in names), path[0])][key] = value
    return dict(parts)


def _difference(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """The first difference in names or shapes between two parts; empty if there is none."""
    for key in expected.keys() | found.keys():
        here, there = (tuple(state[key].shape) if key in state else None for state in (expected, found))
        if here != there:
            return f'{key} is {there or "missing"} instead of {here or "missing"}'
    return ''
