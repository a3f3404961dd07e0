# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Training on Sentinel-2 joined with embeddings that half of the samples lack."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from tests.prediction.embeddings.files import X, landscape, write_codes, write_raster, write_scaled
from torchgeo_omnisat.datamodules import MultimodalGeoDataModule
from torchgeo_omnisat.datamodules.plausibility import BandSummary, compare, implausible
from torchgeo_omnisat.modality import Modality
from torchgeo_omnisat.tasks import OmniSatSegmentation
from torchgeo_omnisat.transforms import RandomBandDropout, RandomJitter
from torchgeo_omnisat.utils.quantization import SCALE

RASTERS: dict[str, Any] = {
    's2': {'path': 's2', 'kind': 'optical', 'unit': 'dn'},
    'aef': {'path': 'aef', 'kind': 'alphaearth'},
    'tessera': {'path': 'tessera', 'kind': 'tessera'},
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
    write_raster(root / 'labels/a.tif', classes[None].astype(np.uint8))
    return root


def test_joined_training(root: Path, tmp_path: Path) -> None:
    datamodule = MultimodalGeoDataModule(
        str(root), rasters=RASTERS, mask={'path': 'labels'}, labels=['a', 'b', 'c'], tile_size=160, batch_size=4,
        length=8, split={'axis': 'y', 'fractions': (0.5, 0.0, 0.5)},
    )  # fmt: skip
    arguments = {'encoders': {'aef': 'projection', 'tessera': 'projection'}, 'widths': [16, 16], 'embed_dim': 16}
    task = OmniSatSegmentation(backbone='omnisat_tiny', backbone_args={**arguments, 'depth': 1})
    quiet = {'logger': False, 'enable_checkpointing': False, 'enable_progress_bar': False}
    trainer = Trainer(max_steps=2, accelerator='cpu', default_root_dir=tmp_path, **quiet)
    trainer.fit(task, datamodule)
    assert [datamodule.modalities[name].kind for name in RASTERS] == ['optical', 'embedding', 'embedding']
    datamodule.setup('test')
    samples = [datamodule.test_dataset[index] for index in range(len(datamodule.test_dataset))]
    there = ['image_aef' in sample and bool(sample['valid_aef'].any()) for sample in samples]
    assert 0 < sum(there) < len(there)
    trainer.test(task, datamodule, verbose=False)
    scores = {key for key in trainer.callback_metrics if key.startswith('test_AverageJaccardIndex')}
    assert 'test_AverageJaccardIndex/aef+s2+tessera' in scores
    batch = datamodule.collate_fn(samples)
    batch['image_aef'] = (batch['image_aef'] - datamodule.mean['aef'].view(-1, 1, 1)) / 1
    changed = dict(batch)
    absent = ~batch['valid_aef'].any(1)
    changed['image_aef'] = torch.where(absent.view(-1, 1, 1, 1), 5.0, batch['image_aef'])
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
