# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Time series from folders of rasters."""

import math
import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from glob import glob
from typing import Any

import numpy as np
import pandas as pd
import rasterio
from geopandas import GeoDataFrame
from matplotlib.colors import ListedColormap
from pyproj import CRS
from torchgeo.datasets import DatasetNotFoundError, RasterDataset
from torchgeo.datasets.utils import GeoSlice, Sample, find_files
from torchgeo.datasets.utils import Path as PathLike

from ...grid import Grid, metres
from ...modality import Kind, Modality, Unit
from ...utils.checks import check_integer
from ...utils.plurals import counted
from ..base import tensors
from ..common.arguments import state_facts
from ..common.series import choose_dates
from ..io.decoding import Decoding, as_numbers
from ..io.headers import DAY_PATTERN, Header, band_names, band_numbers, describe_types, read_header, refuse_dates
from ..io.links import refuse_links
from .bandfiles import Scenes, band_files
from .frames import (
    Clouds,
    as_gdal,
    days_of,
    is_remote,
    merge_of,
    middle_days_of,
    overlapping,
    read_daily_images,
    read_window,
    repeat,
)
from .georeference import Span, as_span, describe_grids, outline, pixel_side, resolution, where, window_grid
from .products import describe_others, refuse_uncorrected
from .stacks import DESCRIPTIONS, Frames, Stack


class RasterTimeSeries(RasterDataset):
    """Dataset of rasters as one modality: a time series or a single image.

    It is a TorchGeo ``RasterDataset`` for samplers, splits and set operations. Unlike its
    parent, it groups files by acquisition date in chronological order; merges files of one date
    (mean of valid pixels, decibels in linear power); excludes files that only touch the window;
    sets nodata and clouds to NaN; and returns the dates. A date without a valid pixel stays in
    the time series with ``valid`` False.

    A sample has ``image_<name>`` (T, C, H, W) float32, or (C, H, W) if not *temporal*;
    ``dates_<name>`` and ``valid_<name>`` (T,); and ``bounds`` (9,) and ``transform`` (9,) in
    float64 as in TorchGeo. If not *temporal*, each pixel is that of the newest file.

    Subclasses may set class attributes of TorchGeo's ``RasterDataset`` instead of arguments:
    ``filename_glob``, ``filename_regex``, ``date_format``, ``all_bands``, ``separate_files``,
    ``nodata``; and ``name``, ``temporal``, ``kind``, ``unit``.
    """

    filename_glob = '*.tif'
    filename_regex = rf'.*?(?<!\d)(?P<date>{DAY_PATTERN})(?!\d)'
    name = 'raster'
    temporal = True
    kind: Kind | None = None
    unit: Unit = 'unknown'
    decibels = False
    #: Whether scale and offset stated in files are applied.
    tags_scale = True
    #: Whether a window is always a whole file.
    whole_files = False

    def __init__(
        self,
        paths: PathLike | Iterable[PathLike] = 'data',
        crs: CRS | None = None,
        res: float | tuple[float, float] | None = None,
        bands: Sequence[str] | None = None,
        transforms: Callable[[Sample], Sample] | None = None,
        cache: bool = True,
        *,
        name: str | None = None,
        temporal: bool | None = None,
        all_bands: Sequence[str] | None = None,
        filename_glob: str | None = None,
        filename_regex: str | None = None,
        date_format: str | None = None,
        separate_files: bool | None = None,
        nodata: float | Sequence[float] | None = None,
        replace_nodata: float | Sequence[float] | None = None,
        kind: Kind | None = None,
        unit: Unit | None = None,
        wavelengths: Sequence[float] | Mapping[str, float] | None = None,
        decibels: bool | None = None,
        date_range: tuple[str, str] | None = None,
        max_dates: int | None = None,
        clouds: Clouds | Mapping[str, Any] | None = None,
        stack: Stack | Mapping[str, Any] | None = None,
        allow_outside: bool = False,
    ) -> None:
        r"""Initialize the dataset from the headers of its files; no pixel is read.

        Args:
            paths: Directories, files, or paths that GDAL opens: URLs, ``/vsicurl/``, ``/vsis3/`` and so on.
            crs: CRS of the samples, and of files without a CRS or with a local one (``LOCAL_CS``). Defaults to
                that of the first file. Files in another CRS are reprojected.
            res: Pixel size in units of *crs*; defaults to that of the first file.
            bands: Bands to read, in this order; None for all.
            transforms: Transform applied to each sample.
            cache: Whether to keep files open.
            name: Name of the modality, such as ``'s2'``.
            temporal: Whether the files are a time series; otherwise a sample is one image.
            all_bands: Names of the bands in the files; defaults to the descriptions in the first file.
            filename_glob: Pattern of the file names, such as ``'*_B02_10m.jp2'``.
            filename_regex: Regular expression for the beginning of file names, in :mod:`re`'s verbose syntax, with
                the group ``date``, or ``start`` and ``stop``, and ``band`` for separate files. By default
                eight digits are a date, which is optional for single images.
            date_format: Format of dates, such as ``'%Y%m%d'``.
            separate_files: Whether each band is in a separate file. By default, files with one band, of the same
                date and bounds, are stacked if their names differ in a band, such as ``B02``.
            nodata: One or several nodata values in addition to those that files state.
            replace_nodata: One or several nodata values instead of those that files state; ``[]`` for none.
                Internal and external masks still apply.
            kind: Kind of the sensor: ``'optical'``, ``'radar'``, ``'elevation'``, ``'thermal'``,
                ``'embedding'`` or ``'other'``. None disables augmentations and checks that depend on it.
            unit: Unit of the pixels: ``'reflectance'`` (0 to 1), ``'dn'`` (such as reflectance x 10000),
                ``'db'`` (radar, averaged in linear power), ``'power'`` (radar) or ``'metres'``; None if unknown.
            wavelengths: Central wavelengths of *bands* in nanometres, in their order or by name.
            decibels: True for *kind* ``'radar'`` and *unit* ``'db'``, False for *unit* ``'power'``.
            date_range: First and last day, inclusive, such as ``('2020-09-01', '2021-08-31')``.
            max_dates: Maximum number of evenly spaced dates of a sample; None for all.
            clouds: Cloud mask of each date: :class:`Clouds` or its arguments.
            stack: Dates that are stacked as the bands of each file: :class:`.Stack` or its arguments. File
                names then need no date.
            allow_outside: Whether symbolic links in directories of *paths* may lead out of them.

        Raises:
            DatasetNotFoundError: If no file is found.
            ValueError: If an argument is invalid, a file cannot be read, or a link leads out of its directory.
        """
        given = {
            'name': name,
            'temporal': temporal,
            'all_bands': None if all_bands is None else tuple(all_bands),
            'filename_glob': filename_glob,
            'filename_regex': filename_regex,
            'date_format': date_format,
            'separate_files': separate_files,
            'nodata': nodata,
            'kind': kind,
            'unit': unit,
            'decibels': decibels,
        }
        for key, value in given.items():
            if value is not None:
                setattr(self, key, value)
        self.stack = None if stack is None else Stack.of(stack)
        self._is_together = separate_files is False or self.stack is not None
        self.kind, self.unit = state_facts(self.name, self.kind, self.unit, self.decibels or decibels)
        self.decibels = self.unit == 'db'
        self._wavelengths = wavelengths
        self.added_nodata = as_numbers(self.nodata)
        self.replaced_nodata = None if replace_nodata is None else as_numbers(replace_nodata, 'replace_nodata')
        check_integer(1, max_dates=max_dates)
        if (
            (not self.temporal or self.stack is not None)
            and filename_regex is None
            and type(self).filename_regex == RasterTimeSeries.filename_regex
        ):
            self.filename_regex = f'(?:{self.filename_regex})?'  # the date of a single image is optional
        self.clouds = None if clouds is None else Clouds.of(clouds)
        self.max_dates = max_dates
        self.date_range = date_range
        self.paths = paths if isinstance(paths, str | os.PathLike) else list(paths)
        refuse_links(self.paths, allow_outside)
        self.transforms, self.cache, self.time_series = transforms, cache, self.temporal
        self._index_files(crs, res, bands)
        if self.filename_regex == RasterTimeSeries.filename_regex:  # a custom regular expression selects files
            self._warn_undated()
            self._warn_averaged()
        self._check_index()
        if wavelengths is not None:
            _ = self.modalities  # checks that there is a wavelength per band
        self._keep_dates()

    @property
    def gsd(self) -> float:
        """GSD in metres."""
        return metres(self.crs, self.res[0])

    @property
    def modalities(self) -> dict[str, Modality]:
        """Modality of the dataset, by name."""
        bands, wavelengths = tuple(self.bands), self._wavelengths
        if isinstance(wavelengths, Mapping):
            if missing := [band for band in bands if band not in wavelengths]:
                raise ValueError(f'wavelengths of {self.name!r} has {sorted(wavelengths)}, expected {missing} too')
            wavelengths = [wavelengths[band] for band in bands]
        return {
            self.name: Modality(
                self.name,
                bands,
                self.gsd,
                self.temporal,
                self.kind,
                self.unit,
                None if wavelengths is None else tuple(wavelengths),
            )
        }

    @property
    def files(self) -> list[str]:
        """Files of *paths* and matching files of its directories."""
        files: set[str] = set()
        for path in [self.paths] if isinstance(self.paths, str | os.PathLike) else self.paths:
            single = is_remote(str(path)) or os.path.isfile(path)
            files.update([as_gdal(str(path))] if single else matching(path, self.filename_glob))
        return sorted(files)

    def _warn_undated(self) -> None:
        pattern = re.compile(self.filename_regex, re.VERBOSE)
        lost = [path for path in self.files if not pattern.match(os.path.basename(path))]
        if lost:
            warnings.warn(
                f'files of {self.name!r} such as {lost[0]} ({len(lost)} in total) are not read: filename_regex finds '
                'no date of the calendar in their names; filename_glob chooses files',
                stacklevel=3,
            )

    def _warn_averaged(self) -> None:
        """Warn of files of one date with the same bounds, which are averaged although they may be bands."""
        if not self.temporal or self.separate_files or self._is_together:
            return
        places = self.index.geometry.bounds.assign(day=self.index.index.left)
        alike = places.duplicated(keep=False).to_numpy()
        if alike.any():
            same = (places == places.iloc[int(alike.argmax())]).all(axis=1).to_numpy()
            first, second = sorted(self.index.filepath[same])[:2]
            warnings.warn(
                f'{int(alike.sum())} files of {self.name!r} have the same date and bounds, such as {first} and '
                f'{second}: they are averaged. Bands in separate files are stacked if their names end with a band, '
                'such as _B02',
                stacklevel=3,
            )

    def __getitem__(self, index: GeoSlice) -> Sample:
        """Return the sample of a window.

        Args:
            index: [xmin:xmax:xres, ymin:ymax:yres, tmin:tmax:tres]; a step n in time reads
                every n-th date.

        Raises:
            IndexError: If no file intersects the window.
        """
        x, y, t = self._disambiguate_slice(index)
        grid = window_grid(self.crs, x, y)
        sample = self.read(grid, (t.start, t.stop), t.step)
        if not sample:
            raise IndexError(f'no file of {self.name!r} intersects {index}, expected a window within {self.bounds}')
        sample |= where(grid, (t.start, t.stop))
        return sample if self.transforms is None else self.transforms(sample)

    def read(self, grid: Grid, span: Span, every: int = 1) -> Sample:
        """Return image, dates and valid of a window; an empty dict if no file intersects it.

        Args:
            grid: Pixel grid of the window, in the CRS of the dataset.
            span: First and last instant.
            every: Step between the dates of a time series.
        """
        rows = overlapping(self, grid, span)
        if rows.empty:
            return {}
        return read_modality(self, rows, grid, next(iter(self.modalities.values())), every)

    def _update_filepath(self, band: str, filepath: str) -> str:
        if filepath in self._scenes:
            return self._scenes[filepath][band]
        return super()._update_filepath(band, filepath)

    def decoding(self, filepath: str, band: str | None) -> Decoding:
        """Return nodata, scale and offset of a file."""
        return Decoding(
            self.added_nodata,
            self.replaced_nodata,
            self.alpha_masks,
            self.scaled,
            crs=self.assumed_crs,
            whole=self.whole_files,
        )

    def _index_files(self, crs: Any, res: float | tuple[float, float] | None, bands: Sequence[str] | None) -> None:
        """Read the header of every file once, and build the spatiotemporal index."""
        if self.separate_files and not self.all_bands:
            raise ValueError(f'all_bands of {self.name!r} is not given, expected the bands that have separate files')
        pattern = self._pattern()
        self._check_dated(pattern)
        files = [file for file in self.files if pattern.match(os.path.basename(file))]
        refuse_uncorrected(files)
        if not files:
            raise self._no_files_error()
        times = [self._filepath_to_timestamp(file) for file in files]
        headers = [read_header(file) for file in files]
        self._known: dict[str, Header] = {}
        self._stack_files(headers, times)
        if self._scenes:
            scenes = [(*pair,) for pair in zip(headers, times, strict=True) if pair[0].path in self._scenes]
            self._known = {header.path: header for header in headers}
            headers, times = map(list, zip(*scenes, strict=True))
            files = [header.path for header in headers]
        if self.stack is None:
            self._name_bands(headers, bands)
        else:
            self._name_frames(self.stack, headers, times, bands)
        self._scale(headers)
        self._known = {}
        first = headers[0]
        if crs is None and (lost := [header.path for header in headers if header.crs is None]):
            raise ValueError(
                f'{lost[0]} states no CRS, or a local one (LOCAL_CS; {len(lost)} of {counted(len(headers), "file")} of '
                f"{self.name!r}); expected a georeferenced raster, or crs in its settings, such as crs: 'EPSG:2154'"
            )
        with rasterio.Env(OSR_WKT_FORMAT='WKT2_2018'):
            crs = CRS.from_user_input(first.crs if crs is None else crs)
        self.cmap = ListedColormap(np.array(list(first.colormap.values())) / 255) if first.colormap else None
        self._set_index(headers, times, crs, res, not self.scaled, stacklevel=4)
        if self.stack is not None:
            stacked = [self.frames[path].days for path in files]
            self.index = repeat(self.index, list(map(len, stacked)), np.concatenate(stacked))

    def _set_index(
        self, headers: Sequence[Header], times: Sequence[Any], crs: Any, res: Any, is_stored: bool, stacklevel: int
    ) -> None:
        self.assumed_crs = crs
        self.finest = min(metres(header.crs or crs, pixel_side(header)) for header in headers)
        if difference := describe_grids(headers, crs):
            warnings.warn(f'{self.name}: {difference}; they are resampled', stacklevel=stacklevel)
        if self.is_image and is_stored and (difference := describe_types(headers)):
            warnings.warn(f'{self.name}: {difference}', stacklevel=stacklevel)
        self._res = (res, res) if isinstance(res, int | float) else res or resolution(headers[0], crs)
        when = pd.IntervalIndex.from_tuples(times, closed='both', name='datetime')
        shapes = [outline(header, crs) for header in headers]
        files = [header.path for header in headers]
        self.index = GeoDataFrame({'filepath': files}, index=when, geometry=shapes, crs=crs)

    def _stack_files(self, headers: Sequence[Header], times: Sequence[Any]) -> None:
        self._scenes: Scenes = {}
        if self.separate_files or self._is_together:
            return
        self._scenes = band_files(self.name, headers, times, skip_alpha=True)
        if not self._scenes:
            return
        names = tuple(next(iter(self._scenes.values())))
        if self.all_bands and not set(self.all_bands) <= set(names):
            raise ValueError(
                f'all_bands of {self.name!r} is {tuple(self.all_bands)}, but its files hold one band each, {names} by '
                'their names; expected some of these'
            )
        self.separate_files, self.all_bands = True, tuple(self.all_bands or names)
        warnings.warn(f'files of {self.name!r} hold one band each, stacked: {", ".join(self.all_bands)}', stacklevel=4)

    def _name_bands(self, headers: Sequence[Header], bands: Sequence[str] | None) -> None:
        """Set the names of the bands and their indices in each file."""
        is_configured, first = bool(self.all_bands), headers[0]
        known = next((header.opaque for header in headers if header.opaque is not None), False)
        self.alpha_masks = known and not (is_configured and len(self.all_bands) >= (first.alpha or 0) > 0)
        if not is_configured:
            self.all_bands = band_names(first, self.alpha_masks)
        self._check_bands(bands)
        self.bands = tuple(bands or self.all_bands)
        self.band_numbers: dict[str, tuple[int, ...]] = {}
        self.unlike: dict[str, str] = {}
        if self.separate_files:
            return
        refuse_dates(first, self.all_bands)
        wanted = {*bands, *([self.clouds.band] if self.clouds else [])} if bands else None
        usual = band_numbers(first, first, tuple(self.all_bands), wanted, is_configured, self.alpha_masks)
        for header in headers[1:]:
            try:
                numbers = band_numbers(header, first, tuple(self.all_bands), wanted, is_configured, self.alpha_masks)
            except ValueError as error:
                self.unlike[header.path] = str(error)  # raised when the file is read, so that check lists all of them
                continue
            if numbers != usual:
                self.band_numbers[header.path] = numbers
        #: Index of each of all_bands in most files.
        self.usual_numbers = usual
        self.band_indexes = [usual[self.all_bands.index(band)] for band in self.bands]

    def _name_frames(
        self, stack: Stack, headers: Sequence[Header], times: Sequence[Any], bands: Sequence[str] | None
    ) -> None:
        """Set the names of the bands of a date, and assign the bands of each file to dates."""
        if self.separate_files:
            raise ValueError(f'stack of {self.name!r} and separate_files are both set, expected only one')
        configured = tuple(self.all_bands or stack.bands)
        if stack.bands and configured != stack.bands:
            raise ValueError(
                f'bands of stack of {self.name!r} are {stack.bands}, but all_bands is {configured}, expected only one'
            )
        self.alpha_masks = next((header.opaque for header in headers if header.opaque is not None), False)
        self.frames: dict[str, Frames] = {}
        self.unlike = {}
        for header, (start, _) in zip(headers, times, strict=True):
            if start == self.mint and not stack.has_years:
                raise ValueError(
                    f'dates of stack of {self.name!r} have no year, and the name of {header.path} has no date: '
                    'state filename_regex and date_format, or dates with a year'
                )
            self.frames[header.path] = stack.in_year(start.year).frames(header, self.alpha_masks, configured)
            first = self.frames[headers[0].path]
            wanted = {*(bands or first.names), *([self.clouds.band] if self.clouds else [])}
            missing = wanted - set(self.frames[header.path].names)
            counts = [found.numbers.shape[1] for found in (first, self.frames[header.path])]
            if stack.dates != DESCRIPTIONS and counts[0] != counts[1] and not missing:
                raise ValueError(
                    f'{header.path} has {counted(counts[1], "band")} of each date of stack, expected {counts[0]} as '
                    f'{headers[0].path}: filename_glob chooses files'
                )
            if missing and header is not headers[0]:
                raise ValueError(
                    f'{header.path} lacks the bands {sorted(missing)} of each date, expected those of '
                    f'{headers[0].path}, {list(first.names)}: filename_glob chooses files, bands chooses bands'
                )
        self.all_bands = first.names
        self._check_bands(bands)
        self.bands, self.band_indexes = tuple(bands or self.all_bands), None

    def read_stack(self, path: str, frames: Any, grid: Grid, bands: Sequence[str], nearest: bool) -> Any:
        """Read dates that are stacked in a file as float32 (F, C, H, W), NaN for nodata.

        Args:
            path: File of the index.
            frames: Indices of the dates in the file.
            grid: Pixel grid of the output.
            bands: Names of the bands.
            nearest: Whether to use nearest-neighbor resampling.
        """
        numbers = self.frames[path].select(bands)[frames]
        image = np.full((*numbers.shape, grid.height, grid.width), np.nan, np.float32)
        here = numbers > 0
        if here.any():
            image[here] = read_window(
                path, numbers[here].tolist(), grid, self.decoding(path, None), nearest, self.cache
            )
        return image

    def _scale(self, headers: Sequence[Header]) -> None:
        """Apply scale and offset of files with a warning, if they differ between files or a physical unit is stated."""
        stated: dict[tuple[tuple[float, float], ...], str] = {}
        for header in headers if self.tags_scale else ():
            if header.path in self.unlike:
                continue
            stated.setdefault(self._stated_scales(header), header.path)
        self.scaled = bool({pair for found in stated for pair in found} - {(1, 0)}) and (
            len(stated) > 1 or self.unit not in ('dn', 'unknown')
        )
        if not self.scaled:
            return
        examples = ' and '.join(f'{found} in {os.path.basename(path)}' for found, path in [*stated.items()][:2])
        unit = ''
        if self.unit == 'dn':
            self.unit, unit = 'unknown', '; that is no longer the unit dn, so state another'
        why = 'differ' if len(stated) > 1 else f'lead to the unit {self.unit}'
        warnings.warn(
            f'scale and offset of the files of {self.name!r} {why} ({examples}): pixels are stored * scale + offset'
            f'{unit}',
            stacklevel=4,
        )

    def _stated_scales(self, header: Header) -> tuple[tuple[float, float], ...]:
        """Return scale and offset of each band; for remote separate files, those of the first band."""
        if self.stack is not None:
            places = self.frames[header.path].select(self.bands)
            return tuple(sorted({(header.scales[i - 1], header.offsets[i - 1]) for i in places[places > 0].tolist()}))
        if not self.separate_files:
            numbers: Sequence[int] = self.band_indexes or ()
            if header.path in self.band_numbers:
                own = self.band_numbers[header.path]
                numbers = [own[self.all_bands.index(band)] for band in self.bands]
            return tuple((header.scales[number - 1], header.offsets[number - 1]) for number in numbers)
        others = [self._update_filepath(band, header.path) for band in self.bands]
        files = [
            header,
            *(
                self._known.get(path) or read_header(path)
                for path in others
                if path != header.path and not is_remote(path)
            ),
        ]
        return tuple((file.scales[0], file.offsets[0]) for file in files)

    def _pattern(self) -> re.Pattern[str]:
        try:
            return re.compile(self.filename_regex, re.VERBOSE)
        except re.error as error:
            raise ValueError(
                f'filename_regex of {self.name!r} is {self.filename_regex!r}, expected a regular expression such as '
                f"'S2_(?P<date>\\d{{8}})' ({error})"
            ) from None

    def _no_files_error(self) -> DatasetNotFoundError:
        error = DatasetNotFoundError(self)
        files = self.files
        wanted = (
            'a date such as 20210615'
            if DAY_PATTERN in self.filename_regex
            else repr(' '.join(self.filename_regex.split()))
        )
        others = '; set filename_regex and date_format to the format of their dates'
        error.args = (
            f'{error} Expected files {self.filename_glob!r} whose names match {wanted}, found {len(files)}'
            + (f' such as {os.path.basename(files[0])!r} that do not{others}.' if files else '.')
            + self._hint(),
        )
        return error

    def _hint(self) -> str:
        paths = [self.paths] if isinstance(self.paths, str | os.PathLike) else self.paths
        return next((hint for path in paths if (hint := describe_others(str(path), self.filename_glob))), '')

    def _check_bands(self, bands: Sequence[str] | None) -> None:
        wanted = [*(bands or ())] + ([self.clouds.band] if self.clouds and not self.separate_files else [])
        unknown = [band for band in wanted if band not in self.all_bands]
        if unknown:
            raise ValueError(
                f'bands {unknown} of {self.name!r} are unknown, expected some of {list(self.all_bands)}; '
                'set all_bands to the names of bands without descriptions'
            )

    def _check_dated(self, pattern: re.Pattern[str]) -> None:
        groups = pattern.groupindex
        if self.temporal and not ('date' in groups or {'start', 'stop'} <= groups.keys()):
            raise ValueError(
                f"filename_regex of {self.name!r} is {self.filename_regex!r}, expected a group '(?P<date>...)', "
                'as a time series has dates'
            )

    def _check_index(self) -> None:
        if not math.isclose(*self.res, rel_tol=1e-4):
            raise ValueError(f'pixels of {self.name!r} are {self.res} units of its CRS, expected square ones; set res')

    def _keep_dates(self) -> None:
        span = as_span(self.date_range)
        if span is None:
            return
        kept = self.index[self.index.index.overlaps(pd.Interval(*span, closed='both'))]
        if kept.empty:
            raise ValueError(
                f'date_range of {self.name!r} is {self.date_range}, expected one with some of its {len(self.index)} '
                f'files from {self.index.index.left.min():%Y-%m-%d} to {self.index.index.right.max():%Y-%m-%d}'
            )
        self.index = kept

    def _filepath_to_timestamp(self, filepath: PathLike) -> tuple[datetime, datetime]:
        match = re.match(self.filename_regex, os.path.basename(filepath), re.VERBOSE)
        if match and match.groupdict().get('date', '') is None:
            return self.mint, self.maxt
        try:
            return super()._filepath_to_timestamp(filepath)
        except ValueError:
            groups = {key: text for key, text in (match.groupdict() if match else {}).items() if key != 'band'}
            raise ValueError(
                f'filename_regex of {self.name!r} finds {groups} in {os.path.basename(filepath)!r}, expected a date '
                f'in the date_format {self.date_format!r}'
            ) from None


def read_modality(dataset: RasterDataset, rows: Any, grid: Grid, modality: Modality, every: int = 1) -> Sample:
    """Read a modality from the files of *rows*, at least one; of a time series, every n-th date."""
    merge = merge_of(modality.unit == 'db')
    if modality.temporal:
        days = days_of(rows)
        rows = rows[np.isin(days, np.unique(days)[::every])]
        rows = rows.iloc[choose_dates(days_of(rows), None, getattr(dataset, 'max_dates', None))]
    image, days, valid = read_daily_images(dataset, rows, grid, merge, getattr(dataset, 'clouds', None))
    if modality.kind == 'embedding':
        days = middle_days_of(rows)  # an annual embedding has the date of the middle of its year
    if not modality.temporal:
        shown = np.flatnonzero(np.isfinite(image).any((1, 2, 3)))  # the date is that of the newest pixels
        last = shown[-1:] if len(shown) else [-1]
        image, days, valid = newest(image), days[last], valid.any(keepdims=True)
    return tensors(modality, image, days, valid)


def newest(frames: Any) -> Any:
    """Return the newest valid value of each pixel of images (T, C, H, W) in chronological order."""
    image = frames[0]
    for frame in frames[1:]:
        image = np.where(np.isfinite(frame), frame, image)
    return image


def matching(path: PathLike, pattern: str) -> list[str]:
    """Return the files below a folder (or in GDAL's archive or bucket) whose names match a pattern."""
    if os.path.isdir(path):
        return [os.path.join(path, file) for file in glob(os.path.join('**', pattern), root_dir=path, recursive=True)]
    return find_files(path, pattern)
