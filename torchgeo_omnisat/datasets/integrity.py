# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Integrity: the expected contents of the files of a sample, and the problems that are found in them.

A dataset that can be checked has ``ids``, a name for each sample, and ``parts``, which says
of one sample what its files should hold and how they are read. It is made with
``missing='check'``, so that it refuses nothing that :mod:`torchgeo_omnisat.datasets.integrity`
is to tell of.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, Self

import h5py
import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from torch import Tensor

from ..modality import Modality
from ..utils.jsonfile import load_json
from .io.opening import open_raster

#: Every kind of problem, and what it means.
KINDS = {
    'missing': 'a file, or an entry of one, is not there',
    'unreadable': 'a file is truncated or damaged',
    'shape': 'an array has another shape',
    'dtype': 'numbers are stored as another type',
    'dates': 'dates are not those of the images, not in order, repeated or no dates',
    'crs': 'a raster has no system of coordinates, or another',
    'label': 'a label is none of the classes',
    'nan': 'too much of the images was not measured',
    'empty': 'a modality has no valid image',
    'values': 'values are implausible for the unit that is stated',
    'settings': 'an argument of the data is refused',
    'training': 'a step of training fails',
}


@dataclass(frozen=True)
class Expected:
    """What one array in a file should be.

    Args:
        path: The file: ``.npy``, a raster, or HDF5.
        shape: The sizes that are known; None is any. A raster of four is a series, the bands
            of its first date first.
        dtype: A type such as ``'int16'``, or ``'integer'``, ``'number'`` or ``'any'``.
        key: Which array of an HDF5 file.
        series: Whether its first axis is dates.
        optional: Whether nothing says that it was ever acquired.
        classes: Least and greatest number in a channel of labels.
        channel: Which channel that is.
        crs: The system of coordinates of a raster, by its code; 0 for any.
        crs_unused: Whether published files lack it and nothing reads it, so that its absence
            is a warning.
    """

    path: Path
    shape: tuple[int | None, ...] | None = None
    dtype: str = 'number'
    key: str | None = None
    series: bool = False
    optional: bool = False
    classes: tuple[int, int] | None = None
    channel: int = 0
    crs: int | None = None
    crs_unused: bool = False


@dataclass(frozen=True)
class Dates:
    """The days of the first axis of a file's array.

    Args:
        path: What says them.
        read: Gives days since 1970-01-01, or raises ValueError.
        ordered: Whether published files have them in order and each once. Readers cope with
            others.
    """

    path: Path
    read: Callable[[], NDArray[np.int64]]
    ordered: bool = True


@dataclass(frozen=True)
class Part:
    """A modality, the mask or the label of a sample.

    Args:
        name: What it is called.
        files: What it is read from, the images first.
        read: Reads it as the dataset does.
        dates: The dates of the images.
        modality: Which keys to look at in what *read* gives; None if it is none.
        fault: The kind of problem if it cannot be read.
        absent: Whether there is none, as may be.
    """

    name: str
    files: tuple[Expected, ...]
    read: Callable[[], Any]
    dates: Dates | None = None
    modality: Modality | None = None
    fault: str = 'unreadable'
    absent: bool = False


class Checkable(Protocol):
    """A dataset that can be checked."""

    path: Path
    modalities: dict[str, Modality]

    @property
    def ids(self) -> list[str]:
        """The name of each sample."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def parts(self, index: int) -> Iterator[Part]:
        """Yield the parts of a sample."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Args:
        sample: Name of the sample; empty if it is the dataset's.
        part: The modality, or ``'mask'`` or ``'label'``.
        file: The file, from the dataset's directory on.
        kind: One of :data:`KINDS`.
        reason: What was found and what was expected.
        warning: Whether the sample can be used all the same.
    """

    sample: str
    part: str
    file: str
    kind: str
    reason: str
    warning: bool = False


@dataclass
class Findings:
    """What is wrong with a sample, and which modalities it has not, as may be.

    Args:
        problems: What is wrong.
        absent: Modalities of which nothing says that they were acquired.
    """

    problems: list[Problem] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Report:
    """What `check` found.

    Args:
        layout: Whose files these are, as the dataset class says.
        root: The dataset's directory.
        samples: How many samples of each split were looked at.
        problems: What is wrong, warnings among it.
        absent: How many samples have no image of a modality, which nothing says they should.
        statistics: Rows of the tables of values, dates and labels, by table; see
            :func:`torchgeo_omnisat.validation.values.summarize`. Empty in older reports.
    """

    layout: str
    root: str
    samples: Mapping[str, int]
    problems: Sequence[Problem]
    absent: Mapping[str, int] = field(default_factory=dict)
    statistics: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)

    @property
    def faults(self) -> list[Problem]:
        """The problems without the warnings."""
        return [problem for problem in self.problems if not problem.warning]

    @property
    def samples_at_fault(self) -> dict[str, tuple[str, ...]]:
        """The kinds of problem of each sample that has one, warnings aside."""
        kinds: dict[str, tuple[str, ...]] = {}
        for problem in self.faults:
            if problem.sample:
                kinds[problem.sample] = tuple(dict.fromkeys((*kinds.get(problem.sample, ()), problem.kind)))
        return kinds

    def count(self) -> dict[str, int]:
        """How many problems of each kind there are, in the order of :data:`KINDS`."""
        counts = Counter(problem.kind for problem in self.faults)
        return {kind: counts[kind] for kind in KINDS if counts[kind]}

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + '\n', encoding='utf-8')

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what was written.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is something else.
        """
        expected = 'expected what `python -m torchgeo_omnisat check --output FILE` writes'
        try:
            content: dict[str, Any] = load_json(path)
            known = {name: content[name] for name in cls.__dataclass_fields__ if name in content}
            return cls(**{**known, 'problems': [Problem(**problem) for problem in content['problems']]})
        except FileNotFoundError:
            raise FileNotFoundError(f'{path} does not exist, {expected}') from None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f'{path} cannot be read ({type(error).__name__}: {error}), {expected}') from error


#: What a damaged file gives rise to. Any other error is ours, and not the file's.
_DAMAGE = (ValueError, OSError, RuntimeError, LookupError, EOFError, RasterioError)


@dataclass(frozen=True)
class _Fault:
    """A problem whose sample and part are known to the caller."""

    path: Path
    kind: str
    reason: str
    warning: bool = False


def inspect(
    dataset: Checkable,
    index: int,
    max_nan: float,
    allow_missing: bool,
    observe: Callable[[str, Any], None] | None = None,
) -> Findings:
    """Look at every file of a sample.

    Args:
        dataset: The dataset, with all bands and dates.
        index: Which sample.
        max_nan: Greatest share of the pixels of a modality that may not be measured.
        allow_missing: Whether an image of which nothing says that it was acquired may be missing.
        observe: Called with the name of each part and what was read of it.

    Returns:
        What was found. Where a file is not what it should be it is not read any further.
    """
    found, sample = Findings(), dataset.ids[index]
    for whole in dataset.parts(index):
        lacking = [file for file in whole.files if allow_missing and file.optional and not file.path.exists()]
        part = replace(whole, files=tuple(file for file in whole.files if file not in lacking))
        if whole.absent or any(file in lacking for file in whole.files[:1]):
            found.absent.append(part.name)
            continue
        faults = list(_look(part))
        if all(fault.warning for fault in faults):
            faults += _read(part, max_nan, observe)
        for fault in faults:
            file = below(fault.path, dataset.path)
            found.problems.append(Problem(sample, part.name, file, fault.kind, fault.reason, fault.warning))
    return found


def below(path: Path, root: Path) -> str:
    """Return a path relative to the directory of the dataset."""
    return str(path.relative_to(root) if path.is_relative_to(root) else path)


def _look(part: Part) -> Iterator[_Fault]:
    """Yield the faults of a part that are found without reading its values."""
    days, undated = None, None
    if part.dates is not None:
        try:
            days = part.dates.read()
        except _DAMAGE as error:
            undated = _Fault(part.dates.path, 'dates', _without(part.dates.path, error))
    broken = set()
    for file in part.files:
        try:
            header = _HEADERS.get(file.path.suffix, _no_header)(file)
        except LookupError as error:
            yield _Fault(file.path, 'missing', f'has no {error.args[0]!r}, expected {part.name} there')
        except FileNotFoundError:
            broken.add(file.path)
            yield _Fault(file.path, 'missing', f'does not exist, expected {part.name} there')
        except _DAMAGE as error:
            broken.add(file.path)
            yield _Fault(file.path, 'unreadable', f'truncated or damaged: {_without(file.path, error)}')
        else:
            yield from _compare(file, header, days if file.series else None, part.dates)
    if undated is not None and undated.path not in broken:
        yield undated
    if days is not None and part.dates is not None and part.dates.ordered:
        yield from _order(part.dates.path, days)


@dataclass(frozen=True)
class _Header:
    """What a file says of its array."""

    shape: tuple[int, ...] | None = None
    dtype: np.dtype[Any] | None = None
    crs: CRS | None = None


def _array_header(file: Expected) -> _Header:
    """Of a ``.npy`` file, which is as long as it says."""
    array = np.load(file.path, mmap_mode='r')
    return _Header(array.shape, array.dtype)


def _raster_header(file: Expected) -> _Header:
    """Of a raster."""
    _no_header(file)
    with open_raster(str(file.path)) as source:
        shape: tuple[int, ...] = (source.count, source.height, source.width)
        bands = file.shape[1] if file.shape is not None and len(file.shape) == 4 else None
        if bands and source.count % bands == 0:
            shape = (source.count // bands, bands, *shape[1:])
        return _Header(shape, np.dtype(source.dtypes[0]), source.crs)


def _hdf5_header(file: Expected) -> _Header:
    """Of an array in an HDF5 file; of a NetCDF file with that ending nothing but that it is there."""
    if file.key is None:
        return _no_header(file)
    with h5py.File(file.path, 'r') as source:
        if file.key not in source:
            raise LookupError(file.key)
        return _Header(source[file.key].shape, source[file.key].dtype)


def _no_header(file: Expected) -> _Header:
    """Of a text, nothing but that it is there."""
    file.path.stat()
    return _Header()


_HEADERS: dict[str, Callable[[Expected], _Header]] = {
    '.npy': _array_header,
    '.tif': _raster_header,
    '.h5': _hdf5_header,
}


def _compare(file: Expected, header: _Header, days: NDArray[np.int64] | None, dates: Dates | None) -> Iterator[_Fault]:
    """Compare a header with the expected one."""
    if header.shape is not None and header.dtype is not None:
        sizes = list(file.shape or header.shape)
        framed = len(header.shape) in (0, len(sizes))
        if framed and days is not None and dates is not None and header.shape[:1] != (len(days),):
            held = f'{header.shape[0]} images' if header.shape else 'no series'
            yield _Fault(file.path, 'dates', f'holds {held}, but {dates.path.name} has {len(days)} dates')
            sizes[:1] = header.shape[:1]
        fits = [want in (None, size) for want, size in zip(sizes, header.shape, strict=False)]
        if len(sizes) != len(header.shape) or not all(fits):
            wanted = ', '.join('any' if want is None else str(want) for want in sizes)
            yield _Fault(file.path, 'shape', f'has shape {header.shape}, expected ({wanted})')
        families = {'number': 'iuf', 'integer': 'iu', 'any': header.dtype.kind}
        kind, name = header.dtype.kind, header.dtype.name
        if kind not in families[file.dtype] if file.dtype in families else name != file.dtype:
            yield _Fault(file.path, 'dtype', f'holds {name}, expected {file.dtype}')
    if file.crs is not None:
        code = header.crs.to_epsg() if header.crs else None
        if header.crs is None or (code is None and file.crs_unused):
            what = 'has no CRS' if header.crs is None else 'has a CRS without a code'
            why = ', which published files lack as well and nothing needs' if file.crs_unused else ''
            yield _Fault(file.path, 'crs', f'{what}, expected {_code(file.crs)}{why}', file.crs_unused)
        elif file.crs not in (0, code):
            yield _Fault(file.path, 'crs', f'has the CRS {header.crs}, expected {_code(file.crs)}')


def _code(crs: int) -> str:
    """Format a CRS as text."""
    return f'EPSG:{crs}' if crs else 'one'


def _order(path: Path, days: NDArray[np.int64]) -> Iterator[_Fault]:
    """Whether days are in order, each once."""
    stamps = days.astype('datetime64[D]')
    back = next(((a, b) for a, b in pairwise(stamps) if b < a), None)
    if back is not None:
        yield _Fault(path, 'dates', f'is not in the order of time: {back[1]} comes after {back[0]}')
    unique, counts = np.unique(stamps, return_counts=True)
    if (counts > 1).any():
        yield _Fault(path, 'dates', f'has {unique[counts > 1][0]} {counts.max()} times, expected each date once')


def _read(part: Part, max_nan: float, observe: Callable[[str, Any], None] | None) -> Iterator[_Fault]:
    """Yield the faults of the values of a part."""
    try:
        for file in part.files:
            if file.classes is not None:
                least, most = _range(file)
                if least < file.classes[0] or most > file.classes[1]:
                    wanted = f'classes {file.classes[0]} to {file.classes[1]}'
                    yield _Fault(file.path, 'label', f'holds labels from {least} to {most}, expected {wanted}')
                    return
        sample = part.read()
        if observe is not None:
            observe(part.name, sample)
    except _DAMAGE as error:
        paths = [file.path for file in part.files] or [Path(part.name)]  # what is remote is no file
        path = next((path for path in paths if str(path) in str(error)), paths[0])
        kind = 'missing' if isinstance(error, FileNotFoundError | LookupError) else part.fault
        damaged = 'truncated or damaged: ' if kind == 'unreadable' else ''
        yield _Fault(path, kind, damaged + _without(path, error))
    else:
        if part.modality is not None:
            yield from _values(part.files[0].path, part.modality, sample, max_nan)


def _range(file: Expected) -> tuple[int, int]:
    """Least and greatest number of the channel of labels."""
    if file.path.suffix == '.npy':
        labels = np.load(file.path, mmap_mode='r')[file.channel]
    else:
        with open_raster(str(file.path)) as source:
            labels = source.read(file.channel + 1)
    return int(labels.min()), int(labels.max())


def _values(path: Path, modality: Modality, sample: Mapping[str, Tensor], max_nan: float) -> Iterator[_Fault]:
    """Whether enough of a modality was measured."""
    if modality.image_key not in sample:
        yield _Fault(path, 'empty', 'has no image at all')
        return
    image, valid = sample[modality.image_key], sample[modality.valid_key]
    share = 1 - image.isfinite().float().mean().item()
    if not valid.any():
        why = f'{share:.1%} of the pixels are NaN or nodata, and dates under snow or clouds do not count'
        yield _Fault(path, 'empty', f'has no valid image among {len(valid)}: {why}')
    elif share > max_nan:
        yield _Fault(path, 'nan', f'{share:.1%} of the pixels are NaN or nodata, expected at most {max_nan:.1%}')


def _without(path: Path, error: Exception) -> str:
    """Return the message of an error without the path, which is printed beside it."""
    text = str(error) or type(error).__name__
    return ' '.join(text.replace(str(path), '').split()).removeprefix(': ')
