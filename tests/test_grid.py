# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Grid: pixels and windows go to coordinates and back."""

import pytest
from pyproj import CRS
from rasterio import Affine

from torchgeo_omnisat.grid import Grid

LAMBERT = CRS.from_epsg(2154)


def test_windows_go_to_coordinates_and_back() -> None:
    grid = Grid(LAMBERT, Affine(10, 0, 664760, 0, -10, 5612400), 50, 48)
    assert grid.bounds == (664760, 5611900, 665240, 5612400)
    x, y = grid.slices(3, 5, 16, 8)
    assert (x.start, x.stop, y.start, y.stop) == (664810, 664890, 5612210, 5612370)
    assert grid.window((x.start, y.start, x.stop, y.stop)) == (3, 5, 16, 8)
    assert grid.window((664750, 5612390, 664760, 5612420)) == (-2, -1, 3, 1)  # beyond the grid


def test_a_finer_grid_covers_the_same_ground() -> None:
    grid = Grid(LAMBERT, Affine(10, 0, 664760, 0, -10, 5612400), 50, 48)
    finer = grid.finer(4)
    assert finer.bounds == grid.bounds
    assert (finer.height, finer.width, finer.step) == (200, 192, 2.5)
    assert grid.finer(1) == grid


def test_windows_between_pixels_keep_their_size() -> None:
    """Halves go up, all of them: to even numbers, every other of these windows would have no row."""
    grid = Grid(LAMBERT, Affine(10, 0, 0, 0, -10, 0), 50, 50)
    windows = [grid.window((10 * i + 5, -10 * i - 15, 10 * i + 15, -10 * i - 5)) for i in range(4)]
    assert windows == [(i + 1, i + 1, 1, 1) for i in range(4)]


@pytest.mark.parametrize('step', [0.2, 10.0, 10.24])
def test_over_covers_a_box_on_the_lattice_of_its_corner(step: float) -> None:
    corner = (700000.0, 6600000.0)
    bounds = (corner[0] + 7.5 * step, corner[1] - 20 * step, corner[0] + 11 * step, corner[1] - 3.2 * step)
    grid = Grid.over(LAMBERT, bounds, step, corner)
    assert (grid.height, grid.width) == (17, 4)
    assert grid.corner == pytest.approx((corner[0] + 7 * step, corner[1] - 3 * step))
    assert Grid.over(2154, grid.bounds, step, corner) == grid


def test_a_transform_that_is_no_grid_is_refused() -> None:
    with pytest.raises(ValueError, match='north-up'):
        Grid(LAMBERT, Affine(10, 0, 0, 0, -20, 0), 5, 5)
    with pytest.raises(ValueError, match=r'5, 0'):
        Grid(LAMBERT, Affine(10, 0, 0, 0, -10, 0), 5, 0)
