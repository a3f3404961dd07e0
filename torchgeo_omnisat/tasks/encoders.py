# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Learning rates and description of the encoders of a task."""

from collections.abc import Iterator
from typing import Any

from torch import nn


def _encoders(task: Any) -> Iterator[tuple[str, nn.Module]]:
    backbone = getattr(getattr(task, 'model', None), 'backbone', None)
    yield from getattr(backbone, 'encoders', nn.ModuleDict()).items()


def learning_rates(task: Any) -> dict[nn.Parameter, float]:
    """Return the factors of the learning rate of parameters whose encoders have a layer decay."""
    rates: dict[nn.Parameter, float] = {}
    for _, encoder in _encoders(task):
        for module in encoder.modules():
            if callable(own := getattr(module, 'learning_rates', None)):
                rates |= own()
    return rates


def describe_encoders(task: Any) -> str:
    """Return which weights the encoder of each modality has."""
    said = []
    for name, encoder in _encoders(task):
        origins = [str(module.origin) for module in encoder.modules() if getattr(module, 'origin', None) is not None]
        said.append(f'{name}: {"; ".join(origins) or "random weights"}')
    return '; '.join(said)
