# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""The tables of FLAIR-HUB: which patch is of which split, and when its images were taken."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fiona
import numpy as np
from fiona.errors import FionaError
from numpy.typing import NDArray

from ..modality import Modality
from .flairhub_layout import PRODUCTS
from .opening import refuse_other_format
from .series import parse_dates

#: What is wrong with single rows, by area or patch, for whoever is to tell of it.
type Faults = dict[str, Exception]


def area_of(patch: str) -> str:
    """Domain and area of a patch: ``'D004-2021_AA-S1-32'`` of ``'D004-2021_AA-S1-32_0-0'``."""
    return '_'.join(patch.split('_')[:2])


def key_of(patch: str, modality: Modality) -> str:
    """What the days of a modality go by: the area of its series, or the patch of an image."""
    return area_of(patch) if modality.temporal else patch


def table_of(root: Path, name: str) -> Path:
    """Where the dates of a product are."""
    return root / 'GLOBAL_ALL_MTD' / f'GLOBAL_{name}_MTD_DATES.gpkg'


def read_tables(
    root: Path, names: Iterable[str], patches: Collection[str], tell: bool
) -> tuple[dict[str, Mapping[str, Any]], dict[str, Faults]]:
    """The days of modalities, by area or patch.

    Args:
        root: The dataset.
        names: The modalities; those without a table are passed over.
        patches: The patches that are needed.
        tell: Whether to give what is wrong with a table, and not to raise it.

    Returns:
        Days, and what is wrong with those that are lacking, by modality and area or patch.

    Raises:
        FileNotFoundError: If there is no table of a series.
        ValueError: If a table is damaged.
    """
    days: dict[str, Mapping[str, Any]] = {}
    undated: dict[str, Faults] = {}
    for name in names:
        product = PRODUCTS[name]
        if product.table is None:
            continue
        table, keys = table_of(root, product.table), {key_of(patch, product.modality) for patch in patches}
        read = read_series_days if product.modality.temporal else read_image_days
        undated[name] = {}
        try:
            days[name] = read(table, keys, undated[name] if tell else None)
        except (OSError, ValueError) as error:
            if not tell:
                raise
            days[name], undated[name] = {}, dict.fromkeys(keys, error)
    return days, undated


def read_series_days(path: Path, areas: Collection[str], faults: Faults | None = None) -> dict[str, NDArray[np.int64]]:
    """The days of the series of each area, which all its patches share.

    Args:
        path: The table: a column ``acquisition_dates`` of JSON, ``{"1": "20210114", ...}``, and
            ``patch_id`` or ``zone_id``, which begins with domain and area.
        areas: The areas that are needed.
        faults: Where to put what is wrong with an area; None to raise it.

    Returns:
        Days since 1970-01-01 in the order of the frames, by area.

    Raises:
        FileNotFoundError: If there is no such table.
        ValueError: If it is damaged, or an area is missing in it.
    """
    days: dict[str, NDArray[np.int64]] = {}
    for key, dates in _rows(path, 'acquisition_dates'):
        area = area_of(key)
        if area in areas and area not in days:
            with _noting(faults, area):
                days[area] = parse_dates(dates, f"'acquisition_dates' of {key!r} in {path}")
    for area in sorted(set(areas) - set(days) - set(faults or ())):
        with _noting(faults, area):
            raise ValueError(f'{path} has no row of {area!r}, expected one for each of {len(areas)} areas')
    return days


def read_image_days(path: Path, patches: Collection[str], faults: Faults | None = None) -> dict[str, int]:
    """The day of the image of each patch, as far as it is known.

    Args:
        path: The table: columns ``patch_id`` and ``date``, such as ``20210614``; of a day or
            month ``00`` nothing is known.
        patches: The patches that are needed.
        faults: Where to put what is wrong with a patch; None to raise it.

    Returns:
        Days since 1970-01-01 by patch.

    Raises:
        ValueError: If the table is damaged, or a date is not in the calendar.
    """
    days = {}
    for key, date in _rows(path, 'date') if path.exists() else ():
        stamp = str(date or '').replace('-', '')
        if key in patches and stamp[4:6] not in ('', '00') and stamp[6:8] not in ('', '00'):
            with _noting(faults, key):
                days[key] = int(parse_dates([stamp[:8]], f"'date' of {key!r} in {path}")[0])
    return days


def read_splits(path: Path, column: str) -> dict[str, str]:
    """Which split each patch of any domain is of, ``'train'``, ``'valid'`` or ``'test'``."""
    return {key: str(split) for key, split in _rows(path, column)}


@contextmanager
def _noting(faults: Faults | None, key: str) -> Iterator[None]:
    """Put what is wrong with a row where it is told of, if it is."""
    try:
        yield
    except ValueError as error:
        if faults is None:
            raise
        faults[key] = error


def _rows(path: Path, column: str) -> Iterator[tuple[str, Any]]:
    """Key and content of every row of a table."""
    expected = f"expected a GeoPackage with the columns 'patch_id' or 'zone_id', and {column!r}"
    if not path.exists():
        raise FileNotFoundError(f'{path} does not exist, {expected}')
    try:
        refuse_other_format(str(path))
        with fiona.open(path, ignore_geometry=True) as rows:
            for row in rows:
                properties: Mapping[str, Any] = row.properties
                key = properties['patch_id'] if 'patch_id' in properties else properties['zone_id']
                yield str(key), properties[column]
    except (FionaError, OSError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f'{path} cannot be read ({type(error).__name__}: {error}), {expected}') from error
