# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""AreaTiles: windows of a map as samples, empty where the data have nothing."""

from typing import Any

import pandas as pd
import pytest
import torch
from pyproj import CRS
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
        if x.start >= 400:
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
    assert sorted(sample) == ['image_s2', 'window']
    assert (sample['image_s2'] == 80).all()
    assert sample['window'].tolist() == [0, 8, 4, 4]


def test_where_nothing_is_there_is_only_the_window() -> None:
    assert sorted(read(AreaTiles(Plane(), make_grid()), 44)) == ['window']


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
