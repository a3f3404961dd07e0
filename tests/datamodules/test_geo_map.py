# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""MultimodalGeoDataModule in prediction: odd areas, units of the model, and what makes it another map."""

import os
import zipfile
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from lightning.pytorch import Trainer

from tests.geo_tree import UTM, X, Y, ramp, write
from torchgeo_omnisat.datamodules import MultimodalGeoDataModule
from torchgeo_omnisat.prediction import GeoTIFFWriter
from torchgeo_omnisat.tasks import OmniSatSegmentation

RASTERS: dict[str, Any] = {
    's2': {'path': 's2', 'gsd': 10},
    'aerial': {'path': 'aerial', 'gsd': 2, 'temporal': False},
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """32 x 16 px of 10 m; an aerial image in the west alone."""
    write(tmp_path / 's2/a_20210301.tif', ramp(16, 32, 2))
    write(tmp_path / 'aerial/ortho.tif', ramp(20, 20), (X + 40, Y - 40), 2)
    return tmp_path


def make(root: Path, **changes: Any) -> MultimodalGeoDataModule:
    told: dict[str, Any] = {'rasters': RASTERS, 'label_gsd': 10, 'tile_size': 80, 'overlap': 0.0}
    return MultimodalGeoDataModule(str(root), **told | changes)


def test_an_area_whose_outline_crosses_itself(root: Path) -> None:
    bow = shapely.Polygon([(X, Y), (X + 100, Y - 100), (X + 100, Y), (X, Y - 100)])
    fields = [bow, shapely.box(X + 20, Y - 80, X + 150, Y - 10)]
    gpd.GeoDataFrame(geometry=fields, crs=UTM).to_file(root / 'fields.gpkg')
    datamodule = make(root, predict_area='fields.gpkg')
    datamodule.setup('predict')
    assert datamodule.area.is_valid
    assert datamodule.area.bounds == (X, Y - 100, X + 150, Y)
    assert 130 * 70 < datamodule.area.area < 130 * 70 + 100 * 100 / 2


def test_a_model_that_knows_its_units_maps_what_was_never_measured(root: Path) -> None:
    datamodule = make(root, split={'train': [X + 200, Y - 160, X + 320, Y]})
    with pytest.raises(ValueError, match=r"'aerial'"):
        datamodule.setup('predict')
    units: dict[str, Any] = {'mean': {'s2': [500.0, 9.0], 'aerial': [7.0]}, 'std': {'s2': [3.0, 4.0], 'aerial': [5.0]}}
    sizes: dict[str, Any] = {'num_classes': 3, 'patch_size': 40.0, 'label_gsd': 10.0}
    task = OmniSatSegmentation('omnisat_tiny', datamodule.labelled.modalities, **sizes, **units)
    writer = GeoTIFFWriter(str(root / 'map.tif'), overview=False)
    quiet: dict[str, Any] = {'accelerator': 'cpu', 'logger': False, 'enable_progress_bar': False}
    Trainer(**quiet, callbacks=[writer]).predict(task, datamodule=datamodule)
    assert datamodule.mean['s2'].tolist() == [500, 9]
    assert datamodule.std['aerial'].tolist() == [5]
    with rasterio.open(root / 'map.tif') as file:
        assert np.unique(file.read(2), return_counts=True)[1].tolist() == [16 * 32 - 16, 16]


@pytest.mark.parametrize('change', ['nodata', 'band', 'clouds', 'time'])
def test_what_is_read_otherwise_is_another_map(tmp_path: Path, change: str) -> None:
    for band in 'B02', 'B03', 'SCL':
        write(tmp_path / f's2/20210101_{band}.tif', ramp(8, 8))
    pattern = {'filename_glob': '*_B02.tif', 'filename_regex': r'(?P<date>\d{8})_(?P<band>B0[23]|SCL)'}
    files = {
        'path': 's2',
        'all_bands': ['B02', 'B03', 'SCL'],
        'bands': ['B02', 'B03'],
        'separate_files': True,
        **pattern,
    }
    files['clouds'] = {'band': 'SCL', 'values': [9]}
    first = make(tmp_path, rasters={'s2': files}).fingerprint()
    assert first == make(tmp_path, rasters={'s2': files}).fingerprint()
    if change == 'nodata':
        files['nodata'] = 5
    elif change == 'time':
        os.utime(tmp_path / 's2/20210101_B03.tif', (0, 0))
    else:
        name = {'band': 'B03', 'clouds': 'SCL'}[change]
        write(tmp_path / f's2/20210101_{name}.tif', ramp(8, 8), compress='lzw')
    assert make(tmp_path, rasters={'s2': files}).fingerprint() != first


def test_rasters_in_an_archive_are_listed_and_read(root: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / 'images.zip', 'w') as archive:
        for path in sorted((root / 's2').glob('*.tif')):
            archive.write(path, f's2/{path.name}')
    packed = make(root, rasters={'s2': {'path': f'/vsizip/{tmp_path}/images.zip/s2', 'gsd': 10}}).unlabelled
    plain = make(root, rasters={'s2': {'path': 's2', 'gsd': 10}}).unlabelled
    window = slice(X, X + 40), slice(Y - 40, Y)
    assert packed[window]['image_s2'].equal(plain[window]['image_s2'])
