# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Stacks: rasters whose bands are dates, or dates times bands."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..io.headers import DATE, Header

#: In which order the bands of a file are.
ORDERS = ('date-band', 'band-date')
#: What stands for the dates of the descriptions of bands.
DESCRIPTIONS = 'descriptions'


@dataclass(frozen=True)
class Stack:
    """Dates that the bands of each file are.

    Args:
        dates: The dates in the order of the file, such as ``20210615``, ``'2021-06-15'`` or ``'2021-06'`` (the
            first of that month); ``'descriptions'`` for those in the descriptions of the bands.
        order: ``'date-band'`` for all bands of the first date, then those of the next; ``'band-date'`` for all
            dates of the first band, then those of the next. Descriptions need none.

    Raises:
        ValueError: If an argument is not as described.
    """

    dates: Any = DESCRIPTIONS
    order: str = ORDERS[0]

    def __post_init__(self) -> None:
        """Raise a ValueError for invalid dates or an unknown order."""
        if self.order not in ORDERS:
            raise ValueError(f'order of stack is {self.order!r}, expected one of {list(ORDERS)}')
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

    @classmethod
    def of(cls, settings: Any) -> 'Stack':
        """Return the stack of settings as a file has them.

        Args:
            settings: A stack, or its arguments by name.

        Raises:
            ValueError: If these are not arguments of a stack.
        """
        if isinstance(settings, cls):
            return settings
        if not isinstance(settings, Mapping) or (unknown := set(settings) - {'dates', 'order'}):
            wrong = sorted(unknown) if isinstance(settings, Mapping) else settings
            raise ValueError(f'stack has {wrong!r}, expected dates and order')
        return cls(**settings)

    def frames(self, header: Header, skip_alpha: bool, names: Sequence[str] = ()) -> 'Frames':
        """Return what each band of a file is.

        Args:
            header: The file.
            skip_alpha: Whether an alpha band counts for none.
            names: Names of the bands of one date, in their order; by default those of descriptions, or numbers.

        Raises:
            ValueError: If the bands of the file are not these dates.
        """
        numbers = header.numbers(skip_alpha)
        texts = [header.descriptions[number - 1] or '' for number in numbers]
        if self.dates == DESCRIPTIONS:
            return _described(header, numbers, texts, names)
        count, rest = divmod(len(numbers), len(self.dates))
        if rest or (names and len(names) != count):
            bands = f' of the bands {list(names)}' * bool(names)
            raise ValueError(
                f'{header.path} has {len(numbers)} bands, expected the {len(self.dates)} dates of stack{bands}'
            )
        self._refuse_dates(header, numbers, texts, count)
        orders = {
            ORDERS[0]: np.array(numbers).reshape(-1, count),
            ORDERS[1]: np.array(numbers).reshape(count, -1).T,
        }
        places = orders[self.order]
        if not names:
            names = _names(header, places)
            other = next(order for order in ORDERS if order != self.order)
            if not names and (told := _names(header, orders[other])) and count > 1:
                raise ValueError(
                    f'order of stack is {self.order!r}, but by their descriptions the bands of {header.path} are '
                    f'{told} of each date in the order {other!r}, expected that'
                )
            names = names or [f'B{band}' for band in range(1, count + 1)]
        return Frames(tuple(names), np.array(self.dates, 'datetime64[D]'), places)

    def _refuse_dates(self, header: Header, numbers: Sequence[int], texts: Sequence[str], count: int) -> None:
        """Refuse dates other than those that all bands are described with."""
        found = [DATE.search(text) for text in texts]
        stated = [None if match is None else _day(match.group()) for match in found]
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
    """What the bands of a file are.

    Args:
        names: Names of the bands of a date.
        days: The dates, ``(T,)``.
        numbers: Number of each band in the file, ``(T, C)``; 0 where a date lacks a band.
    """

    names: tuple[str, ...]
    days: NDArray[np.datetime64]
    numbers: NDArray[np.int64]

    def select(self, bands: Sequence[str]) -> NDArray[np.int64]:
        """Return the numbers of some bands, ``(T, C)``."""
        return self.numbers[:, [self.names.index(band) for band in bands]]


def _described(header: Header, numbers: Sequence[int], texts: Sequence[str], names: Sequence[str]) -> Frames:
    """Return what the bands of a file are by their descriptions."""
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
    """Return what the bands of a date are called, if descriptions agree on that for all dates ``(T, C)``."""
    own = [{_bare(header.descriptions[number - 1] or '') for number in column} for column in places.T]
    told = [next(iter(found)) if len(found) == 1 else '' for found in own]
    return told if all(told) and len(set(told)) == len(told) else []


def _bare(text: str) -> str:
    """Return the description of a band without dates and times."""
    return re.sub(r'[\s_\-.:]+', '_', re.sub(rf'{DATE.pattern}(?:T\d{{6}})?', '', text)).strip('_')


def _day(text: str) -> str:
    """Return a date as 2021-06-15; the first day of a month."""
    digits = re.sub(r'[-_]', '', text)
    iso = f'{digits[:4]}-{digits[4:6]}-{digits[6:] or "01"}'
    try:
        return str(np.datetime64(iso, 'D'))
    except ValueError:
        raise ValueError(
            f'dates of stack have {text!r}, expected dates such as 20210615, 2021-06-15 or 2021-06'
        ) from None
