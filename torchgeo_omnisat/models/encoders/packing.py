# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Selection of the valid images of a batch, and the inverse."""

import torch
from einops import rearrange
from jaxtyping import Int
from torch import Tensor

#: Maximum number of features that a processor computes at once. Larger tensors leave its cache, and glibc returns
#: their pages to the system after each operation, which took half of the time.
BLOCK = 2**20


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


def images_per_block(images: Tensor, channels: int) -> int:
    """Return how many images ``(S, C, H, W)`` are computed at once.

    Args:
        images: Images.
        channels: Channels of the largest map of an image, at full resolution.

    Returns:
        All S on an accelerator and in a compiled graph; on a processor, those whose maps fit in its cache.
    """
    if images.device.type != 'cpu' or torch.compiler.is_compiling():
        return max(1, images.shape[0])
    return max(1, BLOCK // max(1, channels * images.shape[-2] * images.shape[-1]))


def split_images(x: Tensor, count: int) -> tuple[Tensor, ...]:
    """Split S images into blocks of *count*; a compiled graph with one block does not depend on S."""
    return (x,) if x.shape[0] <= count else x.split(count)


def add_up(x: Tensor, sample: Int[Tensor, ' s'] | None, shape: torch.Size) -> Tensor:
    """Sum the images of each of B samples: ``(S, ...)`` to ``(B, ...)``.

    Args:
        x: Images.
        sample: Sample of each image; ``None`` if every sample has all its T images.
        shape: B and T.
    """
    if sample is None:
        return x.unflatten(0, shape).sum(1)
    if shape[0] == 1:
        return x.sum(0, keepdim=True)
    return x.new_zeros(shape[0], *x.shape[1:]).index_add(0, sample, x)
