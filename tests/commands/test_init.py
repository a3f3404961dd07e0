# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""A configuration is written for folders as users have them, and `check` accepts it."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import rasterio.shutil
import shapely
import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from shapely.geometry import box

from tests.geo_tree import UTM, X, Y, write
from torchgeo_omnisat import Modality
from torchgeo_omnisat.__main__ import main
from torchgeo_omnisat.datasets import RasterTimeSeries
from torchgeo_omnisat.inspection.labels import find_float_labels
from torchgeo_omnisat.inspection.like import prediction_data
from torchgeo_omnisat.inspection.sensors import Sensor, single_bands
from torchgeo_omnisat.tasks import OmniSatSegmentation

SIDE = 24
PRODUCT = 'S2A_MSIL2A_{day}T104629_N0400_R051_T31UFS_{day}T150000.SAFE'
MONTHS = ('20210301', '20210501', '20210701')
S2_BANDS = ('B02', 'B03', 'B04', 'B08')
Init = Callable[..., dict[str, Any]]


def optical(bands: int = 4, side: int = SIDE, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(200, 4000, (bands, side, side)).astype(np.uint16)


def radar(bands: int = 2) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).normal(-13, 2, (bands, SIDE, SIDE)).astype(np.float32)


def text(folder: Path) -> str:
    return (folder / 'FILE.yaml').read_text()


def write_jp2(path: Path, image: np.ndarray[Any, Any], step: float = 10) -> None:
    """Write a JPEG 2000 file without loss."""
    place = write(path.with_suffix('.tif'), image, step=step)
    rasterio.shutil.copy(place, path, driver='JP2OpenJPEG', QUALITY='100', REVERSIBLE='YES')
    place.unlink()


def pack(folder: Path, day: str, keep: bool = False) -> None:
    """Put the product of a day into a zip archive as it is downloaded, beside the product or instead of it."""
    name = PRODUCT.format(day=day)
    shutil.make_archive(str(folder / name), 'zip', folder, name)
    if not keep:
        shutil.rmtree(folder / name)


def fields(root: Path, crops: tuple[Any, ...] = ('wheat', 'maize', 'meadow'), column: str = 'crop') -> None:
    """Write fields of 40 m whose crops alternate, with columns that are no classes."""
    places = [(row, column) for row in range(6) for column in range(6)]
    shapes = [box(X + 40 * c, Y - 40 * (r + 1), X + 40 * (c + 1), Y - 40 * r) for r, c in places]
    table = {'fid_1': range(36), column: [crops[(r + c) % len(crops)] for r, c in places], 'area_ha': 0.16}
    gpd.GeoDataFrame(table, geometry=shapes, crs=UTM).to_file(root / 'fields.gpkg')


@pytest.fixture
def init(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Init:
    """Run `init` on a folder, then `check` on what it wrote; return the arguments of the datamodule."""

    def run(*words: str, faults: int = 0) -> dict[str, Any]:
        path = tmp_path / 'FILE.yaml'
        assert main(['init', str(tmp_path / 'region'), '--output', str(path), *words]) == 0
        capsys.readouterr()
        assert main(['check', '--config', str(path), '--no-dry-run', '--workers', '0']) == faults
        config: dict[str, Any] = yaml.safe_load(path.read_text())
        return config['data']['init_args']

    return run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / 'region').mkdir()
    return tmp_path / 'region'


def test_dated_geotiffs_and_polygons(root: Path, tmp_path: Path, init: Init) -> None:
    for day in MONTHS:
        write(root / f's2/S2_{day}.tif', optical(), bands=S2_BANDS)
        write(root / f's1/S1_{day}.tif', radar(), bands=('VV', 'VH'))
    write(root / 'dem/dem.tif', np.full((SIDE, SIDE), 20, np.int16))
    fields(root)
    data = init()
    assert data['rasters'] == {
        's1': {'path': 's1', 'gsd': 10, 'kind': 'radar', 'unit': 'db'},
        's2': {'path': 's2', 'gsd': 10, 'kind': 'optical', 'unit': 'dn'},
        'dem': {'path': 'dem/dem.tif', 'temporal': False, 'gsd': 10, 'kind': 'elevation', 'unit': 'metres'},
    }
    assert data['mask'] == {'path': 'fields.gpkg', 'column': 'crop'}
    assert data['labels'] == ['maize', 'meadow', 'wheat']
    assert data['modalities'] == ['s1', 's2']
    assert (data['label_gsd'], data['patch_size'], data['tile_size']) == (10, 10, 40)
    assert (data['train_tile_size'], data['train_places']) == (10, 'labels')
    written = text(tmp_path)
    assert 'unit: db  # float values from' in written
    assert '- maize  # 12 polygons; pixels: train' in written
    assert '2021-03-01 to 2021-07-01' in written


def test_the_model_of_few_labels_sees_single_pixels(root: Path, tmp_path: Path, init: Init) -> None:
    for day in MONTHS:
        write(root / f's2/S2_{day}.tif', optical(), bands=S2_BANDS)
    fields(root)
    init()
    written = text(tmp_path)
    counts = [int(count) for count in re.findall(r'pixels: train (\d+)', written)]
    assert f'{sum(counts)} labelled training pixels are few, and a random forest may score higher' in written
    settings = yaml.safe_load(text(tmp_path))['model']['init_args']
    modality = Modality('s2', S2_BANDS, 10.0, True)
    task = OmniSatSegmentation(**settings, modalities=[modality.as_dict()], num_classes=3, patch_size=10, label_gsd=10)
    task.configure_model()
    image, dates = torch.randn(1, 3, 4, 6, 6), torch.tensor([[0, 30, 60]])
    batch = {'image_s2': image, 'dates_s2': dates, 'valid_s2': dates >= 0}
    other = batch | {'image_s2': torch.randn_like(image)}
    other['image_s2'][..., 2, 3] = image[..., 2, 3]
    with torch.inference_mode():
        first, second = task.eval()(batch), task(other)
    torch.testing.assert_close(first[..., 2, 3], second[..., 2, 3])
    assert not torch.allclose(first, second)


def test_calendar_of_long_series(root: Path, tmp_path: Path, init: Init) -> None:
    for day in ('20190101', '20210201'):
        write(root / f's2/S2_{day}.tif', optical(), bands=S2_BANDS)
    fields(root)
    init()
    settings = yaml.safe_load(text(tmp_path))['model']['init_args']['backbone_args']
    assert settings['encoders'] == {'s2': {'name': 'monthly', 'months': 26}}


def test_presto_of_few_labels(root: Path, tmp_path: Path, init: Init) -> None:
    for day in MONTHS:
        write(root / f's1/S1_{day}.tif', radar(), bands=('VV', 'VH'))
        write(root / f's2/S2_{day}.tif', optical(), bands=S2_BANDS)
    fields(root)
    assert init('--presto', 'presto.pt')['modalities'] == ['s2']
    settings = yaml.safe_load(text(tmp_path))['model']['init_args']['backbone_args']
    assert settings == {'encoders': {'s2': {'name': 'presto', 'weights': 'presto.pt', 'months': 12}}, 'linear': True}


def test_presto_that_is_not_used(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for day in MONTHS:
        write(root / f's1/S1_{day}.tif', radar(), bands=('VV', 'VH'))
    fields(root)
    words = ['init', str(root), '--output', str(tmp_path / 'FILE.yaml'), '--presto', 'presto.pt']
    for more, expected in (
        ([], r"an optical time series, and the sensors are \['s1'\]"),
        (['standard'], '--preset few'),
    ):
        with pytest.raises(SystemExit):
            main([*words, *(['--preset'] if more else []), *more])
        assert re.search(f"presto is 'presto.pt'.*, expected {expected}", capsys.readouterr().err)


def test_a_column_of_many_classes(root: Path, tmp_path: Path, init: Init) -> None:
    write(root / 's2/S2_20210601.tif', optical(), bands=S2_BANDS)
    write(root / 's2/S2_20210701.tif', optical(), bands=S2_BANDS)
    fields(root, tuple(f'farm {number}' for number in range(36)))
    init('--column', 'crop')
    assert re.search(
        r'NOTE val has no label of farm \d+(, farm \d+){2} and (1 more class|\d+ more classes): too few', text(tmp_path)
    )


def test_model_trains_and_keeps_its_last_state(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for day in MONTHS:
        write(root / f's2/S2_{day}.tif', optical(), bands=S2_BANDS)
    fields(root)
    monkeypatch.chdir(tmp_path)
    assert main(['init', 'region', '--output', 'FILE.yaml']) == 0
    few = ['--trainer.max_epochs', '2', '--data.length', '4', '--data.batch_size', '2']
    assert main(['fit', '--config', 'FILE.yaml', *few, '--trainer.enable_progress_bar', 'false']) == 0
    (folder,) = Path('logs/FILE').rglob('checkpoints')
    assert sorted(path.name for path in folder.iterdir()) == ['last.ckpt']
    assert main(['check', '--config', 'FILE.yaml', '--workers', '0']) == 0


@pytest.mark.parametrize('image', [False, True])
def test_an_interrupted_training_keeps_its_last_epoch(
    image: bool, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also an epoch that does not improve the validation."""
    for day in MONTHS:
        write(root / f's2/S2_{day}.tif', optical(), bands=S2_BANDS)
    if image:
        write(root / 'aerial/ortho.tif', optical(3, 120).astype(np.uint8), step=2.0)
    fields(root)
    monkeypatch.chdir(tmp_path)
    assert main(['init', 'region', '--output', 'FILE.yaml']) == 0

    class Worsening(BoringModel):
        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 2:
                raise RuntimeError('interrupted')

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log('val_loss', float(self.current_epoch))

    callbacks = yaml.safe_load(text(tmp_path))['trainer']['callbacks']
    savers: list[Any] = [
        ModelCheckpoint('saved', **each['init_args']) for each in callbacks if 'Model' in each['class_path']
    ]
    quiet: dict[str, Any] = {
        'logger': False,
        'enable_progress_bar': False,
        'enable_model_summary': False,
        'accelerator': 'cpu',
    }
    trainer = Trainer(max_epochs=3, limit_train_batches=1, limit_val_batches=1, callbacks=savers, **quiet)
    with pytest.raises(RuntimeError, match='interrupted'):
        trainer.fit(Worsening())
    saved = {path.name: torch.load(path, weights_only=True)['epoch'] for path in Path('saved').iterdir()}
    assert saved == {'last.ckpt': 1} | ({'best.ckpt': 0} if image else {})


@pytest.mark.parametrize(
    ('name', 'settings'),
    [
        ('S2_2021{}.tif', {'date_format': '%Y%m'}),
        ('S2_2021-{}.tif', {'date_format': '%Y-%m'}),
        ('S2_2021_{}.tif', {'date_format': '%Y_%m'}),
        ('S2_2021-{}-15.tif', {'date_format': '%Y-%m-%d'}),
        ('S2A_MSIL2A_2021{}05T104629_T31UFS.tif', {}),
        ('S2_202106{}.TIF', {'filename_glob': '*.TIF'}),
    ],
)
def test_dates_of_file_names(name: str, settings: dict[str, str], root: Path, init: Init) -> None:
    for month in ('03', '05'):
        write(root / 's2' / name.format(month), optical(), bands=S2_BANDS)
    fields(root)
    found = init()['rasters']['s2']
    assert {key: found[key] for key in settings} == settings
    assert 'temporal' not in found
    assert ('filename_regex' in found) == ('date_format' in found)


def test_one_file_per_band(root: Path, init: Init) -> None:
    for day in MONTHS:
        for band in S2_BANDS:
            write(root / f'images/S2_{day}_{band}.tif', optical(1))
        write(root / f'images/S2_{day}_SCL.tif', optical(1).astype(np.uint8))
        write(root / f'images/S1_{day}_VV.tif', radar(1))
        write(root / f'images/S1_{day}_VH.tif', radar(1))
    fields(root)
    rasters = init()['rasters']
    assert rasters['s2'] | {'kind': 'optical', 'unit': 'dn', 'gsd': 10} == rasters['s2']
    assert rasters['s1']['kind'] == 'radar'
    assert {rasters['s1']['filename_glob'], rasters['s2']['filename_glob']} == {'S1_*.tif', 'S2_*_B*.tif'}


def test_band_files_of_sentinel_2(root: Path, init: Init) -> None:
    for day in MONTHS:
        for band in S2_BANDS:
            write_jp2(root / f'jp2/T31UFS_{day}T104629_{band}_10m.jp2', optical(1))
    fields(root)
    assert init()['rasters'] == {'s2': {'path': 'jp2', 'kind': 'sentinel2', 'bands': list(S2_BANDS), 'gsd': 10}}


def test_products_and_archives(root: Path, tmp_path: Path, init: Init) -> None:
    for day in MONTHS:
        product = f'{PRODUCT.format(day=day)}/GRANULE/L2A/IMG_DATA'
        for band, size in {'B02': 10, 'B03': 10, 'B8A': 20, 'SCL': 20}.items():
            image = optical(1, SIDE * 10 // size) if band != 'SCL' else np.full((1, SIDE // 2, SIDE // 2), 4, np.uint16)
            place = root / f'products/{product}/R{size}m/T31UFS_{day}T104629_{band}_{size}m.jp2'
            write_jp2(place, image, size)
    pack(root / 'products', MONTHS[0], keep=True)
    pack(root / 'products', MONTHS[1])
    (root / 'labels.zip').write_bytes(b'PK')
    fields(root)
    (sensor,) = init()['rasters'].values()
    assert sensor['path'] == 'products'
    assert sensor['kind'] == 'sentinel2'
    assert sensor['bands'] == ['B02', 'B03', 'B8A']
    assert sensor['clouds'] == {'band': 'SCL', 'values': [3, 8, 9, 10]}
    assert 'NOTE archives such as labels.zip (1 in total) are not read' in text(tmp_path)
    assert '3 dates from 2021-03-01 to 2021-07-01, B02 B03 B8A' in text(tmp_path)
    (root / f'products/{PRODUCT.format(day=20210901)}.zip').write_bytes(b'PK')  # an interrupted download
    assert main(['init', str(root), '--output', str(tmp_path / 'FILE.yaml'), '--overwrite']) == 0
    assert '20210901T150000.SAFE.zip is not a complete zip archive' in text(tmp_path)


def test_dates_in_band_descriptions(root: Path, init: Init) -> None:
    """Bands as Earth Engine names those of an image collection."""
    names = [f'{day}T104629_{day}T105210_{band}' for day in MONTHS for band in ('B4', 'B8')]
    write(root / 'export.tif', optical(6), bands=names)
    fields(root)
    data = init()
    (sensor,) = data['rasters'].values()
    assert sensor['stack'] == {'dates': 'descriptions'}


def test_yearly_stacks(root: Path, tmp_path: Path, init: Init) -> None:
    """Two bands of twelve months in a file for each year, without descriptions."""
    for year in (2020, 2021):
        write(root / f'planet/P_{year}.tif', optical(24))
    fields(root)
    sensor = init()['rasters']['planet']
    assert sensor['stack'] == {'dates': [f'{month:02d}-01' for month in range(1, 13)], 'bands': ['B1', 'B2']}
    assert sensor['date_format'] == '%Y'
    assert 'FILL IN: taken as 2 bands of each of 12 months' in text(tmp_path)


def test_tiles_of_an_export(root: Path, init: Init) -> None:
    """Images that Earth Engine divides into several files."""
    for day in MONTHS:
        for column in (0, 1):
            place = root / f'ee/S2_{day}-0000000000-{column * 12:010d}.tif'
            write(place, optical()[:, :, :12], (X + 120 * column, Y), bands=('B2', 'B3', 'B4', 'B8'))
    fields(root)
    assert init()['rasters']['s2'] == {'path': 'ee', 'gsd': 10, 'kind': 'optical', 'unit': 'dn'}


def test_items(root: Path, init: Init) -> None:
    features = []
    for day in MONTHS:
        for band in ('B04', 'B08'):
            write(root / f'items/{day}/{band}.tif', optical(1))
        assets = {
            band: {'href': f'./{day}/{band}.tif', 'type': 'image/tiff', 'roles': ['data']} for band in ('B04', 'B08')
        }
        features.append(
            {
                'type': 'Feature',
                'stac_version': '1.0.0',
                'id': day,
                'properties': {'datetime': f'{day[:4]}-{day[4:6]}-{day[6:]}T10:00:00Z', 'platform': 'sentinel-2a'},
                'geometry': None,
                'bbox': [5, 51, 6, 52],
                'links': [],
                'assets': assets | {'thumbnail': {'href': 'x.png', 'roles': ['thumbnail']}},
            }
        )
    (root / 'items/items.json').write_text(json.dumps({'type': 'FeatureCollection', 'features': features}))
    fields(root)
    expected = {'path': 'items/items.json', 'reader': 'stac', 'bands': ['B04', 'B08'], 'gsd': 10}
    assert init()['rasters'] == {'s2': expected | {'kind': 'optical', 'unit': 'dn'}}


def test_daily_radar(root: Path, init: Init) -> None:
    for day in range(1, 16):
        write(root / f'sentinel-1/{"asc" if day % 2 else "desc"}_202106{day:02d}.tif', radar(), bands=('VV', 'VH'))
    fields(root)
    rasters = init()['rasters']
    assert {name: sensor['filename_glob'] for name, sensor in rasters.items()} == {
        's1_asc': 'asc_*.tif',
        's1_desc': 'desc_*.tif',
    }
    assert all(sensor['unit'] == 'db' for sensor in rasters.values())


@pytest.mark.parametrize('bands', [4, 8])
def test_planetscope(bands: int, root: Path, init: Init) -> None:
    ending = 'SR' if bands == 4 else 'SR_8b'
    for number, day in enumerate(MONTHS):
        start = root / f'planet/{day}_10153{number}_{number}2_240{number}_3B'
        write(Path(f'{start}_AnalyticMS_{ending}.tif'), optical(bands, 40), step=3.0)
        write(Path(f'{start}_udm2.tif'), np.zeros((8, 40, 40), np.uint8), step=3.0)
    fields(root)
    data = init()
    sensor = data['rasters']['planet']
    assert sensor['filename_glob'] == f'*_3B_AnalyticMS_{ending}.tif'
    assert sensor['all_bands'][-1] == 'nir'
    assert len(sensor['all_bands']) == bands
    assert (sensor['gsd'], sensor['kind'], sensor['unit']) == (3, 'optical', 'dn')
    assert data['label_gsd'] == 3


def test_unknown_facts_say_what_to_fill_in(root: Path, tmp_path: Path, init: Init) -> None:
    for day in MONTHS:
        write(root / f'images/x_{day}.tif', radar())
    fields(root)
    sensor = init()['rasters']['images']
    assert 'kind' not in sensor
    assert 'unit' not in sensor
    assert '# kind: FILL IN kind: one of optical, radar' in text(tmp_path)
    assert '# unit: FILL IN unit' in text(tmp_path)


def test_facts_are_asked_on_a_terminal(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for day in MONTHS:
        write(root / f'images/x_{day}.tif', np.abs(radar()) * 3)
    fields(root)
    answers = iter(['2', 'nonsense', 'power'])
    monkeypatch.setattr('sys.stdin.isatty', lambda: True, raising=False)
    monkeypatch.setattr('sys.stdout.isatty', lambda: True, raising=False)
    monkeypatch.setattr('builtins.input', lambda prompt: next(answers))
    assert main(['init', str(root), '--output', str(tmp_path / 'FILE.yaml')]) == 0
    sensor = yaml.safe_load((tmp_path / 'FILE.yaml').read_text())['data']['init_args']['rasters']['images']
    assert (sensor['kind'], sensor['unit']) == ('radar', 'power')
    assert 'none of them' in capsys.readouterr().out


def test_nothing_is_asked_without_a_terminal(root: Path, init: Init, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('builtins.input', lambda prompt: pytest.fail('asked'))
    write(root / 'images/x_20210101.tif', radar())
    fields(root)
    init()


@pytest.mark.parametrize('codes', [(201, 311), ('010', '311')])
def test_codes_of_polygons(codes: tuple[Any, ...], root: Path, init: Init) -> None:
    write(root / 'aerial/ortho.tif', optical(3, 120).astype(np.uint8), step=2.0)
    fields(root, codes, 'CODE_GROUP')
    data = init('--preset', 'few')
    assert data['mask']['column'] == 'CODE_GROUP'
    assert data['mask']['classes'] == {code: f'class {code}' for code in codes}
    assert 'labels' not in data
    assert 'train_tile_size' not in data, 'encoders of images have spatial context'
    assert data['rasters']['aerial'] == {
        'path': 'aerial/ortho.tif', 'temporal': False, 'gsd': 2, 'kind': 'optical', 'unit': 'dn',
    }  # fmt: skip


def test_blank_crops_are_no_class(root: Path, init: Init) -> None:
    for day in MONTHS:
        write(root / f's2/S2_{day}.tif', optical(), bands=S2_BANDS)
    fields(root, ('wheat', '', 'maize', ' '))
    assert init()['labels'] == ['maize', 'wheat']


def test_virtual_rasters_of_other_images_are_named(root: Path, tmp_path: Path, init: Init) -> None:
    for day in MONTHS:
        write(root / f'tiles/S2_{day}.tif', optical(), bands=S2_BANDS)
        (root / 's2').mkdir(exist_ok=True)
        with rasterio.open(root / f'tiles/S2_{day}.tif') as source:
            rasterio.shutil.copy(source, root / f's2/S2_{day}.vrt', driver='VRT')
    init()
    assert '# NOTE s2/S2_20210301.vrt is a virtual raster of tiles/S2_20210301.tif' in text(tmp_path)


def test_points_of_a_table(root: Path, init: Init) -> None:
    for day in MONTHS:
        write(root / f's2/S2_{day}.tif', optical(), bands=S2_BANDS)
    rng = np.random.default_rng(0)
    points = gpd.GeoSeries(shapely.points(X + rng.uniform(0, 240, 200), Y - rng.uniform(0, 240, 200)), crs=UTM)
    degrees = points.to_crs('EPSG:4326')
    rows = [f'{i},{p.x},{p.y},{"oak" if i % 3 else "pine"}' for i, p in enumerate(degrees)]
    (root / 'survey.csv').write_text('\n'.join(['id,lon,lat,species', *rows]))
    data = init()
    assert data['mask'] == {'path': 'survey.csv', 'column': 'species'}
    assert data['labels'] == ['oak', 'pine']


def test_worldcover(root: Path, init: Init) -> None:
    write(root / 's2/S2_20210601.tif', optical(), bands=S2_BANDS)
    codes = np.array([0, 10, 30, 40], np.uint8)[np.arange(SIDE * SIDE).reshape(SIDE, SIDE) // 5 % 4]
    write(root / 'ESA_WorldCover_10m_2021_v200.tif', codes)
    data = init()
    assert data['mask']['classes'] == {0: None, 10: 'tree cover', 30: 'grassland', 40: 'cropland'}


def test_floats_may_be_codes(root: Path, init: Init) -> None:
    write(root / 's2/S2_20210601.tif', optical(), bands=S2_BANDS)
    codes = np.array([np.nan, 1, 2, -3e38], np.float32)[np.arange(SIDE * SIDE).reshape(SIDE, SIDE) // 5 % 4]
    write(root / 'labels.tif', codes)
    data = init()
    assert list(data['rasters']) == ['s2']
    assert list(data['mask']['classes']) == [1, 2]


@pytest.mark.parametrize('dtype', [np.int16, np.float32])
def test_negative_codes_mean_no_label(dtype: Any, root: Path, init: Init) -> None:
    write(root / 's2/S2_20210601.tif', optical(), bands=S2_BANDS)
    codes = np.array([-9999, 1, 2, 2], dtype)[np.arange(SIDE * SIDE).reshape(SIDE, SIDE) // 5 % 4]
    write(root / 'labels.tif', codes)
    assert init()['mask']['classes'] == {-9999: None, 1: 'class 1', 2: 'class 2'}


@pytest.mark.parametrize(
    ('file', 'values'), [('labels.tif', (0.5, 1)), ('training/dem.tif', (79, 80)), ('crops_dem.tif', (79, 80))]
)
def test_floats_that_are_images(file: str, values: tuple[float, float], root: Path) -> None:
    write(root / 's2/S2_20210601.tif', optical(), bands=S2_BANDS)
    image = np.array(values, np.float32)[np.arange(SIDE * SIDE).reshape(SIDE, SIDE) // 5 % 2]
    write(root / file, image)
    assert find_float_labels(root, [file], single_bands(root, [file], floats=True)) is None


def test_every_class_is_in_all_splits(root: Path, tmp_path: Path, init: Init) -> None:
    """Crops lie in three strips from west to east, so no split along that axis has all of them."""
    for day in MONTHS:
        write(root / f's2/S2_{day}.tif', optical(), bands=S2_BANDS)
    crops = np.repeat(np.arange(SIDE)[None] * 3 // SIDE, SIDE, 0).astype(np.uint8)
    write(root / 'labels/crops.tif', crops)
    data = init()
    assert data['split'] == {'axis': 'y', 'fractions': [0.6, 0.2, 0.2]}
    write(root / 'labels/crops.tif', np.maximum(crops, crops.T))
    data = init('--overwrite')
    assert set(data['split']) == {'train', 'val', 'test'}
    counts = [re.findall(r' (\d+)(?:,|$)', line) for line in re.findall('; pixels: (.*)', text(tmp_path))]
    assert len(counts) == 3
    assert all(int(number) > 10 for each in counts for number in each)


def test_a_rare_class_is_for_training(root: Path, tmp_path: Path, init: Init) -> None:
    write(root / 's2/S2_20210601.tif', optical(), bands=S2_BANDS)
    crops = (np.indices((SIDE, SIDE)).sum(0) // 2 % 2).astype(np.uint8)
    crops[-4:-2, -4:-2] = 2
    write(root / 'labels/crops.tif', crops)
    init()
    assert re.search(r'2: class 2  # 4 pixels; pixels: train 4, val 0, test 0', text(tmp_path))
    assert 'val has no label of class 2' in text(tmp_path)


@pytest.mark.parametrize('name', ['labels.zip', 'images.tar.gz', 'field.7z'])
def test_archives_are_named(name: str, root: Path, tmp_path: Path, init: Init) -> None:
    write(root / 's2/S2_20210601.tif', optical(), bands=S2_BANDS)
    (root / name).write_bytes(b'PK')
    fields(root)
    init()
    assert f'NOTE archives such as {name} (1 in total) are not read: unpack' in text(tmp_path)


@pytest.mark.parametrize('zipped', [False, True])
def test_radar_products_are_named(root: Path, tmp_path: Path, init: Init, zipped: bool) -> None:
    name = 'S1A_IW_GRDH_1SDV_20210612T054147_20210612T054212_038304_048534_1D4F.SAFE'
    write(root / name / 'measurement/s1a-iw-grd-vv-20210612t054147-001.tiff', optical(1))
    with pytest.raises(ValueError, match='RTC'):
        RasterTimeSeries(root, filename_glob='*.tiff')
    if zipped:
        shutil.make_archive(str(root / name), 'zip', root, name)
        shutil.rmtree(root / name)
    write(root / 's2/S2_20210601.tif', optical(), bands=S2_BANDS)
    fields(root)
    assert list(init()['rasters']) == ['s2']
    name += '.zip' * zipped
    assert f'NOTE {name} (1 in total) is not read, as its images are neither calibrated' in text(tmp_path)


def test_rasters_without_labels(root: Path, init: Init) -> None:
    for day in MONTHS:
        write(root / f's2/S2_{day}.tif', optical(), bands=S2_BANDS)
    assert init()['mask'] is None


@pytest.mark.parametrize(
    ('header', 'message'),
    [
        ('x,y,species', 'no labels were read: this configuration predicts maps'),
        ('E,N,species', 'no labels were found (survey.csv: no columns lon and lat, or x and y)'),
    ],
)
def test_tables_of_points_that_cannot_be_read(
    header: str, message: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(root / 's2/S2_20210601.tif', optical(), bands=S2_BANDS)
    (root / 'survey.csv').write_text(f'{header}\n{X + 15},{Y - 15},oak\n{X + 45},{Y - 45},pine\n')
    assert main(['init', str(root), '--output', str(tmp_path / 'FILE.yaml')]) == 0
    assert message in capsys.readouterr().out


def test_another_area_or_year(root: Path, tmp_path: Path, init: Init) -> None:
    """Sensors of other names and dates are those of the model; a missing one is named."""
    for day in MONTHS:
        write(root / f's2/S2_{day}.tif', optical(), bands=S2_BANDS)
        write(root / f's1/S1_{day}.tif', radar(), bands=('VV', 'VH'))
    fields(root)
    trained = init()
    (tmp_path / 'FILE.yaml').rename(tmp_path / 'trained.yaml')
    root.rename(tmp_path / 'before')
    for month in ('04', '06'):
        write(root / f'north/sentinel-2/S2_2022-{month}.tif', optical(), (X + 9000, Y), bands=S2_BANDS)
    data = init('--like', str(tmp_path / 'trained.yaml'))
    assert data['mask'] is None
    (sensor,) = data['rasters'].values()
    assert list(data['rasters']) == ['s2']
    assert (sensor['path'], sensor['date_format'], sensor['unit']) == ('north/sentinel-2', '%Y-%m', 'dn')
    for key in ('labels', 'label_gsd', 'patch_size', 'tile_size'):
        assert data[key] == trained[key]
    assert 's1: no files were found' in text(tmp_path)
    assert f'# Written by: python -m torchgeo_omnisat init {root} --output {tmp_path / "FILE.yaml"} --like ' in text(
        tmp_path
    )
    models = [yaml.safe_load(path.read_text())['model'] for path in tmp_path.glob('*.yaml')]
    assert models[0] == models[1]
    (tmp_path / 'other.yaml').write_text('a: 1')
    with pytest.raises(SystemExit):
        main(['init', str(root), '--output', str(tmp_path / 'x.yaml'), '--like', str(tmp_path / 'other.yaml')])


def of_model(**settings: Any) -> dict[str, Any]:
    return {'data': {'init_args': {'rasters': {'s2': {'path': 's2', 'gsd': 10} | settings}}}}


def sensor(name: str, bands: tuple[str, ...] = S2_BANDS, **settings: Any) -> Sensor:
    modality = Modality(name, bands, 10, settings.get('temporal', True))
    return Sensor(name, {'path': name} | settings, files=[f'{name}/a.tif'], modality=modality)


@pytest.mark.parametrize(
    ('model', 'found'),
    [
        ({'kind': 'optical'}, sensor('aerial', kind='optical', temporal=False)),
        ({'kind': 'optical', 'bands': [*S2_BANDS]}, sensor('other', ('R', 'G', 'B'), kind='optical')),
        ({'kind': 'sentinel2'}, sensor('other', kind='radar')),
    ],
)
def test_other_sensors_of_other_files_are_not_those_of_the_model(model: dict[str, Any], found: Sensor) -> None:
    with pytest.raises(ValueError, match=found.name):
        prediction_data(Path(), [found], of_model(**model))


@pytest.mark.parametrize('name', ['s2', 'other'])
@pytest.mark.parametrize(
    ('model', 'found', 'kind'), [('optical', 'sentinel2', 'sentinel2'), ('sentinel2', 'optical', 'optical')]
)
def test_files_keep_their_reader(name: str, model: str, found: str, kind: str) -> None:
    data, notes = prediction_data(Path(), [sensor(name, kind=found)], of_model(kind=model))
    assert data['rasters']['s2']['kind'] == kind
    assert not notes


def test_zeros_are_nodata_where_files_state_none(root: Path, init: Init) -> None:
    image = optical()
    image[:, :5] = 0
    for day in MONTHS:
        write(root / f's2/S2_{day}.tif', image, bands=S2_BANDS)
        write(root / f'planet/P_{day}.tif', image, nodata=0)
    fields(root)
    rasters = init()['rasters']
    assert rasters['s2']['nodata'] == 0
    assert 'nodata' not in rasters['planet']


def test_files_without_a_crs(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for day in MONTHS:
        path = write(root / f's2/S2_{day}.tif', optical(), bands=S2_BANDS)
        with rasterio.open(path, 'r+') as file:
            file.crs = rasterio.CRS.from_wkt('LOCAL_CS["x", UNIT["metre", 1]]')
    fields(root)
    assert main(['init', str(root), '--output', str(tmp_path / 'FILE.yaml')]) == 0
    assert 'Problem: s2:' in capsys.readouterr().out
    assert "FILL IN: files state no CRS, add crs: 'EPSG:...'" in text(tmp_path)


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['nowhere'], "'nowhere'"),
        (['.'], 'no rasters that can be read'),
        (['region', '--labels', 'missing.gpkg'], 'missing.gpkg'),
        (['region', '--column', 'missing'], "'missing'"),
        (['region', '--column', 'area_ha'], '0.16'),
        (['region', '--like', 'trained.yaml', '--preset', 'few'], "'few'"),
    ],
)
def test_errors_are_one_line(
    words: list[str], message: str, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (root.parent / 'empty').mkdir()
    (root.parent / 'trained.yaml').write_text(yaml.safe_dump(of_model()))
    if words[0] != '.':
        write(root / 's2/S2_20210601.tif', optical())
        fields(root)
    monkeypatch.chdir(root.parent if words[0] != '.' else root.parent / 'empty')
    with pytest.raises(SystemExit):
        main(['init', *words, '--output', 'FILE.yaml'])
    error = capsys.readouterr().err
    assert message in error
    assert error.count('\n') == 1


def test_a_file_is_replaced_on_request_only(root: Path, tmp_path: Path) -> None:
    write(root / 's2/S2_20210601.tif', optical())
    (tmp_path / 'FILE.yaml').write_text('mine')
    with pytest.raises(SystemExit):
        main(['init', str(root), '--output', str(tmp_path / 'FILE.yaml')])
    assert (tmp_path / 'FILE.yaml').read_text() == 'mine'
