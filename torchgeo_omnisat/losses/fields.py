# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Targets and loss of field boundaries, from the instance of each pixel."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .supervised import CrossEntropyDice

#: Classes of the extent, in the order of the logits.
OTHER, INTERIOR, BOUNDARY = 0, 1, 2
#: Value of the extent where it is ignored.
IGNORED = -100


class FieldTargets(NamedTuple):
    """Targets of field boundaries.

    Attributes:
        extent: 0 for pixels outside of fields, 1 for the interior and 2 for the boundary of a field, ``(B, H, W)``.
        distance: Distance to the nearest pixel outside of the field, divided by the maximum of the field; 0 outside of
            fields, ``(B, H, W)``.
    """

    extent: Tensor
    distance: Tensor


def field_targets(instances: Int[Tensor, 'b h w']) -> FieldTargets:
    """Return extent and distance of fields.

    Boundary pixels are those of a field with a pixel of another field, or of none, on one of their four sides. So both
    of two touching fields have boundary pixels. The edge of a tile is not a boundary: fields may continue there.
    Multi-task targets as in Waldner and Diakogiannis, "Deep learning on edge" (arXiv 1910.12023).

    Args:
        instances: Field of each pixel; 0 is none.
    """
    distance = edge_distance(instances)
    fields = instances > 0
    extent = torch.where(fields, torch.where(distance > 1, INTERIOR, BOUNDARY), OTHER)
    most = _maximum(_keys(instances).flatten(), distance.flatten()).view(distance.shape)
    relative = torch.where(most.isinf(), 1.0, distance / most)  # a field without an edge in the tile
    return FieldTargets(extent, torch.where(fields, relative, 0.0))


def edge_distance(instances: Int[Tensor, 'b h w']) -> Float[Tensor, 'b h w']:
    """Return the Euclidean distance in pixels to the nearest pixel of another instance; infinite if there is none.

    It equals ``scipy.ndimage.distance_transform_edt`` of every instance, for all of them at once and on any device
    (Felzenszwalb and Huttenlocher, "Distance transforms of sampled functions", 2012: first columns, then rows).
    Instance 0, no field, has distance 0. An accelerator is waited for once, for the number of shifts.

    Args:
        instances: Field of each pixel; 0 is none.
    """
    fields, width = instances > 0, instances.shape[-1]
    column = torch.minimum(_run_length(instances), _run_length(instances.flip(1)).flip(1)) ** 2
    turned = instances.mT
    row = torch.minimum(_run_length(turned), _run_length(turned.flip(1)).flip(1)).mT ** 2
    squared = torch.minimum(column, row).masked_fill(~fields, 0)
    # Farther columns cannot be nearer than the nearest edge in the same row or column.
    most = squared.max().sqrt().ceil().clamp(max=width) if squared.numel() else 0
    for shift in range(1, int(most)):
        left, right = instances[..., :-shift], instances[..., shift:]
        same, step = left == right, float(shift**2)
        from_right = torch.where(same, column[..., shift:], 0) + step
        from_left = torch.where(same, column[..., :-shift], 0) + step
        squared = torch.minimum(squared, F.pad(from_right, (0, shift), value=torch.inf))
        squared = torch.minimum(squared, F.pad(from_left, (shift, 0), value=torch.inf))
    return squared.masked_fill(~fields, 0).sqrt()


def boundaries(instances: Int[Tensor, 'b h w']) -> Bool[Tensor, 'b h w']:
    """Return a mask of the boundary pixels; see :func:`field_targets`.

    Args:
        instances: Field of each pixel; 0 is none.
    """
    found = torch.zeros_like(instances, dtype=torch.bool)
    rows, columns = instances[:, 1:] != instances[:, :-1], instances[..., 1:] != instances[..., :-1]
    found[:, 1:] |= rows
    found[:, :-1] |= rows
    found[..., 1:] |= columns
    found[..., :-1] |= columns
    return found & (instances > 0)


class FieldLoss(nn.Module):
    """Loss of field boundaries: cross-entropy and Dice of the extent, and smooth L1 of the distance inside fields.

    Without labelled pixels the loss and its gradient are 0.

    Args:
        beta: Error of the distance at which the smooth L1 loss becomes linear.
    """

    def __init__(self, beta: float = 0.1) -> None:
        super().__init__()
        self.beta = beta
        self.extent = CrossEntropyDice(IGNORED)

    def forward(
        self,
        extent: Float[Tensor, 'b 3 h w'],
        distance: Float[Tensor, 'b h w'],
        target: FieldTargets,
        labelled: Bool[Tensor, 'b h w'],
    ) -> Float[Tensor, '']:
        """Return the loss of predicted maps.

        Args:
            extent: Logits of other, interior and boundary.
            distance: Relative distance to the edge of the field, from 0 to 1.
            target: Output of :func:`field_targets`.
            labelled: Pixels to use; void is not.
        """
        inside = labelled & (target.extent != OTHER)
        each = F.smooth_l1_loss(distance.float(), target.distance, beta=self.beta, reduction='none')
        loss: Tensor = self.extent(extent, target.extent.masked_fill(~labelled, IGNORED))
        return loss + (each * inside).sum() / inside.sum().clamp(min=1)


def _maximum(keys: Int[Tensor, ' p'], values: Float[Tensor, ' p']) -> Float[Tensor, ' p']:
    """Return the maximum of the values of all pixels with the same key, without waiting for an accelerator."""
    order = values.argsort()
    order = order[keys[order].argsort(stable=True)]
    last = torch.searchsorted(keys[order], keys, right=True) - 1
    return values[order][last]


def _run_length(instances: Int[Tensor, 'b h w']) -> Float[Tensor, 'b h w']:
    """Return the distance to the nearest pixel above of another instance; infinite if there is none."""
    row = torch.arange(instances.shape[1], device=instances.device, dtype=torch.float32)[None, :, None]
    first = torch.zeros_like(instances, dtype=torch.bool)
    first[:, 1:] = instances[:, 1:] != instances[:, :-1]
    begin = torch.where(first, row, -torch.inf).cummax(1).values
    return row - begin + 1


def _keys(instances: Int[Tensor, 'b h w']) -> Int[Tensor, 'b h w']:
    """Return ids that differ between samples."""
    sample = torch.arange(len(instances), device=instances.device)[:, None, None]
    return instances.long() + sample * (instances.max().long() + 1 if instances.numel() else 1)
