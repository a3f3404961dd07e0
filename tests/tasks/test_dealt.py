# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Evaluation by two processes counts every sample once, whatever the number of samples."""

import json
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import seed_everything

from torchgeo_omnisat.datamodules import MixedDataModule, SyntheticLandscapesDataModule
from torchgeo_omnisat.prediction import GeoTIFFWriter
from torchgeo_omnisat.tasks import OmniSatPretraining, OmniSatSegmentation

from ..processes import succeed
from .helpers import make_trainer, read_csv


def make(root: Path, tiles: int, name: str = 'one', **changes: Any) -> SyntheticLandscapesDataModule:
    told: dict[str, Any] = {'size': 16, 'dates': (2, 3), 'batch_size': 1, 'modalities': ('s2', 's1a'), **changes}
    return SyntheticLandscapesDataModule(str(root / name), num_tiles=5 * tiles, **told)


def evaluate(root: Path, folder: Path, tiles: int, devices: int, kind: str) -> None:
    """Validate within a fit, test and predict, and write what was found."""
    seed_everything(0, verbose=False)
    datamodule: Any = make(root, tiles, batch_size=2 if kind == 'pretraining' else 1)
    if kind == 'mixed':
        datamodule = MixedDataModule({'one': datamodule, 'two': make(root, tiles, 'two')})
    datamodule.setup('fit')
    names = ['modalities', 'patch_size', 'mean', 'std']
    names += [] if kind == 'pretraining' else ['num_classes', 'labels', 'ignore_index', 'label_gsd']
    told: Any = {name: getattr(datamodule, name) for name in names}  # so that the model is made before any fork
    task: Any = (OmniSatPretraining if kind == 'pretraining' else OmniSatSegmentation)('omnisat_tiny', lr=0.0, **told)
    strategy = 'ddp_fork' if devices > 1 else 'auto'
    trainer = make_trainer(
        folder, devices=devices, strategy=strategy, max_steps=-1, max_epochs=1, limit_train_batches=1
    )
    trainer.fit(task, datamodule=datamodule)
    found = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith('val_')}
    found |= {name: float(value) for name, value in trainer.test(task, datamodule=datamodule, verbose=False)[0].items()}
    if trainer.is_global_zero:
        (folder / 'found.json').write_text(json.dumps(found))
    if kind == 'single':
        writer = GeoTIFFWriter(str(folder / 'maps'))
        trainer = make_trainer(folder, devices=devices, strategy=strategy, callbacks=[writer])
        trainer.predict(task, datamodule=datamodule)


@pytest.mark.slow
@pytest.mark.parametrize(('kind', 'tiles'), [('single', 3), ('single', 1), ('mixed', 3), ('pretraining', 5)])
def test_two_processes_count_what_one_does(tmp_path: Path, kind: str, tiles: int) -> None:
    """Of 3 tiles the second process has one less, of 1 tile none; of 5 tiles in batches of two, a batch less."""
    found = []
    for devices in (1, 2):
        folder = tmp_path / str(devices)
        folder.mkdir()
        succeed(folder, evaluate, tmp_path, folder, tiles, devices, kind, timeout=300)
        found.append(json.loads((folder / 'found.json').read_text()))
        tables = [read_csv(path) for path in folder.rglob('subsets.csv')]
        assert all(row['samples'] == str(tiles * (1 + (kind == 'mixed'))) for table in tables for row in table)
        assert len(list(folder.rglob('maps/*.tif'))) == (tiles if kind == 'single' else 0)
    assert found[0].keys() == found[1].keys()
    if kind != 'pretraining':  # whose contrast is one of all tiles of a step
        assert found[1] == pytest.approx(found[0], rel=1e-4, abs=1e-6)
        assert {'val_loss', 'test_loss', 'test_AverageJaccardIndex/s2'} <= found[0].keys()
