# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Labels of own rasters: codes, points, and what is told before training starts."""

import warnings
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import shapely
import yaml

from tests.geo_tree import UTM, X, Y, ramp, write
from torchgeo_omnisat.commands.data import data_parser, parse_data
from torchgeo_omnisat.datamodules import MultimodalGeoDataModule
from torchgeo_omnisat.validation import walk

WEST = {'train': [X, Y - 320, X + 320, Y], 'val': [X + 320, Y - 320, X + 640, Y]}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """64 x 32 pixels."""
    write(tmp_path / 's2/a_20210301.tif', ramp(32, 64, 1))
    return tmp_path


def make(root: Path, mask: Any, **changes: Any) -> MultimodalGeoDataModule:
    args = {'labels': ['a', 'b'], 'tile_size': 80, 'patch_size': 40, 'split': WEST, 'length': 4, **changes}
    return MultimodalGeoDataModule(str(root), {'s2': {'path': 's2', 'gsd': 10}}, mask, **args)


def labels(root: Path, values: Any, **profile: Any) -> dict[str, str]:
    """Labels: the first value in the western half of every tile, the second in its eastern one, and so on."""
    image = np.array(values)[np.arange(64) % len(values)][None].repeat(32, 0)
    write(root / 'l.tif', image, **profile)
    return {'path': 'l.tif'}


@pytest.mark.parametrize(
    ('values', 'classes', 'other', 'names'),
    [
        (np.array([10, 20, 60], np.uint8), {10: 'tree', 20: 'shrub', 60: 'bare'}, None, ['tree', 'shrub', 'bare']),
        (np.array([1, 2, 3], np.uint8), {1: 'a', 2: 'b', 3: 'a'}, None, ['a', 'b', 'a']),
        (np.array([201, 311, 6798], np.int32), {311: 'maize'}, 'other', ['other', 'maize', 'other']),
        (
            np.array([10, 20, 60], np.float32),
            {'10': 'tree', '20': 'shrub', '60': 'bare'},
            None,
            ['tree', 'shrub', 'bare'],
        ),
        (np.array([0, 255], np.uint8), {0: 'ground', 255: 'house'}, None, ['ground', 'house']),
    ],
)
def test_codes_from_a_yaml_file(root: Path, values: Any, classes: Any, other: Any, names: list[str]) -> None:
    mask = {**labels(root, values), 'classes': classes, **({} if other is None else {'other': other})}
    args = {'root': str(root), 'rasters': {'s2': {'path': 's2', 'gsd': 10}}, 'mask': mask, 'tile_size': 80}
    config = {'data': {'class_path': 'MultimodalGeoDataModule', 'init_args': args}}
    (root / 'c.yaml').write_text(yaml.safe_dump(config, sort_keys=False))
    _, datamodule = parse_data(data_parser('check', ''), ['--config', str(root / 'c.yaml')])
    assert datamodule.labels == list(dict.fromkeys([*classes.values(), *([other] if other else [])]))
    datamodule.setup('fit')
    mask = datamodule.labelled[slice(X, X + 80), slice(Y - 80, Y)]['mask']
    assert [datamodule.labels[number] for number in mask[0, : len(names)].tolist()] == names


@pytest.mark.parametrize('value', [99, -1, 2])
def test_numbers_that_are_no_class_stop_before_training(root: Path, value: int) -> None:
    datamodule = make(root, labels(root, np.array([0, 1, 1, value], np.int16)))
    with pytest.raises(ValueError, match=rf'l\.tif.*{value} \(256 pixels\).*\(a, b\)'):
        datamodule.setup('fit')


def test_unknown_codes_are_told_at_once(root: Path) -> None:
    mask = {**labels(root, np.array([10, 20, 60, 80], np.uint8)), 'classes': {10: 'a', 20: 'b'}}
    for step in MultimodalGeoDataModule.prepare_data, lambda datamodule: datamodule.setup('fit'):
        with pytest.raises(ValueError, match=r'60 \(256 pixels\), 80 \(256 pixels\)'):
            step(make(root, mask))


def test_codes_may_be_numbers_and_text_at_once(root: Path) -> None:
    mask = {**labels(root, np.array([10, 20], np.uint8)), 'classes': {10: 'a', '020': 'b'}, 'other': 'b'}
    make(root, mask).prepare_data()


@pytest.mark.parametrize(('dtype', 'value', 'named'), [('float32', 0.5, '0.5'), ('complex64', 1, 'complex64')])
def test_pixels_that_are_no_numbers_of_classes_are_refused(root: Path, dtype: str, value: float, named: str) -> None:
    with pytest.raises(ValueError, match=f'l.tif .*{named}'):
        make(root, labels(root, np.array([0, 1, value], dtype))).setup('fit')


def test_a_picture_is_refused(root: Path) -> None:
    write(root / 'l.tif', np.zeros((3, 32, 64), np.uint8))
    with pytest.raises(ValueError, match=r'l\.tif.*\b3 bands'):
        make(root, {'path': 'l.tif'}).setup('fit')
    write(root / 'n.tif', np.stack([np.zeros((32, 64)), np.ones((32, 64))]).astype(np.uint8), bands=('year', 'crop'))
    datamodule = make(root, {'path': 'n.tif', 'bands': ['crop']})
    assert datamodule.label_counts('train').pixels == {'a': 0, 'b': 1024}


@pytest.mark.parametrize(
    ('values', 'profile', 'told'),
    [
        ([0, 255], {}, r"'b'.*1?512 pixels are 255, which is ignore_index"),
        ([0, 1], {'nodata': 0}, r"'a'.*l.tif is 0, the number of class 'a'"),
        ([0, 0], {}, r"'b'"),
    ],
)
def test_a_class_without_a_pixel_is_told(root: Path, values: list[int], profile: Any, told: str) -> None:
    datamodule = make(root, labels(root, np.array(values, np.uint8), **profile))
    with pytest.warns(UserWarning, match=told):
        datamodule.setup('fit')


def test_a_split_without_a_label_is_told_or_refused(root: Path) -> None:
    image = np.full((32, 64), 255, np.uint8)
    image[:, :32] = np.arange(32) % 2
    write(root / 'l.tif', image)
    with pytest.warns(UserWarning, match="'val'"):
        make(root, {'path': 'l.tif'}).setup('fit')
    turned = make(root, {'path': 'l.tif'}, split={'train': WEST['val'], 'val': WEST['train']})
    with pytest.raises(ValueError, match="'train'"):
        turned.setup('fit')


def test_good_labels_warn_of_nothing(root: Path) -> None:
    datamodule = make(root, labels(root, np.array([0, 1], np.uint8), nodata=7))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        datamodule.report_labels(('train', 'val'))


@pytest.mark.parametrize('where', [[(5, 5)], [(5, 5), (600, 310), (330, 100), (8, 5)]])
def test_tiles_lie_around_points(root: Path, where: list[tuple[float, float]]) -> None:
    shapes = [shapely.Point(X + x, Y - y) for x, y in where]
    frame = gpd.GeoDataFrame({'c': (['a', 'b', 'b', 'a'] * 2)[: len(where)]}, geometry=shapes, crs=UTM)
    frame.to_crs(4326).to_file(root / 'p.geojson')
    split = {'axis': 'y', 'fractions': [1, 0, 0]}
    datamodule = make(root, {'path': 'p.geojson', 'column': 'c'}, label_gsd=10, split=split, length=40)
    counts = datamodule.label_counts('train')
    pixels = len({(x // 10, y // 10) for x, y in where})
    assert counts.labelled == pixels
    tiles = datamodule.make_dataset('train')
    for index in range(40):
        mask = tiles[index]['mask']
        assert (mask != 255).any()
    every = datamodule.make_dataset('train', every=True)
    assert sum(int((every[index]['mask'] != 255).sum()) for index in range(len(every))) == pixels


def test_points_say_how_many_pixels_they_label(root: Path, capsys: Any, caplog: Any) -> None:
    (root / 'p.csv').write_text(f'x,y,c\n{X + 5},{Y - 5},a\n{X + 25},{Y - 5},b\n{X + 26},{Y - 6},b\n')
    datamodule = make(root, {'path': 'p.csv', 'column': 'c', 'crs': UTM}, label_gsd=10, split={'train': WEST['train']})
    assert "'train': 2 of" in datamodule.label_counts('train').summary('train')


@pytest.mark.parametrize(
    ('shapes', 'told', 'labelled'),
    [
        ([shapely.Point(X + x, Y - 5) for x in (3, 6, 43)], r"no label for 1 pixel of 'train' with points", 1),
        (
            [shapely.box(X, Y - 80, X + x, Y) for x in (80, 40, 40)],
            r"32 pixels of 'train' in polygons.*the last polygon",
            64,
        ),
    ],
)
def test_labels_that_contradict_each_other_are_counted(root: Path, shapes: list[Any], told: str, labelled: int) -> None:
    gpd.GeoDataFrame({'c': ['a', 'b', 'b']}, geometry=shapes, crs=UTM).to_file(root / 'p.gpkg')
    split = {'axis': 'x', 'fractions': [1, 0, 0]}
    datamodule = make(root, {'path': 'p.gpkg', 'column': 'c'}, label_gsd=10, split=split)
    assert datamodule.label_counts('train').labelled == labelled
    with pytest.warns(UserWarning, match=told):
        datamodule.setup('fit')


def test_files_with_other_bands_stop_before_training(root: Path) -> None:
    write(root / 's2/b_20210401.tif', ramp(32, 64, 2))
    write(root / 's2/c_20210402.tif', ramp(32, 64, 3), origin=(X + 5000, Y))  # where no tile lies
    mask = labels(root, np.array([0, 1], np.uint8))
    for step in MultimodalGeoDataModule.prepare_data, lambda datamodule: datamodule.setup('fit'):
        with pytest.raises(ValueError, match=r'b_20210401\.tif.*\b2 .*\b1 .*a_20210301\.tif.*\b1 '):
            step(make(root, mask))
    report = walk(make(root, mask))
    found = [(problem.kind, problem.file) for problem in report.faults]
    assert found == [('shape', 's2/b_20210401.tif'), ('shape', 's2/c_20210402.tif')]


def test_files_of_another_type_are_named(root: Path) -> None:
    write(root / 's2/b_20210401.tif', np.ones((32, 64), np.uint16))
    with pytest.warns(UserWarning, match=r'float32.*a_20210301\.tif.*uint16.*b_20210401\.tif'):
        make(root, labels(root, np.array([0, 1], np.uint8))).setup('fit')
