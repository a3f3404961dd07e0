# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Labels from vector files: polygons or points with class names, indices or codes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
import torch
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray
from pandas.api.types import is_numeric_dtype
from pyproj import CRS
from rasterio.features import rasterize
from torchgeo.datasets import VectorDataset
from torchgeo.datasets.utils import GeoSlice, Sample

from ...grid import Grid
from ...utils.checks import require_pyarrow
from ...utils.reading import is_special
from ..common.classes import NO_LABEL, UNKNOWN, ClassMap, without_blanks
from ..io.files import read_csv
from ..io.fingerprint import vector_state
from ..io.links import refuse_links
from ..io.opening import refuse_other_format
from ..rasters.frames import ALWAYS, is_remote
from ..rasters.georeference import where, window_grid

#: Suffixes of vector files in a folder.
VECTORS = ('.gpkg', '.geojson', '.shp', '.parquet', '.fgb', '.gml', '.kml')
#: Suffixes of files that may have other content; read only in folders without vector files.
TABLES = ('.json', '.csv', '.zip')
#: Names of the columns of coordinates in a table, in lower case.
DEGREES = (('lon', 'lat'), ('longitude', 'latitude'), ('long', 'lat'), ('lng', 'lat'))
METRIC = (('x', 'y'), ('easting', 'northing'))
#: Numbers with a decimal comma in degrees and in metres; a comma in ``500,100`` metres may separate thousands.
_COMMA_DEGREES, _COMMA_METRES = r'[+-]?\d{1,3},\d+', r'[+-]?\d{4,},\d+'

#: Margin of the bounding box of points in units of the CRS, so that a single point has one.
EDGE = 1e-6
#: Maximum coordinate in units of any CRS.
FARTHEST = 1e9

_POINTS = {'Point', 'MultiPoint'}
_SURFACES = {'Polygon', 'MultiPolygon', 'GeometryCollection'}


class Polygons(VectorDataset):
    """Dataset of polygons or points as labels; pixels outside of all polygons are unlabelled without *outside*.

    Points are sparse labels: each labels the pixel that contains it, and other pixels have no label.
    A pixel with points of different classes is ambiguous and has no label. Where polygons of
    different classes overlap, the last one in the file, or in the last of several files, wins, so
    that files may be layered. :meth:`ambiguous` returns such pixels of both.
    Labels are read from vector files, or from tables with the columns ``lon`` and ``lat``, or ``x``
    and ``y`` in *crs*.

    Unlike TorchGeo's ``VectorDataset``, pixels outside of all polygons are not class 0, classes have
    names, files are read once until they change and are searched by a spatial index, and a window in
    another CRS is reprojected as a whole rather than by two of its corners.

    Args:
        paths: One or more vector files, or directories of them.
        crs: CRS of the labels; defaults to that of the first file.
        column: Column of the class: one of *labels*, its index, or a code of *classes*.
            None: every polygon is class 1, and all other pixels are class 0.
        outside: Class of pixels outside of all polygons, a name or an index; None for no label.
            A polygon without a value in *column* never has a label.
        layer: Layer of the files; defaults to the first.
        labels: Class names; defaults to those of *classes*.
        classes: Class name by code, if values of *column* are other codes: numbers or text.
        other: Class of all codes that are not in *classes*.
        ignore_index: Code of geometries without a label.
        buffer: Buffer around points and polygons, in metres.
        allow_outside: Whether symbolic links in directories of *paths* may lead out of them.

    Raises:
        ValueError: If a file cannot be read or lacks *column*, a code is not a class, or a link leads out of its
            directory.
    """

    #: Value of pixels without a label, also in joins.
    nodata = -1

    def __init__(
        self,
        paths: Any = 'data',
        crs: Any = None,
        column: str | None = None,
        outside: str | int | None = None,
        layer: str | int | None = None,
        labels: Sequence[str] = (),
        classes: Mapping[Any, Any] | None = None,
        other: str | None = None,
        ignore_index: int | None = None,
        buffer: float = 0.0,
        allow_outside: bool = False,
    ) -> None:
        refuse_links(paths, allow_outside)
        self.default_crs = crs
        self.paths, self.transforms, self.layer = paths, None, layer
        self.label_name, self.task, self._res = column, 'semantic_segmentation', (0.0001, 0.0001)
        self.codes = ClassMap(labels, classes, other, ignore_index)
        self.names, self.buffer = self.codes.numbers, buffer
        files = self.files
        self._states = {path: vector_state(path) for path in files}
        read = {path: self._read(path) for path in files}
        kinds = {path: set(frame.geom_type) <= _POINTS for path, frame in read.items()}
        if len(set(kinds.values())) > 1:
            one, two = (next(path for path, kind in kinds.items() if kind is wanted) for wanted in (True, False))
            raise ValueError(f'{one} has points and {two} polygons, expected only one kind in the mask')
        #: Whether these are points: labels of single pixels.
        self.sparse = kinds[files[0]]
        if column is None:
            self._check_single(read[files[0]], outside)
        self.outside = self._outside(outside)
        self.frames = self._numbered(read)
        self.index = self._index(CRS.from_user_input(crs or self.frames[files[0]].crs))
        if column:
            self._warn_of_unused_classes()

    @property
    def files(self) -> list[str]:
        """Vector files of *paths* and of its directories, without sidecar files."""
        several = self.paths if isinstance(self.paths, list | tuple) else [self.paths]
        found: list[str] = []
        for path in map(str, several):
            if not Path(path).is_dir() or Path(path).suffix.lower() == '.gdb' or is_remote(path):
                found.append(path)
                continue
            inside = sorted(one for one in Path(path).rglob('*') if not _is_hidden(one, path))
            groups = [[one for one in inside if one.suffix.lower() in group] for group in (VECTORS, TABLES)]
            if not any(groups):
                names = [one.name for one in inside[:3]]
                raise ValueError(f'{path} has the files {names}, expected some of {[*VECTORS, *TABLES]}')
            found += map(str, groups[0] or groups[1])
        return list(dict.fromkeys(found))

    def __getitem__(self, index: GeoSlice) -> Sample:
        """Return ``mask`` (H, W) of a window, :attr:`nodata` where there is no label or points are ambiguous."""
        x, y, t = self._disambiguate_slice(index)
        grid, window = window_grid(self.crs, x, y), shapely.box(x.start, y.start, x.stop, y.stop)
        rows = self.index[self.index.index.overlaps(pd.Interval(t.start, t.stop)) & self.index.intersects(window)]
        if rows.empty:
            raise IndexError(f'no polygon intersects {index}, expected a window within {self.bounds}')
        near = self._near(grid)
        if self.sparse:
            near = near[near.number != self.nodata]  # a point without a class does not contradict another
        mask = self._drawn(near, grid, self.outside)
        if self.sparse:
            mask[self._differ(near, grid)] = self.nodata
        return {'mask': torch.from_numpy(mask).long(), **where(grid, (t.start, t.stop))}

    def instances(self, grid: Grid) -> NDArray[np.int64]:
        """Return the polygon of each pixel (H, W), from 1 in every window and 0 outside of all polygons.

        Polygons that touch or overlap have different ids. Where they overlap, the same one wins as in the mask.
        Polygons of the class *outside* have the id 0, and parts of a multipolygon have different ids.

        Raises:
            ValueError: If there are points.
        """
        if self.sparse:
            raise ValueError(f'{self.files[0]} has points, expected polygons for instances, the field of each pixel')
        near = self._near(grid).explode(ignore_index=True)
        ids = np.where((near.number == self.outside) & (self.outside != self.nodata), 0, np.arange(1, len(near) + 1))
        return self._drawn(near.assign(number=ids), grid, 0).astype(np.int64)

    def ambiguous(self, grid: Grid) -> NDArray[np.bool_]:
        """Return a mask (H, W) of the pixels with polygons or points of different classes."""
        near = self._near(grid)
        return self._differ(near[near.number != self.nodata], grid)

    def _near(self, grid: Grid) -> gpd.GeoDataFrame:
        """Return the geometries that intersect a grid, in the order of files and rows."""
        window = shapely.box(*grid.bounds)
        frames = [self._frame(path) for path in self.index.filepath[self.index.intersects(window)]]
        parts = [frame.iloc[np.sort(frame.sindex.query(window, predicate='intersects'))] for frame in frames]
        return pd.concat(parts) if parts else next(iter(self.frames.values())).iloc[:0]

    def _differ(self, near: gpd.GeoDataFrame, grid: Grid) -> NDArray[np.bool_]:
        """Return a mask of pixels with several classes, where the lowest and the highest class index differ."""
        if near.number.nunique() < 2:
            return np.zeros((grid.height, grid.width), bool)
        ordered = near.sort_values('number')
        return self._drawn(ordered, grid, self.nodata) != self._drawn(ordered[::-1], grid, self.nodata)

    def _drawn(self, near: gpd.GeoDataFrame, grid: Grid, outside: int) -> NDArray[np.int32]:
        """Rasterize the class indices (H, W) of geometries in their order."""
        mask = np.full((grid.height, grid.width), outside, np.int32)
        if len(near):
            rasterize(zip(near.geometry, near.number, strict=True), out=mask, transform=grid.transform)
        return mask

    def widen(self, metres: float) -> None:
        """Buffer the footprint of the labels, the bounding box of each file."""
        wide = _buffered(self.index.geometry, metres, join_style='mitre')
        self.index = self.index.set_geometry(wide.envelope)

    def _frame(self, path: str) -> gpd.GeoDataFrame:
        """Return the geometries of a file in the CRS of the labels.

        A file that has changed is read again; the footprint of the labels is not updated.
        """
        if (state := vector_state(path)) != self._states[path]:
            self.frames |= self._numbered({path: self._read(path)})
            self._states[path] = state
        if self.frames[path].crs != self.crs:
            self.frames[path] = self.frames[path].to_crs(self.crs)
        return self.frames[path]

    def _index(self, crs: CRS) -> gpd.GeoDataFrame:
        bounds = [frame.to_crs(crs).total_bounds for frame in self.frames.values()]
        boxes = [shapely.box(x - EDGE, y - EDGE, u + EDGE, v + EDGE) for x, y, u, v in bounds]
        when = pd.IntervalIndex.from_tuples([ALWAYS] * len(boxes), closed='both', name='datetime')
        return gpd.GeoDataFrame({'filepath': list(self.frames)}, index=when, geometry=boxes, crs=crs)

    def _read(self, path: str) -> gpd.GeoDataFrame:
        return read_geometries(path, self.label_name, self.layer, self.default_crs)

    def _check_single(self, frame: gpd.GeoDataFrame, outside: str | int | None) -> None:
        labels, columns = self.codes.labels, list(frame.columns.drop(frame.geometry.name))
        several = len(labels) > 2 or self.sparse or self.codes.other != UNKNOWN or outside in (1, *labels[1:])
        if labels and several:
            raise ValueError(
                f'the mask has no column, but there are the labels {labels}, expected column, which names '
                f'the class of each polygon or point; {self.files[0]} has {columns}'
            )

    def _outside(self, outside: str | int | None) -> int:
        if outside is None:
            return self.nodata if self.label_name or self.sparse else 0
        if self.sparse:
            raise ValueError(
                f'outside of the mask is {outside!r}, but {self.files[0]} has points, which label only their pixels: '
                'expected no outside'
            )
        if outside not in [*self.names, *self.names.values()]:
            raise ValueError(f'outside of the mask is {outside!r}, expected one of the labels {list(self.names)}')
        return self.names[outside] if isinstance(outside, str) else outside

    def _numbered(self, read: Mapping[str, gpd.GeoDataFrame]) -> dict[str, gpd.GeoDataFrame]:
        """Return the geometries of each file with their class index as ``number``."""
        frames, unknown, strange = {}, Counter[Any](), []
        for path, frame in read.items():
            values = frame[self.label_name] if self.label_name else pd.Series(1, frame.index)
            missing = values.isna()
            known = {value: self.codes.number(value) for value in values[~missing].unique()} if self.label_name else {}
            numbers = values.map(known).where(~missing, NO_LABEL) if self.label_name else values
            new = Counter(values[numbers == UNKNOWN].tolist())
            unknown += new
            strange += [path] * bool(new)
            numbers = numbers.where(numbers != NO_LABEL, self.nodata).astype(np.int64)
            shapes = shapely.force_2d(_buffered(frame.geometry, self.buffer).array)
            drawn = gpd.GeoDataFrame({'number': numbers.to_numpy()}, geometry=shapes, crs=frame.crs)
            frames[path] = drawn[~drawn.geometry.is_empty]
        if unknown:
            where = [f'column {self.label_name!r} of {path}' for path in strange]
            raise self.codes.unknown(unknown, where, 'points' if self.sparse else 'polygons')
        return frames

    def _warn_of_unused_classes(self) -> None:
        found = {self.outside}.union(*(frame.number for frame in self.frames.values()))
        lacking = [name for name, number in self.names.items() if number not in found]
        if lacking:
            hint = f'; "outside: {lacking[0]}" in the mask would make the ground around them {lacking[0]!r}'
            rank_zero_warn(
                f'no {"point" if self.sparse else "polygon"} of {self.paths} is {lacking}'
                + hint * (self.outside == self.nodata and not self.sparse)
            )


def read_geometries(
    path: str, column: str | None = None, layer: str | int | None = None, crs: Any = None
) -> gpd.GeoDataFrame:
    """Read the polygons or points of a vector file or a table.

    Args:
        path: Vector file, or table with the columns ``lon`` and ``lat``, or ``x`` and ``y`` in *crs*.
        column: Required column.
        layer: Layer of the file; defaults to the first.
        crs: CRS of a file without one.

    Returns:
        Rows with a geometry, and null instead of blank texts. The attribute ``attrs['without_geometry']`` is the number
        of other rows.

    Raises:
        ValueError: If the file cannot be read, lacks *column* or a CRS, or has lines or no geometries.
    """
    try:
        if is_special(path):
            raise ValueError('it is not a regular file')
        if path.lower().endswith('.csv'):
            text = {column: str} if column else None  # keeps the leading zeros of codes
            frame: Any = read_csv(path, sep=None, engine='python', dtype=text, keep_default_na=False, na_values=[''])
        elif path.lower().endswith('.parquet'):
            require_pyarrow(path)
            frame = _parquet(path)
        else:
            refuse_other_format(path)
            frame = gpd.read_file(path, layer=layer)
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            f'{path} cannot be read ({error}), expected a vector file with polygons or points, or a table of points'
        ) from error
    if not isinstance(frame, gpd.GeoDataFrame):
        frame = _located(path, frame, crs)
    columns = list(frame.columns.drop(frame.geometry.name))
    if column and column not in columns:
        raise ValueError(f'{path} has the columns {columns}, expected {column!r}, the column of the class')
    empty = frame.geometry.isna() | frame.geometry.is_empty
    frame = frame[~empty].copy()
    frame.attrs['without_geometry'] = int(empty.sum())
    for name in frame.columns.drop(frame.geometry.name) if column is None else [column]:
        if not is_numeric_dtype(frame[name]):
            frame[name] = without_blanks(frame[name])
    kinds = set(frame.geom_type)
    if not kinds or not (kinds <= _POINTS or kinds <= _SURFACES):
        raise ValueError(
            f'{path} has {sorted(kinds) or "no geometries"}, expected polygons or points; lines become polygons by '
            'a buffer'
        )
    bounds = frame.total_bounds.tolist()
    if not all(abs(number) <= FARTHEST for number in bounds):
        raise ValueError(f'{path} extends from {bounds[:2]} to {bounds[2:]}, expected valid coordinates')
    if frame.crs is None and crs is None:
        xmin, ymin, xmax, ymax = frame.total_bounds
        raise ValueError(
            f'{path} has no CRS, expected a file with one, or for a mask its argument crs, such as EPSG:4326 for '
            f'degrees: its geometries extend from {xmin:.10g}, {ymin:.10g} to {xmax:.10g}, {ymax:.10g}'
        )
    return frame if frame.crs is not None else frame.set_crs(crs)


def _located(path: str, table: pd.DataFrame, default_crs: Any) -> gpd.GeoDataFrame:
    names = {str(column).strip().lower(): column for column in table.columns}
    pairs = [pair for pair in (*DEGREES, *METRIC) if set(pair) <= set(names)]
    if not pairs:
        raise ValueError(f'{path} has the columns {list(table.columns)}, expected lon and lat, or x and y')
    degrees = pairs[0] in DEGREES
    if not degrees and default_crs is None:
        raise ValueError(
            f'{path} has the columns {list(pairs[0])}, expected lon and lat, or for a mask its argument crs, such as '
            'EPSG:32631'
        )
    x, y = (_numbers(table[names[name]], degrees) for name in pairs[0])
    bad = x.isna() | y.isna() | (degrees & ((x.abs() > 180) | (y.abs() > 90)))
    if bad.any():
        first = table.loc[bad.idxmax(), [names[name] for name in pairs[0]]].to_dict()
        kind = 'degrees (lon from -180 to 180, lat from -90 to 90)' if degrees else 'numbers'
        raise ValueError(f'{path} has {first} in row {int(bad.argmax()) + 1}, expected {kind} ({bad.sum()} such)')
    crs = 'EPSG:4326' if degrees else default_crs
    return gpd.GeoDataFrame(table, geometry=gpd.points_from_xy(x, y), crs=crs)


def _numbers(column: pd.Series, degrees: bool) -> pd.Series:
    """Return the numbers of a column, also those with a decimal comma; NaN where there is none."""
    text = column.astype(str).str.strip()
    comma = text.str.fullmatch(_COMMA_DEGREES if degrees else _COMMA_METRES)
    return pd.to_numeric(column.where(~comma, text.str.replace(',', '.')), errors='coerce')


def _is_hidden(file: Path, folder: str) -> bool:
    return any(part.startswith('.') for part in file.relative_to(folder).parts)


def _parquet(path: str) -> pd.DataFrame:
    try:
        return gpd.read_parquet(path)
    except ValueError:
        return pd.read_parquet(path)


def _buffered(shapes: gpd.GeoSeries, metres: float, **style: Any) -> gpd.GeoSeries:
    if not metres or shapes.empty:
        return shapes
    metric = shapes.to_crs(shapes.estimate_utm_crs())
    return metric.buffer(metres, **style).to_crs(shapes.crs)
