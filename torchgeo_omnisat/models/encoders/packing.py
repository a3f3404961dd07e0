# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Packing: only images that are valid are computed, and land back in their places."""

import torch
from einops import rearrange
from jaxtyping import Bool, Int
from torch import Tensor


def rows(valid: Bool[Tensor, '...']) -> Int[Tensor, ' s'] | None:
    """Which images of a flattened batch to compute; ``None`` for all of them, without a copy.

    A compiled graph has fixed shapes: it computes all, and what is not valid is masked.
    """
    if torch.compiler.is_compiling() or bool(valid.all()):
        return None
    return valid.flatten().nonzero().squeeze(1)


def take(x: Tensor, index: Int[Tensor, ' s'] | None) -> Tensor:
    """The rows of *x* that *index* names."""
    return x if index is None else x[index]


def put(x: Tensor, index: Int[Tensor, ' s'] | None, length: int) -> Tensor:
    """The inverse of :func:`take`: rows back in their places, zeros elsewhere.

    Maps ``(S, C, H, W)`` keep the channels last in memory, where the convolutions left them.
    """
    if index is None:
        return x
    if x.ndim == 4:
        return rearrange(put(rearrange(x, 's c h w -> s (h w) c'), index, length), 'l (h w) c -> l c h w', h=x.shape[2])
    return x.new_zeros(length, *x.shape[1:]).index_copy(0, index, x)


def add_up(x: Tensor, index: Int[Tensor, ' s'] | None, shape: torch.Size) -> Tensor:
    """Sum the images of each of B samples: ``(S, ...)`` to ``(B, ...)``.

    Args:
        x: One row an image that was computed.
        index: Its place among the B T images.
        shape: B and T.
    """
    if index is None:
        return x.unflatten(0, shape).sum(1)
    return x.new_zeros(shape[0], *x.shape[1:]).index_add(0, index // shape[1], x)
