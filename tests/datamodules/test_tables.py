# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Training on the pixels of a table."""

from pathlib import Path

import pytest
from lightning.pytorch import Trainer

from tests.datasets.test_tables import SERIES, SETTINGS, table
from torchgeo_omnisat.datamodules import PixelTableDataModule
from torchgeo_omnisat.tasks import OmniSatSegmentation

pytest.importorskip('pyarrow')


def test_training_on_pixels(tmp_path: Path) -> None:
    table().to_parquet(tmp_path / 'points.parquet')
    datamodule = PixelTableDataModule(
        str(tmp_path / 'points.parquet'), series=SERIES, block=0.2, batch_size=8, **SETTINGS
    )
    assert (datamodule.labels, datamodule.patch_size) == (['beans', 'maize', 'sorghum'], 10)
    encoders = {name: {'name': 'ltae', 'widths': [16]} for name in SERIES}
    task = OmniSatSegmentation('omnisat_tiny', backbone_args={'encoders': encoders, 'embed_dim': 16, 'depth': 1})
    quiet = {'logger': False, 'enable_checkpointing': False, 'enable_progress_bar': False}
    trainer = Trainer(max_epochs=1, accelerator='cpu', default_root_dir=tmp_path, **quiet)
    trainer.fit(task, datamodule)
    assert task.hparams['labels'] == ['beans', 'maize', 'sorghum']
    assert abs(float(datamodule.mean['s1'].mean()) + 14) < 4  # decibels
    trainer.test(task, datamodule, verbose=False)
    assert {'test_AverageJaccardIndex/s1', 'test_AverageJaccardIndex/s1+s2'} <= set(trainer.callback_metrics)


def test_fraction_of_0_has_no_split(tmp_path: Path) -> None:
    table().to_parquet(tmp_path / 'points.parquet')
    path, fractions = str(tmp_path / 'points.parquet'), (0.8, 0, 0.2)
    datamodule = PixelTableDataModule(path, series=SERIES, fractions=fractions, **SETTINGS)
    datamodule.setup('fit')
    assert datamodule.val_dataloader() == []
