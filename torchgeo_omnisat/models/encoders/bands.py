# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""First layers of encoders, with a learned term for missing bands."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...utils.tensors.devices import readable
from ...utils.tensors.observed import all_observed, observed

#: Last part of the name of the parameters of missing bands; checkpoints written before they existed lack them.
MISSING = 'missing'
#: Names that such checkpoints lack, and a name of the same module that they have: the parameters of missing bands, the
#: flag of Presto that the location is used, and the earlier months of the calendar of `monthly`.
_ADDED = {MISSING: 'weight', 'uses_coordinates': 'norm.weight', 'earlier': 'start'}


class BandConv2d(nn.Conv2d):
    """Convolution of images with missing bands.

    A value that is not :func:`.observed`, such as NaN, is a missing band and counts as 0. If
    other bands of the pixel are observed, the output also has a convolution of the flags of
    the missing bands, whose weights are initialised to zero. A pixel without observed bands
    contributes nothing.

    Args:
        *args: Arguments of :class:`torch.nn.Conv2d`.
        learn: Whether to add this term; the published encoders do not have it.
        **kwargs: Arguments of :class:`torch.nn.Conv2d`.
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
        if all_observed(x):
            return super().forward(x)
        missing = ~observed(x)
        known = x.masked_fill(missing, 0)
        if self.missing is None:
            return super().forward(known)
        partial = missing & ~missing.all(1, keepdim=True)
        if x.device.type == 'cpu' or self.groups > 1:
            out = super().forward(known)
            return out if _none(partial) else out + self._conv_forward(partial.to(x.dtype), self.missing, None)
        both = torch.cat([known, partial.to(x.dtype)], 1)  # one convolution instead of two and a sum
        return self._conv_forward(both, torch.cat([self.weight, self.missing], 1), self.bias)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        if self.missing is not None:
            state_dict.setdefault(prefix + MISSING, torch.zeros_like(self.missing))
        super()._load_from_state_dict(state_dict, prefix, *args)


class BandLinear(nn.Linear):
    """Linear layer of single pixels ``(..., C)`` with missing bands; see :class:`BandConv2d`."""

    missing: nn.Parameter

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.missing = nn.Parameter(torch.zeros_like(self.weight))

    def forward(self, x: Tensor) -> Tensor:
        """Map pixels ``(..., C)``."""
        if all_observed(x):
            return super().forward(x)
        missing = ~observed(x)
        out = super().forward(x.masked_fill(missing, 0))
        partial = missing & ~missing.all(-1, keepdim=True)
        return out if _none(partial) else out + nn.functional.linear(partial.to(x.dtype), self.missing)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        state_dict.setdefault(prefix + MISSING, torch.zeros_like(self.missing))
        super()._load_from_state_dict(state_dict, prefix, *args)


def add_missing(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict with zeros for parameters and flags that an old checkpoint lacks."""
    added = {}
    for name, value in own.items():
        prefix, dot, last = name.rpartition('.')
        if last in _ADDED and name not in state and prefix + dot + _ADDED[last] in state:
            added[name] = torch.zeros_like(value)
    return {**state, **added}


def _none(flags: Tensor) -> bool:
    """Return whether no flag is set; always False unless :func:`.readable`, to compute both cases."""
    return readable(flags) and not bool(flags.any())
