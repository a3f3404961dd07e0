# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Validation of the arguments of datasets, with the same errors for all of them."""

import importlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING as REQUIRED
from dataclasses import fields
from typing import Any, Self, get_args

from torchgeo.datasets import DatasetNotFoundError

from ...modality import Kind, Modality, Unit
from ...utils.plurals import counted
from .series import parse_day

#: Names of the splits, in the order of fractions, folders and files.
SPLITS = ('train', 'val', 'test')
#: Handling of missing files: an error, treated as not acquired, or reported by `check`.
MISSING = ('error', 'allow', 'check')


class Settings:
    """Base class of dataclasses that are configured by their arguments."""

    @classmethod
    def of(cls, settings: Any) -> Self:
        """Create an instance from a configuration."""
        if isinstance(settings, cls):
            return settings
        every = fields(cls)  # type: ignore[arg-type]
        names, required = {field.name for field in every}, {field.name for field in every if field.default is REQUIRED}
        if not isinstance(settings, Mapping) or not required <= set(settings) <= names:
            name, given = cls.__name__.lower(), dict(settings) if isinstance(settings, Mapping) else settings
            raise ValueError(f'{name} is {given!r}, expected the arguments {", ".join(f.name for f in every)}')
        return cls(**settings)


def parse_span(date_range: Sequence[str] | None) -> tuple[int, int] | None:
    """Return the first and last day as days since 1970-01-01; None for all."""
    if date_range is None:
        return None
    if isinstance(date_range, str) or len(date_range) != 2:
        raise ValueError(f"date_range is {date_range!r}, expected two dates such as ('2018-10-01', '2019-03-31')")
    first, last = (parse_day(day, 'date_range') for day in date_range)
    if first > last:
        raise ValueError(f'date_range is {date_range!r}, expected the first day not to come after the last')
    return first, last


def choose_modalities(
    names: Sequence[str] | None, held: Collection[str], known: Collection[str], where: object
) -> list[str]:
    """Return the requested names, or all that are *held*; raise ValueError unless *where* has them."""
    if names is not None and (isinstance(names, str) or not names):
        raise ValueError(f'modalities is {names!r}, expected a tuple of names, such as {tuple(held)}')
    for name in names or ():
        if name not in held:
            why = f'of which {where} has no file' if name in known else f'which is none of {list(known)}'
            raise ValueError(f'modalities names {name!r}, {why}; expected some of {list(held)}')
    return list(held if names is None else names)


def select_bands(modalities: Mapping[str, Modality], bands: Mapping[str, Sequence[str]] | None) -> dict[str, Modality]:
    """Return the modalities with the requested bands."""
    bands = {} if bands is None else bands
    if unknown := [name for name in bands if name not in modalities]:
        raise ValueError(f'bands names the modalities {unknown}, expected some of {list(modalities)}')
    return {**modalities, **{name: modalities[name].select(chosen) for name, chosen in bands.items()}}


def state_facts(
    name: str, kind: Kind | None, unit: Unit = 'unknown', decibels: bool | None = None
) -> tuple[Kind | None, Unit]:
    """Return the kind and unit of a modality, if they are stated and do not contradict each other.

    Decibels (True) and linear power (False) are units of radar backscatter, so they state the kind too.
    """
    for what, value, options in (('kind', kind, (None, *get_args(Kind))), ('unit', unit, get_args(Unit))):
        if value not in options:
            raise ValueError(f'{what} of {name!r} is {value!r}, expected one of {[x for x in options if x]}')
    if (decibels and unit not in ('unknown', 'db')) or (decibels is False and unit == 'db'):
        raise ValueError(f'unit of {name!r} is {unit!r}, but decibels is {decibels}, expected unit without decibels')
    if unit == 'unknown' and decibels is not None and (decibels or kind in (None, 'radar')):
        unit = 'db' if decibels else 'power'
    if unit not in ('db', 'power'):
        return kind, unit
    if kind not in (None, 'radar'):
        raise ValueError(f"kind of {name!r} is {kind!r}, but its unit is {unit!r}, expected kind 'radar'")
    return 'radar', unit


def class_at(path: Any, base: type, what: str) -> Any:
    """Return the subclass of *base* at a dotted path, as in a YAML file."""
    module, _, name = str(path).rpartition('.')
    expected = f'class_path of {what} is {path!r}, expected a {base.__name__}'
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f'{expected}: {error}') from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(expected)
    return found


def name_classes(labels: Sequence[str] | None, count: int | None, least: int = 0) -> list[str]:
    """Return the names of *count* classes, at *least* so many; by default that of *labels*, or the indices."""
    if labels is None and count is None and least:
        raise ValueError(f'labels is None, and so is num_classes; expected the names of at least {least} classes')
    count = len(labels or ()) if count is None else count
    if labels is not None and len(labels) != count:
        raise ValueError(f'labels are {list(labels)}, expected one for each of {counted(count, "class")}')
    if count < least:
        named = '' if labels is None else f' in labels {list(labels)}'
        raise ValueError(
            f'num_classes is {count}{named}, expected at least {least}; outside: NAME in the mask of polygons '
            'makes the ground around them a class'
        )
    return list(labels or map(str, range(count)))


def continuous_settings(mask: Mapping[str, Any] | None) -> tuple[bool, str | None]:
    """Return whether the settings of a mask are those of continuous values, and the unit of the values."""
    continuous, unit = (mask or {}).get('continuous', False), (mask or {}).get('value_unit')
    if not isinstance(continuous, bool):
        raise ValueError(f'continuous of the mask is {continuous!r}, expected true or false')
    if unit is not None and not (continuous and isinstance(unit, str)):
        raise ValueError(f"value_unit of the mask is {unit!r}, expected a text such as 'm', with continuous: true")
    return continuous, unit


def leave_out[T](
    samples: Sequence[T], ids: Sequence[str], exclude: Collection[str], known: Collection[str], where: object
) -> tuple[list[T], list[str]]:
    """Return the samples without the excluded ones, and the names of the latter in these samples.

    *known* are valid names in *exclude*, including those of other splits; *where* is the data in errors.
    """
    if unknown := sorted(set(exclude) - set(known)):
        more = f' and {len(unknown) - 1} more' * (len(unknown) > 1)
        raise ValueError(f'exclude names {unknown[0]!r}{more}, not known to {where}; expected names such as {ids[0]!r}')
    dropped = set(exclude)
    kept = [sample for sample, name in zip(samples, ids, strict=True) if name not in dropped]
    if samples and not kept:
        raise ValueError(f'exclude names every sample of a split ({len(ids)}), expected it to leave some of {where}')
    return kept, [name for name in ids if name in dropped]


def not_found(dataset: object, why: str) -> DatasetNotFoundError:
    """Return TorchGeo's error with a more specific message."""
    error = DatasetNotFoundError(dataset)  # type: ignore[arg-type]
    error.args = (f'{error} {why}',)
    return error
