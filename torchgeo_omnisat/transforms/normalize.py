# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Normalize: raw units to zero mean and unit deviation, and back."""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torchgeo.datasets.utils import Sample

from ..modality import Modality, as_modalities
from ..utils.observed import finite
from .base import refuse_tensor

#: Numbers by the name of the modality, one a band.
Statistics = Mapping[str, Tensor | Sequence[float]]

#: A band is constant if its standard deviation is below so many times the precision of its mean in float32,
ROUNDING = 4 * torch.finfo(torch.float32).eps
#: or below this, whatever its mean.
SMALLEST = 1e-20


class Normalize(nn.Module):
    """Every band less its mean, divided by its standard deviation; NaN stays NaN.

    A constant band, one whose standard deviation is 0 or lost in the rounding of its mean, becomes
    exactly 0, of which one warning names the bands. Statistics are never rounded to the precision of
    an image.

    Args:
        modalities: The modalities whose images are to be changed.
        mean: Mean of every band by modality. Without it each image is measured by
            itself: a band over all finite pixels of the valid dates of one sample.
        std: Standard deviation, in the same form.

    Raises:
        ValueError: If only one of *mean* and *std* is given, a modality is missing in
            them, the bands are not as many, or a number is not finite or negative.
    """

    #: What the standard deviation of a constant band is taken for.
    constant: ClassVar[float] = math.inf

    def __init__(
        self,
        modalities: Mapping[str, Modality] | Iterable[Modality],
        mean: Statistics | None = None,
        std: Statistics | None = None,
    ) -> None:
        super().__init__()
        self.modalities = as_modalities(modalities)
        if (mean is None) != (std is None):
            raise ValueError(f"expected both of 'mean' and 'std' or neither, got mean={mean}, std={std}")
        self.measured = mean is None
        if mean is not None and std is not None:
            for modality in self.modalities.values():
                for kind, statistics in (('mean', mean), ('std', std)):
                    self.register_buffer(f'{kind}_{modality.name}', _per_band(statistics, kind, modality))
            self._warn_constant()

    def forward(self, batch: Mapping[str, Tensor]) -> Sample:
        """Change the units of every image.

        Args:
            batch: A batch or a sample; it is not changed.

        Returns:
            A new dictionary that shares whatever is not an image of *modalities*.

        Raises:
            TypeError: If *batch* is a bare tensor.
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
        """Raw units to normalised ones, of tensors that broadcast."""
        return (image - mean) / std

    def statistics(self, modality: Modality, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of a modality, in shapes that broadcast with its image."""
        image = batch[modality.image_key]
        if self.measured:
            mean, std = _measure(image, batch[modality.valid_key], modality.temporal)
        else:
            mean, std = (
                self.get_buffer(f'{kind}_{modality.name}').to(image.device)[:, None, None] for kind in ('mean', 'std')
            )
        std = std.masked_fill(is_constant(mean, std), self.constant)
        return mean, std

    def _warn_constant(self) -> None:
        """Name the constant bands in one warning."""
        found = {}
        for name, modality in self.modalities.items():
            flags = is_constant(self.get_buffer(f'mean_{name}'), self.get_buffer(f'std_{name}')).tolist()
            found[name] = [band for band, flag in zip(modality.bands, flags, strict=True) if flag]
        if said := '; '.join(f'{name}: {", ".join(bands)}' for name, bands in found.items() if bands):
            warnings.warn(
                f'constant bands are 0 after normalisation, and tell the model nothing ({said}): expected bands '
                'whose standard deviation is above the rounding of their mean',
                stacklevel=3,
            )


class Denormalize(Normalize):
    """What :class:`Normalize` did with the same statistics, undone; a constant band becomes its mean.

    Args:
        modalities: The modalities whose images are to be changed.
        mean: Mean of every band by modality.
        std: Standard deviation, in the same form.

    Raises:
        ValueError: As :class:`Normalize`.
    """

    constant: ClassVar[float] = 0.0

    def __init__(
        self, modalities: Mapping[str, Modality] | Iterable[Modality], mean: Statistics, std: Statistics
    ) -> None:
        super().__init__(modalities, mean, std)

    def _warn_constant(self) -> None:
        """Say nothing: :class:`Normalize` does."""

    def convert(self, image: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """Normalised units to raw ones, of tensors that broadcast."""
        return image * std + mean


def is_constant(mean: Tensor, std: Tensor) -> Tensor:
    """Return flags of the bands whose standard deviation is 0, or nothing but rounding.

    Args:
        mean: Mean of each band, in raw units.
        std: Standard deviation, in the same form.
    """
    return std <= torch.clamp(ROUNDING * mean.abs(), min=SMALLEST)


def _per_band(statistics: Statistics, kind: str, modality: Modality) -> Tensor:
    """Return the statistics of one modality, or raise one error that names what is wrong."""
    if modality.name not in statistics:
        raise ValueError(f'{kind} has no entry {modality.name!r}, expected one, got {sorted(statistics)}')
    values = torch.as_tensor(statistics[modality.name], dtype=torch.float32)
    expected = f'expected {len(modality.bands)} finite numbers{", none negative" if kind == "std" else ""}'
    if (
        tuple(values.shape) != (len(modality.bands),)
        or not values.isfinite().all()
        or (kind == 'std' and values.lt(0).any())
    ):
        raise ValueError(f'{kind} of {modality.name!r} is {values.tolist()}, {expected}')
    return values


def _measure(image: Tensor, valid: Tensor, temporal: bool) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each sample's bands over its finite pixels of valid dates."""
    dims = (-4, -2, -1) if temporal else (-2, -1)
    known = finite(image) & (valid[..., None, None, None] if temporal else valid[..., None, None])
    count = known.sum(dims, keepdim=True).clamp(min=1)
    mean = torch.where(known, image, 0).sum(dims, keepdim=True) / count
    deviation = torch.where(known, image - mean, 0)
    peak = deviation.abs().amax(dims, keepdim=True).clamp(min=SMALLEST)  # squares of large values leave float32
    variance = (deviation / peak).square().sum(dims, keepdim=True) / count
    return mean, peak * variance.sqrt()
