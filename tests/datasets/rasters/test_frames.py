# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Frames: what a file says of nodata holds whether its pixels are copied or interpolated, and however it lies."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from pyproj import CRS
from rasterio import Affine

from tests.geo_tree import UTM, X, Y, ramp, write
from torchgeo_omnisat.datasets import RasterTimeSeries
from torchgeo_omnisat.datasets.rasters.frames import read_window
from torchgeo_omnisat.grid import Grid


def look(path: Path, shift: int, nodata: float | None = None) -> list[list[bool]]:
    """Which rows of each band show something, on pixels *shift* metres aside."""
    grid = Grid(CRS.from_user_input(UTM), Affine(10, 0, X + shift, 0, -10, Y), 8, 7)
    found: list[list[bool]] = np.isfinite(read_window(str(path), None, grid, nodata, False, False)).any(2).tolist()
    return found


@pytest.mark.parametrize('shift', [0, 3])
def test_a_mask_in_the_file(tmp_path: Path, shift: int) -> None:
    path = write(tmp_path / 'a.tif', ramp(8, 8, bands=2))
    mask = np.full((8, 8), 255, np.uint8)
    mask[:4] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, 'r+') as file:
        file.write_mask(mask)
    assert look(path, shift) == [[False] * 4 + [True] * 4] * 2
    assert look(path, shift, 1e6) == [[False] * 4 + [True] * 4] * 2


@pytest.mark.parametrize('shift', [0, 3])
def test_each_band_has_its_own_nodata(tmp_path: Path, shift: int) -> None:
    write(tmp_path / 'a.tif', np.repeat([[[1.0], [2.0]]] * 2, 4, axis=1).repeat(8, axis=2).astype(np.float32))
    bands = ''.join(
        f'<VRTRasterBand dataType="Float32" band="{band}"><NoDataValue>{band}</NoDataValue><SimpleSource>'
        f'<SourceFilename relativeToVRT="1">a.tif</SourceFilename><SourceBand>{band}</SourceBand>'
        '</SimpleSource></VRTRasterBand>'
        for band in (1, 2)
    )
    path = tmp_path / 'a.vrt'
    head = f'<SRS>{UTM}</SRS><GeoTransform>{X},10,0,{Y},0,-10</GeoTransform>'
    path.write_text(f'<VRTDataset rasterXSize="8" rasterYSize="8">{head}{bands}</VRTDataset>')
    assert look(path, shift) == [[False] * 4 + [True] * 4, [True] * 4 + [False] * 4]


@pytest.mark.parametrize('shift', [0, 3])
def test_a_number_that_pixels_cannot_hold_is_no_nodata(tmp_path: Path, shift: int) -> None:
    path = write(tmp_path / 'a.tif', np.ones((8, 8), np.uint8))
    assert look(path, shift, -9999) == [[True] * 8]


def test_pixels_that_lie_askew(tmp_path: Path) -> None:
    place = Affine.translation(X, Y) @ Affine.rotation(30) @ Affine.scale(10, -10)
    size = {'count': 1, 'height': 40, 'width': 40, 'dtype': 'float32'}
    with rasterio.open(tmp_path / 'a_20210101.tif', 'w', driver='GTiff', crs=UTM, transform=place, **size) as file:
        file.write(ramp(40, 40))
    series = RasterTimeSeries(tmp_path, name='s', res=10)
    assert series.index.area.sum() == pytest.approx(400 * 400)
    image = series[slice(X + 200, X + 300, 10), slice(Y - 150, Y - 50, 10)]['image_s'][0, 0].numpy()
    wanted = np.empty((10, 10))
    for row, column in np.ndindex(10, 10):
        there = ~place @ (X + 205 + 10 * column, Y - 55 - 10 * row)
        wanted[row, column] = 1 + 100 * (there[1] - 0.5) + there[0] - 0.5
    np.testing.assert_allclose(image, wanted, atol=15)  # of 100 a row


def test_south_up_is_the_same_ground(tmp_path: Path) -> None:
    size = {'count': 1, 'height': 8, 'width': 8, 'dtype': 'float32'}
    place = Affine(10, 0, X, 0, 10, Y - 80)
    with rasterio.open(tmp_path / 'a_20210101.tif', 'w', driver='GTiff', crs=UTM, transform=place, **size) as file:
        file.write(ramp(8, 8)[:, ::-1])
    image = RasterTimeSeries(tmp_path, name='s')[slice(X, X + 80, 10), slice(Y - 80, Y, 10)]['image_s'][0]
    assert np.array_equal(image, ramp(8, 8))
