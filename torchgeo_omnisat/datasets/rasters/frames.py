# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Frames: what the files of a raster dataset show of a window, day by day."""

import atexit
import functools
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd
import shapely
from geopandas import GeoDataFrame
from numpy.typing import NDArray
from rasterio import Affine, warp
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.warp import reproject
from rasterio.windows import Window
from torchgeo.datasets import GeoDataset, RasterDataset

from ...grid import Grid
from ..io.decoding import Decoding, as_numbers, decode
from ..io.fingerprint import State, raster_state
from ..io.headers import georeference
from ..io.opening import open_raster, sidecars
from ..series import Merge, finite_mean

#: Where a file, a day or a period lies that no file name tells.
ALWAYS = (pd.Timestamp.min, pd.Timestamp.max)
#: A file whose pixels are smaller than this share of those asked for is averaged, else interpolated.
FINER = 0.75
#: So many numbers of a file are warped at a time.
LARGEST = 2**27


@dataclass(frozen=True)
class Clouds:
    """Which pixels are cloud, and how many of them spoil a date.

    Cloudy pixels become NaN.

    Args:
        band: The band that tells, such as ``'SCL'``.
        values: Its values that mean cloud, such as Sentinel-2's (3, 8, 9, 10).
        threshold: Instead of *values*, from which value on it is cloud.
        cover: From which share of cloudy pixels on a date is not valid.

    Raises:
        ValueError: If not exactly one of *values* and *threshold* is given, or *cover* is no share.
    """

    band: str
    values: tuple[int, ...] = ()
    threshold: float | None = None
    cover: float = 0.5

    def __post_init__(self) -> None:
        """Refuse what says too little or too much."""
        object.__setattr__(self, 'values', tuple(self.values))
        if bool(self.values) == (self.threshold is not None):
            raise ValueError(
                f'clouds in {self.band!r} have values={self.values}, threshold={self.threshold}, expected one of both'
            )
        if not 0 < self.cover <= 1:
            raise ValueError(f'cover of clouds is {self.cover}, expected a share above 0 and up to 1')

    @classmethod
    def of(cls, settings: Any) -> 'Clouds':
        """Return the clouds of settings as a file has them.

        Args:
            settings: Clouds, or their arguments by name.

        Raises:
            ValueError: If these are not arguments of clouds.
        """
        if isinstance(settings, cls):
            return settings
        known = {field.name for field in fields(cls)}
        if not isinstance(settings, Mapping) or set(settings) - known or 'band' not in settings:
            found = dict(settings) if isinstance(settings, Mapping) else settings
            raise ValueError(f'clouds is {found!r}, expected band, and values or threshold, and cover')
        return cls(**settings)

    def __call__(self, band: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Where *band* says cloud; not where it says nothing."""
        return np.isin(band, self.values) if self.threshold is None else band >= self.threshold


def overlapping(dataset: GeoDataset, grid: Grid, span: tuple[pd.Timestamp, pd.Timestamp] | None) -> GeoDataFrame:
    """Rows of an index that reach a pixel of a window and a moment of a period.

    Args:
        dataset: A dataset in the CRS of *grid*.
        grid: The window.
        span: The period.

    Returns:
        The rows in the order of time. Files that only touch the window are not among them:
        one must reach as far as the centre of a pixel.
    """
    index = dataset.index
    if span is not None:
        index = index.iloc[index.index.overlaps(pd.Interval(*span, closed='both'))]
    xmin, ymin, xmax, ymax = grid.bounds
    half = grid.step / 2
    touched = index.cx[xmin:xmax, ymin:ymax]
    core = shapely.box(xmin + half, ymin + half, xmax - half, ymax - half)
    shapes = touched.geometry.to_numpy()
    shared = shapely.area(shapely.intersection(shapes, shapely.box(*grid.bounds)))
    within = shapely.intersects(shapes, core) & (shared > 0)
    found = touched[within]
    return found.iloc[np.argsort(found.index.left.to_numpy(), kind='stable')]


def days_of(rows: GeoDataFrame) -> NDArray[np.int64]:
    """Days since 1970-01-01 on which the files of rows begin; 0 for those without a date."""
    epoch = pd.Timestamp(0)
    left = rows.index.left
    return ((left.where(left != ALWAYS[0], epoch) - epoch) // pd.Timedelta(days=1)).to_numpy(np.int64)


def read_frames(
    dataset: RasterDataset, rows: GeoDataFrame, grid: Grid, merge: Merge = finite_mean, clouds: Clouds | None = None
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_]]:
    """One image a day.

    Args:
        dataset: Whose files they are.
        rows: Files, at least one.
        grid: The pixels to read them on.
        merge: What makes the files of one day one image.
        clouds: What is cloud.

    Returns:
        Images ``(T, C, H, W)`` in the order of time, NaN where nothing was measured, the
        day of each, and whether it shows anything and not too many clouds.
    """
    days, files = days_of(rows), rows.filepath.to_numpy()
    images, valid = [], []
    every = hidden = None
    if 'frame' in rows:  # files of several dates are read once, not once a date
        every = read_stacks(dataset, rows, grid, dataset.bands, not dataset.is_image)
        hidden = None if clouds is None else clouds(read_stacks(dataset, rows, grid, (clouds.band,), True)[:, 0])
    for day in np.unique(days):
        here = days == day
        frames = np.stack([read_file(dataset, path, grid) for path in files[here]]) if every is None else every[here]
        shown = np.isfinite(frames).any(1)
        usable = bool(shown.any())
        if clouds is not None:
            if hidden is None:
                cloudy = np.stack([read_clouds(dataset, path, grid, clouds) for path in files[here]]) & shown
            else:
                cloudy = hidden[here] & shown
            frames[np.broadcast_to(cloudy[:, None], frames.shape)] = np.nan
            usable = bool(np.isfinite(frames).any() and cloudy.sum() < clouds.cover * shown.sum())
        images.append(frames[0] if len(frames) == 1 else merge(frames))
        valid.append(usable)
    return np.stack(images), np.unique(days), np.array(valid)


def repeat(index: GeoDataFrame, counts: Sequence[int], days: NDArray[np.datetime64]) -> GeoDataFrame:
    """Return an index with a row for each date of files that hold several.

    Args:
        index: A row for each file.
        counts: How many dates each file holds.
        days: The dates of all files; NaT keeps the period of the row.

    Returns:
        The index, with the number of the date in its file as ``frame``.
    """
    rows = index.iloc[np.repeat(np.arange(len(index)), counts)]
    first = pd.DatetimeIndex(days.astype('datetime64[ns]'))
    last = first + pd.Timedelta(days=1) - pd.Timedelta(microseconds=1)
    left, right = first.where(first.notna(), rows.index.left), last.where(first.notna(), rows.index.right)
    rows = rows.set_index(pd.IntervalIndex.from_arrays(left, right, closed='both', name=index.index.name))
    rows['frame'] = np.concatenate([np.arange(count) for count in counts])
    return rows


def read_stacks(
    dataset: Any, rows: GeoDataFrame, grid: Grid, bands: Sequence[str], nearest: bool
) -> NDArray[np.float32]:
    """Read files that hold several dates each.

    Args:
        dataset: Its ``read_stack`` reads some frames of one file.
        rows: Frames, each with its file.
        grid: The pixels to read them on.
        bands: Which bands.
        nearest: Whether to take the nearest pixel.

    Returns:
        Float32 ``(N, C, H, W)`` in the order of the rows.
    """
    image = np.empty((len(rows), len(bands), grid.height, grid.width), dtype=np.float32)
    numbers = rows.frame.to_numpy()
    for path, places in rows.reset_index(drop=True).groupby('filepath', sort=False).indices.items():
        image[places] = dataset.read_stack(path, numbers[places], grid, bands, nearest)
    return image


def read_file(dataset: RasterDataset, path: str, grid: Grid) -> NDArray[np.float32]:
    """The bands of one file, or of the files of one scene, ``(C, H, W)``."""
    nearest = not dataset.is_image
    if dataset.separate_files:
        files = {band: dataset._update_filepath(band, path) for band in dataset.bands}
        bands = [
            read_raster(file, (1,), grid, decoding_of(dataset, path, band), nearest, dataset.cache)
            for band, file in files.items()
        ]
        offsets = dataset.offsets(path) if hasattr(dataset, 'offsets') else 0
        return np.concatenate(bands) + offsets
    unlike: dict[str, str] = getattr(dataset, 'unlike', {})
    if path in unlike:
        raise ValueError(unlike[path])
    numbers = dataset.band_indexes
    known: dict[str, tuple[int, ...]] = getattr(dataset, 'band_numbers', {})
    if path in known:  # whose bands are in another order than those of the first file
        numbers = [known[path][dataset.all_bands.index(band)] for band in dataset.bands]
    return read_raster(path, numbers, grid, decoding_of(dataset, path, None), nearest, dataset.cache)


def decoding_of(dataset: RasterDataset, path: str, band: str | None) -> Decoding:
    """Return which pixels of a file, or of one band of a scene, are valid."""
    if hasattr(dataset, 'decoding'):
        own: Decoding = dataset.decoding(path, band)
        return own
    return Decoding(as_numbers(dataset.nodata), alpha=not dataset.all_bands)


def files_of(dataset: Any, path: str) -> list[str]:
    """All files of a scene that an index knows by one of them."""
    if not path or not getattr(dataset, 'separate_files', False):
        return [path]
    clouds = getattr(dataset, 'clouds', None)
    return [dataset._update_filepath(band, path) for band in (*dataset.bands, *([clouds.band] if clouds else []))]


def read_clouds(dataset: RasterDataset, path: str, grid: Grid, clouds: Clouds) -> NDArray[np.bool_]:
    """Where a scene is cloudy, ``(H, W)``."""
    if dataset.separate_files:
        path, index = dataset._update_filepath(clouds.band, path), 1
    else:
        place = dataset.all_bands.index(clouds.band)
        index = getattr(dataset, 'band_numbers', {}).get(path, range(1, place + 2))[place]
    assumed = Decoding(crs=getattr(dataset, 'assumed_crs', None), whole=getattr(dataset, 'whole_files', False))
    return clouds(read_raster(path, (index,), grid, assumed, True, dataset.cache)[0])


def read_raster(
    path: str,
    indexes: Sequence[int] | None,
    grid: Grid,
    nodata: float | Sequence[float] | Decoding | None,
    nearest: bool,
    cache: bool,
) -> NDArray[np.float32]:
    """Bands of a raster on other pixels, NaN outside of it and where nothing was measured.

    Args:
        path: A file or whatever GDAL reads, such as a URL.
        indexes: Bands from 1 on; None for all.
        grid: The pixels, which may be of another size and in another CRS.
        nodata: Numbers that are nodata besides what the file states, or all of how to decode it.
        nearest: Whether to take the nearest pixel, as classes need it.
        cache: Whether to keep the file open. One that changes on a disk is opened anew; that costs a status request
            for each read.

    Returns:
        Float32 ``(C, H, W)``. Where the pixels are those of the file, they are copied: a warp
        of a small tile costs ten times as much.

    Raises:
        ValueError: If that cannot be read.
    """
    decoding = nodata if isinstance(nodata, Decoding) else Decoding(as_numbers(nodata))
    try:
        with sidecars(path):  # what a virtual raster is made of is opened when it is read
            source = _kept_open(path, os.getpid(), raster_state(path)) if cache else open_raster(path)
            try:
                bands = list(indexes or source.indexes)
                if max(bands) > source.count:
                    raise ValueError(f'it has {source.count} bands')
                read = functools.partial(decode, source, bands, decoding=decoding)
                if decoding.whole:
                    return _cut(source, len(bands), *_whole(source, grid), read)
                return resample(source, len(bands), grid, read, nearest, decoding.crs)
            finally:
                if not cache:
                    source.close()
    except (RasterioError, IndexError, ValueError) as error:
        raise ValueError(f'{path} cannot be read ({error}), expected a raster with the bands {indexes}') from error


def resample(
    source: Any, count: int, grid: Grid, read: Callable[[Window], NDArray[np.float32]], nearest: bool, assumed: Any
) -> NDArray[np.float32]:
    """Read the pixels of a grid, as they are where they are those of the file.

    Args:
        source: A raster that is open, or what describes one alike: its CRS, transform, width and height.
        count: How many bands there are.
        grid: The pixels.
        read: Reads a part of the file, ``(C, H, W)``, NaN where it is not valid.
        nearest: Whether to take the nearest pixel; else finer pixels are averaged, others interpolated.
        assumed: CRS of a file that states none.

    Returns:
        Float32 ``(C, H, W)``, NaN outside of the file.
    """
    place = _place(source, grid, assumed)
    if place is None:
        return _warped(source, count, grid, read, nearest, assumed)
    return _cut(source, count, *place, read)


def _warped(
    source: Any, count: int, grid: Grid, read: Callable[[Window], NDArray[np.float32]], nearest: bool, assumed: Any
) -> NDArray[np.float32]:
    """Bands of an open file on other pixels; what is finer is averaged, unless the nearest is to be taken."""
    window = _reached(source, grid, assumed)
    if window is not None and window.width * window.height * count > LARGEST and grid.height > 1:
        half = grid.height // 2
        upper, lower = Grid(grid.crs, grid.transform, half, grid.width), grid.transform @ Affine.translation(0, half)
        parts = (upper, Grid(grid.crs, lower, grid.height - half, grid.width))
        return np.concatenate([_warped(source, count, part, read, nearest, assumed) for part in parts], axis=1)
    image = np.full((count, grid.height, grid.width), np.nan, dtype=np.float32)
    if window is None:
        return image
    crs, transform = _located(source, assumed)
    method = Resampling.nearest
    if not nearest:
        method = Resampling.average if _pixel(source, grid, assumed) < FINER * grid.step else Resampling.bilinear
    reproject(
        read(window),
        image,
        src_crs=crs or grid.crs,
        src_transform=transform @ Affine.translation(window.col_off, window.row_off),
        src_nodata=np.nan,
        dst_crs=grid.crs,
        dst_transform=grid.transform,
        dst_nodata=np.nan,
        resampling=method,
        UNIFIED_SRC_NODATA='NO',  # every band says for itself what was measured
    )
    image[~np.isfinite(image)] = np.nan
    return image


def _reached(source: Any, grid: Grid, assumed: Any) -> Window | None:
    """The part of an open file that the pixels of a grid are made of; None if it does not reach them."""
    crs, transform = _located(source, assumed)
    xmin, ymin, xmax, ymax = grid.bounds
    x, y = map(np.ravel, np.meshgrid(np.linspace(xmin, xmax, 22), np.linspace(ymin, ymax, 22)))
    if not _same(crs, grid.crs):
        try:
            x, y = map(np.array, warp.transform(grid.crs, crs, x, y))
        except RasterioError:
            return Window(0, 0, source.width, source.height)
    columns, rows = ~transform @ (x, y)
    if not (np.isfinite(columns).all() and np.isfinite(rows).all()):
        return Window(0, 0, source.width, source.height)
    sides = []
    for places, count, size in ((columns, grid.width, source.width), (rows, grid.height, source.height)):
        least, most = places.min(), places.max()
        margin = 3 + (most - least) * (2 / max(1, count) + 0.02)  # what is interpolated, and how lines are bent
        sides.append((max(0, math.floor(least - margin)), min(size, math.ceil(most + margin))))
    (left, right), (top, bottom) = sides
    return Window(left, top, right - left, bottom - top) if left < right and top < bottom else None


def _place(source: Any, grid: Grid, assumed: Any) -> tuple[int, int, int, int] | None:
    """The pixels of a grid as row, column, height and width of a file; None if they are not the file's own."""
    crs, (a, b, x, d, e, y, *_) = _located(source, assumed)
    step, (left, top) = grid.step, grid.corner
    if b or d or max(abs(a - step), abs(e + step)) > 1e-6 * step or not _same(crs, grid.crs):
        return None
    row, column = (y - top) / step, (left - x) / step
    if max(abs(row - round(row)), abs(column - round(column))) > 1e-6:
        return None
    return round(row), round(column), grid.height, grid.width


def _whole(source: Any, grid: Grid) -> tuple[int, int, int, int]:
    """Return all pixels of an open file as row, column, height and width; refuse another size than the grid's."""
    if (source.height, source.width) != (grid.height, grid.width):
        raise ValueError(
            f'it has {source.height} x {source.width} pixels, expected {grid.height} x {grid.width} of {grid.step:g} m'
        )
    return 0, 0, grid.height, grid.width


def _cut(
    source: Any,
    count: int,
    row: int,
    column: int,
    height: int,
    width: int,
    read: Callable[[Window], NDArray[np.float32]],
) -> NDArray[np.float32]:
    """Bands of part of an open file, NaN beyond it and where it is not valid, as in a warp."""
    image = np.full((count, height, width), np.nan, dtype=np.float32)
    top, left = max(row, 0), max(column, 0)
    bottom, right = min(row + height, source.height), min(column + width, source.width)
    if top < bottom and left < right:
        window = Window(left, top, right - left, bottom - top)
        inside = image[:, top - row : bottom - row, left - column : right - column]
        inside[:] = read(window)
    return image


def _located(source: Any, assumed: Any) -> tuple[Any, Affine]:
    """The CRS and transform of an open file, whose CRS is *assumed* where it states none."""
    crs, transform = georeference(source)
    return assumed if crs is None else crs, transform


@functools.lru_cache(maxsize=128)
def _same(source: Any, grid: Any) -> bool:
    """Whether the CRS of a file is that of a grid; a file that does not say has that one."""
    return source is None or bool(source == grid)


@functools.lru_cache(maxsize=128)
def _kept_open(path: str, process: int, state: tuple[State | None, ...]) -> Any:
    """Return an open file, the same for as long as its state is.

    GDAL's handles do not survive a fork, so each process has its own.
    """
    return open_raster(path)


atexit.register(_kept_open.cache_clear)  # GDAL complains of files that are closed after the interpreter


def _pixel(source: Any, grid: Grid, assumed: Any) -> float:
    """About how large the pixels of a file are in units of a grid's CRS."""
    crs, transform = _located(source, assumed)
    side = math.sqrt(abs(transform.determinant))
    if _same(crs, grid.crs):
        return side
    x, y = transform @ (source.width / 2, source.height / 2)
    try:
        left, bottom, right, top = warp.transform_bounds(crs, grid.crs, x, y, x + side, y + side)
    except RasterioError:
        return grid.step
    return math.sqrt((right - left) * (top - bottom))


def decibel_mean(frames: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean in linear power over frames ``(F, C, H, W)`` of decibels, of what is finite."""
    powers = np.power(10, frames / 10, dtype=np.float32)
    return (10 * np.log10(finite_mean(powers))).astype(np.float32)


def merge_of(decibels: bool) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """The mean that suits the unit of a dataset."""
    return decibel_mean if decibels else finite_mean


def opened(path: str) -> Any:
    """A raster, or one error that names it."""
    try:
        return open_raster(path)
    except RasterioError as error:
        raise ValueError(f'{path} cannot be read ({error}), expected a raster') from error


def as_gdal(path: str) -> str:
    """A path as GDAL takes it: a URL goes through its cache of ranges."""
    return f'/vsicurl/{path}' if re.match('https?://', path) else path


def is_remote(path: str) -> bool:
    """Whether GDAL alone can open that, and it is one file: an archive or a bucket is listed like a directory."""
    return bool(re.match(r'https?://|/vsicurl|/vsi.*\.(tiff?|jp2|vrt)$', path, re.IGNORECASE))
