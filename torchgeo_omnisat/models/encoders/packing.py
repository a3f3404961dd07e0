# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Selection of the valid images of a batch, and the inverse."""

import torch
from einops import rearrange
from jaxtyping import Bool, Int
from torch import Tensor


def valid_indices(valid: Bool[Tensor, '...']) -> Int[Tensor, ' s'] | None:
    """Return the indices of the valid images of a flattened batch; ``None`` for all, without a copy.

    A compiled graph has fixed shapes: it computes all images, and invalid ones are masked.
    """
    if torch.compiler.is_compiling() or bool(valid.all()):
        return None
    return valid.flatten().nonzero().squeeze(1)


def gather_valid(x: Tensor, index: Int[Tensor, ' s'] | None) -> Tensor:
    """Return the rows of *x* with these indices."""
    return x if index is None else x[index]


def scatter_valid(x: Tensor, index: Int[Tensor, ' s'] | None, length: int) -> Tensor:
    """Invert :func:`gather_valid`: return *length* rows, with zeros for those not in *index*.

    Maps ``(S, C, H, W)`` stay in the channels-last memory format.
    """
    if index is None:
        return x
    if x.ndim == 4:
        return rearrange(
            scatter_valid(rearrange(x, 's c h w -> s (h w) c'), index, length), 'l (h w) c -> l c h w', h=x.shape[2]
        )
    return x.new_zeros(length, *x.shape[1:]).index_copy(0, index, x)


def add_up(x: Tensor, index: Int[Tensor, ' s'] | None, shape: torch.Size) -> Tensor:
    """Sum the images of each of B samples: ``(S, ...)`` to ``(B, ...)``."""
    if index is None:
        return x.unflatten(0, shape).sum(1)
    return x.new_zeros(shape[0], *x.shape[1:]).index_add(0, index // shape[1], x)
