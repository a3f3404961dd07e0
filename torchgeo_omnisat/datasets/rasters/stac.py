# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Time series from the items of a STAC ItemCollection."""

import math
import os
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torchgeo.datasets.utils import Path as PathLike
from torchgeo.datasets.utils import lazy_import

from ...modality import Kind, Unit
from ...utils.reading import load_json
from ...utils.signatures import refuse_unexpected, with_arguments_of
from ..common.arguments import state_facts
from ..io.decoding import Decoding
from ..io.headers import Header
from .frames import Clouds, as_gdal
from .sentinel import shift, stated_offsets
from .timeseries import RasterTimeSeries

#: Properties of an item that state that the offset is already subtracted, and its processing baseline.
APPLIED = ('earthsearch:boa_offset_applied', 'sentinel:boa_offset_applied')
BASELINES = ('s2:processing_baseline', 'sentinel:processing_baseline', 'processing:version')

#: URL schemes of assets, and GDAL's virtual file system of each; that of HTTP is set by :func:`.as_gdal`.
SCHEMES = {'https': '', 'http': '', 's3': '/vsis3/', 'gs': '/vsigs/', 'az': '/vsiaz/'}


class STACTimeSeries(RasterTimeSeries):
    """Dataset of time series from the assets of local or remote STAC items.

    Each band is a separate asset. Remote files are read by range requests, without a download of whole
    files. Configure credentials and caches through GDAL (``AWS_*``, ``GDAL_HTTP_*``, ``VSI_CACHE``), as
    environment variables or in a ``rasterio.Env``. Requires pystac: ``pip install torchgeo_omnisat[stac]``.

    Assets may be URLs (``https://``, ``s3://``, ``gs://``, ``az://``) or local paths, also as ``file://``. Local
    files must be in the folder of the collection, unless *allow_outside* is True. Paths of GDAL's virtual file
    systems (``/vsi``) are not allowed.

    Sentinel-2 images of all processing baselines are harmonized as in :class:`.Sentinel2TimeSeries`. The
    offset that is added since 04.00 is taken from the first of these that an item has:
    ``boa_offset_applied`` (of ``earthsearch`` or ``sentinel``; true if it is already subtracted), ``offset``
    and ``scale`` of the raster extension, and ``s2:processing_baseline`` or ``processing:version``. Some
    catalogues have errors in the first, so check images of 2022.

    Sentinel-2 items are optical, in digital numbers. Items with the SAR extension are radar. Central
    wavelengths are those of the EO extension. The unit of other items is unknown.
    """

    filename_regex = '(?P<date>.*)'
    separate_files = True

    @with_arguments_of(
        RasterTimeSeries,
        without=('all_bands', 'filename_glob', 'filename_regex', 'date_format', 'separate_files', 'stack'),
        is_last=True,
    )
    def __init__(
        self,
        paths: PathLike,
        *,
        bands: Sequence[str] = (),
        assets: Mapping[str, str] | None = None,
        name: str = 's2',
        temporal: bool = True,
        nodata: float | Sequence[float] | None = None,
        replace_nodata: float | Sequence[float] | None = None,
        kind: Kind | None = None,
        unit: Unit = 'unknown',
        wavelengths: Sequence[float] | Mapping[str, float] | None = None,
        decibels: bool | None = None,
        clouds: Clouds | Mapping[str, Any] | None = None,
        harmonize: bool = True,
        allow_outside: bool = False,
        **kwargs: Any,
    ) -> None:
        """Initialize the dataset from the items, and the header of the first band of each.

        Args:
            paths: JSON file of the ItemCollection.
            bands: Bands to read, in this order.
            assets: Asset of each band whose asset has another name.
            name: Name of the modality.
            temporal: Whether the items are a time series; otherwise a sample is one image.
            nodata: One or several nodata values in addition to those that files and items state, and to 0 for
                Sentinel-2.
            replace_nodata: One or several nodata values instead of all of these.
            kind: Kind of the sensor; defaults to that of the items.
            unit: Unit of the pixels; defaults to that of the items.
            wavelengths: Central wavelengths of *bands* in nanometres; defaults to those of the items.
            decibels: True for *kind* ``'radar'`` and *unit* ``'db'``, False for *unit* ``'power'``.
            clouds: Cloud mask of each date: :class:`Clouds` or its arguments.
            harmonize: Whether to subtract the offset that ESA adds to Sentinel-2 since baseline 04.00.
            allow_outside: Whether items may refer to local files outside the folder of *paths*.
            **kwargs: Other arguments of :class:`RasterTimeSeries`.

        Raises:
            DependencyNotFoundError: If pystac is not installed.
            ValueError: If the file is not an ItemCollection, an item lacks an asset or a date, or refers to a
                file outside the folder, or *kind* or *unit* contradict the items.
        """
        refuse_unexpected(STACTimeSeries.__init__, kwargs)
        if not bands:
            raise ValueError(f'bands of {name!r} is empty, expected names of assets')
        mask = None if clouds is None else Clouds.of(clouds)
        self.harmonize = harmonize
        self.collection = Path(str(paths))
        self.assets = dict(assets or {})
        wanted = (*bands, *([mask.band] if mask else ()))
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
            bands=tuple(bands),
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
            clouds=mask,
            allow_outside=allow_outside,
            **kwargs,
        )

    @property
    def files(self) -> list[str]:
        """File of the first band of each item."""
        return sorted(self.items)

    def offsets(self, filepath: str) -> NDArray[np.float32]:
        """Return the offset to add to each band of an item, ``(C, 1, 1)``."""
        of_item, of_file = self.items[filepath].offsets, self.tag_offsets.get(filepath, 0)
        offsets = [of_file if of_item[band] is None else of_item[band] for band in self.bands]
        return np.array(offsets if self.harmonize else [0] * len(offsets), np.float32)[:, None, None]

    def _scale(self, headers: Sequence[Header]) -> None:
        self.tag_offsets = {}
        if all(scene.facts.unit == 'dn' for scene in self.items.values()):
            self.scaled, self.tag_offsets = False, stated_offsets(headers)
        else:
            super()._scale(headers)

    def _stated_scales(self, header: Header) -> tuple[tuple[float, float], ...]:
        scales = [self.items[header.path].scales[band] for band in self.bands]
        if None not in scales:
            return tuple(scale for scale in scales if scale is not None)
        pairs = zip(scales, super()._stated_scales(header), strict=False)
        return tuple(own or scale for own, scale in pairs)

    def decoding(self, filepath: str, band: str | None) -> Decoding:
        """Return nodata, scale and offset of a file, including those that its item states."""
        usual = super().decoding(filepath, band)
        stated = self.items[filepath].nodata.get(band or '', ())
        nodata = usual.nodata if self.replaced_nodata is not None else (*usual.nodata, *stated)
        return usual._replace(nodata=nodata, scale=self.items[filepath].scales.get(band or ''))

    def _filepath_to_timestamp(self, filepath: PathLike) -> tuple[datetime, datetime]:
        day = self.items[str(filepath)].day
        return day, day + pd.Timedelta(days=1) - pd.Timedelta(microseconds=1)

    def _update_filepath(self, band: str, filepath: str) -> str:
        return self.items[filepath].files[band]


class Facts(NamedTuple):
    """Kind, unit, and central wavelength of each band in nanometres that an item states."""

    kind: Kind | None = None
    unit: Unit = 'unknown'
    wavelengths: tuple[float | None, ...] = (None,)


class Scene(NamedTuple):
    """Metadata of an item: date; file, offset, nodata values and scale by band; and facts."""

    day: pd.Timestamp
    files: dict[str, str]
    offsets: dict[str, float | None]
    nodata: dict[str, tuple[float, ...]]
    scales: dict[str, tuple[float, float] | None]
    facts: Facts


def _items(path: Path, assets: Mapping[str, str], allow_outside: bool) -> dict[str, Scene]:
    """Return the scene of each item, keyed by the file of its first band."""
    pystac = lazy_import('pystac')
    try:
        collection = pystac.ItemCollection.from_dict(load_json(path))
    except Exception as error:  # any error of JSON and pystac
        raise ValueError(f'{path} cannot be read ({error}), expected a STAC ItemCollection') from error
    scenes_by_path: dict[str, Scene] = {}
    for item in collection:
        try:
            scene = _scene(item, assets, path, allow_outside)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
            raise ValueError(f'item {item.id!r} of {path} cannot be used: {error}') from error
        file = next(iter(scene.files.values()))
        other = scenes_by_path.setdefault(file, scene)  # an item that several searches found is read once
        if (other.day, other.files) != (scene.day, scene.files):
            raise ValueError(
                f'items of {path} name the file {file} for {other.day:%Y-%m-%d} and {scene.day:%Y-%m-%d}, or with '
                'other files of other bands, expected a file for each item'
            )
    if not scenes_by_path:
        raise ValueError(f'{path} holds no items, expected a STAC ItemCollection with at least one')
    return scenes_by_path


def _scene(item: Any, assets: Mapping[str, str], path: Path, allow_outside: bool) -> Scene:
    lacking = [asset for asset in assets.values() if asset not in item.assets]
    when = item.datetime or item.common_metadata.start_datetime
    if lacking or when is None:
        what = f'it lacks the assets {lacking}' if lacking else 'it has no date'
        raise ValueError(f'{what}, expected {list(assets.values())} and a datetime')
    if not pd.Timestamp.min.year < when.year < pd.Timestamp.max.year:
        raise ValueError(f'its date is {when.isoformat()}, expected a year from 1678 to 2261')
    if when.tzinfo is not None:  # others are in UTC, not in the time zone of this machine
        when = when.astimezone(UTC).replace(tzinfo=None)
    files = {band: _asset_path(item.assets[asset], item, path, allow_outside) for band, asset in assets.items()}
    return Scene(
        pd.Timestamp(when).normalize(),
        files,
        {band: _offset(item, asset) for band, asset in assets.items()},
        {band: _nodata(item, asset) for band, asset in assets.items()},
        {band: _scale(item.assets[asset].extra_fields) for band, asset in assets.items()},
        _facts(item, list(assets.values())),
    )


def _is_sentinel2(item: Any) -> bool:
    properties = item.properties
    named = any(str(properties.get(key)).lower().startswith('sentinel-2') for key in ('constellation', 'platform'))
    return named or 's2:processing_baseline' in properties


def _facts(item: Any, names: Sequence[str]) -> Facts:
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
    """Return the offset to add to an asset so that Sentinel-2 of all baselines has the same scale.

    None if the item does not state it; then that of the file applies.
    """
    properties, asset = item.properties, item.assets[name].extra_fields
    if not _is_sentinel2(item) or any(properties.get(flag) for flag in APPLIED):
        return 0.0
    scale = _scale(asset)
    if scale is not None and _stated(asset, 'scale') and _stated(asset, 'offset') is not None:
        return float(round(scale[1] / scale[0]))
    if not _is_spectral(asset, name):
        return 0.0
    baseline = next((properties[key] for key in BASELINES if key in properties), None)
    return None if baseline is None else -float(shift(str(baseline).replace('.', '')))


def _scale(asset: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return scale and offset of an asset, 1 and 0 by default; None if it states neither."""
    scale, offset = _stated(asset, 'scale'), _stated(asset, 'offset')
    if not scale and offset is None:
        return None
    scale, offset = float(scale or 1), float(offset or 0)
    if not (math.isfinite(scale) and math.isfinite(offset)):
        raise ValueError(f'its scale is {scale} and its offset {offset}, expected finite numbers')
    return scale, offset


def _stated(asset: Mapping[str, Any], key: str) -> Any:
    raster = _raster(asset)
    return next((raster[name] for name in (key, f'raster:{key}') if raster.get(name) is not None), None)


def _nodata(item: Any, name: str) -> tuple[float, ...]:
    """Return the nodata values of an asset, including 0 for bands of Sentinel-2, as ESA defines it."""
    asset = item.assets[name].extra_fields
    raster = _raster(asset)
    stated = [float(raster[key]) for key in ('nodata', 'raster:nodata') if raster.get(key) is not None]
    is_zero = _is_sentinel2(item) and (_is_spectral(asset, name) or _offset(item, name))
    return (*stated, *([0.0] if is_zero else []))


def _raster(asset: Mapping[str, Any]) -> dict[str, Any]:
    bands = asset.get('raster:bands') or asset.get('bands') or [{}]
    return {**asset, **bands[0]}


def _is_spectral(asset: Mapping[str, Any], name: str) -> bool:
    bands = asset.get('eo:bands') or asset.get('bands') or asset.get('raster:bands') or [{}]
    colours = [key for band in bands for key in band if key.endswith('common_name')]
    return bool(re.match(r'B\d', name)) or len(colours) == 1


def _asset_path(asset: Any, item: Any, path: Path, allow_outside: bool) -> str:
    """Return the path of an asset; a relative one is resolved against its item, or else the collection."""
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
        raise ValueError(f'its asset {href!r} is outside the folder of the items, {expected}; or allow_outside: true')
    return place if os.path.isabs(local) else os.path.normpath(path.parent / local)
