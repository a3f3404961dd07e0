# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Two ranks whose parameters are sharded learn what two with whole models do."""

from pathlib import Path
from typing import Any

import pytest
import torch

from torchgeo_omnisat.tasks import OmniSatPretraining, OmniSatSegmentation

from ..processes import succeed
from . import sharded_step

TASKS = {'segmentation': OmniSatSegmentation, 'pretraining': OmniSatPretraining}


@pytest.mark.slow
@pytest.mark.parametrize('task', TASKS)
def test_fsdp_equals_ddp(tmp_path: Path, task: str) -> None:
    results: dict[str, list[Any]] = {}
    for kind in sharded_step.STRATEGIES:
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
