# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Integrity: the expected contents of the files of a sample, and the problems that are found in them.

A dataset that can be checked has ``ids``, a name for each sample, and ``parts``, which says
of one sample what its files should hold and how they are read. It is made with
``missing='check'``, so that it refuses nothing that :mod:`torchgeo_omnisat.datasets.inspection`
is to tell of.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from ..modality import Modality

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
        """Number of samples."""

    def parts(self, index: int) -> Iterator[Part]:
        """What a sample is made of."""


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
            :func:`torchgeo_omnisat.validation.values.describe`. Empty in older reports.
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
        path.write_text(json.dumps(asdict(self), indent=1) + '\n')

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what was written.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is something else.
        """
        expected = 'expected what `python -m torchgeo_omnisat check --output FILE` writes'
        try:
            content: dict[str, Any] = json.loads(path.read_text())
            known = {name: content[name] for name in cls.__dataclass_fields__ if name in content}
            return cls(**{**known, 'problems': [Problem(**problem) for problem in content['problems']]})
        except FileNotFoundError:
            raise FileNotFoundError(f'{path} does not exist, {expected}') from None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f'{path} cannot be read ({type(error).__name__}: {error}), {expected}') from error
