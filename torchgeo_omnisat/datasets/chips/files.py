# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Rasters that are read as whole images, each on its own pixel grid."""

import copy
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import shapely
from geopandas import GeoDataFrame
from matplotlib.colors import ListedColormap
from numpy.typing import NDArray
from pyproj import CRS
from rasterio import Affine

from ...grid import DEGREE, Grid, metres
from ..common.classes import ClassMap
from ..geo.sources import LabelSource
from ..io.headers import DAY_PATTERN, Header, describe_types, read_header
from ..rasters.georeference import Span, crs_code, outline, pixel_side
from ..rasters.timeseries import RasterTimeSeries

#: CRS in which the footprints of chips are compared.
WORLD = CRS.from_epsg(4326)
#: Extensions of rasters.
SUFFIXES = ('.tif', '.tiff', '.png', '.jpg', '.jpeg', '.jp2', '.bmp', '.img', '.vrt', '.webp')
#: Id of a single image: its name without extension.
SINGLE_ID = r'(?P<id>.+)\.\w+$'
#: Id of an image of a time series: its name up to the date.
SERIES_ID = rf'(?P<id>.+?)[_.-]?(?<!\d)(?P<date>{DAY_PATTERN})(?!\d)'


class ChipGrid(NamedTuple):
    """Pixel grid of a chip file.

    Args:
        path: Path of the file.
        crs: CRS; None if the file is not georeferenced.
        grid: Pixel grid in units of *crs*, or in metres from the upper left corner without georeference.
        gsd: Nominal GSD in metres.
    """

    path: str
    crs: CRS | None
    grid: Grid
    gsd: float

    @property
    def size(self) -> tuple[float, float]:
        """Height and width in metres."""
        return self.grid.height * self.gsd, self.grid.width * self.gsd

    def differs(self, other: 'ChipGrid') -> str:
        """Describe how the bounds of another file differ by more than half a pixel of the finer one; else ''."""
        half = min(self.gsd, other.gsd) / 2
        if self.crs is None or other.crs is None:
            differences = [abs(one - its) for one, its in zip(self.size, other.size, strict=True)]
            sizes = f'{other.path} covers {_size(other)} and {self.path} {_size(self)}'
            return sizes if max(differences) > half * (1 + 1e-6) else ''
        if self.crs != other.crs:
            return f'{other.path} is in {crs_code(other.crs)} and {self.path} in {crs_code(self.crs)}'
        finer = self if self.gsd <= other.gsd else other
        units = finer.grid.step / finer.gsd
        bounds = zip(self.grid.bounds, other.grid.bounds, strict=True)
        difference = max(abs(one - its) for one, its in bounds) / units
        if difference <= half * (1 + 1e-6):
            return ''
        return f'the borders of {other.path} and {self.path} differ by up to {difference:.4g} m'


class ChipFiles(RasterTimeSeries):
    """Dataset of chips of one sensor, each in its own CRS or without georeference.

    A file is read as a whole and never resampled. Its name contains the id of its chip. The index has the
    column ``chip`` with the ids, and footprints in longitude and latitude, empty without georeference.
    """

    filename_glob = '*'
    filename_regex = SINGLE_ID
    name = 'chips'
    temporal = False
    whole_files = True
    #: Nominal GSD of all files in metres.
    side = 1.0
    #: Parent folders of the files, and the folder of the split of each.
    bases: Mapping[Path, str] = {}

    @property
    def gsd(self) -> float:
        """GSD in metres."""
        return self.side

    @property
    def files(self) -> list[str]:
        """Files that match the pattern; only rasters if it has no extension."""
        chosen = os.path.splitext(self.filename_glob)[1] not in ('', '.*')
        return [path for path in super().files if chosen or path.lower().endswith(SUFFIXES)]

    @property
    def located(self) -> bool:
        """Whether any file is georeferenced."""
        return any(header.crs is not None for header in self.headers.values())

    @property
    def width(self) -> int:
        """Width of the first file in pixels."""
        return next(iter(self.headers.values())).width

    def settle_gsd(self, stated: float | None) -> None:
        """Set the nominal GSD: the configured one, or else that of most files."""
        sides = [side for header in self.headers.values() if (side := self._sides(header))]
        if stated is None and not sides:
            raise ValueError(
                f'{next(iter(self.headers))} states neither CRS nor transform, nor does any file of {self.name!r}; '
                'expected gsd in its settings, in metres, such as gsd: 10'
            )
        rounded = [round(high, 3) if low == high else float(f'{high:.2g}') for low, high in sides]
        self.side = float(max(set(rounded), key=rounded.count) if stated is None else stated)
        self.finest = self.side

    def grid_of(self, path: str) -> ChipGrid:
        """Return the pixel grid of a file; raise ValueError if it is rotated or of another GSD."""
        header = self.headers[path]
        sides = self._sides(header)
        if sides is None:
            return ChipGrid(path, None, nowhere(header.height, header.width, self.side), self.side)
        if not sides[0] * 0.99 <= self.side <= sides[1] * 1.01:
            raise ValueError(f'{path} has pixels of {sides[1]:.6g} m, expected {self.side:g} m, gsd of {self.name!r}')
        try:
            crs = _as_crs(header.crs)
            return ChipGrid(path, crs, Grid(crs, header.transform, header.height, header.width), self.side)
        except ValueError as error:
            raise ValueError(f'{path}: {error}') from None

    def _sides(self, header: Header) -> tuple[float, float] | None:
        """Return the shorter and the longer pixel side of a file in metres; None without georeference."""
        if header.crs is None:
            return None
        crs, side = _as_crs(header.crs), pixel_side(header)
        if not crs.is_geographic:
            return metres(crs, side), metres(crs, side)
        _, latitude = header.transform @ (header.width / 2, header.height / 2)
        return side * DEGREE * math.cos(math.radians(latitude)), side * DEGREE

    def _index_files(self, crs: Any, res: float | tuple[float, float] | None, bands: Sequence[str] | None) -> None:
        if self.separate_files or res is not None:
            what = 'separate_files' if self.separate_files else 'res'
            raise ValueError(f'settings of {self.name!r} have {what}, expected chips with all bands in one file')
        if self.temporal and self.filename_regex == SINGLE_ID:
            self.filename_regex = SERIES_ID
        pattern = self._pattern()
        self._check_dated(pattern)
        if 'id' not in pattern.groupindex:
            raise ValueError(
                f"filename_regex of {self.name!r} is {self.filename_regex!r}, expected a group '(?P<id>...)' for "
                'the id of a chip'
            )
        matches = {path: pattern.match(os.path.basename(path)) for path in self.files}
        ids = {path: match['id'] for path, match in matches.items() if match}
        if not ids:
            raise self._no_files_error()
        times = [self._filepath_to_timestamp(path) for path in ids]
        self.assumed_crs = None if crs is None else CRS.from_user_input(crs)
        damaged: dict[str, str] = {}
        self.headers = {}
        for path in ids:
            try:
                self.headers[path] = self._read_header(path)
            except ValueError as error:  # raised when the chip is read, so that check lists all of them
                damaged[path] = str(error)
        if not self.headers:
            raise ValueError(next(iter(damaged.values())))
        headers = list(self.headers.values())
        self._scenes, self._known = {}, {}
        self._name_bands(headers, bands)
        self._scale(headers)
        self.unlike |= damaged
        if self.name != 'mask' and not self.scaled and (difference := describe_types(headers)):
            warnings.warn(f'{self.name}: {difference}', stacklevel=3)
        first = headers[0]
        self.cmap = ListedColormap(np.array(list(first.colormap.values())) / 255) if first.colormap else None
        when = pd.IntervalIndex.from_tuples(times, closed='both', name='datetime')
        located = {path: outline(header, WORLD) for path, header in self.headers.items() if header.crs is not None}
        shapes = [located.get(path, shapely.Polygon()) for path in ids]
        columns = {'filepath': list(ids), 'chip': list(ids.values())}
        self.index = GeoDataFrame(columns, index=when, geometry=shapes, crs=WORLD)
        self._res = (1.0, 1.0)

    def _read_header(self, path: str) -> Header:
        header = read_header(path, located=False)
        if header.transform.is_identity:
            return header._replace(crs=None)
        return header if header.crs is not None else header._replace(crs=self.assumed_crs)

    def _check_index(self) -> None:
        """Skip the checks of a common pixel grid, as each file has its own."""


class ChipLabels(LabelSource):
    """Labels of chips, from raster masks."""

    dataset: ChipFiles

    def __init__(self, files: ChipFiles, classes: ClassMap) -> None:
        super().__init__(files, WORLD, None, classes)

    def of(self, rows: GeoDataFrame) -> 'ChipLabels':
        """Return a copy for one chip."""
        part, part.dataset = copy.copy(self), copy.copy(self.dataset)
        part.dataset.index = rows
        return part

    def rows(self, grid: Grid, span: Span, prefer: bool) -> GeoDataFrame:
        """Return all rows of the index, regardless of the grid."""
        return self.index


def nowhere(height: int, width: int, gsd: float) -> Grid:
    """Return a pixel grid without georeference, in metres from the upper left corner."""
    crs: Any = None
    return Grid(crs, Affine(gsd, 0, 0, 0, -gsd, 0), height, width)


def centres(shapes: NDArray[np.object_]) -> NDArray[np.float64]:
    """Project the centres of footprints in degrees to metres (N, 2) of an equal-area projection of the world."""
    places = shapely.transform(shapely.centroid(shapes), _to_map)
    return shapely.get_coordinates(places)


def _to_map(lonlat: NDArray[np.float64]) -> NDArray[np.float64]:
    longitude, latitude = np.radians(lonlat).T
    radius = math.degrees(1) * DEGREE
    return np.stack([radius * longitude, radius * np.sin(latitude)], axis=1)


@lru_cache(maxsize=256)
def _as_crs(crs: Any) -> CRS:
    return CRS.from_user_input(crs)


def _size(place: ChipGrid) -> str:
    return '{:g} x {:g} m'.format(*place.size)
