# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""The hook that makes TorchGeo know this package, with the standard library alone.

PyTorch calls :func:`install` at the end of ``import torch`` (entry points of the group
``torch.backends``; ``TORCH_DEVICE_BACKEND_AUTOLOAD=0`` turns that off). Nothing of ours
or TorchGeo's is imported then, which takes about a millisecond. Later, when TorchGeo
imports its registry of models or its command line, :mod:`torchgeo_omnisat.plugin` adds
our names to them.

Torch may be first imported in the middle of such a module, whose own import can be seen
no more. So the hook looks at what is there after *each* module that it watches.
"""

import sys
import warnings
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def install() -> None:
    """Watch for TorchGeo's modules from now on; never raises, as ``import torch`` would fail."""
    if not any(isinstance(finder, _Watcher) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watcher())  # type: ignore[arg-type]


class _Watcher:
    """A finder that finds nothing itself, and acts once a module has been executed."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The spec that the other finders have, made to call :meth:`_executed`."""
        if name not in ('torchgeo.main', 'torchgeo.tasks') and not name.startswith('torchgeo.models.'):
            return None
        for finder in sys.meta_path:
            find = None if finder is self else getattr(finder, 'find_spec', None)
            spec = find(name, path, target) if find else None
            if spec is not None:
                return self._watch(spec)
        return None

    def _watch(self, spec: ModuleSpec) -> ModuleSpec:
        """Let the loader of *spec* report when it is done."""
        loader: Any = spec.loader
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            self._executed(module.__name__)

        try:
            loader.exec_module = exec_module
        except AttributeError:  # a loader with slots is left alone
            pass
        return spec

    def _executed(self, name: str) -> None:
        """Fill the registry as soon as it exists, and the command line once it is being imported."""
        try:
            if hasattr(sys.modules.get('torchgeo.models.api'), '_model'):
                from .plugin import register_models

                register_models()
            if 'torchgeo.main' in sys.modules and name in ('torchgeo.main', 'torchgeo.tasks'):
                from .plugin import load

                load()
        except Exception as error:
            warnings.warn(
                f'torchgeo_omnisat could not be loaded and its names are unknown to TorchGeo, which works '
                f'without them: {type(error).__name__}: {error}',
                stacklevel=2,
            )
