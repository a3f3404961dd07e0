# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Polygons: vector files as labels, whose classes have names or numbers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import geopandas as gpd
import pandas as pd
from lightning.pytorch.utilities import rank_zero_warn
from torchgeo.datasets import VectorDataset
from torchgeo.datasets.utils import GeoSlice, Sample


class Polygons(VectorDataset):
    """Polygons with a class each; ground outside of them has none unless it is told one.

    Its parent takes all that no polygon covers for class 0, and knows no names.

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
        ValueError: If a file has no such column, or a class in it that is none.
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
        super().__init__(paths, crs, label_name=column, layer=layer)
        self.names = {name: number for number, name in enumerate(labels)}
        if outside is None:
            outside = self.nodata if column else 0
        elif outside not in [*self.names, *self.names.values()]:
            raise ValueError(f'outside of the mask is {outside!r}, expected one of the labels {list(labels)}')
        self.outside = self.names[outside] if isinstance(outside, str) else outside
        if column:
            self._check(column)

    def get_label(self, feature: 'pd.Series[Any]') -> int:
        """The class of a polygon, plus one, because what is not drawn is 0 already."""
        return self._number(feature[self.label_name]) + 1 if self.label_name else 2

    def __getitem__(self, index: GeoSlice) -> Sample:
        """The classes of a window.

        Args:
            index: [xmin:xmax:xres, ymin:ymax:yres, tmin:tmax:tres].

        Returns:
            The sample, its ``mask`` (H, W) with :attr:`nodata` where there is no label.

        Raises:
            IndexError: If no file reaches the window.
        """
        sample = super().__getitem__(index)
        mask = sample['mask'] - 1
        sample['mask'] = mask.where(mask != -1, self.outside).clamp(min=self.nodata)
        return sample

    def _number(self, value: Any) -> int:
        """A class as a number, -2 where none is given."""
        if isinstance(value, str) and value in self.names:
            return self.names[value]
        number = -2 if pd.isna(value) else float(value)
        if number != int(number):
            raise ValueError(f'{value} is no whole number')
        return int(number)

    def _check(self, column: str) -> None:
        """Refuse classes that are unknown, and tell of those that no polygon has."""
        found = set()
        for path in self.index.filepath:
            for value in _attributes(path, column, self.layer).unique():
                try:
                    found.add(self._number(value))
                except (TypeError, ValueError):
                    raise ValueError(
                        f'{path} has {value!r} in the column {column!r}, expected numbers or some of the labels '
                        f'{list(self.names)}'
                    ) from None
        lacking = [name for name, number in self.names.items() if number not in {*found, self.outside}]
        if lacking:
            hint = f'; "outside: {lacking[0]}" in the mask would make the ground around them {lacking[0]!r}'
            rank_zero_warn(f'no polygon of {self.paths} is {lacking}' + hint * (self.outside == self.nodata))


def _attributes(path: str, column: str, layer: str | int | None) -> 'pd.Series[Any]':
    """A column of a vector file.

    Raises:
        ValueError: If there is none of this name.
    """
    if Path(path).suffix.lower() == '.parquet':
        frame: Any = gpd.read_parquet(path).drop(columns='geometry', errors='ignore')
    else:
        frame = gpd.read_file(path, layer=layer, ignore_geometry=True)
    if column not in frame:
        raise ValueError(f'{path} has the columns {list(frame.columns)}, expected {column!r}, the column of the mask')
    values: pd.Series[Any] = frame[column]
    return values
