# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Sources: any TorchGeo geodataset as one modality, or as labels, of a join."""

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

from ...grid import Grid
from ...modality import Modality, half_up
from ..classes import NO_LABEL, UNKNOWN, ClassMap
from ..io.decoding import GREATEST, as_numbers
from ..io.fingerprint import raster_state
from ..io.headers import refuse_complex
from ..io.opening import open_raster, sidecars
from ..rasters.distortion import distorted, projected, refuse_distorted
from ..rasters.frames import ALWAYS, FINER, days_of, decoding_of, files_of, merge_of, opened, overlapping, read_frames
from ..rasters.georeference import Span, as_span, bendable, metres
from ..rasters.timeseries import RasterTimeSeries, newest, read_modality
from .polygons import Polygons

#: Methods that, as TorchGeo wrote them, do no more to pixels than we do when we read the files.
_READING = ('__getitem__', '_merge_or_stack', '_load_warp_file', '_cached_load_warp_file')


class Source:
    """A dataset in the CRS of a join, in a period of its own.

    Where TorchGeo's own code reads the files, ours does instead, which tells what was not
    measured; where a subclass changed it, that subclass is asked.

    Args:
        name: What to call it in errors.
        dataset: A dataset; it is not changed.
        crs: CRS of the join.
        date_range: First and last day to take; None for all.
    """

    def __init__(self, name: str, dataset: GeoDataset, crs: CRS, date_range: Sequence[str] | None = None) -> None:
        """Take a copy of the dataset into the CRS, and the files of its period."""
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
        """Where and when there is something."""
        return self.dataset.index

    def rows(self, grid: Grid, span: Span, prefer: bool) -> GeoDataFrame:
        """What reaches a window in a period; with *prefer*, whatever else there is rather than nothing."""
        rows = overlapping(self.dataset, grid, span)
        return overlapping(self.dataset, grid, None) if rows.empty and prefer else rows

    def ask(self, grid: Grid, rows: GeoDataFrame) -> Sample:
        """What the dataset itself says about a window in the period of rows, or nothing."""
        self._forget_old(rows)
        xmin, ymin, xmax, ymax = grid.bounds
        period = slice(rows.index.left.min(), rows.index.right.max())
        try:
            with sidecars():
                return self.dataset[slice(xmin, xmax, grid.step), slice(ymin, ymax, grid.step), period]
        except IndexError:
            return {}

    def files(self, ground: Any = None) -> list[str]:
        """Return the files that the dataset is read from, those of all bands; nothing if its index has none.

        Args:
            ground: A geometry in the CRS of the join that they are to reach; None for all files.
        """
        index = self.index if ground is None else self.index[self.index.intersects(ground)]
        described = [str(self.dataset.collection)] if hasattr(self.dataset, 'collection') else []
        return described + _files(self.dataset, index)

    def _forget_old(self, rows: GeoDataFrame) -> None:
        """Make TorchGeo, which keeps files open by their names alone, open them anew if one of *rows* has changed."""
        states = {path: raster_state(path) for path in _files(self.dataset, rows)}
        if any(self._states.get(path, state) != state for path, state in states.items()):
            RasterDataset._cached_load_warp_file.cache_clear()
        self._states |= states

    def fit(self, found: Tensor, rows: GeoDataFrame, grid: Grid) -> NDArray[np.float32]:
        """What a dataset said, as float32 with NaN beyond its files and where its nodata is.

        Raises:
            ValueError: If that is of another size than was asked for.
        """
        refuse_complex([found.numpy().dtype], f'{self.name!r}')
        values = found.numpy().astype(np.float32)
        if values.shape[-2:] != (grid.height, grid.width):
            raise ValueError(
                f'{self.name!r} gives {tuple(values.shape)} for a window of {grid.height} x {grid.width} pixels of '
                f'{grid.step} m, expected that size'
            )
        for number in as_numbers(getattr(self.dataset, 'nodata', None)):
            values[values == number] = np.nan
        values[~(np.abs(values) <= GREATEST)] = np.nan
        values[..., geometry_mask(rows.geometry, (grid.height, grid.width), grid.transform)] = np.nan
        return values


class ImageSource(Source):
    """A dataset as one modality.

    Args:
        name: Name of the modality.
        dataset: A dataset of images: one of ours with one modality, or one of TorchGeo's.
        crs: CRS of the join.
        date_range: First and last day to take; None for all.
        gsd: Metres a pixel; by default what the dataset has, where that is a round number.
        anchor: A gsd of which others are multiples or parts, where they are not round.
        facts: ``kind``, ``unit`` and ``wavelengths`` of a dataset that does not state them itself.

    Raises:
        ValueError: If the dataset states other facts.
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
        """See what the images are."""
        super().__init__(name, dataset, crs, date_range)
        gsd = native_gsd(dataset, anchor) if gsd is None else gsd
        own = getattr(dataset, 'modalities', None)
        if own is not None and len(own) != 1:
            raise ValueError(f'{name!r} has the modalities {list(own)}, expected a dataset of one')
        self.own: Modality | None = None if own is None else next(iter(own.values()))
        if self.own is not None:
            self.modality = replace(self.own, name=name, gsd=gsd)
        else:
            self.modality = Modality(name, _bands(dataset), gsd, _is_series(dataset))
        if facts:
            stated = replace(self.modality, **{'kind': None, 'unit': 'unknown', 'wavelengths': None} | dict(facts))
            if not self.modality.agrees(stated):
                raise ValueError(f'facts of {name!r} are {dict(facts)}, but its dataset states {self.modality}')
            self.modality = self.modality.joined(stated)

    def read(self, grid: Grid, span: Span) -> Sample:
        """Image, dates and valid of a window, or nothing.

        Args:
            grid: The window in pixels of this modality.
            span: First and last instant. A single image from another time will do where
                there is none of this.
        """
        rows = self.rows(grid, span, prefer=not self.modality.temporal)
        if rows.empty:
            return {}
        if self.plain:
            return read_modality(self.dataset, rows, grid, self.modality)
        if self.own is not None:
            sample = self.ask(grid, rows)
            pairs = zip(self.modality.keys, self.own.keys, strict=True)
            return {key: sample[own] for key, own in pairs} if self.own.image_key in sample else {}
        return self._ask_days(grid, rows) if self.modality.temporal else self._ask_image(grid, rows)

    def _ask_image(self, grid: Grid, rows: GeoDataFrame) -> Sample:
        """One image, by TorchGeo's code; it has a date if all its files have the same."""
        sample = self.ask(grid, rows)
        if not sample:
            return {}
        image = self.fit(sample['image'], rows, grid)
        days = np.unique(days_of(rows))
        return self._keys(
            image, days if len(days) == 1 else np.zeros(1, np.int64), np.isfinite(image).any(keepdims=True)
        )

    def _ask_days(self, grid: Grid, rows: GeoDataFrame) -> Sample:
        """A series, by TorchGeo's code, asked once a day."""
        frames, days = [], []
        for day in np.unique(days_of(rows)):
            of_day = rows[days_of(rows) == day]
            sample = self.ask(grid, of_day)
            if sample:
                image = self.fit(sample['image'], of_day, grid)
                frames.append(merge_of(self.modality.unit == 'db')(image) if image.ndim == 4 else image)
                days.append(day)
        if not frames:
            return {}
        image = np.stack(frames)
        return self._keys(image, np.array(days, np.int64), np.isfinite(image).reshape(len(image), -1).any(1))

    def _keys(self, image: NDArray[Any], days: NDArray[np.int64], valid: NDArray[np.bool_]) -> Sample:
        """The three tensors."""
        arrays = (image, days, valid.reshape(-1))
        return dict(zip(self.modality.keys, map(torch.from_numpy, arrays), strict=True))


class LabelSource(Source):
    """A dataset of classes, raster or vector.

    Args:
        dataset: The labels; it is not changed.
        crs: CRS of the join.
        date_range: First and last day to take; None for all.
        classes: Which class each code of a raster is; by default any whole number is its own class.

    Raises:
        ValueError: If a raster has several bands, or complex pixels.
    """

    def __init__(
        self, dataset: GeoDataset, crs: CRS, date_range: Sequence[str] | None = None, classes: ClassMap | None = None
    ) -> None:
        """Have rasters read as classes, even where they are not declared as such."""
        super().__init__('mask', dataset, crs, date_range)
        self.classes = ClassMap() if classes is None or isinstance(dataset, Polygons) else classes
        self.native = metres(dataset.crs, float(dataset.res[0])) if isinstance(dataset, RasterDataset) else 0.0
        if self.plain:
            self.dataset.is_image = False
            self._check_header(self.dataset.index.filepath.iloc[0])

    @property
    def sparse(self) -> bool:
        """Whether labels are points, a pixel each."""
        return bool(getattr(self.dataset, 'sparse', False))

    def widen(self, margin: float) -> None:
        """Extend the ground of points, whose box may have no area, to all of their pixels."""
        if self.sparse:
            boxes = [
                shapely.box(x - margin, y - margin, u + margin, v + margin) for x, y, u, v in self.index.bounds.values
            ]
            self.dataset.index = self.index.set_geometry(boxes, crs=self.index.crs)

    def around(self, distance: float) -> Any:
        """Return the squares that reach a distance beyond each point, joined; tiles of that size hold its pixel."""
        frames = [self.dataset._frame(path) for path in self.index.filepath]
        bounds = np.concatenate([frame.bounds.to_numpy() for frame in frames])
        lower, upper = np.split(np.unique(bounds, axis=0), 2, axis=1)
        left, bottom = (lower - distance).T
        right, top = (upper + distance).T
        edge = 1e-4 * distance  # a point between two pixels is in the right or lower one
        return shapely.union_all(shapely.box(left + edge, bottom, right, top - edge))

    def read(self, grid: Grid, span: Span, ignore_index: int, strict: bool = True) -> Tensor:
        """Classes (H, W) of a window, *ignore_index* where there are none.

        Args:
            grid: The window in pixels of the labels.
            span: First and last instant; labels from another time will do where there are none of this.
            ignore_index: What to fill with.
            strict: Whether codes that stand for no class are an error, else they are no label.

        Raises:
            ValueError: If a pixel is none of the classes.
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

        Of a raster that is finer, a pixel has a code of the class that most of its ground has: the first
        class of several, and none where less than half of the ground has a label.
        """
        finer = self._finer(grid.step)
        if finer == 1:
            return self._codes(grid, span)
        fine = Grid(grid.crs, grid.transform @ Affine.scale(1 / finer), grid.height * finer, grid.width * finer)
        return majority(self._codes(fine, span), finer, self.classes)

    def _finer(self, step: float) -> int:
        """Return how many pixels of the labels, at most 64, are looked at along the side of one that is wanted."""
        if not isinstance(self.dataset, RasterDataset):
            return 1
        ratio = step / getattr(self.dataset, 'finest', self.native)
        if ratio < 1 / FINER:
            return 1
        whole = abs(ratio - round(ratio)) < 1e-3
        return min(round(ratio) if whole else 2 * math.ceil(ratio), 64)

    def _codes(self, grid: Grid, span: Span) -> NDArray[np.float32]:
        """Return the codes (H, W) at the centres of pixels, as the files have them."""
        rows = self.rows(grid, span, prefer=True)
        mask = np.full((grid.height, grid.width), np.nan, np.float32)
        if not rows.empty and self.plain:
            frames, _, _ = read_frames(self.dataset, rows, grid)
            mask = newest(frames)[0]
        elif not rows.empty and (sample := self.ask(grid, rows)):
            if 'mask' not in sample:
                raise ValueError(
                    f'mask gives samples of {sorted(sample)}, expected a dataset of masks (is_image=False)'
                )
            mask = self.fit(sample['mask'], rows, grid)
            if mask.ndim == 3 and len(mask) == 1:
                mask = mask[0]
            if mask.ndim != 2:
                raise ValueError(f'mask gives {tuple(mask.shape)} for a window, expected one layer of classes')
        return mask

    def ambiguous(self, grid: Grid, span: Span) -> NDArray[np.bool_]:
        """Return where polygons or points of different classes share a pixel ``(H, W)``; nowhere for a raster."""
        if not isinstance(self.dataset, Polygons) or self.rows(grid, span, prefer=True).empty:
            return np.zeros((grid.height, grid.width), bool)
        return self.dataset.ambiguous(grid)

    def paths(self, grid: Grid, span: Span) -> list[str]:
        """Return the files that reach a window."""
        rows = self.rows(grid, span, prefer=True)
        return [str(path) for path in rows.get('filepath', []) if path]

    def nodata_classes(self, ground: Any) -> dict[str, tuple[float, int]]:
        """Return the nodata of files on a ground where it is the number of a class too, by path.

        Raises:
            ValueError: If a raster has several bands, or complex pixels.
        """
        if not self.plain:
            return {}
        return self._nodata_of(self.index.filepath[self.index.intersects(ground)])

    def _nodata_of(self, paths: Iterable[str]) -> dict[str, tuple[float, int]]:
        """Return the nodata of files where it is the number of a class too, by path."""
        found = {}
        for path in paths:
            for nodata in self._check_header(path):
                number = self.classes.number(nodata)
                if number >= 0 and not self.classes.identity:
                    found[str(path)] = (nodata, number)
        return found

    def _check_header(self, path: str) -> list[float]:
        """Return the nodata of a raster, from its file or the settings, and refuse one without classes."""
        if hasattr(self.dataset, 'label_nodata'):
            own: list[float] = self.dataset.label_nodata(path)
            return own
        with opened(path) as source:
            count = len(getattr(self.dataset, 'bands', None) or self.dataset.band_indexes or source.indexes)
            if count != 1 and not self.dataset.separate_files:
                names = [text or f'B{number}' for number, text in enumerate(source.descriptions, 1)]
                raise ValueError(
                    f'{path} has the {source.count} bands {names}, expected one band with the number of a class as '
                    'pixels: is this a picture? bands in the mask takes one, such as bands: [B1]'
                )
            if any(dtype.startswith('complex') for dtype in source.dtypes):
                raise ValueError(f'{path} has pixels of {source.dtypes[0]}, expected whole numbers as classes')
            decoding = decoding_of(self.dataset, path, None)
            values = {value for stated in source.nodatavals for value in decoding.numbers(stated)}
            return sorted(value for value in values if not math.isnan(value))


def majority(codes: NDArray[np.float32], count: int, classes: ClassMap) -> NDArray[np.float32]:
    """Return for blocks of labels a code of the class that most of their pixels have.

    Args:
        codes: Codes (H * count, W * count), NaN where there are none.
        count: Side of a block in pixels.
        classes: Which class each code is. A code of no class goes before all others, so that it is found.

    Returns:
        Codes (H, W): of several classes that are as frequent, that of the first; NaN or the ignored code
        where less than half of a block has a class.
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
        shares = here.sum(-1)
        better = (shares > 0) if number == UNKNOWN else labelled & (shares > most)
        found = np.where(better, np.fmax.reduce(np.where(here, blocks, np.nan), axis=-1), found)
        most = np.maximum(most, shares)
    return found.astype(np.float32)


def native_gsd(dataset: GeoDataset, anchor: float | None = None) -> float:
    """Metres a pixel of a dataset.

    Where that is no whole number of millimetres, as after a reprojection or in degrees, it
    is the nearest multiple or part of *anchor*, or two digits of it.
    """
    gsd = metres(dataset.crs, float(dataset.res[0]))
    if not dataset.crs.is_geographic and abs(gsd * 1000 - round(gsd * 1000)) < 1e-6:
        return round(gsd, 3)
    if anchor is None:
        return float(f'{gsd:.2g}')
    return anchor * max(1, half_up(gsd / anchor)) if gsd > anchor else anchor / max(1, half_up(anchor / gsd))


def period(indexes: Sequence[GeoDataFrame]) -> tuple[pd.Timestamp, pd.Timestamp]:
    """From the first to the last date of several indexes; always, if none has a date."""
    dated = [index.index[(index.index.left != ALWAYS[0])] for index in indexes]
    dated = [intervals for intervals in dated if len(intervals)]
    if not dated:
        return ALWAYS
    return min(intervals.left.min() for intervals in dated), max(intervals.right.max() for intervals in dated)


def _moved(dataset: GeoDataset, crs: CRS) -> GeoDataset:
    """A copy of a dataset in another CRS."""
    if hasattr(dataset, 'datasets'):  # a union or an intersection, which moves those that it is made of
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
    """Return the files of rows of an index; that of a union or an intersection has several columns of them."""
    columns = [column for column in index.columns if str(column).startswith('filepath')]
    paths = {str(path) for column in columns for path in index[column] if isinstance(path, str) and path}
    return sorted({file for path in paths for file in files_of(dataset, path)})


def _check_brought(index: GeoDataFrame, names: Sequence[str]) -> None:
    """Refuse files that a dataset which is not ours has brought to a CRS that distorts them."""
    for number in distorted(np.asarray(index.geometry.array), index.crs):
        with contextlib.suppress(RasterioError), open_raster(names[number]) as source:
            if source.crs is not None and source.crs != index.crs:
                refuse_distorted(index.geometry.iloc[number], index.crs, source.crs, names[number])


def _is_plain(dataset: GeoDataset) -> bool:
    """Whether pixels of files are what a dataset gives, by methods that are as TorchGeo or we wrote them."""
    if not isinstance(dataset, RasterDataset) or dataset.transforms is not None:
        return False
    known = (RasterDataset, RasterTimeSeries)
    return all(getattr(type(dataset), name) in [getattr(k, name) for k in known] for name in _READING)


def _is_series(dataset: GeoDataset) -> bool:
    """Whether a dataset of TorchGeo's stacks dates."""
    parts = getattr(dataset, 'datasets', ())
    return any(map(_is_series, parts)) if parts else bool(getattr(dataset, 'time_series', False))


def _bands(dataset: GeoDataset) -> tuple[str, ...]:
    """Names of the channels: those of the dataset, else of the first file, else numbers."""
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
        raise ValueError(f'{type(dataset).__name__} gives samples of {sorted(sample)}, expected an image')
    return tuple(f'B{i + 1}' for i in range(sample['image'].shape[-3]))


def common_step(lengths: Sequence[float]) -> float:
    """The least length that is a whole number of each of several.

    Raises:
        ValueError: If it is more than a hundred times the greatest.
    """
    micrometres = [round(length * 1e6) for length in lengths]
    step = math.lcm(*micrometres) / 1e6
    if step > 100 * max(lengths):
        raise ValueError(
            f'pixels and patches of {sorted(set(lengths))} m share no ground below {step} m, expected lengths that are '
            'multiples of each other; gsd sets those of a modality'
        )
    return step
