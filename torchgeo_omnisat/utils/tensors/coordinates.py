# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Longitude and latitude of tiles."""

from functools import lru_cache
from typing import Any

import torch
from pyproj import CRS, Transformer
from pyproj.exceptions import ProjError
from torch import Tensor

from .devices import wide

#: Key of longitude and latitude (WGS 84) of the centre of each tile in a batch, ``(B, 2)`` float64 in degrees.
COORDINATES = 'coordinates'
#: Key of the flags ``(B, 1)`` of tiles whose location may be used; True if it is absent.
LOCATION_VALID = 'valid_location'
#: Mean radius of the Earth in km.
EARTH_RADIUS = 6371.0088


def unit_vectors(coordinates: Tensor) -> Tensor:
    """Return unit vectors ``(..., 3)`` in double precision of longitudes and latitudes ``(..., 2)`` in degrees."""
    longitude, latitude = torch.deg2rad(coordinates.to(wide(coordinates.device))).unbind(-1)
    flat = latitude.cos()
    return torch.stack([flat * longitude.cos(), flat * longitude.sin(), latitude.sin()], dim=-1)


def centre_coordinates(bounds: Tensor, crs: Any) -> Tensor:
    """Return longitude and latitude of the centres of tiles in degrees (WGS 84), ``(..., 2)`` float64.

    *bounds* are ``(..., 9)`` in TorchGeo's order, and *crs* in any form that pyproj reads; x is easting or longitude.
    In a geographic CRS, xmin above xmax is a tile across the antimeridian, as in GeoJSON. NaN where the bounds are
    unknown or have no location in the CRS.

    Raises:
        ValueError: If *bounds* has another number of columns.
    """
    if bounds.shape[-1:] != (9,):
        raise ValueError(
            f'bounds has shape {tuple(bounds.shape)}, expected (..., 9): xmin, xmax, xres, ymin, ymax, yres, tmin, '
            'tmax, tres'
        )
    box = bounds.detach().cpu().double()
    x, y = ((box[..., low] + box[..., low + 1]) / 2 for low in (0, 3))
    unknown = torch.full((*box.shape[:-1], 2), torch.nan, dtype=torch.float64)
    transformer = _to_degrees(crs)
    if transformer is None:
        return unknown
    assert transformer.source_crs is not None
    if transformer.source_crs.is_geographic:
        x = torch.where(box[..., 0] > box[..., 1], x + 180, x)
    degrees = transformer.transform(x.flatten().numpy(), y.flatten().numpy())
    found = torch.stack([torch.as_tensor(values, dtype=torch.float64) for values in degrees], -1).view_as(unknown)
    longitude, latitude = found.unbind(-1)
    longitude = torch.where(longitude.abs() <= 180, longitude, (longitude + 180) % 360 - 180)
    known = found.isfinite().all(-1) & (latitude.abs() <= 90)
    return torch.where(known.unsqueeze(-1), torch.stack([longitude, latitude], -1), unknown)


@lru_cache(maxsize=64)
def _to_degrees(crs: Any) -> Transformer | None:
    """Return the transformer to longitude and latitude; None for a local CRS without a location."""
    try:
        return Transformer.from_crs(CRS.from_user_input(crs), 'EPSG:4326', always_xy=True)
    except ProjError:
        return None
