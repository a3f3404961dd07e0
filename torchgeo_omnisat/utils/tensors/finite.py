# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Checks for NaN and infinity in weights, outputs, losses and gradients."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .devices import readable

#: Number of consecutive steps without a finite gradient that a float16 scaler may skip to find its scale.
SKIPPED = 25
#: Number of steps after which an accelerator is asked whether their gradients were finite.
EVERY = 50


class PendingStep(NamedTuple):
    """Optimiser step that is not checked yet, because the device may still compute it."""

    number: int
    loss: Tensor
    norm: Tensor
    rate: float


class Watch:
    """Check of the gradient norms of a training, which are equal on all ranks, so that all of them stop.

    On the CPU, the norm of a step is read during the next step. An accelerator keeps the first step that fails, and
    is read after :data:`EVERY` steps, because each reading waits for the device.
    """

    def __init__(self) -> None:
        self.loss: Tensor | None = None
        self.pending: PendingStep | None = None
        self.steps = 0
        #: Consecutive steps without a finite gradient, and number, loss, norm and rate of the first that fails or -1.
        self.skipped: Tensor | None = None
        self.failed: Tensor | None = None

    def begin(self, number: int, norm: Tensor, rate: float, scaled: bool) -> None:
        """Check the previous step, and store the next one; a scaler may skip steps without a finite gradient."""
        self._settle(scaled)
        self.steps += 1
        norm = norm.detach()
        norm = norm.full_tensor() if hasattr(norm, 'full_tensor') else norm  # of a sharded model
        if readable(norm) or self.steps % EVERY == 0:
            self._raise()
        self.pending = PendingStep(number, norm if self.loss is None else self.loss, norm, float(rate))

    def check(self, scaled: bool = False) -> None:
        """Check all steps; raise ValueError if a gradient is not finite and no scaler skips the step."""
        self._settle(scaled)
        self._raise()

    def _settle(self, scaled: bool) -> None:
        """Count the stored step."""
        step, self.pending = self.pending, None
        if step is None:
            return
        if self.skipped is None or self.failed is None:
            self.skipped = torch.zeros_like(step.norm, dtype=torch.int32)
            self.failed = torch.full((4,), -1.0, device=step.norm.device)
        self.skipped = torch.where(step.norm.isfinite(), 0, self.skipped + 1)
        known = torch.full((), float(step.number)), step.loss, step.norm, torch.full((), step.rate)
        values = torch.stack([x.reshape(()).to(self.failed, non_blocking=True) for x in known])
        fails = (self.skipped >= (SKIPPED if scaled else 1)) & (self.failed[0] < 0)
        self.failed = torch.where(fails, values, self.failed)

    def _raise(self) -> None:
        if self.failed is None:
            return
        number, loss, norm, rate = self.failed.tolist()
        if number >= 0:
            raise ValueError(
                f'training is no longer finite at step {number:.0f}: the loss is {loss:g} and the norm of its '
                f'gradient {norm:g}, with a learning rate of {rate:g}. The last checkpoint is older; expected a lower '
                'lr, a longer warmup, or data without extreme values'
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
