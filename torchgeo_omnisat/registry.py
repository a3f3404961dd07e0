# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Registry: TorchGeo's ``get_model`` and ``list_models`` know our builders."""

import sys
import warnings
from functools import partial
from importlib import import_module
from typing import Any

#: Functions of :mod:`torchgeo_omnisat.models` that build a model.
BUILDERS = ('omnisat_tiny', 'omnisat_small', 'omnisat_base', 'utae', 'dual_stream', 'late_fusion')


def register_models() -> None:
    """Add our builders to TorchGeo's registry; each is imported when it is first called.

    The registry is private, so that a TorchGeo without it leads to a warning and no more.
    A name that is taken keeps its meaning.
    """
    registry = getattr(sys.modules.get('torchgeo.models.api'), '_model', None)
    if not isinstance(registry, dict):
        warnings.warn(
            'this version of TorchGeo keeps its models elsewhere, so get_model() does not know '
            f'{", ".join(BUILDERS)}: import them from torchgeo_omnisat.models',
            stacklevel=2,
        )
        return
    for name in BUILDERS:
        registry.setdefault(name, partial(_build, name))


def _build(name: str, *args: Any, **kwargs: Any) -> Any:
    """Call the builder of that name."""
    return getattr(import_module('torchgeo_omnisat.models'), name)(*args, **kwargs)
