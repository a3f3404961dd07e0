# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Pooling of maps and flags to the cells of a grid."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from .devices import constant


def average_pool(x: Float[Tensor, 'b c h w'], size: tuple[int, int]) -> Float[Tensor, 'b c i j']:
    """Average a map over the cells of a grid, as adaptive average pooling.

    The gradient of adaptive pooling is not deterministic on CUDA. It is not used where the sizes divide, nor with
    ``torch.use_deterministic_algorithms``.
    """
    (height, width), (rows, columns) = x.shape[-2:], size
    if height % rows == 0 and width % columns == 0:
        return F.avg_pool2d(x, (height // rows, width // columns))
    if not torch.are_deterministic_algorithms_enabled():
        return F.adaptive_avg_pool2d(x, size)
    with torch.autocast(x.device.type, enabled=False):
        vertical, horizontal = (_weights(*sides, x) for sides in ((height, rows), (width, columns)))
        return torch.einsum('ih,bchw,jw->bcij', vertical, x, horizontal)


def any_pool(seen: Bool[Tensor, 'b c h w'], size: tuple[int, int]) -> Bool[Tensor, 'b c i j']:
    """Return the cells with a pixel that is set; ONNX has no adaptive maximum of sizes that do not divide."""
    return seen if seen.shape[-2:] == size else average_pool(seen.float(), size) > 0


def _weights(side: int, cells: int, like: Tensor) -> Float[Tensor, 'i h']:
    """Return the weight of each pixel in each cell of adaptive average pooling."""
    rows = []
    for cell in range(cells):
        start, stop = cell * side // cells, -(-(cell + 1) * side // cells)
        rows.append([1 / (stop - start) if start <= pixel < stop else 0.0 for pixel in range(side)])
    return constant(rows, like.device, like.dtype)
