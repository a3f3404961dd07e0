# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Collectives of the losses.

They use the default process group. Every rank calls them in the forward pass and in the same order, regardless of
its modalities. The backward pass does not communicate, so it cannot interleave with the collectives of DDP or FSDP;
``torch.distributed.nn.functional.all_gather`` communicates there, and would fail
tests/utils/test_distributed.py::test_collectives_are_few_and_the_same_on_every_rank.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from .tensors.devices import constant


def world_size() -> int:
    """Return the number of ranks."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the rank of this process."""
    return dist.get_rank() if world_size() > 1 else 0


def own_rows(counts: Sequence[int]) -> slice:
    """Return the slice of this rank in the rows of all ranks."""
    start = sum(counts[: rank()])
    return slice(start, start + counts[rank()])


def gather_numbers(*numbers: int, device: torch.device) -> list[list[int]]:
    """Gather integers of all ranks, the same number on each, in one collective.

    An accelerator is waited for once, unless there is a single rank.
    """
    if world_size() == 1:
        return [list(numbers)]
    table: list[list[int]] = torch.stack(_all_gather(constant(numbers, device))).tolist()
    return table


def gather(x: Tensor, counts: Sequence[int] | None = None) -> list[Tensor]:
    """Gather the rows ``(B, ...)`` of each rank, in the order of the ranks, without gradient."""
    if world_size() == 1:
        return [x.detach()]
    if counts is None:
        counts = [row[0] for row in gather_numbers(len(x), device=x.device)]
    padded = x.new_zeros(max(counts), *x.shape[1:])
    padded[: len(x)] = x.detach()
    return [part[:count] for part, count in zip(_all_gather(padded), counts, strict=True)]


def gather_flagged(values: Tensor, flags: Tensor, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return values ``(G, ..., D)`` and their flags ``(G, ...)`` of all ranks, in one exchange."""
    rows = torch.cat(gather(torch.cat([values, flags.unsqueeze(-1).to(values.dtype)], -1), counts))
    return rows[..., :-1], rows[..., -1] > 0.5


def gather_with_gradient(x: Tensor, counts: Sequence[int]) -> Tensor:
    """Gather and concatenate the rows of all ranks, for a loss that every rank computes completely.

    The gradient of this rank's rows is multiplied by the world size, because DDP and FSDP average gradients over ranks.
    """
    if world_size() == 1:
        return x
    gathered: Tensor = _Gather.apply(x, counts)
    return gathered


def total(x: Tensor) -> Tensor:
    """Return the sum over all ranks, without gradient."""
    x = x.detach().clone()
    if world_size() > 1:
        dist.all_reduce(x)
    return x


def shared_mean(local: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean over the terms of all ranks and their number, in one collective.

    The gradient of this rank's terms, of which *local* is the sum, is multiplied by the world size, as in
    :func:`gather_with_gradient`. The mean of no terms is 0.
    """
    if world_size() == 1:
        return local / count.clamp(min=1), count
    sums, counts = total(torch.stack([local.detach().double(), count.double()]))
    everywhere = counts.clamp(min=1)
    mean = local * world_size() / everywhere.to(local.dtype)
    return mean + ((sums / everywhere).to(mean.dtype) - mean).detach(), counts.to(count.dtype)


class _Gather(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: Sequence[int]) -> Tensor:
        ctx.own = own_rows(counts)
        return torch.cat(gather(x, counts))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor, None]:
        return grad[0][ctx.own] * world_size(), None


def _all_gather(x: Tensor) -> list[Tensor]:
    parts = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(parts, x.contiguous())
    return parts
