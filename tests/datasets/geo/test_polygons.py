# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Polygons as labels: named and numbered classes, and the ground that none of them covers."""

import sys
from pathlib import Path
from typing import Any

import geopandas as gpd
import pyproj
import pytest
import shapely

from tests.geo_tree import UTM, X, Y
from torchgeo_omnisat.datasets.geo.polygons import Polygons, read_geometries
from torchgeo_omnisat.datasets.rasters.georeference import window_grid

LABELS = ('wheat', 'maize', 'meadow')


def fields(path: Path, crops: list[Any]) -> Path:
    """Fields of 80 m side by side from west to east, 20 m between them."""
    shapes = [shapely.box(X + 100 * i, Y - 80, X + 100 * i + 80, Y) for i in range(len(crops))]
    gpd.GeoDataFrame({'crop': crops, 'owner': 1}, geometry=shapes, crs=UTM).to_file(path)
    return path


def row(labels: Polygons, count: int) -> list[int]:
    """The class in the middle of each field, and after it that of the gap."""
    mask = labels[slice(X, X + 100 * count, 10.0), slice(Y - 80, Y, 10.0)]['mask']
    columns = mask[:, [column for i in range(count) for column in (10 * i + 4, 10 * i + 9)]]
    assert (columns == columns[0]).all()
    return columns[0].tolist()


@pytest.mark.parametrize('crops', [['maize', 'wheat', 'meadow'], [1, 0, 2], [1.0, 0.0, 2.0], ['1', 'wheat', '2']])
def test_classes_have_names_or_numbers_and_gaps_have_none(tmp_path: Path, crops: list[Any]) -> None:
    path = fields(tmp_path / 'fields.gpkg', crops)
    assert row(Polygons(path, column='crop', labels=LABELS), 3)[:5] == [1, -1, 0, -1, 2]
    assert row(Polygons(path, column='crop', outside='meadow', labels=LABELS), 3)[:5] == [1, 2, 0, 2, 2]
    assert row(Polygons(path, column='crop', outside=0, labels=LABELS), 3)[:5] == [1, 0, 0, 0, 2]


def test_touching_fields_of_one_class_are_two_instances(tmp_path: Path) -> None:
    """Polygons of the class of the ground around them are no fields; one without a class is."""
    shapes = [shapely.box(X + 40 * i, Y - 40, X + 40 * i + 40, Y) for i in range(4)]
    frame = gpd.GeoDataFrame({'crop': ['maize', 'maize', None, 'wheat']}, geometry=shapes, crs=UTM)
    frame.to_file(tmp_path / 'fields.gpkg')
    grid = window_grid(UTM, slice(X, X + 200, 10.0), slice(Y - 40, Y, 10.0))
    labels = Polygons(tmp_path / 'fields.gpkg', column='crop', labels=LABELS[:2])
    ids = labels.instances(grid)
    assert ids.dtype == 'int64'
    assert (ids == ids[0]).all()
    assert ids[0, ::4].tolist() == [1, 2, 3, 4, 0]
    around = Polygons(tmp_path / 'fields.gpkg', column='crop', outside='wheat', labels=LABELS[:2])
    assert around.instances(grid)[0, ::4].tolist() == [1, 2, 3, 0, 0]
    parts = gpd.GeoDataFrame({'crop': ['maize']}, geometry=[shapely.MultiPolygon([shapes[0], shapes[2]])], crs=UTM)
    parts.to_file(tmp_path / 'parts.gpkg')
    apart = Polygons(tmp_path / 'parts.gpkg', column='crop', labels=LABELS[1:2]).instances(grid)
    assert apart[0, ::4].tolist() == [1, 0, 2, 0, 0]


def test_a_field_without_a_class_has_no_label(tmp_path: Path) -> None:
    path = fields(tmp_path / 'fields.gpkg', ['meadow', None, 'maize'])
    assert row(Polygons(path, column='crop', outside='wheat', labels=LABELS), 3)[:5] == [2, 0, -1, 0, 1]
    for blank in ('', '  '):
        path = fields(tmp_path / 'fields.gpkg', ['meadow', blank, 'maize'])
        assert row(Polygons(path, column='crop', outside='wheat', labels=LABELS), 3)[:5] == [2, 0, -1, 0, 1]
    path = fields(tmp_path / 'numbers.gpkg', [2, float('nan'), 1])
    assert row(Polygons(path, column='crop', outside='wheat', labels=LABELS), 3)[:5] == [2, 0, -1, 0, 1]


def test_without_a_column_there_are_two_classes(tmp_path: Path) -> None:
    assert row(Polygons(fields(tmp_path / 'fields.gpkg', [5, 6]), labels=('ground', 'house')), 2)[:3] == [1, 0, 1]


def test_a_class_without_a_field_is_told(tmp_path: Path) -> None:
    path = fields(tmp_path / 'fields.gpkg', ['wheat', 'maize'])
    with pytest.warns(UserWarning, match=r"fields.gpkg.*\['meadow'\]; \"outside: meadow\".*mask"):
        Polygons(path, column='crop', labels=LABELS)
    with pytest.warns(UserWarning, match=r"fields.gpkg.*\['meadow'\]$"):
        Polygons(path, column='crop', outside='wheat', labels=LABELS)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (
            {'column': 'krop'},
            r"fields.gpkg has the columns \['crop', 'owner'\], expected 'krop', the column of the class",
        ),
        (
            {'column': 'crop', 'labels': ('wheat',)},
            r"column 'crop' of .*fields.gpkg has the codes 'maize' \(1 polygon\), expected .* \(wheat\)",
        ),
        ({'column': 'crop', 'outside': 'none'}, r"outside of the mask is 'none', expected one of the labels \['wheat'"),
        ({'column': 'crop', 'outside': 3}, r'outside of the mask is 3, expected one of the labels'),
    ],
)
def test_errors_name_what_is_wrong(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    path = fields(tmp_path / 'fields.gpkg', ['wheat', 'maize'])
    with pytest.raises(ValueError, match=message):
        Polygons(path, **{'labels': LABELS, **settings})


def test_a_file_without_a_crs_is_refused_unless_told_one(tmp_path: Path) -> None:
    path = fields(tmp_path / 'fields.shp', ['wheat', 'maize'])
    path.with_suffix('.prj').unlink()
    with pytest.raises(ValueError, match=r'fields.shp.*CRS.*mask its argument crs.*geometries.*6'):
        Polygons(path, column='crop', labels=LABELS)
    assert Polygons(path, crs=UTM, column='crop', labels=LABELS).crs == UTM


def test_no_polygon_in_a_corner_of_a_window_in_another_crs_is_missed(tmp_path: Path) -> None:
    """The south-eastern corner lies further south than the south-western one, by 15 m in 800."""
    corner = shapely.box(X + 790, Y - 800, X + 800, Y - 790)
    gpd.GeoDataFrame({'crop': ['maize']}, geometry=[corner], crs=UTM).to_crs('EPSG:4326').to_file(tmp_path / 'a.gpkg')
    labels = Polygons(tmp_path / 'a.gpkg', crs=UTM, column='crop', outside='wheat', labels=LABELS[:2])
    mask = labels[slice(X, X + 800, 10.0), slice(Y - 800, Y, 10.0)]['mask']
    assert mask[-1, -1] == 1
    assert mask.sum() == 1


def test_files_are_read_once_and_follow_the_crs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = Polygons(fields(tmp_path / 'fields.gpkg', ['wheat', 'maize']), column='crop', labels=LABELS[:2])
    monkeypatch.setattr(gpd, 'read_file', None)
    labels.crs = pyproj.CRS('EPSG:3857')
    xmin, ymin, xmax, ymax = labels.index.total_bounds
    mask = labels[slice(xmin, xmax, 5.0), slice(ymin, ymax, 5.0)]['mask']
    assert {0, 1} <= set(mask.unique().tolist()) <= {-1, 0, 1}


def test_a_damaged_file_is_not_left_out(tmp_path: Path) -> None:
    fields(tmp_path / 'fields.gpkg', ['wheat', 'maize'])
    whole = fields(tmp_path / 'torn.gpkg', ['meadow']).read_bytes()
    (tmp_path / 'torn.gpkg').write_bytes(whole[:4000])
    with pytest.raises(ValueError, match=r'torn\.gpkg'):
        Polygons([tmp_path / 'fields.gpkg', tmp_path / 'torn.gpkg'], column='crop', labels=LABELS)


def test_the_last_of_overlapping_fields_counts(tmp_path: Path) -> None:
    for crops, expected in ((['wheat', 'maize', 'meadow'], 2), (['meadow', 'maize', 'wheat'], 0)):
        shapes = [shapely.box(X, Y - 80, X + 80, Y)] * 3
        path = tmp_path / f'{crops[0]}.gpkg'
        gpd.GeoDataFrame({'crop': crops}, geometry=shapes, crs=UTM).to_file(path)
        assert row(Polygons(path, column='crop', labels=LABELS), 1)[0] == expected


def test_the_layer_that_is_named_is_read(tmp_path: Path) -> None:
    for layer, crops in (('y2020', ['wheat', 'maize', 'meadow']), ('y2021', ['meadow', 'wheat', 'maize'])):
        shapes = [shapely.box(X + 100 * i, Y - 80, X + 100 * i + 80, Y) for i in range(3)]
        frame = gpd.GeoDataFrame({'crop': crops}, geometry=shapes, crs=UTM)
        frame.to_file(tmp_path / 'fields.gpkg', layer=layer)
    labels = Polygons(tmp_path / 'fields.gpkg', column='crop', labels=LABELS, layer='y2021')
    assert row(labels, 3)[:5:2] == [2, 0, 1]


@pytest.mark.parametrize('crops', [[201, 311, 6798], ['201', '311', '6798'], [201.0, 311.0, 6798.0]])
def test_codes_are_mapped_to_classes(tmp_path: Path, crops: list[Any]) -> None:
    path = fields(tmp_path / 'fields.gpkg', crops)
    labels = Polygons(path, column='crop', classes={201: 'wheat', '311': 'maize', 6798: 'wheat'}, outside='maize')
    assert row(labels, 3)[:5] == [0, 1, 1, 1, 0]
    rest = Polygons(path, column='crop', labels=LABELS, classes={311: 'maize', 201: None}, other='meadow')
    assert row(rest, 3)[:5:2] == [-1, 1, 2]
    with pytest.raises(ValueError, match=r'201.*\(1 polygon\).*6798.*\(1 polygon\).*311'):
        Polygons(path, column='crop', classes={311: 'maize'})


def test_text_codes_keep_their_zeros(tmp_path: Path) -> None:
    path = fields(tmp_path / 'fields.gpkg', ['010', '10', '011'])
    assert row(Polygons(path, column='crop', classes={'010': 'a', 10: 'b', '011': 'c'}), 3)[:5:2] == [0, 1, 2]


@pytest.mark.parametrize('value', [99, -1, 3])
def test_numbers_that_are_no_class_are_refused(tmp_path: Path, value: int) -> None:
    with pytest.raises(ValueError, match=rf'{value} \(1 polygon\)'):
        Polygons(fields(tmp_path / 'fields.gpkg', [0, 1, value]), column='crop', labels=LABELS)


def test_text_of_a_negative_number_is_no_class(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"codes '-1' \(1 polygon\)"):
        Polygons(fields(tmp_path / 'fields.gpkg', ['0', '1', '-1']), column='crop', labels=LABELS)


def test_several_classes_need_a_column(tmp_path: Path) -> None:
    path = fields(tmp_path / 'fields.gpkg', ['wheat', 'maize'])
    with pytest.raises(ValueError, match=r"\['wheat', 'maize', 'meadow'\].*column.*\['crop', 'owner'\]"):
        Polygons(path, labels=LABELS)
    with pytest.raises(ValueError, match='column'):
        Polygons(path, labels=('ground', 'house'), outside='house')
    assert Polygons(path, labels=('ground', 'house'), outside='ground').outside == 0


def test_a_folder_of_shapefiles_is_read_by_its_shapes_alone(tmp_path: Path) -> None:
    folder = tmp_path / 'shp [2021]'
    folder.mkdir()
    fields(folder / 'fields.shp', ['wheat', 'maize', 'meadow'])
    (folder / 'fields.csv').write_text('a,b\n1,2\n')
    (folder / '._fields.shp').write_text('')
    labels = Polygons(folder, column='crop', labels=LABELS)
    assert labels.files == [str(folder / 'fields.shp')]
    assert row(labels, 3)[:5:2] == [0, 1, 2]
    (tmp_path / 'none').mkdir()
    (tmp_path / 'none/a.txt').write_text('')
    with pytest.raises(ValueError, match=r"files \['a.txt'\]"):
        Polygons(tmp_path / 'none', column='crop', labels=LABELS)


def points(path: Path, crops: list[Any], crs: str = UTM) -> Path:
    """A point 23 m right and 47 m below of where each field begins."""
    shapes = [shapely.Point(X + 100 * i + 23, Y - 47) for i in range(len(crops))]
    frame = gpd.GeoDataFrame({'crop': crops}, geometry=shapes, crs=UTM).to_crs(crs)
    if path.suffix == '.csv':
        names = ('lon', 'lat') if crs == 'EPSG:4326' else ('x', 'y')
        table = frame.drop(columns='geometry').assign(**{names[0]: frame.geometry.x, names[1]: frame.geometry.y})
        table.to_csv(path, index=False, sep=';' if crs == 'EPSG:4326' else ',')
    else:
        frame.to_file(path)
    return path


@pytest.mark.parametrize(
    ('name', 'crs'), [('p.gpkg', UTM), ('p.geojson', 'EPSG:4326'), ('p.csv', 'EPSG:4326'), ('p.csv', UTM)]
)
def test_points_label_the_pixel_that_they_fall_in(tmp_path: Path, name: str, crs: str) -> None:
    path = points(tmp_path / name, ['meadow', 'wheat', 'maize'], crs)
    labels = Polygons(path, crs=UTM, column='crop', labels=LABELS)
    assert labels.sparse
    mask = labels[slice(X, X + 300, 10.0), slice(Y - 80, Y, 10.0)]['mask']
    assert mask[4, [2, 12, 22]].tolist() == [2, 0, 1]
    assert (mask != -1).sum() == 3
    wide = Polygons(path, crs=UTM, column='crop', labels=LABELS, buffer=15)
    mask = wide[slice(X, X + 300, 10.0), slice(Y - 80, Y, 10.0)]['mask']
    assert [(mask == k).sum().item() for k in range(3)] == [8, 8, 8]  # centres within 15 m of (3, 3) in a pixel


@pytest.mark.parametrize('several', [False, True])
def test_points_of_different_classes_in_a_pixel_label_nothing(tmp_path: Path, several: bool) -> None:
    where = [(3, 3), (6, 6), (8, 1), (23, 3), (27, 5), (43, 3), (43, 5)]
    frame = gpd.GeoDataFrame(
        {'crop': ['wheat', 'maize', 'wheat', 'meadow', 'meadow', 'maize', None]},
        geometry=[shapely.Point(X + x, Y - y) for x, y in where],
        crs=UTM,
    )
    (tmp_path / 'points').mkdir()
    for name, rows in (('a', frame[::2]), ('b', frame[1::2])) if several else (('a', frame),):
        rows.to_file(tmp_path / f'points/{name}.gpkg')
    labels = Polygons(tmp_path / 'points', column='crop', labels=LABELS)
    mask = labels[slice(X, X + 60, 10.0), slice(Y - 20, Y, 10.0)]['mask']
    assert mask[0].tolist() == [-1, -1, 2, -1, 1, -1]


def test_ambiguous_pixels_are_found_whatever_the_order(tmp_path: Path) -> None:
    shapes = [shapely.box(X, Y - 80, X + width, Y) for width in (80, 40, 80)]
    frame = gpd.GeoDataFrame({'crop': ['wheat', 'maize', 'wheat']}, geometry=shapes, crs=UTM)
    frame.to_file(tmp_path / 'fields.gpkg')
    labels = Polygons(tmp_path / 'fields.gpkg', column='crop', labels=LABELS)
    grid = window_grid(labels.crs, slice(X, X + 100, 10.0), slice(Y - 80, Y, 10.0))
    assert labels.ambiguous(grid)[0].tolist() == [True] * 4 + [False] * 6
    assert row(labels, 1)[0] == 0


def test_codes_of_a_table_keep_their_zeros(tmp_path: Path) -> None:
    (tmp_path / 'p.csv').write_text('Longitude,Latitude,code\n4.4,51,010\n4.5,51,10\n4.6,51,\n')
    labels = Polygons(tmp_path / 'p.csv', column='code', classes={'010': 'a', 10: 'b'})
    assert labels.frames[str(tmp_path / 'p.csv')].number.tolist() == [0, 1, -1]


@pytest.mark.parametrize(
    ('text', 'crs', 'place'),
    [
        ('lon;lat;crop\n4,5;51,001;wheat\n', None, (4.5, 51.001)),
        ('lon,lat,crop\n"-4,5","51,25",wheat\n', None, (-4.5, 51.25)),
        ('x;y;crop\n500100,5;4999950,25;wheat\n', UTM, (500100.5, 4999950.25)),
    ],
)
def test_decimal_commas(tmp_path: Path, text: str, crs: str | None, place: tuple[float, float]) -> None:
    (tmp_path / 'p.csv').write_text(text)
    point = read_geometries(str(tmp_path / 'p.csv'), 'crop', crs=crs).geometry.iloc[0]
    assert (point.x, point.y) == place


@pytest.mark.parametrize(
    ('text', 'settings', 'value'),
    [
        ('lon,lat,height,crop\n4,51,30,wheat,\n', {}, 'more fields than the 4 columns'),
        ('x;y;crop\n500,100;4999950;wheat\n', {}, '500,100.* in row 1'),
        ('a,b,crop\n1,2,wheat\n', {}, r"\['a', 'b', 'crop'\], expected lon and lat"),
        ('x,y,crop\n1,2,wheat\n', {'crs': None}, r"\['x', 'y'\], expected lon and lat, or for a mask its argument crs"),
        ('lon,lat,crop\n4,51,wheat\n600000,51,wheat\n', {}, r'600000.* in row 2'),
        ('lon,lat,crop\n4,51,wheat\n4,north,wheat\n', {}, 'north.* in row 2'),
        ('lon,lat,crop\n4,51,wheat\n', {'outside': 'maize'}, "outside of the mask is 'maize'"),
        ('lon,lat,crop\n4,51,wheat\n', {'column': None}, r"column.*\['lon', 'lat', 'crop'\]"),
        ('lon,lat,crop\n4,51,NA\n', {}, r"'NA' \(1 point\)"),
    ],
)
def test_errors_about_points(tmp_path: Path, text: str, settings: dict[str, Any], value: str) -> None:
    (tmp_path / 'p.csv').write_text(text)
    with pytest.raises(ValueError, match=value):
        Polygons(tmp_path / 'p.csv', **{'crs': UTM, 'column': 'crop', 'labels': LABELS, **settings})


def test_lines_and_mixtures_are_refused(tmp_path: Path) -> None:
    line = shapely.LineString([(X, Y), (X + 100, Y - 100)])
    gpd.GeoDataFrame({'crop': ['wheat']}, geometry=[line], crs=UTM).to_file(tmp_path / 'line.gpkg')
    with pytest.raises(ValueError, match=r"line.gpkg.*\['LineString'\]"):
        Polygons(tmp_path / 'line.gpkg', column='crop', labels=LABELS)
    both = [fields(tmp_path / 'a.gpkg', ['wheat']), points(tmp_path / 'b.gpkg', ['maize'])]
    with pytest.raises(ValueError, match=r'b.gpkg.*points.*a.gpkg polygons'):
        Polygons(both, column='crop', labels=LABELS)


def test_parquet_without_pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'pyarrow', None)
    with pytest.raises(ImportError, match=r'crops.parquet requires pyarrow'):
        read_geometries('crops.parquet')
