# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Small georeferenced rasters, made up."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.transform import from_origin

#: Upper left corner of everything, in EPSG:32631.
X, Y = 600000.0, 5700000.0
UTM = 'EPSG:32631'


def write(
    path: Path,
    image: np.ndarray[Any, Any],
    origin: tuple[float, float] = (X, Y),
    step: float = 10.0,
    crs: str | None = UTM,
    bands: Sequence[str] = (),
    **profile: Any,
) -> Path:
    """Write an image (C, H, W), or (H, W), as a GeoTIFF."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = image if image.ndim == 3 else image[None]
    count, height, width = image.shape
    size = {'count': count, 'height': height, 'width': width, 'dtype': image.dtype}
    where = {} if crs is None else {'crs': crs, 'transform': from_origin(*origin, step, step)}
    with rasterio.open(path, 'w', driver='GTiff', **size, **where, **profile) as file:
        file.write(image)
        for number, name in enumerate(bands, 1):
            file.set_band_description(number, name)
    return path


def ramp(height: int, width: int, bands: int = 1, start: int = 1) -> np.ndarray[Any, Any]:
    """Numbers that tell a pixel from its neighbours: 100 a row, 1 a column, 10000 a band."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([start + 100 * rows + columns + 10000 * band for band in range(bands)]).astype(np.float32)
