# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""First layers of encoders: linear in the bands, with a learned term for those that are missing."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...utils.observed import observed

#: Last part of the name of the parameters of missing bands; checkpoints written before they existed lack them.
MISSING = 'missing'


class BandConv2d(nn.Conv2d):
    """A convolution of images of which single bands may be missing.

    A number that is not :func:`.observed`, such as NaN, is one of a missing band.

    A missing band adds nothing, so its weights have no influence there. Where other bands of the
    pixel were measured, a term is added that depends on which bands are missing and on nothing
    else: a convolution of their flags, whose weights are zero until they are trained. A pixel
    without any measured band adds nothing at all.

    Args:
        *args: Those of :class:`torch.nn.Conv2d`.
        learn: Whether there is a term; without one a missing band counts as 0, as published.
        **kwargs: Those of :class:`torch.nn.Conv2d`.
    """

    missing: nn.Parameter | None

    def __init__(self, *args: Any, learn: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_parameter(MISSING, nn.Parameter(torch.zeros_like(self.weight)) if learn else None)

    @classmethod
    def of(cls, conv: nn.Conv2d) -> 'BandConv2d':
        """Return the same convolution, with the same parameters, for images with missing bands."""
        sizes = conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation
        made = cls(*sizes, conv.groups, conv.bias is not None, conv.padding_mode, device='meta')  # draws nothing
        made.weight, made.bias, made.missing = conv.weight, conv.bias, nn.Parameter(torch.zeros_like(conv.weight))
        return made

    def forward(self, x: Tensor) -> Tensor:
        """Convolve images ``(S, C, H, W)``."""
        missing = ~observed(x)
        if _none(missing):
            return super().forward(x)
        out = super().forward(x.masked_fill(missing, 0))
        if self.missing is None:
            return out
        partial = missing & ~missing.all(1, keepdim=True)
        return out if _none(partial) else out + self._conv_forward(partial.to(x.dtype), self.missing, None)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        if self.missing is not None:
            state_dict.setdefault(prefix + MISSING, torch.zeros_like(self.missing))
        super()._load_from_state_dict(state_dict, prefix, *args)


class BandLinear(nn.Linear):
    """As :class:`BandConv2d`, a linear map of single pixels ``(..., C)``."""

    missing: nn.Parameter

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.missing = nn.Parameter(torch.zeros_like(self.weight))

    def forward(self, x: Tensor) -> Tensor:
        """Map pixels ``(..., C)``."""
        missing = ~observed(x)
        if _none(missing):
            return super().forward(x)
        out = super().forward(x.masked_fill(missing, 0))
        partial = missing & ~missing.all(-1, keepdim=True)
        return out if _none(partial) else out + nn.functional.linear(partial.to(x.dtype), self.missing)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        state_dict.setdefault(prefix + MISSING, torch.zeros_like(self.missing))
        super()._load_from_state_dict(state_dict, prefix, *args)


def add_missing(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return parameters with zeros for missing bands where they were saved before those existed.

    Args:
        state: The parameters that were saved.
        own: Those of the module that they are for.
    """
    added = {
        name: torch.zeros_like(value)
        for name, value in own.items()
        if name.split('.')[-1] == MISSING and name not in state and name.removesuffix(MISSING) + 'weight' in state
    }
    return {**state, **added}


def _none(flags: Tensor) -> bool:
    """Whether no flag is set; a compiled graph does not ask, and computes both cases."""
    return not torch.compiler.is_compiling() and not bool(flags.any())
