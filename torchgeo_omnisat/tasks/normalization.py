# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Statistics: which mean and standard deviation the images that a model sees are normalised with.

A model that was trained on a mixture has statistics by source. The images of one source alone
are to look to it as they did in training, so one source is chosen, and it is said which.
"""

import warnings
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_info

from ..modality import Modality

#: Mean and standard deviation of every band, by ``'mean'`` and ``'std'`` and by modality.
Statistics = dict[str, dict[str, list[float]]]
#: Statistics by source, with ``'data'``, the name of the datamodule that they were measured by.
Sources = dict[str, dict[str, Any]]

#: The two kinds of numbers.
KINDS = ('mean', 'std')


class Inherited(NamedTuple):
    """What weights say of the images that they were trained on.

    Attributes:
        statistics: Mean and standard deviation by modality; empty if they are not known.
        sources: The same by source, of weights that were trained on a mixture; empty otherwise.
    """

    statistics: Statistics = {}
    sources: Sources = {}


def plain_statistics(name: str, value: Any) -> dict[str, list[float]]:
    """Return the numbers of one kind in plain types.

    Args:
        name: What to call them in an error.
        value: Numbers by modality, one a band.

    Raises:
        ValueError: If they are no numbers by modality.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f'{name} is {value!r}, expected numbers by modality, one a band')
    return {key: torch.as_tensor(numbers, dtype=torch.float64).tolist() for key, numbers in value.items()}


def plain_sources(value: Any) -> Sources:
    """Return statistics by source in plain types, so that a checkpoint loads safely.

    Raises:
        ValueError: If they are not as described.
    """
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
    """Refuse statistics for other modalities or bands than a model has.

    Raises:
        ValueError: If they are not one number a band.
    """
    given = {key: len(numbers.get(key, ())) for key in modalities}
    expected = {key: len(modality.bands) for key, modality in modalities.items()}
    if given != expected:
        raise ValueError(f'{name} has {given} numbers by modality, expected one a band: {expected}')


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
    """Choose the source that images are normalised as.

    It is the one that was asked for; otherwise the only one that has all the modalities, or among
    several the one with equal numbers, or the only one that the same datamodule measured. Where no
    source has all the modalities, each one takes the only source that has it.

    Args:
        sources: Statistics by source.
        measured: Statistics of the images: ``mean`` and ``std`` as their datamodule measured them, if
            it did, and ``data``, its name.
        names: The modalities.
        statistics: The source that was asked for.

    Returns:
        What to call the choice, and mean and standard deviation of *names*.

    Raises:
        ValueError: If there is no such source, it is not clear which one, or the modalities have
            other names in the mixture.
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
                f'statistics of {name!r} differ between the sources {holders}, and nothing says which of them the data '
                f'are like: expected statistics to be one of {list(sources)}, such as --model.statistics {holders[0]}'
                if holders
                else f'none of the sources {list(sources)} has statistics of {name!r}, expected one that has'
            )
        chosen[name] = holders[0]
    _refuse_renamed(sources, measured, chosen)
    taken = {kind: {name: sources[source][kind][name] for name, source in chosen.items()} for kind in KINDS}
    return ', '.join(dict.fromkeys(chosen.values())), taken


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


def _only(sources: Sources, measured: Mapping[str, Any], names: Collection[str]) -> str | None:
    """Return the only source that fits; None if there is none, or several."""
    fitting = [source for source, entry in sources.items() if set(names) <= set(entry['mean'])]
    equal = [source for source in fitting if all(_equal(sources[source], measured, name) for name in names)]
    alike = [source for source in fitting if sources[source]['data'] and sources[source]['data'] == measured['data']]
    return next((found[0] for found in (fitting, equal[:1], alike) if len(found) == 1), None)


def _refuse_renamed(sources: Sources, measured: Mapping[str, Any], chosen: Mapping[str, str]) -> None:
    """Refuse images that have the numbers of a modality of another name, which has an encoder of its own."""
    for name, source in chosen.items():
        own = (measured.get('mean') or {}).get(name), (measured.get('std') or {}).get(name)
        if None in own or own == _numbers(sources[source], name):
            continue
        for other, entry in sources.items():
            new = next((new for new in entry['mean'] if _numbers(entry, new) == own), name)
            if new != name:
                raise ValueError(
                    f'{name!r} of {measured["data"]} has the statistics of {new!r} of the source {other!r}: expected '
                    f'that name too, by a MixedDataModule of {other!r} alone with rename={{{other!r}: {{{name!r}: '
                    f'{new!r}}}}}'
                )


def _numbers(entry: Mapping[str, Any], name: str) -> tuple[Any, Any]:
    """Return mean and standard deviation of a modality."""
    return entry['mean'].get(name), entry['std'].get(name)


def _equal(entry: Mapping[str, Any], measured: Mapping[str, Any], name: str) -> bool:
    """Return whether the numbers of a modality are the measured ones."""
    return (measured.get('mean') or {}).get(name) == entry['mean'][name] and (measured.get('std') or {}).get(
        name
    ) == entry['std'][name]
