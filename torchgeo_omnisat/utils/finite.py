# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Checks for NaN and infinity in weights, outputs, losses and gradients."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

#: Number of consecutive steps without a finite gradient that a float16 scaler may skip to find its scale.
SKIPPED = 25


class PendingStep(NamedTuple):
    """Optimiser step that is not checked yet, because the device may still compute it."""

    number: int
    loss: Tensor
    norm: Tensor
    rate: float


class Watch:
    """Check of the gradient norms of a training, which are equal on all ranks, so that all of them stop.

    The norm of a step is read during the next step, so that no step waits for the device.
    """

    def __init__(self) -> None:
        self.loss: Tensor | None = None
        self.pending: PendingStep | None = None
        self.skipped = 0

    def begin(self, number: int, norm: Tensor, rate: float, scaled: bool) -> None:
        """Check the previous step, and store the next one; a scaler may skip steps without a finite gradient."""
        self.check(scaled)
        self.pending = PendingStep(
            number, norm.detach() if self.loss is None else self.loss, norm.detach(), float(rate)
        )

    def check(self, scaled: bool = False) -> None:
        """Check the stored step; raise ValueError if its gradient is not finite and no scaler skips it."""
        step, self.pending = self.pending, None
        if step is None:
            return
        if step.norm.isfinite().item():
            self.skipped = 0
            return
        self.skipped += 1
        if scaled and self.skipped < SKIPPED:
            return
        raise ValueError(
            f'training is no longer finite at step {step.number}: the loss is {step.loss.item():g} and the norm of its '
            f'gradient {step.norm.item():g}, with a learning rate of {step.rate:g}. The last checkpoint is '
            'older; expected a lower lr, a longer warmup, or data without extreme values'
        )


def first_not_finite(tensors: Mapping[str, Any]) -> str | None:
    """Return the name of the first tensor with NaN or infinity; None if all are finite."""
    floating = {k: v for k, v in tensors.items() if isinstance(v, Tensor) and v.is_floating_point() and v.numel()}
    flags = {name: value.isfinite().all() for name, value in floating.items()}
    if not flags or all(stacked.all() for stacked in _by_device(flags.values())):
        return None
    return next(name for name, flag in flags.items() if not flag)


def _by_device(flags: Iterable[Tensor]) -> list[Tensor]:
    """Stack flags by device, so that each device is synchronised once."""
    groups: dict[torch.device, list[Tensor]] = {}
    for flag in flags:
        groups.setdefault(flag.device, []).append(flag)
    return [torch.stack(group) for group in groups.values()]


def refuse_weights(tensors: Mapping[str, Any], source: str) -> None:
    """Raise an error if weights have NaN or infinity."""
    name = first_not_finite(tensors)
    if name is not None:
        bad, count = int((~tensors[name].isfinite()).sum()), tensors[name].numel()
        raise ValueError(
            f'{source} has NaN or infinity in {name} ({bad} of {count} numbers): expected finite weights, such as '
            'those of an earlier checkpoint'
        )


def refuse_output(output: Tensor, batch: Mapping[str, Tensor], batch_idx: int, model: nn.Module) -> None:
    """Raise an error if the output ``(B, ...)`` has NaN or infinity, which would become class 0."""
    flags = output.detach().isfinite().flatten(1).all(1)
    if flags.all():
        return
    refuse_weights(dict(model.named_parameters()), 'the model')
    tile = int((~flags).nonzero()[0])
    place = [f'{key} {batch[key][tile].tolist()}' for key in ('bounds', 'window') if key in batch]
    raise ValueError(
        f'the model gives NaN or infinity for tile {tile} of batch {", ".join([str(batch_idx), *place])}, although its '
        'weights are finite: expected images without extreme values, or a precision of 32 bit'
    )


def refuse_loss(loss: Tensor, batch_idx: int, model: nn.Module) -> None:
    """Raise an error if the loss of an evaluation is NaN or infinite."""
    if loss.isfinite():
        return
    refuse_weights(dict(model.named_parameters()), 'the model')
    raise ValueError(f'the loss of batch {batch_idx} is {loss.item():g}, although the weights are finite')
