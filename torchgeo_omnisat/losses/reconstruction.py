# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Masked reconstruction loss: hidden patches of every modality from the fused tokens."""

import math
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..modality import Modality, as_modalities
from ..utils import distributed as processes
from ..utils.checks import check_choice, check_integer
from ..utils.tensors.dates import annual_code
from ..utils.tensors.devices import readable
from ..utils.tensors.observed import observed
from ..utils.tensors.selection import valid_indices

#: Width of the date encoding: sine and cosine of four harmonics of a year and two longer periods.
DATE_FEATURES = 12
#: Limit of targets that are not standardised, in standard deviations; clouds and corner reflectors exceed it.
LIMIT = 5.0
#: Error below which the absolute error is replaced by a parabola, in standard deviations.
SMOOTH = 0.25


class Reconstruction(NamedTuple):
    """Output of :class:`MaskedReconstruction` over the tiles of all ranks.

    Attributes:
        loss: Scalar loss with gradient.
        losses: Mean squared error of each modality, ``(M,)``; NaN without observed values.
        counts: Number of observed values of each modality, ``(M,)``.
    """

    loss: Tensor
    losses: Tensor
    counts: Tensor


def draw_hidden(
    batch_size: int,
    grid: tuple[int, int],
    ratio: float = 0.75,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Bool[Tensor, 'b n']:
    """Draw the hidden ground patches of each tile, the same number for all tiles.

    Args:
        batch_size: Number B of tiles.
        grid: Rows and columns of the ground grid, N in total.
        ratio: Fraction of the patches to hide, from 0 to 1; 0.75 in MAE (He et al.).
        generator: Random generator; defaults to PyTorch's global one.
        device: Device of the output; the draw is on that of *generator*.

    Raises:
        ValueError: If *ratio* is not from 0 to 1.
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f'ratio is {ratio}, expected a number from 0 to 1')
    count = grid[0] * grid[1]
    where = generator.device if generator is not None else device
    numbers = torch.rand(batch_size, count, generator=generator, device=where, dtype=torch.float32)
    order = numbers.argsort(dim=1).argsort(dim=1)
    return (order < number_hidden(grid, ratio)).to(device or order.device)


def number_hidden(grid: tuple[int, int], ratio: float) -> int:
    """Return the number of hidden patches of each tile; see :func:`draw_hidden`."""
    return round(ratio * grid[0] * grid[1])


class MaskedReconstruction(nn.Module):
    """Masked reconstruction loss, with a small decoder per modality.

    The inputs of the decoders are the fused tokens; for time series also the encoding of each
    valid date. Targets are standardised per patch, over observed bands, pixels and dates, as
    in He et al., "Masked Autoencoders Are Scalable Vision Learners" (arXiv 2111.06377), so a
    time series keeps its seasonal changes. Nodata, invalid dates and absent modalities are
    ignored. The loss is the mean squared error of each modality over all ranks, averaged over
    the modalities with observed hidden patches. Gradients must be averaged over ranks, as DDP does.

    Patches are those of the tokens of :class:`.OmniSat`: tiles are divided by adaptive pooling,
    so the side of a patch may be a fraction of pixels. Its target is then pooled to the next
    lower number of pixels.

    Args:
        modalities: M modalities by name or as a list; each may be a plain dictionary.
        embed_dim: Width D of the fused tokens.
        patch_size: Side of a ground patch in metres.
        width: Hidden width of a decoder.
        max_pixels: Maximum side of a target in pixels; finer images are pooled to it.
            ``None`` for the native resolution of each modality.
        max_dates: Maximum number of dates of a time series in a training step, to limit its
            cost. They are drawn from the valid dates for each tile and step. ``None`` for all
            dates, which evaluation always uses.
        standardised: Whether targets are standardised per patch. If not, they are the values of the batch,
            clipped to -5 and 5. Patches of one pixel need this: standardised, they lack their brightness.
        error: ``'squared'``, or ``'absolute'`` for the Huber loss (Huber, "Robust Estimation of a Location Parameter",
            1964), which is ``e^2 / 0.5`` for errors e below 0.25 and ``|e| - 0.125`` beyond. Clouds have large errors,
            which cannot be predicted, and dominate squared ones.

    Raises:
        ValueError: If a size is not a positive integer, *patch_size* is not positive, or *error* is unknown.
    """

    def __init__(
        self,
        modalities: Mapping[str, Modality] | Iterable[Modality | Mapping[str, Any]],
        embed_dim: int,
        patch_size: float,
        width: int = 128,
        max_pixels: int | None = None,
        max_dates: int | None = None,
        standardised: bool = True,
        error: Literal['squared', 'absolute'] = 'squared',
    ) -> None:
        super().__init__()
        check_choice(error=(error, ('squared', 'absolute')))
        self.error = error
        self.modalities = as_modalities(modalities)
        self.standardised = standardised
        check_integer(1, embed_dim=embed_dim, width=width, max_pixels=max_pixels, max_dates=max_dates)
        if not 0 < patch_size < math.inf:
            raise ValueError(f'patch_size is {patch_size}, expected a positive finite number of metres')
        self.max_dates = max_dates
        self.pixels = {
            name: min(max(1, math.floor(patch_size / m.gsd + 1e-6)), max_pixels or sys.maxsize)
            for name, m in self.modalities.items()
        }
        self.decoders = nn.ModuleDict(
            {
                name: PatchDecoder(embed_dim, width, len(m.bands), self.pixels[name], m.temporal)
                for name, m in self.modalities.items()
            }
        )

    def forward(
        self,
        fused: Float[Tensor, 'b n d'],
        batch: Mapping[str, Tensor],
        hidden: Bool[Tensor, 'b n'],
        grid: tuple[int, int],
    ) -> Float[Tensor, '']:
        """Return the loss; see :meth:`rebuild`."""
        return self.rebuild(fused, batch, hidden, grid).loss

    def rebuild(
        self,
        fused: Float[Tensor, 'b n d'],
        batch: Mapping[str, Tensor],
        hidden: Bool[Tensor, 'b n'],
        grid: tuple[int, int],
    ) -> Reconstruction:
        """Reconstruct the hidden patches and return the losses.

        Args:
            fused: One token per ground patch, encoded without the hidden patches.
            batch: Complete normalised batch; modalities may be missing.
            hidden: Hidden patches.
            grid: Rows and columns of the ground grid, N in total.

        Returns:
            Loss, 0 if no hidden patch is observed, and that of each modality.
        """
        return self.mean(*self.errors(fused, batch, hidden, grid))

    def errors(
        self,
        fused: Float[Tensor, 'b n d'],
        batch: Mapping[str, Tensor],
        hidden: Bool[Tensor, 'b n'],
        grid: tuple[int, int],
        count: int | None = None,
    ) -> tuple[Float[Tensor, ' m'], Int[Tensor, ' m']]:
        """Return the sum of the errors of each modality on this rank, and their number.

        Those of several parts of a batch add up to those of the whole; see :meth:`rebuild`. *count* is the largest
        number of hidden patches of a tile, if it is known. An accelerator does not look for it.
        """
        if tuple(hidden.shape) != tuple(fused.shape[:2]) or grid[0] * grid[1] != fused.shape[1]:
            raise ValueError(
                f'hidden has shape {tuple(hidden.shape)} and grid is {tuple(grid)}, expected one flag per token and '
                f'N patches for fused tokens (B, N) = {tuple(fused.shape[:2])}'
            )
        if count is None:
            count = int(hidden.sum(1).amax()) if readable(hidden) and hidden.numel() else hidden.shape[1]
        patches = None
        if count < hidden.shape[1]:
            patches = hidden.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :count]
            hidden, fused = (
                hidden.gather(1, patches),
                fused.gather(1, repeat(patches, 'b n -> b n d', d=fused.shape[2])),
            )
        terms = [self._errors(name, fused, batch, hidden, patches, grid) for name in self.modalities]
        errors, counts = (torch.stack(values) for values in zip(*terms, strict=True))
        return errors, counts

    def mean(self, errors: Float[Tensor, ' m'], counts: Int[Tensor, ' m']) -> Reconstruction:
        """Return the loss over all ranks, from the :meth:`errors` of this one."""
        means, everywhere = processes.shared_mean(errors, counts)
        losses = means.detach().masked_fill(everywhere == 0, torch.nan)
        return Reconstruction(means.sum() / (everywhere > 0).sum().clamp(min=1), losses, everywhere)

    def _errors(
        self,
        name: str,
        fused: Tensor,
        batch: Mapping[str, Tensor],
        hidden: Tensor,
        patches: Tensor | None,
        grid: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        """Return the sum and number of the errors of one modality; an unused decoder has zero gradient.

        *fused* and *hidden* are those of *patches* ``(B, N)``, or of all.
        """
        modality, decoder = self.modalities[name], cast(PatchDecoder, self.decoders[name])
        if modality.image_key not in batch:
            values = fused.new_zeros(0, 1, len(modality.bands) * self.pixels[name] ** 2, dtype=torch.float32)
            tile, code = torch.zeros(0, dtype=torch.int64, device=fused.device), fused.new_zeros(0, DATE_FEATURES)
            fused = fused[:, :1]
        else:
            image, dates, valid = (batch[key] for key in modality.keys)
            images = image if modality.temporal else image.unsqueeze(1)
            with torch.no_grad():
                index, code = valid_indices(valid), annual_code(dates, valid).flatten(0, 1)
                packed = images.flatten(0, 1)
                packed = packed if index is None else packed[index]
                values = _cells(packed, grid, self.pixels[name])
                place = torch.arange(len(code), device=fused.device) if index is None else index
                tile = place // valid.shape[1]
                if patches is not None:
                    values = values.gather(1, repeat(patches[tile], 's n -> s n v', v=values.shape[2]))
                # A compiled graph has all images, also those that are not valid.
                wanted = hidden[tile] & valid.flatten()[place].unsqueeze(-1)
                values = values.masked_fill(~wanted.unsqueeze(-1), torch.nan)
                values = _standardised(values, tile, len(valid)) if self.standardised else values.clamp(-LIMIT, LIMIT)
                if self.training and modality.temporal and self.max_dates is not None:
                    frames = _sample_dates(valid, self.max_dates)
                    values = _scattered(values, index, len(code))[frames.flatten()]
                    place, tile = frames.flatten(), torch.arange(len(valid), device=fused.device)
                    tile = tile.repeat_interleave(frames.shape[1], output_size=frames.numel())
                code = code[place]
        is_observed = values.isfinite()
        projected = decoder.token(fused).index_select(0, tile)  # once for all images of a tile
        rebuilt = decoder.decode(projected, code.unsqueeze(1)).to(values.dtype)
        errors = (rebuilt - values.masked_fill(~is_observed, 0)).masked_fill(~is_observed, 0)
        if self.error == 'absolute':
            total = F.smooth_l1_loss(errors, torch.zeros_like(errors), reduction='sum', beta=SMOOTH)
        else:
            total = errors.square().sum()
        return total, is_observed.sum()


class PatchDecoder(nn.Module):
    """MLP from the token of a patch, and the date of a time series, to the pixels of the patch.

    Args:
        dim: Width of a token.
        width: Hidden width.
        bands: Number of bands.
        pixels: Side of a patch in pixels.
        temporal: Whether the modality is a time series.
    """

    def __init__(self, dim: int, width: int, bands: int, pixels: int, temporal: bool) -> None:
        super().__init__()
        self.token = nn.Linear(dim, width)
        self.date = nn.Linear(DATE_FEATURES, width) if temporal else None
        self.mlp = nn.Sequential(nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, bands * pixels**2))

    def forward(self, token: Float[Tensor, '... d'], code: Float[Tensor, '... f']) -> Float[Tensor, '... v']:
        """Return the pixels, in the order of bands, rows and columns.

        Args:
            token: Token of the patch.
            code: See ``annual_code``; its shape must broadcast with that of *token*.
        """
        return self.decode(self.token(token), code)

    def decode(self, projected: Float[Tensor, '... w'], code: Float[Tensor, '... f']) -> Float[Tensor, '... v']:
        """Return the pixels from the projected token."""
        return self.mlp(projected if self.date is None else projected + self.date(code.to(self.date.weight.dtype)))


def _cells(images: Float[Tensor, 's c h w'], grid: tuple[int, int], pixels: int) -> Float[Tensor, 's n v']:
    """Return the values of the patches of images, *pixels* along a side, NaN where nothing is observed."""
    cells = _pool_observed(images.float(), (grid[0] * pixels, grid[1] * pixels))
    return rearrange(cells, 's c (r k) (q l) -> s (r q) (c k l)', k=pixels, l=pixels)


def _pool_observed(images: Float[Tensor, 's c h w'], size: tuple[int, int]) -> Float[Tensor, 's c i j']:
    """Average the observed pixels of images to *size*; NaN where there are none."""
    is_observed = observed(images)
    images = images.masked_fill(~is_observed, torch.nan if tuple(images.shape[-2:]) == size else 0)
    if tuple(images.shape[-2:]) == size:
        return images
    return F.adaptive_avg_pool2d(images, size) / F.adaptive_avg_pool2d(is_observed.to(images.dtype), size)


def _standardised(values: Float[Tensor, 's n v'], tile: Int[Tensor, ' s'], tiles: int) -> Float[Tensor, 's n v']:
    """Standardise each patch of a tile over its images and values; NaN is not counted."""
    is_observed = values.isfinite()

    def total(x: Tensor) -> Tensor:
        return x.new_zeros(tiles, x.shape[1]).index_add(0, tile, x)

    counts = total(is_observed.sum(2).to(values.dtype)).clamp(min=1)

    def mean(x: Tensor) -> Tensor:
        return (total(x.masked_fill(~is_observed, 0).sum(2)) / counts)[tile].unsqueeze(2)

    centred = values - mean(values)
    return centred / (mean(centred.square()) + 1e-6).sqrt()


def _scattered(values: Float[Tensor, 's n v'], index: Tensor | None, length: int) -> Float[Tensor, 'l n v']:
    """Return the values of all images, NaN for those that are not valid."""
    if index is None:
        return values
    return values.new_full((length, *values.shape[1:]), torch.nan).index_copy(0, index, values)


def _sample_dates(valid: Bool[Tensor, 'b t'], count: int) -> Int[Tensor, 'b k']:
    """Return the indices of random valid images among all B T; others follow if there are too few."""
    numbers = torch.rand(valid.shape, device=valid.device, dtype=torch.float32).masked_fill(~valid, 2)
    first = torch.arange(len(valid), device=valid.device).unsqueeze(1) * valid.shape[1]
    return first + numbers.argsort(dim=1)[:, :count]
