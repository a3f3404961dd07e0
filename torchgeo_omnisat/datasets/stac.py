# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""STACTimeSeries: a series whose files a STAC ItemCollection names."""

import os
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
from pyproj import CRS
from torchgeo.datasets.utils import Path as PathLike
from torchgeo.datasets.utils import Sample, lazy_import

from .frames import Clouds, as_gdal
from .raster import RasterTimeSeries


class STACTimeSeries(RasterTimeSeries):
    """The assets of STAC items as a series, on this disk or elsewhere.

    Every band is an asset of its own. Files are read where they lie, in the ranges that a
    window needs; credentials and caches are GDAL's business (``AWS_*``,
    ``GDAL_HTTP_*``, ``VSI_CACHE``), as environment variables or in a ``rasterio.Env``. Needs
    pystac: ``pip install torchgeo_omnisat[stac]``.
    """

    filename_regex = '(?P<date>.*)'
    separate_files = True

    def __init__(
        self,
        paths: PathLike,
        crs: CRS | None = None,
        res: float | tuple[float, float] | None = None,
        bands: Sequence[str] = (),
        transforms: Callable[[Sample], Sample] | None = None,
        cache: bool = True,
        *,
        assets: Mapping[str, str] | None = None,
        name: str = 's2',
        temporal: bool = True,
        nodata: float | None = None,
        decibels: bool = False,
        date_range: tuple[str, str] | None = None,
        max_dates: int | None = None,
        clouds: Clouds | Mapping[str, Any] | None = None,
    ) -> None:
        """Read the items, and the header of the first band of each.

        Args:
            paths: The ItemCollection, a JSON file.
            crs: CRS of the samples; that of the first file by default.
            res: Side of a pixel in units of *crs*; that of the first band by default.
            bands: Bands to read, in this order.
            transforms: What to do with a sample.
            cache: Whether to keep files open.
            assets: What the asset of a band is called, where that is not the band's name.
            name: Name of the modality.
            temporal: Whether this is a series.
            nodata: The number that says *not measured*; what the files say by default.
            decibels: Whether pixels are decibels.
            date_range: First and last day to take.
            max_dates: How many days of a sample to read, spread evenly.
            clouds: Which band tells of clouds, and how.

        Raises:
            DependencyNotFoundError: If pystac is not installed.
            ValueError: If that is no ItemCollection, or an item lacks an asset or a date.
        """
        if not bands:
            raise ValueError(f'bands of {name!r} is empty, expected names of assets')
        told = Clouds(**clouds) if isinstance(clouds, Mapping) else clouds
        self.collection = Path(str(paths))
        self.assets = dict(assets or {})
        wanted = (*bands, *([told.band] if told else ()))
        self.items = _items(self.collection, {band: self.assets.get(band, band) for band in wanted})
        super().__init__(
            list(self.items),
            crs,
            res,
            tuple(bands),
            transforms,
            cache,
            name=name,
            temporal=temporal,
            all_bands=wanted,
            nodata=nodata,
            decibels=decibels,
            date_range=date_range,
            max_dates=max_dates,
            clouds=told,
        )

    @property
    def files(self) -> list[str]:
        """The file of the first band of each item."""
        return sorted(self.items)

    def _filepath_to_timestamp(self, filepath: PathLike) -> tuple[datetime, datetime]:
        """The day of an item, whole, as that of a file name is."""
        day = self.items[str(filepath)][0]
        return day, day + pd.Timedelta(days=1) - pd.Timedelta(microseconds=1)

    def _update_filepath(self, band: str, filepath: str) -> str:
        """The file of another band of an item."""
        return self.items[filepath][1][band]


def _items(path: Path, assets: Mapping[str, str]) -> dict[str, tuple[pd.Timestamp, dict[str, str]]]:
    """Day and files by band of each item, under the file of the first band."""
    pystac = lazy_import('pystac')
    try:
        collection = pystac.ItemCollection.from_file(str(path))
    except Exception as error:  # whatever JSON and pystac find wrong
        raise ValueError(f'{path} cannot be read ({error}), expected a STAC ItemCollection') from error
    found = {}
    for item in collection:
        lacking = [asset for asset in assets.values() if asset not in item.assets]
        when = item.datetime or item.common_metadata.start_datetime
        if lacking or when is None:
            what = f'lacks the assets {lacking}' if lacking else 'has no date'
            raise ValueError(f'item {item.id!r} of {path} {what}, expected {list(assets.values())} and a datetime')
        files = {band: _located(item.assets[asset], item, path) for band, asset in assets.items()}
        day = pd.Timestamp(when.astimezone(UTC).replace(tzinfo=None)).normalize()
        found[next(iter(files.values()))] = (day, files)
    if not found:
        raise ValueError(f'{path} holds no items, expected a STAC ItemCollection of some')
    return found


def _located(asset: Any, item: Any, path: Path) -> str:
    """Where an asset lies; what is relative is so to its item, or else to the collection."""
    absolute = asset.get_absolute_href() if item.get_self_href() else None
    href = str(absolute or asset.href).removeprefix('file://')
    for scheme, handler in (('s3://', '/vsis3/'), ('gs://', '/vsigs/'), ('az://', '/vsiaz/')):
        href = href.replace(scheme, handler, 1) if href.startswith(scheme) else href
    if '://' in href or os.path.isabs(href):
        return as_gdal(href)
    return str(path.parent / href)
