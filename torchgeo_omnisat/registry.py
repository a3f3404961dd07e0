# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Registration of the models of this package for TorchGeo's ``get_model`` and ``list_models``."""

import sys
import warnings
from functools import partial
from importlib import import_module
from typing import Any

#: Functions of :mod:`torchgeo_omnisat.models` that build a model.
BUILDERS = ('omnisat_tiny', 'omnisat_small', 'omnisat_base', 'utae', 'dual_stream', 'late_fusion')


def register_models() -> None:
    """Add the builders to TorchGeo's registry; each is imported on its first call.

    The registry is private, so a version of TorchGeo without it causes only a warning.
    Names that are registered already are not replaced.
    """
    registry = getattr(sys.modules.get('torchgeo.models.api'), '_model', None)
    if not isinstance(registry, dict):
        warnings.warn(
            f'get_model() of this version of TorchGeo does not support {", ".join(BUILDERS)}: import them from '
            'torchgeo_omnisat.models',
            stacklevel=2,
        )
        return
    for name in BUILDERS:
        registry.setdefault(name, partial(_call_builder, name))


def _call_builder(name: str, *args: Any, **kwargs: Any) -> Any:
    return getattr(import_module('torchgeo_omnisat.models'), name)(*args, **kwargs)
