# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Reader of NetCDF variables that follow the CF conventions: pixel grid, dates, CRS and packing."""

import functools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import rasterio
from numpy.typing import NDArray
from pyproj import CRS
from pyproj.exceptions import CRSError
from rasterio import Affine
from rasterio.windows import Window

from ...utils.plurals import counted
from ...utils.reading import refuse_special
from ...utils.tensors.observed import MAX_RAW
from ..io.decoding import Decoding, warn_of_huge_values
from ..io.fingerprint import State, state_of
from ..io.headers import Header, refuse_complex, stated_crs

#: Axes by ``standard_name``, by units and, if a file has neither, by the name of the coordinate.
_STATED = {
    'X': ('projection_x_coordinate', 'longitude', 'grid_longitude'),
    'Y': ('projection_y_coordinate', 'latitude', 'grid_latitude'),
    'T': ('time',),
}
_UNITS = {'X': 'degrees_east degree_east degrees_e degree_e', 'Y': 'degrees_north degree_north degrees_n degree_n'}
_NAMES = {'X': ('x', 'lon', 'longitude', 'easting'), 'Y': ('y', 'lat', 'latitude', 'northing'), 'T': ('time', 't')}
_KILOMETRES = ('km', 'kilometer', 'kilometers', 'kilometre', 'kilometres')
#: Attributes with a CRS, in order of precedence.
_CRS_KEYS = ('crs_wkt', 'spatial_ref', 'epsg_code', 'epsg', 'crs', 'proj4', 'proj4text')
#: Date, month or year.
_ISO = re.compile(r'\d{4}(-\d\d){0,2}')
#: Range of dates of an index, in nanoseconds.
_FIRST, _LAST = np.datetime64('1678-01-01'), np.datetime64('2261-12-31')
#: Values of pixels that were never written, if a variable states none (``NC_FILL_SHORT`` and others); floats are huge.
_UNWRITTEN = {f'int{bits}': -(2.0 ** (bits - 1)) + 1 for bits in (16, 32)} | {'int64': -(2.0**63) + 2}
_UNWRITTEN |= {f'uint{bits}': 2.0**bits - 1 for bits in (16, 32)} | {'uint64': 2.0**64 - 2}
#: Calendars whose dates are those of the Gregorian calendar.
_CALENDARS = ('standard', 'gregorian', 'proleptic_gregorian')


class Cube(NamedTuple):
    """Metadata of the variables of a NetCDF file, which share pixel grid and dates.

    Args:
        header: CRS and pixel grid, north up; ``descriptions`` are the names of the variables.
        x: Dimension of the columns.
        y: Dimension of the rows.
        time: Dimension of the dates; None for a single date.
        flipped: Whether rows are stored from south to north, and columns from east to west.
        days: Date of each frame; NaT for a single one without a date.
        units: Attribute ``units`` of each variable; empty if it has none.
    """

    header: Header
    x: str
    y: str
    time: str | None
    flipped: tuple[bool, bool]
    days: NDArray[np.datetime64]
    units: tuple[str, ...] = ()


class Packing(NamedTuple):
    """Packing of a variable: value = stored value * scale + offset.

    Args:
        fill: Nodata values, as stored.
        low: Minimum valid value, as stored.
        high: Maximum valid value, as stored.
        scale: Scale factor.
        offset: Offset, added after scaling.
        unsigned: Whether signed integers represent unsigned ones.
    """

    fill: tuple[float, ...] = ()
    low: float = -np.inf
    high: float = np.inf
    scale: float = 1.0
    offset: float = 0.0
    unsigned: bool = False


def read_cube(path: str, bands: Sequence[str] | None, time: str | None = None, crs: Any = None) -> Cube:
    """Read the metadata of a NetCDF file; no pixel is read.

    *bands* defaults to all variables on the pixel grid of the first. *time* and *crs* are for files that do not state
    them.
    """
    with open_cube(path) as file:
        names = _bands(file, path) if bands is None else list(bands)
        if missing := [name for name in names if name not in file.variables]:
            raise ValueError(f'{path} has no variable {missing[0]!r}, expected some of {_bands(file, path)}')
        variables = {name: file.variables[name] for name in names}
        refuse_complex([variable.dtype for variable in variables.values()], path)
        for name, variable in variables.items():
            if variable.dtype.kind not in 'iuf':
                raise ValueError(f'variable {name!r} of {path} holds {variable.dtype}, expected numbers')
        first = variables[names[0]]
        for name, variable in variables.items():
            if set(variable.sizes.items()) != set(first.sizes.items()):
                raise ValueError(
                    f'variable {name!r} of {path} has the dimensions {dict(variable.sizes)}, expected '
                    f'{dict(first.sizes)} as {names[0]!r}: bands chooses variables of one grid and the same dates'
                )
        x, y, when = _dimensions(file, names[0], path, time)
        own = _crs(file, first, x, y, path)
        placed = CRS.from_user_input(crs) if own is None and crs is not None else own
        columns, rows = (_positions(file, dim, placed) for dim in (x, y))
        left, width = _edge(columns, rows, x, path)
        bottom, height = _edge(rows, columns, y, path)
        if placed is not None and placed.is_geographic and left + abs(width) * len(columns) > 180 + abs(width):
            left = _western(left, abs(width), len(columns), path)
        transform = Affine(abs(width), 0, left, 0, -abs(height), bottom + abs(height) * len(rows))
        with rasterio.Env(OSR_WKT_FORMAT='WKT2_2018'):
            stated = None if own is None else rasterio.crs.CRS.from_wkt(own.to_wkt())
        packings = [packing_of(variable) for variable in variables.values()]
        header = Header(
            path,
            stated_crs(stated),
            transform,
            len(columns),
            len(rows),
            tuple(str(variable.dtype) for variable in variables.values()),
            tuple(names),
            tuple(packing.scale for packing in packings),
            tuple(packing.offset for packing in packings),
            {},
            None,
            None,
        )
        if header.crs is None and crs is None:
            raise ValueError(
                f'{path} states no CRS, or a local one, expected a grid mapping with crs_wkt, or crs in its settings, '
                "such as crs: 'EPSG:32631'"
            )
        days = _days(file, first, when, path, time)
        units = tuple(str(_plain(variable.attrs.get('units', ''))).strip() for variable in variables.values())
    return Cube(header, x, y, when if when in first.dims else None, (height > 0, width < 0), days, units)


def open_cube(path: str) -> Any:
    """Open a NetCDF file, of version 3 or 4, with xarray; nothing is decoded and no pixel is read."""
    try:
        import h5netcdf  # noqa: F401
        import xarray
    except ImportError as error:
        raise ImportError(
            f'{path} cannot be read ({error}), expected xarray and h5netcdf: pip install torchgeo-omnisat[netcdf]'
        ) from error
    refuse_special(path, 'a NetCDF file')
    with open(path, 'rb') as file:
        is_classic = file.read(3) == b'CDF'
    try:
        return xarray.open_dataset(path, engine='scipy' if is_classic else 'h5netcdf', decode_cf=False, cache=False)
    except Exception as error:  # any error of xarray, h5netcdf and h5py
        raise ValueError(f'{path} cannot be read ({error}), expected a NetCDF file') from error


def read_frames_of(
    cube: Cube, names: Sequence[str], frames: NDArray[np.int64], window: Window, decoding: Decoding, cache: bool = True
) -> NDArray[np.float32]:
    """Read a window of several dates as float32 ``(F, C, H, W)``, NaN where pixels are not valid."""
    path = cube.header.path
    file = _kept_open(path, os.getpid(), state_of(path)) if cache else open_cube(path)
    try:
        return _read_frames(file, cube, names, frames, window, decoding)
    finally:
        if not cache:
            file.close()


def _read_frames(
    file: Any, cube: Cube, names: Sequence[str], frames: NDArray[np.int64], window: Window, decoding: Decoding
) -> NDArray[np.float32]:
    top, left, height, width = (round(part) for part in (window.row_off, window.col_off, window.height, window.width))
    if cube.flipped[0]:
        top = cube.header.height - top - height
    if cube.flipped[1]:
        left = cube.header.width - left - width
    image = np.empty((len(frames), len(names), height, width), dtype=np.float32)
    for band, name in enumerate(names):
        variable, packing = file.variables[name], packing_of(file.variables[name])
        where: dict[str, Any] = {dim: 0 for dim in variable.dims if dim != cube.time}
        where |= {cube.y: slice(top, top + height), cube.x: slice(left, left + width)}
        axes = ([] if cube.time is None else [cube.time]) + [cube.y, cube.x]
        for places in _runs(frames, _chunk(variable, cube.time)):
            here = frames[places]
            time = {} if cube.time is None else {cube.time: slice(int(here.min()), int(here.max()) + 1)}
            try:
                stored = variable.isel(where | time).transpose(*axes).values
            except Exception as error:  # any error of h5py
                raise ValueError(f'{cube.header.path} cannot be read ({error}), expected variable {name!r}') from error
            stored = stored.reshape(-1, height, width)[here - here.min()]
            image[places, band] = unpack(stored, packing, decoding, cube.header.path)
    rows, columns = (slice(None, None, -1 if flip else 1) for flip in cube.flipped)
    return image[..., rows, columns]


def packing_of(variable: Any) -> Packing:
    """Return the packing of a variable from its attributes."""
    attrs, dtype = variable.attrs, variable.dtype
    unsigned = dtype.kind == 'i' and str(_plain(attrs.get('_Unsigned', ''))).lower() == 'true'
    scale, offset = (float(_plain(attrs.get(key, usual))) for key, usual in (('scale_factor', 1), ('add_offset', 0)))
    fill = [np.ravel(attrs[key]) for key in ('_FillValue', 'missing_value') if key in attrs]
    if '_FillValue' not in attrs and dtype.name in _UNWRITTEN:
        fill.append(np.ravel(_UNWRITTEN[dtype.name]))
    limits = [np.ravel(attrs['valid_range'])] if 'valid_range' in attrs else []
    limits = limits or [
        np.ravel(attrs.get(key, usual)) for key, usual in (('valid_min', -np.inf), ('valid_max', np.inf))
    ]
    low, high = np.concatenate(limits).astype(np.float64)
    numbers = np.concatenate([*fill, []]).astype(np.float64)
    is_float = any(np.asarray(attrs.get(f'valid_{key}', 0)).dtype.kind == 'f' for key in ('range', 'min', 'max'))
    if (
        is_float and dtype.kind != 'f' and (scale, offset) != (1, 0)
    ):  # CF: limits of the type of unpacked values are unpacked
        low, high = sorted(((low - offset) / scale, (high - offset) / scale))
    if unsigned:
        span = 2.0 ** (8 * dtype.itemsize)
        numbers, low, high = (np.where((x < 0) & np.isfinite(x), x + span, x) for x in (numbers, low, high))
    return Packing(tuple(numbers.tolist()), float(low), float(high), scale, offset, unsigned)


def unpack(stored: NDArray[Any], packing: Packing, decoding: Decoding, path: str) -> NDArray[np.float32]:
    """Unpack values to float32, NaN where they are not valid."""
    if packing.unsigned:
        stored = stored.view(stored.dtype.str.replace('i', 'u'))
    valid = ~np.isnan(stored) if stored.dtype.kind == 'f' else np.ones(stored.shape, np.bool_)
    if packing.low > -np.inf or packing.high < np.inf:
        valid &= (stored >= packing.low) & (stored <= packing.high)
    for number in (*(packing.fill if decoding.replaced is None else decoding.replaced), *decoding.nodata):
        valid &= stored != number
    if stored.dtype.kind == 'f' and (huge := valid & (np.abs(stored) > MAX_RAW)).any():
        warn_of_huge_values(path, int(huge.sum()))
        valid &= ~huge
    plain = not decoding.scaled or (packing.scale, packing.offset) == (1, 0)
    with np.errstate(over='ignore', invalid='ignore'):
        values = stored.astype(np.float32) if plain else (stored * packing.scale + packing.offset).astype(np.float32)
    values[~valid] = np.nan
    return values


def _bands(file: Any, path: str) -> list[str]:
    """Return the variables with the most dimensions that have the dimensions of the first of them."""
    spatial = {name: variable for name, variable in file.variables.items() if _is_spatial(file, variable)}
    if not spatial:
        raise ValueError(
            f'{path} has the variables {list(file.variables)}, expected one with the dimensions of pixels, such as '
            '(time, y, x), each with a coordinate'
        )
    most = max(variable.ndim for variable in spatial.values())
    first = next(variable for variable in spatial.values() if variable.ndim == most)
    return [name for name, variable in spatial.items() if set(variable.dims) == set(first.dims)]


def _is_spatial(file: Any, variable: Any) -> bool:
    axes = {_axis(name, file.variables[name]) for name in variable.dims if name in file.variables}
    return {'X', 'Y'} <= axes and variable.dtype.kind in 'iufc'


def _axis(name: str, variable: Any) -> str:
    """Return the axis of a coordinate, X, Y, T or '', from its CF attributes, else from its name."""
    attrs = {key: str(_plain(value)) for key, value in variable.attrs.items() if np.size(value) == 1}
    axis = attrs.get('axis', '').upper()
    if axis in _NAMES:
        return axis
    units = attrs.get('units', '').lower()
    for axis in _NAMES:
        if attrs.get('standard_name') in _STATED[axis] or (units and units in _UNITS.get(axis, '').split()):
            return axis
    if ' since ' in units:
        return 'T'
    return next((axis for axis in 'XY' if name.lower() in _NAMES[axis]), '')


def _dimensions(file: Any, name: str, path: str, time: str | None) -> tuple[str, str, str | None]:
    """Return the dimensions of columns, rows and dates of a variable; None for a scalar time coordinate."""
    variable = file.variables[name]
    axes = {dim: _axis(dim, file.variables[dim]) if dim in file.variables else '' for dim in variable.dims}
    dims = {axis: [dim for dim, own in axes.items() if own == axis] for axis in 'XYT'}
    if len(dims['X']) != 1 or len(dims['Y']) != 1:
        raise ValueError(
            f'variable {name!r} of {path} has the dimensions {list(variable.dims)}, expected one of x and one of y '
            'with coordinates (axis, standard_name, or the names x, y, lon, lat): resample pixels whose coordinates '
            'have two dimensions to a regular grid first'
        )
    x, y = dims['X'][0], dims['Y'][0]
    when = _named_time(file, variable, path, time) if time is not None else next(iter(dims['T']), None)
    others = [dim for dim in variable.dims if dim not in (x, y, when) and variable.sizes[dim] > 1]
    if others:
        raise ValueError(
            f'variable {name!r} of {path} has the dimension {others[0]!r} of {variable.sizes[others[0]]}, expected '
            f'those of dates, y and x: if it is that of dates, name its coordinate by time, such as time: {others[0]}'
        )
    return x, y, when


def _named_time(file: Any, variable: Any, path: str, time: str) -> str | None:
    if time not in file.variables:
        raise ValueError(f'time is {time!r}, expected a coordinate of {path}, one of {list(file.variables)}')
    dims = file.variables[time].dims
    if len(dims) > 1 or not set(dims) <= set(variable.dims):
        raise ValueError(
            f'time is {time!r}, which has the dimensions {list(dims)} in {path}, expected one of {list(variable.dims)}'
        )
    return str(dims[0]) if dims else None


def _positions(file: Any, dim: str, crs: CRS | None) -> NDArray[np.float64]:
    """Return coordinates in the unit of a CRS; those of projected ones may be stored in kilometres."""
    packing = packing_of(file.variables[dim])
    values = np.atleast_1d(file.variables[dim].values).astype(np.float64) * packing.scale + packing.offset
    units = str(_plain(file.variables[dim].attrs.get('units', ''))).strip().lower()
    if units not in _KILOMETRES or crs is None or not crs.is_projected:
        return values
    return values * 1000 / crs.axis_info[0].unit_conversion_factor


def _edge(values: NDArray[np.float64], others: NDArray[np.float64], dim: str, path: str) -> tuple[float, float]:
    """Return the minimum edge of the pixels along an axis, and their step, negative if coordinates decrease."""
    count = len(values)
    if not np.isfinite(values).all() or max(count, len(others)) < 2:
        raise ValueError(f'{dim!r} of {path} is {values[:3]}, expected the coordinates of at least two pixels')
    step = (values[-1] - values[0]) / (count - 1) if count > 1 else abs(others[-1] - others[0]) / (len(others) - 1)
    even = values[0] + step * np.arange(count)
    wrong, single = np.abs(values - even).max(), values.astype(np.float32)
    rounding = 2 * float(np.spacing(np.abs(single).max())) if (single == values).all() else 0.0
    if step == 0 or wrong > 0.01 * abs(step) + rounding:
        steps = np.diff(values)
        raise ValueError(
            f'{dim!r} of {path} has steps from {steps.min():g} to {steps.max():g}, expected a regular grid: resample '
            'it first'
        )
    return float(min(values[0], values[-1]) - abs(step) / 2), float(step)


def _western(left: float, step: float, count: int, path: str) -> float:
    """Return the western edge, from -180 to 180, of a file with longitudes above 180."""
    if left < 180 - step:
        raise ValueError(
            f'{path} has longitudes from {left:g} to {left + step * count:g}, expected -180 to 180: roll them, as by '
            'assign_coords(lon=(lon + 180) % 360 - 180).sortby("lon") of xarray'
        )
    return left - 360


def _crs(file: Any, variable: Any, x: str, y: str, path: str) -> CRS | None:
    """Return the CRS of the grid mapping, else of the variable or the file, else WGS 84 for degrees."""
    mapping = str(_plain(variable.attrs.get('grid_mapping', ''))).replace(':', ' ').split()
    named = [name for name in (*mapping[:1], 'spatial_ref', 'crs') if name in file.variables]
    for name in dict.fromkeys(named):
        attrs = {key: _plain(value) for key, value in file.variables[name].attrs.items()}
        found = _spelled(attrs, path)
        if found is not None:
            return found
        if 'grid_mapping_name' in attrs:
            try:
                return CRS.from_cf(attrs)
            except (CRSError, KeyError, ValueError) as error:
                raise ValueError(f'grid mapping {name!r} of {path} is not a CRS ({error}), expected crs_wkt') from error
    for attrs in (variable.attrs, file.attrs):
        found = _spelled({key: _plain(value) for key, value in attrs.items()}, path)
        if found is not None:
            return found
    units = [str(_plain(file.variables[dim].attrs.get('units', ''))).lower() for dim in (x, y)]
    is_degrees = units[0] in _UNITS['X'].split() and units[1] in _UNITS['Y'].split()
    return CRS.from_epsg(4326) if is_degrees else None


def _spelled(attrs: Mapping[str, Any], path: str) -> CRS | None:
    for key in _CRS_KEYS:
        text = str(attrs.get(key, '')).strip().removeprefix('+init=')
        if not text:
            continue
        try:
            return CRS.from_user_input(int(text) if text.isdigit() else text)
        except CRSError as error:
            if key in ('crs_wkt', 'spatial_ref'):
                raise ValueError(f'{key} of {path} is not a CRS ({error}), expected WKT') from error
    return None


def _days(file: Any, variable: Any, dim: str | None, path: str, time: str | None) -> NDArray[np.datetime64]:
    name = time if time is not None else dim
    if name is None:  # a scalar coordinate
        listed = str(_plain(variable.attrs.get('coordinates', ''))).split()
        scalars = [one for one in (*listed, 'time') if one in file.variables and file.variables[one].size == 1]
        name = next((one for one in scalars if _axis(one, file.variables[one]) == 'T'), None)
    if name is None:
        return np.array(['NaT'], 'datetime64[D]')
    coordinate = file.variables[name]
    try:
        days = _decoded(coordinate, name)
    except Exception as error:  # any error of xarray and cftime
        raise ValueError(
            f'{name!r} of {path} cannot be read as dates ({error}), expected a CF time such as "days since 1970-01-01" '
            'in a standard calendar'
        ) from error
    if not len(days):
        raise ValueError(f'{name!r} of {path} has no date, expected at least one')
    if np.isnat(days).any():
        raise ValueError(
            f'{name!r} of {path} lacks {np.isnat(days).sum()} of {counted(len(days), "date")}, expected all'
        )
    if wrong := [day for day in (days.min(), days.max()) if not _FIRST <= day <= _LAST]:
        raise ValueError(f'{name!r} of {path} has the date {wrong[0]}, expected a year from 1678 to 2261')
    return days


def _decoded(coordinate: Any, name: str) -> NDArray[np.datetime64]:
    """Decode a time coordinate: CF times, or dates as numbers or strings such as 20210615 or 2021-06-15."""
    import xarray

    values = np.atleast_1d(coordinate.values)
    if ' since ' in str(_plain(coordinate.attrs.get('units', ''))):
        calendar = str(_plain(coordinate.attrs.get('calendar', 'standard'))).lower()
        if calendar not in _CALENDARS:
            raise ValueError(f'its calendar is {calendar!r}')
        decoded = xarray.decode_cf(xarray.Dataset({name: coordinate}))[name].values
        values = np.atleast_1d(decoded)
        if values.dtype.kind == 'O':  # cftime, for years beyond the range of nanoseconds
            values = np.array([f'{day.year:04d}-{day.month:02d}-{day.day:02d}' for day in values])
        return values.astype('datetime64[D]')
    texts = [value.decode() if isinstance(value, bytes) else str(value) for value in values.tolist()]
    days = [_iso(text) for text in texts]
    if wrong := [text for text, day in zip(texts, days, strict=True) if not _ISO.fullmatch(day)]:
        raise ValueError(f'{wrong[0]!r} is not a date such as 20210615, and it has no units')
    return np.array(days, 'datetime64[D]')


def _iso(text: str) -> str:
    digits = text.removesuffix('.0')
    return f'{digits[:4]}-{digits[4:6]}-{digits[6:]}' if digits.isdigit() and len(digits) == 8 else text[:10]


def _plain(value: Any) -> Any:
    value = np.asarray(value)
    value = value.item() if value.size == 1 else value
    return value.decode() if isinstance(value, bytes) else value


def _chunk(variable: Any, time: str | None) -> int:
    chunks = variable.encoding.get('chunksizes')
    return int(chunks[variable.dims.index(time)]) if chunks and time is not None else 1


def _runs(frames: NDArray[np.int64], chunk: int) -> Iterable[NDArray[np.intp]]:
    order = np.argsort(frames, kind='stable')
    chunks = frames[order] // chunk
    return np.split(order, np.flatnonzero(np.diff(chunks) > 1) + 1)


@functools.lru_cache(maxsize=32)
def _kept_open(path: str, process: int, state: State | None) -> Any:
    """Return an open file, cached per process until it changes; HDF5 handles are not shared between processes."""
    return open_cube(path)
