# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Pixel grid of a raster."""

import math
from dataclasses import dataclass
from typing import Any

from pyproj import CRS
from rasterio import Affine

from .modality import half_up

#: Tolerance of rounding, in pixels.
PIXEL_TOLERANCE = 1e-6
#: Length of a degree of latitude in metres.
DEGREE = 111_320.0


@dataclass(frozen=True)
class Grid:
    """North-up grid of square pixels, as in a GeoTIFF.

    With odc-geo's ``GeoBox``, tests/test_grid.py::test_windows_between_pixels_keep_their_size fails: its
    ``overlap_roi`` raises "Incompatible grids". It also requires xarray, which is optional here.

    Args:
        crs: Coordinate reference system (CRS); the size of pixels is in its unit.
        transform: Affine transform from column and row to x and y; the upper left corner is (0, 0).
        height: Number of rows.
        width: Number of columns.
    """

    crs: CRS
    transform: Affine
    height: int
    width: int

    def __post_init__(self) -> None:
        a, b, _, d, e, _ = self.transform[:6]
        if not (a > 0 and b == d == 0 and abs(a + e) <= PIXEL_TOLERANCE * a):
            raise ValueError(f'transform is {self.transform[:6]}, expected square, north-up pixels')
        if self.height < 1 or self.width < 1:
            raise ValueError(f'(height, width) is {(self.height, self.width)}, expected at least (1, 1)')

    @classmethod
    def over(
        cls, crs: Any, bounds: tuple[float, float, float, float], step: float, corner: tuple[float, float] | None = None
    ) -> 'Grid':
        """Return the smallest grid that covers a bounding box.

        Args:
            crs: CRS, or any input of ``pyproj.CRS.from_user_input``.
            bounds: xmin, ymin, xmax, ymax.
            step: Size of a pixel.
            corner: Coordinates of a pixel corner; the upper left corner of *bounds* by default.
        """
        xmin, ymin, xmax, ymax = bounds
        x, y = corner or (xmin, ymax)
        left, right = math.floor((xmin - x) / step + PIXEL_TOLERANCE), math.ceil((xmax - x) / step - PIXEL_TOLERANCE)
        top, bottom = math.floor((y - ymax) / step + PIXEL_TOLERANCE), math.ceil((y - ymin) / step - PIXEL_TOLERANCE)
        transform = Affine(step, 0, x + left * step, 0, -step, y - top * step)
        return cls(CRS.from_user_input(crs), transform, bottom - top, right - left)

    @property
    def step(self) -> float:
        """Size of a pixel in the unit of the CRS."""
        return float(self.transform.a)

    @property
    def corner(self) -> tuple[float, float]:
        """Coordinates of the upper left corner."""
        return float(self.transform.c), float(self.transform.f)

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """xmin, ymin, xmax, ymax."""
        return self.box(0, 0, self.height, self.width)

    def finer(self, factor: int) -> 'Grid':
        """Return a grid of the same extent with *factor* x *factor* pixels for each pixel."""
        transform = self.transform @ Affine.scale(1 / factor)
        return Grid(self.crs, transform, factor * self.height, factor * self.width)

    def box(self, row: int, column: int, height: int, width: int) -> tuple[float, float, float, float]:
        """Return xmin, ymin, xmax, ymax of a window, which may exceed the grid."""
        (x, y), step = self.corner, self.step
        return x + column * step, y - (row + height) * step, x + (column + width) * step, y - row * step

    def window(self, bounds: tuple[float, float, float, float]) -> tuple[int, int, int, int]:
        """Return row, column, height and width of a bounding box, to the nearest pixel."""
        (x, y), step = self.corner, self.step
        xmin, ymin, xmax, ymax = bounds
        row, column = half_up((y - ymax) / step), half_up((xmin - x) / step)
        return row, column, half_up((y - ymin) / step) - row, half_up((xmax - x) / step) - column

    def slices(self, row: int, column: int, height: int, width: int) -> tuple[slice, slice]:
        """Return a window as slices for the GeoDatasets of TorchGeo: x and y, each from minimum to maximum."""
        xmin, ymin, xmax, ymax = self.box(row, column, height, width)
        return slice(xmin, xmax), slice(ymin, ymax)


def metres(crs: Any, step: float) -> float:
    """Convert a length in units of a CRS to metres; a degree is one of latitude."""
    crs = CRS.from_user_input(crs)
    if crs.is_geographic:
        return step * DEGREE
    return step * float(crs.axis_info[0].unit_conversion_factor)
