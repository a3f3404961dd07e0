# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Names from files and the command line: they neither steer a terminal nor break a table, a figure or a map."""

import csv
import io
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from matplotlib import pyplot as plt
from pyproj import CRS

from torchgeo_omnisat.__main__ import main
from torchgeo_omnisat.commands import check
from torchgeo_omnisat.datasets.geo.polygons import Polygons
from torchgeo_omnisat.datasets.rasters.timeseries import RasterTimeSeries
from torchgeo_omnisat.evaluation.report import Scored, write_report
from torchgeo_omnisat.evaluation.subsets import SubsetRow
from torchgeo_omnisat.grid import Grid
from torchgeo_omnisat.plugin import requested
from torchgeo_omnisat.prediction.raster import MapBands, draw_overview, write_map
from torchgeo_omnisat.prediction.tiling import Window
from torchgeo_omnisat.prediction.vector import write_parcels
from torchgeo_omnisat.utils.cli.console import printable, say, table_cell
from torchgeo_omnisat.utils.cli.errors import one_line
from torchgeo_omnisat.utils.reading import load_config

NAMES = [
    'a/b', 'a|b', '$x_{$', '$', '\\', '`a`', '<b>', '"a"', "'a'", 'a,b;c', 'a\nb', 'a\tb', '\x1b[31ma', '\x07', '\x00',
    '\x9b2J', '\u202eabc', '\u2028', 'ä', '{}', '%s', '__', '',
]  # fmt: skip
HIDDEN = ['\x1b', '\x07', '\x00', '\x9b', '\u202e', '\u2028', '\r']


@pytest.mark.parametrize('name', NAMES, ids=ascii)
def test_printed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    say(f'{name} of', name, error=True)
    said = capsys.readouterr().err
    assert not set(said) & set(HIDDEN)
    assert said.endswith('\n')
    cell = table_cell(name)
    assert cell.isprintable()
    assert '|' not in cell.replace('\\|', '')
    assert printable('größer') == 'größer'


@pytest.mark.parametrize('encoding', ['ascii', 'latin-1', 'utf-8'])
def test_terminal_of_another_encoding(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr('sys.stdout', stream)
    say('größer \udcfc 雪')
    stream.seek(0)
    assert stream.read().startswith('gr')


def test_error_of_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), one_line('program'):
        raise FileNotFoundError(2, 'No such file', '/data/\x1b]0;owned\x07.tif')
    assert capsys.readouterr().err == (
        "program: FileNotFoundError: [Errno 2] No such file: '/data/\\x1b]0;owned\\x07.tif'\n"
    )


def test_check_of_a_strange_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What check prints has no escapes of a path or a name."""
    root = tmp_path / 'a\x1b[31mb'
    root.mkdir()
    with pytest.raises(SystemExit):
        check.main(['--data', 'PASTISMultimodalDataModule', '--data.root', str(root)])
    said = capsys.readouterr()
    assert '\x1b' not in said.out + said.err
    assert '\\x1b[31mb' in said.err


@pytest.mark.parametrize('name', ['a|b', '$x_{$', 'a\nb', '`a`', '\x1b[31ma', '{}', '"a",b'], ids=ascii)
def test_report(name: str, tmp_path: Path) -> None:
    rows = [SubsetRow('s1+s2', 2, {'mean_iou': 1.0}, 1, 1, 0)]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        write_report([Scored(name, rows), Scored('other', rows)], tmp_path, name, {})
    plt.close('all')
    with (tmp_path / 'robustness.csv').open(encoding='utf-8', newline='') as file:
        table = list(csv.reader(file))
    assert {len(row) for row in table} == {len(table[0])}
    assert [row[0] for row in table[1:]] == [name, 'other']
    lines = (tmp_path / 'robustness.md').read_text(encoding='utf-8').splitlines()
    columns = {line.replace('\\|', '').count('|') for line in lines if line.startswith('|')}
    assert columns == {5}
    assert (tmp_path / 'subsets.png').stat().st_size


@pytest.mark.parametrize('name', NAMES[:-1], ids=ascii)
def test_class_of_a_map(name: str, tmp_path: Path) -> None:
    """Names of classes go into the tags of a map, its legend and its parcels."""
    bands = MapBands([name, 'other'], ['s2'])
    probabilities = np.zeros((2, 16, 16), np.float32)
    probabilities[0, :8], probabilities[1, 8:] = 1, 1
    parts = [(Window(0, 0, 16, 16), bands.encode(probabilities, np.ones((16, 16), np.uint16)))]
    colors = np.array([[255, 0, 0], [0, 0, 255]], np.uint8)
    path = tmp_path / 'map.tif'
    grid = Grid(CRS.from_epsg(32631), rasterio.Affine(10, 0, 600000, 0, -10, 5600000), 16, 16)
    write_map(path, tmp_path / 'scratch.tif', grid, bands, parts, colors)
    with rasterio.open(path) as file:
        assert file.tags(1)['CLASS_0'] == printable(name)
        assert file.descriptions[2] == f'probability {printable(name)}'
    assert write_parcels(path, tmp_path / 'parcels.gpkg', bands.labels, 0.0) == 2
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        draw_overview(path, bands.labels, colors, name).savefig(tmp_path / 'map.png')


LAUGHS = 'a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n' + '\n'.join(
    f'a{n}: &a{n} [{", ".join([f"*a{n - 1}"] * 10)}]' for n in range(1, 10)
)
BOMBS = {
    'laughs': LAUGHS,
    'mappings': '\n'.join(
        ['a0: &a0 {x: 1, y: 2}', *(f'a{n}: &a{n} {{x: *a{n - 1}, y: *a{n - 1}}}' for n in range(1, 40))]
    ),
    'itself': 'a: &a [*a]',
    'deep': '[' * 5000 + ']' * 5000,
    'merge': '\n'.join(
        ['a0: &a0 {x: 1}', *(f'a{n}: &a{n} {{<<: [{", ".join([f"*a{n - 1}"] * 10)}], y{n}: 1}}' for n in range(1, 10))]
    ),
}


@pytest.mark.parametrize('bomb', BOMBS)
def test_yaml(bomb: str, tmp_path: Path) -> None:
    (tmp_path / 'a.yaml').write_text(BOMBS[bomb])
    with pytest.raises(ValueError, match=r'a\.yaml'):
        load_config(BOMBS[bomb], str(tmp_path / 'a.yaml'))
    with pytest.raises(ValueError, match=r'a\.yaml'):
        requested('model', ['fit', '--config', str(tmp_path / 'a.yaml')])


@pytest.mark.parametrize('command', ['check', 'stats'])
def test_yaml_of_a_command(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / 'a.yaml').write_text(LAUGHS)
    with pytest.raises(SystemExit):
        main([command, '--config', str(tmp_path / 'a.yaml')])
    assert 'more than 100000 values' in capsys.readouterr().err


def test_yaml_with_aliases() -> None:
    text = 'base: &base {lr: 0.1, x: [1, 2]}\nmodel:\n  init_args: {<<: *base, y: *base}\n'
    content: Any = load_config(text, 'a.yaml')
    assert content['model']['init_args']['lr'] == 0.1
    assert load_config('', 'a.yaml') is None


@pytest.mark.parametrize('folder', ['data [v1]', 'a*b', 'a?', '[!x]', '{a}', 'größer', '~', '$HOME', ' a '])
def test_folder(folder: str, tmp_path: Path) -> None:
    path = tmp_path / folder / 'labels [1]'
    path.mkdir(parents=True)
    place = {'crs': 'EPSG:32631', 'transform': rasterio.Affine(10, 0, 6e5, 0, -10, 57e5)}
    with rasterio.open(path / 'a_20210601.tif', 'w', 'GTiff', 4, 4, 1, dtype='uint8', **place) as file:
        file.write(np.full((1, 4, 4), 42, np.uint8))
    series = RasterTimeSeries(str(path), name='s2', temporal=False)
    assert (series[series.bounds]['image_s2'] == 42).all()


def feature(geometry: Any, **properties: Any) -> str:
    one = {'type': 'Feature', 'properties': {'c': 'a'} | properties, 'geometry': geometry}
    return json.dumps({'type': 'FeatureCollection', 'features': [one]})


@pytest.mark.parametrize(
    'text',
    [
        feature(None),
        feature({'type': 'Polygon', 'coordinates': []}),
        feature({'type': 'LineString', 'coordinates': [[0, 0], [1, 0]]}),
        feature({'type': 'Polygon', 'coordinates': [[[0, 0], [1, 0], [1e30, 1], [0, 0]]]}),
        feature({'type': 'Point', 'coordinates': [1e300, 0]}),
        '{"a":' * 60_000,
        feature(shapely.geometry.mapping(shapely.box(0, 0, 1, 1))).replace('[[[', '[' * 60_000),
        '',
    ],
    ids=lambda text: text[60:130],
)
def test_polygons(text: str, tmp_path: Path) -> None:
    (tmp_path / 'a.geojson').write_text(text)
    with pytest.raises(ValueError, match=r'a\.geojson'):
        Polygons(tmp_path / 'a.geojson', column='c', labels=['a', 'b'])


@pytest.mark.parametrize('size', [0, 16, 200, 5000, 40_000])
def test_truncated_package(size: int, tmp_path: Path) -> None:
    frame = gpd.GeoDataFrame({'c': ['a']}, geometry=[shapely.box(0, 0, 1, 1)], crs='EPSG:32631')
    frame.to_file(tmp_path / 'whole.gpkg')
    (tmp_path / 'a.gpkg').write_bytes((tmp_path / 'whole.gpkg').read_bytes()[:size])
    with pytest.raises(ValueError, match=r'a\.gpkg'):
        Polygons(tmp_path / 'a.gpkg', column='c', labels=['a', 'b'])


def test_ascii_locale() -> None:
    """A locale without umlauts does not keep paths with umlauts from being read: the program starts again in UTF-8."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(('LC_', 'LANG', 'PYTHON'))}
    environment |= {'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONPATH': os.pathsep.join(sys.path)}
    command = [sys.executable, '-m', 'torchgeo_omnisat', 'größer']  # a word of no command is printed as it was read
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == 2
    assert "'größer'" in done.stderr.decode()


def test_root_with_umlauts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ['--data', 'SyntheticLandscapesDataModule', '--data.root', str(tmp_path / 'größer' / 'data')]
    assert main(['stats', *words, '--data.num_tiles', '5', '--data.size', '16']) == 0
    assert (tmp_path / 'größer' / 'data').is_dir()
    assert 'größer' in capsys.readouterr().out
