# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Outlines of fields: a coverage without gaps, in files that fiboa describes."""

import json
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from numpy.typing import NDArray
from pyproj import CRS

from torchgeo_omnisat.grid import Grid
from torchgeo_omnisat.prediction.fields.outlines import write_fields
from torchgeo_omnisat.prediction.fields.segmentation import FieldOptions, segment_fields, segment_map
from torchgeo_omnisat.prediction.raster import MapBands, Precision, class_colors, write_map
from torchgeo_omnisat.prediction.tiling import Window

from ..areas import LABELS, make_grid
from .test_segmentation import maps_of, random_maps

#: Schema of fiboa 0.2.0 for features (https://fiboa.github.io/specification/v0.2.0/schema.yaml) and of its extension
#: for crops 0.1.0, which requires a list of codes: types, limits and values of the columns that we write.
SCHEMA: dict[str, dict[str, Any]] = {
    'id': {'type': 'string', 'required': True, 'minLength': 1},
    'geometry': {'type': 'geometry', 'required': True},
    'area': {'type': 'float', 'exclusiveMinimum': 0, 'maximum': 100000},
    'determination_method': {
        'type': 'string',
        'enum': ['manual', 'driven', 'surveyed', 'auto-operation', 'auto-imagery', 'unknown'],
    },
    'determination_datetime': {'type': 'date-time'},
    'crop:code': {'type': 'string'},
    'crop:name': {'type': 'string'},
    'crop:code_list': {'type': 'string'},
}


def check_fiboa(fields: gpd.GeoDataFrame) -> None:
    for name, rule in SCHEMA.items():
        if name not in fields:
            assert not rule.get('required'), name
            continue
        values = fields[name]
        assert values.notna().all(), name
        if rule['type'] == 'string':
            assert values.map(lambda value: isinstance(value, str)).all(), name
        elif rule['type'] == 'float':
            assert values.dtype == float
            assert ((values > rule['exclusiveMinimum']) & (values <= rule['maximum'])).all()
        elif rule['type'] == 'date-time':
            assert str(values.dt.tz) == 'UTC'
        assert values.isin(rule['enum']).all() if 'enum' in rule else True
        assert (values.str.len() >= rule['minLength']).all() if 'minLength' in rule else True
    assert fields['id'].is_unique
    assert (fields.geom_type == 'Polygon').all()
    assert fields.is_valid.all()


def write(
    folder: Path,
    extent: NDArray[Any],
    distance: NDArray[Any],
    classes: NDArray[Any] | None = None,
    seen: NDArray[Any] | None = None,
    precision: Precision = 'uint8',
    grid: Grid | None = None,
) -> Path:
    """Map of predictions; class k has the probability 0.5 + k / 10."""
    height, width = distance.shape
    classes = np.ones(distance.shape, int) if classes is None else classes
    codes = np.arange(3)[:, None, None]
    probabilities = np.where(classes == codes, 0.5 + codes / 10, 0.1)
    bands = MapBands(LABELS, ['s2', 's1a'], precision, fields=True)
    values = np.concatenate([probabilities, extent[1:], distance[None]]).astype(np.float32)
    encoded = bands.encode(values, np.ones(distance.shape, np.uint16) if seen is None else seen.astype(np.uint16))
    path, parts = folder / 'map.tif', [(Window(0, 0, height, width), encoded)]
    write_map(path, folder / 'scratch.tif', grid or make_grid(height, width), bands, parts, class_colors(3))
    return path


def outlines(path: Path, name: str = 'fields.gpkg', block: int = 1024, **kwargs: Any) -> gpd.GeoDataFrame:
    options = FieldOptions(**{'smallest': 0.0, 'hole': 0.0} | kwargs.pop('options', {}))
    folder = path.parent
    table = segment_map(path, folder / 'ids.tif', folder / 'scratch.tif', options, block)
    output = folder / name
    output.unlink(missing_ok=True)
    count = write_fields(path, folder / 'ids.tif', table, output, LABELS, ['s2', 's1a'], options, block=block, **kwargs)
    fields = gpd.read_file(output) if output.suffix == '.gpkg' else gpd.read_parquet(output)
    assert len(fields) == count
    return fields.assign(number=fields['id'].str.split('-').str[0].astype(int)).sort_values('number', ignore_index=True)


def two_fields() -> NDArray[np.int64]:
    ids = np.zeros((24, 40), int)
    ids[2:22, 3:20], ids[2:22, 20:36] = 1, 2
    return ids


@pytest.fixture(scope='module')
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two touching fields of one class."""
    return write(tmp_path_factory.mktemp('plain'), *maps_of(two_fields()))


@pytest.fixture(scope='module')
def random(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fields and gaps of many shapes."""
    return write(tmp_path_factory.mktemp('random'), *random_maps(1, (90, 110)))


class TestSegmentMap:
    @pytest.mark.parametrize('block', [200, 33, 16])
    def test_it_is_that_of_the_arrays(self, random: Path, block: int) -> None:
        extent, distance = random_maps(1, (90, 110))
        ids = segment_fields(extent, distance, smallest=10)
        segment_map(random, random.parent / 'ids.tif', random.parent / 'scratch.tif', block=block)
        with rasterio.open(random.parent / 'ids.tif') as file:
            assert np.array_equal(file.read(1), ids)
            assert (file.dtypes, file.nodata) == (('int32',), 0)

    def test_a_map_without_boundaries_is_an_error(self, tmp_path: Path) -> None:
        bands = MapBands(LABELS, ['s2'])
        values = np.zeros((5, 4, 4), np.uint8)
        parts = [(Window(0, 0, 4, 4), values)]
        write_map(tmp_path / 'a.tif', tmp_path / 'b.tif', make_grid(4, 4), bands, parts, class_colors(3))
        with pytest.raises(ValueError, match='field interior'):
            segment_map(tmp_path / 'a.tif', tmp_path / 'ids.tif', tmp_path / 'b.tif')

    def test_large_ones_are_removed(self, plain: Path) -> None:
        options = FieldOptions(largest=3.3)
        table = segment_map(plain, plain.parent / 'ids.tif', plain.parent / 'scratch.tif', options)
        assert (table.sizes.tolist(), table.removed) == ([320], (0, 1))

    @pytest.mark.parametrize('changes', [{'h': 0.0}, {'threshold': 1.0}, {'smallest': -1.0}, {'largest': 0.05}])
    def test_invalid_options(self, changes: dict[str, float]) -> None:
        with pytest.raises(ValueError, match=next(iter(changes))):
            FieldOptions(**changes)


class TestGeometry:
    @pytest.mark.parametrize('block', [200, 60])
    def test_neighbours_share_their_border(self, random: Path, block: int) -> None:
        fields = outlines(random, block=block)
        assert len(fields) > 20
        assert shapely.coverage_is_valid(fields.geometry.to_numpy())
        assert fields.union_all().area == pytest.approx(fields.area.sum(), rel=1e-9)
        assert fields.is_valid.all()
        assert (fields['area'] * 1e4).to_numpy() == pytest.approx(fields.area.to_numpy())

    def test_blocks_leave_no_trace(self, random: Path) -> None:
        whole, parts = outlines(random), outlines(random, block=60)
        assert whole.drop(columns='geometry').equals(parts.drop(columns='geometry'))
        assert whole.geometry.normalize().equals(parts.geometry.normalize())

    def test_without_simplification_they_are_the_pixels(self, random: Path) -> None:
        fields = outlines(random, options={'simplify': 0.0})
        with rasterio.open(random.parent / 'ids.tif') as file:
            sizes = np.bincount(file.read(1).ravel())[1:]
        assert (fields['area'] * 100).round().astype(int).tolist() == sizes.tolist()
        simple = outlines(random)
        assert (
            shapely.get_num_coordinates(simple.geometry).sum() < shapely.get_num_coordinates(fields.geometry).sum() / 3
        )

    def test_a_straight_border_at_a_corner_of_a_third(self, tmp_path: Path) -> None:
        """GDAL's polygon of the upper field has no vertex where the lower two meet."""
        ids = np.zeros((30, 30), int)
        ids[3:15, 3:27], ids[15:27, 3:14], ids[15:27, 14:27] = 1, 2, 3
        fields = outlines(write(tmp_path, *maps_of(ids)))
        assert len(fields) == 3
        assert shapely.coverage_is_valid(fields.geometry.to_numpy())

    def test_they_lie_where_their_pixels_are(self, plain: Path) -> None:
        fields = outlines(plain, options={'simplify': 0.0})
        assert fields.total_bounds.tolist() == [600030, 5600000 - 220, 600360, 5600000 - 20]
        assert fields.crs.to_epsg() == 32631

    def test_holes_are_closed_up_to_a_size(self, tmp_path: Path) -> None:
        ids = two_fields()
        ids[8:10, 8:10] = ids[12:18, 26:32] = 0
        extent, distance = maps_of(ids)
        path = write(tmp_path, extent, distance)
        options = {'simplify': 0.0, 'hole': 0.1, 'h': 1.0}
        fields = outlines(path, options=options)
        assert shapely.get_num_interior_rings(fields.geometry.to_numpy()).tolist() == [0, 1]
        assert fields['area'].tolist() == pytest.approx([3.4, 2.84])
        seen = np.ones(ids.shape)
        seen[8, 8] = 0
        fields = outlines(write(tmp_path, extent, distance, seen=seen), options=options)
        assert shapely.get_num_interior_rings(fields.geometry.to_numpy()).tolist() == [1, 1]

    def test_they_are_clipped_at_the_area(self, plain: Path) -> None:
        area = shapely.box(600000, 5600000 - 105, 600333, 5600000) | shapely.box(600000, 5599780, 600333, 5599850)
        fields = outlines(plain, area=area, options={'simplify': 0.0})
        assert fields['id'].tolist() == ['1', '1-2', '2', '2-2']
        assert fields.total_bounds.tolist() == [600030, 5599780, 600333, 5599980]
        assert fields['area'].tolist() == pytest.approx([17 * 85 / 1e3, 17 * 70 / 1e3, 0.133 * 8.5, 0.133 * 7])
        check_fiboa(fields)

    def test_degrees_have_no_hectares(self, tmp_path: Path) -> None:
        grid = Grid(CRS.from_epsg(4326), make_grid(24, 40).transform, 24, 40)
        with pytest.raises(ValueError, match='EPSG:4326'):
            outlines(write(tmp_path, *maps_of(two_fields()), grid=grid))


class TestColumns:
    @pytest.mark.parametrize('name', ['fields.gpkg', 'fields.parquet'])
    def test_they_are_those_of_fiboa(self, random: Path, name: str) -> None:
        code_list = 'https://example.org/codes.csv'
        fields = outlines(random, name, date=18262, options={'code_list': code_list})
        check_fiboa(fields)
        assert set(fields['determination_datetime'].dt.strftime('%Y-%m-%d')) == {'2020-01-01'}
        assert set(fields['determination_method']) == {'auto-imagery'}
        assert set(fields['crop:code_list']) == {code_list}

    def test_both_formats_hold_the_same(self, random: Path) -> None:
        package, parquet = outlines(random, date=18262), outlines(random, 'fields.parquet', block=60, date=18262)
        assert package.columns.tolist() == parquet.columns.tolist() or set(package) == set(parquet)
        for name in set(package) - {'geometry', 'determination_datetime'}:
            assert package[name].tolist() == parquet[name].tolist(), name
        assert package.geometry.normalize().equals(parquet.geometry.normalize())
        assert package.crs.to_epsg() == parquet.crs.to_epsg() == 32631

    def test_the_schema_is_named(self, plain: Path) -> None:
        pyarrow = pytest.importorskip('pyarrow.parquet')
        outlines(plain)
        outlines(plain, 'fields.parquet')
        with sqlite3.connect(plain.parent / 'fields.gpkg') as database:
            stored = ' '.join(row[0] for row in database.execute('SELECT metadata FROM gpkg_metadata'))
        assert 'https://fiboa.github.io/specification/v0.2.0/schema.yaml' in stored
        meta = json.loads(pyarrow.read_schema(plain.parent / 'fields.parquet').metadata[b'fiboa'])
        assert meta == {'schemas': ['https://fiboa.github.io/specification/v0.2.0/schema.yaml']}

    def test_crop_probability_and_sensors(self, tmp_path: Path) -> None:
        ids = two_fields()
        classes = np.where(ids == 1, 1, 2)
        classes[:, :6] = 2  # the fewest pixels of field 1
        seen = np.where(np.arange(40) < 20, 1, 2) * np.ones((24, 1), int)
        fields = outlines(write(tmp_path, *maps_of(ids), classes=classes, seen=seen))
        assert fields['crop:code'].tolist() == ['1', '2']
        assert fields['crop:name'].tolist() == ['field', 'town']
        assert fields['sensors'].tolist() == ['s2', 's1a']
        inside = classes[ids == 1]
        assert fields['probability'].tolist() == pytest.approx([np.where(inside == 1, 0.6, 0.1).mean(), 0.7], abs=1e-3)
        fields = outlines(tmp_path / 'map.tif', background=1)
        assert fields['crop:name'].tolist() == ['town', 'town']
        fields = outlines(write(tmp_path, *maps_of(ids), classes=classes, seen=seen, precision='none'))
        assert fields['crop:name'].tolist() == ['field', 'town']
        assert fields['probability'].isna().all()

    @pytest.mark.parametrize('name', ['fields.gpkg', 'fields.parquet'])
    def test_a_field_of_the_background_alone_has_no_crop(self, tmp_path: Path, name: str) -> None:
        ids = two_fields()
        path = write(tmp_path, *maps_of(ids), classes=np.where(ids == 1, 1, 2), precision='none')
        fields = outlines(path, name, background=1)
        assert fields['crop:code'].isna().tolist() == [True, False]
        assert fields['crop:name'].isna().tolist() == [True, False]
        assert fields['crop:name'][1] == 'town'

    @pytest.mark.parametrize('name', ['fields.gpkg', 'fields.parquet'])
    def test_of_nothing_there_is_an_empty_file(self, tmp_path: Path, name: str) -> None:
        path = write(tmp_path, *maps_of(np.zeros((9, 9), int)))
        fields = outlines(path, name)
        assert len(fields) == 0
        assert {'id', 'geometry', 'area', 'crop:code'} <= set(fields)

    def test_an_unknown_extension(self, plain: Path) -> None:
        with pytest.raises(ValueError, match=r'fields\.shp'):
            outlines(plain, 'fields.shp')

    def test_parquet_without_pyarrow(self, plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(__import__('sys').modules, 'pyarrow', None)
        with pytest.raises(ImportError, match=r'fields.parquet requires pyarrow.*torchgeo_omnisat\[parquet\]'):
            outlines(plain, 'fields.parquet')


def test_options_are_immutable() -> None:
    assert replace(FieldOptions(), h=0.5).h == 0.5
