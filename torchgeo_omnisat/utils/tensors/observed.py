# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Flags of observed pixels, and counts of what is not.

NaN, infinite and implausibly large values are not observed. A single large value would make all features of an image
NaN, because its square overflows single precision.
"""

import warnings
from collections.abc import Iterable

import torch
from torch import Tensor

from ..plurals import counted
from .devices import readable

#: Maximum absolute value of a normalised pixel, in standard deviations; digital numbers are also below it.
MAX_NORMALISED = 1e6
#: Maximum absolute value of a pixel in raw units.
MAX_RAW = 1e20


def observed(image: Tensor) -> Tensor:
    """Return flags of the values of normalised images of at most :data:`MAX_NORMALISED` in absolute value."""
    if not image.is_floating_point():
        return torch.ones_like(image, dtype=torch.bool)
    return image.abs() <= _maximum(image)


def all_observed(image: Tensor) -> bool:
    """Return whether all values are known to be observed; without a temporary tensor, unlike :func:`observed`.

    It is always False on an accelerator and in a compiled graph, where no branch depends on values.

    Args:
        image: Normalised image of any shape.
    """
    if not image.is_floating_point() or not image.numel():
        return not torch.compiler.is_compiling()
    if not readable(image):
        return False
    low, high = image.detach().aminmax()  # NaN if any value is NaN
    return bool((low >= -_maximum(image)) & (high <= _maximum(image)))


def observed_pixels(image: Tensor) -> Tensor:
    """Return flags of the pixels with an observed band, ``(..., 1, H, W)``.

    Args:
        image: Normalised images, ``(..., C, H, W)``.
    """
    if all_observed(image):
        return torch.ones_like(image[..., :1, :, :], dtype=torch.bool)
    return observed(image).any(-3, keepdim=True)


def finite(image: Tensor) -> Tensor:
    """Return flags of the values of images in raw units of at most :data:`MAX_RAW` in absolute value."""
    if not image.is_floating_point():
        return torch.ones_like(image, dtype=torch.bool)
    return image.abs() <= min(MAX_RAW, torch.finfo(image.dtype).max)


class ImplausibleCounts:
    """Number of values by modality that are infinite or exceed :data:`MAX_NORMALISED`, without NaN.

    It is accumulated on the device of the images, to avoid synchronisation in each step.
    """

    def __init__(self) -> None:
        self._counts: dict[str, Tensor] = {}

    def add(self, name: str, image: Tensor, valid: Tensor) -> None:
        """Count the implausible values of normalised images on valid dates ``(B, T)``."""
        if not image.is_floating_point() or not image.numel():
            return
        implausible = image.detach().abs() > _maximum(image)
        count = (implausible.flatten(image.ndim - 3).sum(-1).view(valid.shape) * valid).sum()
        self._counts[name] = count + self._counts.get(name, 0)

    def warn(self) -> None:
        """Warn of implausible values by modality, and reset the counts."""
        counts = {name: int(count) for name, count in self._counts.items() if int(count)}
        self._counts = {}
        if counts:
            parts = ', '.join(f'{count} of {name}' for name, count in counts.items())
            warnings.warn(
                f'{parts}: values are infinite or exceed {MAX_NORMALISED:g} standard deviations, and are treated as '
                'nodata; set the nodata value of these files, or correct them',
                stacklevel=2,
            )


class BlindCount:
    """Number of samples without any modality, of which it warns once.

    It is accumulated on the device of the flags, to avoid synchronisation in each step.
    """

    def __init__(self) -> None:
        self.warned = False
        self._counts: tuple[Tensor, int] | None = None
        self._names: Iterable[str] = ()

    def add(self, seen: Tensor, names: Iterable[str]) -> None:
        """Count the samples ``(B,)`` that have none of the modalities, and warn if the flags are on the CPU."""
        count, total = (~seen).sum(), len(seen)
        if self._counts is not None and self._counts[0].device == count.device:
            count, total = count + self._counts[0], total + self._counts[1]
        self._counts, self._names = (count, total), names
        if readable(seen):
            self.warn()

    def warn(self) -> None:
        """Warn of the counted samples, and reset the count."""
        counts, self._counts = self._counts, None
        if counts is not None and not self.warned and (blind := int(counts[0])):
            self.warned = True
            warnings.warn(
                f'{blind} of {counted(counts[1], "sample")} without any of the modalities {list(self._names)}: the '
                'output does not depend on any image (this warning is issued once)',
                stacklevel=4,
            )


def _maximum(image: Tensor) -> float:
    return min(MAX_NORMALISED, torch.finfo(image.dtype).max)
