# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Two processes learn what one learns from their joint batch; memory grows with a micro-batch."""

from pathlib import Path
from typing import Any

import pytest
import torch

from .. import processes
from . import pretraining_memory, pretraining_step
from .resuming import fit


@pytest.fixture(scope='module')
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """What one process and what two have written."""
    folders = [tmp_path_factory.mktemp('one'), tmp_path_factory.mktemp('two')]
    for count, folder in enumerate(folders, 1):
        processes.succeed(folder, pretraining_step.main, count, folder)
    return folders


@pytest.mark.slow
@pytest.mark.parametrize('case', list(pretraining_step.CASES))
def test_two_processes_equal_one(folders: list[Path], case: str) -> None:
    one, *two = (
        torch.load(folder / f'{case}-{rank}.pt', weights_only=True)
        for folder, rank in ((folders[0], 0), (folders[1], 0), (folders[1], 1))
    )
    assert one['metrics']['train_loss'] > 0
    assert any(gradient.any() for name, gradient in one['gradients'].items() if 'encoders.spot' in name)
    # Sizes, bounds, tiles, patches twice, reconstruction; nothing after, but what DDP sends.
    expected = ['all_gather'] * 5 + ['all_reduce', 'backward']
    for process in two:
        assert process['collectives'] == expected
        assert set(process['metrics']) == set(one['metrics'])
        for name, value in one['metrics'].items():
            if '_patch_top' not in name:  # which candidates are drawn depends on the processes
                torch.testing.assert_close(process['metrics'][name], value, rtol=1e-5, atol=1e-5)
        for name, gradient in one['gradients'].items():
            difference: Any = (process['gradients'][name] - gradient).norm()
            assert difference <= 1e-5 * max(1.0, float(gradient.norm())), name


@pytest.mark.slow
def test_memory_grows_with_a_micro_batch(tmp_path: Path) -> None:
    for size in (None, 4):
        processes.succeed(tmp_path, pretraining_memory.main, 64, size, tmp_path / f'{size}.txt')
    whole, parts = (float((tmp_path / f'{size}.txt').read_text()) for size in (None, 4))
    # Under torch 2.5 memory that is kept for later counts too: 43 and 51 % of the whole.
    assert parts < whole * (2 / 3 if torch.__version__.startswith('2.5.') else 1 / 3)


@pytest.mark.slow
def test_resumed_in_the_middle_of_an_epoch(root: Path, tmp_path: Path) -> None:
    told = {'root': root.with_name(f'{root.name}-fifteen'), 'folder': tmp_path, 'task': 'OmniSatPretraining'}
    whole, resumed = fit(**told), fit(**told, resume=True)
    assert whole['step'] == resumed['step'] == 12
    assert set(whole['metrics']) == set(resumed['metrics'])
    for name, value in whole['state'].items():
        assert torch.equal(value, resumed['state'][name]), name
    for name, value in whole['metrics'].items():
        assert torch.equal(value, resumed['metrics'][name]), name
