# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""The super-areas of FLAIR: Sentinel-2 series of whole zones, and where patches lie in them."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .files import open_array, read_json
from .flair_layout import MODALITIES, Patch
from .integrity import Dates, Expected
from .series import parse_day


@dataclass(frozen=True)
class SuperArea:
    """The Sentinel-2 series of a zone.

    Args:
        data: ``(T, 10, H, W)`` reflectance x 10000.
        masks: ``(T, 2, H, W)`` probability of snow and of clouds, 0 to 100.
        products: One product name a line, T in all.
    """

    data: Path
    masks: Path
    products: Path


def find_super_area(zone: Path, strict: bool = True) -> SuperArea | None:
    """The super-area in the directory of a zone; None if there is nothing of it.

    Args:
        zone: The directory.
        strict: Whether all of its files are to be there.

    Raises:
        FileNotFoundError: If one of its three files is not there.
    """
    found = sorted(zone.glob('sen/SEN2*'))
    if not found:
        return None
    stem = re.sub(r'(data\.npy|masks\.npy|products\.txt)$', '', found[0].name)
    data, masks, products = (found[0].with_name(stem + end) for end in ('data.npy', 'masks.npy', 'products.txt'))
    for path in (data, masks, products):
        if strict and not path.exists():
            raise FileNotFoundError(f'{path} does not exist, expected it beside {found[0].name}')
    return SuperArea(data, masks, products)


def read_centroids(path: Path, patches: Iterable[Patch], strict: bool = True) -> dict[str, tuple[int, int]]:
    """Row and column of patches in their super-areas, by number.

    Args:
        path: The file.
        patches: The patches.
        strict: Whether all of them are to be there.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or a patch is missing in it.
    """
    expected = '{"IMG_000000.tif": [row, column], ...} of the pixel in the super-area at a patch\'s centre'
    entries = read_json(path, expected)
    centroids = {}
    for number in (patch.number for patch in patches):
        entry = entries.get(f'IMG_{number}.tif')
        if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(place, int) for place in entry)):
            if strict:
                raise ValueError(f'{path} holds {entry!r} for IMG_{number}.tif, expected {expected}')
            continue
        centroids[number] = (entry[0], entry[1])
    return centroids


def read_products(path: Path) -> NDArray[np.int64]:
    """Days since 1970-01-01 of Sentinel-2 products, from their names, one a line.

    Raises:
        ValueError: If a line is no such name.
    """
    days = []
    for number, line in enumerate(path.read_text(errors='replace').split(), start=1):
        where = f'line {number} of {path}'
        if re.match(r'S2[A-Z]_\w{6}_\d{8}T', line) is None:
            expected = "expected a product name such as 'S2A_MSIL2A_20210119T104351...'"
            raise ValueError(f'{where} holds {line!r}, {expected}')
        days.append(parse_day(f'{line[11:15]}-{line[15:17]}-{line[17:19]}', where))
    return np.array(days, dtype=np.int64)


def open_super_area(area: SuperArea, dates: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Both arrays of a super-area, mapped into memory.

    Args:
        area: The files.
        dates: T, how many products there are.

    Returns:
        Reflectance ``(T, 10, H, W)`` and probabilities ``(T, 2, H, W)``.

    Raises:
        ValueError: If one is damaged or of another shape.
    """
    arrays: list[NDArray[Any]] = []
    for path, bands in ((area.data, len(MODALITIES['s2'].bands)), (area.masks, 2)):
        size = f'{arrays[0].shape[2]}, {arrays[0].shape[3]}' if arrays else 'H, W'
        expected = f'numbers ({dates}, {bands}, {size}): {dates} dates in {area.products.name}'
        array = open_array(path, expected)
        if array.ndim != 4 or array.shape[:2] != (dates, bands) or (arrays and array.shape[2:] != arrays[0].shape[2:]):
            raise ValueError(f'{path} has shape {array.shape}, expected {expected}')
        arrays.append(array)
    return arrays[0], arrays[1]


def window_around(
    centre: Sequence[int], counts: Sequence[int], size: Sequence[int], where: str
) -> tuple[tuple[slice, ...], tuple[tuple[int, int], ...]]:
    """The pixels around one, as far as they exist.

    Args:
        centre: Row and column; of an even number of pixels, the first after the middle.
        counts: How many rows and columns to take.
        size: How many there are.
        where: What says so, for an error.

    Returns:
        A slice for each axis, and how many pixels are lacking before and after it.

    Raises:
        ValueError: If none of them exist.
    """
    slices, lacks = [], []
    for middle, count, length in zip(centre, counts, size, strict=True):
        first = middle - count // 2
        start, stop = max(first, 0), min(first + count, length)
        if start >= stop:
            raise ValueError(f'{where}, expected a place in its super-area of {tuple(size)} pixels')
        slices.append(slice(start, stop))
        lacks.append((start - first, first + count - stop))
    return tuple(slices), tuple(lacks)


def expect_series(area: SuperArea | None, absent: Path, centroids: Path) -> tuple[tuple[Expected, ...], Dates | None]:
    """What the files of a patch's series should hold, and where their dates are, to be checked.

    Products need not be in order, and a day may have several.

    Args:
        area: The super-area of its zone, if there is one.
        absent: What its files are called, if there is none.
        centroids: Where patches lie in it.
    """
    if area is None:
        return (Expected(absent, optional=True),), None
    bands = ((area.data, len(MODALITIES['s2'].bands)), (area.masks, 2))
    arrays = (Expected(path, (None, count, None, None), series=True) for path, count in bands)
    dates = Dates(area.products, partial(read_products, area.products), ordered=False)
    return (*arrays, Expected(area.products), Expected(centroids)), dates
