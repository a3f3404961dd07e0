# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Weights: a backbone that continues from another training, part by part."""

import warnings
from collections import defaultdict
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from ..modality import Modality
from ..models.encoders.bands import add_missing
from .checkpoints import read_weights
from .normalization import KINDS, Sources, Statistics, choose

#: Modules of a backbone that hold one part for each modality.
_BY_MODALITY = ('encoders', 'heads', 'embeddings')


class Inherited(NamedTuple):
    """What weights say of the images that they were trained on.

    Attributes:
        statistics: Mean and standard deviation by modality; empty if they are not known.
        sources: The same by source, of weights that were trained on a mixture; empty otherwise.
    """

    statistics: Statistics = {}
    sources: Sources = {}


class Handover(NamedTuple):
    """What a backbone took over.

    Attributes:
        loaded: Names of the parts that were loaded.
        new: Names of the parts that were not there, or did not fit.
        ignored: Names of the parts that the backbone has no use for, with the reason.
        statistics: Mean and standard deviation that the loaded modalities were trained with.
        sources: The same by source, if they were trained on a mixture.
    """

    loaded: list[str]
    new: list[str]
    ignored: list[str]
    statistics: Statistics
    sources: Sources


def load_backbone(backbone: nn.Module, path: str | Path, modalities: Mapping[str, Modality]) -> Handover:
    """Load what a checkpoint knows into a backbone, and log what was loaded, new and ignored.

    A backbone has one part for each modality (encoder, head, embedding) and one for each
    thing they share. A part is loaded whole or not at all: where the names or shapes of
    its tensors differ, or the bands of its modality, it stays as it is. A modality that the
    checkpoint lacks is new, and changes nothing for samples that do not have it.

    Args:
        backbone: The backbone; changed in place.
        path: A checkpoint of one of our tasks, a file with a state dict, also as
            safetensors, or a folder of :func:`.export_hub`. Only tensors and plain types are
            read.
        modalities: The modalities of *backbone*.

    Returns:
        What was taken over.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read safely, no part of it fits, or a modality was in another unit.
    """
    state, told = read_weights(path)
    own = backbone.state_dict()
    found, expected = _parts(add_missing(_strip(state, own), own), modalities), _parts(own, modalities)
    there = told.get('modalities') or ()
    known = {m['name']: m for m in (there.values() if isinstance(there, Mapping) else there)}
    bands = {name: list(m['bands']) for name, m in known.items()}
    _check_units({name: m.get('unit', 'unknown') for name, m in known.items()}, modalities, path)
    reasons = {}
    for part in (part for part in expected if part in found):
        reasons[part] = _difference(expected[part], found[part])
        wanted = list(modalities[part].bands) if part in modalities else None
        if not reasons[part] and wanted is not None and bands.get(part, wanted) != wanted:
            reasons[part] = f'bands {bands[part]} instead of {wanted}'
    loaded = [part for part, reason in reasons.items() if not reason]
    new = [part for part in expected if part not in loaded]
    ignored = [f'{part} ({reasons[part]})' if part in reasons else part for part in found if part not in loaded]
    named = {'loaded': loaded, 'new': new, 'ignored': ignored}
    said = '; '.join(f'{kind}: {", ".join(names) or "nothing"}' for kind, names in named.items())
    if not loaded:
        hint = f', which was trained with backbone={told["backbone"]!r}' if 'backbone' in told else ''
        raise ValueError(f'no part of {path} fits the backbone, expected some of {list(expected)} ({said}){hint}')
    backbone.load_state_dict({key: value for part in loaded for key, value in found[part].items()}, strict=False)
    rank_zero_info(f'Weights from {path}: {said}')
    statistics = _of_loaded(told, loaded)
    sources = {
        source: {'data': entry.get('data') or '', **_of_loaded(entry, loaded)}
        for source, entry in (told.get('sources') or {}).items()
    }
    return Handover(loaded, new, ignored, statistics, {s: entry for s, entry in sources.items() if entry['mean']})


def inherit(measured: Mapping[str, Any], inherited: Inherited, statistics: str | None = None) -> dict[str, Any]:
    """Return the statistics to train with: those that the weights were trained with, else those of the data.

    The same ground must look to an encoder as it did before, or what it has learnt is about
    other numbers. If the data are in other units, say so by ``mean`` and ``std``.

    Args:
        measured: ``'mean'`` and ``'std'`` of the data by modality, None if not known; ``'data'``, the name of
            the datamodule; and ``'source'``, what a mixture calls it.
        inherited: Those of the weights.
        statistics: The source of the weights that was asked for.

    Returns:
        ``'mean'`` and ``'std'``, by modality.

    Raises:
        ValueError: If the weights have statistics of several sources, and it is not clear which one.
    """
    if any(measured[kind] is None for kind in KINDS):
        return {kind: measured[kind] for kind in KINDS}
    said, theirs = '', inherited.statistics
    if inherited.sources:
        held = {name for entry in inherited.sources.values() for name in entry['mean']}
        source = measured.get('source')
        wanted = statistics or (source if source in inherited.sources else None)
        names = [name for name in measured['mean'] if name in held]
        chosen, theirs = choose(inherited.sources, measured, names, wanted)
        said = f' ({chosen}, of the sources {", ".join(inherited.sources)})'
    both = {name for name in theirs.get('mean', {}) if name in theirs.get('std', {})} & set(measured['mean'])
    taken = {
        kind: {name: theirs[kind][name] if name in both else v for name, v in measured[kind].items()} for kind in KINDS
    }
    for name in sorted(both):
        before, ours, deviation = (torch.tensor(x[name]) for x in (theirs['mean'], measured['mean'], taken['std']))
        far = ((ours - before).abs() / deviation).max().item()
        if far > 3:
            warnings.warn(
                f'the mean of {name!r} in the data is {far:.1f} deviations from that of the data which the weights '
                f'were trained on, and those are kept: if units differ, expected mean and std to be told',
                stacklevel=2,
            )
    if both:
        rank_zero_info(f'Images of {", ".join(sorted(both))} are normalised as those the weights were trained on{said}')
    return taken


def _of_loaded(told: Mapping[str, Any], loaded: list[str]) -> Statistics:
    """Return the statistics of the modalities that were loaded."""
    return {
        kind: {name: list(numbers) for name, numbers in (told.get(kind) or {}).items() if name in loaded}
        for kind in KINDS
    }


def _strip(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of the backbone, without the prefix under which most names match."""
    prefixes = sorted({key.removesuffix(name) for key in state for name in own if key.endswith(name)}) or ['']
    shares = [{k.removeprefix(p): v for k, v in state.items() if k.startswith(p)} for p in prefixes]
    return max(shares, key=lambda share: len(share.keys() & own.keys()))


def _parts(state: Mapping[str, Tensor], modalities: Mapping[str, Modality]) -> dict[str, dict[str, Tensor]]:
    """Tensors by part: a modality's own, whatever module they are in, and the rest by module."""
    names = {key.split('.')[1] for key in state if key.startswith('encoders.')} | set(modalities)
    parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, value in state.items():
        path = key.split('.')
        own = (step for holder, step in pairwise(path) if holder in _BY_MODALITY and step in names)
        parts[next(own, path[0])][key] = value
    return dict(parts)


def _check_units(trained: Mapping[str, str], modalities: Mapping[str, Modality], path: str | Path) -> None:
    """Refuse weights of a modality in another unit than that of the data."""
    for name, unit in trained.items():
        own = modalities[name].unit if name in modalities else 'unknown'
        if 'unknown' not in (unit, own) and unit != own:
            raise ValueError(
                f'{path} was trained on {name!r} with the unit {unit!r}, but that of the data is {own!r}, expected the '
                f'same; convert the data, or call the modality by another name'
            )


def _difference(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """Return the first difference in names or shapes between two parts; empty if there is none."""
    for key in expected.keys() | found.keys():
        here, there = (tuple(state[key].shape) if key in state else None for state in (expected, found))
        if here != there:
            return f'{key} is {there or "missing"} instead of {here or "missing"}'
    return ''
