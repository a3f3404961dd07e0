# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Rasters with several dates stacked as bands."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...utils.checks import check_choice
from ...utils.plurals import counted
from ..common.arguments import Settings
from ..io.headers import DATE, Header

#: Order of the bands of a file.
ORDERS = ('date-band', 'band-date')
#: Month and day without a year.
_YEARLESS = re.compile(r'(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])')
#: Value of ``dates`` for those in the band descriptions.
DESCRIPTIONS = 'descriptions'


@dataclass(frozen=True)
class Stack(Settings):
    """Dates and order of the bands of files that stack several dates.

    Args:
        dates: Dates in the order of the file, such as ``20210615``, ``'2021-06-15'`` or ``'2021-06'`` (the
            first of that month); ``'descriptions'`` for those in the band descriptions. Dates without a year,
            such as ``'06-15'``, are of the year in the file name.
        order: ``'date-band'`` for all bands of the first date, then those of the next; ``'band-date'`` for all
            dates of the first band, then those of the next. Ignored for descriptions.
        bands: Names of the bands of one date, in order; defaults to ``all_bands`` or the descriptions.

    Raises:
        ValueError: If an argument is invalid.
    """

    dates: Any = DESCRIPTIONS
    order: str = ORDERS[0]
    bands: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_choice(**{'order of stack': (self.order, ORDERS)})
        if isinstance(self.bands, str) or len(set(self.bands)) < len(self.bands):
            raise ValueError(f'bands of stack is {self.bands!r}, expected distinct names such as [B04, B08]')
        object.__setattr__(self, 'bands', tuple(self.bands))
        if self.dates == DESCRIPTIONS:
            return
        if isinstance(self.dates, str) or not isinstance(self.dates, Sequence) or not self.dates:
            raise ValueError(
                f"dates of stack is {self.dates!r}, expected a list such as [20210601, 20210701], or 'descriptions'"
            )
        days = [_day(str(date)) for date in self.dates]
        if twice := sorted({day for day in days if days.count(day) > 1}):
            raise ValueError(f'dates of stack has {twice} more than once, expected each date once')
        object.__setattr__(self, 'dates', tuple(days))

    @property
    def has_years(self) -> bool:
        """Whether all dates have a year."""
        return self.dates == DESCRIPTIONS or not any(map(_YEARLESS.fullmatch, self.dates))

    def in_year(self, year: int) -> 'Stack':
        """Return the stack with dates without a year in a year."""
        if self.has_years:
            return self
        dates = [f'{year}-{day}' if _YEARLESS.fullmatch(day) else day for day in self.dates]
        return replace(self, dates=dates)

    def frames(self, header: Header, skip_alpha: bool, names: Sequence[str] = ()) -> 'Frames':
        """Assign the bands of a file to dates.

        Args:
            header: Header of the file.
            skip_alpha: Whether to ignore an alpha band.
            names: Names of the bands of one date, in order; defaults to the descriptions, or numbers.

        Raises:
            ValueError: If the bands of the file do not match the dates.
        """
        numbers = header.numbers(skip_alpha)
        texts = [header.descriptions[number - 1] or '' for number in numbers]
        if self.dates == DESCRIPTIONS:
            return _described(header, numbers, texts, names)
        count, rest = divmod(len(numbers), len(self.dates))
        if rest or (names and len(names) != count):
            bands = f' of the bands {list(names)}' * bool(names)
            raise ValueError(
                f'{header.path} has {counted(len(numbers), "band")}, expected the {counted(len(self.dates), "date")} '
                f'of stack{bands}'
            )
        self._refuse_dates(header, numbers, texts, count)
        orders = {ORDERS[0]: np.array(numbers).reshape(-1, count), ORDERS[1]: np.array(numbers).reshape(count, -1).T}
        places = orders[self.order]
        if not names:
            names = _names(header, places)
            other = next(order for order in ORDERS if order != self.order)
            if not names and (described := _names(header, orders[other])) and count > 1:
                raise ValueError(
                    f'order of stack is {self.order!r}, but by their descriptions the bands of {header.path} are '
                    f'{described} of each date in the order {other!r}, expected that'
                )
            names = names or [f'B{band}' for band in range(1, count + 1)]
        return Frames(tuple(names), np.array(self.dates, 'datetime64[D]'), places)

    def _refuse_dates(self, header: Header, numbers: Sequence[int], texts: Sequence[str], count: int) -> None:
        """Raise ValueError if band descriptions have the same dates in another order."""
        matches = [DATE.search(text) for text in texts]
        stated = [None if match is None else _day(match.group()) for match in matches]
        days = [str(day) for day in self.dates]
        given = [day for day in days for _ in range(count)] if self.order == ORDERS[0] else days * count
        if None in stated or set(stated) != set(given):
            return
        for number, text, day, own in zip(numbers, texts, given, stated, strict=True):
            if own != day:
                raise ValueError(
                    f'band {number} of {header.path} is described as {text!r}, but it is of {day} by dates and order '
                    'of stack: give dates: descriptions, or the dates in the order of the file'
                )


class Frames(NamedTuple):
    """Assignment of the bands of a file to dates.

    Args:
        names: Names of the bands of a date.
        days: Dates ``(T,)``.
        numbers: Band indices ``(T, C)`` in the file, from 1 on; 0 where a date lacks a band.
    """

    names: tuple[str, ...]
    days: NDArray[np.datetime64]
    numbers: NDArray[np.int64]

    def select(self, bands: Sequence[str]) -> NDArray[np.int64]:
        """Return the indices ``(T, C)`` of bands in the file."""
        return self.numbers[:, [self.names.index(band) for band in bands]]


def _described(header: Header, numbers: Sequence[int], texts: Sequence[str], names: Sequence[str]) -> Frames:
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for number, text in zip(numbers, texts, strict=True):
        date = DATE.search(text)
        if date is None:
            raise ValueError(
                f'band {number} of {header.path} is described as {text!r}, expected a date such as 20210615 or '
                '2021-06-15: give dates of stack'
            )
        of_day = found[_day(date.group())]
        name = _bare(text) or f'B{len(of_day) + 1}'
        if name in of_day:
            raise ValueError(f'{header.path} has two bands {name!r} of {date.group()!r}, expected one')
        of_day[name] = number
    known = list(dict.fromkeys(name for of_day in found.values() for name in of_day))
    if names and not set(names) <= set(known):
        if any(len(of_day) != len(names) for of_day in found.values()):
            raise ValueError(f'{header.path} has the bands {known} of each date, expected {list(names)}')
        known = list(names)
        table = [list(of_day.values()) for of_day in found.values()]
    else:
        table = [[of_day.get(name, 0) for name in known] for of_day in found.values()]
    return Frames(tuple(known), np.array(list(found), 'datetime64[D]'), np.array(table))


def _names(header: Header, places: NDArray[np.int64]) -> list[str]:
    """Return the band names of a date, if the descriptions of all dates ``(T, C)`` agree; else an empty list."""
    described = [{_bare(header.descriptions[number - 1] or '') for number in column} for column in places.T]
    names = [next(iter(texts)) if len(texts) == 1 else '' for texts in described]
    return names if all(names) and len(set(names)) == len(names) else []


def _bare(text: str) -> str:
    return re.sub(r'[\s_\-.:]+', '_', re.sub(rf'{DATE.pattern}(?:T\d{{6}})?', '', text)).strip('_')


def _day(text: str) -> str:
    """Return a date as 2021-06-15; the first day of a month. A date without a year, 06-15, is returned unchanged."""
    if _YEARLESS.fullmatch(text):
        return text
    digits = re.sub(r'[-_]', '', text)
    iso = f'{digits[:4]}-{digits[4:6]}-{digits[6:] or "01"}'
    try:
        return str(np.datetime64(iso, 'D'))
    except ValueError:
        raise ValueError(
            f'dates of stack have {text!r}, expected dates such as 20210615, 2021-06-15, 2021-06 or 06-15'
        ) from None
