# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Expected content of the files of a sample, and their problems.

A dataset that can be checked has ``ids``, a name for each sample, and ``parts``, which yields the
expected content of the files of a sample and how to read them. It is created with
``missing='check'``, so that it raises no error for problems that this module reports.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from torch import Tensor

from ...modality import Modality
from ...utils.plurals import counted
from ...utils.reading import load_json, refuse_special
from ..io.opening import open_raster

#: Kinds of problems and their descriptions.
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
    """Expected content of an array in a file.

    Args:
        path: File in ``.npy``, raster or HDF5 format.
        shape: Expected shape, None for any size. A raster with four axes is a time series, whose
            bands are ordered by date.
        dtype: Data type such as ``'int16'``, or ``'integer'``, ``'number'`` or ``'any'``.
        key: Name of the array in an HDF5 file.
        series: Whether the first axis is time.
        optional: Whether the file may be missing because no metadata state its acquisition.
        classes: Minimum and maximum class of a label channel.
        channel: Index of the label channel.
        crs: EPSG code of a raster; 0 for any CRS.
        crs_unused: Whether published files lack the CRS and no reader needs it, so that its
            absence is only a warning.
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
    """Acquisition dates of a time series.

    Args:
        path: File with the dates.
        read: Function that returns days since 1970-01-01, or raises ValueError.
        ordered: Whether dates of published files are sorted and unique. Readers also accept others.
    """

    path: Path
    read: Callable[[], NDArray[np.int64]]
    ordered: bool = True


#: Name of the part that stands for a whole sample that cannot be read.
SAMPLE = 'sample'


@dataclass(frozen=True)
class Part:
    """A modality, the mask or the label of a sample.

    Args:
        name: Name of the modality, ``'mask'``, ``'label'`` or :data:`SAMPLE`.
        files: Files of the part, images first; empty if the dataset does not name them.
        read: Function that reads the part as the dataset does.
        dates: Acquisition dates of the images.
        modality: Modality of the part; None for labels.
        fault: Kind of problem if the part cannot be read.
        absent: Whether the part is missing, which is not an error.
    """

    name: str
    files: tuple[Expected, ...]
    read: Callable[[], Any]
    dates: Dates | None = None
    modality: Modality | None = None
    fault: str = 'unreadable'
    absent: bool = False


@dataclass(frozen=True)
class Problem:
    """Problem of a dataset or a sample.

    Args:
        sample: Name of the sample; empty for a problem of the dataset.
        part: Name of the modality, ``'mask'`` or ``'label'``.
        file: Path of the file, relative to the directory of the dataset.
        kind: One of :data:`KINDS`.
        reason: Actual and expected content.
        warning: Whether the sample can be used despite the problem.
    """

    sample: str
    part: str
    file: str
    kind: str
    reason: str
    warning: bool = False


@dataclass(frozen=True)
class Report:
    """Report of the command ``check``.

    Args:
        layout: Layout of the files, an attribute of the dataset class.
        root: Directory of the dataset.
        samples: Number of checked samples by split.
        problems: Problems, including warnings.
        absent: Number of samples without an image, by modality, where this is not an error.
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
        """Problems without warnings."""
        return [problem for problem in self.problems if not problem.warning]

    @property
    def samples_at_fault(self) -> dict[str, tuple[str, ...]]:
        """Kinds of problems, without warnings, by sample."""
        kinds: dict[str, tuple[str, ...]] = {}
        for problem in self.faults:
            if problem.sample:
                kinds[problem.sample] = tuple(dict.fromkeys((*kinds.get(problem.sample, ()), problem.kind)))
        return kinds

    def count(self) -> dict[str, int]:
        """Return the number of problems of each kind, in the order of :data:`KINDS`."""
        counts = Counter(problem.kind for problem in self.faults)
        return {kind: counts[kind] for kind in KINDS if counts[kind]}

    def write(self, path: Path) -> None:
        """Write the report as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + '\n', encoding='utf-8')

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a report."""
        expected = 'expected what `python -m torchgeo_omnisat check --output FILE` writes'
        try:
            content: dict[str, Any] = load_json(path)
            known = {name: content[name] for name in cls.__dataclass_fields__ if name in content}
            return cls(**{**known, 'problems': [Problem(**problem) for problem in content['problems']]})
        except FileNotFoundError:
            raise FileNotFoundError(f'{path} does not exist, {expected}') from None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f'{path} cannot be read ({type(error).__name__}: {error}), {expected}') from error


#: Errors caused by damaged files. Other errors are bugs of this package.
_DAMAGE = (ValueError, OSError, RuntimeError, LookupError, EOFError, RasterioError)


def _fault(path: Path, kind: str, reason: str, warning: bool = False) -> Problem:
    """Return a problem without sample and part, which the caller adds."""
    return Problem('', '', str(path), kind, reason, warning)


def inspect(
    dataset: Any,
    index: int,
    max_nan: float,
    allow_missing: bool,
    observe: Callable[[str, Any], None] | None = None,
) -> tuple[list[Problem], list[str]]:
    """Return problems and absent modalities of a sample; optional images may be absent if *allow_missing*.

    *observe* is called with the name and the content of each part. Files with unexpected headers are not read further.
    """
    problems: list[Problem] = []
    absent: list[str] = []
    for whole in dataset.parts(index):
        lacking = [file for file in whole.files if allow_missing and file.optional and not file.path.exists()]
        part = replace(whole, files=tuple(file for file in whole.files if file not in lacking))
        if whole.absent or any(file in lacking for file in whole.files[:1]):
            absent.append(part.name)
            continue
        faults = list(_check_headers(part))
        if all(fault.warning for fault in faults):
            faults += _check_values(part, max_nan, observe)
        for fault in faults:
            file = below(Path(fault.file), dataset.path)
            problems.append(replace(fault, sample=dataset.ids[index], part=part.name, file=file))
    return problems, absent


def below(path: Path, root: Path) -> str:
    """Return a path relative to the directory of the dataset."""
    return str(path.relative_to(root) if path.is_relative_to(root) else path)


def _check_headers(part: Part) -> Iterator[Problem]:
    """Yield the faults of a part that are found without reading its pixels."""
    days, undated = None, None
    if part.dates is not None:
        try:
            days = part.dates.read()
        except _DAMAGE as error:
            undated = _fault(part.dates.path, 'dates', _message_without_path(part.dates.path, error))
    broken = set()
    for file in part.files:
        try:
            header = _HEADERS.get(file.path.suffix, _no_header)(file)
        except LookupError as error:
            yield _fault(file.path, 'missing', f'has no {error.args[0]!r}, expected {part.name} there')
        except FileNotFoundError:
            broken.add(file.path)
            yield _fault(file.path, 'missing', f'does not exist, expected {part.name} there')
        except _DAMAGE as error:
            broken.add(file.path)
            yield _fault(file.path, 'unreadable', f'truncated or damaged: {_message_without_path(file.path, error)}')
        else:
            yield from _compare(file, header, days if file.series else None, part.dates)
    if undated is not None and Path(undated.file) not in broken:
        yield undated
    if days is not None and part.dates is not None and part.dates.ordered:
        yield from _check_order(part.dates.path, days)


@dataclass(frozen=True)
class _Header:
    """Header of an array."""

    shape: tuple[int, ...] | None = None
    dtype: np.dtype[Any] | None = None
    crs: CRS | None = None


def _array_header(file: Expected) -> _Header:
    """Return the header of a ``.npy`` file; memory mapping fails if the file is truncated."""
    refuse_special(file.path, 'an array')
    array = np.load(file.path, mmap_mode='r')
    return _Header(array.shape, array.dtype)


def _raster_header(file: Expected) -> _Header:
    _no_header(file)
    with open_raster(str(file.path)) as source:
        shape: tuple[int, ...] = (source.count, source.height, source.width)
        bands = file.shape[1] if file.shape is not None and len(file.shape) == 4 else None
        if bands and source.count % bands == 0:
            shape = (source.count // bands, bands, *shape[1:])
        return _Header(shape, np.dtype(source.dtypes[0]), source.crs)


def _hdf5_header(file: Expected) -> _Header:
    """Return the header of an array in an HDF5 file; without a key, only check that the file exists."""
    if file.key is None:
        return _no_header(file)
    refuse_special(file.path, 'an HDF5 file')
    with h5py.File(file.path, 'r') as source:
        if not isinstance(source.get(file.key, getlink=True), h5py.HardLink):
            raise LookupError(file.key)
        return _Header(source[file.key].shape, source[file.key].dtype)


def _no_header(file: Expected) -> _Header:
    file.path.stat()
    return _Header()


_HEADERS: dict[str, Callable[[Expected], _Header]] = {
    '.npy': _array_header,
    '.tif': _raster_header,
    '.h5': _hdf5_header,
}


def _compare(file: Expected, header: _Header, days: NDArray[np.int64] | None, dates: Dates | None) -> Iterator[Problem]:
    if header.shape is not None and header.dtype is not None:
        sizes = list(file.shape or header.shape)
        framed = len(header.shape) in (0, len(sizes))
        if framed and days is not None and dates is not None and header.shape[:1] != (len(days),):
            held = counted(header.shape[0], 'image') if header.shape else 'no series'
            yield _fault(file.path, 'dates', f'holds {held}, but {dates.path.name} has {counted(len(days), "date")}')
            sizes[:1] = header.shape[:1]
        fits = [want in (None, size) for want, size in zip(sizes, header.shape, strict=False)]
        if len(sizes) != len(header.shape) or not all(fits):
            wanted = ', '.join('any' if want is None else str(want) for want in sizes)
            yield _fault(file.path, 'shape', f'has shape {header.shape}, expected ({wanted})')
        families = {'number': 'iuf', 'integer': 'iu', 'any': header.dtype.kind}
        kind, name = header.dtype.kind, header.dtype.name
        if kind not in families[file.dtype] if file.dtype in families else name != file.dtype:
            yield _fault(file.path, 'dtype', f'holds {name}, expected {file.dtype}')
    if file.crs is not None:
        code = header.crs.to_epsg() if header.crs else None
        if header.crs is None or (code is None and file.crs_unused):
            what = 'has no CRS' if header.crs is None else 'has a CRS without a code'
            why = ', which published files lack as well and nothing needs' if file.crs_unused else ''
            yield _fault(file.path, 'crs', f'{what}, expected {_code(file.crs)}{why}', file.crs_unused)
        elif file.crs not in (0, code):
            yield _fault(file.path, 'crs', f'has the CRS {header.crs}, expected {_code(file.crs)}')


def _code(crs: int) -> str:
    return f'EPSG:{crs}' if crs else 'one'


def _check_order(path: Path, days: NDArray[np.int64]) -> Iterator[Problem]:
    stamps = days.astype('datetime64[D]')
    back = next(((a, b) for a, b in pairwise(stamps) if b < a), None)
    if back is not None:
        yield _fault(path, 'dates', f'is not in the order of time: {back[1]} comes after {back[0]}')
    unique, counts = np.unique(stamps, return_counts=True)
    if (counts > 1).any():
        yield _fault(path, 'dates', f'has {unique[counts > 1][0]} {counts.max()} times, expected each date once')


def _check_values(part: Part, max_nan: float, observe: Callable[[str, Any], None] | None) -> Iterator[Problem]:
    """Yield the faults that are found by reading a part."""
    paths = [file.path for file in part.files] or [Path(part.name)]  # of datasets that do not name their files
    try:
        for file in part.files:
            if file.classes is not None:
                least, most = _label_range(file)
                if least < file.classes[0] or most > file.classes[1]:
                    wanted = f'classes {file.classes[0]} to {file.classes[1]}'
                    yield _fault(file.path, 'label', f'holds labels from {least} to {most}, expected {wanted}')
                    return
        sample = part.read()
        if observe is not None:
            observe(part.name, sample)
    except _DAMAGE as error:
        path = next((path for path in paths if str(path) in str(error)), paths[0])
        kind = 'missing' if isinstance(error, FileNotFoundError | LookupError) else part.fault
        damaged = 'truncated or damaged: ' if kind == 'unreadable' else ''
        yield _fault(path, kind, damaged + _message_without_path(path, error))
    else:
        if part.modality is not None:
            yield from _check_observed(paths[0], part.modality, sample, max_nan)


def _label_range(file: Expected) -> tuple[int, int]:
    refuse_special(file.path, 'labels')
    if file.path.suffix == '.npy':
        labels = np.load(file.path, mmap_mode='r')[file.channel]
    else:
        with open_raster(str(file.path)) as source:
            labels = source.read(file.channel + 1)
    return int(labels.min()), int(labels.max())


def _check_observed(path: Path, modality: Modality, sample: Mapping[str, Tensor], max_nan: float) -> Iterator[Problem]:
    if modality.image_key not in sample:
        yield _fault(path, 'empty', 'has no image at all')
        return
    image, valid = sample[modality.image_key], sample[modality.valid_key]
    share = 1 - image.isfinite().float().mean().item()
    if not valid.any():
        why = f'{share:.1%} of the pixels are NaN or nodata, and dates under snow or clouds do not count'
        yield _fault(path, 'empty', f'has no valid image among {len(valid)}: {why}')
    elif share > max_nan:
        yield _fault(path, 'nan', f'{share:.1%} of the pixels are NaN or nodata, expected at most {max_nan:.1%}')


def _message_without_path(path: Path, error: Exception) -> str:
    """Return the message of an error without the path, which is printed beside it."""
    text = str(error) or type(error).__name__
    return ' '.join(text.replace(str(path), '').split()).removeprefix(': ')
