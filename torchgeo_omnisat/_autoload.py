# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Import hook that registers this package in TorchGeo; it needs only the standard library.

PyTorch calls :func:`install` at the end of ``import torch`` (entry points of the group
``torch.backends``; ``TORCH_DEVICE_BACKEND_AUTOLOAD=0`` disables them). The call takes about a
millisecond and imports neither TorchGeo nor other modules of this package. When TorchGeo later imports
its registry of models or its command line, :mod:`torchgeo_omnisat.registry` and
:mod:`torchgeo_omnisat.plugin` add the names of this package.

One of these modules may itself be the first to import torch, which is too late to intercept its
own import. So the hook checks which modules exist after *each* module that it watches.
"""

import sys
import warnings
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def install() -> None:
    """Install the import hook. It never raises, because ``import torch`` would fail with it."""
    if not any(isinstance(finder, _Watcher) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watcher())


class _Watcher:
    """Finder that delegates to the other finders and is notified after a module was executed."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return the module spec of the other finders, with a loader that notifies this finder."""
        if name not in ('torchgeo.main', 'torchgeo.tasks') and not name.startswith('torchgeo.models.'):
            return None
        for finder in sys.meta_path:
            find = None if finder is self else getattr(finder, 'find_spec', None)
            spec: ModuleSpec | None = find(name, path, target) if find else None
            if spec is not None:
                self._watch(spec.loader)
                return spec
        return None

    def _watch(self, loader: Any) -> None:
        """Wrap a loader to call :meth:`_executed` after it executed a module."""
        if not hasattr(loader, 'exec_module') or not hasattr(loader, '__dict__'):
            return
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            self._executed(module.__name__)

        loader.exec_module = exec_module

    def _executed(self, name: str) -> None:
        """Register the models once the registry exists, and the command line during its import."""
        if self not in sys.meta_path:
            return
        try:
            if hasattr(sys.modules.get('torchgeo.models.api'), '_model'):
                from .registry import register_models

                register_models()
            if name in ('torchgeo.main', 'torchgeo.tasks') and 'torchgeo.main' in sys.modules:
                from .plugin import load

                load()
                sys.meta_path.remove(self)
        except Exception as error:
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            warnings.warn(
                f'torchgeo_omnisat could not be loaded, so TorchGeo runs without its models and tasks: '
                f'{type(error).__name__}: {error}',
                stacklevel=2,
            )
