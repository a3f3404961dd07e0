# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Observed: which pixels of a normalised image were measured.

NaN and infinity were not, and neither were numbers that no sensor measures: one of them would make all features of an
image NaN, as its square leaves single precision.
"""

import warnings

import torch
from torch import Tensor

#: Greatest absolute value of a normalised pixel, in standard deviations. Digital numbers that were not normalised
#: are below it as well.
GREATEST = 1e6
#: Greatest absolute value of a pixel in raw units.
GREATEST_RAW = 1e20


def observed(image: Tensor) -> Tensor:
    """Return flags of the numbers that were measured: not NaN, and at most :data:`GREATEST` in absolute value.

    Args:
        image: Normalised bands, of any shape.
    """
    if not image.is_floating_point():
        return torch.ones_like(image, dtype=torch.bool)
    return image.abs() <= _greatest(image)


def finite(image: Tensor) -> Tensor:
    """Return flags of the numbers in raw units that were measured: not NaN, and at most :data:`GREATEST_RAW`.

    Args:
        image: Bands in raw units, of any shape.
    """
    if not image.is_floating_point():
        return torch.ones_like(image, dtype=torch.bool)
    return image.abs() <= min(GREATEST_RAW, torch.finfo(image.dtype).max)


class ImplausibleCounts:
    """Counts of the numbers that are infinite or beyond :data:`GREATEST`, by modality; NaN does not count.

    Counts stay on the device of the images, so that no step waits for them.
    """

    def __init__(self) -> None:
        self._counts: dict[str, Tensor] = {}

    def add(self, name: str, image: Tensor, valid: Tensor) -> None:
        """Count the numbers of a batch.

        Args:
            name: The modality.
            image: Normalised bands, ``(B, C, H, W)`` or ``(B, T, C, H, W)``.
            valid: Valid dates ``(B, T)``; others do not count.
        """
        if not image.is_floating_point() or not image.numel():
            return
        strange = image.detach().abs() > _greatest(image)
        count = (strange.flatten(image.ndim - 3).sum(-1).view(valid.shape) * valid).sum()
        self._counts[name] = count + self._counts.get(name, 0)

    def warn(self) -> None:
        """Warn of what was counted, by modality, and begin anew."""
        found = {name: int(count) for name, count in self._counts.items() if int(count)}
        self._counts = {}
        if found:
            parts = ', '.join(f'{count} of {name}' for name, count in found.items())
            warnings.warn(
                f'values that are infinite or beyond {GREATEST:g} standard deviations count as not observed: {parts}. '
                'Expected values that a sensor measures: state the nodata of these files, or mend them',
                stacklevel=2,
            )


def _greatest(image: Tensor) -> float:
    """Return the bound as the type of the image can hold it."""
    return min(GREATEST, torch.finfo(image.dtype).max)
