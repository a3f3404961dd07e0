# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Splits and areas as geometries: where they meet, and how they bend."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import geopandas as gpd
import pytest
import shapely

from torchgeo_omnisat.datamodules.geo import read_area, split_ground


@pytest.mark.parametrize(('axis', 'edges'), [('x', (43, 83)), ('y', (47, 87))])
def test_splits_meet_where_pixels_do(axis: str, edges: tuple[int, int]) -> None:
    data: Any = SimpleNamespace(area=shapely.box(3, 7, 103, 107), corner=(3, 107), lattice=20)
    grounds = split_ground(data, {'axis': axis, 'fractions': (0.45, 0.3, 0.25)}, Path())
    low = 0 if axis == 'x' else 1
    assert tuple(grounds[name].bounds[low] for name in ('val', 'test')) == edges


def test_a_box_in_degrees_keeps_its_bent_sides() -> None:
    area = read_area({'bounds': [0, 50, 10, 51], 'crs': 'EPSG:4326'}, 32631, Path())
    places = gpd.GeoSeries(gpd.points_from_xy([5, 5, 5, 5], [49.99, 50.01, 50.99, 51.01]), crs=4326).to_crs(32631)
    assert places.within(area).tolist() == [False, True, True, False]
