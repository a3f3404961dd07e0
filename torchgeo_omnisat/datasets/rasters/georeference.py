# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Windows, periods and footprints of files, as in TorchGeo and in samples."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import rasterio
import shapely
import torch
from pyproj import CRS
from rasterio import Affine
from rasterio.transform import array_bounds
from rasterio.warp import calculate_default_transform
from shapely.affinity import affine_transform
from torchgeo.datasets.utils import Sample

from ...grid import Grid
from ...modality import half_up
from ..common.arguments import parse_span
from ..common.series import DAY
from ..io.headers import Header
from .distortion import projected

#: First and last instant; None for all time.
Span = tuple[pd.Timestamp, pd.Timestamp] | None


def window_grid(crs: Any, x: slice, y: slice) -> Grid:
    """Return the pixel grid of a window in TorchGeo's slices, whose steps are the pixel size."""
    if not math.isclose(x.step, y.step, rel_tol=1e-4):
        raise ValueError(f'pixel size of the window is {x.step} x {y.step}, expected square pixels')
    rows, columns = (max(0, half_up((axis.stop - axis.start) / x.step)) for axis in (y, x))
    return Grid(CRS.from_user_input(crs), Affine(x.step, 0, x.start, 0, -x.step, y.stop), rows, columns)


def where(grid: Grid, span: Span) -> Sample:
    """Return ``bounds`` (9,) and ``transform`` (9,) of a window, in TorchGeo's order and in float64."""
    xmin, ymin, xmax, ymax = grid.bounds
    first, last = (math.nan, math.nan) if span is None else (moment.timestamp() for moment in span)
    bounds = (xmin, xmax, grid.step, ymin, ymax, grid.step, first, last, 1)
    return {
        'bounds': torch.tensor(bounds, dtype=torch.float64),
        'transform': torch.tensor(tuple(grid.transform)[:9], dtype=torch.float64),
    }


def as_span(date_range: Sequence[str] | None) -> Span:
    """Return the first and last instant of a date range; None for all time."""
    days = parse_span(date_range)
    if days is None:
        return None
    first, last = days
    return pd.Timestamp(first * DAY, unit='s'), pd.Timestamp((last + 1) * DAY, unit='s') - pd.Timedelta(microseconds=1)


def crs_code(crs: Any) -> str:
    """Return the code of a CRS, such as ``EPSG:32631``; the name of one without a code, and none without a CRS."""
    return 'none' if crs is None else ':'.join(crs.to_authority() or [crs.name])


def outline(header: Header, crs: Any) -> Any:
    """Return the footprint of a file in a CRS, which is also that of files without one."""
    a, b, x, d, e, y = header.transform[:6]  # may be rotated
    shape = affine_transform(shapely.box(0, 0, header.width, header.height), (a, b, d, e, x, y))
    if header.crs is None or header.crs == crs:
        return shape
    return projected(np.array([bendable(shape)]), header.crs, crs, [header.path])[0]


def resolution(header: Header, crs: Any) -> tuple[float, float]:
    """Return the width and height of the pixels of a file in a CRS; square ones if they are resampled anyway."""
    source = crs if header.crs is None else header.crs
    bounds = array_bounds(header.height, header.width, header.transform)
    left, right, bottom, top = (*sorted(bounds[::2]), *sorted(bounds[1::2]))
    target = rasterio.crs.CRS.from_user_input(crs)
    place, width, height = calculate_default_transform(
        source, target, header.width, header.height, left, bottom, right, top
    )
    is_same = source == target and (width, height) == (header.width, header.height)
    place = header.transform if is_same and header.transform.almost_equals(place) else place
    return place.a, -place.e


def pixel_side(header: Header) -> float:
    """Return the pixel size of a file in units of its CRS."""
    return math.sqrt(abs(header.transform.determinant))


def describe_grids(headers: Sequence[Header], crs: Any) -> str:
    """Describe the files on another pixel grid than the first; an empty string if there are none."""
    first, found = headers[0], dict[str, list[str]]()
    side, (x, y), own = pixel_side(first), (first.transform.c, first.transform.f), first.crs or crs
    for header in headers[1:]:
        theirs = header.crs or crs
        if theirs != own:
            how = f'CRS {":".join(CRS.from_user_input(theirs).to_authority() or ["another"])}'
        elif abs(pixel_side(header) / side - 1) > 1e-6:
            how = f'pixels of {pixel_side(header):g}'
        else:
            shifts = [(there - here) / side for there, here in ((header.transform.c, x), (header.transform.f, y))]
            shift = max(abs(value - round(value)) for value in shifts)
            how = f'shifted by {shift:.2g} of a pixel' if shift > 0.01 else ''
        if how:
            found.setdefault(how, []).append(header.path)
    if not found:
        return ''
    count, example = sum(map(len, found.values())), next(iter(found.values()))[0]
    return (
        f'{count} of {len(headers)} files on another pixel grid than {first.path} ({", ".join(list(found)[:5])}, such '
        f'as {example})'
    )


def bendable(shapes: Any) -> Any:
    """Add vertices along the sides of geometries, as straight lines are curved in another CRS."""
    return shapely.segmentize(shapes, shapely.length(shapes) / 64 + 1e-9)  # a box around one point has no length
