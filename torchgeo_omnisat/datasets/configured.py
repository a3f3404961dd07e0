# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Configured: geodatasets from plain settings, as a YAML file has them."""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torchgeo.datasets import GeoDataset

from .arguments import class_at
from .frames import is_remote
from .polygons import Polygons
from .raster import RasterTimeSeries
from .sentinel import Sentinel1TimeSeries, Sentinel2TimeSeries
from .stac import STACTimeSeries

#: Readers by name.
KINDS: dict[str, type[GeoDataset]] = {
    'raster': RasterTimeSeries,
    'sentinel1': Sentinel1TimeSeries,
    'sentinel2': Sentinel2TimeSeries,
    'stac': STACTimeSeries,
}
#: What a file of polygons may be called.
VECTORS = ('.gpkg', '.geojson', '.json', '.shp', '.parquet', '.fgb')


def image_dataset(name: str, settings: Mapping[str, Any], root: Path) -> GeoDataset:
    """A dataset of images.

    Args:
        name: Name of the modality.
        settings: ``path``, below *root*, or a list of them or of URLs; ``kind``, one of
            ``'raster'``, ``'sentinel2'``, ``'sentinel1'`` and ``'stac'``, and the arguments of
            its class. Or ``class_path`` and ``init_args`` of any geodataset.
        root: Directory of the data.

    Raises:
        ValueError: If there is no such setting or class.
    """
    settings = {key: value for key, value in settings.items() if key != 'gsd'}
    if 'class_path' in settings:
        return _of_class(name, settings, root)
    kind = settings.pop('kind', 'raster')
    if kind not in KINDS:
        raise ValueError(f'kind of {name!r} is {kind!r}, expected one of {list(KINDS)}')
    if kind == 'raster':
        settings['name'] = name
    return _made(name, KINDS[kind], settings, root)


def label_dataset(settings: Mapping[str, Any], root: Path, labels: Sequence[str] = ()) -> GeoDataset:
    """A dataset of labels.

    Args:
        settings: As those of images; for polygons ``path`` is a vector file, or a directory
            of them, and ``column`` and ``outside`` are those of :class:`.Polygons`.
        root: Directory of the data.
        labels: Names of the classes.
    """
    settings = {key: value for key, value in settings.items() if key not in ('gsd', 'date_range')}
    if 'class_path' in settings:
        return _of_class('mask', settings, root)
    if 'column' in settings or str(settings.get('path', '')).lower().endswith(VECTORS):
        return _made('mask', Polygons, {'labels': labels, **settings}, root)
    return _made('mask', RasterTimeSeries, {'name': 'mask', 'temporal': False, **settings}, root)


def _made(name: str, kind: Any, settings: Mapping[str, Any], root: Path) -> GeoDataset:
    """An instance of a class, whose arguments are checked first."""
    settings = dict(settings)
    known = set(inspect.signature(kind.__init__).parameters) - {'self', 'paths'} | {'path'}
    if 'path' not in settings or (unknown := set(settings) - known):
        wrong = 'no path' if 'path' not in settings else f'{sorted(unknown)}'
        known |= set() if name == 'mask' else {'gsd', 'kind'}
        raise ValueError(f'settings of {name!r} have {wrong}, expected path and some of {sorted(known - {"path"})}')
    path = settings.pop('path')
    several = path if isinstance(path, list | tuple) else [path]
    beyond = [is_remote(str(one)) or str(one).startswith('/vsi') for one in several]  # what GDAL opens, a Path spoils
    located = [str(one if far else root / one) for one, far in zip(several, beyond, strict=True)]
    for one, far in zip(located, beyond, strict=True):
        if not far and not Path(one).exists():
            raise FileNotFoundError(
                f'path of {name!r} is {one!r}, which does not exist, expected a folder or file below root {str(root)!r}'
            )
    dataset: GeoDataset = kind(paths=located if isinstance(path, list | tuple) else located[0], **settings)
    return dataset


def _of_class(name: str, settings: Mapping[str, Any], root: Path) -> GeoDataset:
    """An instance of any geodataset; paths among its arguments are below *root*."""
    kind = class_at(settings['class_path'], GeoDataset, repr(name))
    arguments = dict(settings.get('init_args') or {})
    if isinstance(arguments.get('paths'), str) and not is_remote(arguments['paths']):
        arguments['paths'] = str(root / arguments['paths'])
    dataset: GeoDataset = kind(**arguments)
    return dataset
