# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""``GeoTIFFWriter`` with fields: the same fields, resumed or shared, with styles that show their colours."""

import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
import torch
from pyproj import CRS
from rasterio.enums import ColorInterp

from torchgeo_omnisat.prediction import GeoTIFFWriter, segment_fields
from torchgeo_omnisat.prediction.fields.segmentation import FieldOptions, segment_map
from torchgeo_omnisat.prediction.writer import stale_files
from torchgeo_omnisat.tasks import OmniSatSegmentation

from ..areas import FINE, LABELS, TOLD, PlaneDataModule, is_cog
from ..test_resume import count_tiles, killed
from ..test_writer import make_task, make_trainer, predict, read

pytestmark = pytest.mark.filterwarnings('ignore:.*does not have many workers', 'ignore:.*fork')
AREA: dict[str, Any] = {'height': 100, 'width': 90, 'modalities': ('s2', 's1a'), 'covers': {'s1a': (0, 40)}}
OPTIONS = FieldOptions(threshold=0.3, h=0.01, smallest=0.05, simplify=1.0)
COLORS = ('#0a141e', '#ffff00', '#ff0000')


def field_task() -> OmniSatSegmentation:
    return make_task(instances=True)


def predict_fields(folder: Path, datamodule: PlaneDataModule | None = None, **kwargs: Any) -> Path:
    options = {'fields': True, 'field_options': OPTIONS, 'styles': True, 'colors': COLORS} | kwargs
    return predict(folder, datamodule or PlaneDataModule(**AREA), field_task(), **options)


def same(one: Path, two: Path) -> bool:
    ours, theirs = gpd.read_file(one), gpd.read_file(two)
    return bool(ours.equals(theirs)) and len(ours) > 3


@pytest.fixture(scope='module')
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Map of a run without interruption."""
    return predict_fields(tmp_path_factory.mktemp('whole'))


def test_files_beside_the_map(whole: Path) -> None:
    names = ['map.qml', 'map.tif', 'map_classes.qml', 'map_classes.tif', 'map_fields.gpkg', 'map_fields.qml']
    assert sorted(path.name for path in whole.parent.iterdir()) == names


def test_the_map_has_bands_of_boundaries(whole: Path) -> None:
    with rasterio.open(whole) as file:
        assert file.descriptions[-3:] == ('field interior', 'field boundary', 'field distance')
        assert file.scales[-3:] == pytest.approx((0.004, 0.004, 0.004))
        interior, boundary, distance = file.read([6, 7, 8]) / 250
    extent = np.stack([1 - interior - boundary, interior, boundary])
    ids = segment_fields(extent, distance, threshold=0.3, h=0.01, smallest=5)
    fields = gpd.read_file(whole.with_name('map_fields.gpkg'))
    assert len(fields) == ids.max()
    assert is_cog(whole)


def test_fields_are_a_coverage_with_date_and_sensors(whole: Path) -> None:
    fields = gpd.read_file(whole.with_name('map_fields.gpkg'))
    assert shapely.coverage_is_valid(fields.geometry.to_numpy())
    assert set(fields['determination_datetime'].dt.strftime('%Y-%m-%d')) == {'2019-05-14'}  # day 18030
    assert set(fields['crop:name']) <= set(LABELS)
    assert set(fields['sensors']) <= {'s2', 's1a+s2', 's2+s1a'}
    assert len(set(fields['sensors'])) == 2


def test_resumed_after_a_kill(tmp_path: Path, whole: Path) -> None:
    datamodule = PlaneDataModule(**AREA)
    count_tiles(datamodule, 9)
    killed(lambda: predict_fields(tmp_path, datamodule))
    assert same(predict_fields(tmp_path).with_name('map_fields.gpkg'), whole.with_name('map_fields.gpkg'))


@pytest.mark.enable_socket
def test_two_processes(tmp_path: Path, whole: Path) -> None:
    writer = GeoTIFFWriter(str(tmp_path / 'map.tif'), overview=False, fields=True, field_options=OPTIONS, colors=COLORS)
    trainer = make_trainer(tmp_path, writer, devices=2, strategy='ddp_fork')
    torch.set_num_threads(1)
    trainer.predict(field_task(), datamodule=PlaneDataModule(**AREA), return_predictions=False)
    assert same(tmp_path / 'map_fields.gpkg', whole.with_name('map_fields.gpkg'))


def test_to_parquet_elsewhere_and_clipped(tmp_path: Path) -> None:
    datamodule = PlaneDataModule(**AREA)
    xmin, _, _, ymax = datamodule.grid.bounds
    datamodule.area = shapely.Point(xmin + 450, ymax - 500).buffer(333)  # type: ignore[attr-defined]
    output = tmp_path / 'other' / 'fields.parquet'
    predict_fields(tmp_path, datamodule, fields=str(output), styles=False)
    fields = gpd.read_parquet(output)
    assert len(fields)
    assert datamodule.area.buffer(1e-6).covers(fields.union_all())  # type: ignore[attr-defined]
    assert sorted(path.name for path in tmp_path.iterdir()) == ['map.tif', 'other']


class TestStyles:
    def test_gdal_reports_a_palette(self, whole: Path) -> None:
        with rasterio.open(whole.with_name('map_classes.tif')) as file:
            assert (file.count, file.colorinterp) == (1, (ColorInterp.palette,))
            assert [file.colormap(1)[index][:3] for index in range(3)] == [(10, 20, 30), (255, 255, 0), (255, 0, 0)]
            assert [file.tags(1)[f'CLASS_{index}'] for index in range(3)] == LABELS
            assert np.array_equal(file.read(1), read(whole)[0])
            assert file.tags(ns='IMAGE_STRUCTURE')['LAYOUT'] == 'COG'
        with rasterio.open(whole) as file:
            assert file.colorinterp[0] == ColorInterp.palette

    def test_style_of_the_map(self, whole: Path) -> None:
        renderer = ElementTree.parse(whole.with_suffix('.qml')).find('pipe/rasterrenderer')
        assert renderer is not None
        assert (renderer.get('type'), renderer.get('band')) == ('paletted', '1')
        entries = [(item.get('value'), item.get('label'), item.get('color')) for item in renderer.iter('paletteEntry')]
        assert entries == [('0', 'water', COLORS[0]), ('1', 'field', COLORS[1]), ('2', 'town', COLORS[2])]

    def test_style_of_the_fields(self, whole: Path) -> None:
        renderer = ElementTree.parse(whole.with_name('map_fields.qml')).find('renderer-v2')
        assert renderer is not None
        assert (renderer.get('type'), renderer.get('attr')) == ('categorizedSymbol', 'crop:name')
        categories = {item.get('value'): item.get('symbol') for item in renderer.iter('category')}
        symbols = {item.get('name'): item.find("layer/prop[@k='color']") for item in renderer.iter('symbol')}
        assert list(categories) == [*LABELS, '']  # null is drawn in the category of an empty value
        assert symbols[categories['field']].get('v') == '255,255,0,200'  # type: ignore[index, union-attr]
        assert symbols[categories['']].get('v') == '220,220,224,200'  # type: ignore[index, union-attr]

    def test_names_are_escaped(self, tmp_path: Path) -> None:
        from torchgeo_omnisat.prediction.raster import class_colors
        from torchgeo_omnisat.prediction.styles import write_raster_style

        write_raster_style(tmp_path / 'map.qml', ['a & <b> "c"', 'é'], class_colors(2))
        entries = ElementTree.parse(tmp_path / 'map.qml').iter('paletteEntry')
        assert [entry.get('label') for entry in entries] == ['a & <b> "c"', 'é']


class TestErrors:
    def test_a_model_without_instances(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match='instances true'):
            predict(tmp_path, PlaneDataModule(32, 32), fields=True)

    @pytest.mark.parametrize('name', ['map.gpkg', 'map_classes.gpkg'])
    def test_the_name_of_a_map(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(ValueError, match=re.escape(name)):
            predict_fields(tmp_path, PlaneDataModule(32, 32), fields=str(tmp_path / name))

    def test_degrees_before_prediction(self, tmp_path: Path) -> None:
        datamodule = PlaneDataModule(32, 32)
        datamodule.grid = replace(datamodule.grid, crs=CRS.from_epsg(4326))
        counter = count_tiles(datamodule)
        with pytest.raises(ValueError, match='EPSG:4326'):
            predict_fields(tmp_path, datamodule)
        assert counter == [0]

    def test_an_unknown_extension(self) -> None:
        with pytest.raises(ValueError, match=r'fields\.shp'):
            GeoTIFFWriter(fields='fields.shp')

    def test_outputs_that_are_folders(self, tmp_path: Path) -> None:
        (tmp_path / 'f.gpkg').mkdir()
        with pytest.raises(ValueError, match=r"f\.gpkg' is a folder"):
            GeoTIFFWriter(fields=str(tmp_path / 'f.gpkg'))
        for name in ('map.tif', 'map_classes.tif', 'map.png', 'map_fields.gpkg'):
            (tmp_path / name).mkdir()
            datamodule = PlaneDataModule(32, 32)
            counter = count_tiles(datamodule)
            with pytest.raises(ValueError, match=rf"{re.escape(name)}' is a folder"):
                make_trainer(tmp_path, GeoTIFFWriter(str(tmp_path / 'map.tif'), fields=True)).predict(
                    make_task(), datamodule=datamodule
                )
            assert counter == [0]
            (tmp_path / name).rmdir()


class TestFilesOfAnEarlierMap:
    @staticmethod
    def names(folder: Path) -> list[str]:
        return sorted(path.name for path in folder.iterdir())

    def test_they_are_removed(self, tmp_path: Path) -> None:
        (tmp_path / 'other_fields.gpkg').touch()
        predict_fields(tmp_path, PlaneDataModule(32, 32), fields=str(tmp_path / 'map_fields.parquet'), parcels=True)
        assert {'map.gpkg', 'map.qml', 'map_classes.qml', 'map_fields.parquet', 'map_fields.qml'} < set(
            self.names(tmp_path)
        )
        predict_fields(tmp_path, PlaneDataModule(32, 32))
        names = ['map.qml', 'map.tif', 'map_classes.qml', 'map_classes.tif', 'map_fields.gpkg', 'map_fields.qml']
        assert self.names(tmp_path) == [*names, 'other_fields.gpkg']
        predict(tmp_path, PlaneDataModule(32, 32))
        assert self.names(tmp_path) == ['map.tif', 'other_fields.gpkg']

    def test_files_of_others_stay(self, tmp_path: Path) -> None:
        output, theirs = predict(tmp_path, PlaneDataModule(32, 32)), ('map.qml', 'map_fields.gpkg', 'map.json')
        for name in theirs:
            (tmp_path / name).write_text('mine')
        for _ in range(2):
            with pytest.warns(UserWarning, match=r'map\.json.*map_fields\.gpkg.*map\.tif'):
                assert stale_files(output, [output]) == []
            output.write_bytes(b'not a map')

    def test_a_warning_before_files_of_others_are_replaced(self, tmp_path: Path) -> None:
        mine, datamodule = tmp_path / 'map.qml', PlaneDataModule(32, 32)
        mine.write_text('saved in QGIS')
        datamodule.predict_dataset = {}  # type: ignore[assignment]
        with pytest.warns(UserWarning, match=r"map\.qml'\] will be replaced with .*map\.tif"), pytest.raises(KeyError):
            predict_fields(tmp_path, datamodule)
        assert mine.read_text() == 'saved in QGIS'
        mine.unlink()
        for _ in range(2):
            with warnings.catch_warnings():
                warnings.filterwarnings('error', '.*will be replaced')
                predict_fields(tmp_path, PlaneDataModule(32, 32))

    def test_a_renamed_map(self, tmp_path: Path) -> None:
        """Its tag lists files that belong to the map of the old name."""
        (tmp_path / 'map.json').write_text('mine')
        for name in ('map.tif', 'new.tif'):
            with rasterio.open(tmp_path / name, 'w', 'GTiff', 1, 1, 1, dtype='uint8') as file:
                file.update_tags(FILES='["map.json"]')
        assert stale_files(tmp_path / 'new.tif', []) == []
        assert stale_files(tmp_path / 'map.tif', []) == [tmp_path / 'map.json']
        assert stale_files(tmp_path / 'map.tif', [tmp_path / 'map.json']) == []


class KnownFields(OmniSatSegmentation):
    """A model that knows the boundaries of three fields of one class, which are not those of pixels of 10 m."""

    def infer(self, batch: Any) -> Any:
        logits, maps = super().infer(batch)
        factor, ids = self.field_factor, []
        for row, column, height, width in batch['window'].tolist():
            y = (torch.arange(factor * height) + 0.5) / factor + row
            x = (torch.arange(factor * width) + 0.5) / factor + column
            ids.append(torch.where(y[:, None] < 24.25, 1, torch.where(x < 32.75, 2, 3)))
        edge = torch.stack(ids)
        touching = torch.nn.functional.max_pool2d(edge[:, None].float(), 3, 1, 1)[:, 0] > edge
        touching |= torch.nn.functional.max_pool2d(-edge[:, None].float(), 3, 1, 1)[:, 0] > -edge
        extent = torch.stack([torch.full_like(maps.distance, -9.0), (~touching) * 3.0, touching * 3.0], 1)
        return 0 * logits, maps._replace(extent=extent, distance=(~touching) * 0.5 + 0.0)


#: Labels of 10 m, and boundaries of 5 m.
FINER: dict[str, Any] = {**TOLD, 'modalities': FINE, 'instances': True, 'field_gsd': 5.0}
FINER_AREA: dict[str, Any] = {
    **{'height': 48, 'width': 40, 'modalities': ('s2', 'spot')},
    'covers': {'spot': (0, 32), 's2': (4, 99)},
}


def predict_finer(folder: Path, datamodule: PlaneDataModule, kind: Any = OmniSatSegmentation, **kwargs: Any) -> Path:
    torch.manual_seed(0)
    options = {'fields': True, 'field_options': OPTIONS, 'overview': False, 'colors': COLORS} | kwargs
    writer = GeoTIFFWriter(str(folder / 'map.tif'), **options)
    make_trainer(folder, writer).predict(kind(**FINER), datamodule=datamodule)
    return folder / 'map.tif'


@pytest.fixture(scope='module')
def finer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Map of such a model."""
    return predict_finer(tmp_path_factory.mktemp('finer'), PlaneDataModule(**FINER_AREA))


class TestFinerBoundaries:
    """``field_gsd``: boundaries, and so the map, are finer than the labels."""

    def test_the_map_has_the_finer_grid(self, finer: Path, tmp_path: Path) -> None:
        coarse = predict_finer(tmp_path, PlaneDataModule(**FINER_AREA), fields=False, styles=False)
        with rasterio.open(finer) as file, rasterio.open(coarse) as labels:
            assert (file.shape, labels.shape) == ((96, 80), (48, 40))
            assert (file.bounds, file.res) == (labels.bounds, (5, 5))
            assert np.array_equal(file.read(2), labels.read(2).repeat(2, 0).repeat(2, 1))
            mean = torch.nn.functional.interpolate(
                torch.from_numpy(labels.read([3, 4, 5])).float()[None], scale_factor=2, mode='bilinear'
            )[0]
            assert abs(mean.numpy() - file.read([3, 4, 5])).max() < 10  # but for the blending of tiles
            interior = file.read(6).astype(int)
        with rasterio.open(finer.with_name('map_classes.tif')) as file:
            assert file.shape == (96, 80)
        assert is_cog(finer)
        assert (np.diff(interior, axis=1)[:, ::2] != 0).mean() > 0.5  # pixels of one label differ
        fields = gpd.read_file(finer.with_name('map_fields.gpkg'))
        assert shapely.coverage_is_valid(fields.geometry.to_numpy())

    def test_resumed_after_a_kill(self, tmp_path: Path, finer: Path) -> None:
        datamodule = PlaneDataModule(**FINER_AREA)
        count_tiles(datamodule, 3)
        killed(lambda: predict_finer(tmp_path, datamodule))
        predict_finer(tmp_path, PlaneDataModule(**FINER_AREA))
        assert same(tmp_path / 'map_fields.gpkg', finer.with_name('map_fields.gpkg'))
        assert np.array_equal(read(tmp_path / 'map.tif'), read(finer))

    @pytest.mark.enable_socket
    def test_two_processes(self, tmp_path: Path, finer: Path) -> None:
        writer = GeoTIFFWriter(str(tmp_path / 'map.tif'), overview=False, fields=True, field_options=OPTIONS)
        trainer = make_trainer(tmp_path, writer, devices=2, strategy='ddp_fork')
        torch.set_num_threads(1)
        torch.manual_seed(0)
        task, datamodule = OmniSatSegmentation(**FINER), PlaneDataModule(**FINER_AREA)
        trainer.predict(task, datamodule=datamodule, return_predictions=False)
        assert same(tmp_path / 'map_fields.gpkg', finer.with_name('map_fields.gpkg'))

    def test_pixels_outside_of_the_area_are_nodata(self, tmp_path: Path) -> None:
        datamodule = PlaneDataModule(16, 16, modalities=('s2', 'spot'))
        xmin, ymin, _, _ = datamodule.grid.bounds
        datamodule.area = shapely.box(xmin, ymin, xmin + 75, ymin + 105)  # type: ignore[attr-defined]
        classes = read(predict_finer(tmp_path, datamodule, styles=False))[0]
        observed = np.zeros((32, 32), bool)
        observed[-21:, :15] = True
        assert np.array_equal(classes != 255, observed)

    @pytest.mark.parametrize(('size', 'overlap', 'block'), [(32, 0.25, 1024), (24, 0.5, 1024), (24, 8, 24)])
    def test_fields_do_not_depend_on_tiles_and_blocks(
        self, tmp_path: Path, size: int, overlap: float, block: int
    ) -> None:
        """Borders at 242.5 m and 327.5 m: three touching fields of one class, cut by tiles and blocks."""
        datamodule = PlaneDataModule(48, 64, size, overlap, modalities=('s2', 'spot'))
        path = predict_finer(tmp_path, datamodule, KnownFields, field_options=FieldOptions(simplify=0), styles=False)
        fields = gpd.read_file(path.with_name('map_fields.gpkg'))
        xmin, ymin, xmax, ymax = datamodule.grid.bounds
        y, x = ymax - 240, xmin + 325  # pixel borders of 5 m; the pixel with the border belongs to either field
        expected = [(xmin, y, xmax, ymax), (xmin, ymin, x, y), (x, ymin, xmax, y)]
        assert len(fields) == 3
        for outline, box in zip(fields.geometry, expected, strict=True):
            assert outline.symmetric_difference(shapely.box(*box)).area <= 5 * 2 * (xmax - xmin)
        ids, scratch = tmp_path / 'ids.tif', tmp_path / 'scratch.tif'
        segment_map(path, ids, scratch, FieldOptions(simplify=0), block=block)
        found = read(ids)[0]
        segment_map(path, ids, scratch, FieldOptions(simplify=0))
        assert np.array_equal(found, read(ids)[0])
        assert found.max() == 3
