# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Reprojection of footprints, with an error where the CRS distorts their pixels."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from pyproj import CRS, Proj, Transformer

#: Maximum relative change of the area of a pixel and of the ratio of its sides.
MAX_DISTORTION = 0.1
#: Margin in degrees around the area of use of a CRS to which large files are cropped.
AROUND = 6.0


def projected(shapes: NDArray[np.object_], source: Any, target: Any, names: Sequence[str]) -> NDArray[np.object_]:
    """Reproject footprints with vertices along their sides; raise ValueError if *target* distorts their pixels.

    A footprint that extends far beyond the area of use of the CRS, such as a map of the world, is cropped to its
    surroundings.
    """
    source, target = CRS.from_user_input(source), CRS.from_user_input(target)
    moved = shapely.transform(shapes, _transformer(source, target).transform, interleaved=False)
    if not is_distorting(target):
        return moved
    there = shapely.transform(shapes, _transformer(source, target.geodetic_crs).transform, interleaved=False)
    _, place = shapely.get_coordinates(shapes, return_index=True)
    bad = np.unique(place[_distortion(target, there) > MAX_DISTORTION]).tolist()
    for number in sorted({*bad, *(index for index, one in enumerate(there) if _is_wide(one))}):
        near = _near(there[number], target)
        if near is not None:
            moved[number] = shapely.transform(
                near, _transformer(target.geodetic_crs, target).transform, interleaved=False
            )
        elif number in bad:
            raise _distortion_error(names[number], source, target, there[number])
    return moved


def _is_wide(there: Any) -> bool:
    west, south, east, north = there.bounds
    if max(east - west, north - south) < 30:
        return False
    return bool(np.diff(np.sort(shapely.get_coordinates(there)[:, 0])).max() < 90)


def _near(there: Any, target: CRS) -> Any:
    """Crop a footprint in degrees to the surroundings of the area of use of a CRS; None if it is distorted there."""
    authority = target.to_authority()  # a CRS from WKT has no area of use
    area = target.area_of_use or (CRS.from_authority(*authority).area_of_use if authority else None)
    if area is None or area.west > area.east or not np.isfinite(there.bounds).all():
        return None
    box = shapely.box(
        area.west - AROUND, max(area.south - AROUND, -89), area.east + AROUND, min(area.north + AROUND, 89)
    )
    near = shapely.make_valid(there).intersection(box)
    near = shapely.segmentize(near, shapely.length(near) / 64 + 1e-9)
    return near if near.area > 0 and np.all(_distortion(target, near) <= MAX_DISTORTION) else None


def distorted(shapes: NDArray[np.object_], crs: CRS) -> NDArray[np.intp]:
    """Return the indices of the footprints that their CRS distorts everywhere."""
    if not is_distorting(crs):
        return np.zeros(0, np.intp)
    there = shapely.transform(shapes, _transformer(crs, crs.geodetic_crs).transform, interleaved=False)
    _, place = shapely.get_coordinates(shapes, return_index=True)
    fine = np.unique(place[_distortion(crs, there) <= MAX_DISTORTION])
    return np.setdiff1d(np.arange(len(shapes)), fine)


def refuse_distorted(shape: Any, crs: CRS, source: Any, name: str) -> None:
    """Raise the error of a footprint in *crs* that was reprojected from *source* and is distorted."""
    there = shapely.transform(shape, _transformer(crs, crs.geodetic_crs).transform, interleaved=False)
    raise _distortion_error(name, CRS.from_user_input(source), crs, there)


def is_distorting(crs: CRS) -> bool:
    """Return whether a CRS is checked for distortion, unlike geographic CRSs and Web Mercator."""
    web = crs.coordinate_operation is not None and 'Pseudo Mercator' in crs.coordinate_operation.method_name
    return bool(crs.is_projected and not web)


def _distortion(crs: CRS, there: Any) -> NDArray[np.float64]:
    lon, lat = shapely.get_coordinates(there).T
    finite = np.isfinite(lon) & np.isfinite(lat)
    factors = _proj(crs).get_factors(np.where(finite, lon, 0), np.where(finite, lat, 0), errcheck=False)
    with np.errstate(all='ignore'):
        area = np.abs(np.log(factors.areal_scale))
        sides = np.log(np.divide(factors.tissot_semimajor, factors.tissot_semiminor))
        change = np.expm1(np.maximum(area, sides))
    return np.where(finite & np.isfinite(change), change, np.inf)


def _distortion_error(what: str, source: CRS, target: CRS, there: Any) -> ValueError:
    change = float(_distortion(target, there).min())
    lon, lat = shapely.get_coordinates(there.centroid if np.isfinite(there.bounds).all() else there)[0]
    how = f'changes the size or shape of its pixels by {change:.0%}' if np.isfinite(change) else 'does not reach it'
    return ValueError(
        f'{what} is in {_named(source)} and is at {lon:.4g} degrees east, {lat:.4g} north, where {_named(target)}, '
        f'the CRS of the samples, {how}; expected files within a few hundred kilometres of its area of use. Check '
        'its CRS and the order of its coordinates, give another crs, or, if every file is a chip with a mask of the '
        'same name, read them with ChipsDataModule (--data ChipsDataModule), which keeps each in its own CRS'
    )


def _named(crs: CRS) -> str:
    authority = crs.to_authority()
    return f'{":".join(authority)} ({crs.name})' if authority else crs.name


@lru_cache(maxsize=64)
def _transformer(source: CRS, target: CRS) -> Transformer:
    """Return a cached transformer, x or longitude first."""
    return Transformer.from_crs(source, target, always_xy=True)


@lru_cache(maxsize=64)
def _proj(crs: CRS) -> Proj:
    """Return a cached projection, which computes scale factors."""
    return Proj(crs)
