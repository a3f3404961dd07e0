# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Teacher of self-distillation: an exponential moving average of the student."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from ...evaluation.probe import evaluating
from ...models import OmniSat


class Teacher(nn.Module):
    """Exponential moving average of a backbone and its heads (Tarvainen and Valpola, arXiv 1703.01780).

    Weights are updated as ``teacher <- decay teacher + (1 - decay) student``, and buffers are copied. The teacher has
    no gradient, so the optimiser ignores it, and is evaluated in evaluation mode. It is a part of the state dict, so
    that training can be resumed. :func:`.load_backbone` loads the student, not the teacher.

    The steps of the average are smaller than the resolution of half precision. For weights in half precision, as of
    ``bf16-true``, the average is also kept in single precision; a resumed training starts it from the weights.

    Args:
        backbone: Backbone of the student, which is copied.
        heads: Heads of the student, which are copied.
        decay: Decay of the average.
    """

    def __init__(self, backbone: OmniSat, heads: nn.ModuleDict, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.backbone, self.heads = deepcopy(backbone), deepcopy(heads)
        self.requires_grad_(False)
        #: Averages in single precision of weights in half precision.
        self._averages: dict[Tensor, Tensor] = {}
        self.register_load_state_dict_post_hook(_forget)

    @torch.no_grad()
    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the fused tokens ``(B, N, D)`` of all modalities of a batch, in evaluation mode."""
        with evaluating(self.backbone):
            fused: Tensor = self.backbone(batch).fused
        return fused

    @torch.no_grad()
    def update(self, backbone: nn.Module, heads: nn.Module) -> None:
        """Move the weights towards those of the student, after each step of the optimiser."""
        for own, theirs in ((self.backbone, backbone), (self.heads, heads)):
            for weight, other in zip(own.parameters(), theirs.parameters(), strict=True):
                average = self._average(weight)
                average.lerp_(other.detach().to(average.dtype), 1 - self.decay)
                if average is not weight:
                    weight.copy_(average)
            for buffer, copied in zip(own.buffers(), theirs.buffers(), strict=True):
                buffer.copy_(copied)

    def _average(self, weight: Tensor) -> Tensor:
        if weight.dtype not in (torch.float16, torch.bfloat16):
            return weight
        if weight not in self._averages:
            self._averages[weight] = weight.float()
        return self._averages[weight]

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._averages.clear()  # the weights move to another device or type
        return super()._apply(*args, **kwargs)


def _forget(module: nn.Module, *_: Any) -> None:
    teacher: Any = module
    teacher._averages.clear()
