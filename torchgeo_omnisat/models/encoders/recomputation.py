# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Activation checkpointing by level: features are recomputed in the backward pass instead of kept.

After Chen et al., "Training Deep Nets with Sublinear Memory Cost" (arXiv 1604.06174), as implemented by PyTorch.
"""

from collections.abc import Callable
from typing import Any

import torch
from timm.models import FeatureListNet
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

#: Levels of time series that ``checkpointing=True`` recomputes.
DEFAULT_LEVELS = 2


def recomputed_levels(checkpointing: bool | int) -> int:
    """Return the number of finest levels to recompute.

    Args:
        checkpointing: The number, or True for :data:`DEFAULT_LEVELS`.

    Raises:
        ValueError: If it is neither a bool nor a number of levels.
    """
    if isinstance(checkpointing, bool):
        return DEFAULT_LEVELS if checkpointing else 0
    if not isinstance(checkpointing, int) or checkpointing < 0:
        raise ValueError(f'checkpointing is {checkpointing!r}, expected true, false or the number of finest levels')
    return checkpointing


def run[T: (Tensor, tuple[Tensor, ...])](
    function: Callable[..., T], *args: Any, recompute: bool, random: bool = False
) -> T:
    """Call a function; its intermediate results are not kept if it is recomputed.

    Args:
        function: Function of tensors.
        *args: Its arguments.
        recompute: Whether it is called again in the backward pass.
        random: Whether it draws random numbers, which have to be the same then.
    """
    if not (recompute and torch.is_grad_enabled()) or _is_transformed():
        return function(*args)
    result: T = checkpoint(function, *args, use_reentrant=False, preserve_rng_state=random)
    return result


def _is_transformed() -> bool:
    """Return whether a function of ``torch.func``, such as ``grad``, is active; none supports checkpointing."""
    if torch.compiler.is_compiling():
        return False
    functorch: Any = torch._C._functorch
    return functorch.peek_interpreter_stack() is not None


def draws(module: nn.Module) -> bool:
    """Return whether a part of a module drops values, paths or blocks."""
    parts = list(module.modules())
    of_values = any(isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0 for part in parts)
    return of_values or any(getattr(part, 'drop_prob', 0) for part in parts)  # of timm


class RecomputedStages(FeatureListNet):
    """Feature pyramid of a timm backbone whose finest stages are recomputed in the backward pass."""

    #: Number of stages.
    levels: int
    #: Whether they draw random numbers in training.
    random: bool

    @classmethod
    def of(cls, backbone: Any, levels: int) -> 'RecomputedStages':
        """Convert a backbone in place.

        Raises:
            ValueError: If timm does not build it from a sequence of stages.
        """
        if type(backbone) is not FeatureListNet:
            raise ValueError(
                f'checkpointing is {levels}, but timm does not divide this backbone into stages, expected 0 or a '
                'ResNet or ConvNeXt'
            )
        found: Any = backbone
        found.__class__, found.levels, found.random = cls, levels, draws(backbone)
        converted: RecomputedStages = found
        return converted

    def forward(self, x: Tensor) -> list[Tensor]:  # type: ignore[override]
        """Return the maps of images, fine to coarse."""
        maps: list[Tensor] = []
        stage: list[Any] = []
        random = self.training and self.random
        for name, module in self.items():
            stage.append(module)
            if name in self.return_layers:
                x = run(_apply, x, *stage, recompute=len(maps) < self.levels, random=random)
                maps.append(x)
                stage = []
        return maps


def _apply(x: Tensor, *layers: Callable[[Tensor], Tensor]) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x
