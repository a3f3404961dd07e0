# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Geometric transforms in ground coordinates, which keep all modalities aligned."""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torchgeo.datasets.utils import Sample

from ..utils.tensors.devices import constant, readable, wide
from ..utils.tensors.observed import finite
from .base import Modalities, Params, Transform, interval, probability
from .georeference import extent, move


class GroundTransform(Transform):
    """Base class of geometric transforms, drawn once per tile and applied to all modalities, mask and instances.

    ``bounds`` and ``transform`` are updated (see :func:`.georeference.move`); ground coordinates
    are in metres, as is the GSD.
    """

    @abstractmethod
    def matrix(self, params: Params, before: tuple[float, float]) -> Tensor:
        """Return the matrix (B, 3, 3) from ground coordinates of the new tile to those of the old one.

        Ground coordinates are in metres from the upper left corner, to the right and down.

        Args:
            params: Result of :meth:`draw`.
            before: Height and width of the old tile in metres.
        """

    def moved(
        self,
        batch: Mapping[str, Tensor],
        params: Params,
        image: Callable[[Tensor], Tensor],
        mask: Callable[[Tensor], Tensor],
        after: tuple[float, float] | None = None,
        instances: Callable[[Tensor], Tensor] | None = None,
    ) -> Sample:
        """Return the batch with transformed images, mask, instances, bounds and transform."""
        before = extent(batch, self.modalities.values())
        changed = {m.image_key: image(batch[m.image_key]) for m in self.present(batch)}
        if 'mask' in batch:
            changed['mask'] = mask(batch['mask'])
        if 'instances' in batch:
            changed['instances'] = (instances or mask)(batch['instances'])
        located = next((batch[key] for key in ('bounds', 'transform') if key in batch), None)
        if located is None:
            return {**batch, **changed}
        params = {key: value.to(located.device) for key, value in params.items()}
        return {**batch, **changed, **move(batch, self.matrix(params, before), before, after or before)}

    def invalidate_empty(self, batch: Sample) -> Sample:
        """Return the batch with ``valid`` False for images without a finite pixel."""
        for modality in self.present(batch):
            image, valid = batch[modality.image_key], batch[modality.valid_key]
            shown = finite(image).flatten(2 if modality.temporal else 1).any(-1).view(len(valid), -1)
            batch[modality.valid_key] = valid & shown
        return batch


class RandomDihedral(GroundTransform):
    """Rotate tiles by multiples of 90 degrees and flip them, without interpolation.

    The eight elements of the dihedral group are equally likely, or the four that keep the shape
    of tiles that are not square. ``window`` and ``bounds`` do not change, because a tile covers
    the same ground; ``transform`` does.

    Args:
        modalities: Modalities of the batch.
        p: Probability that an element is drawn for a tile; one of them is the identity.
        same_on_batch: Whether all samples share one draw.
    """

    def __init__(self, modalities: Modalities, p: float = 1.0, same_on_batch: bool = False) -> None:
        super().__init__(modalities, same_on_batch)
        self.p = probability(p)

    def draw(self, batch: Mapping[str, Tensor]) -> Params:
        """Draw ``element`` (B,): number of counter-clockwise rotations by 90 degrees, plus 4 if flipped afterwards."""
        keys = [*(m.image_key for m in self.present(batch)), *(k for k in ('mask', 'instances') if k in batch)]
        sizes = [batch[key].shape for key in keys]
        square = all(shape[-1] == shape[-2] for shape in sizes)
        chance, which = self.random(batch, 2).unbind(-1)
        element = (which * 8).long() if square else (which * 4).long() * 2
        return {'element': torch.where(chance < self.p, element, 0)}

    def replay(self, batch: Mapping[str, Tensor], params: Params) -> Sample:
        """Rotate and flip every tile."""
        element = params['element']
        if not readable(element):
            turn = partial(_turn_by_masks, element=element)
            moved = self.moved(batch, params, turn, turn)
            return {**moved, **({'bounds': batch['bounds']} if 'bounds' in batch else {})}
        rows = {int(k): (element == k).nonzero()[:, 0] for k in element.unique().tolist()}

        def turn_groups(image: Tensor) -> Tensor:
            if len(rows) == 1:
                return _turn(image, next(iter(rows)))
            turned = torch.empty_like(image)
            for k, members in rows.items():
                turned[members] = _turn(image[members], k)
            return turned

        moved = self.moved(batch, params, turn_groups, turn_groups)
        return {**moved, **({'bounds': batch['bounds']} if 'bounds' in batch else {})}

    def matrix(self, params: Params, before: tuple[float, float]) -> Tensor:
        """Return rotations and flips about the centre of the tile."""
        turn, mirror = torch.tensor([[0.0, -1], [1, 0]]), torch.diag(torch.tensor([-1.0, 1]))
        group = [turn.matrix_power(k % 4) @ (mirror if k >= 4 else torch.eye(2)) for k in range(8)]
        element = params['element']
        linear = constant(torch.stack(group).tolist(), element.device, wide(element.device))
        return _about_middle(linear[element], before)

    @staticmethod
    def inverse(params: Params) -> Params:
        """Return the parameters of the inverse transform."""
        element = params['element']
        return {'element': torch.where(element < 4, -element % 4, element)}


class RandomGroundCrop(GroundTransform):
    """Crop tiles to a random square that is aligned with the patches.

    ``window``, the position on the output grid, is updated; tiles must not have been rotated before.

    Args:
        modalities: Modalities of the batch.
        size: Side of the crop in metres, a multiple of *patch_size*.
        patch_size: Side of a patch in metres, a whole number of pixels of every modality.
        same_on_batch: Whether all samples share one draw.

    Raises:
        ValueError: If *size* or *patch_size* is invalid, or tiles of a batch are smaller than *size*.
    """

    def __init__(
        self, modalities: Modalities, size: float = 160.0, patch_size: float = 40.0, same_on_batch: bool = False
    ) -> None:
        super().__init__(modalities, same_on_batch)
        self.size, self.patch_size = float(size), float(patch_size)
        for modality in self.modalities.values():
            modality.pixels(self.patch_size)
        self.patches = _whole(self.size, self.patch_size, 'size', f'{self.patch_size:g} m patches')

    def draw(self, batch: Mapping[str, Tensor]) -> Params:
        """Draw ``corner`` (B, 2), row and column of the upper left patch."""
        height, width = extent(batch, self.modalities.values())
        room = [math.floor(side / self.patch_size + 1e-6) - self.patches + 1 for side in (height, width)]
        if min(room) < 1:
            raise ValueError(f'size is {self.size:g} m, expected no more than the tile, {height:g} x {width:g} m')
        numbers = self.random(batch, 2)
        return {'corner': (numbers * constant(room, numbers.device)).long()}

    def replay(self, batch: Mapping[str, Tensor], params: Params) -> Sample:
        """Crop every tile."""
        row, column = params['corner'].unbind(-1)
        sample = torch.arange(len(row), device=row.device)
        height, width = extent(batch, self.modalities.values())

        def cut(image: Tensor) -> Tensor:
            step = _whole(self.patch_size, height / image.shape[-2], 'patch_size', 'pixels of the mask or an image')
            side = step * self.patches
            windows = image.flatten(1, -3) if image.ndim > 3 else image[:, None]
            windows = windows.unfold(-2, side, step).unfold(-2, side, step)
            return windows[sample, :, row, column].view(*image.shape[:-2], side, side)

        changed = self.invalidate_empty(self.moved(batch, params, cut, cut, (self.size, self.size)))
        if 'window' in batch:
            changed['window'] = self._window(batch['window'], params['corner'], (height, width))
        return changed

    def matrix(self, params: Params, before: tuple[float, float]) -> Tensor:
        """Return the translation to the corner."""
        corner = params['corner']
        dtype = wide(corner.device)
        matrix = torch.eye(3, dtype=dtype, device=corner.device).repeat(len(corner), 1, 1)
        matrix[:, :2, 2] = corner.flip(-1).to(dtype) * self.patch_size
        return matrix

    def _window(self, window: Tensor, corner: Tensor, size: tuple[float, float]) -> Tensor:
        pixels = window[:, 2:].to(wide(window.device)) / constant(size, window.device, wide(window.device))
        lengths = corner * self.patch_size * pixels, self.size * pixels
        start, side = ((length + 0.5 + 1e-6).floor() for length in lengths)  # halves are rounded up, as in half_up
        return torch.cat([window[:, :2] + start.to(window.dtype), side.to(window.dtype)], -1)


class RandomGroundAffine(GroundTransform):
    """Rotate, scale and translate tiles about their centre in ground coordinates.

    Images are interpolated bilinearly from finite pixels, the mask with the nearest neighbour.
    Pixels outside the tile are NaN in images and in a mask of continuous values, *ignore_index* in a mask
    of classes, and 0 in ``instances``. Image pixels with more than half of their weight on NaN are NaN too.

    Args:
        modalities: Modalities of the batch.
        degrees: Maximum rotation in either direction.
        scale: Minimum and maximum magnification.
        translate: Maximum translation along either axis, in metres.
        ignore_index: Value of mask pixels outside the tile; PyTorch's losses ignore -100 by default.
        p: Probability that a tile is transformed.
        same_on_batch: Whether all samples share one draw.

    Raises:
        ValueError: If an argument is invalid, or a batch has a ``window``.
    """

    def __init__(
        self,
        modalities: Modalities,
        degrees: float = 180.0,
        scale: tuple[float, float] = (0.8, 1.25),
        translate: float = 20.0,
        ignore_index: int = -100,
        p: float = 1.0,
        same_on_batch: bool = False,
    ) -> None:
        super().__init__(modalities, same_on_batch)
        self.degrees = interval((0.0, degrees), 'degrees', 0.0)[1]
        self.translate = interval((0.0, translate), 'translate', 0.0)[1]
        self.scale = interval(scale, 'scale', 1e-6)
        self.ignore_index = ignore_index
        self.p = probability(p)

    def draw(self, batch: Mapping[str, Tensor]) -> Params:
        """Draw ``applied`` (B,), ``degrees`` (B,) counter-clockwise, ``scale`` (B,), ``shift`` (B, 2) right, down."""
        chance, angle, size, right, down = self.random(batch, 5).unbind(-1)
        low, high = (math.log(side) for side in self.scale)
        return {
            'applied': chance < self.p,
            'degrees': (2 * angle - 1) * self.degrees,
            'scale': torch.exp(low + (high - low) * size),
            'shift': (2 * torch.stack([right, down], -1) - 1) * self.translate,
        }

    def replay(self, batch: Mapping[str, Tensor], params: Params) -> Sample:
        """Transform every tile; those with ``applied`` False do not change."""
        if 'window' in batch:
            raise ValueError(
                'batch has the key window, which RandomGroundAffine does not support: use RandomDihedral or '
                'RandomGroundCrop'
            )
        height, width = extent(batch, self.modalities.values())
        unit = torch.tensor([[width / 2, 0, width / 2], [0, height / 2, height / 2], [0, 0, 1]], dtype=torch.float64)
        device = params['scale'].device
        metres, inverse = (constant(side.tolist(), device, wide(device)) for side in (unit, torch.linalg.inv(unit)))
        theta = (inverse @ self.matrix(params, (height, width)) @ metres)[:, :2].float()
        applied = params['applied']

        def grid(image: Tensor) -> Tensor:
            return F.affine_grid(theta, [len(image), 1, *image.shape[-2:]], align_corners=False)

        def image(old: Tensor) -> Tensor:
            new = _sample_bilinear(old.flatten(1, -3), grid(old)).view(old.shape)
            return torch.where(applied.view(-1, *[1] * (old.ndim - 1)), new, old)

        def nearest(old: Tensor, outside: int) -> Tensor:
            return torch.where(applied[:, None, None], _sample_nearest(old, grid(old), outside), old)

        mask, instances = partial(nearest, outside=self.ignore_index), partial(nearest, outside=0)
        return self.invalidate_empty(self.moved(batch, params, image, mask, instances=instances))

    def matrix(self, params: Params, before: tuple[float, float]) -> Tensor:
        """Return the inverse of scaling, rotation and translation, in this order, about the centre."""
        dtype = wide(params['degrees'].device)
        angle = params['degrees'].to(dtype).deg2rad()
        cosine, sine = angle.cos(), angle.sin()
        turn = torch.stack([cosine, -sine, sine, cosine], -1).view(-1, 2, 2) / params['scale'].to(dtype)[:, None, None]
        matrix = _about_middle(turn, before)
        matrix[:, :2, 2] -= (turn @ params['shift'].to(dtype)[..., None])[..., 0]
        unit = torch.eye(3, dtype=matrix.dtype, device=matrix.device)
        return torch.where(params['applied'][:, None, None], matrix, unit)


def _turn(image: Tensor, element: int) -> Tensor:
    """Rotate counter-clockwise by ``element % 4`` times 90 degrees, then flip horizontally if it is 4 or more."""
    turned = image.rot90(element % 4, (-2, -1)) if element % 4 else image
    return turned.flip(-1) if element >= 4 else turned


def _turn_by_masks(image: Tensor, element: Tensor) -> Tensor:
    """Return each image after :func:`_turn` by its *element* ``(B,)``, which is not read."""
    square, shape = image.shape[-2] == image.shape[-1], (-1, *[1] * (image.ndim - 1))
    turns, flipped = element % 4, element >= 4
    # A rotation by 90 degrees is a transposition and a vertical flip, one by 180 degrees is both flips.
    if square:
        image = torch.where((turns % 2 == 1).view(shape), image.mT, image)
    image = torch.where(((turns == 1) | (turns == 2)).view(shape), image.flip(-2), image)
    return torch.where(((turns >= 2) != flipped).view(shape), image.flip(-1), image)


def _about_middle(linear: Tensor, size: tuple[float, float]) -> Tensor:
    """Return linear maps ``(B, 2, 2)`` about the centre of a tile as matrices ``(B, 3, 3)`` in ground coordinates."""
    middle = constant([size[1] / 2, size[0] / 2], linear.device, linear.dtype)
    matrix = torch.eye(3, dtype=linear.dtype, device=linear.device).repeat(len(linear), 1, 1)
    matrix[:, :2, :2] = linear
    matrix[:, :2, 2] = middle - linear @ middle
    return matrix


def _sample_bilinear(image: Tensor, grid: Tensor) -> Tensor:
    """Sample ``(B, N, H, W)`` at a grid from finite pixels; NaN outside, and where most of the weight is on NaN."""
    pixels = image.float()
    known = finite(pixels)
    value = F.grid_sample(pixels.masked_fill(~known, 0), grid, padding_mode='border', align_corners=False)
    weight = F.grid_sample(known.float(), grid, padding_mode='border', align_corners=False)
    inside = (grid.abs() <= 1).all(-1)[:, None]
    covered = inside & (weight >= 0.5)
    return torch.where(covered, value / weight, torch.nan).to(image.dtype)


def _sample_nearest(mask: Tensor, grid: Tensor, outside: int) -> Tensor:
    height, width = mask.shape[-2:]
    column = ((grid[..., 0] + 1) * width / 2).floor().long().clamp(0, width - 1)
    row = ((grid[..., 1] + 1) * height / 2).floor().long().clamp(0, height - 1)
    nearest = mask.flatten(1).gather(1, (row * width + column).flatten(1)).view(mask.shape)
    unknown = torch.nan if mask.is_floating_point() else outside
    return nearest.masked_fill(~(grid.abs() <= 1).all(-1), unknown)


def _whole(length: float, step: float, name: str, steps: str) -> int:
    count = length / step if step > 0 else 0.0
    if not math.isfinite(count) or count < 0.5 or abs(count - round(count)) > 1e-6 * max(1.0, count):
        raise ValueError(f'{name} is {length:g} m, expected a whole number of {steps}')
    return round(count)
