# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Georeference: windows, periods and outlines, as TorchGeo and as our samples have them."""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
import shapely
import torch
from pyproj import CRS
from rasterio import Affine
from rasterio.warp import transform_geom
from shapely.affinity import affine_transform
from torchgeo.datasets.utils import Sample

from ..grid import Grid
from .arguments import parse_span
from .frames import opened
from .series import DAY

#: First and last instant; None for always.
Span = tuple[pd.Timestamp, pd.Timestamp] | None
#: Metres of a degree of latitude.
DEGREE = 111_320.0


def window_grid(crs: Any, x: slice, y: slice) -> Grid:
    """The pixels of a window in TorchGeo's slices, whose steps are the side of a pixel.

    Raises:
        ValueError: If pixels are not square or there is none.
    """
    if not math.isclose(x.step, y.step, rel_tol=1e-4):
        raise ValueError(f'pixels of {x.step} x {y.step} were asked for, expected square ones')
    rows, columns = (max(0, round((axis.stop - axis.start) / x.step)) for axis in (y, x))
    return Grid(CRS.from_user_input(crs), Affine(x.step, 0, x.start, 0, -x.step, y.stop), rows, columns)


def where(grid: Grid, span: Span) -> Sample:
    """``bounds`` and ``transform`` of a window, in TorchGeo's order and in float64."""
    xmin, ymin, xmax, ymax = grid.bounds
    first, last = (math.nan, math.nan) if span is None else (moment.timestamp() for moment in span)
    bounds = (xmin, xmax, grid.step, ymin, ymax, grid.step, first, last, 1)
    return {
        'bounds': torch.tensor(bounds, dtype=torch.float64),
        'transform': torch.tensor(tuple(grid.transform)[:9], dtype=torch.float64),
    }


def as_span(date_range: Sequence[str] | None) -> Span:
    """First and last instant of a range of days; None for always.

    Raises:
        ValueError: If these are not two days, the first before the last.
    """
    days = parse_span(date_range)
    if days is None:
        return None
    first, last = days
    return pd.Timestamp(first * DAY, unit='s'), pd.Timestamp((last + 1) * DAY, unit='s') - pd.Timedelta(microseconds=1)


def metres(crs: Any, step: float) -> float:
    """A length in units of a CRS in metres; a degree is one of latitude."""
    crs = CRS.from_user_input(crs)
    if crs.is_geographic:
        return step * DEGREE
    return step * float(crs.axis_info[0].unit_conversion_factor)


def outline(path: str, crs: Any) -> Any:
    """The ground of a file, in another CRS."""
    with opened(path) as source:
        a, b, x, d, e, y = source.transform[:6]  # whose pixels may lie askew
        shape = affine_transform(shapely.box(0, 0, source.width, source.height), (a, b, d, e, x, y))
        if source.crs is None or source.crs == crs:
            return shape
        return shapely.geometry.shape(transform_geom(source.crs, crs, shapely.geometry.mapping(bendable(shape))))


def bendable(shapes: Any) -> Any:
    """The same ground with corners along its sides, which are straight in one CRS and bent in another."""
    return shapely.segmentize(shapes, shapely.length(shapes) / 64 + 1e-9)  # a box around one point has no length
