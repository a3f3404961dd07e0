# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Polygons: vector files as labels, whose classes have names or numbers."""

from collections.abc import Sequence
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
import torch
from lightning.pytorch.utilities import rank_zero_warn
from rasterio.features import rasterize
from torchgeo.datasets import VectorDataset
from torchgeo.datasets.utils import GeoSlice, Sample

from .georeference import where, window_grid


class Polygons(VectorDataset):
    """Polygons with a class each; ground outside of them has none unless it is told one.

    Its parent takes all that no polygon covers for class 0, knows no names, reads whole files
    anew for every window, and finds their polygons by two corners of the window, which in
    another CRS is not all of it. Here files are read once and searched by a spatial index.

    Args:
        paths: A vector file, several, or directories of them.
        crs: CRS of the labels; that of the first file by default.
        column: Which column has the class: one of *labels*, or its number. None: every polygon is
            class 1, and the rest is class 0.
        outside: Class of the ground outside of all polygons, a name or a number; None for no label.
            A polygon whose column is empty has no label in any case.
        layer: Which layer of a file; the first by default.
        labels: Names of the classes.

    Raises:
        ValueError: If a file cannot be read, or has no such column, or a class in it that is none.
    """

    #: What samples hold where there is no label; joins take it for that.
    nodata = -1

    def __init__(
        self,
        paths: Any = 'data',
        crs: Any = None,
        column: str | None = None,
        outside: str | int | None = None,
        layer: str | int | None = None,
        labels: Sequence[str] = (),
    ) -> None:
        self.told_crs = crs
        super().__init__(paths, crs, label_name=column, layer=layer)
        self.names = {name: number for number, name in enumerate(labels)}
        if outside is None:
            outside = self.nodata if column else 0
        elif outside not in [*self.names, *self.names.values()]:
            raise ValueError(f'outside of the mask is {outside!r}, expected one of the labels {list(labels)}')
        self.outside = self.names[outside] if isinstance(outside, str) else outside
        self.frames = {path: self._read(path) for path in self.files}  # its parent leaves out what is damaged
        if column:
            self._tell_lacking()

    def __getitem__(self, index: GeoSlice) -> Sample:
        """The classes of a window; where polygons overlap, that of the last.

        Args:
            index: [xmin:xmax:xres, ymin:ymax:yres, tmin:tmax:tres].

        Returns:
            The sample, its ``mask`` (H, W) with :attr:`nodata` where there is no label.

        Raises:
            IndexError: If no file reaches the window.
        """
        x, y, t = self._disambiguate_slice(index)
        grid, window = window_grid(self.crs, x, y), shapely.box(x.start, y.start, x.stop, y.stop)
        rows = self.index[self.index.index.overlaps(pd.Interval(t.start, t.stop)) & self.index.intersects(window)]
        if rows.empty:
            raise IndexError(f'no polygon reaches {index}, expected a window within {self.bounds}')
        mask = np.full((grid.height, grid.width), self.outside, np.int32)
        for path in rows.filepath:
            frame = self._frame(path)
            near = frame.iloc[np.sort(frame.sindex.query(window, predicate='intersects'))]
            if len(near):
                rasterize(zip(near.geometry, near.number, strict=True), out=mask, transform=grid.transform)
        return {'mask': torch.from_numpy(mask).long(), **where(grid, (t.start, t.stop))}

    def _frame(self, path: str) -> gpd.GeoDataFrame:
        """Polygons of a file in the CRS of the labels."""
        if self.frames[path].crs != self.crs:
            self.frames[path] = self.frames[path].to_crs(self.crs)
        return self.frames[path]

    def _read(self, path: str) -> gpd.GeoDataFrame:
        """Polygons of a file, each with the ``number`` of its class."""
        try:
            frame: Any = (
                gpd.read_parquet(path) if path.lower().endswith('.parquet') else gpd.read_file(path, layer=self.layer)
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise ValueError(f'{path} cannot be read ({error}), expected a vector file with polygons') from error
        if frame.crs is None and self.told_crs is None:
            xmin, ymin, xmax, ymax = frame.total_bounds
            raise ValueError(
                f'{path} has no CRS, expected one; crs in the mask says which, such as EPSG:4326 for degrees: its '
                f'polygons reach from {xmin:.10g}, {ymin:.10g} to {xmax:.10g}, {ymax:.10g}'
            )
        columns = list(frame.columns.drop(frame.geometry.name))
        if self.label_name and self.label_name not in columns:
            raise ValueError(f'{path} has the columns {columns}, expected {self.label_name!r}, the column of the mask')
        numbers = (
            [self._number(path, value) for value in frame[self.label_name]] if self.label_name else [1] * len(frame)
        )
        drawn = gpd.GeoDataFrame({'number': numbers}, geometry=frame.geometry.array, crs=frame.crs or self.crs)
        return drawn[~(drawn.geometry.isna() | drawn.geometry.is_empty)]

    def _number(self, path: str, value: Any) -> int:
        """A class as a number, :attr:`nodata` where none is given."""
        if pd.isna(value):
            return self.nodata
        if isinstance(value, str) and value in self.names:
            return self.names[value]
        try:
            if float(value) == int(float(value)):
                return int(float(value))
        except (TypeError, ValueError, OverflowError):
            pass
        raise ValueError(
            f'{path} has {value!r} in the column {self.label_name!r}, expected numbers or some of the labels '
            f'{list(self.names)}'
        )

    def _tell_lacking(self) -> None:
        """Warn of classes that no polygon has."""
        found = {self.outside}.union(*(frame.number for frame in self.frames.values()))
        lacking = [name for name, number in self.names.items() if number not in found]
        if lacking:
            hint = f'; "outside: {lacking[0]}" in the mask would make the ground around them {lacking[0]!r}'
            rank_zero_warn(f'no polygon of {self.paths} is {lacking}' + hint * (self.outside == self.nodata))
