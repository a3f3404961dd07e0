# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Adapters of TorchGeo geodatasets: each is one modality, or the labels, of a join."""

import contextlib
import copy
import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import shapely
import torch
from einops import rearrange
from geopandas import GeoDataFrame
from numpy.typing import NDArray
from pyproj import CRS
from rasterio import Affine
from rasterio.errors import RasterioError
from rasterio.features import geometry_mask
from torch import Tensor
from torchgeo.datasets import GeoDataset, RasterDataset
from torchgeo.datasets.utils import Sample

from ...grid import Grid, metres
from ...modality import Kind, Modality, half_up
from ...utils.tensors.observed import MAX_RAW
from ..base import tensors
from ..common.classes import NO_LABEL, UNKNOWN, ClassMap
from ..io.decoding import as_numbers
from ..io.fingerprint import raster_state
from ..io.headers import refuse_complex
from ..io.opening import open_raster, sidecars
from ..rasters.distortion import distorted, projected, refuse_distorted
from ..rasters.embedding_headers import is_embedding
from ..rasters.frames import (
    ALWAYS,
    FINER,
    days_of,
    decoding_of,
    merge_of,
    middle_days_of,
    nearest_period,
    opened,
    overlapping,
    read_daily_images,
    scene_files,
)
from ..rasters.georeference import Span, as_span, bendable
from ..rasters.timeseries import RasterTimeSeries, newest, read_modality
from .polygons import Polygons

#: Methods of TorchGeo's RasterDataset that only read pixels. A subclass that overrides one is read by its own code.
_READING = ('__getitem__', '_merge_or_stack', '_load_warp_file', '_cached_load_warp_file')


class GeoSource:
    """Dataset, not changed, in the CRS of a join and restricted to a period *date_range*.

    Files of a plain ``RasterDataset`` are read by this package, which keeps track of nodata. A subclass that overrides
    the reading methods is read through its ``__getitem__``.
    """

    def __init__(self, name: str, dataset: GeoDataset, crs: CRS, date_range: Sequence[str] | None = None) -> None:
        self.name = name
        self.dataset: Any = _moved(dataset, crs)
        self.span = as_span(date_range)
        if self.span is not None:
            index = self.dataset.index
            kept = index[index.index.overlaps(pd.Interval(*self.span, closed='both'))]
            if kept.empty:
                raise ValueError(
                    f'date_ranges of {name!r} is {tuple(date_range or ())}, expected a period with some of its data, '
                    f'which are from {index.index.left.min()} to {index.index.right.max()}'
                )
            self.dataset.index = kept
        self.plain = _is_plain(self.dataset)
        self._states: dict[str, Any] = {}

    @property
    def index(self) -> GeoDataFrame:
        """Spatiotemporal index of the files."""
        return self.dataset.index

    def rows(self, grid: Grid, span: Span, prefer: bool) -> GeoDataFrame:
        """Return the index rows that intersect a window in a period; with *prefer*, those of any period if none do."""
        rows = overlapping(self.dataset, grid, span)
        return overlapping(self.dataset, grid, None) if rows.empty and prefer else rows

    def query(self, grid: Grid, rows: GeoDataFrame) -> Sample:
        """Return the dataset's own sample of a window in the period of *rows*; an empty dict if there is none."""
        self._forget_old(rows)
        xmin, ymin, xmax, ymax = grid.bounds
        period = slice(rows.index.left.min(), rows.index.right.max())
        try:
            with sidecars():
                return self.dataset[slice(xmin, xmax, grid.step), slice(ymin, ymax, grid.step), period]
        except IndexError:
            return {}

    def files(self, ground: Any = None) -> list[str]:
        """Return all files that intersect *ground* in the CRS of the join; empty if the index has no paths."""
        index = self.index if ground is None else self.index[self.index.intersects(ground)]
        described = [str(self.dataset.collection)] if hasattr(self.dataset, 'collection') else []
        return described + _files(self.dataset, index)

    def _forget_old(self, rows: GeoDataFrame) -> None:
        """Clear TorchGeo's cache of open files, which is keyed by path alone, if a file of *rows* has changed."""
        states = {path: raster_state(path) for path in _files(self.dataset, rows)}
        if any(self._states.get(path, state) != state for path, state in states.items()):
            RasterDataset._cached_load_warp_file.cache_clear()
        self._states |= states

    def mask_nodata(self, pixels: Tensor, rows: GeoDataFrame, grid: Grid) -> NDArray[np.float32]:
        """Return pixels as float32, with NaN for nodata and outside the footprints of *rows*."""
        refuse_complex([pixels.numpy().dtype], f'{self.name!r}')
        values = pixels.numpy().astype(np.float32)
        if values.shape[-2:] != (grid.height, grid.width):
            raise ValueError(
                f'{self.name!r} has shape {tuple(values.shape)} in a window of {grid.height} x {grid.width} pixels of '
                f'{grid.step} m, expected that size'
            )
        for number in as_numbers(getattr(self.dataset, 'nodata', None)):
            values[values == number] = np.nan
        values[~(np.abs(values) <= MAX_RAW)] = np.nan
        values[..., geometry_mask(rows.geometry, (grid.height, grid.width), grid.transform)] = np.nan
        return values


class ImageSource(GeoSource):
    """Image dataset of this package with one modality, or of TorchGeo, as one modality of a join.

    *gsd* is in metres; None for :func:`native_gsd` with *anchor*. *facts* are ``kind``, ``unit`` and ``wavelengths`` of
    a dataset that does not state them itself.
    """

    def __init__(
        self,
        name: str,
        dataset: GeoDataset,
        crs: CRS,
        date_range: Sequence[str] | None = None,
        gsd: float | None = None,
        anchor: float | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(name, dataset, crs, date_range)
        gsd = native_gsd(dataset, anchor) if gsd is None else gsd
        own = getattr(dataset, 'modalities', None)
        if own is not None and len(own) != 1:
            raise ValueError(f'{name!r} has the modalities {list(own)}, expected a dataset of one')
        self.own: Modality | None = None if own is None else next(iter(own.values()))
        if self.own is not None:
            self.modality = replace(self.own, name=name, gsd=gsd)
        else:
            kind: Kind | None = 'embedding' if is_embedding(dataset) else None
            self.modality = Modality(name, _bands(dataset), gsd, _is_series(dataset), kind)
        if facts:
            stated = replace(self.modality, **{'kind': None, 'unit': 'unknown', 'wavelengths': None} | dict(facts))
            if not self.modality.agrees(stated):
                raise ValueError(f'facts of {name!r} are {dict(facts)}, but its dataset states {self.modality}')
            self.modality = self.modality.joined(stated)

    def read(self, grid: Grid, span: Span) -> Sample:
        """Return image, dates and valid of a window; an empty dict if no file intersects it.

        Without a single image in the period *span*, one of another period is read.
        """
        rows = self.rows(grid, span, prefer=not self.modality.temporal)
        if rows.empty:
            return {}
        if self.modality.kind == 'embedding' and not self.modality.temporal:
            rows = nearest_period(rows, span)
        if self.plain:
            return read_modality(self.dataset, rows, grid, self.modality)
        if self.own is not None:
            sample = self.query(grid, rows)
            pairs = zip(self.modality.keys, self.own.keys, strict=True)
            return {key: sample[own] for key, own in pairs} if self.own.image_key in sample else {}
        return self._read_series(grid, rows) if self.modality.temporal else self._read_image(grid, rows)

    def _read_image(self, grid: Grid, rows: GeoDataFrame) -> Sample:
        """Read one image through TorchGeo; its date is 0 unless all files have the same date.

        Of an image with more than one axis of bands, such as that of EmbeddedSeamlessData, the axes are joined.
        """
        sample = self.query(grid, rows)
        if not sample:
            return {}
        image = self.mask_nodata(sample['image'], rows, grid)
        image = image.reshape(-1, *image.shape[-2:])
        days = middle_days_of(rows) if self.modality.kind == 'embedding' else np.unique(days_of(rows))
        days = days if len(days) == 1 else np.zeros(1, np.int64)
        return tensors(self.modality, image, days, np.isfinite(image).any(keepdims=True).reshape(-1))

    def _read_series(self, grid: Grid, rows: GeoDataFrame) -> Sample:
        frames, days = [], []
        for day in np.unique(days_of(rows)):
            of_day = rows[days_of(rows) == day]
            sample = self.query(grid, of_day)
            if sample:
                image = self.mask_nodata(sample['image'], of_day, grid)
                frames.append(merge_of(self.modality.unit == 'db')(image) if image.ndim == 4 else image)
                days.append(day)
        if not frames:
            return {}
        image = np.stack(frames)
        return tensors(self.modality, image, np.array(days, np.int64), np.isfinite(image).any((1, 2, 3)))


class LabelSource(GeoSource):
    """Raster or vector dataset of class labels.

    *classes* maps the codes of a raster to classes; None if they are class indices. Raise ValueError if a raster has
    several bands or complex pixels.
    """

    def __init__(
        self, dataset: GeoDataset, crs: CRS, date_range: Sequence[str] | None = None, classes: ClassMap | None = None
    ) -> None:
        super().__init__('mask', dataset, crs, date_range)
        self.classes = ClassMap() if classes is None or isinstance(dataset, Polygons) else classes
        self.native = metres(dataset.crs, float(dataset.res[0])) if isinstance(dataset, RasterDataset) else 0.0
        if self.plain:
            self.dataset.is_image = False
            self._check_header(self.dataset.index.filepath.iloc[0])

    @property
    def sparse(self) -> bool:
        """Whether labels are points, which label one pixel each."""
        return bool(getattr(self.dataset, 'sparse', False))

    def widen(self, margin: float) -> None:
        """Buffer points by a margin in metres, so that their bounding box has an area."""
        if self.sparse:
            boxes = [
                shapely.box(x - margin, y - margin, u + margin, v + margin) for x, y, u, v in self.index.bounds.values
            ]
            self.dataset.index = self.index.set_geometry(boxes, crs=self.index.crs)

    def around(self, distance: float) -> Any:
        """Return the union of squares of 2 *distance* metres around all points; tiles in it contain a point."""
        frames = [self.dataset._frame(path) for path in self.index.filepath]
        bounds = np.concatenate([frame.bounds.to_numpy() for frame in frames])
        lower, upper = np.split(np.unique(bounds, axis=0), 2, axis=1)
        left, bottom = (lower - distance).T
        right, top = (upper + distance).T
        edge = 1e-4 * distance  # a point between two pixels is in the right or lower one
        return shapely.union_all(shapely.box(left + edge, bottom, right, top - edge))

    def read(self, grid: Grid, span: Span, ignore_index: int, strict: bool = True) -> Tensor:
        """Return the class indices (H, W) of a window, *ignore_index* where there is no label.

        Where no labels are from the period *span*, those of another period are read. A code that is not a class is an
        error if *strict*; otherwise its pixels have no label.
        """
        codes = self.codes(grid, span)
        numbers = self.classes.pixels(codes)
        strange = numbers == UNKNOWN
        if strict and strange.any():
            found = Counter(codes[strange].tolist())
            raise self.classes.unknown(found, self.paths(grid, span))
        return torch.from_numpy(np.where(strange | (numbers == NO_LABEL), ignore_index, numbers))

    def codes(self, grid: Grid, span: Span) -> NDArray[np.float32]:
        """Return the codes (H, W) of a window, NaN where there are none.

        Labels finer than the grid are aggregated by majority vote. A tie goes to the first class. A pixel
        of which less than half is labelled is NaN.
        """
        finer = self._finer(grid.step)
        if finer == 1:
            return self._codes(grid, span)
        fine = Grid(grid.crs, grid.transform @ Affine.scale(1 / finer), grid.height * finer, grid.width * finer)
        return block_majority(self._codes(fine, span), finer, self.classes)

    def _finer(self, step: float) -> int:
        """Return how many label pixels, at most 64, are read along the side of one output pixel."""
        if not isinstance(self.dataset, RasterDataset):
            return 1
        ratio = step / getattr(self.dataset, 'finest', self.native)
        if ratio < 1 / FINER:
            return 1
        whole = abs(ratio - round(ratio)) < 1e-3
        return min(round(ratio) if whole else 2 * math.ceil(ratio), 64)

    def _codes(self, grid: Grid, span: Span) -> NDArray[np.float32]:
        """Return the codes (H, W) at the pixel centres, without aggregation."""
        rows = self.rows(grid, span, prefer=True)
        mask = np.full((grid.height, grid.width), np.nan, np.float32)
        if not rows.empty and self.plain:
            frames, _, _ = read_daily_images(self.dataset, rows, grid)
            mask = newest(frames)[0]
        elif not rows.empty and (sample := self.query(grid, rows)):
            if 'mask' not in sample:
                raise ValueError(f'mask returns samples of {sorted(sample)}, expected masks (is_image=False)')
            mask = self.mask_nodata(sample['mask'], rows, grid)
            if mask.ndim == 3 and len(mask) == 1:
                mask = mask[0]
            if mask.ndim != 2:
                raise ValueError(f'mask has shape {tuple(mask.shape)} in a window, expected one layer of classes')
        return mask

    def instances(self, grid: Grid, span: Span) -> Tensor:
        """Return the field of each pixel (H, W), 0 for none.

        Raises:
            ValueError: If labels are a raster.
        """
        if not isinstance(self.dataset, Polygons):
            raise ValueError(
                f'the mask is a {type(self.dataset).__name__}, expected a vector file with polygons for instances, the '
                'field of each pixel'
            )
        if self.rows(grid, span, prefer=True).empty:
            return torch.zeros(grid.height, grid.width, dtype=torch.int64)
        return torch.from_numpy(self.dataset.instances(grid))

    def ambiguous(self, grid: Grid, span: Span) -> NDArray[np.bool_]:
        """Return a mask (H, W) of pixels with polygons or points of different classes; False for a raster."""
        if not isinstance(self.dataset, Polygons) or self.rows(grid, span, prefer=True).empty:
            return np.zeros((grid.height, grid.width), bool)
        return self.dataset.ambiguous(grid)

    def paths(self, grid: Grid, span: Span) -> list[str]:
        """Return the files that intersect a window."""
        rows = self.rows(grid, span, prefer=True)
        return [str(path) for path in rows.get('filepath', []) if path]

    def nodata_classes(self, ground: Any) -> dict[str, tuple[float, int]]:
        """Return :meth:`nodata_of` of the files that intersect a geometry in the CRS of the join."""
        if not self.plain:
            return {}
        return self.nodata_of(self.index.filepath[self.index.intersects(ground)])

    def nodata_of(self, paths: Iterable[str]) -> dict[str, tuple[float, int]]:
        """Return nodata value and class index of files whose nodata value is also a class code, by path."""
        found = {}
        for path in paths:
            for nodata in self._check_header(path):
                number = self.classes.number(nodata)
                if number >= 0 and not self.classes.identity:
                    found[str(path)] = (nodata, number)
        return found

    def _check_header(self, path: str) -> list[float]:
        if hasattr(self.dataset, 'label_nodata'):
            own: list[float] = self.dataset.label_nodata(path)
            return own
        with opened(path) as source:
            count = len(getattr(self.dataset, 'bands', None) or self.dataset.band_indexes or source.indexes)
            if count != 1 and not self.dataset.separate_files:
                names = [text or f'B{number}' for number, text in enumerate(source.descriptions, 1)]
                raise ValueError(
                    f'{path} has the {source.count} bands {names}, expected one band of labels: bands of the mask '
                    'selects one, such as bands: [B1]'
                )
            if any(dtype.startswith('complex') for dtype in source.dtypes):
                raise ValueError(f'{path} has pixels of {source.dtypes[0]}, expected real numbers as labels')
            decoding = decoding_of(self.dataset, path, None)
            values = {value for stated in source.nodatavals for value in decoding.numbers(stated)}
            return sorted(value for value in values if not math.isnan(value))


class ValueSource(LabelSource):
    """Raster dataset of a continuous value, such as canopy height, NaN where it is unknown.

    Scale and offset stated in files are applied. Finer pixels are averaged, and others interpolated bilinearly. Raise
    ValueError if labels are polygons or points.
    """

    def __init__(self, dataset: GeoDataset, crs: CRS, date_range: Sequence[str] | None = None) -> None:
        if isinstance(dataset, Polygons):
            raise ValueError('continuous of the mask is true, expected a raster, but the mask is a vector file')
        super().__init__(dataset, crs, date_range)
        if self.plain:
            self.dataset.is_image = self.dataset.scaled = True

    def query(self, grid: Grid, rows: GeoDataFrame) -> Sample:
        """Return the dataset's own sample of a window, whose image is the mask."""
        sample = super().query(grid, rows)
        return {'mask': sample['image']} if 'image' in sample else sample

    def read(self, grid: Grid, span: Span, ignore_index: int, strict: bool = True) -> Tensor:
        """Return the values (H, W) of a window, NaN where they are unknown."""
        return torch.from_numpy(self.codes(grid, span))

    def codes(self, grid: Grid, span: Span) -> NDArray[np.float32]:
        """Return the values (H, W) of a window."""
        return self._codes(grid, span)

    def nodata_of(self, paths: Iterable[str]) -> dict[str, tuple[float, int]]:
        """Return no files, because values are not classes."""
        return {}


def block_majority(codes: NDArray[np.float32], count: int, classes: ClassMap) -> NDArray[np.float32]:
    """Aggregate blocks of label codes (H * count, W * count), NaN for no label, by majority vote to (H, W).

    A tie goes to the first class. A code that is not a class wins over all others, so that it is reported. The result
    is NaN or the ignored code where less than half of a block is labelled.
    """
    blocks = rearrange(codes, '(h i) (w j) -> h w (i j)', i=count, j=count)
    numbers = classes.pixels(blocks)
    found = np.fmax.reduce(np.where(numbers == NO_LABEL, blocks, np.nan), axis=-1)
    labelled = 2 * (numbers != NO_LABEL).sum(-1) >= count**2
    most = np.zeros(labelled.shape, np.int64)
    for number in sorted(np.unique(numbers), key=lambda number: number == UNKNOWN):
        if number == NO_LABEL:
            continue
        here = numbers == number
        votes = here.sum(-1)
        better = (votes > 0) if number == UNKNOWN else labelled & (votes > most)
        found = np.where(better, np.fmax.reduce(np.where(here, blocks, np.nan), axis=-1), found)
        most = np.maximum(most, votes)
    return found.astype(np.float32)


def native_gsd(dataset: GeoDataset, anchor: float | None = None) -> float:
    """Return the GSD of a dataset in metres.

    A GSD that is not a whole number of millimetres, as after a reprojection or in degrees, is rounded
    to the nearest multiple or fraction of *anchor*, or to two digits without one.
    """
    gsd = metres(dataset.crs, float(dataset.res[0]))
    if not dataset.crs.is_geographic and abs(gsd * 1000 - round(gsd * 1000)) < 1e-6:
        return round(gsd, 3)
    if anchor is None:
        return float(f'{gsd:.2g}')
    return anchor * max(1, half_up(gsd / anchor)) if gsd > anchor else anchor / max(1, half_up(anchor / gsd))


def period(indexes: Sequence[GeoDataFrame]) -> tuple[pd.Timestamp, pd.Timestamp]:
    """Return the first and the last date of several indexes; all time if none has a date."""
    dated = [index.index[(index.index.left != ALWAYS[0])] for index in indexes]
    dated = [intervals for intervals in dated if len(intervals)]
    if not dated:
        return ALWAYS
    return min(intervals.left.min() for intervals in dated), max(intervals.right.max() for intervals in dated)


def _moved(dataset: GeoDataset, crs: CRS) -> GeoDataset:
    if hasattr(dataset, 'datasets'):  # the setter of a union or an intersection changes its members
        moved = copy.deepcopy(dataset)
        with contextlib.redirect_stdout(io.StringIO()):
            moved.crs = crs
        return moved
    moved, index = copy.copy(dataset), dataset.index
    names = [str(path) or type(dataset).__name__ for path in index.get('filepath', [''] * len(index))]
    if not isinstance(dataset, RasterTimeSeries):
        _check_brought(index, names)
    if dataset.crs != crs:
        shapes = projected(np.asarray(bendable(index.geometry.array)), dataset.crs, crs, names)
        moved.index = index.set_geometry(shapes, crs=crs)
    return moved


def _files(dataset: Any, index: GeoDataFrame) -> list[str]:
    columns = [column for column in index.columns if str(column).startswith('filepath')]
    paths = {str(path) for column in columns for path in index[column] if isinstance(path, str) and path}
    return sorted({file for path in paths for file in scene_files(dataset, path)})


def _check_brought(index: GeoDataFrame, names: Sequence[str]) -> None:
    """Raise ValueError if a dataset of TorchGeo has reprojected files to a CRS that distorts them."""
    for number in distorted(np.asarray(index.geometry.array), index.crs):
        with contextlib.suppress(RasterioError), open_raster(names[number]) as source:
            if source.crs is not None and source.crs != index.crs:
                refuse_distorted(index.geometry.iloc[number], index.crs, source.crs, names[number])


def _is_plain(dataset: GeoDataset) -> bool:
    """Return whether a dataset returns pixels of its files unchanged, by methods that no subclass overrides."""
    if not isinstance(dataset, RasterDataset) or dataset.transforms is not None:
        return False
    known = (RasterDataset, RasterTimeSeries)
    return all(getattr(type(dataset), name) in [getattr(k, name) for k in known] for name in _READING)


def _is_series(dataset: GeoDataset) -> bool:
    parts = getattr(dataset, 'datasets', ())
    return any(map(_is_series, parts)) if parts else bool(getattr(dataset, 'time_series', False))


def _bands(dataset: GeoDataset) -> tuple[str, ...]:
    """Return the band names of the dataset, else of its first file, else ``B1``, ``B2``, ..."""
    names = getattr(dataset, 'bands', None)
    if names:
        return tuple(names)
    if isinstance(dataset, RasterDataset) and _is_plain(dataset):
        with opened(dataset.index.filepath.iloc[0]) as source:
            names = [text or f'B{number}' for number, text in enumerate(source.descriptions, 1)]
        return tuple(names if len(set(names)) == len(names) else [f'B{i + 1}' for i in range(len(names))])
    x, y, t = dataset.bounds
    point = dataset.index.geometry.iloc[0].representative_point()
    sample = dataset[
        slice(point.x, point.x + x.step, x.step), slice(point.y, point.y + y.step, y.step), slice(t.start, t.stop)
    ]
    if 'image' not in sample:
        raise ValueError(f'{type(dataset).__name__} returns samples of {sorted(sample)}, expected an image')
    shape = sample['image'].shape
    count = shape[-3] if _is_series(dataset) else math.prod(shape[:-2])
    return tuple(f'B{i + 1}' for i in range(count))


def common_step(lengths: Sequence[float]) -> float:
    """Return the least common multiple of lengths in metres, at most 100 times the maximum length."""
    micrometres = [round(length * 1e6) for length in lengths]
    step = math.lcm(*micrometres) / 1e6
    if step > 100 * max(lengths):
        raise ValueError(
            f'pixels and patches of {sorted(set(lengths))} m have no common multiple below {step} m, expected '
            'lengths that are multiples of each other; gsd sets the pixel size of a modality'
        )
    return step
