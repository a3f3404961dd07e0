# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Reading of the files of a raster dataset on the pixel grid of a window, by acquisition date."""

import atexit
import functools
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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
from ...utils.plurals import counted
from ..common.arguments import Settings
from ..common.series import Merge, decibel_mean, finite_mean
from ..io.decoding import Decoding, as_numbers, decode
from ..io.fingerprint import State, raster_state
from ..io.headers import georeference
from ..io.opening import open_raster, sidecars
from .embedding_headers import decoding_of_file, is_embedding

#: Period of a file without a date.
ALWAYS = (pd.Timestamp.min, pd.Timestamp.max)
#: Pixels smaller than this fraction of those of the grid are averaged; others are interpolated.
FINER = 0.75
#: Maximum number of values that are warped at a time.
LARGEST = 2**27


@dataclass(frozen=True)
class Clouds(Settings):
    """Cloud mask from a band of classes or probabilities.

    Cloudy pixels are set to NaN. A date with too many of them is not valid.

    Args:
        band: Band with the classes or probabilities, such as ``'SCL'``.
        values: Classes that are clouds, such as (3, 8, 9, 10) for Sentinel-2.
        threshold: Minimum value of a cloudy pixel, instead of *values*.
        cover: Minimum fraction of cloudy pixels of a date that is not valid.

    Raises:
        ValueError: If not exactly one of *values* and *threshold* is given, or *cover* is not a fraction.
    """

    band: str
    values: tuple[int, ...] = ()
    threshold: float | None = None
    cover: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, 'values', tuple(self.values))
        if bool(self.values) == (self.threshold is not None):
            raise ValueError(
                f'clouds in {self.band!r} have values={self.values}, threshold={self.threshold}, expected one of both'
            )
        if not 0 < self.cover <= 1:
            raise ValueError(f'cover of clouds is {self.cover}, expected a fraction above 0 and up to 1')

    def __call__(self, band: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return the mask of cloudy pixels; False where *band* is NaN."""
        return np.isin(band, self.values) if self.threshold is None else band >= self.threshold


def overlapping(dataset: GeoDataset, grid: Grid, span: tuple[pd.Timestamp, pd.Timestamp] | None) -> GeoDataFrame:
    """Return the rows of an index that intersect a window and a period, in chronological order.

    They do not include files that only touch the window: a file must contain the centre of a pixel.
    """
    index = dataset.index
    kept = np.arange(len(index))
    if span is not None:
        kept = np.flatnonzero(index.index.overlaps(pd.Interval(*span, closed='both')))
    xmin, ymin, xmax, ymax = grid.bounds
    half = grid.step / 2
    shapes = index.geometry.to_numpy()
    kept = kept[shapely.intersects(shapes[kept], shapely.box(xmin + half, ymin + half, xmax - half, ymax - half))]
    kept = kept[shapely.area(shapely.intersection(shapes[kept], shapely.box(*grid.bounds))) > 0]
    return index.iloc[kept[np.argsort(index.index.left.to_numpy()[kept], kind='stable')]]


def days_of(rows: GeoDataFrame) -> NDArray[np.int64]:
    """Return the acquisition dates of rows in days since 1970-01-01; 0 for files without a date."""
    left = rows.index.left.to_numpy()
    dated = left != ALWAYS[0].to_datetime64()
    days = np.zeros(len(left), np.int64)
    days[dated] = left[dated].astype('datetime64[D]').astype(np.int64)
    return days


def middle_days_of(rows: GeoDataFrame) -> NDArray[np.int64]:
    """Return the middle of the period of each first day of rows, in chronological order; 0 for files without a date."""
    first, index = np.unique(days_of(rows), return_index=True)
    last = rows.index.right.to_numpy()[index].astype('datetime64[D]').astype(np.int64)
    return np.where(rows.index.left[index] == ALWAYS[0], 0, (first + last + 1) // 2)


def nearest_period(rows: GeoDataFrame, span: tuple[pd.Timestamp, pd.Timestamp] | None) -> GeoDataFrame:
    """Return the rows of the one period, such as a year, that overlaps most with *span*, or is nearest to it.

    Rows without a date are returned too.
    """
    dated = rows.index.left != ALWAYS[0]
    if span is None or rows.index[dated].nunique() < 2:
        return rows
    first, last = span
    shared = np.array(
        [
            (min(right, last) - max(left, first)).total_seconds()
            for left, right in zip(rows.index.left[dated], rows.index.right[dated], strict=True)
        ]
    )
    return rows[~dated | (rows.index.left == rows.index.left[dated][int(shared.argmax())])]


def read_daily_images(
    dataset: RasterDataset, rows: GeoDataFrame, grid: Grid, merge: Merge = finite_mean, clouds: Clouds | None = None
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_]]:
    """Read one image per acquisition date of the files of *rows*, at least one.

    Return images ``(T, C, H, W)`` in chronological order, NaN where pixels are not valid; dates ``(T,)`` in days since
    1970-01-01; and ``(T,)`` whether a date has valid pixels and few enough clouds.
    """
    days, files = days_of(rows), rows.filepath.to_numpy()
    images, valid = [], []
    every = hidden = None
    if 'frame' in rows:  # files of several dates are read once, not once a date
        every = read_stacks(dataset, rows, grid, dataset.bands, not dataset.is_image)
        hidden = None if clouds is None else clouds(read_stacks(dataset, rows, grid, (clouds.band,), True)[:, 0])
    for day in np.unique(days):
        here = days == day
        frames = np.stack([read_bands(dataset, path, grid) for path in files[here]]) if every is None else every[here]
        observed = np.isfinite(frames).any(1)
        usable = bool(observed.any())
        if clouds is not None:
            if hidden is None:
                cloudy = np.stack([read_clouds(dataset, path, grid, clouds) for path in files[here]]) & observed
            else:
                cloudy = hidden[here] & observed
            frames[np.broadcast_to(cloudy[:, None], frames.shape)] = np.nan
            usable = bool(np.isfinite(frames).any() and cloudy.sum() < clouds.cover * observed.sum())
        images.append(frames[0] if len(frames) == 1 else merge(frames))
        valid.append(usable)
    return np.stack(images), np.unique(days), np.array(valid)


def repeat(index: GeoDataFrame, counts: Sequence[int], days: NDArray[np.datetime64]) -> GeoDataFrame:
    """Return an index with one row per date of its files, and the column ``frame``, the position in the file.

    *days* are the dates of all files; NaT keeps the period of the row.
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
    """Read files of several dates by ``read_stack`` of their dataset as float32 ``(N, C, H, W)`` of *rows*."""
    image = np.empty((len(rows), len(bands), grid.height, grid.width), dtype=np.float32)
    numbers = rows.frame.to_numpy()
    for path, places in rows.reset_index(drop=True).groupby('filepath', sort=False).indices.items():
        image[places] = dataset.read_stack(path, numbers[places], grid, bands, nearest)
    return image


def read_bands(dataset: RasterDataset, path: str, grid: Grid) -> NDArray[np.float32]:
    """Return the bands ``(C, H, W)`` of one file, or of the files of one scene."""
    nearest = not dataset.is_image
    if dataset.separate_files:
        files = {band: dataset._update_filepath(band, path) for band in dataset.bands}
        bands = [
            read_window(file, (1,), grid, decoding_of(dataset, path, band), nearest, dataset.cache)
            for band, file in files.items()
        ]
        offsets = dataset.offsets(path) if hasattr(dataset, 'offsets') else 0
        return np.concatenate(bands) + offsets
    unlike: dict[str, str] = getattr(dataset, 'unlike', {})
    if path in unlike:
        raise ValueError(unlike[path])
    numbers = dataset.band_indexes
    known: dict[str, tuple[int, ...]] = getattr(dataset, 'band_numbers', {})
    if path in known:  # the order of bands differs from that of the first file
        numbers = [known[path][dataset.all_bands.index(band)] for band in dataset.bands]
    return read_window(path, numbers, grid, decoding_of(dataset, path, None), nearest, dataset.cache)


def decoding_of(dataset: RasterDataset, path: str, band: str | None) -> Decoding:
    """Return nodata, scale and offset of a file, or of one band of a scene."""
    if hasattr(dataset, 'decoding'):
        own: Decoding = dataset.decoding(path, band)
        return own
    if is_embedding(dataset):
        return decoding_of_file(path)
    return Decoding(as_numbers(dataset.nodata), alpha=not dataset.all_bands)


def scene_files(dataset: Any, path: str) -> list[str]:
    """Return all files of a scene, given the one in the index."""
    if not path or not getattr(dataset, 'separate_files', False):
        return [path]
    clouds = getattr(dataset, 'clouds', None)
    return [dataset._update_filepath(band, path) for band in (*dataset.bands, *([clouds.band] if clouds else []))]


def read_clouds(dataset: Any, path: str, grid: Grid, clouds: Clouds) -> NDArray[np.bool_]:
    """Return the cloud mask ``(H, W)`` of a scene."""
    if dataset.separate_files:
        path, index = dataset._update_filepath(clouds.band, path), 1
    else:
        index = dataset.band_numbers.get(path, dataset.usual_numbers)[dataset.all_bands.index(clouds.band)]
    assumed = Decoding(alpha=dataset.alpha_masks, crs=dataset.assumed_crs, whole=dataset.whole_files)
    return clouds(read_window(path, (index,), grid, assumed, True, dataset.cache)[0])


def read_window(
    path: str,
    indexes: Sequence[int] | None,
    grid: Grid,
    nodata: float | Sequence[float] | Decoding | None,
    nearest: bool,
    cache: bool,
) -> NDArray[np.float32]:
    """Read bands of a raster on a pixel grid as float32 ``(C, H, W)``, NaN where pixels are not valid.

    Pixels on the grid of the file are copied, as warping a small tile takes ten times as long. *nodata* are values in
    addition to that of the file, or a complete decoding. With *cache*, the file is kept open, and reopened if it
    changes, which costs a status request per read.
    """
    decoding = nodata if isinstance(nodata, Decoding) else Decoding(as_numbers(nodata))
    try:
        with sidecars(path):  # the sources of a virtual raster are opened when it is read
            source = _kept_open(path, os.getpid(), raster_state(path)) if cache else open_raster(path)
            try:
                bands = list(indexes or source.indexes)
                if max(bands) > source.count:
                    raise ValueError(f'it has {counted(source.count, "band")}')
                read = functools.partial(decode, source, bands, decoding=decoding)
                if decoding.whole:
                    return _read_window(source, len(bands), *_whole_window(source, grid), read)
                view, read_north_up = _north_up(source, read)
                return resample(view, len(bands), grid, read_north_up, nearest, decoding.crs)
            finally:
                if not cache:
                    source.close()
    except (RasterioError, IndexError, ValueError) as error:
        raise ValueError(f'{path} cannot be read ({error}), expected a raster with the bands {indexes}') from error


class _View(NamedTuple):
    """Header of a file whose rows are read in reverse order; as :func:`.georeference` reads it."""

    crs: Any
    transform: Affine
    width: int
    height: int


def _north_up(
    source: Any, read: Callable[[Window], NDArray[np.float32]]
) -> tuple[Any, Callable[[Window], NDArray[np.float32]]]:
    """Return a file and its reading function, with the first row in the north.

    The rows of some products, such as AlphaEarth's, are stored from south to north.
    """
    a, b, x, d, e, y = source.transform[:6]
    if b or d or e <= 0 or source.transform.is_identity:
        return source, read

    def read_reversed(window: Window) -> NDArray[np.float32]:
        row = source.height - window.row_off - window.height
        return read(Window(window.col_off, row, window.width, window.height))[:, ::-1]

    transform = Affine(a, 0, x, 0, -e, y + e * source.height)
    return _View(source.crs, transform, source.width, source.height), read_reversed


def resample(
    source: Any, count: int, grid: Grid, read: Callable[[Window], NDArray[np.float32]], nearest: bool, assumed: Any
) -> NDArray[np.float32]:
    """Read a file on a pixel grid as float32 ``(C, H, W)``, NaN outside; pixels already on it are copied.

    *source* is an open raster, or has its CRS, transform, width and height; *assumed* is the CRS of one without. *read*
    reads a window of it. Unless *nearest*, finer pixels are averaged, and others interpolated bilinearly.
    """
    place = _aligned_window(source, grid, assumed)
    if place is None:
        return _warp(source, count, grid, read, nearest, assumed)
    return _read_window(source, count, *place, read)


def _warp(
    source: Any, count: int, grid: Grid, read: Callable[[Window], NDArray[np.float32]], nearest: bool, assumed: Any
) -> NDArray[np.float32]:
    window = _source_window(source, grid, assumed)
    if window is not None and window.width * window.height * count > LARGEST and grid.height > 1:
        half = grid.height // 2
        upper, lower = Grid(grid.crs, grid.transform, half, grid.width), grid.transform @ Affine.translation(0, half)
        parts = (upper, Grid(grid.crs, lower, grid.height - half, grid.width))
        return np.concatenate([_warp(source, count, part, read, nearest, assumed) for part in parts], axis=1)
    image = np.full((count, grid.height, grid.width), np.nan, dtype=np.float32)
    if window is None:
        return image
    crs, transform = _crs_and_transform(source, assumed)
    method = Resampling.nearest
    if not nearest:
        method = Resampling.average if _pixel_size(source, grid, assumed) < FINER * grid.step else Resampling.bilinear
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
        UNIFIED_SRC_NODATA='NO',  # each band has its own nodata pixels
    )
    image[~np.isfinite(image)] = np.nan
    return image


def _source_window(source: Any, grid: Grid, assumed: Any) -> Window | None:
    """Return the window of an open file that covers a pixel grid; None if they do not intersect."""
    crs, transform = _crs_and_transform(source, assumed)
    xmin, ymin, xmax, ymax = grid.bounds
    x, y = map(np.ravel, np.meshgrid(np.linspace(xmin, xmax, 22), np.linspace(ymin, ymax, 22)))
    if not _is_same_crs(crs, grid.crs):
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
        margin = 3 + (most - least) * (2 / max(1, count) + 0.02)  # for interpolation and the curvature of lines
        sides.append((max(0, math.floor(least - margin)), min(size, math.ceil(most + margin))))
    (left, right), (top, bottom) = sides
    return Window(left, top, right - left, bottom - top) if left < right and top < bottom else None


def _aligned_window(source: Any, grid: Grid, assumed: Any) -> tuple[int, int, int, int] | None:
    crs, (a, b, x, d, e, y, *_) = _crs_and_transform(source, assumed)
    step, (left, top) = grid.step, grid.corner
    if b or d or max(abs(a - step), abs(e + step)) > 1e-6 * step or not _is_same_crs(crs, grid.crs):
        return None
    row, column = (y - top) / step, (left - x) / step
    if max(abs(row - round(row)), abs(column - round(column))) > 1e-6:
        return None
    return round(row), round(column), grid.height, grid.width


def _whole_window(source: Any, grid: Grid) -> tuple[int, int, int, int]:
    """Return row, column, height and width of an open file; raise ValueError unless its size is that of the grid."""
    if (source.height, source.width) != (grid.height, grid.width):
        raise ValueError(
            f'it has {source.height} x {source.width} pixels, expected {grid.height} x {grid.width} of {grid.step:g} m'
        )
    return 0, 0, grid.height, grid.width


def _read_window(
    source: Any,
    count: int,
    row: int,
    column: int,
    height: int,
    width: int,
    read: Callable[[Window], NDArray[np.float32]],
) -> NDArray[np.float32]:
    image = np.full((count, height, width), np.nan, dtype=np.float32)
    top, left = max(row, 0), max(column, 0)
    bottom, right = min(row + height, source.height), min(column + width, source.width)
    if top < bottom and left < right:
        window = Window(left, top, right - left, bottom - top)
        inside = image[:, top - row : bottom - row, left - column : right - column]
        inside[:] = read(window)
    return image


def _crs_and_transform(source: Any, assumed: Any) -> tuple[Any, Affine]:
    """Return the CRS, or *assumed* if there is none, and the transform of an open file."""
    crs, transform = georeference(source)
    return assumed if crs is None else crs, transform


@functools.lru_cache(maxsize=128)
def _is_same_crs(source: Any, grid: Any) -> bool:
    return source is None or bool(source == grid)


@functools.lru_cache(maxsize=128)
def _kept_open(path: str, process: int, state: tuple[State | None, ...]) -> Any:
    """Return an open file, cached until it changes.

    GDAL's handles do not survive a fork, so each process opens the file itself.
    """
    return open_raster(path)


atexit.register(_kept_open.cache_clear)  # GDAL reports an error if files are closed after the interpreter


def _pixel_size(source: Any, grid: Grid, assumed: Any) -> float:
    crs, transform = _crs_and_transform(source, assumed)
    side = math.sqrt(abs(transform.determinant))
    if _is_same_crs(crs, grid.crs):
        return side
    x, y = transform @ (source.width / 2, source.height / 2)
    try:
        left, bottom, right, top = warp.transform_bounds(crs, grid.crs, x, y, x + side, y + side)
    except RasterioError:
        return grid.step
    return math.sqrt((right - left) * (top - bottom))


def merge_of(decibels: bool) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """Return the function that averages images in decibels, or in another unit."""
    return decibel_mean if decibels else finite_mean


def opened(path: str) -> Any:
    """Open a raster; raise ValueError with its path if it cannot be read."""
    try:
        return open_raster(path)
    except RasterioError as error:
        raise ValueError(f'{path} cannot be read ({error}), expected a raster') from error


def as_gdal(path: str) -> str:
    """Return a path that GDAL opens; a URL is read in ranges through ``/vsicurl/``."""
    return f'/vsicurl/{path}' if re.match('https?://', path) else path


def is_remote(path: str) -> bool:
    """Return whether a path is a single file that only GDAL opens; archives and buckets are listed as directories."""
    return bool(re.match(r'https?://|/vsicurl|/vsi.*\.(tiff?|jp2|vrt)$', path, re.IGNORECASE))
