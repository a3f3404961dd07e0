# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Bands and units of a modality that the encoders of time series use."""

import warnings
from collections.abc import Mapping, Sequence

from ..adapter import canonical


def complete_groups[K](model: str, bands: Sequence[str], groups: Mapping[K, Sequence[str]]) -> dict[K, list[int]]:
    """Return the indices of the bands of each complete group; bands without one are not used, with a warning.

    Args:
        model: Name of the model in errors.
        bands: Bands of the modality in any order, such as ``B04``, ``B4``, ``b8a`` or ``VV``.
        groups: Groups of bands that the model encodes together.

    Raises:
        ValueError: If no group is complete, or a band occurs twice.
    """
    names = ['' if band.upper().startswith('SR_') else canonical(band) for band in bands]  # those of Landsat differ
    known = {name for group in groups.values() for name in group}
    if double := sorted({name for name in names if names.count(name) > 1} & known):
        raise ValueError(f'bands are {list(bands)}, expected {double} once')
    found = {key: [names.index(name) for name in group] for key, group in groups.items() if set(group) <= set(names)}
    stated = [list(group) for group in groups.values()]
    if not found:
        raise ValueError(f'bands are {list(bands)}, expected at least one whole group of those of {model}: {stated}')
    used = {index for places in found.values() for index in places}
    if unused := [band for index, band in enumerate(bands) if index not in used]:
        warnings.warn(f'{model} does not use the bands {unused}: it has the groups {stated}', stacklevel=4)
    return found


def check_units(
    model: str, bands: Sequence[str], unit: str | Sequence[str], expected: Mapping[int, Sequence[str]]
) -> tuple[str, ...]:
    """Return the unit of each band.

    Args:
        model: Name of the model in errors.
        bands: Bands of the modality.
        unit: One unit, or one for each band.
        expected: Units that can be converted, by index of the band.

    Raises:
        ValueError: If the number of units differs, or a unit cannot be converted.
    """
    units = (unit,) * len(bands) if isinstance(unit, str) else tuple(unit)
    if len(units) != len(bands):
        raise ValueError(f'unit is {list(units)}, expected one, or one for each of the bands {list(bands)}')
    for index, known in expected.items():
        if units[index] not in known:
            raise ValueError(f'unit of {bands[index]} is {units[index]!r}, expected one of {list(known)} for {model}')
    return units
