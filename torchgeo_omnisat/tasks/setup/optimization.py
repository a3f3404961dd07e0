# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Optimiser of tasks, and the schedule of its learning rate."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW

from ...models.encoders.bands import MISSING


def make_optimizer(module: nn.Module, lr: float, weight_decay: float, rates: Mapping[nn.Parameter, float]) -> AdamW:
    """Return AdamW without weight decay of biases, norms and the terms of missing bands.

    Args:
        module: Module whose parameters are trained.
        lr: Learning rate.
        weight_decay: Weight decay of the other parameters.
        rates: Factors of the learning rate of some parameters.
    """
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = []
    for factor in sorted({rates.get(p, 1.0) for _, p in trained} | {1.0}):
        scaled = [(name, p) for name, p in trained if rates.get(p, 1.0) == factor]
        missing = [p for name, p in scaled if _of_missing_bands(name)]
        others = [p for name, p in scaled if not _of_missing_bands(name)]
        decay = [p for p in others if p.ndim > 1]
        groups.append({'params': decay, 'weight_decay': weight_decay, 'lr': factor * lr})
        rest = [p for p in others if p.ndim <= 1] + missing
        groups.append({'params': rest, 'weight_decay': 0.0, 'lr': factor * lr})
    # In float16, (1 - 0.999) g^2 is 0 for gradients g below 5e-3. Epsilon alone then divides g, so a smaller one
    # takes steps of many times the learning rate.
    half = any(p.dtype == torch.float16 for _, p in trained)
    return AdamW(groups, lr=lr, eps=1e-2 if half else 1e-8)


def extend_optimizer_states(checkpoint: Mapping[str, Any], module: nn.Module) -> None:
    """Extend the optimiser states of a checkpoint by the terms of missing bands that it lacks."""
    saved = checkpoint.get('state_dict', {})
    trained = [name for name, p in module.named_parameters() if p.requires_grad and _of_missing_bands(name)]
    count = sum(name not in saved for name in trained)
    for state in checkpoint.get('optimizer_states', ()):
        places = [place for group in state['param_groups'] for place in group['params']]
        if saved and all(isinstance(place, int) for place in places):
            state['param_groups'][-1]['params'].extend(range(len(places), len(places) + count))


def _of_missing_bands(name: str) -> bool:
    """Return whether a parameter is a term of missing bands, which come last in the optimiser."""
    return name.split('.')[-1] == MISSING


def warmup_cosine(total: int, warmup: float) -> Callable[[int], float]:
    """Return the learning rate factor by step: a linear warm-up to 1, then half a cosine down to 0."""
    rise = max(1, round(total * warmup))

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rise) / max(1, total - rise))))

    return factor
