# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Every recipe on the page of sources reads generated files with the names that it describes."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import yaml
from rasterio.shutil import copy
from shapely.geometry import box

from tests.geo_tree import UTM, X, Y, write
from torchgeo_omnisat.datamodules import MultimodalGeoDataModule

PAGE = Path(__file__).parents[2] / 'docs/howto/sources.md'
pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason='the site is not here')
#: Metres on a side of the region.
SIDE = 960
B4 = ('B02', 'B03', 'B04', 'B08')


def recipes() -> dict[str, dict[str, Any]]:
    """The YAML of each section; further blocks of a section have a number."""
    found: dict[str, dict[str, Any]] = {}
    for section in re.split(r'^### ', PAGE.read_text(), flags=re.M)[1:]:
        title = section.partition('\n')[0]
        for number, block in enumerate(re.findall(r'^```yaml\n(.*?)^```$', section, re.M | re.S)):
            found[title + f' {number + 1}' * (number > 0)] = yaml.safe_load(block)
    return found


RECIPES = recipes() if PAGE.is_file() else {}


def image(path: Path, gsd: float = 10, bands: tuple[str, ...] = (), count: int = 1, dtype: str = 'uint16') -> None:
    """An image of the region; radar is around -12 dB, or 0.06 in linear power."""
    size, rng = round(SIDE / gsd), np.random.default_rng(0)
    count = len(bands) or count
    if dtype == 'uint16':
        values = rng.integers(200, 4000, (count, size, size)).astype(dtype)
    else:
        values = rng.normal(-12, 1, (count, size, size)).astype('float32')
        values = 10 ** (values / 10) if dtype == 'power' else values
    made = write(path.with_suffix('.tif'), values, step=gsd, bands=bands)
    if path.suffix == '.jp2':
        copy(made, path, driver='JP2OpenJPEG', REVERSIBLE='YES', QUALITY='100')
        made.unlink()
    elif path.suffix != '.tif':
        made.rename(path)


def each(root: Path, names: list[str], **arguments: Any) -> None:
    for name in names:
        image(root / name, **arguments)


def products(root: Path, within: str, ending: str) -> None:
    for day in ('20210402', '20210614'):
        for band in B4:
            folder = within.format(day=day)
            image(root / f's2/{folder}T31UFS_{day}T104629_{band}_10m{ending}')


SAFE = 'S2A_MSIL2A_{day}T104629_N0400_R051_T31UFS_{day}T150000.SAFE/GRANULE/L2A/IMG_DATA/R10m/'
#: Writer of the files of a recipe, then what it reads: modality, bands, dates and GSD.
IMAGES: dict[str, tuple[Callable[[Path], Any], str, tuple[str, ...], int, float]] = {
    'Sentinel-2 products (SAFE)': (lambda root: products(root, SAFE, '.jp2'), 's2', B4, 2, 10),
    'Sentinel-2 band files (jp2)': (lambda root: products(root, '', '.jp2'), 's2', B4, 2, 10),
    'One GeoTIFF per band': (
        lambda root: each(root, [f's2/S2_{day}_{band}.tif' for day in ('20210402', '20210615') for band in B4]),
        's2',
        B4,
        2,
        10,
    ),
    'Monthly composites': (
        lambda root: each(root, ['s2/S2_202104.tif', 's2/S2_202106.tif'], bands=B4),
        's2',
        B4,
        2,
        10,
    ),
    'A yearly stack': (
        lambda root: image(root / 's2/2021.tif', bands=tuple(f'2021-{m}_{b}' for m in ('04', '05') for b in B4[2:])),
        's2',
        B4[2:],
        2,
        10,
    ),
    'Earth Engine exports': (
        lambda root: each(
            root, ['s2/20210615T104021_20210615T104019_T31UFS.tif'], bands=('B1', 'B2', 'B3', 'B4', 'B8')
        ),
        's2',
        ('B2', 'B3', 'B4', 'B8'),
        1,
        10,
    ),
    'Earth Engine exports 2': (
        lambda root: each(root, ['s1/S1A_IW_GRDH_1SDV_20210612T054147.tif'], bands=('VV', 'VH', 'angle'), dtype='db'),
        's1',
        ('VV', 'VH'),
        1,
        10,
    ),
    'Sentinel-1 in linear power': (
        lambda root: each(root, ['s1/S1_20210612_VV.tif', 's1/S1_20210612_VH.tif'], dtype='power'),
        's1',
        ('VV', 'VH'),
        1,
        10,
    ),
    'Landsat 8 and 9, Level 2': (
        lambda root: each(
            root,
            [
                f'landsat/LC08_L2SP_198025_{day}_20210822_02_T1_{band}.TIF'
                for day in ('20210615', '20210701')
                for band in ('SR_B4', 'SR_B5', 'QA_PIXEL')
            ],
            gsd=30,
        ),
        'landsat',
        ('B4', 'B5'),
        2,
        30,
    ),
    'PlanetScope, 4 or 8 bands': (
        lambda root: each(
            root,
            ['planet/20210615_101530_1048_3B_AnalyticMS_SR.tif', 'planet/20210615_101530_1048_3B_udm2.tif'],
            gsd=3,
            count=4,
        ),
        'planet',
        ('blue', 'green', 'red', 'nir'),
        1,
        3,
    ),
    'Orthophoto and elevation': (
        lambda root: [image(root / 'aerial/ortho.tif', 2.5, count=3), image(root / 'dem/dem.tif')],
        'aerial',
        ('B1', 'B2', 'B3'),
        1,
        2.5,
    ),
}


def fields(root: Path, name: str, column: str, values: list[Any]) -> None:
    squares = [box(X + 120 * c, Y - 120 * (r + 1), X + 120 * (c + 1), Y - 120 * r) for r in range(8) for c in range(8)]
    table = {column: [values[number % len(values)] for number in range(64)]}
    gpd.GeoDataFrame(table, geometry=squares, crs=UTM).to_file(root / name)


def points(root: Path) -> None:
    x, y = (values.ravel() for values in np.meshgrid(X + 40 * np.arange(1, 23) + 5, Y - 40 * np.arange(1, 23) - 5))
    degrees = gpd.GeoSeries(gpd.points_from_xy(x, y), crs=UTM).to_crs(4326)
    crop = np.where(np.arange(len(x)) % 3, 'wheat', 'maize')
    pd.DataFrame({'lon': degrees.x, 'lat': degrees.y, 'crop': crop}).to_csv(root / 'samples.csv', index=False)


def worldcover(root: Path) -> None:
    codes = np.random.default_rng(0).choice([10, 20, 30, 40, 50, 80], (96, 96)).astype(np.uint8)
    write(root / 'worldcover.tif', codes)


HCAT = ['winter_common_soft_wheat', 'grain_maize_corn_popcorn', 'pasture_meadow_grassland_grass', 'hops']
#: Writer of the labels of a recipe, then the classes that it reads.
LABELS: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    'ESA WorldCover': (worldcover, ['tree', 'grass', 'crop', 'built', 'water', 'rest']),
    'Land parcels (LPIS)': (
        lambda root: fields(root, 'lpis.shp', 'CODE', ['201', '311', '321', '60']),
        ['maize', 'wheat', 'rest'],
    ),
    'EuroCrops': (
        lambda root: fields(root, 'eurocrops.gpkg', 'EC_hcat_n', HCAT),
        ['wheat', 'maize', 'grass', 'rest'],
    ),
    'Points': (points, ['wheat', 'maize']),
    'Digitised in QGIS': (
        lambda root: fields(root, 'labels.gpkg', 'class', ['water', 'forest', 'field']),
        ['water', 'forest', 'field'],
    ),
}


def test_every_recipe_is_tried() -> None:
    assert set(RECIPES) == {*IMAGES, *LABELS}


def open_region(root: Path, settings: dict[str, Any], gsd: float = 10) -> MultimodalGeoDataModule:
    """Build the datamodule of a recipe, with tiles that fit its pixels."""
    tile, patch = {30: (240.0, 60.0), 3: (150.0, 30.0), 2.5: (160.0, 40.0)}.get(gsd, (160.0, 40.0))
    split = {'axis': 'x', 'fractions': (0.5, 0.25, 0.25)}
    usual = {'tile_size': tile, 'patch_size': patch, 'split': split, 'length': 16, 'batch_size': 1}
    datamodule = MultimodalGeoDataModule(root=str(root), **usual | settings)
    datamodule.prepare_data()
    datamodule.setup('fit')
    return datamodule


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', IMAGES)
def test_images_of_a_recipe_are_read(name: str, tmp_path: Path) -> None:
    writer, modality, bands, dates, gsd = IMAGES[name]
    writer(tmp_path)
    datamodule = open_region(tmp_path, RECIPES[name], gsd)
    assert datamodule.modalities[modality].bands == bands
    assert datamodule.modalities[modality].gsd == gsd
    sample = datamodule.train_dataset[0]
    assert sample[f'valid_{modality}'].tolist() == [True] * dates
    settings = RECIPES[name]['rasters'][modality]
    kind = 'optical' if settings['kind'] == 'sentinel2' else settings['kind']
    assert datamodule.modalities[modality].kind == kind
    assert datamodule.modalities[modality].unit == settings.get('unit', 'dn')


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', LABELS)
def test_labels_of_a_recipe_are_read(name: str, tmp_path: Path) -> None:
    writer, classes = LABELS[name]
    writer(tmp_path)
    image(tmp_path / 's2/S2_20210615.tif', bands=B4)
    rasters = {'s2': {'path': 's2', 'gsd': 10, 'kind': 'optical', 'unit': 'dn'}}
    datamodule = open_region(tmp_path, {'rasters': rasters, 'label_gsd': 10} | RECIPES[name])
    assert list(datamodule.labels) == classes
    mask = np.concatenate([datamodule.train_dataset[index]['mask'].numpy().ravel() for index in range(16)])
    assert set(np.unique(mask)) - {datamodule.ignore_index} == set(range(len(classes)))


@pytest.mark.filterwarnings('ignore')
def test_settings_for_imbalanced_classes_are_read(tmp_path: Path) -> None:
    settings: dict[str, Any] = {'label_gsd': 10}
    page = (PAGE.parent / 'imbalance.md').read_text()
    for block in re.findall(r'^```yaml\n(.*?)^```$', page, re.M | re.S):
        settings |= yaml.safe_load(block)
    settings['rasters'] = {'s2': {'path': 's2', 'gsd': 10, 'kind': 'optical', 'unit': 'dn'}}
    image(tmp_path / 's2/S2_20210615.tif', bands=B4)
    fields(tmp_path, 'fields.gpkg', 'crop', [0, 3, 2, 1])
    parts = [box(X + 320 * part, Y - SIDE, X + 320 * (part + 1), Y) for part in range(3)]
    gpd.GeoDataFrame({'split': ['train', 'val', 'test']}, geometry=parts, crs=UTM).to_file(tmp_path / 'regions.gpkg')
    datamodule = open_region(tmp_path, settings)
    assert list(datamodule.labels) == ['cereals', 'maize']
    assert {split: area.area for split, area in datamodule.grounds.items()} == dict.fromkeys(
        ('train', 'val', 'test'), 320.0 * SIDE
    )
    mask = np.stack([datamodule.train_dataset[index]['mask'].numpy() for index in range(16)])
    assert set(np.unique(mask)) == {0, 1}, 'all pixels that are drawn have a label'
