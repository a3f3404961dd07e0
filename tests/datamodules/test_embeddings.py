# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Training on Sentinel-2 joined with embeddings that half of the samples lack."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from torchgeo.main import main

from tests.prediction.embeddings.files import X, landscape, write_codes, write_raster, write_scaled
from torchgeo_omnisat.datamodules import MultimodalGeoDataModule
from torchgeo_omnisat.datamodules.common.plausibility import BandSummary, compare, implausible
from torchgeo_omnisat.modality import Modality
from torchgeo_omnisat.tasks import OmniSatSegmentation
from torchgeo_omnisat.transforms import RandomBandDropout, RandomJitter
from torchgeo_omnisat.utils.tensors.quantization import SCALE

RASTERS: dict[str, Any] = {
    's2': {'path': 's2', 'kind': 'optical', 'unit': 'dn'},
    'aef': {'path': 'aef', 'kind': 'alphaearth'},
    'tessera': {'path': 'tessera', 'kind': 'tessera'},
    'own': {'path': 'own', 'kind': 'embeddings'},
}


@pytest.fixture(scope='module')
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 x 64 px of S2; embeddings of the eastern half."""
    root = tmp_path_factory.mktemp('joined')
    vectors, classes = landscape(32, 64, dims=64)
    rng = np.random.default_rng(0)
    for day in ('20220401', '20220801'):
        write_raster(root / f's2/a_{day}.tif', rng.integers(1, 3000, (2, 32, 64), np.uint16), names=['B04', 'B08'])
    east = X + 320, 5700000.0
    write_codes(root / 'aef/2022/31N/x-0000000000.tiff', vectors[:, :, 32:], origin=east, flipped=True)
    tessera = landscape(32, 32, dims=128)[0]
    write_scaled(root / 'tessera/grid_4.45_51.45_2022.tiff', tessera, origin=east)
    seen = np.ones((32, 32))
    write_codes(root / 'own/map_2022.tif', vectors[:, :, 32:], seen, origin=east)
    write_raster(root / 'labels/a.tif', classes[None].astype(np.uint8))
    return root


@pytest.mark.parametrize('through', ['python', pytest.param('command', marks=pytest.mark.slow)])
def test_joined_training(root: Path, tmp_path: Path, through: str) -> None:
    """Three of four modalities are absent in half of the samples."""
    encoders = dict.fromkeys(('aef', 'tessera', 'own'), 'projection')
    settings: dict[str, Any] = {
        'root': str(root), 'rasters': RASTERS, 'mask': {'path': 'labels'}, 'labels': ['a', 'b', 'c'], 'tile_size': 160,
        'batch_size': 4, 'length': 8, 'split': {'axis': 'y', 'fractions': [0.5, 0.0, 0.5]},
    }  # fmt: skip
    quiet: dict[str, Any] = {'logger': False, 'enable_progress_bar': False, 'enable_model_summary': False}
    arguments = {'encoders': encoders, 'widths': [16, 16], 'embed_dim': 16, 'depth': 1}
    model: dict[str, Any] = {'backbone': 'omnisat_tiny', 'backbone_args': arguments}
    config = {
        'model': {'class_path': 'omnisat', 'init_args': model},
        'data': {'class_path': 'MultimodalGeoDataModule', 'init_args': settings},
        'trainer': {'max_steps': 2, 'accelerator': 'cpu', 'default_root_dir': str(tmp_path), **quiet},
    }
    datamodule = MultimodalGeoDataModule(**settings)
    trainer = Trainer(**config['trainer'])
    task = OmniSatSegmentation(**model)
    if through == 'command':
        (tmp_path / 'config.yaml').write_text(yaml.safe_dump(config))
        main(['fit', f'--config={tmp_path}/config.yaml'])
        (checkpoint,) = tmp_path.rglob('*.ckpt')
        task = OmniSatSegmentation.load_from_checkpoint(checkpoint, map_location='cpu')
    else:
        trainer.fit(task, datamodule)
    trainer.test(task, datamodule, verbose=False)
    assert {f'test_AverageJaccardIndex/{name}' for name in ('s2', 'aef+own+s2+tessera')} <= {*trainer.callback_metrics}
    assert [datamodule.modalities[name].kind for name in RASTERS] == ['optical', *['embedding'] * 3]
    samples = [datamodule.test_dataset[index] for index in range(len(datamodule.test_dataset))]
    for name in encoders:
        there = [f'image_{name}' in sample and bool(sample[f'valid_{name}'].any()) for sample in samples]
        assert sum(there) == len(there) / 2
    batch = datamodule.collate_fn(samples)
    changed = dict(batch)
    absent = ~batch['valid_aef'].any(1)
    for name in encoders:
        changed[f'image_{name}'] = torch.where(absent.view(-1, 1, 1, 1), 5.0, batch[f'image_{name}'])
    with torch.inference_mode():
        before, after = task.eval()(batch), task(changed)
    assert torch.equal(before[absent], after[absent])


def test_no_intensity_augmentation_of_embeddings() -> None:
    modalities = {
        'aef': Modality('aef', ('A00', 'A01'), 10, False, 'embedding'),
        'dem': Modality('dem', ('z', 'slope'), 10, False, 'elevation'),
    }
    batch = {
        key: value
        for m in modalities.values()
        for key, value in ((m.image_key, torch.rand(4, 2, 8, 8)), (m.valid_key, torch.ones(4, 1, dtype=torch.bool)))
    }
    torch.manual_seed(0)
    for transform in (RandomJitter(modalities, 0.5), RandomBandDropout(modalities, 0.9)):
        changed = transform(batch)
        assert torch.equal(changed['image_aef'], batch['image_aef'])
        assert not torch.equal(changed['image_dem'].nan_to_num(9), batch['image_dem'])


def test_codes_that_are_not_decoded_are_named() -> None:
    aef = Modality('aef', tuple(f'A{index:02}' for index in range(64)), 10, False, 'embedding')
    codes = [BandSummary(-100.0, 3.0, 90.0, 20.0)] * 64
    (found,) = implausible(aef, codes)
    assert 'int8 codes' in found
    assert implausible(aef, [BandSummary(-0.4, 0.01, 0.3, 0.1)] * 64) == []
    vectors = landscape(32, 32, dims=64)[0].reshape(64, -1).T.astype(np.float64)
    mean, std = vectors.mean(0), vectors.std(0)
    stored = SCALE * np.sign(vectors) * np.abs(vectors) ** 0.5
    (found,) = compare(aef, stored.copy(), mean, std, 4, 1)
    assert 'int8 codes where the checkpoint has embeddings' in found
    assert compare(aef, vectors.copy(), mean, std, 4, 1) == []
    assert compare(aef, -vectors[:, ::-1].copy(), mean, std, 4, 1) == []
