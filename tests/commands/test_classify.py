# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Command `classify`: maps of classes from embeddings and labels."""

import csv
import json
import warnings
from pathlib import Path
from xml.etree import ElementTree

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
import shapely

from tests.prediction.areas import is_cog
from tests.prediction.embeddings.files import UTM, X, Y, landscape, points, write_codes, write_raster
from torchgeo_omnisat.__main__ import main
from torchgeo_omnisat.prediction.embeddings.few_labels import (
    cross_validate,
    default_block,
    fit_classifier,
    predict_probabilities,
    read_labels,
    spatial_blocks,
)
from torchgeo_omnisat.prediction.embeddings.reader import EmbeddingMap

VECTORS, CLASSES = landscape()
VECTORS[:, :2] = np.nan


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('classify')
    seen = np.where(np.arange(64) < 32, 1, 3)[None].repeat(48, 0)
    write_codes(folder / 'map.tif', VECTORS, seen)
    points(folder / 'points.gpkg', CLASSES)
    return folder


def run(folder: Path, *words: str, labels: str = 'points.gpkg', output: str = 'classes.tif') -> int:
    paths = ['--embeddings', str(folder / 'map.tif'), '--labels', str(folder / labels)]
    return main(['classify', *paths, '--output', str(folder / output), *words])


@pytest.mark.parametrize('classifier', ['knn', 'logistic', 'mlp'])
def test_map_scores_and_table(folder: Path, classifier: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, '--classifier', classifier, '--block', '80') == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f'{classifier}, 5 folds of ')
    assert [line.split()[0] for line in lines[2:5]] == ['fir', 'oak', 'sea']
    with rasterio.open(folder / 'classes.tif') as file:
        bands, tags = file.read(), file.tags()
        assert file.descriptions == ('class', 'modalities', 'probability fir', 'probability oak', 'probability sea')
        assert file.tags(1) == {'CLASS_0': 'fir', 'CLASS_1': 'oak', 'CLASS_2': 'sea'} | file.tags(1)
        assert [file.tags(2)[f'BIT_{bit}'] for bit in (0, 1)] == ['s2', 's1']
        assert file.nodata == 255
        assert file.crs == UTM
        assert len(set(map(tuple, (file.colormap(1)[index] for index in range(3))))) == 3
    assert is_cog(folder / 'classes.tif')
    assert (bands[:, :2] == 255).all()
    expected = np.array([1, 0, 2])[CLASSES[2:]]  # oak, fir, sea in alphabetical order
    assert (bands[0, 2:] == expected).mean() > 0.95
    assert (bands[1, 2:, :32] == 1).all()
    assert (bands[1, 2:, 32:] == 3).all()
    assert np.abs(bands[2:, 2:].astype(int).sum(0) - 250).max() <= 2
    scores = json.loads((folder / 'classes.json').read_text())
    assert scores['scores']['accuracy'] > 0.9
    assert float(tags['ACCURACY']) == pytest.approx(scores['scores']['accuracy'], abs=1e-4)
    assert np.trace(scores['confusion']) / np.sum(scores['confusion']) == pytest.approx(scores['scores']['accuracy'])
    with (folder / 'classes.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert [row['class'] for row in rows] == ['fir', 'oak', 'sea']
    assert (folder / 'classes.png').stat().st_size > 1000
    entries = ElementTree.parse(folder / 'classes.qml').iter('paletteEntry')
    assert [entry.get('label') for entry in entries] == ['fir', 'oak', 'sea']


def test_polygons_numbers_and_tables(folder: Path, tmp_path: Path) -> None:
    embeddings = EmbeddingMap([folder / 'map.tif'])
    corners = [(8, 8), (8, 40), (24, 16), (40, 56)]
    shapes = [shapely.box(X + 10 * c, Y - 10 * r - 60, X + 10 * c + 60, Y - 10 * r) for r, c in corners]
    shapes.append(shapely.box(X + 1, Y - 309, X + 3, Y - 307))  # smaller than a pixel
    values = [7, 12, 7, 12, 12]
    gpd.GeoDataFrame({'fid': range(5), 'code': values}, geometry=shapes, crs=UTM).to_crs(4326).to_file(
        tmp_path / 'a.geojson'
    )
    pixels = read_labels(tmp_path / 'a.geojson', embeddings, max_pixels=30)
    assert pixels.labels == ('7', '12')
    assert np.bincount(pixels.classes).tolist() == [60, 61]
    assert set(pixels.rows[:30]) <= set(range(8, 14))
    assert len(np.unique(pixels.places, axis=0)) == 5  # a polygon is never in two blocks
    table = pd.DataFrame({'lon': [4.4, 4.4001], 'lat': [51.4, 51.4], 'kind': ['01', '02']})
    frame = gpd.GeoDataFrame(table, geometry=gpd.points_from_xy([X + 5, X + 95], [Y - 95, Y - 95]), crs=UTM)
    frame = frame.to_crs(4326)
    frame['lon'], frame['lat'] = frame.geometry.x, frame.geometry.y
    frame.drop(columns='geometry').to_csv(tmp_path / 'a.csv', index=False)
    pixels = read_labels(tmp_path / 'a.csv', embeddings)
    assert (pixels.rows.tolist(), pixels.columns.tolist()) == ([9, 9], [0, 9])


def test_pixel_with_two_classes_is_not_used(folder: Path, tmp_path: Path) -> None:
    places = shapely.points([X + 5, X + 6, X + 15, X + 16, X + 25], [Y - 5] * 5)
    frame = gpd.GeoDataFrame({'class': ['a', 'b', 'a', 'a', 'b']}, geometry=places, crs=UTM)
    frame.to_file(tmp_path / 'a.gpkg')
    pixels = read_labels(tmp_path / 'a.gpkg', EmbeddingMap([folder / 'map.tif']))
    assert (pixels.columns.tolist(), pixels.classes.tolist()) == ([1, 2], [0, 1])
    assert pixels.unused == ('1 of 3 labelled pixels with labels of different classes',)
    frame.iloc[:2].to_file(tmp_path / 'one.gpkg')
    with pytest.raises(ValueError, match=r'every labelled pixel of .*one\.gpkg has labels of different classes'):
        read_labels(tmp_path / 'one.gpkg', EmbeddingMap([folder / 'map.tif']))


def test_points_outside_of_the_map_are_counted(folder: Path, tmp_path: Path) -> None:
    places = shapely.points([X + 5, X + 15, X - 5, X + 9e4], [Y - 5] * 4)
    frame = gpd.GeoDataFrame({'class': ['a', 'b', 'a', 'b']}, geometry=places, crs=UTM)
    frame.to_file(tmp_path / 'a.gpkg')
    pixels = read_labels(tmp_path / 'a.gpkg', EmbeddingMap([folder / 'map.tif']))
    assert pixels.unused == ('2 of 4 points outside of the map',)
    squares = shapely.box(
        *np.array([[X, Y - 40, X + 20, Y], [X + 40, Y - 40, X + 60, Y], [X - 60, Y, X - 40, Y + 9]]).T
    )
    frame = gpd.GeoDataFrame({'class': ['a', 'b', 'a']}, geometry=squares, crs=UTM)
    frame.to_file(tmp_path / 'b.gpkg')
    pixels = read_labels(tmp_path / 'b.gpkg', EmbeddingMap([folder / 'map.tif']))
    assert len(pixels.rows) > 3
    assert pixels.unused == ('1 of 3 geometries outside of the map',)


def test_unused_labels_are_printed(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = gpd.read_file(folder / 'points.gpkg').to_crs(UTM)
    moved = frame.geometry.copy()
    moved.iloc[:4] = shapely.points([X - 99] * 4, Y)
    frame.assign(**{'class': frame['class'].replace('oak', '森')}).set_geometry(moved).to_file(tmp_path / 'a.gpkg')
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)  # of characters that the font lacks
        assert run(folder, labels=str(tmp_path / 'a.gpkg'), output='forest.tif') == 0
    assert '4 of 60 points outside of the map' in capsys.readouterr().err.splitlines()


def test_output_that_is_a_folder(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ('map.tif', 'classes.png'):
        (tmp_path / name).mkdir()
        with pytest.raises(SystemExit):
            run(folder, output=str(tmp_path / name.replace('.png', '.tif')))
        assert f"{name}' is a folder" in capsys.readouterr().err
    assert len(list(tmp_path.iterdir())) == 2


def test_geometries_without_a_class_are_not_used(folder: Path, tmp_path: Path) -> None:
    places = shapely.points(X + 5.0 + 10 * np.arange(5), [Y - 5] * 5)
    frame = gpd.GeoDataFrame({'class': ['a', '', ' ', None, 'b']}, geometry=places, crs=UTM)
    frame.to_file(tmp_path / 'a.gpkg')
    pixels = read_labels(tmp_path / 'a.gpkg', EmbeddingMap([folder / 'map.tif']))
    assert (pixels.labels, pixels.columns.tolist()) == (('a', 'b'), [0, 4])
    assert pixels.unused == ('3 of 5 points without a class',)


def test_spaces_around_a_class_do_not_matter(folder: Path, tmp_path: Path) -> None:
    frame = gpd.read_file(folder / 'points.gpkg')
    expected = read_labels(folder / 'points.gpkg', EmbeddingMap([folder / 'map.tif']))
    frame.loc[:3, 'class'] = frame.loc[:3, 'class'] + ' '
    frame.to_file(tmp_path / 'a.gpkg')
    found = read_labels(tmp_path / 'a.gpkg', EmbeddingMap([folder / 'map.tif']))
    assert found.labels == expected.labels
    assert np.array_equal(found.classes, expected.classes)


def test_rows_without_a_geometry_are_counted(folder: Path, tmp_path: Path) -> None:
    places = [*shapely.points([X + 5, X + 15, X - 5], [Y - 5] * 3), None, shapely.Point()]
    frame = gpd.GeoDataFrame({'class': ['a', 'b', None, 'a', 'b']}, geometry=places, crs=UTM)
    frame.to_file(tmp_path / 'a.gpkg')
    pixels = read_labels(tmp_path / 'a.gpkg', EmbeddingMap([folder / 'map.tif']))
    assert pixels.unused == ('2 of 5 rows without a geometry', '1 of 5 points without a class')


def test_inputs_are_not_replaced(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = folder / 'table.csv'  # the scores of table.tif
    table.write_text('lon,lat,class\n5,51,oak\n')
    before = (folder / 'map.tif').read_bytes()
    for labels, output in (('table.csv', 'table.tif'), ('points.gpkg', 'map.tif'), ('points.gpkg', '../{}/map.tif')):
        with pytest.raises(SystemExit):
            run(folder, labels=labels, output=output.format(folder.name))
        assert Path(output).stem in capsys.readouterr().err
    assert table.read_text().startswith('lon')
    assert (folder / 'map.tif').read_bytes() == before


def test_no_block_is_trained_on_and_tested(folder: Path) -> None:
    embeddings = EmbeddingMap([folder / 'map.tif'])
    pixels = read_labels(folder / 'points.gpkg', embeddings)
    blocks = spatial_blocks(pixels, embeddings, 100.0)
    assert len(np.unique(blocks)) == len({(r // 10, c // 10) for r, c in zip(pixels.rows, pixels.columns, strict=True)})
    assert default_block(pixels, embeddings) == pytest.approx(120, abs=10)
    # The vector is the block, so a classifier that has seen a block knows its pixels, and no other's.
    vectors = np.eye(blocks.max() + 1, dtype=np.float32)[blocks]
    labels = np.random.default_rng(0).integers(2, size=blocks.max() + 1)[blocks]
    validation = cross_validate('knn', vectors, labels, blocks, ('a', 'b'), 100.0)
    assert validation.confusion.sum() == len(blocks)
    assert validation.scores['accuracy'] < 0.75
    leaked = cross_validate('knn', vectors, labels, np.arange(len(blocks)), ('a', 'b'), 100.0)
    assert leaked.scores['accuracy'] > 0.9


def test_few_labels_and_a_class_without_any() -> None:
    vectors = np.repeat(np.eye(2, dtype=np.float32), 3, axis=0)
    classes = np.repeat([0, 2], 3)
    validation = cross_validate('knn', vectors, classes, np.arange(6), ('a', 'b', 'c'), 100.0)
    assert (validation.folds, validation.confusion.sum()) == (3, 6)
    assert validation.scores == {'accuracy': 1.0, 'macro_f1': 1.0, 'mean_iou': 1.0}
    with pytest.raises(ValueError, match=r'one labelled pixel \(2 in all\)'):
        cross_validate('knn', vectors[2:4], classes[2:4], np.arange(2), ('a', 'b', 'c'), 100.0)


def test_classes_without_a_training_vector_have_probability_0() -> None:
    vectors = np.eye(4, dtype=np.float32)
    model = fit_classifier('logistic', vectors, np.array([0, 2, 0, 2]))
    found = predict_probabilities(model, vectors, 3)
    assert (found[:, 1] == 0).all()
    assert np.allclose(found.sum(1), 1)
    assert (predict_probabilities(fit_classifier('knn', vectors, np.full(4, 2)), vectors, 3)[:, 2] == 1).all()


def test_errors_are_one_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    points(folder / 'far.gpkg', CLASSES)
    frame = gpd.read_file(folder / 'points.gpkg').to_crs(UTM)
    frame.set_geometry(frame.translate(50_000, 0)).to_file(folder / 'far.gpkg')
    frame.assign(owner=1).to_file(folder / 'two.gpkg')
    frame.iloc[:4].assign(**{'class': 'oak'}).to_file(folder / 'one.gpkg')
    nodata = frame.assign(**{'class': ['oak', 'fir'] * 30})
    nodata.set_geometry(shapely.points([X + 5, X + 15] * 30, Y - 5)).to_file(folder / 'empty.gpkg')
    frame.assign(**{'class': [np.inf, *np.arange(len(frame) - 1) % 2]}).to_file(folder / 'infinite.gpkg')
    write_raster(folder / 'bytes.tif', np.zeros((4, 8, 8), np.uint8))
    for labels, words, fragments in (
        ('far.gpkg', [], ['far.gpkg extends from 65', 'within the map', 'EPSG:32631']),
        ('two.gpkg', [], ["['class', 'owner']", '--column']),
        ('points.gpkg', ['--column', 'crop'], ["['class']", "'crop'"]),
        ('one.gpkg', [], ["'class'", "1 class ['oak']", 'from 2']),
        ('empty.gpkg', [], ['labelled pixels with an embedding', '0', '2 of 2 labelled pixels without an embedding']),
        ('points.gpkg', ['--block', '5000'], ['one block of 5000 m', 'at least 2 blocks', '--block']),
        ('infinite.gpkg', [], ["'class'", 'infinite.gpkg']),
        ('missing.gpkg', [], ['missing.gpkg cannot be read']),
        ('points.gpkg', ['--embeddings', str(folder / 'bytes.tif')], ['bytes.tif', 'uint8', 'embedding']),
        ('points.gpkg', ['--output', str(tmp_path / 'map.png')], ['map.png', 'GeoTIFF']),
    ):
        with pytest.raises(SystemExit) as stop:
            run(folder, *words, labels=labels, output='never.tif')
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert stop.value.code == 1
        assert all(fragment in error for fragment in fragments), (error, fragments)
    assert not (folder / 'never.tif').exists()
