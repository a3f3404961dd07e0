# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Choice of the mean and standard deviation that normalise the images of a model.

A model that was trained on a mixture has statistics by source. Images of a single source are
normalised as in training, so the source has to be determined.
"""

import warnings
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from ..modality import Modality

#: Mean and standard deviation of every band, by ``'mean'`` and ``'std'`` and by modality.
Statistics = dict[str, dict[str, list[float]]]
#: Statistics by source, with ``'data'``, the name of the datamodule that computed them.
Sources = dict[str, dict[str, Any]]

#: Kinds of statistics.
KINDS = ('mean', 'std')


class Inherited(NamedTuple):
    """Statistics of the images that weights were trained on.

    Attributes:
        statistics: Mean and standard deviation by modality; empty if they are not known.
        sources: Statistics by source, of weights that were trained on a mixture; empty otherwise.
    """

    statistics: Statistics = {}
    sources: Sources = {}


def plain_statistics(name: str, value: Any) -> dict[str, list[float]]:
    """Return statistics of one kind in plain types."""
    if not isinstance(value, Mapping):
        raise ValueError(f'{name} is {value!r}, expected numbers by modality, one per band')
    return {key: torch.as_tensor(numbers, dtype=torch.float64).tolist() for key, numbers in value.items()}


def plain_sources(value: Any) -> Sources:
    """Return statistics by source in plain types, so that a checkpoint loads safely."""
    if not isinstance(value, Mapping):
        raise ValueError(f"sources is {value!r}, expected {{source: {{'mean': ..., 'std': ...}}}}")
    plain: Sources = {}
    for source, entry in value.items():
        if not isinstance(entry, Mapping) or not set(KINDS) <= set(entry):
            raise ValueError(f"sources has {entry!r} for {source!r}, expected 'mean' and 'std' by modality")
        numbers = {kind: plain_statistics(f'{kind} of {source!r}', entry[kind]) for kind in KINDS}
        plain[str(source)] = {'data': str(entry.get('data') or ''), **numbers}
    return plain


def check_bands(name: str, numbers: Mapping[str, Collection[float]], modalities: Mapping[str, Modality]) -> None:
    """Validate that statistics have one number per band of a model."""
    given = {key: len(numbers.get(key, ())) for key in modalities}
    expected = {key: len(modality.bands) for key, modality in modalities.items()}
    if given != expected:
        raise ValueError(f'{name} has {given} numbers by modality, expected one per band: {expected}')


def check_statistics(hparams: Mapping[str, Any], modalities: Mapping[str, Modality]) -> None:
    """Validate that the hyper-parameters ``mean``, ``std`` and ``sources`` have one number per band."""
    for kind in KINDS:
        if hparams[kind] is not None:
            check_bands(kind, hparams[kind], modalities)
    for source, entry in (hparams['sources'] or {}).items():
        present = {name: modality for name, modality in modalities.items() if name in entry['mean']}
        for kind in KINDS:
            check_bands(f'{kind} of the source {source!r}', entry[kind], present)


def measured_statistics(datamodule: Any) -> dict[str | None, dict[str, Any]]:
    """Return the statistics of a datamodule, by source if it is a mixture, else under None."""
    if sources := getattr(datamodule, 'sources', None):
        return dict(plain_sources(sources).items())
    given = {kind: getattr(datamodule, kind, None) for kind in KINDS}
    numbers = {kind: None if value is None else plain_statistics(kind, value) for kind, value in given.items()}
    return {None: {'data': getattr(datamodule, 'origin', type(datamodule).__name__), **numbers}}


def first_of(sources: Sources) -> Statistics:
    """Return the statistics of each modality by the first source that has it."""
    joined: Statistics = {kind: {} for kind in KINDS}
    for entry in reversed(list(sources.values())):
        for kind in KINDS:
            joined[kind] |= entry[kind]
    order = dict.fromkeys(name for entry in sources.values() for name in entry['mean'])
    return {kind: {name: joined[kind][name] for name in order} for kind in KINDS}


def choose(
    sources: Sources, measured: Mapping[str, Any], names: Collection[str], statistics: str | None = None
) -> tuple[str, Statistics]:
    """Choose the source whose statistics normalise the images; return its name and the statistics of *names*.

    This is *statistics* if it is given. Otherwise it is the only source with all modalities; if there are several, the
    one with equal statistics, or the only one of the same datamodule. If no source has all modalities, each modality
    uses the only source that has it. *measured* are ``mean`` and ``std`` of the datamodule, or None, and ``data``, its
    name. Raise ValueError if the choice is ambiguous.
    """
    if statistics is not None and statistics not in sources:
        raise ValueError(f'statistics is {statistics!r}, expected one of the sources {list(sources)}')
    base = statistics or _only(sources, measured, names)
    chosen = {}
    for name in names:
        holders = [source for source, entry in sources.items() if name in entry['mean']]
        holders = [base] if base in holders else holders
        if len({str(_numbers(sources[source], name)) for source in holders}) != 1:
            raise ValueError(
                f'statistics of {name!r} differ between the sources {holders}, and the data do not determine the '
                f'source: expected statistics to be one of {list(sources)}, such as --model.statistics {holders[0]}'
                if holders
                else f'none of the sources {list(sources)} has statistics of {name!r}, expected one that has'
            )
        chosen[name] = holders[0]
    _refuse_renamed(sources, measured, chosen)
    taken = {kind: {name: sources[source][kind][name] for name, source in chosen.items()} for kind in KINDS}
    return ', '.join(dict.fromkeys(chosen.values())), taken


def inherit(measured: Mapping[str, Any], inherited: Inherited, statistics: str | None = None) -> dict[str, Any]:
    """Return the statistics for training: those of the weights, or else those of the data.

    A pre-trained encoder needs images that are normalised as in its training. If the data have other units, set
    ``mean`` and ``std``. *measured* is as in :func:`choose`, with ``source``, the name in a mixture.
    """
    if any(measured[kind] is None for kind in KINDS):
        return {kind: measured[kind] for kind in KINDS}
    origin, theirs = '', inherited.statistics
    if inherited.sources:
        known = {name for entry in inherited.sources.values() for name in entry['mean']}
        source = measured.get('source')
        wanted = statistics or (source if source in inherited.sources else None)
        names = [name for name in measured['mean'] if name in known]
        chosen, theirs = choose(inherited.sources, measured, names, wanted)
        origin = f' ({chosen}, of the sources {", ".join(inherited.sources)})'
    both = {name for name in theirs.get('mean', {}) if name in theirs.get('std', {})} & set(measured['mean'])
    taken = {
        kind: {name: theirs[kind][name] if name in both else v for name, v in measured[kind].items()} for kind in KINDS
    }
    for name in sorted(both):
        before, ours, std = (torch.tensor(x[name]) for x in (theirs['mean'], measured['mean'], taken['std']))
        far = ((ours - before).abs() / std).max().item()
        if far > 3:
            warnings.warn(
                f'the mean of {name!r} in the data is {far:.1f} standard deviations from that of the data on which the '
                f'weights were trained, whose statistics are used: if the units differ, set mean and std',
                stacklevel=2,
            )
    if both:
        rank_zero_info(f'Images of {", ".join(sorted(both))} are normalised with the statistics of the weights{origin}')
    return taken


def initial_statistics(
    measured: Mapping[str | None, Mapping[str, Any]], inherited: Inherited, statistics: str | None
) -> dict[str, Any]:
    """Return the hyper-parameters ``mean``, ``std`` and, for a mixture, ``sources`` of a model to train.

    Args:
        measured: Statistics of the datamodule, see :func:`measured_statistics`.
        inherited: Statistics of the weights that initialise the model.
        statistics: Source of the weights whose statistics are used, if the data do not determine it.

    Raises:
        ValueError: If *statistics* is given, but the weights have no statistics by source.
    """
    if not inherited.sources and statistics is not None:
        raise ValueError(
            f'statistics is {statistics!r}, but neither a checkpoint nor weights have statistics by source: '
            'expected those of a model that was trained on a mixture'
        )
    taken = {
        source: {**entry, **inherit({**entry, 'source': source}, inherited, statistics)}
        for source, entry in measured.items()
    }
    if None in taken:
        return {kind: taken[None][kind] for kind in KINDS}
    sources = plain_sources(taken)
    return {**first_of(sources), 'sources': sources}


def inform_encoders(encoders: nn.ModuleDict, hparams: Mapping[str, Any]) -> None:
    """Set the statistics of encoders that convert images to the units of their pre-trained weights.

    Raises:
        ValueError: If the statistics of such a modality differ between sources.
    """
    for name, encoder in encoders.items():
        parts: list[Any] = [part for part in encoder.modules() if getattr(part, 'converts_units', True)]
        setters = [part.set_statistics for part in parts if hasattr(part, 'set_statistics')]
        if not setters or name not in hparams['mean']:
            continue
        numbers = [hparams[kind][name] for kind in KINDS]
        entries = (hparams['sources'] or {}).values()
        if any(
            entry['mean'][name] != numbers[0] or entry['std'][name] != numbers[1]
            for entry in entries
            if name in entry['mean']
        ):
            raise ValueError(
                f'the encoder of {name!r} converts images to the units of its weights, but the sources '
                f'{list(hparams["sources"])} are normalised with different statistics: expected one '
                'mean and std for all of them'
            )
        for set_statistics in setters:
            set_statistics(*numbers)


def _only(sources: Sources, measured: Mapping[str, Any], names: Collection[str]) -> str | None:
    fitting = [source for source, entry in sources.items() if set(names) <= set(entry['mean'])]
    equal = [source for source in fitting if all(_numbers(sources[source], n) == _numbers(measured, n) for n in names)]
    alike = [source for source in fitting if sources[source]['data'] and sources[source]['data'] == measured['data']]
    return next((found[0] for found in (fitting, equal[:1], alike) if len(found) == 1), None)


def _refuse_renamed(sources: Sources, measured: Mapping[str, Any], chosen: Mapping[str, str]) -> None:
    """Reject images with the statistics of a modality that has another name, and thus another encoder, in a source."""
    for name, source in chosen.items():
        own = _numbers(measured, name)
        if None in own or own == _numbers(sources[source], name):
            continue
        for other, entry in sources.items():
            new = next((new for new in entry['mean'] if _numbers(entry, new) == own), name)
            if new != name:
                raise ValueError(
                    f'{name!r} of {measured["data"]} has the statistics of {new!r} of the source {other!r}: expected '
                    f'the same name, by a MixedDataModule of only {other!r} with rename={{{other!r}: {{{name!r}: '
                    f'{new!r}}}}}'
                )


def _numbers(entry: Mapping[str, Any], name: str) -> tuple[Any, ...]:
    return tuple((entry.get(kind) or {}).get(name) for kind in KINDS)
