# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Normalisation to zero mean and unit standard deviation, and its inverse."""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torchgeo.datasets.utils import Sample

from ..modality import Modality, as_modalities
from ..utils.plurals import counted
from ..utils.tensors.observed import finite
from .base import Modalities, refuse_tensor

#: One value per band, by name of the modality.
BandValues = Mapping[str, Tensor | Sequence[float]]

#: Maximum standard deviation of a constant band, relative to its absolute mean (float32 rounding).
CONSTANT_RTOL = 4 * torch.finfo(torch.float32).eps
#: Maximum standard deviation of a constant band, regardless of its mean.
CONSTANT_ATOL = 1e-20


class Normalize(nn.Module):
    """Subtract the mean of each band and divide by its standard deviation; NaN stays NaN.

    A band is constant if its standard deviation is 0, or below the rounding error of its mean. It
    becomes exactly 0, and one warning names all such bands. Statistics keep their precision if
    that of images is lower.

    Args:
        modalities: Modalities to normalise.
        mean: Mean of every band by modality. By default, statistics are computed for each sample and
            band, over the finite pixels of its valid dates.
        std: Standard deviation, in the same form.

    Raises:
        ValueError: If only one of *mean* and *std* is given, a modality is missing in them, the number
            of bands differs, a value is not finite, or a standard deviation is negative.
    """

    #: Replaces the standard deviation of a constant band.
    constant: ClassVar[float] = math.inf

    def __init__(self, modalities: Modalities, mean: BandValues | None = None, std: BandValues | None = None) -> None:
        super().__init__()
        self.modalities = as_modalities(modalities)
        if (mean is None) != (std is None):
            raise ValueError(f'got only {"std" if mean is None else "mean"}, expected both mean and std, or neither')
        self.measured = mean is None
        if mean is not None and std is not None:
            for modality in self.modalities.values():
                for kind, statistics in (('mean', mean), ('std', std)):
                    self.register_buffer(f'{kind}_{modality.name}', _per_band(statistics, kind, modality))
            self._warn_constant()

    def forward(self, batch: Mapping[str, Tensor]) -> Sample:
        """Normalise every image; the result shares all tensors but the images of *modalities*.

        Args:
            batch: Batch or sample; it is not changed.

        Raises:
            TypeError: If *batch* is a tensor.
        """
        refuse_tensor(self, batch)
        changed = {}
        for modality in self.modalities.values():
            if modality.image_key in batch:
                mean, std = self.statistics(modality, batch)
                image = batch[modality.image_key]
                changed[modality.image_key] = self.convert(image, mean, std).to(image.dtype)
        return {**batch, **changed}

    def convert(self, image: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """Normalise raw values; the statistics must broadcast with the image."""
        return (image - mean) / std

    def statistics(self, modality: Modality, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of a modality, in shapes that broadcast with its image."""
        image = batch[modality.image_key]
        if self.measured:
            mean, std = _measure(image, batch[modality.valid_key], modality.temporal)
        else:
            if self.get_buffer(f'mean_{modality.name}').device != image.device:
                self.to(image.device)  # once, instead of in each step
            mean, std = (self.get_buffer(f'{kind}_{modality.name}')[:, None, None] for kind in ('mean', 'std'))
        std = std.masked_fill(is_constant(mean, std), self.constant)
        return mean, std

    def _warn_constant(self) -> None:
        constant = {}
        for name, modality in self.modalities.items():
            flags = is_constant(self.get_buffer(f'mean_{name}'), self.get_buffer(f'std_{name}')).tolist()
            constant[name] = [band for band, flag in zip(modality.bands, flags, strict=True) if flag]
        if listed := '; '.join(f'{name}: {", ".join(bands)}' for name, bands in constant.items() if bands):
            warnings.warn(
                f'bands with a standard deviation of 0 carry no information and are normalised to 0: {listed}',
                stacklevel=3,
            )


class Denormalize(Normalize):
    """Invert :class:`Normalize` with the same statistics; a constant band becomes its mean.

    Args:
        modalities: Modalities to denormalise.
        mean: Mean of every band by modality.
        std: Standard deviation, in the same form.
    """

    constant: ClassVar[float] = 0.0

    def __init__(self, modalities: Modalities, mean: BandValues, std: BandValues) -> None:
        super().__init__(modalities, mean, std)

    def _warn_constant(self) -> None:
        """Do not warn, because :class:`Normalize` does."""

    def convert(self, image: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """Denormalise values; the statistics must broadcast with the image."""
        return image * std + mean


def is_constant(mean: Tensor, std: Tensor) -> Tensor:
    """Return flags of bands whose standard deviation is 0 or below the rounding error of the mean.

    Args:
        mean: Mean of each band, in raw units.
        std: Standard deviation, in the same form.
    """
    return std <= torch.clamp(CONSTANT_RTOL * mean.abs(), min=CONSTANT_ATOL)


def _per_band(statistics: BandValues, kind: str, modality: Modality) -> Tensor:
    if modality.name not in statistics:
        raise ValueError(f'{kind} has the modalities {sorted(statistics)}, expected {modality.name!r} too')
    values = torch.as_tensor(statistics[modality.name], dtype=torch.float32)
    expected = f'expected {counted(len(modality.bands), "finite number")}{" of at least 0" if kind == "std" else ""}'
    if (
        tuple(values.shape) != (len(modality.bands),)
        or not values.isfinite().all()
        or (kind == 'std' and values.lt(0).any())
    ):
        raise ValueError(f'{kind} of {modality.name!r} is {values.tolist()}, {expected}')
    return values


def _measure(image: Tensor, valid: Tensor, temporal: bool) -> tuple[Tensor, Tensor]:
    dims = (-4, -2, -1) if temporal else (-2, -1)
    known = finite(image) & (valid[..., None, None, None] if temporal else valid[..., None, None])
    count = known.sum(dims, keepdim=True).clamp(min=1)
    mean = torch.where(known, image, 0).sum(dims, keepdim=True) / count
    deviation = torch.where(known, image - mean, 0)
    peak = deviation.abs().amax(dims, keepdim=True).clamp(min=CONSTANT_ATOL)  # squares of large values overflow float32
    variance = (deviation / peak).square().sum(dims, keepdim=True) / count
    return mean, peak * variance.sqrt()
