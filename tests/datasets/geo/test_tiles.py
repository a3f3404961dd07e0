# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""AreaTiles: windows of a map as samples, empty where the data have nothing."""

from typing import Any

import pandas as pd
import pytest
import torch
from pyproj import CRS, Transformer
from rasterio import Affine
from torch import Tensor

from torchgeo_omnisat.datasets.geo.tiles import AreaTiles
from torchgeo_omnisat.grid import Grid

UTM = CRS.from_epsg(32631)


class Plane:
    """A geodataset from 0 to 400 m, which begins at *offset* whatever it is asked."""

    crs = UTM
    bounds = (slice(0, 400, 10), slice(0, 400, 10), slice(pd.Timestamp('2020'), pd.Timestamp('2021'), 1))

    def __init__(self, *offset: float) -> None:
        self.offset = torch.tensor(offset or (0, 0))

    def __getitem__(self, index: tuple[slice, slice, slice]) -> dict[str, Any]:
        x, y, t = index
        assert (t.start, t.stop) == (pd.Timestamp('2020'), pd.Timestamp('2021'))
        if x.start >= self.bounds[0].stop:
            raise IndexError('nothing')
        bounds = torch.tensor([x.start, x.stop, 10, y.start, y.stop, 10, 0, 1, 1], dtype=torch.float64)
        bounds[[0, 4]] += self.offset
        return {'image_s2': torch.full((1, 1, 4, 4), x.start), 'bounds': bounds, 'mask': torch.zeros(4, 4)}


def make_grid(left: float = 0, crs: CRS = UTM) -> Grid:
    return Grid(crs, Affine(10, 0, left, 0, -10, 400), 40, 80)


def read(tiles: AreaTiles, column: int) -> dict[str, Tensor]:
    return tiles[(0, column, 4, 4)]


def test_a_window_is_a_sample_without_labels() -> None:
    sample = read(AreaTiles(Plane(), make_grid()), 8)
    assert sorted(sample) == ['coordinates', 'image_s2', 'window']
    assert (sample['image_s2'] == 80).all()
    assert sample['window'].tolist() == [0, 8, 4, 4]


def test_where_nothing_is_there_are_no_images() -> None:
    assert sorted(read(AreaTiles(Plane(), make_grid()), 44)) == ['coordinates', 'window']


@pytest.mark.parametrize('crs', [CRS.from_epsg(32631), CRS.from_epsg(2154), CRS('+proj=laea +lat_0=48 +lon_0=3')])
def test_coordinates_are_those_of_each_tile(crs: CRS) -> None:
    """A map of tiles, of which one has no images, in a CRS with or without a code."""
    x, y = Transformer.from_crs('EPSG:4326', crs, always_xy=True).transform(2.35, 48.85)
    plane = Plane()
    plane.crs, plane.bounds = crs, (slice(x, x + 400, 10), slice(y - 400, y, 10), Plane.bounds[2])
    tiles = AreaTiles(plane, Grid(crs, Affine(10, 0, x, 0, -10, y), 40, 80))
    for column in (0, 8, 44):
        lon, lat = read(tiles, column)['coordinates'].tolist()
        back = Transformer.from_crs('EPSG:4326', crs, always_xy=True).transform(lon, lat)
        assert back == pytest.approx((x + 10 * column + 20, y - 20), abs=0.01)


def test_an_area_outside_is_refused() -> None:
    with pytest.raises(ValueError, match=r'area \(400.*data.*0.*400'):
        AreaTiles(Plane(), make_grid(left=400))


def test_a_grid_in_another_crs_is_refused() -> None:
    with pytest.raises(ValueError, match=r'grid.*EPSG:32632.*CRS.*data'):
        AreaTiles(Plane(), make_grid(crs=CRS.from_epsg(32632)))


def test_a_grid_between_the_pixels_of_the_data_is_refused() -> None:
    for offset, found in (((6, 0), r'86.0, 400.0'), ((0, -6), r'80.0, 394.0')):
        with pytest.raises(ValueError, match=rf'pixels.*\({found}\).*grid.*\(80.0, 400.0\)'):
            read(AreaTiles(Plane(*offset), make_grid()), 8)
