# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Evaluation of subsets of modalities, degraded sensors and frozen embeddings."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .probe import ProbeCallback

__all__ = ['ProbeCallback']


def __getattr__(name: str) -> Any:
    """Import the callback on first access; tasks need the other modules, but not scikit-learn."""
    if name in __all__:
        return getattr(import_module('.probe', __name__), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
