# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Mapping from codes in label files to class indices."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

#: Class index of pixels without a label.
NO_LABEL = -(2**31)
#: Class index of a code without a class.
UNKNOWN = NO_LABEL + 1
#: Rasters are read as float32, which is not exact for integers from here on.
GREATEST_CODE = 2**24

_WHOLE = re.compile(r'([+-]?)(0|[1-9]\d*)(?:\.0*)?')


def code_of(value: Any) -> str:
    """Return a code as text: 10, 10.0, ``'10'`` and ``'10.0'`` are one code, ``'010'`` is another."""
    if isinstance(value, str):
        text = value.strip()
        whole = _WHOLE.fullmatch(text)
        if whole is None:
            return text
        return '-' * (whole[1] == '-' and whole[2] != '0') + whole[2]
    if isinstance(value, bool | np.bool_):
        return str(int(value))
    try:
        number = float(value)
        return str(int(value if isinstance(value, int) else number)) if number.is_integer() else str(value)
    except (TypeError, ValueError, OverflowError):
        return str(value)


def without_blanks(column: pd.Series) -> pd.Series:
    """Return a column with null instead of blank texts."""
    return column.mask(column.map(lambda value: isinstance(value, str) and not value.strip()).astype(bool))


def class_names(classes: Mapping[Any, Any], other: str | None = None) -> list[str]:
    """Return the distinct class names of a mapping from codes, in order; the class of other codes is the last."""
    names = [str(name) for name in classes.values() if name is not None]
    return list(dict.fromkeys([*names, *([] if other is None else [str(other)])]))


class UnknownCodesError(ValueError):
    """Error of codes without a class, with their *counts*, *files*, and *what* has them, such as pixels."""

    def __init__(self, classes: 'ClassMap', counts: Mapping[Any, int], files: Sequence[str], what: str) -> None:
        self.classes, self.counts, self.files, self.what = classes, Counter(counts), list(files), what
        super().__init__(classes.unknown_text(counts, files, what))

    def __reduce__(self) -> tuple[Any, ...]:
        """Support pickling, to pass the error from worker processes."""
        return type(self), (self.classes, self.counts, self.files, self.what)

    @classmethod
    def joined(cls, errors: Sequence[Self]) -> Self:
        """Merge several errors of the same labels into one."""
        counts = sum((error.counts for error in errors), Counter[Any]())
        files = dict.fromkeys(path for error in errors for path in error.files)
        return cls(errors[0].classes, counts, list(files), errors[0].what)


class ClassMap:
    """Mapping from codes in label files to class indices.

    Without *classes* (class name by code, None for no label), codes are class names or class indices from 0. If the
    names are numbers, such as ``['10', '20']``, they are the codes. *other* is the class of all other codes, None to
    raise an error for them. *ignore_index* is a further code without a label, unless it is in *classes*.
    """

    def __init__(
        self,
        labels: Sequence[str] = (),
        classes: Mapping[Any, Any] | None = None,
        other: str | None = None,
        ignore_index: int | None = None,
    ) -> None:
        if classes is not None and (not isinstance(classes, Mapping) or not classes):
            raise ValueError(f'classes of the mask is {classes!r}, expected class names by code, such as {{10: tree}}')
        if other is not None and classes is None:
            raise ValueError(f'other of the mask is {other!r}, expected classes with it: class names by code')
        self.labels = list(labels or (class_names(classes, other) if classes is not None else ()))
        self.identity = not self.labels
        if len(set(self.labels)) < len(self.labels):
            twice = sorted({name for name in self.labels if self.labels.count(name) > 1})
            raise ValueError(f'labels has {twice} more than once, expected a name for each class')
        self.numbers = {name: number for number, name in enumerate(self.labels)}
        self.codes = self._of_names() if classes is None else self._of_classes(classes)
        self.other = UNKNOWN if other is None else self._number(other, 'other')
        if ignore_index is not None:
            self.codes.setdefault(str(ignore_index), NO_LABEL)
        whole = {int(code): number for code, number in self.codes.items() if _is_whole(code)}
        self._keys = np.array(sorted(whole), np.float64)
        self._values = np.array([whole[code] for code in sorted(whole)], np.int64)

    def number(self, value: Any) -> int:
        """Return the class index of a code, :data:`UNKNOWN` if it has none."""
        code = code_of(value)
        if code in self.codes:
            return self.codes[code]
        if self.identity:
            return int(code) if _is_whole(code) else UNKNOWN
        return UNKNOWN if isinstance(value, float) and not value.is_integer() else self.other

    def pixels(self, codes: NDArray[Any]) -> NDArray[np.int64]:
        """Return class indices of pixels, :data:`NO_LABEL` for NaN and :data:`UNKNOWN` for codes without a class."""
        known = np.isfinite(codes)
        values = np.where(known, codes, 0).astype(np.float64)
        numbers = values.astype(np.int64) if self.identity else np.full(values.shape, self.other, np.int64)
        if len(self._keys):
            places = np.searchsorted(self._keys, values).clip(max=len(self._keys) - 1)
            numbers = np.where(self._keys[places] == values, self._values[places], numbers)
        numbers[(values != np.round(values)) | (np.abs(values) >= GREATEST_CODE)] = UNKNOWN
        return np.where(known, numbers, NO_LABEL)

    def unknown(self, counts: Mapping[Any, int], files: Sequence[str], what: str = 'pixels') -> UnknownCodesError:
        """Return the error for codes without a class."""
        return UnknownCodesError(self, counts, files, what)

    def unknown_text(self, counts: Mapping[Any, int], files: Sequence[str], what: str) -> str:
        """Return the message of :class:`UnknownCodesError`."""
        where = ', '.join(files[:3]) + f' and {len(files) - 3} more' * (len(files) > 3) or 'mask'
        listed = sorted(counts.items(), key=lambda item: (-item[1], str(item[0])))
        codes = ', '.join(
            f'{_shown(code)} ({count} {what if count > 1 else what[:-1]})' for code, count in listed[:100]
        )
        more = f' and {len(listed) - 100} more' * (len(listed) > 100)
        fractions = [code for code in counts if isinstance(code, float) and not code.is_integer()]
        if fractions:
            wanted, hint = 'whole numbers', 'labels are classes: is this a raster of measurements?'
        elif any(isinstance(code, float) and abs(code) >= GREATEST_CODE for code in counts):
            wanted, hint = f'numbers below {GREATEST_CODE} in a raster', 'recode the file'
        elif self.identity:
            wanted, hint = 'whole numbers', 'give labels, and classes in the mask to map codes to them'
        else:
            positions = {str(number): number for number in self.numbers.values()}
            by_position = all(self.codes.get(code) == number for code, number in positions.items())
            wanted = f'classes 0 to {len(self.labels) - 1}' if by_position else f'the codes {self._listed()}'
            wanted += f' ({", ".join(self.labels)})'
            first = _shown(next(iter(code for code, _ in listed)))
            hint = (
                f'map codes to class names in the mask, classes: {{{first}: NAME}}, where null means no label, or take '
                'the rest with other: NAME'
            )
        return f'{where} has the codes {codes}{more}, expected {wanted}; {hint}'

    def _listed(self) -> str:
        codes = [code for code, number in self.codes.items() if number != NO_LABEL]
        return ', '.join(codes[:50]) + ' ...' * (len(codes) > 50)

    def _of_names(self) -> dict[str, int]:
        by_name = {code_of(name): number for name, number in self.numbers.items()}
        by_number = {str(number): number for number in self.numbers.values()}
        clashes = [name for name, number in self.numbers.items() if by_number.get(code_of(name), number) != number]
        if not clashes:
            return by_number | by_name
        if all(map(_is_whole, by_name)):
            return by_name
        raise ValueError(
            f'labels has the names {clashes}, which are also numbers of other classes of {self.labels}, expected '
            "classes in the mask, such as {1: '1'}, or other names"
        )

    def _of_classes(self, classes: Mapping[Any, Any]) -> dict[str, int]:
        codes: dict[str, int] = {}
        for code, name in classes.items():
            if name is not None and not isinstance(name, str | int):
                raise ValueError(f'classes of the mask maps {code!r} to {name!r}, expected the name of one class')
            number = NO_LABEL if name is None else self._number(name, f'classes[{code!r}]')
            if codes.setdefault(code_of(code), number) != number:
                raise ValueError(f'classes of the mask has the code {code!r} twice, expected one class for it')
        return codes

    def _number(self, name: Any, what: str) -> int:
        if str(name) not in self.numbers:
            raise ValueError(f'{what} of the mask is {name!r}, expected one of the labels {self.labels}')
        return self.numbers[str(name)]


def _shown(code: Any) -> str:
    return repr(code) if isinstance(code, str) else code_of(code)


def _is_whole(code: str) -> bool:
    whole = _WHOLE.fullmatch(code)
    return whole is not None and '.' not in code


def refuse_ignored_class(labels: Sequence[str], ignore_index: int) -> None:
    """Raise an error if the default of *ignore_index* is also a class, which would be ignored in training."""
    if ignore_index == 255 and len(labels) > ignore_index:
        raise ValueError(
            f'ignore_index is 255, which is {labels[255]!r} of {len(labels)} labels, expected a number that is not a '
            f'class, such as {len(labels)}'
        )
