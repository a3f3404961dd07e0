# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""ChipsDataModule: chips of several zones train, are checked, and become a map each in their own CRS."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
import torchgeo.main
import yaml
from pyproj import Transformer
from rasterio.transform import Affine

from tests.chips_tree import LABELS, MASK, PLACES, RASTERS, write_chips
from tests.geo_tree import write
from torchgeo_omnisat import plugin
from torchgeo_omnisat.__main__ import main
from torchgeo_omnisat.datamodules import ChipsDataModule, MultimodalGeoDataModule
from torchgeo_omnisat.datasets.common.classes import UnknownCodesError
from torchgeo_omnisat.prediction.raster import MapBands, TileFolder, class_colors

pytestmark = pytest.mark.filterwarnings('ignore:.*does not have many workers')


def make(root: Path, **changes: Any) -> ChipsDataModule:
    told: dict[str, Any] = {'rasters': RASTERS, 'mask': MASK, 'labels': LABELS, 'batch_size': 2}
    return ChipsDataModule(str(root), **told | changes)


def recode(root: Path, name: str, code: int) -> None:
    """Write a mask of one code."""
    with rasterio.open(root / f'masks/{name}.tif', 'r+') as file:
        file.write(np.full((1, 16, 16), code, np.uint8))


def test_batches_are_of_chips_from_several_zones(tmp_path: Path) -> None:
    datamodule = make(write_chips(tmp_path, 5))
    datamodule.prepare_data()
    datamodule.setup('fit')
    (batch,) = list(datamodule.train_dataloader())
    assert batch['image_s2'].shape == (2, 4, 16, 16)
    zones = [crs.name for crs in datamodule.chips.chip_crs if crs is not None]
    assert len(set(zones)) == 5
    assert datamodule.train_aug is not None
    sample = datamodule.train_aug({key: value.clone() for key, value in batch.items()})
    assert sample['image_s2'].isfinite().all()
    assert len(datamodule.val_dataloader()) == 1
    assert (datamodule.label_gsd, datamodule.num_classes) == (10, 2)
    assert '3 train, 1 val, 1 test' in datamodule.contents()
    assert 'and 4 more' in datamodule.contents()


def test_a_split_without_chips_is_left_out_of_training(tmp_path: Path) -> None:
    datamodule = make(write_chips(tmp_path, 2), split={'fractions': [1, 0, 0]})
    datamodule.setup('fit')
    assert datamodule.val_dataloader() == []
    with pytest.raises(ValueError, match="no chip for 'test'"):
        datamodule.setup('test')


def test_statistics_are_those_of_the_training_chips(tmp_path: Path) -> None:
    datamodule = make(write_chips(tmp_path, 5))
    datamodule.setup('fit')
    train = datamodule.make_dataset('train')
    pixels = torch.stack([train[index]['image_s2'] for index in range(len(train))])
    assert datamodule.mean['s2'].tolist() == pytest.approx(pixels.mean((0, 2, 3)).tolist(), rel=1e-5)


def test_labels_are_counted_and_unknown_codes_are_one_error(tmp_path: Path) -> None:
    datamodule = make(write_chips(tmp_path, 3), split={'fractions': [1, 0, 0]})
    counts = datamodule.label_counts('train')
    assert counts.labelled == counts.total == 3 * 256
    recode(tmp_path, 'chip0', 7)
    recode(tmp_path, 'chip1', 8)
    with pytest.raises(UnknownCodesError) as error:
        datamodule.label_counts('train')
    assert error.value.counts == {7: 256, 8: 256}


def test_nodata_that_is_a_class_is_told(tmp_path: Path) -> None:
    write_chips(tmp_path, 2)
    for number, (crs, corner) in enumerate(PLACES[:2]):
        write(tmp_path / f'masks/chip{number}.tif', np.zeros((16, 16), np.uint8), corner, crs=crs, nodata=0)
    counts = make(tmp_path, split={'fractions': [1, 0, 0]}).label_counts('train')
    assert counts.labelled == 0
    assert counts.nodata[0][1:] == (0, 'land')


def test_check_lists_the_faults_of_chips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_chips(tmp_path, 5)
    (tmp_path / 'masks/chip0.tif').unlink()
    (tmp_path / 'masks/chip4.tif').write_bytes(b'II*\0')
    crs, (x, y) = PLACES[1]
    write(tmp_path / 'masks/chip1.tif', np.zeros((16, 16), np.uint8), (x + 30, y), crs=crs)
    recode(tmp_path, 'chip2', 0)
    recode(tmp_path, 'chip3', 0)
    config = tmp_path / 'chips.yaml'
    settings: dict[str, Any] = {'root': str(tmp_path), 'rasters': RASTERS, 'mask': MASK, 'labels': LABELS}
    settings |= {'split': {'fractions': [1, 0, 0]}}
    config.write_text(yaml.safe_dump({'data': {'class_path': 'ChipsDataModule', 'init_args': settings}}))
    words = ['check', '--config', str(config), '--workers', '0']
    assert main(words) == 1
    said = capsys.readouterr().out
    assert 'masks/chip0.tif' in said
    assert 'masks/chip4.tif' in said
    assert 'missing: does not exist, expected mask there' in said
    assert 'differ by up to 30 m' in said
    assert "no pixel of 'train' has the label ['water']" in said


def test_coordinates_of_chips(tmp_path: Path) -> None:
    write_chips(tmp_path, 2)
    datamodule = make(tmp_path, predict_split='all')
    dataset = datamodule.make_dataset('predict')
    sample = dataset[1]
    x, y = (sample['bounds'][[0, 3]] + sample['bounds'][[1, 4]]) / 2
    back = Transformer.from_crs(4326, dataset.chip_crs[1], always_xy=True).transform(*sample['coordinates'].tolist())
    assert back == pytest.approx((float(x), float(y)), abs=1)


def test_maps_lie_where_their_chips_lie(tmp_path: Path) -> None:
    write_chips(tmp_path, 2)
    datamodule = make(tmp_path, predict_split='all')
    dataset = datamodule.make_dataset('predict')
    folder = TileFolder(tmp_path / 'out', dataset, MapBands(LABELS, ['s2']), class_colors(2))
    probabilities, seen = np.full((2, 16, 16), 0.5, np.float32), np.ones((16, 16), np.uint16)
    for index in range(2):
        assert 'mask' not in dataset[index]
        folder.write(index, probabilities, seen, dataset[index]['bounds'].tolist())
        with (
            rasterio.open(tmp_path / f'out/chip{index}.tif') as file,
            rasterio.open(tmp_path / f's2/chip{index}.tif') as own,
        ):
            assert (file.crs, file.transform, file.shape) == (own.crs, own.transform, own.shape)
    folder.crs = [None, None]
    folder.write(0, probabilities, seen, None)
    with rasterio.open(tmp_path / 'out/chip0.tif') as file:
        assert (file.crs, file.transform) == (None, Affine.identity())


def test_the_reader_of_regions_names_this_one(tmp_path: Path) -> None:
    write_chips(tmp_path, 2)
    datamodule = MultimodalGeoDataModule(str(tmp_path), {'s2': RASTERS['s2'] | {'temporal': False}})
    with pytest.raises(ValueError, match=r'chip1\.tif is in EPSG:32616 .* EPSG:32632 .* ChipsDataModule'):
        datamodule.contents()


@pytest.mark.slow
def test_commands_train_test_and_map_chips(tmp_path: Path) -> None:
    root = write_chips(tmp_path / 'chips', 5, series=('20210101', '20210601'))
    (root / 's1/chip1_20210101.tif').unlink()
    (root / 's1/chip1_20210601.tif').unlink()
    radar = {'path': 's1', 'gsd': 20, 'temporal': True, 'kind': 'radar', 'unit': 'db'}
    settings = {
        'root': str(root),
        'rasters': RASTERS | {'s1': radar},
        'mask': MASK | {'classes': {0: 'land', 1: 'water'}},
    }
    config = tmp_path / 'chips.yaml'
    config.write_text(yaml.safe_dump({'data': {'class_path': 'ChipsDataModule', 'init_args': settings}}))
    plugin.load()
    words = ['--model', 'omnisat', '--config', str(config), '--trainer.accelerator', 'cpu', '--trainer.devices', '1']
    words += ['--trainer.logger', 'false', '--trainer.default_root_dir', str(tmp_path), '--trainer.max_steps', '1']
    torchgeo.main.main(['fit', *words, '--model.backbone', 'omnisat_tiny'])
    (checkpoint,) = tmp_path.rglob('*.ckpt')
    (root / 'masks/chip0.tif').rename(tmp_path / 'chip0.tif')
    torchgeo.main.main(['predict', *words, '--ckpt_path', str(checkpoint), '--data.predict_split', 'all'])
    for number in range(5):
        with (
            rasterio.open(tmp_path / f'predictions/chip{number}.tif') as file,
            rasterio.open(root / f's2/chip{number}.tif') as own,
        ):
            assert (file.crs, file.transform, file.shape) == (own.crs, own.transform, own.shape)
            assert (file.read(2) == (2 if number == 1 else 3)).all()  # bits of s1 and s2
    (tmp_path / 'chip0.tif').rename(root / 'masks/chip0.tif')
    torchgeo.main.main(['test', *words, '--ckpt_path', str(checkpoint)])
    assert (tmp_path / 'subsets.csv').exists()
