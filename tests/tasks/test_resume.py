# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""A training that is killed and taken up again ends like one that was not, bit for bit."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves_with_path

from .resuming import SAVED, fit

ROOT = Path(__file__).parents[2]


def run(*words: object) -> int:
    """Run the training as a program; the signal that ended it is negative."""
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}
    command = [sys.executable, '-m', 'tests.tasks.resuming', *map(str, words)]
    return subprocess.run(command, env=environment, timeout=300, check=False, capture_output=True).returncode


def assert_same(one: Any, other: Any) -> None:
    ours, theirs = (dict(tree_leaves_with_path(tree)) for tree in (one, other))
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        same = torch.equal(value, theirs[key]) if isinstance(value, torch.Tensor) else value == theirs[key]
        assert same, key


@pytest.mark.slow
@pytest.mark.parametrize(('workers', 'batches'), [(0, 'region'), (2, 'anywhere')])
def test_killed_and_resumed(root: Path, tmp_path: Path, workers: int, batches: str) -> None:
    whole = fit(root / 'fifteen', tmp_path / 'whole', workers=workers, batches=batches)
    folder = tmp_path / 'killed'
    words = (root / 'fifteen', folder, 'OmniSatSegmentation', workers, batches, 1)
    assert run(*words, SAVED + 1, 'new', tmp_path / 'never') == -signal.SIGKILL
    assert not list(tmp_path.glob('never*'))
    resumed = fit(root / 'fifteen', folder, workers=workers, batches=batches, resume=True)
    assert resumed['step'] == whole['step'] == 12
    assert_same(resumed, whole)
