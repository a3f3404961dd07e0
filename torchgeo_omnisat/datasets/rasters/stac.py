# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""STACTimeSeries: a series whose files a STAC ItemCollection names."""

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pyproj import CRS
from torchgeo.datasets.utils import Path as PathLike
from torchgeo.datasets.utils import Sample, lazy_import

from ...modality import Kind, Unit
from ...utils.jsonfile import load_json
from ..arguments import state_facts
from ..io.decoding import Decoding
from ..io.headers import Header
from .frames import Clouds, as_gdal
from .sentinel import shift, stated_offsets
from .timeseries import RasterTimeSeries

#: Properties of an item that say that what was added is off again, and what was added.
APPLIED = ('earthsearch:boa_offset_applied', 'sentinel:boa_offset_applied')
BASELINES = ('s2:processing_baseline', 'sentinel:processing_baseline', 'processing:version')

#: Schemes of addresses that items may name, and GDAL's handler of each; that of web addresses is found by GDAL.
SCHEMES = {'https': '', 'http': '', 's3': '/vsis3/', 'gs': '/vsigs/', 'az': '/vsiaz/'}


class STACTimeSeries(RasterTimeSeries):
    """The assets of STAC items as a series, on this disk or elsewhere.

    Every band is an asset of its own. Files are read where they lie, in the ranges that a
    window needs; credentials and caches are GDAL's business (``AWS_*``,
    ``GDAL_HTTP_*``, ``VSI_CACHE``), as environment variables or in a ``rasterio.Env``. Needs
    pystac: ``pip install torchgeo_omnisat[stac]``. Addresses (``https://``, ``s3://``, ``gs://``, ``az://``) are
    followed; of files on this disk, also as ``file://``, only those in the folder of the collection are read, unless
    *allow_outside* is given. Paths of GDAL's virtual file systems (``/vsi``) are refused.

    Sentinel-2 of all processing baselines is brought to one scale, as by
    :class:`.Sentinel2TimeSeries`. What is added since 04.00 is told by, the first that an item has,
    ``boa_offset_applied`` (of ``earthsearch`` or ``sentinel``; true: it is off already), the
    ``offset`` and ``scale`` of the raster extension, and ``s2:processing_baseline`` or
    ``processing:version``. Catalogues are known to err in the first: look at the dates of 2022.

    Sentinel-2 items state that their images are optical, in digital numbers; items of the SAR extension
    state radar; and the EO extension states central wavelengths. Units of other items are unknown.
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
        nodata: float | Sequence[float] | None = None,
        replace_nodata: float | Sequence[float] | None = None,
        kind: Kind | None = None,
        unit: Unit = 'unknown',
        wavelengths: Sequence[float] | Mapping[str, float] | None = None,
        decibels: bool | None = None,
        date_range: tuple[str, str] | None = None,
        max_dates: int | None = None,
        clouds: Clouds | Mapping[str, Any] | None = None,
        harmonize: bool = True,
        allow_outside: bool = False,
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
            nodata: A number, or several, that are nodata besides what files and items state, and besides 0
                of Sentinel-2.
            replace_nodata: The same, instead of all of these.
            kind: What the sensor measures; what the items state by default.
            unit: Unit of the pixels; what the items state by default.
            wavelengths: Central wavelengths of *bands* in nanometres; what the items state by default.
            decibels: True is short for *kind* ``'radar'`` and *unit* ``'db'``, False for *unit* ``'power'``.
            date_range: First and last day to take.
            max_dates: How many days of a sample to read, spread evenly.
            clouds: Which band tells of clouds, and how.
            harmonize: Whether to take off what is added to Sentinel-2 since baseline 04.00.
            allow_outside: Whether items may name files of this disk outside the folder of *paths*.

        Raises:
            DependencyNotFoundError: If pystac is not installed.
            ValueError: If that is no ItemCollection, an item lacks an asset or a date, or names a file outside
                the folder, or *kind* or *unit*
                contradict the items.
        """
        if not bands:
            raise ValueError(f'bands of {name!r} is empty, expected names of assets')
        told = Clouds(**clouds) if isinstance(clouds, Mapping) else clouds
        self.harmonize = harmonize
        self.collection = Path(str(paths))
        self.assets = dict(assets or {})
        wanted = (*bands, *([told.band] if told else ()))
        self.items = _items(self.collection, {band: self.assets.get(band, band) for band in wanted}, allow_outside)
        facts = {scene.facts for scene in self.items.values()}
        own = Facts() if len(facts) > 1 else facts.pop()
        kind, unit = state_facts(name, kind, unit, decibels)
        for what, given, stated in (('kind', kind or own.kind, own.kind), ('unit', unit, own.unit)):
            if stated not in (None, 'unknown', given) and given != 'unknown':
                raise ValueError(f'{what} of {name!r} is {given!r}, but the items of {paths} state {stated!r}')
        nanometres = dict(zip(wanted, own.wavelengths, strict=False))
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
            replace_nodata=replace_nodata,
            kind=kind or own.kind,
            unit=own.unit if unit == 'unknown' else unit,
            wavelengths=nanometres
            if wavelengths is None and None not in own.wavelengths[: len(bands)]
            else wavelengths,
            date_range=date_range,
            max_dates=max_dates,
            clouds=told,
        )

    @property
    def files(self) -> list[str]:
        """The file of the first band of each item."""
        return sorted(self.items)

    def offsets(self, filepath: str) -> NDArray[np.float32]:
        """What is to be added to each band of an item, ``(C, 1, 1)``."""
        told, stated = self.items[filepath].offsets, self.tag_offsets.get(filepath, 0)
        offsets = [stated if told[band] is None else told[band] for band in self.bands]
        return np.array(offsets if self.harmonize else [0] * len(offsets), np.float32)[:, None, None]

    def _scale(self, headers: Sequence[Header]) -> None:
        """Keep digital numbers of Sentinel-2; bring others to physical values where items or files differ."""
        self.tag_offsets = {}
        if all(scene.facts.unit == 'dn' for scene in self.items.values()):
            self.scaled, self.tag_offsets = False, stated_offsets(headers)
        else:
            super()._scale(headers)

    def _stated_scales(self, header: Header) -> tuple[tuple[float, float], ...]:
        """Return scale and offset of each band, by its item, else by its file."""
        scales = [self.items[header.path].scales[band] for band in self.bands]
        if None not in scales:
            return tuple(scale for scale in scales if scale is not None)
        pairs = zip(scales, super()._stated_scales(header), strict=False)
        return tuple(own or scale for own, scale in pairs)

    def decoding(self, filepath: str, band: str | None) -> Decoding:
        """Return which pixels of a file are valid, by what its item states too."""
        usual = super().decoding(filepath, band)
        stated = self.items[filepath].nodata.get(band or '', ())
        nodata = usual.nodata if self.replaced_nodata is not None else (*usual.nodata, *stated)
        return usual._replace(nodata=nodata, scale=self.items[filepath].scales.get(band or ''))

    def _filepath_to_timestamp(self, filepath: PathLike) -> tuple[datetime, datetime]:
        """The day of an item, whole, as that of a file name is."""
        day = self.items[str(filepath)].day
        return day, day + pd.Timedelta(days=1) - pd.Timedelta(microseconds=1)

    def _update_filepath(self, band: str, filepath: str) -> str:
        """The file of another band of an item."""
        return self.items[filepath].files[band]


class Facts(NamedTuple):
    """Kind, unit, and the central wavelength of each band in nanometres, as far as an item states them."""

    kind: Kind | None = None
    unit: Unit = 'unknown'
    wavelengths: tuple[float | None, ...] = (None,)


class Scene(NamedTuple):
    """What an item says: its day; by band the file, what to add to its pixels, nodata and scale; and its facts."""

    day: pd.Timestamp
    files: dict[str, str]
    offsets: dict[str, float | None]
    nodata: dict[str, tuple[float, ...]]
    scales: dict[str, tuple[float, float] | None]
    facts: Facts


def _items(path: Path, assets: Mapping[str, str], allow_outside: bool) -> dict[str, Scene]:
    """The scene of each item, under the file of the first band."""
    pystac = lazy_import('pystac')
    try:
        collection = pystac.ItemCollection.from_dict(load_json(path))
    except Exception as error:  # whatever JSON and pystac find wrong
        raise ValueError(f'{path} cannot be read ({error}), expected a STAC ItemCollection') from error
    found = {}
    for item in collection:
        try:
            scene = _scene(item, assets, path, allow_outside)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
            raise ValueError(f'item {item.id!r} of {path} cannot be used: {error}') from error
        found[next(iter(scene.files.values()))] = scene
    if not found:
        raise ValueError(f'{path} holds no items, expected a STAC ItemCollection of some')
    return found


def _scene(item: Any, assets: Mapping[str, str], path: Path, allow_outside: bool) -> Scene:
    """Return what an item says of *assets*; see :func:`_items`."""
    lacking = [asset for asset in assets.values() if asset not in item.assets]
    when = item.datetime or item.common_metadata.start_datetime
    if lacking or when is None:
        what = f'it lacks the assets {lacking}' if lacking else 'it has no date'
        raise ValueError(f'{what}, expected {list(assets.values())} and a datetime')
    if not pd.Timestamp.min.year < when.year < pd.Timestamp.max.year:
        raise ValueError(f'its date is {when.isoformat()}, expected a year from 1678 to 2261')
    files = {band: _located(item.assets[asset], item, path, allow_outside) for band, asset in assets.items()}
    return Scene(
        pd.Timestamp(when.astimezone(UTC).replace(tzinfo=None)).normalize(),
        files,
        {band: _offset(item, asset) for band, asset in assets.items()},
        {band: _nodata(item, asset) for band, asset in assets.items()},
        {band: _scale(item.assets[asset].extra_fields) for band, asset in assets.items()},
        _facts(item, list(assets.values())),
    )


def _is_sentinel2(item: Any) -> bool:
    """Whether an item states that it is Sentinel-2."""
    told = item.properties
    named = any(str(told.get(key)).lower().startswith('sentinel-2') for key in ('constellation', 'platform'))
    return named or 's2:processing_baseline' in told


def _facts(item: Any, names: Sequence[str]) -> Facts:
    """What an item states of the assets *names*."""
    wavelengths = []
    for name in names:
        asset = item.assets[name].extra_fields
        bands = asset.get('eo:bands') or asset.get('bands') or []
        key = 'center_wavelength' if 'eo:bands' in asset else 'eo:center_wavelength'
        micrometres = bands[0].get(key) if len(bands) == 1 else None
        wavelengths.append(round(1000 * float(micrometres), 1) if micrometres else None)
    if _is_sentinel2(item):
        return Facts('optical', 'dn', tuple(wavelengths))
    is_radar = any(key.startswith('sar:') for key in item.properties)
    return Facts('radar' if is_radar else None, 'unknown', tuple(wavelengths))


def _offset(item: Any, name: str) -> float | None:
    """Return what is to be added to the pixels of an asset so that Sentinel-2 of all baselines is on one scale.

    None if the item does not say, so that its file may.
    """
    told, asset = item.properties, item.assets[name].extra_fields
    if not _is_sentinel2(item) or any(told.get(flag) for flag in APPLIED):
        return 0.0
    scale = _scale(asset)
    if scale is not None:
        return float(round(scale[1] / scale[0]))
    if not _is_spectral(asset, name):
        return 0.0
    baseline = next((told[key] for key in BASELINES if key in told), None)
    return None if baseline is None else -float(shift(str(baseline).replace('.', '')))


def _scale(asset: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return scale and offset that an asset states; None if it states none."""
    raster = _raster(asset)
    for prefix in ('', 'raster:'):
        if f'{prefix}offset' in raster and raster.get(f'{prefix}scale'):
            scale, offset = float(raster[f'{prefix}scale']), float(raster[f'{prefix}offset'])
            if not (math.isfinite(scale) and math.isfinite(offset)):
                raise ValueError(f'its scale is {scale} and its offset {offset}, expected finite numbers')
            return scale, offset
    return None


def _nodata(item: Any, name: str) -> tuple[float, ...]:
    """Return what an item states to be nodata of an asset, and 0 of what Sentinel-2 measures, as ESA defines it."""
    asset = item.assets[name].extra_fields
    raster = _raster(asset)
    stated = [float(raster[key]) for key in ('nodata', 'raster:nodata') if raster.get(key) is not None]
    is_zero = _is_sentinel2(item) and (_is_spectral(asset, name) or _offset(item, name))
    return (*stated, *([0.0] if is_zero else []))


def _raster(asset: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an asset states of the pixels of its first band."""
    bands = asset.get('raster:bands') or asset.get('bands') or [{}]
    return {**asset, **bands[0]}


def _is_spectral(asset: Mapping[str, Any], name: str) -> bool:
    """Return whether an asset of Sentinel-2 is a band: classes have no wavelength, pictures have several."""
    bands = asset.get('eo:bands') or asset.get('bands') or asset.get('raster:bands') or [{}]
    colours = [key for band in bands for key in band if key.endswith('common_name')]
    return bool(re.match(r'B\d', name)) or len(colours) == 1


def _located(asset: Any, item: Any, path: Path, allow_outside: bool) -> str:
    """Return where an asset lies; what is relative is so to its item, or else to the collection.

    Raises:
        ValueError: If that is a local file outside the folder of the collection and those are not allowed, or
            neither a file nor an address.
    """
    absolute = asset.get_absolute_href() if item.get_self_href() else None
    href = str(absolute or asset.href)
    scheme = re.match(r'([A-Za-z][A-Za-z0-9+.-]*)://', href)
    if scheme and scheme[1].lower() in SCHEMES:
        handler = SCHEMES[scheme[1].lower()]
        return handler + href[len(scheme[0]) :] if handler else as_gdal(href)
    expected = f'expected a file below {path.parent}, or an address of one of {[*SCHEMES]}'
    local = href
    if scheme:
        parts = urlsplit(href)
        if scheme[1].lower() != 'file' or parts.netloc not in ('', 'localhost'):
            raise ValueError(f'its asset {href!r} is neither, {expected}')
        local = url2pathname(parts.path)
    if local.startswith('/vsi'):
        raise ValueError(f'its asset {href!r} is a path of GDAL, {expected}')
    folder = os.path.abspath(path.parent)
    place = os.path.normpath(os.path.join(folder, local))
    if not allow_outside and os.path.commonpath([folder, place]) != folder:
        raise ValueError(f'its asset {href!r} lies outside the folder of the items, {expected}; or allow_outside: true')
    return place if os.path.isabs(local) else os.path.normpath(path.parent / local)
