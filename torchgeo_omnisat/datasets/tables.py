# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Dataset of a table with the time series of single pixels, such as points with a crop type."""

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torchgeo.datasets import DatasetNotFoundError
from torchgeo.datasets.utils import Path as PathLike
from torchgeo.datasets.utils import Sample

from ..modality import Modality
from ..utils.checks import EmptySplitError, check_choice, check_integer, require_pyarrow
from ..utils.tensors.coordinates import COORDINATES
from ..utils.tensors.observed import MAX_RAW
from .base import MultimodalDataset, tensors
from .common.arguments import SPLITS
from .common.classes import NO_LABEL, UNKNOWN, ClassMap, code_of, without_blanks
from .io.decoding import as_numbers

#: Settings of a series: facts of the modality, and where its values are.
FACTS = ('bands', 'gsd', 'kind', 'unit', 'wavelengths')
PLACES = ('columns', 'nodata', 'scale', 'offset', 'amplitude')
#: Placeholders in the names of columns.
BAND, STEP = '{band}', '{step}'


class _Series(NamedTuple):
    """Values ``(N, T, C)`` of a modality, NaN where missing, and their dates ``(N, T)`` in days since 1970-01-01."""

    values: NDArray[np.float32]
    days: NDArray[np.int64]


class PixelTable(MultimodalDataset):
    """Dataset of a Parquet table of pixel time series: each sample is a tile of one pixel.

    A table is wide, with one row per pixel and a column per band and date, such as WorldCereal's
    extractions; or long, with one row per pixel and date and a column per band.

    .. code-block:: python

        PixelTable(
            'points.parquet',
            {
                's2': {'bands': S2_BANDS, 'columns': 'OPTICAL-{band}-ts{step}-*', 'kind': 'optical', 'unit': 'dn'},
                's1': {'bands': ('VV', 'VH'), 'columns': 'SAR-{band}-ts{step}-*', 'amplitude': -83, 'unit': 'db'},
            },
            label='crop', start='start_date', nodata=65535,
        )

    A sample has ``image_<name>`` (T, C, 1, 1), dates and flags of each modality (see
    :mod:`torchgeo_omnisat.batch`), ``mask`` (1, 1), the class, and ``coordinates``. Requires
    pyarrow: ``pip install torchgeo_omnisat[parquet]``.
    """

    def __init__(
        self,
        root: PathLike = 'data/points.parquet',
        series: Mapping[str, Mapping[str, Any]] | None = None,
        label: str | None = None,
        labels: Sequence[str] = (),
        classes: Mapping[Any, Any] | None = None,
        other: str | None = None,
        start: str | None = None,
        date: str | None = None,
        pixel: str | None = None,
        coordinates: tuple[str, str] | None = ('lon', 'lat'),
        nodata: float | Sequence[float] | None = None,
        split: str | None = None,
        split_column: str | None = None,
        fractions: Sequence[float] = (0.6, 0.2, 0.2),
        block: float = 0.1,
        seed: int = 0,
        ignore_index: int = 255,
    ) -> None:
        """Read the columns of the table that are needed.

        Args:
            root: Parquet file.
            series: Settings by modality: ``bands``, and optionally ``gsd`` (10), ``kind``, ``unit``, ``wavelengths``
                and ``nodata``. ``columns`` is the pattern of the names, with ``{band}``, ``{step}`` for the index of
                the month from *start* on in a wide table, and ``*`` for any text; it defaults to ``'{band}'``.
                Values are ``scale`` times the stored value plus ``offset``; with ``amplitude``, an offset in dB,
                they are 20 log10 of the stored amplitude plus it.
            label: Column of the class, null or blank for a pixel without one; None without labels.
            labels: Class names; defaults to those of *classes*, or the sorted values of the column.
            classes: Class name by value of the column.
            other: Class of all values that are not in *classes*.
            start: Column with the first month of each pixel of a wide table.
            date: Column with the date of each row of a long table.
            pixel: Column with the identifier of a pixel; required for a long table.
            coordinates: Columns of longitude and latitude in degrees; None if unknown.
            nodata: One or several values that are missing.
            split: ``'train'``, ``'val'`` or ``'test'``; None for all pixels.
            split_column: Column with the split of each pixel, instead of blocks.
            fractions: Approximate fractions of the pixels in the splits.
            block: Side in degrees of the blocks that are assigned to a split as a whole, because neighbours are alike.
            seed: Seed of the assignment.
            ignore_index: Class index of pixels without a label.

        Raises:
            DatasetNotFoundError: If the file does not exist.
            ImportError: If pyarrow is not installed.
            ValueError: If columns or coordinates are missing, the split has no pixels, or an argument is invalid.
        """
        check_choice(split=(split, (None, *SPLITS)))
        self.root, self.file, self.split = root, Path(root).expanduser(), split
        self.path = self.file.parent
        self.ignore_index, self.missing_values = ignore_index, as_numbers(nodata)
        if not self.file.is_file():
            error = DatasetNotFoundError(self)
            error.args = (f'{self.file} does not exist, expected a Parquet file',)
            raise error
        self.long = date is not None
        if (date is None) == (start is None) or (self.long and pixel is None):
            raise ValueError(
                f'start is {start!r}, date {date!r} and pixel {pixel!r}, expected start for a table with one row per '
                'pixel, or date and pixel for one with one row per pixel and date'
            )
        self.columns = table_columns(self.file)
        self.settings = {name: _settings(name, one) for name, one in dict(series or {}).items()}
        if not self.settings:
            raise ValueError('series is empty, expected at least one modality with its bands')
        self.modalities = {name: _modality(name, one) for name, one in self.settings.items()}
        self.names = {name: self._columns_of(modality) for name, modality in self.modalities.items()}
        table = self._read_columns([label, start, date, pixel, split_column, *(coordinates or ())])
        first = self._first_rows(table, pixel) if self.long else table
        #: Identifier of each pixel.
        self._ids = [str(value) for value in (first.index if pixel is None else first[pixel])]
        column = None if label is None else without_blanks(first[label])
        self.codes = _class_map(column, labels, classes, other)
        self.labels = self.codes.labels if label else None
        #: Class index of each pixel ``(N,)``, *ignore_index* without a label; None without a column.
        self.targets = None if column is None else self._targets(column)
        #: Longitude and latitude of each pixel ``(N, 2)``; None if unknown.
        self.places = None if coordinates is None else self._places(first[list(coordinates)])
        self._series = self._read_long(table, date, pixel) if self.long else self._read_wide(table, str(start))
        self._keep(self._chosen(first, split_column, fractions, block, seed))

    @property
    def ids(self) -> list[str]:
        """Identifier of each pixel."""
        return self._ids

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> Sample:
        """Return the time series of a pixel as images of one pixel, its class and its coordinates."""
        index = range(len(self))[index]
        sample: Sample = {}
        for name, modality in self.modalities.items():
            values, days = self._series[name].values[index], self._series[name].days[index]
            valid = np.isfinite(values).any(1)
            filled = days >= 0  # padding of pixels with fewer rows of a long table is negative
            if filled.any():
                image = np.ascontiguousarray(values[filled][..., None, None])
                sample |= tensors(modality, image, days[filled], valid[filled])
        if self.targets is not None:
            sample['mask'] = torch.full((1, 1), int(self.targets[index]))
        if self.places is not None:
            sample[COORDINATES] = torch.from_numpy(self.places[index].copy())
        return sample

    def image_files(self, name: str, indices: Iterable[int]) -> list[str]:
        """Return the table."""
        return [str(self.file)]

    def features(self, names: Sequence[str] | None = None) -> NDArray[np.float32]:
        """Return the values of all dates and bands of each pixel, ``(N, F)``, NaN where missing."""
        parts = [self._series[name].values.reshape(len(self), -1) for name in names or self.modalities]
        return np.concatenate(parts, axis=1)

    def _read_columns(self, keys: Iterable[str | None]) -> pd.DataFrame:
        """Return the columns *keys* and those of the values."""
        wanted = [column for column in dict.fromkeys(keys) if column is not None]
        if lost := [column for column in wanted if column not in self.columns]:
            raise ValueError(f'{self.file} has no columns {lost}, expected some of {_shown(self.columns)}')
        values = [column for names in self.names.values() for column in names.values()]
        table = read_table(self.file, list(dict.fromkeys([*wanted, *values])))
        if table.empty:
            raise ValueError(f'{self.file} has no rows, expected at least one')
        return table

    def _first_rows(self, table: pd.DataFrame, pixel: str | None) -> pd.DataFrame:
        """Return the first row of each pixel of a long table."""
        missing = table[pixel].isna().to_numpy()
        if missing.any():
            row = int(missing.argmax()) + 1
            raise ValueError(f'column {pixel!r} of {self.file} has no pixel in row {row}, expected one in every row')
        return table.drop_duplicates(pixel).reset_index(drop=True)

    def _places(self, columns: pd.DataFrame) -> NDArray[np.float64]:
        """Return longitude and latitude of each pixel ``(N, 2)``."""
        places = columns.apply(pd.to_numeric, errors='coerce').to_numpy(np.float64)
        wrong = ~(np.abs(places) <= (180, 90)).all(1)
        if wrong.any():
            row = int(wrong.argmax())
            raise ValueError(
                f'columns {list(columns)} of {self.file} are {columns.iloc[row].tolist()} for pixel '
                f'{self._ids[row]!r}, expected longitude and latitude in degrees for every pixel, or coordinates=None'
            )
        return places

    def _columns_of(self, modality: Modality) -> dict[tuple[str, int], str]:
        """Return the column of each band and step."""
        pattern: str = self.settings[modality.name].get('columns', BAND)
        found: dict[tuple[str, int], str] = {}
        if BAND not in pattern or (STEP in pattern) == self.long:
            wanted = f'{BAND} without {STEP}' if self.long else f'{BAND} and {STEP}'
            raise ValueError(f'columns of {modality.name!r} is {pattern!r}, expected a pattern with {wanted}')
        for band in modality.bands:
            text = fnmatch.translate(pattern.replace(BAND, band)).replace(re.escape(STEP), r'(?P<step>\d+)')
            matches = {column: re.match(text, column) for column in self.columns}
            steps = {column: int(m['step']) if STEP in pattern else 0 for column, m in matches.items() if m}
            if len(set(steps.values())) < len(steps):
                raise ValueError(
                    f'columns of {modality.name!r} is {pattern!r}, which matches {_shown(list(steps))} for {band!r} in '
                    f'{self.file}, expected one column of each date'
                )
            if not steps:
                raise ValueError(
                    f'{self.file} has no column {pattern.replace(BAND, band)!r} for {modality.name!r}, expected some '
                    f'of {_shown(self.columns)}'
                )
            found |= {(band, step): column for column, step in steps.items()}
        return found

    def _decode(self, name: str, stored: NDArray[Any]) -> NDArray[np.float32]:
        settings = self.settings[name]
        values = stored.astype(np.float32)
        for number in (*self.missing_values, *as_numbers(settings.get('nodata'))):
            values[stored == number] = np.nan
        if 'amplitude' in settings:
            with np.errstate(divide='ignore', invalid='ignore'):
                values = 20 * np.log10(values) + np.float32(settings['amplitude'])
        else:
            values = values * np.float32(settings.get('scale', 1)) + np.float32(settings.get('offset', 0))
        values[~(np.abs(values) <= MAX_RAW)] = np.nan
        return values.astype(np.float32)

    def _read_wide(self, table: pd.DataFrame, start: str) -> dict[str, _Series]:
        months = _days(table[start], f'column {start!r} of {self.file}').astype('datetime64[M]')
        series = {}
        for name, modality in self.modalities.items():
            columns = self.names[name]
            steps = sorted({step for _, step in columns})
            stored = np.full((len(table), len(steps), len(modality.bands)), np.nan)
            for place, step in enumerate(steps):
                for band, label in enumerate(modality.bands):
                    if (label, step) in columns:
                        stored[:, place, band] = table[columns[label, step]]
            days = (months[:, None] + np.array(steps, 'timedelta64[M]')).astype('datetime64[D]').astype(np.int64)
            series[name] = _Series(self._decode(name, stored), days)
        return series

    def _read_long(self, table: pd.DataFrame, date: str | None, pixel: str | None) -> dict[str, _Series]:
        days = _days(table[date], f'column {date!r} of {self.file}').astype(np.int64)
        number = pd.factorize(table[pixel])[0]
        order = np.lexsort((days, number))
        number, days = number[order], days[order]
        repeated = (number[1:] == number[:-1]) & (days[1:] == days[:-1])
        if repeated.any():
            row = table.iloc[order[1:][repeated][0]]
            raise ValueError(f'{self.file} has two rows of pixel {row[pixel]!r} and date {row[date]!s}, expected one')
        first = np.r_[0, np.flatnonzero(number[1:] != number[:-1]) + 1]
        counts = np.diff(np.r_[first, len(number)])
        place = np.arange(len(number)) - np.repeat(first, counts)
        grid = np.full((len(first), counts.max(initial=1)), -1, np.int64)
        grid[number, place] = days
        series = {}
        for name, modality in self.modalities.items():
            columns = [self.names[name][band, 0] for band in modality.bands]
            values = np.full((*grid.shape, len(columns)), np.nan, np.float32)
            values[number, place] = self._decode(name, table[columns].to_numpy(np.float64)[order])
            series[name] = _Series(values, grid)
        return series

    def _targets(self, column: pd.Series) -> NDArray[np.int64]:
        numbers = {value: self.codes.number(value) for value in column.dropna().unique()}
        if strange := {value: int((column == value).sum()) for value, n in numbers.items() if n == UNKNOWN}:
            raise self.codes.unknown(strange, [f'column {column.name!r} of {self.file}'])
        found = column.map(numbers).fillna(NO_LABEL).to_numpy(np.int64)
        return np.where(found == NO_LABEL, self.ignore_index, found)

    def _chosen(
        self, table: pd.DataFrame, column: str | None, fractions: Sequence[float], block: float, seed: int
    ) -> NDArray[np.int64]:
        """Return the indices of the pixels of the split."""
        if self.split is None:
            return np.arange(len(table))
        if column is not None:
            chosen = np.flatnonzero((table[column] == self.split).to_numpy())
            if not len(chosen):
                found = sorted(map(str, table[column].unique()))[:5]
                raise ValueError(f'column {column!r} of {self.file} has {found}, expected some rows {self.split!r}')
            return chosen
        if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
            raise ValueError(f'fractions is {fractions}, expected three that sum to 1')
        check_integer(0, seed=seed)
        if self.places is None or not block > 0:
            raise ValueError(f'coordinates is None or block is {block}, expected both for splits, or split_column')
        cells = np.unique(np.floor(self.places / block), axis=0, return_inverse=True)[1].ravel()
        counts = np.bincount(cells)
        owner, have = np.zeros(len(counts), np.int64), np.zeros(3)
        wanted = np.maximum(np.asarray(fractions) * len(table), 1e-9)
        order = np.random.default_rng(seed).permutation(len(counts))
        for cell in order[np.argsort(-counts[order], kind='stable')]:  # the largest blocks first
            owner[cell] = int(np.argmin(np.where(np.asarray(fractions) > 0, have / wanted, np.inf)))
            have[owner[cell]] += counts[cell]
        chosen = np.flatnonzero(owner[cells] == SPLITS.index(self.split))
        if not len(chosen):
            raise EmptySplitError(
                f'split {self.split!r} of {self.file} has no pixels: fractions is {list(fractions)}, and the number of '
                f'blocks of {block} degrees with pixels is {len(counts)}, expected a block for each split: decrease '
                'block, or use split_column'
            )
        return chosen

    def _keep(self, chosen: NDArray[np.int64]) -> None:
        self._ids = [self._ids[index] for index in chosen]
        self.targets = None if self.targets is None else self.targets[chosen]
        self.places = None if self.places is None else self.places[chosen]
        self._series = {name: _Series(one.values[chosen], one.days[chosen]) for name, one in self._series.items()}


def read_table(path: Path, columns: list[str] | None) -> pd.DataFrame:
    """Read columns of a Parquet file; raise ImportError without pyarrow."""
    require_pyarrow(path)
    try:
        return pd.read_parquet(path, engine='pyarrow', columns=columns)
    except (OSError, ValueError) as error:
        raise ValueError(f'{path} cannot be read ({error}), expected a Parquet file') from error


def table_columns(path: Path) -> list[str]:
    """Return the names of the columns of a Parquet file, without reading them."""
    require_pyarrow(path)
    from pyarrow import parquet

    try:
        return list(parquet.read_schema(path).names)
    except (OSError, ValueError) as error:
        raise ValueError(f'{path} cannot be read ({error}), expected a Parquet file') from error


def _settings(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    unknown = set(settings) - {*FACTS, *PLACES}
    if 'bands' not in settings or unknown:
        wrong = f'{sorted(unknown)}' if unknown else 'no bands'
        raise ValueError(f'series {name!r} has {wrong}, expected bands and some of {[*FACTS[1:], *PLACES]}')
    if 'amplitude' in settings and {'scale', 'offset'} & set(settings):
        raise ValueError(f'series {name!r} has amplitude and scale or offset, expected only one of them')
    return dict(settings)


def _modality(name: str, settings: Mapping[str, Any]) -> Modality:
    bands, gsd = tuple(settings['bands']), settings.get('gsd', 10.0)
    unit = settings.get('unit', 'unknown')
    return Modality(name, bands, gsd, True, settings.get('kind'), unit, settings.get('wavelengths'))


def _class_map(column: pd.Series | None, labels: Sequence[str], classes: Any, other: str | None) -> ClassMap:
    if column is None or labels or classes is not None:
        return ClassMap(labels, classes, other)
    names = {value: code_of(value) for value in sorted(column.dropna().unique().tolist())}
    return ClassMap(list(dict.fromkeys(names.values())), names)


def _days(column: pd.Series, where: str) -> NDArray[np.datetime64]:
    try:
        days: NDArray[np.datetime64] = pd.to_datetime(column, format='ISO8601').to_numpy('datetime64[D]')
    except (TypeError, ValueError) as error:
        raise ValueError(f'{where} has no dates ({error}), expected dates such as 2021-06-15') from None
    if np.isnat(days).any():
        raise ValueError(f'{where} has no date in row {int(np.isnat(days).argmax()) + 1}, expected one in every row')
    return days


def _shown(columns: Sequence[str]) -> str:
    return f'{list(columns[:20])}' + f' and {len(columns) - 20} more' * (len(columns) > 20)
