# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Time series from NetCDF files."""

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import rasterio
from einops import rearrange
from numpy.typing import NDArray
from pyproj import CRS
from torchgeo.datasets import DatasetNotFoundError
from torchgeo.datasets.utils import Path as PathLike

from ...grid import Grid
from ...modality import Unit
from ...utils.signatures import refuse_unexpected, with_arguments_of
from ..io.headers import DAY_PATTERN
from .cf import Cube, read_cube, read_frames_of
from .frames import repeat, resample
from .timeseries import RasterTimeSeries


class NetCDFTimeSeries(RasterTimeSeries):
    """Dataset of NetCDF files as one modality, with variables as bands and any number of dates per file.

    Pixel grid, dates, CRS, nodata, scale and offset follow the CF conventions. Files may cover several
    areas, with different dates. Windows and dates are read lazily.
    Requires xarray and h5netcdf: ``pip install torchgeo-omnisat[netcdf]``.

    - Dates are the coordinate with ``axis`` T, with ``standard_name`` time, or in units such as ``days since
      1970-01-01``, in a standard calendar. Files without one are single images, or have a date of eight
      digits in their names.
    - Rows and columns are the coordinates with ``axis`` Y and X, by ``standard_name``, by units, or with the
      names y and x, lat and lon, in ascending or descending order.
    - The CRS is that of ``grid_mapping``, by ``crs_wkt``, ``spatial_ref`` or the parameters of CF.
    - Pixels are invalid where they are ``_FillValue``, ``missing_value`` or outside of ``valid_range``.
    - Scale and offset are applied, except for digital numbers (*unit* ``'dn'``).
    """

    filename_glob = '*.nc'
    filename_regex = rf'(?:.*?(?<!\d)(?P<date>{DAY_PATTERN})(?!\d))?'
    separate_files = False

    @with_arguments_of(
        RasterTimeSeries,
        without=('all_bands', 'filename_regex', 'date_format', 'separate_files', 'stack'),
        is_last=True,
    )
    def __init__(
        self,
        paths: PathLike | Iterable[PathLike] = 'data',
        *,
        bands: Sequence[str] | None = None,
        variable: str | None = None,
        time: str | None = None,
        temporal: bool | None = None,
        nodata: float | Sequence[float] | None = None,
        replace_nodata: float | Sequence[float] | None = None,
        unit: Unit | None = None,
        **kwargs: Any,
    ) -> None:
        """Initialize the dataset from the metadata of its files; no pixel is read.

        Args:
            paths: Directories or files.
            bands: Variables to read, in this order. Defaults to all with the dimensions of the first.
            variable: Only variable to read, instead of *bands*.
            time: Name of the time coordinate, if files do not state it. Its values may be numbers or
                strings such as ``20210615`` or ``2021-06-15``.
            temporal: Whether the files are a time series. By default they are if a file has a time dimension.
            nodata: One or several nodata values, as stored, in addition to those that files state.
            replace_nodata: One or several nodata values instead of ``_FillValue`` and ``missing_value``.
            unit: Unit of the pixels after scale and offset; ``'dn'`` for the stored values.
            **kwargs: Other arguments of :class:`RasterTimeSeries`.

        Raises:
            DatasetNotFoundError: If no file is found.
            ImportError: If xarray or h5netcdf are not installed.
            ValueError: If an argument is invalid, a file cannot be read, or lacks a variable.
        """
        refuse_unexpected(NetCDFTimeSeries.__init__, kwargs)
        if variable is not None and bands is not None:
            raise ValueError(f'variable is {variable!r} and bands is {list(bands)}, expected one of both')
        self.time = time
        self._configured_temporal = temporal
        super().__init__(
            paths,
            bands=bands if variable is None else (variable,),
            temporal=temporal,
            nodata=nodata,
            replace_nodata=replace_nodata,
            unit=unit,
            **kwargs,
        )

    def read_stack(
        self, path: str, frames: NDArray[np.int64], grid: Grid, bands: Sequence[str], nearest: bool
    ) -> NDArray[np.float32]:
        """Read several dates of a file."""
        cube, decoding = self.cubes[path], self.decoding(path, None)

        def read(window: Any) -> NDArray[np.float32]:
            return rearrange(read_frames_of(cube, bands, frames, window, decoding, self.cache), 'f c h w -> (f c) h w')

        image = resample(cube.header, len(frames) * len(bands), grid, read, nearest, self.assumed_crs)
        return rearrange(image, '(f c) h w -> f c h w', f=len(frames))

    def label_nodata(self, path: str) -> list[float]:
        """Return the nodata values of a label file.

        Raises:
            ValueError: If there are several variables.
        """
        if len(self.bands) != 1:
            raise ValueError(
                f'{path} has the variables {list(self.bands)}, expected one with class indices: set variable of the '
                f'mask, such as variable: {self.bands[0]}'
            )
        return sorted(self.decoding(path, None).numbers(None))

    def _index_files(self, crs: Any, res: float | tuple[float, float] | None, bands: Sequence[str] | None) -> None:
        files = self.files
        if not files:
            raise self._no_files_error()
        wanted = None if bands is None else list(bands)
        if self.clouds is not None and wanted is not None and self.clouds.band not in wanted:
            wanted.append(self.clouds.band)
        first = read_cube(files[0], wanted, self.time, crs)
        self.all_bands = tuple(map(str, first.header.descriptions))
        self._check_bands(bands)
        self.bands = tuple(bands or self.all_bands)
        cubes = [first, *(self._next(file, first, crs) for file in files[1:])]
        headers = [cube.header for cube in cubes]
        self.cubes: dict[str, Cube] = {cube.header.path: cube for cube in cubes}
        self.scaled = self.unit != 'dn'
        self._check_scales()
        self._compare_units(cubes)
        with rasterio.Env(OSR_WKT_FORMAT='WKT2_2018'):
            crs = CRS.from_user_input(first.header.crs if crs is None else crs)
        self.alpha_masks, self.cmap = False, None
        packed = self.scaled and any({*header.scales} != {1.0} or any(header.offsets) for header in headers)
        if self._configured_temporal is None:
            self.temporal = self.time_series = any(cube.time is not None for cube in cubes)
        self._set_index(headers, list(map(self._period, cubes)), crs, res, not packed, stacklevel=5)
        self.index = repeat(
            self.index, [len(cube.days) for cube in cubes], np.concatenate([cube.days for cube in cubes])
        )

    def _next(self, path: str, first: Cube, crs: Any) -> Cube:
        try:
            return read_cube(path, self.all_bands, self.time, crs)
        except ValueError as error:
            if 'has no variable' not in str(error):
                raise
            raise ValueError(
                f'{error}; {first.header.path} has {list(self.all_bands)}: bands chooses variables that all files '
                'have, filename_glob chooses files'
            ) from None

    def _check_scales(self) -> None:
        stated = {(cube.header.scales, cube.header.offsets): path for path, cube in self.cubes.items()}
        if not self.scaled and len(stated) > 1:
            one, other = list(stated.values())[:2]
            raise ValueError(
                f"unit of {self.name!r} is 'dn', but {one} and {other} state other scale_factor or add_offset, "
                'expected the same in all files: state the unit of unpacked values instead'
            )

    def _compare_units(self, cubes: Sequence[Cube]) -> None:
        """Warn of files whose units differ from those of the first file or of the modality."""
        first = cubes[0]
        stated = zip(*(cube.units for cube in cubes), strict=True)
        for band, units in zip(first.header.descriptions, stated, strict=True):
            places = {text: units.index(text) for text in dict.fromkeys(units) if text}
            if len(places) > 1:
                listed = ' and '.join(f'{text!r} in {cubes[place].header.path}' for text, place in places.items())
                warnings.warn(
                    f'variable {band!r} of {self.name!r} has the units {listed}: values are read unchanged, expected '
                    'the same units in all files',
                    stacklevel=5,
                )
            is_decibels = bool({text.lower() for text in places} & {'db', 'decibel', 'decibels'})
            if is_decibels and band in self.bands and self.unit not in ('db', 'unknown'):
                warnings.warn(
                    f'variable {band!r} of {first.header.path} has the units {next(iter(places))!r}, but unit of '
                    f'{self.name!r} is {self.unit!r}, expected unit: db',
                    stacklevel=5,
                )

    def _period(self, cube: Cube) -> tuple[Any, Any]:
        """Return the first and last instant of a file without a time coordinate, from its name."""
        path = cube.header.path
        span = self._filepath_to_timestamp(path) if np.isnat(cube.days).any() else (self.mint, self.maxt)
        if self.temporal and np.isnat(cube.days).any() and span == (self.mint, self.maxt):
            raise ValueError(
                f'{path} has no time coordinate, and no date in its name, expected dates for a time series: set time '
                'to the name of the coordinate, or temporal: false for single images'
            )
        return span

    def _no_files_error(self) -> DatasetNotFoundError:
        error = DatasetNotFoundError(self)
        error.args = (f'{error} Expected NetCDF files {self.filename_glob!r}; filename_glob chooses others.',)
        return error
