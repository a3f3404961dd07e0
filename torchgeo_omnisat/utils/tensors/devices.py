# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Differences between the CPU and accelerators: reads of values, constants, checks and float64.

An accelerator works through a queue. A host that reads a value, or copies a tensor in either direction without
``non_blocking``, waits until the queue is empty. Then the device waits for the host.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

#: Types of devices without float64.
WITHOUT_FLOAT64 = frozenset({'mps'})
#: Data type in which metrics add up errors; float64, where it exists.
WIDE = torch.float32 if torch.backends.mps.is_available() else torch.float64
#: Types of devices without asynchronous assertions.
WITHOUT_ASSERTIONS = frozenset({'mps'})


def readable(x: Tensor) -> bool:
    """Return whether the values of a tensor may decide what is computed: on the CPU, outside of a compiled graph.

    Elsewhere, both cases are computed and a mask selects.
    """
    return not torch.compiler.is_compiling() and x.device.type == 'cpu'


def constant(values: Any, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Return numbers as a tensor on a device, without waiting for it."""
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)


def wide(device: torch.device) -> torch.dtype:
    """Return the widest floating-point type of a device: float64, or float32 on devices without it."""
    return torch.float32 if device.type in WITHOUT_FLOAT64 else torch.float64


def require(holds: Tensor, message: str, error: Callable[[], Exception]) -> None:
    """Raise an error if a condition does not hold.

    An accelerator checks it asynchronously, as an assertion with the fixed *message*, because the host would have
    to wait for the values that the error names.

    Args:
        holds: Condition, a bool tensor of one element.
        message: What is expected.
        error: Function that returns the error.
    """
    if torch.compiler.is_compiling():
        return
    if holds.device.type == 'cpu' or holds.device.type in WITHOUT_ASSERTIONS:
        if not holds:
            raise error()
    else:
        torch._assert_async(holds, message)


def movable(batch: Mapping[str, Any], device: torch.device) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divide a batch into what moves to a device, and float64 tensors that a device without float64 lacks.

    The latter are ``bounds``, ``transform`` and ``coordinates``. They stay on the CPU, because float32 would round
    positions by up to half a metre.
    """
    stays = {
        key: value
        for key, value in batch.items()
        if isinstance(value, Tensor) and value.dtype == torch.float64 and wide(device) != torch.float64
    }
    return {key: value for key, value in batch.items() if key not in stays}, stays
