# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Checks of arguments, with the same errors everywhere."""

from collections.abc import Collection
from typing import Any


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
