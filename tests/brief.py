# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""What tests of training do without: trained weights, figures, and repeated work of Lightning.

``conftest.py`` imports this module before the modules whose shapes are checked, so it imports none of them.
"""

import functools
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch

_CONNECTORS = 'lightning.pytorch.trainer.connectors'


def begin(patch: pytest.MonkeyPatch) -> None:
    """Allow random weights, draw no figures, and shorten Lightning's bookkeeping, in modules that are imported."""
    if base := sys.modules.get('torchgeo_omnisat.tasks.base'):
        patch.setattr(base.OmniSatTask, 'allow_random', True)
        patch.setattr(base.OmniSatTask, '_shown', base.OmniSatTask.show, raising=False)
        patch.setattr(base.OmniSatTask, 'show', lambda *_: None)
    if supervised := sys.modules.get('torchgeo_omnisat.tasks.supervised'):
        patch.setattr(supervised, 'write_subsets', lambda *_: None)
        patch.setattr(supervised.SupervisedTask, 'figures', 0)
    if 'lightning.pytorch' in sys.modules:
        callbacks: Any = import_module(f'{_CONNECTORS}.callback_connector')  # searches the entry points of all packages
        patch.setattr(callbacks, '_load_external_callbacks', functools.cache(callbacks._load_external_callbacks))
        results: Any = import_module(f'{_CONNECTORS}.logger_connector.result')
        for kind in (results._ResultMetric, results._ResultCollection):
            patch.setattr(kind, 'to', functools.partialmethod(_to_device, kind.to))


def _to_device(self: Any, to: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Do nothing on a CPU, where each logged metric would be copied several times to where it is."""
    return to(self, *args, **kwargs) if torch.cuda.is_initialized() else self


def draw_figures(patch: pytest.MonkeyPatch) -> None:
    """Draw the figures of validations and tests again."""
    base, supervised = (import_module(f'torchgeo_omnisat.tasks.{name}') for name in ('base', 'supervised'))
    patch.setattr(base.OmniSatTask, 'show', base.OmniSatTask._shown)
    patch.setattr(supervised, 'write_subsets', import_module('torchgeo_omnisat.evaluation.plots').write_subsets)
    patch.setattr(supervised.SupervisedTask, 'figures', 4)
