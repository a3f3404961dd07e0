# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Single: tiles that make no area become a GeoTIFF each."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyproj import CRS
from rasterio import Affine
from rasterio.errors import NotGeoreferencedWarning

from .cog import Colors, Place, write_map
from .encoding import Bands
from .tiling import Window


class TileFolder:
    """A folder with a GeoTIFF for every sample of a dataset, named by its id.

    Args:
        path: The folder. Older files of these samples are replaced, others stay.
        dataset: Has ``crs`` and ``ids``, and, where its squares lie askew, ``corners``
            ``(N, 3, 2)``: the upper left, upper right and lower left one of each. If samples have a CRS
            each, ``chip_crs`` instead of ``crs``; None for those that lie nowhere.
        bands: The bands.
        colors: Of the classes, ``(K, 3)``.
    """

    def __init__(self, path: Path, dataset: Any, bands: Bands, colors: Colors) -> None:
        """Make the folder."""
        self.path, self.dataset, self.bands, self.colors = path, dataset, bands, colors
        self.corners: NDArray[np.float64] | None = getattr(dataset, 'corners', None)
        self.ids = [name.replace('/', '-') for name in dataset.ids]
        #: CRS of each sample.
        self.crs: Sequence[CRS | None] = (
            dataset.chip_crs if hasattr(dataset, 'chip_crs') else [CRS.from_user_input(dataset.crs)] * len(self.ids)
        )
        path.mkdir(parents=True, exist_ok=True)

    def write(self, index: int, probabilities: NDArray[np.float32], seen: NDArray[np.uint16], bounds: Any) -> None:
        """Write the file of a sample under a temporary name, and rename it.

        Args:
            index: Number of the sample.
            probabilities: ``(K, H, W)``.
            seen: ``(H, W)``, bits of the modalities.
            bounds: ``bounds`` of the sample; None if it has none.
        """
        name, (height, width) = self.ids[index], seen.shape
        crs = self.crs[index]
        transform = Affine.identity() if crs is None else self._transform(index, bounds, height, width)
        place = Place(crs, transform, height, width)
        made, scratch = (self.path / f'.{name}.{kind}' for kind in ('part', 'scratch'))
        parts = [(Window(0, 0, height, width), self.bands.encode(probabilities, seen))]
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', NotGeoreferencedWarning)  # as that of a chip that lies nowhere
            write_map(made, scratch, place, self.bands, parts, self.colors)
        made.replace(self.path / f'{name}.tif')

    def _transform(self, index: int, bounds: Any, height: int, width: int) -> Affine:
        """From column and row of a sample to x and y."""
        if self.corners is not None:
            corner, right, low = self.corners[index]
            (a, d), (b, e) = (right - corner) / width, (low - corner) / height
            return Affine(a, b, corner[0], d, e, corner[1])
        xmin, xmax, step, ymin, ymax = (float(number) for number in bounds[:5]) if bounds is not None else [np.nan] * 5
        if not np.allclose([(xmax - xmin) / width, (ymax - ymin) / height], step, rtol=1e-3):
            raise ValueError(
                f'sample {self.ids[index]!r} of {type(self.dataset).__name__} has the bounds {bounds} and {height} x '
                f'{width} pixels: expected bounds of that many pixels, or a dataset with corners'
            )
        return Affine(step, 0, xmin, 0, -step, ymax)
