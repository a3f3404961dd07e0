# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""MixedDataModule: batches of one datamodule each, in the shares that were asked for."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from torchgeo_omnisat.batch import check
from torchgeo_omnisat.datamodules import MixedDataModule, PASTISMultimodalDataModule, SyntheticLandscapesDataModule
from torchgeo_omnisat.datamodules.mixing import schedule


@pytest.fixture
def parts(pastis: Path, tmp_path: Path) -> dict[str, Any]:
    """Six tiles of 32 px to train on beside three of 8 px."""
    return {
        'pastis': PASTISMultimodalDataModule(str(pastis), batch_size=2, modalities=('s2', 's1a')),
        'made': SyntheticLandscapesDataModule(str(tmp_path), num_tiles=5, size=8, dates=(2, 4), batch_size=1),
    }


class Looker(LightningModule):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: dict[str, list[Any]] = {'train': [], 'val': []}

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.seen['train'].append(batch)
        return self.weight**2

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.seen['val'].append(batch)
        self.log('val_loss', self.weight, batch_size=1)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(datamodule: MixedDataModule, epochs: int = 1) -> tuple[Looker, Trainer]:
    trainer = Trainer(
        max_epochs=epochs, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator='cpu'
    )
    looker = Looker()
    trainer.fit(looker, datamodule=datamodule)
    return looker, trainer


def test_batches_are_of_one_datamodule_each(parts: dict[str, Any]) -> None:
    datamodule = MixedDataModule(parts)
    looker, trainer = fit(datamodule, epochs=2)
    assert list(datamodule.modalities) == ['s2', 's1a', 's1d', 'spot']
    sides = [batch['image_s2'].shape[-1] for batch in looker.seen['train']]
    assert sorted(sides) == [8] * 6 + [32] * 6
    assert sides[:6] != sorted(sides[:6])
    for batch in looker.seen['train'] + looker.seen['val']:
        check(batch, datamodule.modalities)
        assert 'source' not in batch
        if batch['image_s2'].shape[-1] == 8:  # normalised by its own: the other's are made up
            assert batch['image_s2'][batch['valid_s2']].nan_to_num().abs().mean() < 50  # raw units are thousands
    assert {batch['image_s2'].shape[-1] for batch in looker.seen['val']} == {8, 32}
    assert 'val_loss' in trainer.callback_metrics


def test_a_limit_of_batches_holds(parts: dict[str, Any]) -> None:
    trainer = Trainer(
        max_epochs=1,
        limit_train_batches=2,
        limit_val_batches=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        accelerator='cpu',
    )
    looker = Looker()
    trainer.fit(looker, datamodule=MixedDataModule(parts))
    assert len(looker.seen['train']) == 4  # of each


def test_shares_follow_the_temperature() -> None:
    lengths = [90, 10]
    for temperature, expected in ((1, [90, 10]), (2, [75, 25]), (float('inf'), [50, 50])):
        assert np.bincount(schedule(lengths, temperature, 0)).tolist() == expected
    assert not np.array_equal(schedule(lengths, 1, 0), schedule(lengths, 1, 1))
    assert np.array_equal(schedule(lengths, 1, 3), schedule(lengths, 1, 3))
    assert 1 in schedule([1000, 1], 1, 0)


def test_a_name_is_one_modality(parts: dict[str, Any], pastis: Path) -> None:
    parts['pastis'] = PASTISMultimodalDataModule(str(pastis), bands={'s2': ('B02', 'B03')}, modalities=('s2',))
    with pytest.raises(
        ValueError, match=r"'s2' of 'made' is .* expected the same, or rename=\{'made': \{'s2': 's2_made'"
    ):
        MixedDataModule(parts).setup('fit')
    datamodule = MixedDataModule(parts, rename={'pastis': {'s2': 's2_few'}})
    looker, _ = fit(datamodule)
    assert datamodule.modalities['s2_few'].bands == ('B02', 'B03')
    names = [{key for key in batch if key.startswith('image')} for batch in looker.seen['train']]
    assert {'image_s2_few'} in names
    assert any('image_s2' in held for held in names)
    assert torch.equal(datamodule.mean['s2_few'], parts['pastis'].mean['s2'])


def test_what_all_agree_on_is_known(parts: dict[str, Any]) -> None:
    datamodule = MixedDataModule(parts)
    datamodule.setup('fit')
    assert (datamodule.num_classes, datamodule.ignore_index, datamodule.label_gsd) == (20, 19, 10.0)
    parts['made'].num_classes = 3
    datamodule.setup('fit')
    assert datamodule.num_classes is None
    parts['made'].patch_size = 20.0
    with pytest.raises(ValueError, match=r'patches of the datamodules are .* expected patch_size to be given'):
        MixedDataModule(parts)
    assert MixedDataModule(parts, patch_size=40.0).patch_size == 40


def test_arguments(parts: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r'datamodules is empty'):
        MixedDataModule({})
    with pytest.raises(ValueError, match=r'temperature is 0.5, expected at least 1'):
        MixedDataModule(parts, temperature=0.5)
    with pytest.raises(ValueError, match=r"rename names \['flair'\], expected some of \['pastis', 'made'\]"):
        MixedDataModule(parts, rename={'flair': {}})
    with pytest.raises(ValueError, match=r"rename of 'made' has \['s3'\]"):
        MixedDataModule(parts, rename={'made': {'s3': 's4'}}).setup('fit')
    with pytest.raises(ValueError, match=r'expected one datamodule to predict'):
        MixedDataModule(parts).setup('predict')
