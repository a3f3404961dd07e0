# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Tasks on a GPU, if there is one: results of the CPU, repetition, half precision, pinned memory and resumption.

On the CPU, the same tests compare the CPU with itself.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from torchgeo_omnisat.tasks import OmniSatPretraining, OmniSatSegmentation

from ..devices import DEVICES
from .helpers import MODALITIES, TOLD, make_batch, make_datamodule, make_trainer

TASKS: dict[str, Any] = {'segmentation': OmniSatSegmentation, 'pretraining': OmniSatPretraining}
#: Losses without random draws on the device.
LOSSES: dict[str, dict[str, Any]] = {
    'segmentation': {**TOLD, 'instances': True},
    'pretraining': {
        'backbone': 'omnisat_tiny',
        'modalities': MODALITIES,
        'patch_size': 40.0,
        'max_dates': None,
        'object_weight': 1.0,
        'object_clusters': 4,
        'granularity': ['pixel', 'image'],
        'granularity_prototypes': 8,
    },
}


@pytest.fixture(autouse=True)
def single_precision() -> Iterator[None]:
    """TF32 has errors of 1e-3."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def step(name: str, device: str) -> tuple[Tensor, Tensor]:
    """Loss and gradient of a training step, on the CPU."""
    torch.manual_seed(0)
    task = TASKS[name](**LOSSES[name], modality_dropout=0.0).to(device).train()
    batch = make_batch()
    batch['instances'] = batch['mask'].repeat_interleave(4, 1)[:, :16] + 1
    batch['valid_s2'][0, 1] = batch['valid_spot'][1] = False
    batch['image_s1a'][:, :, :, :4] = torch.nan
    batch = {key: value.to(device) for key, value in batch.items()}
    loss = task.learn(batch)[1] if name == 'segmentation' else task.compute(batch, 'train', 0)[0]
    loss.backward()
    gradients = [p.grad.flatten() for p in task.parameters() if p.grad is not None]
    return loss.detach().cpu(), torch.cat(gradients).cpu()


def fit(
    device: str,
    root: Path,
    folder: Path,
    name: str = 'segmentation',
    more: Any = None,
    resumed: Any = None,
    **kwargs: Any,
) -> tuple[Any, Trainer]:
    """Train for four steps."""
    seed_everything(0 if resumed is None else 1, verbose=False)
    data = make_datamodule(root.with_name(f'{root.name}-small'), modalities=('s2', 's1a', 'spot'), size=16)
    settings = {'max_steps': 4, 'limit_val_batches': 0, 'accelerator': device, **kwargs}
    trainer = make_trainer(folder, callbacks=more, **settings)
    task = TASKS[name]('omnisat_tiny')
    trainer.fit(task, data, ckpt_path=resumed)
    return task, trainer


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('name', TASKS)
def test_loss_and_gradient_are_those_of_the_cpu(name: str, device: str) -> None:
    (loss, gradient), (expected, reference) = step(name, device), step(name, 'cpu')
    assert torch.isfinite(reference).all()
    assert float(loss) == pytest.approx(float(expected), rel=1e-4)
    assert (gradient - reference).norm() <= 1e-3 * reference.norm()


@pytest.mark.slow
@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('name', TASKS)
def test_results_repeat_and_resume_bit_for_bit(name: str, device: str, root: Path, tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, filename='{step}', every_n_train_steps=2, save_top_k=-1)
    same: dict[str, Any] = {'enable_checkpointing': True, 'deterministic': True}
    try:
        first, _ = fit(device, root, tmp_path, name, [saver], **same)
        again, _ = fit(device, root, tmp_path, name, **same)
        resumed, trainer = fit(device, root, tmp_path, name, resumed=tmp_path / 'step=2.ckpt', **same)
    finally:
        torch.use_deterministic_algorithms(False)
    assert trainer.global_step == 4
    for other in (again, resumed):
        for key, value in first.state_dict().items():
            assert torch.equal(other.state_dict()[key], value), key


class Watched(Callback):
    """Keeps the losses, and where the batches are."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.places: set[tuple[str, bool]] = set()

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        for value in batch.values():
            if isinstance(value, Tensor):
                self.places.add((value.device.type, module.device.type == value.device.type))

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(float(outputs['loss']))


@pytest.mark.slow
@pytest.mark.parametrize('device', DEVICES)
def test_half_precision_from_pinned_memory(device: str, root: Path, tmp_path: Path) -> None:
    found = {}
    for precision in ('32-true', 'bf16-mixed'):
        watched = Watched()
        # Random draws on the device are the same in both.
        _, trainer = fit(device, root, tmp_path, more=[watched], precision=precision)
        assert watched.places == {(device, True)}
        batch = next(iter(trainer.train_dataloader))
        assert batch['image_s2'].is_pinned() == (device == 'cuda')
        found[precision] = watched.losses
    assert found['bf16-mixed'] == pytest.approx(found['32-true'], rel=0.05)
    assert found['bf16-mixed'] != found['32-true']


@pytest.mark.slow
@pytest.mark.parametrize('device', DEVICES)
def test_scores_and_predictions_are_those_of_the_cpu(device: str, root: Path, tmp_path: Path) -> None:
    task, trainer = fit(device, root, tmp_path)
    data = trainer.datamodule
    found = []
    for accelerator in (device, 'cpu'):
        trainer = make_trainer(tmp_path, accelerator=accelerator, limit_predict_batches=1)
        (scores,) = trainer.test(task, data, verbose=False)
        (predicted, *_) = trainer.predict(task, data.test_dataloader()) or []
        found.append((scores, predicted['probabilities'].float().cpu()))
    (scores, predicted), (expected, reference) = found
    assert scores.keys() == expected.keys()
    assert scores['test_loss'] == pytest.approx(expected['test_loss'], rel=1e-3)
    assert scores['test_OverallAccuracy'] == pytest.approx(expected['test_OverallAccuracy'], abs=0.01)
    torch.testing.assert_close(predicted, reference, rtol=0, atol=1e-3)
