# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""The ground of a tile: how large it is, and where it lies after it was moved."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torchgeo.datasets.utils import Sample

from ..modality import Modality


def extent(batch: Mapping[str, Tensor], modalities: Iterable[Modality]) -> tuple[float, float]:
    """Height and width of the tiles of a batch, in metres.

    Raises:
        ValueError: If the batch has no image, or two modalities differ by more than half
            a pixel of the coarser one.
    """
    found = [(m, [side * m.gsd for side in batch[m.image_key].shape[-2:]]) for m in modalities if m.image_key in batch]
    if not found:
        raise ValueError(f'the batch holds {sorted(batch)}, expected an image that says how large its tiles are')
    finest, (height, width) = min(found, key=lambda pair: pair[0].gsd)
    for modality, (other_height, other_width) in found:
        if max(abs(other_height - height), abs(other_width - width)) > modality.gsd / 2:
            raise ValueError(
                f'{modality.image_key} covers {other_height:g} x {other_width:g} m and {finest.image_key} '
                f'{height:g} x {width:g} m, expected images of the same ground'
            )
    return height, width


def move(
    batch: Mapping[str, Tensor], matrix: Tensor, before: tuple[float, float], after: tuple[float, float]
) -> Sample:
    """``bounds`` and ``transform`` of tiles that show another ground than they did.

    The ground is in metres from the upper left corner of a tile, to the right and down.
    ``bounds`` does not say which way a tile is turned, so a batch with bounds alone gets a
    ``transform`` too, of tiles that lie along the axes in the middle of their bounds.

    Args:
        batch: A batch, with ``bounds`` (B, 9), ``transform`` (B, 6 or 9), both, or neither.
        matrix: ``(B, 3, 3)`` float64, from the ground of the new tile to that of the old one.
        before: Height and width of the old tiles.
        after: Height and width of the new tiles.

    Returns:
        The keys that change.

    Raises:
        ValueError: If one of them does not have that shape.
    """
    if 'transform' not in batch and 'bounds' not in batch:
        return {}
    old = _affine(batch, before)
    pixel = old[:, :2, :2].norm(dim=1)  # metres a column and a row
    scale = torch.diag_embed(torch.cat([pixel, torch.ones_like(pixel[:, :1])], -1))
    new = old @ torch.linalg.inv(scale) @ matrix @ scale
    columns = 9 if 'transform' not in batch else batch['transform'].shape[-1]
    flat = new.flatten(1)[:, :columns]
    changed: Sample = {'transform': flat.to(batch['transform'].dtype) if 'transform' in batch else flat}
    if 'bounds' in batch:
        changed['bounds'] = _bounds(batch['bounds'], new, pixel, after)
    return changed


def _affine(batch: Mapping[str, Tensor], size: tuple[float, float]) -> Tensor:
    """From columns and rows to coordinates, ``(B, 3, 3)`` float64."""
    if 'transform' in batch:
        given = batch['transform'].double()
        if given.ndim != 2 or given.shape[-1] not in (6, 9):
            raise ValueError(f'transform has shape {tuple(given.shape)}, expected (B, 6) or (B, 9), an affine')
        last = torch.tensor([[0.0, 0.0, 1.0]], dtype=given.dtype, device=given.device).expand(len(given), 3)
        return torch.cat([given[:, :6], last], -1).view(-1, 3, 3)
    bounds = _checked(batch['bounds']).double()
    xmin, xmax, xres, ymin, ymax, yres = bounds[:, :6].unbind(-1)
    zero, one = torch.zeros_like(xmin), torch.ones_like(xmin)
    left, top = (xmin + xmax - size[1]) / 2, (ymin + ymax + size[0]) / 2
    return torch.stack([xres, zero, left, zero, -yres, top, zero, zero, one], -1).view(-1, 3, 3)


def _bounds(bounds: Tensor, affine: Tensor, pixel: Tensor, size: tuple[float, float]) -> Tensor:
    """The box around the new tile; its pixels grow as those of the affine do."""
    height, width = size
    corners = torch.tensor([[0, 0, 1], [width, 0, 1], [0, height, 1], [width, height, 1]], dtype=torch.float64)
    corners = corners.to(bounds.device) / torch.cat([pixel, torch.ones_like(pixel[:, :1])], -1)[:, None]
    x, y = (corners @ affine.transpose(1, 2))[..., :2].unbind(-1)
    growth = (affine[:, :2, :2].norm(dim=1) / pixel).to(bounds.dtype)
    old = _checked(bounds)
    box = (x.amin(-1), x.amax(-1), old[:, 2] * growth[:, 0], y.amin(-1), y.amax(-1), old[:, 5] * growth[:, 1])
    return torch.cat([torch.stack([side.to(bounds.dtype) for side in box], -1), old[:, 6:]], -1)


def _checked(bounds: Tensor) -> Tensor:
    """TorchGeo's nine numbers a sample, or an error."""
    if bounds.ndim != 2 or bounds.shape[-1] != 9:
        raise ValueError(
            f'bounds has shape {tuple(bounds.shape)}, expected (B, 9): xmin, xmax, xres, ymin, ymax, yres, '
            'tmin, tmax, tres'
        )
    return bounds
