# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Segmentation with fields as instances."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torchgeo.main import main

from torchgeo_omnisat.batch import drop
from torchgeo_omnisat.datamodules import PASTISMultimodalDataModule
from torchgeo_omnisat.tasks import OmniSatSegmentation, omnisat

from .helpers import MODALITIES, TOLD, command, make_batch, make_datamodule, make_trainer

REAL = Path(__file__).parents[2].parent / 'shared/data/pastis-r-mini'
pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")


def field_batch() -> dict[str, torch.Tensor]:
    """A batch with four square fields in each sample."""
    ids = 1 + torch.arange(16)[:, None] // 8 * 2 + torch.arange(16) // 8
    return {**make_batch(), 'instances': ids.expand(3, 16, 16).clone()}


@pytest.fixture(scope='module')
def task() -> OmniSatSegmentation:
    """A model with random weights, in evaluation mode."""
    return OmniSatSegmentation(**TOLD, instances=True).eval()


@pytest.fixture(scope='module')
def trained(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint of a command that asks only the task for instances."""
    folder = tmp_path_factory.mktemp('fields')
    words = ['--model.backbone', 'omnisat_tiny', '--model.instances', 'true', '--trainer.max_steps', '2']
    main(command(root, folder, 'fit', *words))
    return next(folder.rglob('*.ckpt'))


def test_checkpoint_rebuilds_its_model(trained: Path) -> None:
    task = omnisat.load_from_checkpoint(trained)
    assert task.with_instances
    assert task.hparams['background'] == 0
    state = torch.load(trained, weights_only=True)['state_dict']
    assert any(key.startswith('model.fields.') for key in state)
    assert all(torch.equal(value, state[key]) for key, value in task.state_dict().items())


def test_prediction_has_extent_and_distance(task: OmniSatSegmentation) -> None:
    batch = field_batch()
    batch['valid_s2'][1] = batch['valid_s1a'][1] = batch['valid_spot'][1] = False
    with pytest.warns(UserWarning, match='1 of 3 samples'):
        found: dict[str, Any] = task.predict_step(batch, 0)
    assert found['extent'].shape == (3, 3, 16, 16)
    assert found['distance'].shape == (3, 16, 16)
    assert torch.allclose(found['extent'].sum(1)[::2], torch.ones(2, 16, 16))
    assert 0 < found['distance'][::2].min() < found['distance'].max() < 1
    assert not found['extent'][1].any()
    assert not found['distance'][1].any()
    assert torch.equal(found['probabilities'], task.without_ignored(task(batch)).softmax(1))


def test_unobserved_tiles_of_an_area_are_zero(task: OmniSatSegmentation) -> None:
    found: dict[str, Any] = task.predict_step({'window': torch.tensor([[0, 0, 16, 16]])}, 0)
    assert found['extent'].shape == (1, 3, 16, 16)
    assert not found['extent'].any()
    assert not found['distance'].any()
    tile = {**drop(make_batch(), [MODALITIES['spot']]), 'window': torch.tensor([[0, 0, 16, 16]] * 3)}
    assert torch.allclose(task.predict_step(tile, 0)['extent'].sum(1), torch.ones(3, 16, 16))  # type: ignore[union-attr]


@pytest.mark.parametrize('settings', [{}, {'subset_weight': 1.0}, {'experts': False}])
def test_loss_of_the_head_has_its_weight(settings: dict[str, Any]) -> None:
    losses = []
    for weight in (0.0, 1.0, 2.0):
        torch.manual_seed(0)
        task = OmniSatSegmentation(
            **TOLD, instances=True, instance_weight=weight, modality_dropout=0.0, **settings
        ).eval()
        losses.append(task.learn(field_batch())[1].item())
    assert losses[1] - losses[0] > 0.5
    assert losses[2] - losses[1] == pytest.approx(losses[1] - losses[0], rel=1e-4)


def test_absent_modality_has_no_influence_on_fields(task: OmniSatSegmentation) -> None:
    batch = field_batch()
    batch['valid_spot'][:] = False
    _, maps = task.infer(batch)
    _, without = task.infer(drop(batch, [MODALITIES['spot']]))
    assert maps is not None
    assert without is not None
    assert torch.allclose(maps.extent, without.extent, atol=1e-5)
    _, there = task.infer(field_batch())
    assert there is not None
    assert (maps.distance - there.distance).abs().max() > 1e-4  # the last level of the decoder has the finest sensor


def test_a_batch_without_instances_is_refused(task: OmniSatSegmentation) -> None:
    with pytest.raises(ValueError, match=r'instances of OmniSatSegmentation.*mask'):
        task.learn(make_batch())
    with pytest.raises(ValueError, match=r'instances.*\(3, 16, 15\).*\(3, 16, 16\)'):
        task.learn({**make_batch(), 'instances': torch.zeros(3, 16, 15, dtype=torch.long)})


def test_a_model_without_the_head_is_refused() -> None:
    task = OmniSatSegmentation(**TOLD)
    with pytest.raises(ValueError, match='instances=True'):
        task.model.decode_fields(task.model.backbone(make_batch()))


@pytest.mark.skipif(not REAL.exists(), reason='no real data beside the checkout')
def test_real_parcels(tmp_path: Path) -> None:
    data = PASTISMultimodalDataModule(root=str(REAL), batch_size=1, modalities=('s2',), max_dates=3)
    task = OmniSatSegmentation('omnisat_tiny', instances=True)
    trainer = make_trainer(tmp_path, max_steps=1, limit_val_batches=1)
    trainer.fit(task, data)
    trainer.validate(task, data, verbose=False)
    assert trainer.callback_metrics['val_loss'].isfinite()


def test_the_datamodule_reads_instances_for_the_task(root: Path) -> None:
    assert 'instances' not in make_datamodule(root).make_dataset('train')[0]
    assert 'instances' in make_datamodule(root, instances=True).make_dataset('train')[0]
