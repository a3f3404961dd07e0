# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""``~`` in a path is the home directory, on the command line, in configurations and in Python."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import shapely
import torch

from torchgeo_omnisat import plugin
from torchgeo_omnisat.__main__ import main
from torchgeo_omnisat.commands import reproduce
from torchgeo_omnisat.datamodules.geo import read_area
from torchgeo_omnisat.datasets import ShardedDataset
from torchgeo_omnisat.datasets.chips.splits import split_chips
from torchgeo_omnisat.datasets.geo.config import image_dataset
from torchgeo_omnisat.prediction import GeoTIFFWriter
from torchgeo_omnisat.prediction.embeddings.writer import EmbeddingWriter
from torchgeo_omnisat.tasks.checkpoints import limited_size, read_checkpoint

from .geo_tree import UTM, write


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Home directory, below which a path without expansion is not found."""
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(tmp_path / 'here')
    monkeypatch.setenv('HOME', str(tmp_path))
    return tmp_path


def test_arguments_of_a_command(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def available(data: Any, root: str) -> bool:
        given['root'] = root
        raise SystemExit

    monkeypatch.setattr(reproduce, 'available', available)
    with pytest.raises(SystemExit):
        main(['reproduce', '--data=pastis100', '--root=~/data', '--output', 'out'])
    assert given['root'] == str(home / 'data')


def test_configuration(home: Path) -> None:
    (home / 'a.yaml').write_text('model: omnisat\n')
    assert plugin.requested('model', ['fit', '--config=~/a.yaml']) == 'omnisat'


def test_checkpoint(home: Path) -> None:
    torch.save({'weight': torch.ones(2)}, home / 'a.pt')
    assert read_checkpoint('~/a.pt')[0].keys() == {'weight'}
    with pytest.raises(ValueError, match=r'a\.pt'), limited_size('~/a.pt'):
        torch.nn.Linear(2**13, 2**12)


def test_outputs(home: Path) -> None:
    trainer: Any = SimpleNamespace(default_root_dir='~/logs')
    assert GeoTIFFWriter('~/map.tif')._output_path(trainer) == home / 'map.tif'
    assert GeoTIFFWriter()._output_path(trainer).is_relative_to(home / 'logs')
    fields = GeoTIFFWriter(fields='~/fields.gpkg')._fields_path(Path('map.tif'))
    assert fields == home / 'fields.gpkg'
    assert EmbeddingWriter(projection='~/a.npz')._projection_files() == [home / 'a.npz']


def test_paths_of_rasters_and_areas(home: Path) -> None:
    write(home / 's2/a_20210301.tif', np.ones((1, 4, 4), np.uint8), bands=('B04',))
    dataset: Any = image_dataset('s2', {'path': '~/s2', 'gsd': 10, 'kind': 'optical'}, Path('root'))
    assert dataset.files == [str(home / 's2/a_20210301.tif')]
    square = shapely.box(0, 0, 10, 10)
    gpd.GeoDataFrame(geometry=[square], crs=UTM).to_file(home / 'area.gpkg')
    assert read_area('~/area.gpkg', UTM, Path('root')).equals(square)


def test_lists_of_chips(home: Path) -> None:
    (home / 'a.csv').write_text('name,split\na,train\n')
    (home / 'a.txt').write_text('a\n')
    for split in {'file': '~/a.csv'}, {'files': ['~/a.txt', None, None]}:
        parts = split_chips({'a': []}, np.array([shapely.Polygon()]), split, Path('root'))
        assert parts == {'train': ['a'], 'val': [], 'test': []}


def test_shards(home: Path) -> None:
    band = {'name': 's2', 'bands': ['B04'], 'gsd': 10.0, 'temporal': True}
    content = {'shards': {'train': [1]}, 'labels': None, 'modalities': [band]}
    (home / 'shards.json').write_text(json.dumps(content))
    assert ShardedDataset('~').path == home
