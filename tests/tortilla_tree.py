# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Writing: synthetic datasets of GEO-Bench-2 into tortilla files, by the published layout."""

import io
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as arrow
from pyarrow import parquet
from rasterio.io import MemoryFile
from rasterio.transform import Affine

Row = tuple[Mapping[str, Any], bytes]
MONTHS = ('September', 'October', 'November', 'July')
SPLITS = ('train', 'train', 'train', 'validation', 'test')


def tortilla(rows: Sequence[Row]) -> bytes:
    """A container of files with their columns: header, files, table."""
    offset, table = 200, []
    for fields, content in rows:
        table.append({**fields, 'tortilla:offset': offset, 'tortilla:length': len(content)})
        offset += len(content)
    memory = io.BytesIO()
    parquet.write_table(arrow.Table.from_pylist(table), memory)
    footer = memory.getvalue()
    header = b'#y' + struct.pack('<QQQ', offset, len(footer), 1)
    return header.ljust(200, b'\0') + b''.join(content for _, content in rows) + footer


def row(name: str, form: str, split: str, content: bytes, **fields: Any) -> Row:
    """A row of the table and the file."""
    return {
        'tortilla:id': name,
        'tortilla:file_format': form,
        'tortilla:data_split': split,
        'add_test_split': False,
        **fields,
    }, content


def hdf5(array: np.ndarray) -> bytes:
    """An HDF5 file with an array."""
    memory = io.BytesIO()
    with h5py.File(memory, 'w') as file:
        file.create_dataset('data', data=array, compression='gzip')
    return memory.getvalue()


def geotiff(array: np.ndarray, gsd: float = 10.0) -> bytes:
    """A GeoTIFF with all bands of an array."""
    count, height, width = array.shape
    profile = {'driver': 'GTiff', 'count': count, 'height': height, 'width': width, 'dtype': array.dtype}
    with MemoryFile() as memory:
        with memory.open(**profile, crs='EPSG:25832', transform=Affine(gsd, 0, 5e5, 0, -gsd, 5.8e6)) as target:
            target.write(array)
        return memory.read()


def pastis(rng: np.random.Generator, number: int, split: str, size: int) -> Row:
    """A sample of PASTIS; the fourth date of Sentinel-2 is before the third, and its second is nodata."""
    days = [20180920, 20180925, 20190301, 20181010]
    shape = (len(days), 10, size, size)
    s2 = rng.integers(100, 4000, shape).astype(np.int16)
    s2[1] = -10000
    parts = [row('s2', 'HDF5', split, hdf5(s2), dates=days)]
    for name in ('s1a', 's1d'):
        image = rng.normal(-12, 2, (3, 3, size, size)).astype(np.float16)
        parts.append(row(name, 'HDF5', split, hdf5(image), dates=[20180901, 20180913, 20180925]))
    mask = rng.integers(0, 20, (3, size, size)).astype(np.uint8)
    parts += [row('semantic', 'HDF5', split, hdf5(mask), dates=[])]
    parts += [row('instance', 'HDF5', split, hdf5(np.zeros((size, size), np.int32)), dates=[])]
    told = {'tile': 't30uxv', 'lon': 1.5, 'lat': 46.0, 'patch_id': str(10000 + number), 'dates': days}
    return row(f'sample_{number}', 'TORTILLA', split, tortilla(parts), **told)


def treesatai(rng: np.random.Generator, number: int, split: str, size: int) -> Row:
    """A plot of TreeSatAI; the Sentinel images are enlarged, Sentinel-1 is cast to unsigned integers."""
    aerial = rng.integers(1, 255, (4, 304, 304)).astype(np.uint8)
    s1 = np.trunc(rng.normal(-12, 2, (3, 6, 6))).astype(np.int16).view(np.uint16)
    s2 = rng.integers(100, 4000, (12, 6, 6)).astype(np.uint16)
    place = np.arange(304) * 6 // 304
    labels = {'species_labels': [('Abies', 'Tilia'), ('Quercus',)][number % 2], 'dist_labels': [0.5]}
    parts = [row('aerial', 'GTiff', split, geotiff(aerial, 0.2), **labels)]
    for name, image in (('s1', s1), ('s2', s2)):
        parts.append(row(name, 'GTiff', split, geotiff(image[:, place][:, :, place], 0.2), **labels))
    return row(f'sample_{number}', 'TORTILLA', split, tortilla(parts), **labels)


def biomassters(rng: np.random.Generator, number: int, split: str, size: int) -> Row:
    """A sample of BioMassters: four months of Sentinel-1, two of Sentinel-2; every other one lacks an orbit."""
    parts = []
    for month in MONTHS:
        image = rng.normal(-12, 2, (4, size, size)).astype(np.float32)
        if number % 2 == 0:
            image[2:] = -9999
        parts.append(row(f'{number}_S1_{month}', 'GTiff', split, geotiff(image), modality='S1', month=month))
    for month in MONTHS[1:3]:
        image = rng.integers(1, 4000, (11, size, size)).astype(np.uint16)
        image[:10, 0, 0] = 0
        parts.append(row(f'{number}_S2_{month}', 'GTiff', split, geotiff(image), modality='S2', month=month))
    biomass = rng.uniform(0, 300, (1, size, size)).astype(np.float32)
    parts.append(row(f'{number}_AGBM', 'GTiff', split, geotiff(biomass), modality='AGBM', month=None))
    return row(f'sample_{number}', 'TORTILLA', split, tortilla(parts))


SAMPLES = {'pastis': pastis, 'treesatai': treesatai, 'biomassters': biomassters}


def write_geobench2(root: Path, name: str, size: int = 16, seed: int = 0, parts: int = 1) -> Path:
    """Write a dataset of five samples into one file or several."""
    rng = np.random.default_rng(seed)
    rows = [SAMPLES[name](rng, number, split, size) for number, split in enumerate(SPLITS)]
    root.mkdir(parents=True, exist_ok=True)
    for part in range(parts):
        suffix = f'.{part:04d}.part' if parts > 1 else ''
        (root / f'geobench_{name}{suffix}.tortilla').write_bytes(tortilla(rows[part::parts]))
    return root
