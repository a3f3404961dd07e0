# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Single tiles become a GeoTIFF each, where they lie and as they are turned."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rasterio

from torchgeo_omnisat.datamodules import SyntheticLandscapesDataModule
from torchgeo_omnisat.prediction import GeoTIFFWriter
from torchgeo_omnisat.prediction.raster import MapBands, TileFolder, class_colors
from torchgeo_omnisat.tasks import OmniSatSegmentation

from .test_writer import make_trainer

pytestmark = pytest.mark.filterwarnings('ignore:.*does not have many workers')
LABELS = ['water', 'field', 'town']


def make_folder(path: Path, **dataset: Any) -> TileFolder:
    given: Any = SimpleNamespace(crs='EPSG:2154', ids=['D01/Z1/7', '8'], **dataset)
    return TileFolder(path, given, MapBands(LABELS, ['s2']), class_colors(3))


def tile(height: int, width: int) -> tuple[Any, Any]:
    probabilities = np.zeros((3, height, width), np.float32)
    probabilities[1] = 1
    seen = np.ones((height, width), np.uint16)
    seen[0] = 0
    return probabilities, seen


def test_every_tile_of_a_split_is_a_file(tmp_path: Path) -> None:
    datamodule = SyntheticLandscapesDataModule(
        str(tmp_path / 'data'), num_tiles=10, size=16, dates=(2, 3), modalities=('s2',), batch_size=2
    )
    task = OmniSatSegmentation('omnisat_tiny')
    writer = GeoTIFFWriter(str(tmp_path / 'tiles'), probabilities='uint16')
    trainer = make_trainer(tmp_path, writer)
    assert trainer.predict(task, datamodule=datamodule) is None
    dataset: Any = datamodule.predict_dataset
    assert sorted(path.name for path in (tmp_path / 'tiles').iterdir()) == sorted(f'{name}.tif' for name in dataset.ids)
    returned: Any = make_trainer(tmp_path).predict(task, datamodule=datamodule)
    expected = np.concatenate([batch['probabilities'].numpy() for batch in returned])
    for index, name in enumerate(dataset.ids):
        with rasterio.open(tmp_path / f'tiles/{name}.tif') as file:
            places = [file.transform @ place for place in ((0, 0), (16, 0), (0, 16))]
            np.testing.assert_allclose(places, dataset.corners[index])
            assert (file.transform.a, -file.transform.e) == pytest.approx((10, 10), abs=0.1)
            assert file.crs == dataset.crs
            assert file.tags(1)['CLASS_1'] == dataset.classes[1]
            bands = file.read()
        assert np.array_equal(bands[0], expected[index].argmax(0))
        assert (bands[1] == 1).all()
        np.testing.assert_allclose(bands[2:] / 60000, expected[index], atol=1e-4)


def test_a_turned_square_stays_turned(tmp_path: Path) -> None:
    corner, right, low = (1000.0, 2000.0), (1040.0, 1997.0), (994.0, 1940.0)
    make_folder(tmp_path, corners=np.array([[corner, right, low]] * 2)).write(0, *tile(6, 4), None)
    with rasterio.open(tmp_path / 'D01-Z1-7.tif') as file:
        places = [file.transform @ place for place in ((0, 0), (4, 0), (0, 6))]
        bands = file.read()
    np.testing.assert_allclose(places, [corner, right, low])
    assert (bands[:, 0] == 255).all()  # nothing was measured there
    assert (bands[0, 1:] == 1).all()


def test_bounds_must_be_those_of_the_pixels(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    folder.write(1, *tile(6, 4), [100.0, 108.0, 2.0, 50.0, 62.0, 2.0])
    with rasterio.open(tmp_path / '8.tif') as file:
        assert file.transform[:6] == (2, 0, 100, 0, -2, 62)
    for bounds in [100.0, 109.0, 2.0, 50.0, 62.0, 2.0], None:
        with pytest.raises(ValueError, match=r"'D01-Z1-7'.*bounds.*\b6 x 4 "):
            folder.write(0, *tile(6, 4), bounds)
    assert [path.name for path in tmp_path.iterdir()] == ['8.tif']


@pytest.mark.parametrize('ids', [['a/b', 'c', 'a-b'], ['a/b', 'a/b']])
def test_no_sample_overwrites_another(tmp_path: Path, ids: list[str]) -> None:
    given: Any = SimpleNamespace(crs='EPSG:2154', ids=ids)
    with pytest.raises(ValueError, match=rf"'a/b'.*'{ids[-1]}'.*a-b\.tif"):
        TileFolder(tmp_path / 'tiles', given, MapBands(LABELS, ['s2']), class_colors(3))
    assert not (tmp_path / 'tiles').exists()


def test_single_tiles_have_no_parcels(tmp_path: Path) -> None:
    datamodule = SyntheticLandscapesDataModule(str(tmp_path / 'data'), num_tiles=5, size=16, dates=(2, 3))
    with pytest.raises(ValueError, match=r'parcels.*True.*Synthetic'):
        make_trainer(tmp_path, GeoTIFFWriter(parcels=True)).predict(
            OmniSatSegmentation('omnisat_tiny'), datamodule=datamodule
        )
