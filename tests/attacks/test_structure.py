# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Malformed structures: JSON, GeoJSON, vectors and HDF5 that are not as documented, each one error with the file."""

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from torchgeo_omnisat import Modality
from torchgeo_omnisat.datamodules.common.statistics import load_statistics, read_statistics
from torchgeo_omnisat.datamodules.geo import read_polygons
from torchgeo_omnisat.datasets.chips.splits import _read_table
from torchgeo_omnisat.datasets.common.classes import refuse_ignored_class
from torchgeo_omnisat.datasets.common.integrity import Report
from torchgeo_omnisat.datasets.common.plotting import draw_any
from torchgeo_omnisat.datasets.common.series import parse_dates
from torchgeo_omnisat.datasets.flairhub import _rows
from torchgeo_omnisat.datasets.io.files import read_json
from torchgeo_omnisat.datasets.pastis import read_index
from torchgeo_omnisat.datasets.treesatai import SERIES, open_series, read_days, read_label_fractions
from torchgeo_omnisat.tasks.checkpoints import read_config

DEEP = '[' * 100_000
JSON = ['', '\0', DEEP, '{"a":' * 100_000, '[]', '7', 'NaN', '"text"', 'null', '{"a": {}', '{"a": 1}}']
READERS: list[Callable[[Path], Any]] = [
    lambda path: read_json(path, 'an object'),
    lambda path: read_label_fractions(path),
    lambda path: read_statistics(path, 'Fold_1', 2),
    lambda path: Report.read(path),
]


@pytest.mark.parametrize('read', READERS, ids=['json', 'labels', 'statistics', 'report'])
@pytest.mark.parametrize('text', JSON, ids=lambda text: text[:9])
def test_json(tmp_path: Path, text: str, read: Callable[[Path], Any]) -> None:
    (tmp_path / 'a.json').write_text(text)
    with pytest.raises(ValueError, match=r'a\.json'):
        read(tmp_path / 'a.json')


@pytest.mark.parametrize('text', JSON, ids=lambda text: text[:9])
def test_json_of_folders(tmp_path: Path, text: str) -> None:
    (tmp_path / 'config.json').write_text(text)
    with pytest.raises(ValueError, match=r'config\.json'):
        read_config(tmp_path)
    (tmp_path / 'split.json').write_text(text)
    with pytest.raises(ValueError, match=r'split\.json'):
        _read_table(tmp_path / 'split.json', 'split')
    (tmp_path / 'STATISTICS.json').write_text(text)
    assert load_statistics(tmp_path) == {}  # what is damaged is measured anew


FEATURE: dict[str, Any] = {
    'type': 'Feature',
    'geometry': {'type': 'Polygon', 'coordinates': [[[0, 0], [0, 1], [1, 1], [0, 0]]]},
    'properties': {'ID_PATCH': 1, 'Fold': 1, 'dates-S2': {'0': 20190101}},
}


def index(path: Path, *features: dict[str, Any]) -> Path:
    path.write_text(json.dumps({'type': 'FeatureCollection', 'features': list(features)}))
    return path


@pytest.mark.parametrize(
    'features',
    [
        [FEATURE | {'geometry': None}],
        [FEATURE | {'geometry': {'type': 'Polygon', 'coordinates': []}}],
        [FEATURE | {'geometry': {'type': 'GeometryCollection', 'geometries': []}}],
        [FEATURE | {'properties': FEATURE['properties'] | {'ID_PATCH': None}}],
        [FEATURE | {'properties': FEATURE['properties'] | {'ID_PATCH': 'one'}}],
        [FEATURE | {'properties': FEATURE['properties'] | {'ID_PATCH': 1e999}}],
        [FEATURE | {'properties': FEATURE['properties'] | {'Fold': 0}}],
        [FEATURE | {'properties': FEATURE['properties'] | {'Fold': 6}}],
        [FEATURE | {'properties': FEATURE['properties'] | {'Fold': -1}}],
        [FEATURE | {'properties': {'Fold': 1}}],
        [FEATURE, FEATURE],
    ],
    ids=str,
)
def test_index_of_pastis(tmp_path: Path, features: list[Any]) -> None:
    assert len(read_index(index(tmp_path / 'good.geojson', FEATURE))[0]) == 1
    with pytest.raises(ValueError, match=r'metadata\.geojson'):
        read_index(index(tmp_path / 'metadata.geojson', *features))


OGR_VRT = '<OGRVRTDataSource><OGRVRTLayer name="a"><SrcDataSource>{}</SrcDataSource></OGRVRTLayer></OGRVRTDataSource>'
VECTORS: list[Callable[[Path], Any]] = [
    lambda path: read_polygons(path, 'EPSG:4326'),
    lambda path: read_index(path),
    lambda path: list(_rows(path, 'dates')),
]


@pytest.mark.parametrize('read', VECTORS, ids=['split', 'index', 'table'])
@pytest.mark.parametrize('ending', ['gpkg', 'geojson', 'shp', 'fgb'])
def test_vector_that_is_virtual(tmp_path: Path, ending: str, read: Callable[[Path], Any]) -> None:
    source = index(tmp_path / 'secret.geojson', FEATURE)
    path = tmp_path / f'a.{ending}'
    for text in (
        OGR_VRT.format(source),
        f'\n {OGR_VRT.format(source)}',
        f'<?xml version="1.0"?>{OGR_VRT.format(source)}',
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=rf'a\.{ending} begins with'):
            read(path)


@pytest.mark.parametrize('read', VECTORS, ids=['split', 'index', 'table'])
@pytest.mark.parametrize('ending', ['kml', 'gml', 'dat'])
def test_vector_that_is_virtual_under_another_extension(
    tmp_path: Path, ending: str, read: Callable[[Path], Any]
) -> None:
    path = tmp_path / f'a.{ending}'
    path.write_text(f'<?xml version="1.0"?>\n{OGR_VRT.format(index(tmp_path / "secret.geojson", FEATURE))}')
    with pytest.raises(ValueError, match=rf'a\.{ending} is an OGR VRT'):
        read(path)
    archive = tmp_path / 'a.zip'
    with zipfile.ZipFile(archive, 'w', zipfile.ZIP_DEFLATED) as file:
        file.write(path, f'a.{ending}')
    with pytest.raises(ValueError, match=r'a\.zip.*VRT'):
        read(archive)


ADDRESS = 'http://127.0.0.1:9/crs'


@pytest.mark.parametrize('read', VECTORS[:2], ids=['split', 'index'])
@pytest.mark.parametrize('key', ['crs', 'CRS', '\\u0063rs'])
@pytest.mark.parametrize(
    'crs',
    [
        {'type': 'link', 'properties': {'href': ADDRESS, 'type': 'ogcwkt'}},
        {'properties': {'href': ADDRESS}, 'type': 'Link'},
        {'type': 'url', 'properties': {'url': ADDRESS}},
        {'type': 'name', 'properties': {'name': 'EPSG:4326'}, 'type ': 1, '\\u0074ype': 'link'},
    ],
    ids=str,
)
def test_crs_at_an_address(tmp_path: Path, crs: Any, key: str, read: Callable[[Path], Any]) -> None:
    """GDAL would request it."""
    path = tmp_path / 'a.geojson'
    content = json.dumps({'type': 'FeatureCollection', 'KEY': crs, 'features': [FEATURE]}).replace('\\\\', '\\')
    path.write_text(content.replace('KEY', key))
    with pytest.raises(ValueError, match=r'a\.geojson|type'):
        read(path)
    feature = FEATURE | {'geometry': FEATURE['geometry'] | {'crs': crs}}
    path.write_text(json.dumps({'type': 'FeatureCollection', 'features': [feature]}).replace('\\\\', '\\'))
    with pytest.raises(ValueError, match=r'a\.geojson|type'):
        read(path)


def test_crs_that_is_a_name(tmp_path: Path) -> None:
    crs = {'type': 'name', 'properties': {'name': 'urn:ogc:def:crs:EPSG::2154'}}
    path = tmp_path / 'a.geojson'
    for content in ({'crs': crs}, {'crs': crs, 'more': {'crs': crs}}, {'name': 'é', 'crs': None}, {}):
        path.write_text(json.dumps({'type': 'FeatureCollection', **content, 'features': [FEATURE]}))
        assert len(read_polygons(path, 'EPSG:4326')) == 1


@pytest.mark.parametrize('ending', ['gml', 'kml', 'xml', 'dat', 'zip'])
def test_schema_at_an_address(tmp_path: Path, ending: str) -> None:
    """GDAL would request the schema of GML, whatever its extension."""
    text = f'<a xmlns:gml="http://www.opengis.net/gml" xsi:schemaLocation="t {ADDRESS}"><kml/></a>'
    path = tmp_path / f'a.{ending}'
    if ending == 'zip':
        with zipfile.ZipFile(path, 'w') as file:
            file.writestr('a.gml', text)
    else:
        path.write_text(text)
    with pytest.raises(ValueError, match='URLs'):
        read_polygons(path, 'EPSG:4326')


@pytest.mark.parametrize(
    'dates', [DEEP, "{'a':" * 2000, '[', '{"0": 99999999}', 'open("x")'], ids=lambda text: text[:9]
)
def test_dates(dates: str) -> None:
    with pytest.raises(ValueError, match='dates of a patch'):
        parse_dates(dates, 'dates of a patch')


@pytest.mark.parametrize(
    'products',
    [
        np.zeros((2,), np.int64),
        np.zeros((2,), [('a', 'i4'), ('b', 'f4')]),
        np.array(b'S1A', dtype=object),
        np.array([[b'a', b'b']], dtype='S1'),
        np.array([b'no date'], dtype='S7'),
        np.array([b'a_b_99999999_c'], dtype='S14'),
        np.zeros(20_000, 'S1'),
    ],
    ids=lambda array: str(array.dtype),
)
def test_products_of_treesatai(tmp_path: Path, products: np.ndarray) -> None:
    series = SERIES['s2']
    with h5py.File(tmp_path / 'a.h5', 'w') as file:
        file.create_dataset(f'{series.prefix}-products', data=products)
    with pytest.raises(ValueError, match=r'a\.h5'), open_series(tmp_path / 'a.h5') as file:
        read_days(file, series, tmp_path / 'a.h5')


def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / 'a')
    with pytest.raises(ValueError, match='/a '), open_series(tmp_path / 'a'):
        pass
    with pytest.raises(ValueError, match='/a '):
        read_json(tmp_path / 'a', 'an object')


@pytest.mark.parametrize('name', ['$x_{$', '$\\frac{$', '\\$', '<b>', '\x1b[31m', 'a' * 300])
def test_names_of_classes_in_figures(name: str, tmp_path: Path) -> None:
    """Matplotlib would take them for formulas."""
    image = {'image_s': torch.rand(3, 4, 4), 'dates_s': torch.zeros(1).long(), 'valid_s': torch.ones(1).bool()}
    sample = image | {'mask': torch.zeros(4, 4, dtype=torch.int64)}
    modality = Modality('s', ('R', 'G', 'B'), 1.0, False)
    figure = draw_any(sample, {'s': modality}, [name, 'b'], None, True, name)
    figure.savefig(tmp_path / 'a.png', dpi=20)
    texts = [text.get_text() for axes in figure.axes if (box := axes.get_legend()) for text in box.get_texts()]
    assert texts
    assert max(map(len, texts)) <= 63
    plt.close(figure)


def test_class_that_is_the_default_of_no_label() -> None:
    labels = [f'class {number}' for number in range(300)]
    with pytest.raises(ValueError, match=r"ignore_index.*255.*'class 255'.*300"):
        refuse_ignored_class(labels, 255)
    refuse_ignored_class(labels, 300)
    refuse_ignored_class(labels[:20], 19)
