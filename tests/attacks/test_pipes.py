# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Named pipes in the place of files: opening one would block forever."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import pytest
from rasterio.errors import RasterioError

from torchgeo_omnisat.datamodules.common.statistics import load_statistics, read_statistics
from torchgeo_omnisat.datamodules.geo import read_polygons
from torchgeo_omnisat.datasets.chips.splits import _lines, _read_table
from torchgeo_omnisat.datasets.common.integrity import Expected, Report, _array_header, _hdf5_header, _label_range
from torchgeo_omnisat.datasets.flair import read_products
from torchgeo_omnisat.datasets.flairhub import _rows
from torchgeo_omnisat.datasets.geo.polygons import Polygons
from torchgeo_omnisat.datasets.io.files import extract_directory, open_array, read_json, read_raster
from torchgeo_omnisat.datasets.io.headers import read_header
from torchgeo_omnisat.datasets.io.opening import open_raster
from torchgeo_omnisat.datasets.pastis import read_index
from torchgeo_omnisat.datasets.rasters.cf import open_cube
from torchgeo_omnisat.datasets.rasters.products import archive_files
from torchgeo_omnisat.datasets.rasters.stac import STACTimeSeries
from torchgeo_omnisat.datasets.shards import check_index, read_description
from torchgeo_omnisat.datasets.treesatai import listed, open_series
from torchgeo_omnisat.models.encoders.weights import published
from torchgeo_omnisat.tasks.checkpoints import read_checkpoint, read_config, read_hyper_parameters
from torchgeo_omnisat.utils.reading import load_json


@pytest.fixture(autouse=True)
def guard() -> Iterator[None]:
    """Fail after seconds instead of blocking."""

    def stop(*args: Any) -> None:
        pytest.fail('opening a named pipe blocks')

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


def of_series(path: Path) -> None:
    with open_series(path):
        pass


READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    'json': ('a.json', load_json),
    'object': ('a.json', lambda path: read_json(path, 'an object')),
    'report': ('a.json', Report.read),
    'statistics': ('a.json', lambda path: read_statistics(path, 'Fold_1', 2)),
    'array': ('a.npy', lambda path: open_array(path, 'an array')),
    'raster': ('a.tif', lambda path: read_raster(path, 'an image')),
    'header': ('a.tif', lambda path: read_header(str(path))),
    'header of any format': ('a.dat', lambda path: read_header(str(path))),
    'open raster': ('a.tif', lambda path: open_raster(str(path))),
    'series': ('a.h5', of_series),
    'vector': ('a.gpkg', lambda path: read_polygons(path, 'EPSG:4326')),
    'vector of any format': ('a.kml', lambda path: read_polygons(path, 'EPSG:4326')),
    'virtual vector': ('a.vrt', lambda path: read_polygons(path, 'EPSG:4326')),
    'index': ('a.geojson', read_index),
    'table': ('a.gpkg', lambda path: list(_rows(path, 'date'))),
    'polygons': ('a.gpkg', lambda path: Polygons(path, labels=['a'])),
    'points': ('a.csv', lambda path: Polygons(path, labels=['a'])),
    'parquet': ('a.parquet', lambda path: Polygons(path, labels=['a'])),
    'lines': ('a.txt', _lines),
    'split': ('a.csv', lambda path: _read_table(path, 'split')),
    'split of json': ('a.json', lambda path: _read_table(path, 'split')),
    'products': ('a.txt', read_products),
    'names': ('train_filenames.lst', lambda path: listed(path.parent)),
    'archive of a product': ('a.zip', lambda path: archive_files(str(path))),
    'archive': ('a.zip', lambda path: extract_directory(path, 'data')),
    'header of an array': ('a.npy', lambda path: _array_header(Expected(path, None, 'integer'))),
    'header of a series': ('a.h5', lambda path: _hdf5_header(Expected(path, None, 'integer', key='a'))),
    'labels': ('a.npy', lambda path: _label_range(Expected(path, None, 'integer'))),
    'cube': ('a.nc', lambda path: open_cube(str(path))),
    'items': ('a.json', lambda path: STACTimeSeries(path, bands=('x',))),
    'shards': ('shards.json', lambda path: read_description(str(path.parent))),
    'index of shards': ('index.json', lambda path: check_index(str(path.parent))),
    'config': ('config.json', lambda path: read_config(path.parent)),
    'checkpoint': ('a.ckpt', read_checkpoint),
    'weights': ('a.pt', lambda path: published(str(path))),
}


@pytest.mark.parametrize('kind', READERS)
def test_pipe(kind: str, tmp_path: Path) -> None:
    name, read = READERS[kind]
    os.mkfifo(tmp_path / name)
    with pytest.raises((ValueError, RuntimeError, FileNotFoundError, RasterioError)):
        read(tmp_path / name)


def test_pipe_that_is_skipped(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / 'STATISTICS.json')
    assert load_statistics(tmp_path) == {}
    with pytest.raises(ValueError, match='not a regular file'):
        read_hyper_parameters(tmp_path / 'STATISTICS.json')


def test_header_of_another_file(tmp_path: Path) -> None:
    """The header of an array is not that of another file which it links to."""
    with h5py.File(tmp_path / 'other.h5', 'w') as file:
        file['data'] = [1, 2]
    with h5py.File(tmp_path / 'a.h5', 'w') as file:
        file['data'] = h5py.ExternalLink('other.h5', 'data')
    with pytest.raises(LookupError):
        _hdf5_header(Expected(tmp_path / 'a.h5', None, 'integer', key='data'))
