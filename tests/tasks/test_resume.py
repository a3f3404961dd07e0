# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""A training that is killed and taken up again ends like one that was not, bit for bit."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves_with_path

from torchgeo_omnisat.tasks import OmniSatPretraining, OmniSatSegmentation

from ..processes import run, succeed
from .helpers import TOLD, make_datamodule, make_trainer
from .resuming import SAVED, fit


def assert_same(one: Any, other: Any) -> None:
    ours, theirs = (dict(tree_leaves_with_path(tree)) for tree in (one, other))
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        same = torch.equal(value, theirs[key]) if isinstance(value, torch.Tensor) else value == theirs[key]
        assert same, key


@pytest.mark.slow
@pytest.mark.parametrize(
    ('task', 'workers', 'batches'),
    [('OmniSatSegmentation', 2, 'anywhere'), ('OmniSatPretraining', 0, 'region'), ('OmniSatSegmentation', 2, 'mixed')],
)
def test_killed_and_resumed(root: Path, tmp_path: Path, task: str, workers: int, batches: str) -> None:
    data = root.with_name(f'{root.name}-fifteen')
    whole = fit(data, tmp_path / 'whole', task, workers, batches)
    folder = tmp_path / 'killed'
    assert run(tmp_path, fit, data, folder, task, workers, batches, 1, SAVED + 1) == -signal.SIGKILL
    resumed = fit(data, folder, task, workers, batches, resume=True)
    assert resumed['step'] == whole['step'] == 12
    assert_same(resumed, whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('saver', 'saved'),
    [({'every_n_train_steps': 4}, 8), ({'save_on_train_epoch_end': False}, 12)],
    ids=['before a validation', 'after the last validation'],
)
def test_metrics_of_a_run_killed_before_the_end_of_an_epoch(
    root: Path, tmp_path: Path, saver: dict[str, Any], saved: int
) -> None:
    """Lightning goes on with the next epoch, or with the end of this one."""
    told = {'root': root.with_name(f'{root.name}-fifteen'), 'folder': tmp_path, 'saver': saver}
    whole, resumed = fit(**told), fit(**told, resume=True, saved=saved)
    assert_same(resumed['state'], whole['state'])
    metrics = dict(whole['metrics'])
    if saved == 12:
        del metrics['train_loss']  # of the last step, which is not repeated
    assert_same(resumed['metrics'], metrics)


@pytest.mark.slow
@pytest.mark.parametrize('batches', ['region', 'mixed'])
def test_two_processes_killed_and_resumed(root: Path, tmp_path: Path, batches: str) -> None:
    data = root.with_name(f'{root.name}-fifteen')
    whole, killed = ((data, tmp_path / n, 'OmniSatSegmentation', 0, batches, 2) for n in ('whole', 'killed'))
    succeed(tmp_path, fit, *whole, 0, False, tmp_path / 'whole.pt')
    assert run(tmp_path, fit, *killed, SAVED + 1, False, tmp_path / 'never') != 0
    assert 'SIGKILL' in (tmp_path / 'error.txt').read_text()
    assert not list(tmp_path.glob('never*'))
    succeed(tmp_path, fit, *killed, 0, True, tmp_path / 'resumed.pt')
    for rank in (0, 1):
        whole, resumed = (torch.load(tmp_path / f'{name}.pt.{rank}') for name in ('whole', 'resumed'))
        assert_same(resumed, whole)


@pytest.mark.slow
@pytest.mark.gpu
@pytest.mark.enable_socket  # Lightning looks for a free port
def test_fsdp_trains(root: Path, tmp_path: Path) -> None:
    task = OmniSatPretraining(backbone='omnisat_tiny')
    trainer = make_trainer(tmp_path, accelerator='gpu', strategy='fsdp', enable_checkpointing=True)
    trainer.fit(task, make_datamodule(root))
    assert trainer.global_step == 2
    trainer.save_checkpoint(tmp_path / 'last.ckpt')
    OmniSatSegmentation(**TOLD | {'modalities': task.modalities}, weights=str(tmp_path / 'last.ckpt'))
