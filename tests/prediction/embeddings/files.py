# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Small embedding rasters in the layouts of this package, AlphaEarth and TESSERA."""

from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import rasterio
import shapely
from numpy.typing import NDArray
from rasterio import Affine

from torchgeo_omnisat.utils.tensors.quantization import NODATA, quantize

#: Upper left corner in EPSG:32631.
X, Y = 600000.0, 5700000.0
UTM = 'EPSG:32631'
#: Side of a patch of one class, in pixels.
PATCH = 8


def landscape(height: int = 48, width: int = 64, dims: int = 8, seed: int = 0, noise: float = 0.2) -> Any:
    """Return unit vectors (D, H, W) and classes (H, W) of square patches of three classes."""
    rng = np.random.default_rng(seed)
    directions = np.random.default_rng(99).standard_normal((3, dims))
    patches = rng.integers(3, size=(height // PATCH, width // PATCH))
    classes = patches.repeat(PATCH, 0).repeat(PATCH, 1)
    vectors = directions[classes].transpose(2, 0, 1) + noise * rng.standard_normal((dims, height, width))
    return (vectors / np.linalg.norm(vectors, axis=0)).astype(np.float32), classes


def write_raster(
    path: Path,
    image: NDArray[Any],
    origin: tuple[float, float] = (X, Y),
    names: list[str] | None = None,
    flipped: bool = False,
    crs: str | None = UTM,
    step: float = 10.0,
    **profile: Any,
) -> Path:
    """Write an image (C, H, W), north up or with rows from south to north."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = image.shape
    transform = Affine(step, 0, origin[0], 0, -step, origin[1])
    if flipped:
        image, transform = image[:, ::-1], Affine(step, 0, origin[0], 0, step, origin[1] - step * height)
    shape = {'count': count, 'height': height, 'width': width, 'dtype': image.dtype}
    with rasterio.open(path, 'w', driver='GTiff', crs=crs, transform=transform, **shape, **profile) as file:
        file.write(image)
        for number, name in enumerate(names or (), 1):
            file.set_band_description(number, name)
    return path


def write_codes(path: Path, vectors: NDArray[Any], sensors: NDArray[Any] | None = None, **settings: Any) -> Path:
    """Write int8 codes in the layout of this package; with *sensors* (H, W), as another band."""
    codes = quantize(vectors)
    names = [f'A{index:02}' for index in range(len(codes))]
    if sensors is not None:
        codes, names = np.concatenate([codes, sensors[None].astype(np.int8)]), [*names, 'sensors']
    write_raster(path, codes, names=names, nodata=NODATA, **settings)
    if sensors is not None:
        with rasterio.open(path, 'r+') as file:
            file.update_tags(len(names), BIT_0='s2', BIT_1='s1')
    return path


def write_scaled(path: Path, vectors: NDArray[Any], npy: bool = False, **settings: Any) -> Path:
    """Write int8 codes and the scale of each pixel in the layout of TESSERA."""
    scales = np.abs(vectors).max(0) / 127
    with np.errstate(invalid='ignore'):
        codes = np.nan_to_num(np.rint(vectors / scales), nan=0).astype(np.int8)
    write_raster(path, codes, **settings)
    beside = path.with_name(path.stem + '_scales' + ('.npy' if npy else path.suffix))
    if npy:
        np.save(beside, scales[::-1] if settings.get('flipped') else scales)
    else:
        write_raster(beside, scales[None].astype(np.float32), **settings)
    return path


def points(
    path: Path, classes: NDArray[Any], count: int = 60, names: tuple[Any, ...] = ('oak', 'fir', 'sea'), seed: int = 0,
    crs: str = 'EPSG:4326', origin: tuple[float, float] = (X, Y), **columns: Any,
) -> Path:  # fmt: skip
    """Write points at the centres of random pixels, with the column ``class``."""
    rng = np.random.default_rng(seed)
    rows, places = rng.integers(classes.shape[0], size=count), rng.integers(classes.shape[1], size=count)
    shapes = shapely.points(origin[0] + 10 * places + 5, origin[1] - 10 * rows - 5)
    values = {'class': [names[index] for index in classes[rows, places]], **columns}
    gpd.GeoDataFrame(values, geometry=shapes, crs=UTM).to_crs(crs).to_file(path)
    return path
