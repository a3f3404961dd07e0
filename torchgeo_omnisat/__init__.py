# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""OmniSat for TorchGeo: multimodal satellite image time series with missing sensors."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._moved import install_finder

if TYPE_CHECKING:
    from .batch import collate
    from .modality import Modality
    from .models import OmniSat

__version__ = '0.1.0.dev0'
__all__ = ['Modality', 'OmniSat', '__version__', 'collate']

#: Module of each public name. They are imported on first access (PEP 562).
_HOMES = {'Modality': '.modality', 'OmniSat': '.models', 'collate': '.batch'}

install_finder()


def __getattr__(name: str) -> Any:
    """Import a public name on first access."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name], __name__), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    """Return the public names for completion, also those not imported yet."""
    return sorted(__all__)
