# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Zarr store of an embedding map, in version 1 of the convention ``geoemb:``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio

from ... import __version__
from ...grid import Grid
from ...utils.tensors.quantization import FORMULA, NODATA, SCHEME
from ..raster import BLOCK, CACHE

if TYPE_CHECKING:
    from .writer import EmbeddingBands

#: Dimension names of the array of embeddings.
DIMENSIONS = ('band', 'y', 'x')
#: Reference of the architecture, as ``geoemb:model`` must be a URL. The digest of the weights is another attribute.
MODEL_URL = 'https://arxiv.org/abs/2404.08351'
#: URI of a sensor, where the URLs of the source datasets are unknown; ``geoemb:source_data`` must have one at least.
SENSOR_URI = 'urn:x-sensor:{}'
#: Registration of the conventions of the attributes.
CONVENTIONS = [
    {
        'schema_url': f'https://raw.githubusercontent.com/{repository}/refs/tags/v1/schema.json',
        'spec_url': f'https://github.com/{repository}/blob/v1/README.md',
        'uuid': uuid,
    }
    for repository, uuid in (
        ('geo-embeddings/embeddings-zarr-convention', '61c12cc5-0e28-4056-999a-480cf3fb7e4c'),
        ('zarr-conventions/spatial', '689b58e2-cf7b-45e0-9fff-9cfc0883d6b4'),
        ('zarr-experimental/geo-proj', 'f17cb550-5864-4468-aeb7-f3180cfb622f'),
    )
]


def require_zarr() -> ModuleType:
    """Import zarr.

    Raises:
        ImportError: If zarr 3 or later is not installed.
    """
    try:
        import zarr
    except ImportError as error:
        raise ImportError(f"a Zarr store requires zarr: pip install 'torchgeo_omnisat[zarr]' ({error})") from error
    if not hasattr(zarr, 'create_array'):
        raise ImportError(f'zarr {zarr.__version__} is installed, expected 3.0 or later, which writes Zarr format 3')
    return zarr


def check_zarr_output(path: Path) -> None:
    """Raise ValueError if *path* exists and is not a Zarr store, which would be replaced."""
    if path.exists() and not (path / 'zarr.json').is_file():
        raise ValueError(f"zarr is True, but '{path}' exists and is not a Zarr store: expected another output")


def write_zarr(
    path: Path,
    source: Path,
    grid: Grid,
    bands: 'EmbeddingBands',
    tags: Mapping[str, str],
    source_data: Sequence[str] = (),
) -> None:
    """Copy an embedding map to a Zarr store (format 3), block by block.

    The group holds the int8 arrays ``embeddings`` ``(band, y, x)``, ``sensors`` ``(y, x)`` and, if there are subsets,
    ``cosine`` ``(subset, y, x)``. A chunk has all dimensions of 256 x 256 pixels. Chunks of nodata are not stored.
    ``band``, ``subset``, ``y`` and ``x`` are coordinates, those of pixels their centres. Attributes follow version 1 of
    the conventions ``geoemb:``, ``spatial:`` and ``proj:``. ``_CRS`` and ``grid_mapping`` repeat the CRS for GDAL and
    rioxarray.

    Args:
        path: Folder of the store. It is not written atomically: the caller renames it.
        source: GeoTIFF of :func:`.write_embeddings`.
        grid: Pixel grid of the map.
        bands: Bands of the map.
        tags: Tags of the map.
        source_data: URLs of the source datasets; defaults to one URN for each sensor.
    """
    zarr: Any = require_zarr()
    group = zarr.open_group(path, mode='w', zarr_format=3, attributes=store_attributes(grid, bands, tags, source_data))
    crs = {'_CRS': {'wkt': grid.crs.to_wkt()}, 'grid_mapping': 'spatial_ref'}
    size, block = (grid.height, grid.width), (BLOCK, BLOCK)

    def array(name: str, shape: tuple[int, ...], chunks: tuple[int, ...], **attributes: Any) -> Any:
        names = DIMENSIONS[-len(shape) :] if name != 'cosine' else ('subset', *DIMENSIONS[1:])
        return group.create_array(
            name, shape=shape, chunks=chunks, dtype='int8', fill_value=NODATA, dimension_names=names,
            attributes={**crs, **attributes},
        )  # fmt: skip

    formula = {'quantization': SCHEME, 'formula': FORMULA}
    embeddings = array('embeddings', (bands.dim, *size), (bands.dim, *block), **formula)
    sensors = array('sensors', size, block, **{f'BIT_{bit}': name for bit, name in enumerate(bands.bits)})
    cosines: Any = bands.cosines and array('cosine', (len(bands.cosines), *size), (1, *block), formula='q / 127')
    _write_coordinates(group, grid, bands)
    with rasterio.Env(GDAL_CACHEMAX=CACHE), rasterio.open(source) as file:
        for _, window in file.block_windows(1):
            rows, columns = window.toslices()
            values = file.read(window=window)
            embeddings[:, rows, columns] = values[: bands.dim]
            sensors[rows, columns] = values[-1]
            if bands.cosines:
                cosines[:, rows, columns] = values[bands.dim : -1]


def store_attributes(
    grid: Grid, bands: 'EmbeddingBands', tags: Mapping[str, str], source_data: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the attributes of the group, see :func:`write_zarr` for the arguments."""
    code = grid.crs.to_authority()
    return {
        'zarr_conventions': CONVENTIONS,
        'geoemb:type': 'pixel',
        'geoemb:dimensions': bands.dim,
        'geoemb:model': MODEL_URL,
        'geoemb:source_data': list(source_data) or [SENSOR_URI.format(name) for name in bands.modalities],
        'geoemb:data_type': bands.dtype,
        'geoemb:gsd': float(tags['EMBEDDING_GSD']),
        'geoemb:build_version': __version__,
        'geoemb:quantization': {
            'method': f'{SCHEME}: {FORMULA}',
            'original_dtype': 'float32',
            'quantized_dtype': bands.dtype,
        },
        **({'proj:code': ':'.join(code)} if code else {'proj:wkt2': grid.crs.to_wkt()}),
        'spatial:dimensions': list(DIMENSIONS[1:]),
        'spatial:transform': list(grid.transform)[:6],
        'spatial:shape': [grid.height, grid.width],
        'spatial:bbox': list(grid.bounds),
        'spatial:registration': 'pixel',
        **{key.lower(): value for key, value in tags.items() if key not in ('FILES', 'TIFFTAG_SOFTWARE')},
    }


def _write_coordinates(group: Any, grid: Grid, bands: 'EmbeddingBands') -> None:
    a, _, x, _, e, y = list(grid.transform)[:6]
    values = {
        'x': x + a * (np.arange(grid.width) + 0.5),
        'y': y + e * (np.arange(grid.height) + 0.5),
        'band': np.arange(bands.dim),
    }
    if bands.cosines:
        values['subset'] = np.arange(len(bands.cosines))
    for name, value in values.items():
        labels = {'names': list(bands.cosines)} if name == 'subset' else {}
        made = group.create_array(
            name, shape=value.shape, dtype=value.dtype, dimension_names=(name,), attributes=labels
        )
        made[:] = value
    wkt = grid.crs.to_wkt()
    reference = group.create_array('spatial_ref', shape=(), dtype='int64', attributes={'crs_wkt': wkt})
    reference[...] = 0
