# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Build geodatasets from the settings of a YAML configuration."""

import inspect
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

from torchgeo.datasets import GeoDataset

from ...modality import Kind
from ...utils.checks import check_choice
from ..common.arguments import class_at
from ..io.links import refuse_outside
from ..io.opening import sidecars
from ..rasters.embeddings import AlphaEarthEmbeddings, EmbeddingRasters, TesseraRasters
from ..rasters.frames import is_remote
from ..rasters.netcdf import NetCDFTimeSeries
from ..rasters.sentinel import Sentinel1TimeSeries, Sentinel2TimeSeries
from ..rasters.stac import STACTimeSeries
from ..rasters.timeseries import RasterTimeSeries
from .polygons import TABLES, VECTORS, Polygons

#: Settings that describe a modality, independent of its reader.
FACTS = ('kind', 'unit', 'wavelengths')
#: Settings of labels that are continuous values.
OF_VALUES = ('continuous', 'value_unit')
#: Readers by name.
READERS: dict[str, type[GeoDataset]] = {
    'raster': RasterTimeSeries,
    'sentinel1': Sentinel1TimeSeries,
    'sentinel2': Sentinel2TimeSeries,
    'stac': STACTimeSeries,
    'netcdf': NetCDFTimeSeries,
    'alphaearth': AlphaEarthEmbeddings,
    'tessera': TesseraRasters,
    'embeddings': EmbeddingRasters,
}


def image_dataset(
    name: str, settings: Mapping[str, Any], root: Path, readers: Mapping[str, type[GeoDataset]] = READERS
) -> GeoDataset:
    """Build the image dataset of a modality.

    *settings* are ``path`` relative to *root*, or a list of paths or URLs, and the arguments of a reader. ``kind`` is
    the name of a reader, or the kind of the modality, such as ``'radar'``; ``reader`` then selects a reader.
    Alternatively ``class_path`` and ``init_args`` of any geodataset.
    """
    settings = {key: value for key, value in settings.items() if key != 'gsd'}
    if 'class_path' in settings:
        return _of_class(name, settings, root)
    reader = settings.pop('reader', 'raster')
    if settings.get('kind') in readers:
        reader = settings.pop('kind')
    kind = settings.get('kind')
    check_choice(**{f'reader of {name!r}': (reader, readers)})
    if kind not in (None, *get_args(Kind)):
        raise ValueError(f'kind of {name!r} is {kind!r}, expected one of {[*readers, *get_args(Kind)]}')
    if reader not in ('sentinel1', 'sentinel2'):
        settings['name'] = name
    return _instantiate(name, readers[reader], settings, root)


def facts_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of a modality that are set next to the ``class_path`` of its dataset."""
    return {key: settings[key] for key in FACTS if key in settings} if 'class_path' in settings else {}


def label_dataset(
    settings: Mapping[str, Any],
    root: Path,
    labels: Sequence[str] = (),
    ignore_index: int | None = None,
    reader: type[GeoDataset] = RasterTimeSeries,
) -> GeoDataset:
    """Build a label dataset.

    *settings* are as for images, with ``classes`` and ``other`` to map codes to classes. ``kind`` or ``reader`` is
    ``'raster'`` or ``'netcdf'``. For polygons and points, ``path`` is a vector file, a table of points, or a directory
    of them, and ``column``, ``outside`` and ``buffer`` are arguments of :class:`.Polygons`.
    """
    settings = {key: value for key, value in settings.items() if key not in ('gsd', 'date_range', *OF_VALUES)}
    if 'class_path' not in settings and _is_vector(settings, root):
        return _instantiate('mask', Polygons, {'labels': labels, 'ignore_index': ignore_index, **settings}, root)
    settings = {key: value for key, value in settings.items() if key not in ('classes', 'other')}
    if 'class_path' in settings:
        return _of_class('mask', settings, root)
    readers = {'raster': reader} | ({'netcdf': NetCDFTimeSeries} if reader is RasterTimeSeries else {})
    chosen = settings.pop('kind', settings.pop('reader', 'raster'))
    if chosen not in readers:
        raise ValueError(f'kind of the mask is {chosen!r}, expected one of {list(readers)}, or none for polygons')
    return _instantiate('mask', readers[chosen], {'name': 'mask', 'temporal': False, **settings}, root)


def _is_vector(settings: Mapping[str, Any], root: Path) -> bool:
    path = settings.get('path', '')
    several = [str(one) for one in (path if isinstance(path, list | tuple) else [path])]
    if 'column' in settings or any(one.lower().endswith((*VECTORS, *TABLES)) for one in several):
        return True
    located = [root / Path(one).expanduser() for one in several]
    folders = [path for path in located if path.is_dir()]
    inside = {file.suffix.lower() for folder in folders for file in folder.rglob('*')}
    return bool(inside & set(VECTORS)) and not inside & {'.tif', '.tiff', '.vrt', '.img', '.jp2'}


def _instantiate(name: str, kind: Any, settings: Mapping[str, Any], root: Path) -> GeoDataset:
    """Create an instance of a class after its arguments have been checked."""
    settings = dict(settings)
    known = set(inspect.signature(kind.__init__).parameters) - {'self', 'paths'} | {'path'}
    known -= {*FACTS} if name == 'mask' else set()
    if 'path' not in settings or (unknown := set(settings) - known):
        wrong = 'no path' if 'path' not in settings else f'{sorted(unknown)}'
        known |= set() if name == 'mask' else {'gsd', 'kind', 'reader'}
        near = [close for key in sorted(set(settings) - known) for close in get_close_matches(key, known, 1)]
        wrong += f' (did you mean {", ".join(map(repr, near))}?)' if near else ''
        raise ValueError(f'settings of {name!r} have {wrong}, expected path and some of {sorted(known - {"path"})}')
    path = settings.pop('path')
    several = path if isinstance(path, list | tuple) else [path]
    beyond = [is_remote(str(one)) or str(one).startswith('/vsi') for one in several]  # Path would change URLs
    located = [str(one if far else root / Path(one).expanduser()) for one, far in zip(several, beyond, strict=True)]
    for one, far in zip(located, beyond, strict=True):
        if not far and not Path(one).exists():
            if not root.exists():
                raise FileNotFoundError(f'root is {str(root)!r}, which does not exist, expected a folder of files')
            raise FileNotFoundError(
                f'path of {name!r} is {one!r}, which does not exist, expected a folder or file below root '
                f'{str(root)!r}' + '; set modalities of the data to use the other sensors only' * (name != 'mask')
            )
    allow_outside = settings.get('allow_outside', False)
    if not isinstance(allow_outside, bool):
        raise ValueError(f'allow_outside of {name!r} is {allow_outside!r}, expected true or false')
    for one, far in zip(located, beyond, strict=True):
        if not far:
            refuse_outside(one, allow_outside=allow_outside, within=(root, *located))
    if kind is not STACTimeSeries:
        settings['allow_outside'] = True  # the links were checked; they may lead to other places in root
    dataset: GeoDataset = kind(paths=located if isinstance(path, list | tuple) else located[0], **settings)
    return dataset


def _of_class(name: str, settings: Mapping[str, Any], root: Path) -> GeoDataset:
    """Create an instance of any geodataset; its paths are relative to *root*."""
    kind = class_at(settings['class_path'], GeoDataset, repr(name))
    if unknown := set(settings) - {'class_path', 'init_args'} - (set() if name == 'mask' else {*FACTS}):
        raise ValueError(f'settings of {name!r} have {sorted(unknown)} beside class_path, expected init_args')
    arguments = dict(settings.get('init_args') or {})
    if isinstance(arguments.get('paths'), str) and not is_remote(arguments['paths']):
        arguments['paths'] = str(root / Path(arguments['paths']).expanduser())
    with sidecars():
        dataset: GeoDataset = kind(**arguments)
    return dataset
