# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Spatial join of geodatasets of different native resolution and acquisition dates."""

import copy
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import shapely
from geopandas import GeoDataFrame
from matplotlib.figure import Figure
from pyproj import CRS
from rasterio import Affine
from torchgeo.datasets import GeoDataset, RasterDataset, VectorDataset
from torchgeo.datasets.utils import GeoSlice, Sample

from ...grid import Grid
from ...modality import Modality, finer_factor, half_up
from ..common.classes import ClassMap
from ..common.plotting import draw_any
from ..rasters.distortion import is_distorting
from ..rasters.georeference import crs_code, where
from .sources import ImageSource, LabelSource, ValueSource, common_step, native_gsd, period


class MultimodalGeoDataset(GeoDataset):
    """Spatial join of geodatasets, each at its native resolution and with its own acquisition dates.

    Unlike TorchGeo's ``IntersectionDataset``, the join does not resample datasets to one
    resolution, and a dataset without files in a window is missing from the sample instead of
    raising an error. All datasets are reprojected to one CRS in metres. The join is a
    ``GeoDataset`` for TorchGeo's samplers and splits; its period is that of its time series.

    A sample has ``image_<name>``, ``dates_<name>`` and ``valid_<name>`` of every available
    modality (see :mod:`torchgeo_omnisat.batch`), with NaN for nodata; ``mask`` (H, W) if there
    are labels; ``instances`` (H, W) on request; and ``bounds`` and ``transform`` of the label pixels
    in float64.

    A window is moved to the nearest position where the pixel grids of all modalities align, and
    its size is rounded to a whole number of pixels and patches, so that all modalities cover
    the same extent. An aligned window is not changed.
    """

    def __init__(
        self,
        datasets: Mapping[str, GeoDataset],
        mask: GeoDataset | None = None,
        required: Sequence[str] = (),
        crs: Any = None,
        gsd: Mapping[str, float] | None = None,
        label_gsd: float | None = None,
        patch_size: float | None = None,
        date_ranges: Mapping[str, tuple[str, str]] | None = None,
        ignore_index: int = 255,
        area: Any = None,
        labels: Sequence[str] | None = None,
        transforms: Callable[[Sample], Sample] | None = None,
        facts: Mapping[str, Mapping[str, Any]] | None = None,
        classes: Mapping[Any, Any] | None = None,
        other: str | None = None,
        instances: bool = False,
        instance_gsd: float | None = None,
        continuous: bool = False,
    ) -> None:
        """Initialize the join from the indexes of the datasets; no pixel is read.

        Args:
            datasets: Image datasets of this package or TorchGeo by name of the modality;
                those with ``time_series=True`` are time series.
            mask: Raster or vector labels; the join is restricted to their footprint.
            required: Modalities to whose common footprint the join is restricted; if empty, the join is
                the union of all footprints.
            crs: CRS of samples, in metres. Defaults to that of raster labels, else of the first dataset,
                or to the UTM zone if these are in degrees or Web Mercator.
            gsd: GSD in metres by modality; defaults to the native one.
            label_gsd: GSD of the labels in metres, and resolution of the join for samplers. Defaults to
                that of raster labels, else of the first modality.
            patch_size: Length in metres of which the size of tiles is a multiple.
            date_ranges: First and last day, inclusive, by modality, and ``mask`` for the labels.
            ignore_index: Index of pixels without a label.
            area: Geometry in *crs* to which the join is restricted.
            labels: Class names. Pixels of raster labels are class indices, from 0.
            transforms: Transform applied to each sample.
            facts: ``kind``, ``unit`` and ``wavelengths`` by modality, of datasets that do not state them.
            classes: Class name by code, if pixels of raster labels are other codes.
            other: Class of all codes that are not in *classes*.
            instances: Whether samples have ``instances`` (H, W), the field of each pixel, if the labels are polygons.
            instance_gsd: GSD of *instances* in metres, that of the labels divided by a whole number; defaults to that
                of the labels.
            continuous: Whether raster labels are continuous values instead of classes: ``mask`` is float32, NaN where
                the value is unknown.

        Raises:
            ValueError: If an argument is invalid, or the footprints do not overlap.
        """
        self.given = dict(datasets)
        self.labels_given = mask
        self.required = _names('required', required, self.given)
        self.gsd = dict(gsd or {})
        self.date_ranges = dict(date_ranges or {})
        self.facts = dict(facts or {})
        _names('gsd', list(self.gsd), self.given)
        _names('facts', list(self.facts), self.given)
        _names('date_ranges', list(self.date_ranges), [*self.given, 'mask'])
        for name, dataset in {**self.given, **({} if mask is None else {'mask': mask})}.items():
            if not isinstance(dataset, GeoDataset):
                raise ValueError(f'{name!r} is {type(dataset).__name__}, expected a GeoDataset')
        if not self.given:
            raise ValueError('datasets is empty, expected at least one modality')
        self.patch_size, self.ignore_index, self.instances = patch_size, ignore_index, instances
        self.instance_gsd = instance_gsd
        self.label_names, self.transforms = labels, transforms
        self._label_gsd, self._area, self.continuous = label_gsd, area, continuous
        self.classes = ClassMap(labels or (), classes, other, ignore_index)
        self._build(_metric(crs, self.given, mask))
        self.index = self._joined()

    @property
    def modalities(self) -> dict[str, Modality]:
        """Modalities by name."""
        return {name: source.modality for name, source in self.sources.items()}

    @property
    def crs(self) -> CRS:
        """CRS of samples."""
        return self.index.crs

    @crs.setter
    def crs(self, crs: Any) -> None:
        """Reproject all datasets to another CRS in metres."""
        if self.crs != crs:
            index = self.index.to_crs(crs)
            self._build(_metric(crs, self.given, self.labels_given))
            self.index = index

    @property
    def area(self) -> Any:
        """Footprint of the join, a geometry in :attr:`crs`."""
        return self.index.geometry.union_all()

    def clip(self, area: Any) -> 'MultimodalGeoDataset':
        """Restrict the join to an area.

        Raises:
            ValueError: If *area* does not intersect the footprint of the join.
        """
        part = copy.copy(self)
        covered = tuple(map(round, self.area.bounds))
        what = f'an area with the bounds {area.bounds}, where the data cover {covered}'
        part.index = self._rows(self.area.intersection(area), what)
        return part

    def unlabelled(self) -> 'MultimodalGeoDataset':
        """Return the join without labels, on the whole footprint of its images and the same pixel grid."""
        part = copy.copy(self)
        part.labels = None
        part.index = part._joined()
        return part

    def image_files(self, name: str) -> list[str]:
        """Return the files of a modality that intersect the footprint of the join."""
        return self.sources[name].files(self.area)

    def __getitem__(self, index: GeoSlice) -> Sample:
        """Return the sample of a window, with the aligned window in ``bounds``.

        Args:
            index: [xmin:xmax, ymin:ymax, tmin:tmax]. Time series are restricted to the period; single
                images and labels of the period are preferred over others. Steps are ignored.

        Raises:
            IndexError: If the window does not intersect the footprint of the join.
        """
        x, y, t = self._disambiguate_slice(index)
        window = self.snap(x, y)
        shape = shapely.box(*window)
        if not self.index.intersects(shape).any() or self.index.intersection(shape).area.sum() == 0:
            raise IndexError(f'the window {window} is outside of the data, expected one within {self.bounds[:2]}')
        span = (t.start, t.stop)
        sample: Sample = {}
        for source in self.sources.values():
            sample |= source.read(pixels(self.crs, window, source.modality.gsd), span)
        grid = pixels(self.crs, window, self.label_gsd)
        if self.labels is not None:
            sample['mask'] = self.labels.read(grid, span, self.ignore_index)
            if self.instances:
                factor = finer_factor(self.label_gsd, self.instance_gsd, 'instance_gsd')
                sample['instances'] = self.labels.instances(grid.finer(factor), span)
        sample |= where(grid, span)
        return sample if self.transforms is None else self.transforms(sample)

    def snap(self, x: slice, y: slice) -> tuple[float, float, float, float]:
        """Return the nearest window aligned with the pixel grids of all modalities: xmin, ymin, xmax, ymax."""
        left = self.corner[0] + self.lattice * _nearest((x.start - self.corner[0]) / self.lattice)
        top = self.corner[1] - self.lattice * _nearest((self.corner[1] - y.stop) / self.lattice)
        width, height = (self.step * max(1, _nearest((axis.stop - axis.start) / self.step)) for axis in (x, y))
        return left, top - height, left + width, top

    def plot(self, sample: Sample, show_titles: bool = True, suptitle: str | None = None) -> Figure:
        """Plot every modality, some of its dates, the mask and, if available, the prediction."""
        return draw_any(sample, self.modalities, self.label_names, self.ignore_index, show_titles, suptitle)

    def _build(self, crs: CRS) -> None:
        """Reproject the datasets to a CRS and determine their common pixel grid."""
        self.labels: LabelSource | None = None
        if self.labels_given is not None:
            dates = self.date_ranges.get('mask')
            self.labels = (
                ValueSource(self.labels_given, crs, dates)
                if self.continuous
                else LabelSource(self.labels_given, crs, dates, self.classes)
            )
        anchor = self._label_gsd
        if anchor is None and isinstance(self.labels_given, RasterDataset):
            anchor = native_gsd(self.labels_given)
        self.sources: dict[str, ImageSource] = {}
        for name, dataset in self.given.items():
            gsd, facts = self.gsd.get(name), self.facts.get(name)
            source = ImageSource(name, dataset, crs, self.date_ranges.get(name), gsd, anchor, facts)
            self.sources[name] = source
            anchor = anchor or source.modality.gsd
        assert anchor is not None
        self.label_gsd = anchor
        if self.labels is not None:
            self.labels.widen(anchor)
        gsds = [anchor, *(source.modality.gsd for source in self.sources.values())]
        self.lattice = common_step(gsds)
        self.step = self.lattice if self.patch_size is None else common_step([*gsds, self.patch_size])
        self._res = (anchor, anchor)
        rasters = [self.labels_given] if isinstance(self.labels_given, RasterDataset) else []
        aligned = [dataset for dataset in [*rasters, *self.given.values()] if dataset.crs == crs]
        index = aligned[0].index if aligned else next(iter(self.sources.values())).index
        straight = index[np.isclose(index.area, index.envelope.area, rtol=1e-9)]  # reprojected footprints are rotated
        bounds = (index if straight.empty else straight).total_bounds
        self.corner = (float(bounds[0]), float(bounds[3]))
        self._warn_of_resampling(crs)

    def _warn_of_resampling(self, crs: CRS) -> None:
        steps = {name: source.modality.gsd for name, source in self.sources.items()} | {'mask': self.label_gsd}
        for name, dataset in {**self.given, 'mask': self.labels_given}.items():
            if isinstance(dataset, RasterDataset) and (why := self._resampling(dataset, crs, steps[name])):
                warnings.warn(f'{name} {why}; it is resampled', stacklevel=4)

    def _resampling(self, dataset: RasterDataset, crs: CRS, gsd: float) -> str:
        """Return why a raster is resampled: another CRS or another pixel grid; empty if it is not."""
        if dataset.crs != crs:
            theirs, ours = (crs_code(one) for one in (dataset.crs, crs))
            return f'is in {theirs}, the tiles are in {ours}'
        own = float(dataset.res[0])
        step = min(gsd, own)
        ratio = max(gsd, own) / step
        if abs(ratio - round(ratio)) > 1e-6:
            return f'has pixels of {own:.10g} m, the tiles have {gsd:g} m'
        index = dataset.index
        straight = index[np.isclose(index.area, index.envelope.area, rtol=1e-9)]
        if straight.empty:
            return 'has pixels that are rotated against the grid of the tiles'
        xmin, _, _, ymax = straight.geometry.iloc[0].bounds
        offsets = ((xmin - self.corner[0]) / step, (ymax - self.corner[1]) / step)
        shift = max(abs(offset - round(offset)) for offset in offsets)
        where = f'shifted by {shift:.2g} pixels from the grid of the tiles, which starts at {self.corner}'
        return f'has pixels of {step:g} m that are {where}' if shift > 0.01 else ''

    def _joined(self) -> GeoDataFrame:
        grounds = {name: source.index.geometry.union_all() for name, source in self.sources.items()}
        ground = shapely.union_all(list(grounds.values()))
        parts = {name: grounds[name] for name in self.required}
        if self.labels is not None:
            parts['mask'] = self.labels.index.geometry.union_all()
        if self._area is not None:
            parts['area'] = self._area
        for part in parts.values():
            ground = ground.intersection(part)
        if self.labels is not None and not any(parts['mask'].intersects(each) for each in grounds.values()):
            boxes = ', '.join(f'{name} {_rounded(each)}' for name, each in {'labels': parts['mask'], **grounds}.items())
            raise ValueError(
                f'the labels do not overlap any image: bounds in {self._crs_name} are {boxes}; expected '
                'an overlap. Check the CRS of the labels, and for points the order of lon and lat'
            )
        covered = {name: _rounded(part) for name, part in {**grounds, **parts}.items()}
        return self._rows(ground, f'{list(parts) or list(grounds)} together, where each covers {covered}')

    def _rows(self, ground: Any, what: str) -> GeoDataFrame:
        shapes = [shape for shape in shapely.get_parts(ground) if shape.area > 0]
        if not shapes:
            raise ValueError(f'there is no ground in {what}, expected some in {self._crs_name}')
        series = [source.index for source in self.sources.values() if source.modality.temporal]
        start, stop = period(series or [source.index for source in self.sources.values()])
        when = pd.IntervalIndex.from_tuples([(start, stop)] * len(shapes), closed='both', name='datetime')
        crs = next(iter(self.sources.values())).index.crs
        return GeoDataFrame({'filepath': ''}, index=when, geometry=shapes, crs=crs)

    @property
    def _crs_name(self) -> str:
        return str(next(iter(self.sources.values())).index.crs.name)


def _names(what: str, names: Sequence[str], expected: Any) -> tuple[str, ...]:
    if isinstance(names, str) or not set(names) <= set(expected):
        raise ValueError(f'{what} names {names!r}, expected some of {list(expected)}')
    return tuple(names)


def _rounded(ground: Any) -> tuple[int, ...]:
    return tuple(round(edge) for edge in ground.bounds) if not ground.is_empty else ()


def _metric(crs: Any, datasets: Mapping[str, GeoDataset], mask: GeoDataset | None) -> CRS:
    """Return a CRS in metres: *crs*, that of a dataset, or the UTM zone of a dataset in degrees."""
    if crs is None:
        labels = [] if mask is None else [mask]
        images = list(datasets.values())
        # Polygons are exact in any CRS, but images would be resampled.
        found = [one.crs for one in (images + labels if isinstance(mask, VectorDataset) else labels + images)]
        metric = [crs for crs in found if _in_metres(crs)]
        return metric[0] if metric else next(iter(datasets.values())).index.estimate_utm_crs()
    crs = CRS.from_user_input(crs)
    if not _in_metres(crs):
        raise ValueError(f'crs is {crs.name!r}, expected a projected one in metres, such as that of a UTM zone')
    return crs


def _in_metres(crs: CRS) -> bool:
    return is_distorting(crs) and crs.axis_info[0].unit_conversion_factor == 1


def pixels(crs: CRS, window: tuple[float, float, float, float], gsd: float) -> Grid:
    """Return the pixel grid of a window whose sides are multiples of *gsd*."""
    xmin, ymin, xmax, ymax = window
    rows, columns = half_up((ymax - ymin) / gsd), half_up((xmax - xmin) / gsd)
    return Grid(crs, Affine(gsd, 0, xmin, 0, -gsd, ymax), rows, columns)


def _nearest(value: float) -> int:
    """Round to the nearest integer, halves up, so that adjacent windows stay adjacent."""
    return math.floor(value + 0.5 + 1e-9)
