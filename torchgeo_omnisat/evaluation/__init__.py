# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Evaluation of subsets of modalities, degraded sensors and frozen embeddings."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .fields import FieldScores, connected_components
    from .panoptic import PanopticQuality
    from .probe import ProbeCallback

#: Public names and their modules, which are imported on first access; to be light.
_MODULES = {
    'FieldScores': '.fields',
    'PanopticQuality': '.panoptic',
    'ProbeCallback': '.probe',
    'connected_components': '.fields',
}
__all__ = ['FieldScores', 'PanopticQuality', 'ProbeCallback', 'connected_components']


def __getattr__(name: str) -> Any:
    """Import a public name on first access."""
    if name in _MODULES:
        return getattr(import_module(_MODULES[name], __name__), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
