# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Two processes learn what one learns from their joint batch; memory grows with a micro-batch."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from .pretraining_step import CASES
from .resuming import fit

ROOT = Path(__file__).parents[2]


def run(*words: str) -> str:
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}
    environment.pop('LOCAL_RANK', None)
    done = subprocess.run(
        [sys.executable, *words], env=environment, check=False, timeout=900, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope='module')
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """What one process and what two have written."""
    folders = [tmp_path_factory.mktemp('one'), tmp_path_factory.mktemp('two')]
    for processes, folder in enumerate(folders, 1):
        run(str(Path(__file__).with_name('pretraining_step.py')), str(processes), str(folder))
    return folders


@pytest.mark.slow
@pytest.mark.parametrize('case', list(CASES))
def test_two_processes_equal_one(folders: list[Path], case: str) -> None:
    one, *two = (
        torch.load(folder / f'{case}-{rank}.pt', weights_only=True)
        for folder, rank in ((folders[0], 0), (folders[1], 0), (folders[1], 1))
    )
    assert one['metrics']['train_loss'] > 0
    assert any(gradient.any() for name, gradient in one['gradients'].items() if 'encoders.spot' in name)
    for process in two:
        assert set(process['metrics']) == set(one['metrics'])
        for name, value in one['metrics'].items():
            if '_patch_top' not in name:  # which candidates are drawn depends on the processes
                torch.testing.assert_close(process['metrics'][name], value, rtol=1e-5, atol=1e-5)
        for name, gradient in one['gradients'].items():
            difference: Any = (process['gradients'][name] - gradient).norm()
            assert difference <= 1e-5 * max(1.0, float(gradient.norm())), name


@pytest.mark.slow
def test_memory_grows_with_a_micro_batch() -> None:
    script = str(Path(__file__).with_name('pretraining_memory.py'))
    whole, parts = (float(run(script, '64', size)) for size in ('0', '4'))
    assert parts < whole / 3


@pytest.mark.slow
def test_resumed_in_the_middle_of_an_epoch(root: Path, tmp_path: Path) -> None:
    told = {'root': root / 'fifteen', 'folder': tmp_path, 'task': 'OmniSatPretraining'}
    whole, resumed = fit(**told), fit(**told, resume=True)
    assert whole['step'] == resumed['step'] == 12
    assert set(whole['metrics']) == set(resumed['metrics'])
    for name, value in whole['state'].items():
        assert torch.equal(value, resumed['state'][name]), name
    for name, value in whole['metrics'].items():
        assert torch.equal(value, resumed['metrics'][name]), name
