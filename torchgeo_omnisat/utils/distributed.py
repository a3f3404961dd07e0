# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Processes: what the losses of one training share between its processes.

Every process makes the same calls in the same order, whatever it holds, so that none waits
for another. With a single process nothing is sent.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

#: The default group and ours beside it: DDP's messages must not come between those of a loss, and a process that
#: lacks a modality sends DDP's earlier than the others do.
_groups: dict[str, Any] = {'default': None, 'losses': None}


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def gather(x: Tensor) -> list[Tensor]:
    """The rows of every process, which may differ in number, without gradient.

    Args:
        x: Rows of this process, ``(B, ...)``; all but B is equal in every process.

    Returns:
        The rows of each process, in the order of the ranks.
    """
    if world_size() == 1:
        return [x]
    lengths = [int(n) for n in torch.cat(_all_gather(torch.tensor([len(x)], device=x.device))).tolist()]
    padded = x.new_zeros(max(lengths), *x.shape[1:])
    padded[: len(x)] = x.detach()
    if x.dtype == torch.bool:
        return [part.bool()[:n] for part, n in zip(_all_gather(padded.byte()), lengths, strict=True)]
    return [part[:n] for part, n in zip(_all_gather(padded), lengths, strict=True)]


def gather_with_gradient(x: Tensor, witness: Tensor) -> Tensor:
    """The rows of every process, one below the other; gradients of all processes come back.

    Args:
        x: Rows of this process, ``(B, ...)``.
        witness: Anything with a gradient. It gets none from here, but makes sure that this
            process takes part in the backward pass, also if *x* is a constant.

    Returns:
        All rows, in the order of the ranks.
    """
    if world_size() == 1:
        return x
    gathered: Tensor = _GatherRows.apply(x, witness)
    return gathered


def total(x: Tensor) -> Tensor:
    """The sum over all processes, without gradient."""
    x = x.detach().clone()
    if world_size() > 1:
        dist.all_reduce(x, group=_group())
    return x


def anywhere(flag: bool, device: torch.device) -> bool:
    """Whether a flag is set in any process."""
    return bool(total(torch.tensor(int(flag), device=device)))


def shared_mean(local: Tensor, count: Tensor) -> Tensor:
    """The mean over the terms of all processes, the same value in each.

    Its gradient in one process is that of its own terms times the number of processes. DDP
    averages gradients over processes, and the result is that of one process with all terms.

    Args:
        local: Sum over this process's terms, or several of them.
        count: Number of terms of all processes, likewise; without any the mean is 0.
    """
    count = count.to(local.dtype).clamp(min=1)
    mean = local * world_size() / count
    return mean if world_size() == 1 else mean + (total(local) / count - mean).detach()


class _GatherRows(Function):
    """Forward: all rows. Backward: the sum of every process's gradients of this process's rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, witness: Tensor) -> Tensor:
        parts = gather(x)
        ctx.lengths = [len(part) for part in parts]
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor, None]:
        return total(grad[0]).split(ctx.lengths)[rank()], None


def _group() -> Any:
    """The processes, as a group of our own beside the default one."""
    default = dist.group.WORLD
    if _groups['default'] is not default:
        _groups.update(default=default, losses=dist.new_group())
    return _groups['losses']


def _all_gather(x: Tensor) -> list[Tensor]:
    """Tensors of equal shape of every process."""
    parts = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(parts, x.contiguous(), group=_group())
    return parts
