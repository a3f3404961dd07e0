# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Tasks with ``compile``."""

from pathlib import Path

import pytest
import torch
import torchgeo.main
import yaml

from torchgeo_omnisat import plugin
from torchgeo_omnisat.tasks import OmniSatSegmentation

from ..devices import DEVICES
from ..processes import call_unchecked, succeed
from . import compiled_step
from .helpers import TOLD, make_loader, make_sample, make_trainer


@pytest.mark.slow
@pytest.mark.skipif(torch.__version__.startswith('2.5.'), reason='torch 2.5 breaks the graph')
@pytest.mark.parametrize('device', DEVICES)
def test_compiled_training_is_the_same(tmp_path: Path, device: str) -> None:
    """In a separate process, because the shape checks of the tests cannot be traced."""
    succeed(tmp_path, call_unchecked, compiled_step.__name__, 'main', str(tmp_path), device, timeout=400)


def test_missing_compiler_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('CXX', 'no-such-compiler')
    task = OmniSatSegmentation(**TOLD, compile=True)
    assert 'compile' not in task.hparams
    with pytest.raises(RuntimeError, match='no-such-compiler'):
        make_trainer(tmp_path).fit(task, make_loader([make_sample(0)]))


@pytest.mark.usefixtures('validation_figures')
def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    plugin.load()
    with pytest.raises(SystemExit, match=r'^0$'):
        torchgeo.main.main(['fit', '--model', 'omnisat', '--model.compile', 'true', '--print_config'])
    assert yaml.safe_load(capsys.readouterr().out)['model']['init_args']['compile'] is True
