# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Checks of arguments, with the same errors everywhere."""

from collections.abc import Collection
from numbers import Integral
from pathlib import Path
from typing import Any


class EmptySplitError(ValueError):
    """Error of a split without any sample."""


def check_output_files(name: str, *paths: Path) -> None:
    """Raise ValueError for an output file whose path is that of a folder.

    Args:
        name: Argument that sets the paths.
        *paths: Output files.
    """
    for path in paths:
        if path.is_dir():
            raise ValueError(f"{name}: '{path}' is a folder, expected the name of a file, which may exist")


def check_choice(**arguments: tuple[Any, Collection[Any]]) -> None:
    """Raise ValueError for an argument that is not one of its options."""
    for name, (value, options) in arguments.items():
        if value not in options:
            raise ValueError(f'{name} is {value!r}, expected one of {list(options)}')


def check_least(least: float, **arguments: float | None) -> None:
    """Raise ValueError for an argument that is NaN or below *least*; None is allowed."""
    for name, value in arguments.items():
        if value is not None and not value >= least:
            raise ValueError(f'{name} is {value}, expected at least {least}')


def check_integer(least: int, **arguments: int | None) -> None:
    """Raise ValueError for an argument that is not an integer, or is below *least*; None is allowed."""
    for name, value in arguments.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, Integral) or value < least):
            raise ValueError(f'{name} is {value!r}, expected an integer, at least {least}')


def require_pyarrow(path: str | Path) -> None:
    """Raise ImportError if pyarrow, which reads and writes the Parquet file *path*, is not installed."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"{path} requires pyarrow: pip install 'torchgeo_omnisat[parquet]', or choose another format ({error})"
        ) from error
