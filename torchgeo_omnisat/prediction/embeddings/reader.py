# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Embedding maps as one grid of vectors, read in blocks."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from pyproj import CRS
from rasterio import Affine
from rasterio.shutil import copy
from rasterio.windows import Window as RasterWindow

from ...datasets.io.decoding import Decoding
from ...datasets.rasters.embedding_headers import SENSORS, EmbeddingHeader, dimension_names, read_embedding_header
from ...datasets.rasters.frames import read_window
from ...grid import Grid, metres
from ...utils.atomic import naming_errors, publish, scratch_folder
from ...utils.checks import check_output_files
from ..raster import BLOCK, CACHE
from ..tiling import Window

Vectors = NDArray[np.float32]
#: Number of values of a block in memory.
VALUES = 2**22
#: Tags of the sensors band: the modality of each bit.
BIT_TAG = 'BIT_'
#: Tag of the digest of the weights of the model.
WEIGHTS_TAG = 'WEIGHTS_SHA256'


class EmbeddingMap:
    """Embedding rasters of one or several files as one map, with NaN for nodata.

    Files may be int8 codes of this package or of AlphaEarth (also with rows from south to north), int8 codes of
    TESSERA with a file of scales, floats, or Zarr stores of this package, which GDAL reads. Several files are a mosaic:
    each pixel is that of the first file that has one. Nothing is read before :meth:`read`.

    Args:
        paths: Files or Zarr stores (``.zarr``), with the same number of dimensions, CRS and pixel grid.

    Raises:
        ValueError: If a file is not an embedding map, or the files have different grids.
    """

    def __init__(self, paths: Sequence[str | Path]) -> None:
        self.paths = [str(path) for path in paths]
        if not self.paths:
            raise ValueError('embeddings is empty, expected at least one file')
        self.headers = [read_embedding_header(_source(path)) for path in self.paths]
        self.flags = [_flags(path, header) for path, header in zip(self.paths, self.headers, strict=True)]
        self.names = dimension_names(self.headers)
        self.grids = [_grid(header) for header in self.headers]
        self.grid = self._joined()
        self.sensors = self._sensors()

    def __len__(self) -> int:
        """Return the number of dimensions."""
        return len(self.names)

    @property
    def gsd(self) -> float:
        """GSD in metres."""
        return metres(self.grid.crs, self.grid.step)

    @property
    def weights(self) -> set[str]:
        """Digests of the weights of the models that wrote the files, without those that state none."""
        return {found for path in self.paths if (found := _weights(path))}

    def read(self, window: Window) -> Vectors:
        """Return the vectors ``(D, H, W)`` of a window; NaN where there is none.

        A pixel without a value in any dimension has no vector.
        """
        part = self._window(window)
        vectors = np.full((len(self), window.height, window.width), np.nan, np.float32)
        for header, grid in zip(self.headers, self.grids, strict=True):
            if _overlap(grid, part):
                with rasterio.Env(GDAL_CACHEMAX=CACHE):
                    new = read_window(header.header.path, header.bands, part, header.decoding, True, cache=True)
                empty = ~np.isfinite(vectors).all(0)
                vectors[:, empty] = new[:, empty]
        vectors[:, ~np.isfinite(vectors).all(0)] = np.nan
        return vectors

    def read_sensors(self, window: Window, vectors: Vectors) -> NDArray[np.uint16]:
        """Return bit flags ``(H, W)`` of the sensors of a window: bit i is :attr:`sensors` i; 0 without a vector."""
        observed = np.isfinite(vectors[0])
        if None in self.flags:
            return observed.astype(np.uint16)
        part = self._window(window)
        bits = np.full((window.height, window.width), np.nan, np.float32)
        for flags, grid in zip(self.flags, self.grids, strict=True):
            if flags and _overlap(grid, part):
                path, band = flags
                new = read_window(path, (band,), part, Decoding(alpha=False), nearest=True, cache=True)[0]
                bits = np.where(np.isnan(bits), new, bits)
        known = np.nan_to_num(bits).astype(np.int64) & ((1 << len(self.sensors)) - 1)
        # A pixel with a vector was observed, also if its flags are lost.
        return np.where(observed, np.maximum(known, 1), 0).astype(np.uint16)

    def blocks(self) -> Iterator[Window]:
        """Return the windows of the map, row by row; each is a multiple of the blocks of a GeoTIFF."""
        columns = max(1, VALUES // (len(self) * BLOCK * BLOCK)) * BLOCK
        for row in range(0, self.grid.height, BLOCK):
            for column in range(0, self.grid.width, columns):
                size = min(BLOCK, self.grid.height - row), min(columns, self.grid.width - column)
                yield Window(row, column, *size)

    def pixels(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return rows and columns of the pixels that contain coordinates in the CRS of the map; they may be outside."""
        columns, rows = ~self.grid.transform @ (x, y)
        return np.floor(rows).astype(np.int64), np.floor(columns).astype(np.int64)

    def vectors(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Vectors:
        """Return the vectors ``(N, D)`` of pixels; NaN outside of the map. Only blocks with pixels are read."""
        found = np.full((len(rows), len(self)), np.nan, np.float32)
        for window in self.blocks():
            inside = (rows >= window.row) & (rows < window.row + window.height)
            inside &= (columns >= window.column) & (columns < window.column + window.width)
            if inside.any():
                top, left = rows[inside].min(), columns[inside].min()
                size = int(rows[inside].max() - top + 1), int(columns[inside].max() - left + 1)
                block = self.read(Window(int(top), int(left), *size))
                found[inside] = block[:, rows[inside] - top, columns[inside] - left].T
        return found

    def _window(self, window: Window) -> Grid:
        corner = self.grid.transform @ Affine.translation(window.column, window.row)
        return Grid(self.grid.crs, corner, window.height, window.width)

    def _joined(self) -> Grid:
        first, path = self.grids[0], self.paths[0]
        for other, theirs, header in zip(self.paths[1:], self.grids[1:], self.headers[1:], strict=True):
            if len(header.bands) != len(self.headers[0].bands):
                raise ValueError(
                    f'{other} has {len(header.bands)} dimensions, expected {len(self.headers[0].bands)} as in {path}'
                )
            if difference := describe_difference(first, theirs):
                raise ValueError(f'{other} has {difference} as {path}: several files are a mosaic on one pixel grid')
        bounds = np.array([grid.bounds for grid in self.grids])
        extent = (*bounds[:, :2].min(0).tolist(), *bounds[:, 2:].max(0).tolist())
        return Grid.over(first.crs, extent, first.step, first.corner)

    def _sensors(self) -> list[str]:
        """Return the names of the sensors, from the tags of the first file."""
        first = self.flags[0]
        if first is None or None in self.flags:
            return ['embedding']
        with rasterio.open(first[0]) as file:
            tags = file.tags() | file.tags(first[1])
        found = {int(key[len(BIT_TAG) :]): name for key, name in tags.items() if key.startswith(BIT_TAG)}
        return [found.get(bit, f'sensor {bit}') for bit in range(max(found, default=6) + 1)]


def describe_difference(grid: Grid, other: Grid) -> str:
    """Return how the pixels of *other* differ from those of a grid that they should be on; empty if they do not."""
    if other.crs != grid.crs:
        return f'the CRS {other.crs.to_string()}, expected {grid.crs.to_string()}'
    if abs(other.step / grid.step - 1) > 1e-6:
        return f'pixels of {other.step:g}, expected {grid.step:g}'
    shifts = [(theirs - ours) / grid.step for ours, theirs in zip(grid.corner, other.corner, strict=True)]
    shift = max(abs(value - round(value)) for value in shifts)
    return f'a pixel grid that is shifted by {shift:.2g} pixels, expected the same grid' if shift > 0.01 else ''


def check_outputs(outputs: Sequence[Path], inputs: Iterable[str | Path]) -> None:
    """Check that the first of several outputs has the name of a GeoTIFF, and that all of them can be written.

    None of them may be a folder, replace an input, or lie in a Zarr store that is an input.

    Raises:
        ValueError: If an output does not meet these conditions.
    """
    if outputs[0].suffix.lower() not in ('.tif', '.tiff'):
        raise ValueError(f"output is '{outputs[0]}', expected the name of a GeoTIFF such as 'map.tif'")
    check_output_files('output', *outputs)
    read = {Path(path).resolve(): str(path) for path in inputs}
    for output in outputs:
        if output.resolve() in read:
            raise ValueError(f"output '{output}' would replace the input {read[output.resolve()]}, expected another")
        if inside := read.keys() & set(output.resolve().parents):
            raise ValueError(f"output '{output}' lies in the input {read[inside.pop()]}, expected another folder")


def write_values(
    path: Path, embeddings: EmbeddingMap, name: str, parts: Iterable[tuple[Window, Vectors]], tags: dict[str, str]
) -> int:
    """Write one band of floats to a Cloud-Optimised GeoTIFF atomically, and return its number of valid pixels.

    Args:
        path: Output file.
        embeddings: Map whose pixels the values belong to.
        name: Description of the band.
        parts: Windows and their values ``(H, W)``, NaN for nodata.
        tags: Tags of the file.
    """
    grid, count = embeddings.grid, 0
    profile = {'driver': 'GTiff', 'height': grid.height, 'width': grid.width, 'count': 1, 'dtype': 'float32'}
    place = {'crs': rasterio.crs.CRS.from_user_input(grid.crs), 'transform': grid.transform, 'nodata': np.nan}
    layout = {'tiled': True, 'blockxsize': BLOCK, 'blockysize': BLOCK, 'bigtiff': 'IF_SAFER', 'compress': 'lzw'}
    with scratch_folder(path) as folder, naming_errors(path, folder), rasterio.Env(GDAL_CACHEMAX=CACHE):
        scratch, made = folder / 'scratch.tif', folder / path.name
        with rasterio.open(scratch, 'w', **profile, **place, **layout) as file:
            file.update_tags(**tags)
            file.set_band_description(1, name)
            for window, values in parts:
                where = RasterWindow(window.column, window.row, window.width, window.height)
                file.write(values.astype(np.float32), 1, window=where)
                count += int(np.isfinite(values).sum())
        copy(scratch, made, driver='COG', compress='DEFLATE', predictor='YES', blocksize=BLOCK)
        publish(made, path)
    return count


def _source(path: str, array: str = 'embeddings') -> str:
    """Return the name by which GDAL opens a file, or an array of a Zarr store."""
    return f'ZARR:"{path}":/{array}' if _is_store(path) else path


def _flags(path: str, header: EmbeddingHeader) -> tuple[str, int] | None:
    """Return the file or array and the band with the sensors that observed each pixel; None if there is none."""
    if _is_store(path):
        return (_source(path, SENSORS), 1) if (Path(path) / SENSORS / 'zarr.json').is_file() else None
    return None if header.sensors is None else (path, header.sensors)


def _weights(path: str) -> str | None:
    if _is_store(path):
        attributes = json.loads((Path(path) / 'zarr.json').read_text(encoding='utf-8')).get('attributes', {})
        found: str | None = attributes.get(WEIGHTS_TAG.lower())
        return found
    with rasterio.open(path) as file:
        return file.tags().get(WEIGHTS_TAG)


def _is_store(path: str) -> bool:
    return Path(path).suffix == '.zarr'


def _grid(embedding: EmbeddingHeader) -> Grid:
    header = embedding.header
    if header.crs is None:
        raise ValueError(f'{header.path} states no CRS, expected a georeferenced embedding')
    a, b, x, d, e, y = header.transform[:6]
    if e > 0:
        e, y = -e, y + e * header.height
    try:
        return Grid(CRS.from_user_input(header.crs), Affine(a, b, x, d, e, y), header.height, header.width)
    except ValueError as error:
        raise ValueError(f'{header.path} has an unexpected grid: {error}') from error


def _overlap(grid: Grid, part: Grid) -> bool:
    (xmin, ymin, xmax, ymax), (left, bottom, right, top) = grid.bounds, part.bounds
    edge = 1e-6 * part.step
    return xmin < right - edge and left < xmax - edge and ymin < top - edge and bottom < ymax - edge
