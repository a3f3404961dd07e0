# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Two ranks learn the same with DDP, a static graph and sharded parameters; a rank that is stuck is an error."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from torchgeo_omnisat.tasks import OmniSatPretraining, OmniSatSegmentation

from ..processes import run, succeed
from . import sharded_step

TASKS = {'segmentation': OmniSatSegmentation, 'pretraining': OmniSatPretraining}


@pytest.mark.slow
@pytest.mark.parametrize('task', TASKS)
def test_fsdp_equals_ddp(tmp_path: Path, task: str) -> None:
    results: dict[str, list[Any]] = {}
    for kind in ('ddp', 'fsdp1', 'fsdp2'):
        succeed(tmp_path, sharded_step.main, kind, task, tmp_path)
        results[kind] = [torch.load(tmp_path / f'{kind}-{task}-{rank}.pt') for rank in (0, 1)]
    whole = results['ddp'][0]['held']
    weights = torch.load(tmp_path / f'ddp-{task}.ckpt')['state_dict']
    for kind in ('fsdp1', 'fsdp2'):
        # Each rank holds about half of the parameters; their losses and weights after two steps are those of DDP.
        assert sum(rank['held'] for rank in results[kind]) == pytest.approx(whole, rel=0.02)
        for rank, expected in zip(results[kind], results['ddp'], strict=True):
            assert 0.4 * whole < rank['held'] < 0.6 * whole
            losses = {name: value for name, value in expected['metrics'].items() if 'loss' in name}
            assert {name: rank['metrics'][name] for name in losses} == pytest.approx(losses, rel=1e-3, abs=1e-4)
        loaded = TASKS[task].load_from_checkpoint(tmp_path / f'{kind}-{task}.ckpt').state_dict()
        assert set(loaded) == set(weights)
        # Two steps of 0.01 move a weight by up to 0.02; Adam makes rounding large where gradients are near zero.
        differences = torch.cat([(loaded[name] - tensor).abs().flatten() for name, tensor in weights.items()])
        assert differences.mean() < 5e-4


@pytest.mark.slow
@pytest.mark.parametrize('task', TASKS)
def test_static_graph_equals_ddp(tmp_path: Path, task: str) -> None:
    """Although each batch of one tile has other modalities."""
    found = []
    for kind in ('ddp', 'static'):
        succeed(tmp_path, sharded_step.main, kind, task, tmp_path, 1, 3)
        found.append(torch.load(tmp_path / f'{kind}-{task}.ckpt')['state_dict'])
        assert torch.load(tmp_path / f'{kind}-{task}-0.pt')['static'] == (kind == 'static')
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_stuck_rank_is_an_error(tmp_path: Path) -> None:
    """The other rank ends after the timeout of the strategy, and training with it."""
    assert run(tmp_path, sharded_step.main, 'stuck', 'segmentation', tmp_path, timeout=120) == 1
    assert re.search('time(d )?out', (tmp_path / 'error.txt').read_text(), re.IGNORECASE)
