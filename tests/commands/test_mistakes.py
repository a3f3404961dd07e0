# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Common mistakes end with one line that says what is wrong and what to do; docs/howto/mistakes.md lists them."""

import errno
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import geopandas as gpd
import numpy as np
import pytest
import shapely
import torch
import yaml
from shapely.geometry import box

from tests.geo_tree import UTM, X, Y, write
from torchgeo_omnisat.__main__ import main
from torchgeo_omnisat.tasks.base import OmniSatTask
from torchgeo_omnisat.utils.cli import errors

pytestmark = pytest.mark.filterwarnings('ignore')
SIDE = 24
DAYS = ('20210301', '20210501', '20210701')
BANDS = ('B02', 'B03', 'B04', 'B08')
FIT = (
    '--trainer.accelerator=cpu --trainer.enable_progress_bar=false --trainer.logger=false --trainer.max_steps=1 '
    '--data.length=1 --data.batch_size=1 --data.num_workers=0 --trainer.limit_val_batches=1'
)
CHECK = 'check --config X.yaml --no-dry-run --workers 0'


def image(bands: int = 4) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(200, 4000, (bands, SIDE, SIDE), np.uint16)


def series(values: np.ndarray[Any, Any], bands: tuple[str, ...] = BANDS, **kwargs: Any) -> None:
    for day in DAYS:
        write(Path(f'region/s2/S2_{day}.tif'), values, bands=bands, **kwargs)


def fields(path: str = 'region/fields.gpkg', crops: tuple[Any, ...] = ('maize', 'wheat'), east: float = 0) -> None:
    """Write fields of 40 m as the only labels."""
    for old in (*Path('region').glob('fields.*'), *Path('region').glob('points.*')):
        old.unlink()
    places = [(row, column) for row in range(6) for column in range(6)]
    shapes = [box(X + east + 40 * c, Y - 40 * (r + 1), X + east + 40 * (c + 1), Y - 40 * r) for r, c in places]
    table = {'crop': [crops[(r + c) % len(crops)] for r, c in places]}
    gpd.GeoDataFrame(table, geometry=shapes, crs=UTM).to_file(path)


def points(swap: bool = False, east: float = 0) -> None:
    """Write points in degrees as the only labels."""
    fields()
    Path('region/fields.gpkg').unlink()
    rng = np.random.default_rng(0)
    ground = shapely.points(X + rng.uniform(0, 240, 40), Y - rng.uniform(0, 240, 40))
    degrees = [(p.x + east, p.y) for p in gpd.GeoSeries(ground, crs=UTM).to_crs(4326)]
    rows = [f'{lat},{lon}' if swap else f'{lon},{lat}' for lon, lat in degrees]
    table = [f'{row},{"ab"[number % 2]}' for number, row in enumerate(rows)]
    Path('region/points.csv').write_text('\n'.join(['lon,lat,crop', *table]))


def settings(sensor: dict[str, Any] | None = None, mask: dict[str, Any] | None = None, **changes: Any) -> None:
    """Write X.yaml, a changed copy of the configuration of init."""
    config = yaml.safe_load(Path('FILE.yaml').read_text())
    data = config['data']['init_args']
    data['rasters']['s2'] |= sensor or {}
    data['mask'] |= mask or {}
    data |= changes
    Path('X.yaml').write_text(yaml.safe_dump(config))


def archive(path: str) -> None:
    Path(path).parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, 'w') as file:
        file.writestr('S2.tif', b'II')


def no_dates() -> None:
    for day, name in zip(DAYS, ('spring', 'summer', 'autumn'), strict=True):
        Path(f'region/s2/S2_{day}.tif').rename(f'region/s2/S2_{name}.tif')


def no_projection() -> None:
    fields('region/fields.shp')
    Path('region/fields.prj').unlink()


def half_a_file() -> None:
    path = Path('region/s2/S2_20210501.tif')
    path.write_bytes(path.read_bytes()[:300])


def half_a_product() -> None:
    archive('zips/S2A_MSIL2A_20210501T104629.zip')
    path = Path('zips/S2A_MSIL2A_20210501T104629.zip')
    path.write_bytes(path.read_bytes()[:50])


def sentinel_1_product() -> None:
    name = 'S1A_IW_GRDH_1SDV_20210612T054147_20210612T054212_038304_048534_1D4F.SAFE'
    write(Path(f'products/{name}/measurement/s1a-iw-grd-vv-20210612t054147-001.tiff'), image(1))


def codes() -> None:
    write(Path('region/codes.tif'), np.full((SIDE, SIDE), 7, np.uint8))
    settings(mask={'path': 'codes.tif', 'column': None})
    config = yaml.safe_load(Path('X.yaml').read_text())
    config['data']['init_args']['mask'] = {'path': 'codes.tif'}
    Path('X.yaml').write_text(yaml.safe_dump(config))


def dry(name: str) -> Callable[[], object]:
    """Return a function that writes an empty folder."""
    return Path(name).mkdir


class Mistake(NamedTuple):
    """A mistake: what is done before the command, the command, and what the line must contain."""

    prepare: Callable[[], object]
    command: str
    expected: tuple[str, ...]


def nothing() -> None:
    pass


MISTAKES = {
    # init
    'wrong folder': Mistake(nothing, 'init nowhere', ("'nowhere'", 'does not exist')),
    'empty folder': Mistake(dry('empty'), 'init empty', ('empty', 'it is empty', 'GeoTIFFs')),
    'labels without images': Mistake(
        lambda: shutil.rmtree('region/s2'), 'init region', ('only labels (fields.gpkg)', 'add the images')
    ),
    'an archive as the folder': Mistake(
        lambda: archive('region.zip'), 'init region.zip', ("'region.zip', a file", 'unpack')
    ),
    'a folder of archives': Mistake(
        lambda: archive('zips/S2_2021.zip'), 'init zips', ('zips has no rasters', 'S2_2021.zip', 'unpack')
    ),
    'an interrupted download': Mistake(
        half_a_product, 'init zips', ('zips/S2A_MSIL2A_20210501T104629.zip', 'complete zip archive', 'again')
    ),
    'a Sentinel-1 product': Mistake(
        sentinel_1_product, 'init products', ('_1D4F.SAFE', 'correct them with SNAP or pyroSAR')
    ),
    'an existing output': Mistake(nothing, 'init region --output FILE.yaml', ('FILE.yaml', 'exists', '--overwrite')),
    'a column that is missing': Mistake(nothing, 'init region --column crp', ("['crop']", "'crp'")),
    'labels that are missing': Mistake(nothing, 'init region --labels no.gpkg', ("'no.gpkg'", 'region')),
    'longitude and latitude swapped': Mistake(
        lambda: points(swap=True), 'init region', ('points.csv', 'order of its coordinates')
    ),
    'points outside of the images': Mistake(
        lambda: points(east=0.5), 'init region', ('do not overlap', 'Check the CRS', 'lon and lat')
    ),
    'labels of another region': Mistake(
        lambda: fields(east=90_000), 'init region', ('do not overlap', 's2 (600000,', 'Check the CRS')
    ),
    'one class only': Mistake(
        lambda: fields(crops=('maize',)), 'init region', ('fields.gpkg', 'one class', 'add labels of another class')
    ),
    'no dates in file names': Mistake(
        no_dates, 'init region', ('FILL IN', 'file names have no date', 'S2_20210615.tif')
    ),
    'a shapefile without .prj': Mistake(no_projection, 'init region', ('fields.shp', 'CRS')),
    'images without georeference': Mistake(
        lambda: series(image(), crs=None), 'init region', ('S2_20210301.tif', 'no georeference')
    ),
    # check
    'a wrong root': Mistake(lambda: settings(root='regoin'), CHECK, ("'regoin'", 'does not exist')),
    'a wrong path of a sensor': Mistake(lambda: settings({'path': 'S3'}), CHECK, ("'s2'", 'S3', 'does not exist')),
    'a mixed number of bands': Mistake(
        lambda: (write(Path('region/s2/S2_20210501.tif'), image(3), bands=BANDS[:3]), settings()),
        CHECK,
        ('S2_20210501.tif has 3 bands', 'expected 4 bands', 'filename_glob'),
    ),
    'reflectance declared as digital numbers': Mistake(
        lambda: (series((image() / 10000).astype(np.float32)), settings()), CHECK, ('s2', 'state unit: reflectance')
    ),
    'digital numbers declared as reflectance': Mistake(
        lambda: settings({'unit': 'reflectance'}), CHECK, ('s2', 'state unit: dn')
    ),
    'linear radar declared as dB': Mistake(
        lambda: (
            series((image(2) / 20000).astype(np.float32), ('VV', 'VH')),
            settings({'kind': 'radar', 'unit': 'db'}),
        ),
        CHECK,
        ('s2', 'state unit: power'),
    ),
    'zeros without data': Mistake(
        lambda: (series(image() * (np.arange(SIDE) > 5)), settings()), CHECK, ('s2', 'are 0', 'state nodata: 0')
    ),
    'a class that labels lacks': Mistake(
        lambda: settings(labels=['maize', 'barley']), CHECK, ("'wheat' (18 polygons)", 'classes: {', 'other: NAME')
    ),
    'codes that are no class': Mistake(codes, CHECK, ('7', 'classes')),
    'one class in labels': Mistake(
        lambda: settings(labels=['maize']), CHECK, ("['maize']", 'expected at least 2', 'outside')
    ),
    'a tile that is no multiple': Mistake(lambda: settings(tile_size=45), CHECK, ('tile_size is 45', 'multiple of 10')),
    'a truncated image': Mistake(lambda: (half_a_file(), settings()), CHECK, ('S2_20210501.tif',)),
    'a typo in the settings of a sensor': Mistake(
        lambda: settings({'filename_regexp': 'x'}), CHECK, ("'filename_regexp'", "did you mean 'filename_regex'?")
    ),
    'a typo in the YAML': Mistake(lambda: settings(label_gds=10), CHECK, ("'label_gds'", "did you mean 'label_gsd'")),
    'tabs in the YAML': Mistake(
        lambda: Path('X.yaml').write_text('data:\n\troot: region\n'),
        CHECK,
        ('X.yaml', 'line 2', 'spaces instead of tabs'),
    ),
    'an empty YAML': Mistake(lambda: Path('X.yaml').write_text(''), CHECK, ('X.yaml', 'no settings')),
    # fit
    'a YAML that is missing': Mistake(nothing, 'fit --config no.yaml', ("'no.yaml'", 'does not exist')),
    'a typo in an option': Mistake(
        nothing, 'fit --config FILE.yaml --model.backbonne x', ("'backbonne'", "did you mean 'backbone'")
    ),
    'an unknown backbone': Mistake(
        nothing, f'fit --config FILE.yaml --model.backbone huge {FIT}', ("'huge'", 'omnisat_small')
    ),
    'weights that are missing': Mistake(
        nothing, f'fit --config FILE.yaml --model.weights no.ckpt {FIT}', ("'no.ckpt'", 'expected a checkpoint')
    ),
    'no validation data': Mistake(
        lambda: settings(split={'axis': 'x', 'fractions': [0.8, 0, 0.2]}),
        f'fit --config X.yaml {FIT} --trainer.callbacks EarlyStopping --trainer.callbacks.monitor val_loss',
        ('val_loss', 'enlarge val in data.split'),
    ),
    'a batch size of 0': Mistake(nothing, f'fit --config FILE.yaml {FIT} --data.batch_size 0', ('batch_size is 0',)),
    # predict
    'no checkpoint': Mistake(nothing, 'predict --config FILE.yaml', ('random weights', '--ckpt_path')),
    'a checkpoint that is missing': Mistake(
        nothing, 'predict --config FILE.yaml --ckpt_path no.ckpt', ('no.ckpt', 'not found', 'lines of fit')
    ),
    'a checkpoint that is another file': Mistake(
        nothing, 'predict --config FILE.yaml --ckpt_path FILE.yaml', ('FILE.yaml', 'cannot be read as a checkpoint')
    ),
    'a checkpoint of other sensors': Mistake(
        lambda: settings(rasters={'s1': {'path': 's2', 'gsd': 10}}),
        'predict --config X.yaml --ckpt_path FILE.ckpt',
        ("'s1'", "built for only ['s2']", 'rename'),
    ),
    'a checkpoint of other bands': Mistake(
        lambda: settings({'bands': ['B02', 'B03']}),
        'predict --config X.yaml --ckpt_path FILE.ckpt',
        ("'s2'", "bands ('B02', 'B03') instead of ('B02', 'B03', 'B04', 'B08')"),
    ),
    # other commands
    'a report of a folder without a run': Mistake(nothing, 'report nowhere --output r.html', ('nowhere',)),
    'an unknown command': Mistake(nothing, 'prdict', ("'prdict'", 'did you mean predict')),
}


@pytest.fixture(scope='module')
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a region, its configuration and a checkpoint."""
    folder = tmp_path_factory.mktemp('mistakes')
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        patch.chdir(folder)
        Path('region').mkdir()
        series(image())
        fields()
        assert main(['init', 'region', '--output', 'FILE.yaml']) == 0
        callback = ['--trainer.callbacks=ModelCheckpoint', '--trainer.callbacks.dirpath=ckpt']
        assert main(['fit', '--config', 'FILE.yaml', *callback, *FIT.split()]) == 0
        next(Path('ckpt').iterdir()).rename('FILE.ckpt')
    return folder


@pytest.fixture
def here(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy of the folder, in which the test runs."""
    shutil.copytree(trained, tmp_path / 'here')
    monkeypatch.chdir(tmp_path / 'here')
    monkeypatch.setattr(OmniSatTask, 'allow_random', False)
    return tmp_path / 'here'


def message(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command and return the line about the mistake, as a terminal shows it."""
    try:
        status = main(words)
    except SystemExit:
        return capsys.readouterr().err.strip()
    except Exception as error:
        described = errors.describe_error(error)
        assert described is not None, 'the user would see a traceback'
        return described
    shown = capsys.readouterr()
    if status == 2:
        return shown.err.strip()
    lines = shown.out.splitlines()
    found = [line for line in lines if line.startswith(('PROBLEM', 'warning', 'Note', 'Problem:', 'Unknown'))]
    return next((line for line in found if 'labelled training pixels are few' not in line), '')


@pytest.mark.parametrize('mistake', MISTAKES.values(), ids=[name.replace(' ', '-') for name in MISTAKES])
def test_mistakes_end_with_one_line(mistake: Mistake, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mistake.prepare()
    words = mistake.command.split()
    words += ['--output', 'NEW.yaml'] if words[0] == 'init' and '--output' not in words else []
    capsys.readouterr()
    line = message(words, capsys)
    assert line.count('\n') == 0
    assert 'Traceback' not in line
    for expected in mistake.expected:
        assert expected in line


def test_devices_that_are_absent(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip('needs a machine without CUDA')
    for accelerator in ('gpu', 'cuda'):
        line = message(['fit', '--config', 'FILE.yaml', '--trainer.accelerator', accelerator], capsys)
        assert '--trainer.accelerator auto or cpu' in line


@pytest.mark.parametrize(
    ('error', 'expected'),
    [
        (torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB'), 'decrease data.batch_size'),
        (OSError(errno.EROFS, 'Read-only file system', '/mnt/map.tif'), "'/mnt/map.tif': the disk is read-only"),
        (
            PermissionError(errno.EACCES, 'Permission denied', '/root/map.tif'),
            "'/root/map.tif': permission denied",
        ),
        (OSError(errno.ENOSPC, 'No space left on device', 'map.tif'), "'map.tif': the disk is full"),
    ],
)
def test_errors_of_the_machine(error: Exception, expected: str) -> None:
    line = errors.describe_error(error)
    assert line is not None
    assert expected in line


def test_numbers_as_text_are_no_mistake(here: Path) -> None:
    fields(crops=('1', '2'))
    settings(mask={'classes': {1: 'maize', 2: 'wheat'}}, labels=['maize', 'wheat'])
    assert main(CHECK.split()) == 0


def test_the_page_lists_them() -> None:
    page = Path(__file__).parents[2].joinpath('docs/howto/mistakes.md').read_text(encoding='utf-8')
    assert [name for name in MISTAKES if f'| {name} |' not in page] == []
