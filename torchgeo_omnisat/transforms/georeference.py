# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Extent of tiles, and their georeference after a geometric transform."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torchgeo.datasets.utils import Sample

from ..modality import Modality
from ..utils.tensors.devices import constant


def extent(batch: Mapping[str, Tensor], modalities: Iterable[Modality]) -> tuple[float, float]:
    """Return height and width of the tiles of a batch in metres, equal within half a pixel of the coarser modality."""
    found = [(m, [side * m.gsd for side in batch[m.image_key].shape[-2:]]) for m in modalities if m.image_key in batch]
    if not found:
        raise ValueError(f'keys of the batch are {sorted(batch)}, expected at least one image')
    finest, (height, width) = min(found, key=lambda pair: pair[0].gsd)
    for modality, (other_height, other_width) in found:
        if max(abs(other_height - height), abs(other_width - width)) > modality.gsd / 2:
            raise ValueError(
                f'{modality.image_key} covers {other_height:g} x {other_width:g} m and {finest.image_key} '
                f'{height:g} x {width:g} m, expected the same extent'
            )
    return height, width


def move(
    batch: Mapping[str, Tensor], matrix: Tensor, before: tuple[float, float], after: tuple[float, float]
) -> Sample:
    """Return ``bounds`` and ``transform`` of tiles after a geometric transform, if they change.

    Ground coordinates are in metres from the upper left corner of a tile, to the right and down.
    The GSD of a modality does not change, nor do the resolutions in ``bounds``: they are the size
    of a step of ``transform`` in these metres. ``transform`` holds the size of a step on the map,
    which changes with the scale. Both are needed, so a batch with one of the two gets both. Bounds
    without transform are those of a north-up tile in their middle; a transform without bounds is
    in metres.

    Args:
        batch: Batch with ``bounds`` (B, 9), ``transform`` (B, 6 or 9), both, or neither.
        matrix: ``(B, 3, 3)`` float64, from ground coordinates of the new tile to those of the old one.
        before: Height and width of the old tiles in metres.
        after: Height and width of the new tiles in metres.

    Raises:
        ValueError: If ``bounds`` or ``transform`` has another shape.
    """
    if 'transform' not in batch and 'bounds' not in batch:
        return {}
    old = _affine(batch, before)
    bounds = _checked(batch['bounds']) if 'bounds' in batch else _unknown(old)
    steps = torch.cat([bounds[:, 2:6:3].to(old), old.new_ones(len(old), 1)], -1)
    ground = old @ torch.diag_embed(1 / steps) @ matrix
    new = ground @ torch.diag_embed(steps)
    flat = new.flatten(1)
    if 'transform' in batch:
        flat = flat[:, : batch['transform'].shape[-1]].to(batch['transform'].dtype)
    return {'transform': flat, 'bounds': _box(bounds, ground, after)}


def _affine(batch: Mapping[str, Tensor], size: tuple[float, float]) -> Tensor:
    """Return the affine transforms from columns and rows to coordinates, ``(B, 3, 3)`` float64."""
    if 'transform' in batch:
        given = batch['transform'].double()
        if given.ndim != 2 or given.shape[-1] not in (6, 9):
            raise ValueError(f'transform has shape {tuple(given.shape)}, expected (B, 6) or (B, 9)')
        last = constant([[0.0, 0.0, 1.0]], given.device, given.dtype).expand(len(given), 3)
        return torch.cat([given[:, :6], last], -1).view(-1, 3, 3)
    bounds = _checked(batch['bounds']).double()
    xmin, xmax, xres, ymin, ymax, yres = bounds[:, :6].unbind(-1)
    zero, one = torch.zeros_like(xmin), torch.ones_like(xmin)
    left, top = (xmin + xmax - size[1]) / 2, (ymin + ymax + size[0]) / 2
    return torch.stack([xres, zero, left, zero, -yres, top, zero, zero, one], -1).view(-1, 3, 3)


def _unknown(affine: Tensor) -> Tensor:
    bounds = torch.full((len(affine), 9), torch.nan, dtype=affine.dtype, device=affine.device)
    bounds[:, 2:6:3] = affine[:, :2, :2].norm(dim=1)
    return bounds


def _box(bounds: Tensor, ground: Tensor, size: tuple[float, float]) -> Tensor:
    """Return bounds with the bounding boxes of tiles; *ground* maps ground coordinates to map coordinates."""
    height, width = size
    corners = [[0.0, 0, 1], [width, 0, 1], [0, height, 1], [width, height, 1]]
    x, y = (constant(corners, ground.device, ground.dtype) @ ground.transpose(1, 2))[..., :2].unbind(-1)
    changed = bounds.clone()
    changed[:, :2] = torch.stack([x.amin(-1), x.amax(-1)], -1).to(bounds.dtype)
    changed[:, 3:5] = torch.stack([y.amin(-1), y.amax(-1)], -1).to(bounds.dtype)
    return changed


def _checked(bounds: Tensor) -> Tensor:
    if bounds.ndim != 2 or bounds.shape[-1] != 9:
        raise ValueError(
            f'bounds has shape {tuple(bounds.shape)}, expected (B, 9): xmin, xmax, xres, ymin, ymax, yres, '
            'tmin, tmax, tres'
        )
    return bounds
