# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Encoding: probabilities and what was seen become the bands of a map."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

#: How probabilities are stored.
Precision = Literal['uint8', 'uint16', 'none']
#: The stored number that means 1. A step is 0.004 or less than 0.00002.
_ONE = {'uint8': 250, 'uint16': 60000}


@dataclass(frozen=True)
class Bands:
    """The bands of a map: class, modalities, and the probability of each class.

    A GeoTIFF has one type for all bands: ``uint8``, or ``uint16`` where that is asked for or
    there are more than 254 classes or 7 modalities. Its greatest number is nodata.

    Args:
        labels: Names of the K classes; a pixel's class is the index among them.
        modalities: Names of the modalities; bit i of the second band is number i.
        precision: How probabilities are stored; ``'none'`` leaves them out.

    Raises:
        ValueError: If there are more than 15 modalities or 65534 classes, or there is no
            such precision.
    """

    labels: Sequence[str]
    modalities: Sequence[str]
    precision: Precision = 'uint8'

    def __post_init__(self) -> None:
        """Refuse what no band can hold."""
        if self.precision not in (*_ONE, 'none'):
            raise ValueError(f'probabilities is {self.precision!r}, expected one of {[*_ONE, "none"]}')
        if len(self.modalities) > 15 or len(self.labels) > 65534:
            raise ValueError(
                f'a map has at most 15 modalities and 65534 classes, got {len(self.modalities)} and {len(self.labels)}'
            )

    @property
    def dtype(self) -> str:
        """Type of all bands."""
        small = len(self.labels) < 255 and len(self.modalities) < 8 and self.precision != 'uint16'
        return 'uint8' if small else 'uint16'

    @property
    def nodata(self) -> int:
        """What every band holds where no modality measured anything."""
        return int(np.iinfo(self.dtype).max)

    @property
    def scale(self) -> float:
        """Probability of a step: a stored number times this is a probability."""
        return 1 / _ONE[self.dtype]

    @property
    def names(self) -> list[str]:
        """Names of the bands."""
        shown = () if self.precision == 'none' else self.labels
        return ['class', 'modalities', *(f'probability {label}' for label in shown)]

    def encode(self, probabilities: NDArray[np.float32], seen: NDArray[np.uint16]) -> NDArray[np.unsignedinteger]:
        """The bands of a part of the map.

        Args:
            probabilities: ``(K, H, W)``.
            seen: ``(H, W)``, bits of the modalities.

        Returns:
            ``(bands, H, W)``.
        """
        bands = np.empty((len(self.names), *seen.shape), self.dtype)
        bands[0], bands[1] = probabilities.argmax(0), seen
        if self.precision != 'none':
            for band, probability in zip(bands[2:], probabilities, strict=True):
                band[:] = np.rint(probability / self.scale)
        bands[:, seen == 0] = self.nodata
        return bands
