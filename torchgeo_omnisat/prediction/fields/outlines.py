# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Outlines of fields as polygons with the columns of fiboa, in a GeoPackage or GeoParquet."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import rasterio
import shapely
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.features import shapes
from scipy.ndimage import label
from shapely.geometry import shape
from shapely.geometry.base import BaseGeometry

from ...utils.checks import check_output_files, require_pyarrow
from ..raster import CACHE, probability_bands
from ..tiling import Window
from ..vector import READ_BLOCK
from .segmentation import FieldOptions, FieldTable, hectares, raster_window

#: URL of the schema of fiboa, which defines the columns of fields.
FIBOA = 'https://fiboa.github.io/specification/v0.2.0/schema.yaml'
#: URL of its extension for crops, which requires a list of codes.
FIBOA_CROP = 'https://fiboa.github.io/crop-extension/v0.1.0/schema.yaml'
#: File name extensions of GeoParquet.
PARQUET = ('.parquet', '.geoparquet')


def check_fields_output(output: Path) -> None:
    """Check that a file of fields can be written.

    Raises:
        ValueError: If its extension is not known, or it is a folder.
        ImportError: If it is GeoParquet and pyarrow is not installed.
    """
    if output.suffix.lower() not in ('.gpkg', *PARQUET):
        raise ValueError(f'file of fields is {output}, expected the extension .gpkg, .parquet or .geoparquet')
    check_output_files('file of fields', output)
    if output.suffix.lower() in PARQUET:
        require_pyarrow(output)


def write_fields(
    path: Path,
    ids: Path,
    table: FieldTable,
    output: Path,
    labels: Sequence[str],
    modalities: Sequence[str],
    options: FieldOptions | None = None,
    *,
    background: int | None = None,
    date: int | None = None,
    area: BaseGeometry | None = None,
    block: int = READ_BLOCK,
) -> int:
    """Write the outlines of fields, with the columns of fiboa 0.2, to a GeoPackage or GeoParquet.

    Outlines are simplified as a coverage, so the border of two fields is the same line in both. Fields are written
    block by block, each with the block of its first pixel. The fields around a block are simplified with it, so that
    borders between blocks are the same in both. Memory is that of the largest such window and of 32 bytes per field.

    Columns are ``id``, ``geometry``, ``area`` in hectares, ``determination_method`` (``auto-imagery``),
    ``determination_datetime`` if there is a *date*, ``crop:code``, ``crop:name``, ``crop:code_list`` if the options
    have one, ``probability``, and ``sensors``, joined by ``+``. The crop is the class with the largest sum of
    probabilities in the field, and the probability is its mean there; null if the map has no probabilities, and then
    the crop is the most frequent class. All of these are null if a field consists of the background alone.

    Args:
        path: Map, see :func:`.write_map`.
        ids: Output of :func:`.segment_map` for this map.
        table: Result of :func:`.segment_map`.
        output: GeoPackage (``.gpkg``) or GeoParquet (``.parquet``) to write; it is not written atomically.
        labels: Names of the classes.
        modalities: Names of the modalities, in the order of the bits of the second band.
        options: Settings; ``hole``, ``simplify`` and ``code_list`` are used.
        background: Class of pixels outside of fields, which is never assigned to a field.
        date: Last acquisition date in days since 1970-01-01; None if it is not known.
        area: Polygon in the CRS of the map, at which fields are clipped. The parts of a field that it divides become
            fields of their own.
        block: Side of the blocks in pixels.

    Returns:
        Number of fields written.
    """
    check_fields_output(output)
    options = options or FieldOptions()
    count = 0
    with rasterio.Env(GDAL_CACHEMAX=CACHE), rasterio.open(path) as file, rasterio.open(ids) as numbers:
        outliner = _Outliner(file, numbers, table, options, background, list(labels), list(modalities))
        meta: dict[str, Any] = {'schemas': [FIBOA] + [FIBOA_CROP] * (options.code_list is not None)}
        sink = _ParquetSink(output, meta) if output.suffix.lower() in PARQUET else _PackageSink(output, meta)
        with closing(sink):
            for own in _groups(table, file.width, block):
                found = outliner.outlines(own)
                found = _clipped(found, area, options.smallest) if area is not None else found
                found.insert(2, 'area', found.area * file.crs.linear_units_factor[1] ** 2 / 1e4)
                found.insert(3, 'determination_method', 'auto-imagery')
                if date is not None:
                    day = pd.Timestamp(date, unit='D', tz='UTC')
                    found.insert(4, 'determination_datetime', pd.Series(day, found.index, 'datetime64[ms, UTC]'))
                if options.code_list is not None:
                    found['crop:code_list'] = pd.Series(options.code_list, found.index, 'str')
                sink.write(found)
                count += len(found)
    return count


def _groups(table: FieldTable, width: int, block: int) -> Iterator[NDArray[np.int64]]:
    """Yield the fields of each block, those of which the first pixel lies in it; at least one group, perhaps empty."""
    rows, columns = np.divmod(table.firsts, width)
    blocks = rows // block * math.ceil(width / block) + columns // block
    order = np.argsort(blocks, kind='stable')
    edges = np.flatnonzero(np.diff(blocks[order])) + 1
    yield from np.split(order + 1, edges)


@dataclass(frozen=True)
class _Outliner:
    file: Any
    numbers: Any
    table: FieldTable
    options: FieldOptions
    background: int | None
    labels: list[str]
    modalities: list[str]

    def outlines(self, own: NDArray[np.int64]) -> gpd.GeoDataFrame:
        """Return the outlines and attributes of some fields."""
        window = self._around(own)
        ids = self._read(window)
        window = self._around(np.union1d(own, ids[ids > 0]))
        ids = self._read(window)
        classes, bits = self.file.read([1, 2], window=raster_window(window))
        ids = _close_holes(ids, classes != self.file.nodata, self.options.hole / hectares(self.file))
        polygons, fields = _polygons(ids)
        if self.options.simplify > 0:
            polygons = shapely.coverage_simplify(polygons, self.options.simplify)
        a, b, x, d, e, y = (self.file.transform @ Affine.translation(window.column, window.row))[:6]
        order = np.argsort(fields)
        chosen = polygons[order[np.searchsorted(fields, own, sorter=order)]] if len(own) else polygons[:0]
        shown = shapely.transform(chosen, lambda xy: xy @ np.array([[a, d], [b, e]]) + [x, y])
        place = np.zeros(len(self.table.sizes) + 1, np.int64)
        place[own] = np.arange(1, len(own) + 1)
        codes, probabilities = self._crops(place[ids], classes, len(own), window)
        return gpd.GeoDataFrame(
            {
                'id': pd.Series(own, dtype='int64').astype('str'),
                'crop:code': pd.Series([None if code < 0 else str(code) for code in codes], dtype='str'),
                'crop:name': pd.Series([None if code < 0 else self.labels[code] for code in codes], dtype='str'),
                'probability': pd.Series(probabilities, dtype='float64'),
                'sensors': pd.Series(self._sensors(place[ids], bits, len(own)), dtype='str'),
            },
            geometry=gpd.GeoSeries(shown, crs=self.file.crs.to_wkt()),
        )[['id', 'geometry', 'crop:code', 'crop:name', 'probability', 'sensors']]

    def _around(self, fields: NDArray[np.int64]) -> Window:
        """Return the window of some fields, with one pixel around them."""
        if not len(fields):
            return Window(0, 0, 1, 1)
        boxes = self.table.boxes[fields - 1]
        top, left = np.maximum(boxes[:, :2].min(0) - 1, 0).tolist()
        bottom, right = np.minimum(boxes[:, 2:].max(0) + 1, self.file.shape).tolist()
        return Window(top, left, bottom - top, right - left)

    def _read(self, window: Window) -> NDArray[np.int32]:
        return self.numbers.read(1, window=raster_window(window))

    def _crops(
        self, place: NDArray[np.int64], classes: NDArray[Any], count: int, window: Window
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the class of each field, -1 if there is none, and its mean probability.

        *place* is 0 outside of the fields, else from 1.
        """
        inside = place > 0
        place = place[inside]
        bands = probability_bands(self.file)
        scores = np.zeros((len(self.labels), count + 1))
        for code in range(len(self.labels)):
            if code == self.background:
                continue
            values = classes == code
            if bands:
                band = bands[code]
                values = self.file.read(band, window=raster_window(window)) * self.file.scales[band - 1]
            scores[code] = np.bincount(place, values[inside], count + 1)
        most = scores[:, 1:].max(0)
        best = np.where(most > 0, scores[:, 1:].argmax(0), -1)
        sizes = np.bincount(place, minlength=count + 1)[1:]
        known = (most > 0) & bool(bands)
        return best, np.where(known, np.round(most / np.maximum(1, sizes), 4), np.nan)

    def _sensors(self, place: NDArray[np.int64], bits: NDArray[Any], count: int) -> list[str]:
        """Return the modalities that observed a pixel of each field."""
        bits = np.where(bits == self.file.nodata, 0, bits)
        seen = [np.bincount(place.ravel(), (bits.ravel() >> bit) & 1, count + 1)[1:] > 0 for bit in self._bits]
        return ['+'.join(compress(self.modalities, flags)) for flags in zip(*seen, strict=True)]

    @property
    def _bits(self) -> range:
        return range(len(self.modalities))


def _polygons(ids: NDArray[np.int32]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the outlines of ids above 0 in pixels, with a vertex at each corner of a pixel, and the ids."""
    found = [(shape(outline), int(number)) for outline, number in shapes(ids, ids > 0, 4)]
    polygons = np.array([outline for outline, _ in found], dtype=object)
    fields = np.array([number for _, number in found], dtype=np.int64)
    # Polygons of a coverage must have the same vertices at their borders, also where only a third one has a corner.
    return shapely.transform(shapely.segmentize(polygons, 1), np.rint), fields


def _close_holes(ids: NDArray[np.int32], observed: NDArray[np.bool_], most: float) -> NDArray[np.int32]:
    """Fill the holes of up to *most* pixels inside of a single field; holes with nodata are not filled."""
    holes, count = label(ids == 0, np.ones((3, 3)))
    if not count or most < 1:
        return ids
    sizes = np.bincount(holes.ravel(), minlength=count + 1)
    open_ = np.zeros(count + 1, bool)
    for edge in (holes[0], holes[-1], holes[:, 0], holes[:, -1], holes[~observed]):
        open_[edge] = True
    lowest, highest = np.full(count + 1, np.iinfo(np.int32).max), np.zeros(count + 1, np.int64)
    for one, two in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        for hole, around in ((one, two), (two, one)):
            touching = (holes[hole] > 0) & (ids[around] > 0)
            np.minimum.at(lowest, holes[hole][touching], ids[around][touching])
            np.maximum.at(highest, holes[hole][touching], ids[around][touching])
    fills = np.where(~open_ & (sizes <= most) & (lowest == highest), highest, 0).astype(np.int32)
    fills[0] = 0
    return ids + fills[holes]


def _clipped(fields: gpd.GeoDataFrame, area: BaseGeometry, smallest: float) -> gpd.GeoDataFrame:
    """Return the fields inside of an area; parts below *smallest* hectares are removed."""
    shapely.prepare(area)
    crossing = ~shapely.covers(area, fields.geometry.values)
    if not crossing.any():
        return fields
    whole, cut = fields[~crossing], fields[crossing].copy()
    cut.geometry = shapely.intersection(cut.geometry.values, area)
    cut = cut.explode()
    part = cut.groupby(level=0).cumcount().to_numpy()
    unit = cut.crs.axis_info[0].unit_conversion_factor
    cut['id'] = [f'{name}-{number + 1}' if number else name for name, number in zip(cut['id'], part, strict=True)]
    kept = (cut.geom_type == 'Polygon') & (cut.area > 0) & (cut.area * unit**2 / 1e4 >= smallest)
    return pd.concat([whole, cut[kept]]).reset_index(drop=True)


class _PackageSink:
    """GeoPackage that is written in parts."""

    def __init__(self, path: Path, meta: Mapping[str, Any]) -> None:
        self.path, self.meta, self.begun = path, meta, False

    def write(self, fields: gpd.GeoDataFrame) -> None:
        """Append fields."""
        options: dict[str, Any] = {} if self.begun else {'layer_metadata': {'fiboa': json.dumps(self.meta)}}
        fields.to_file(
            self.path,
            driver='GPKG',
            layer='fields',
            engine='pyogrio',
            geometry_type='Polygon',
            append=self.begun,
            **options,
        )
        self.begun = True

    def close(self) -> None:
        """Do nothing: each part is complete."""


class _ParquetSink:
    """GeoParquet that is written in parts, as row groups."""

    def __init__(self, path: Path, meta: Mapping[str, Any]) -> None:
        self.path, self.meta = path, meta
        self.writer: Any = None

    def write(self, fields: gpd.GeoDataFrame) -> None:
        """Append fields."""
        import pyarrow as arrow
        from pyarrow import parquet

        plain = pd.DataFrame(fields.drop(columns='geometry'))
        plain.insert(1, 'geometry', shapely.to_wkb(fields.geometry.to_numpy()))
        if self.writer is None:
            types = {'geometry': arrow.binary(), 'area': arrow.float64(), 'probability': arrow.float64()}
            types['determination_datetime'] = arrow.timestamp('ms', 'UTC')
            schema = arrow.schema([(name, types.get(name, arrow.string())) for name in plain.columns])
            column = {'encoding': 'WKB', 'geometry_types': ['Polygon'], 'crs': fields.crs.to_json_dict()}
            geo = {'version': '1.0.0', 'primary_column': 'geometry', 'columns': {'geometry': column}}
            self.schema = schema.with_metadata({'geo': json.dumps(geo), 'fiboa': json.dumps(self.meta)})
            self.writer = parquet.ParquetWriter(self.path, self.schema)
        self.writer.write_table(arrow.Table.from_pandas(plain, schema=self.schema, preserve_index=False))

    def close(self) -> None:
        """Write the footer."""
        if self.writer is not None:
            self.writer.close()
