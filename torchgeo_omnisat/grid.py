# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Grid: where the pixels of a raster lie."""

import math
from dataclasses import dataclass
from typing import Any

from pyproj import CRS
from rasterio import Affine

from .modality import half_up

#: What of a pixel rounding may lose.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Grid:
    """Square pixels on a map, north up, as a GeoTIFF has them.

    Args:
        crs: Coordinate reference system, in whose units the pixels are.
        transform: From column and row to x and y; the upper left corner is (0, 0).
        height: Number of rows.
        width: Number of columns.

    Raises:
        ValueError: If there is no pixel, or pixels are not square with the north up.
    """

    crs: CRS
    transform: Affine
    height: int
    width: int

    def __post_init__(self) -> None:
        """Refuse what is no such grid."""
        a, b, _, d, e, _ = self.transform[:6]
        if not (a > 0 and b == d == 0 and abs(a + e) <= ROUNDING * a):
            raise ValueError(f'transform of a grid is {self.transform[:6]}, expected square pixels with the north up')
        if self.height < 1 or self.width < 1:
            raise ValueError(f'a grid has {self.height} rows and {self.width} columns, expected at least one of each')

    @classmethod
    def over(
        cls, crs: Any, bounds: tuple[float, float, float, float], step: float, corner: tuple[float, float] | None = None
    ) -> 'Grid':
        """Return the pixels that cover a box.

        Args:
            crs: Coordinate reference system, or what names one.
            bounds: xmin, ymin, xmax, ymax.
            step: Side of a pixel.
            corner: Where a corner of a pixel lies; the upper left one of the box by default.

        Returns:
            The smallest grid that covers the box.
        """
        xmin, ymin, xmax, ymax = bounds
        x, y = corner or (xmin, ymax)
        left, right = math.floor((xmin - x) / step + ROUNDING), math.ceil((xmax - x) / step - ROUNDING)
        top, bottom = math.floor((y - ymax) / step + ROUNDING), math.ceil((y - ymin) / step - ROUNDING)
        transform = Affine(step, 0, x + left * step, 0, -step, y - top * step)
        return cls(CRS.from_user_input(crs), transform, bottom - top, right - left)

    @property
    def step(self) -> float:
        """Side of a pixel in units of the CRS."""
        return float(self.transform.a)

    @property
    def corner(self) -> tuple[float, float]:
        """Coordinates of the upper left corner."""
        return float(self.transform.c), float(self.transform.f)

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """xmin, ymin, xmax, ymax."""
        return self.box(0, 0, self.height, self.width)

    def box(self, row: int, column: int, height: int, width: int) -> tuple[float, float, float, float]:
        """xmin, ymin, xmax, ymax of a window; it may reach beyond the grid."""
        (x, y), step = self.corner, self.step
        return x + column * step, y - (row + height) * step, x + (column + width) * step, y - row * step

    def window(self, bounds: tuple[float, float, float, float]) -> tuple[int, int, int, int]:
        """Row, column, height and width of a box, to the nearest pixel."""
        (x, y), step = self.corner, self.step
        xmin, ymin, xmax, ymax = bounds
        row, column = half_up((y - ymax) / step), half_up((xmin - x) / step)
        return row, column, half_up((y - ymin) / step) - row, half_up((xmax - x) / step) - column

    def slices(self, row: int, column: int, height: int, width: int) -> tuple[slice, slice]:
        """Return a window as slices for the GeoDatasets of TorchGeo: x and y, each from minimum to maximum."""
        xmin, ymin, xmax, ymax = self.box(row, column, height, width)
        return slice(xmin, xmax), slice(ymin, ymax)
