# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""A training that is killed and taken up again ends like one that was not, bit for bit."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves_with_path

from torchgeo_omnisat.tasks import OmniSatPretraining, OmniSatSegmentation

from .helpers import TOLD, make_datamodule, make_trainer
from .resuming import SAVED, fit

ROOT = Path(__file__).parents[2]


def run(*words: object) -> int:
    """Run the training as a program; the signal that ended it is negative."""
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}
    command = [sys.executable, '-m', 'tests.tasks.resuming', *map(str, words)]
    silent = {'stdout': subprocess.DEVNULL, 'stderr': subprocess.DEVNULL}
    with subprocess.Popen(command, env=environment, cwd=ROOT, start_new_session=True, **silent) as process:
        try:
            return process.wait(timeout=600)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # whatever it left behind


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
    data = root / 'fifteen'
    whole = fit(data, tmp_path / 'whole', task, workers, batches)
    folder = tmp_path / 'killed'
    assert run(data, folder, task, workers, batches, 1, SAVED + 1, 'new', tmp_path / 'never') == -signal.SIGKILL
    assert not list(tmp_path.glob('never*'))
    resumed = fit(data, folder, task, workers, batches, resume=True)
    assert resumed['step'] == whole['step'] == 12
    assert_same(resumed, whole)


@pytest.mark.slow
@pytest.mark.parametrize('batches', ['region', 'mixed'])
def test_two_processes_killed_and_resumed(root: Path, tmp_path: Path, batches: str) -> None:
    words = (root / 'fifteen', tmp_path / 'killed', 'OmniSatSegmentation', 0, batches, 2)
    assert run(words[0], tmp_path / 'whole', *words[2:], 0, 'new', tmp_path / 'whole.pt') == 0
    assert run(*words, SAVED + 1, 'new', tmp_path / 'never') == -signal.SIGKILL
    assert run(*words, 0, 'resume', tmp_path / 'resumed.pt') == 0
    for rank in (0, 1):
        whole, resumed = (torch.load(tmp_path / f'{name}.pt.{rank}') for name in ('whole', 'resumed'))
        assert_same(resumed, whole)


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason='FSDP needs a GPU')
def test_fsdp_trains(root: Path, tmp_path: Path) -> None:
    task = OmniSatPretraining(backbone='omnisat_tiny')
    trainer = make_trainer(tmp_path, accelerator='gpu', strategy='fsdp', enable_checkpointing=True)
    trainer.fit(task, make_datamodule(root))
    assert trainer.global_step == 2
    trainer.save_checkpoint(tmp_path / 'last.ckpt')
    OmniSatSegmentation(**TOLD | {'modalities': task.modalities}, weights=str(tmp_path / 'last.ckpt'))
