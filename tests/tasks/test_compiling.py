# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Tasks with ``compile``."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchgeo.main
import yaml
from lightning.pytorch.strategies import FSDPStrategy

from torchgeo_omnisat import plugin
from torchgeo_omnisat.models import compiling
from torchgeo_omnisat.tasks import OmniSatSegmentation, base

from ..devices import DEVICES
from ..processes import call_unchecked, succeed
from . import compiled_step
from .helpers import TOLD, make_loader, make_sample, make_trainer


def old_checkpoint(task: OmniSatSegmentation) -> dict[str, Any]:
    """A checkpoint from before decoders had a width."""
    return {'hyper_parameters': {k: v for k, v in task.hparams.items() if k != 'decoder_width'}, 'state_dict': {}}


def test_decoder_of_an_older_checkpoint_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.Module, 'compile', lambda module, **kwargs: None)
    monkeypatch.setattr(compiling, '_Marked', lambda function, varying: 'compiled')
    task = OmniSatSegmentation(**TOLD, compile=True)
    task._trainer = SimpleNamespace(strategy=SimpleNamespace(), state=SimpleNamespace(fn=None))  # type: ignore[assignment]
    compiling.compile_regions(task.model)
    task.on_load_checkpoint(old_checkpoint(task))
    assert task.hparams['decoder_width'] == 32
    assert {module._compiled_call_impl for _, module, _ in compiling.regions(task.model)} == {'compiled'}


def test_sharded_model_is_not_rebuilt_for_an_older_checkpoint() -> None:
    task = OmniSatSegmentation(**TOLD)
    task._trainer = SimpleNamespace(strategy=FSDPStrategy(), state=SimpleNamespace(fn=None))  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"FSDPStrategy .*'decoder_width': 48.* expected .*'decoder_width': 32"):
        task.on_load_checkpoint(old_checkpoint(task))
    same = OmniSatSegmentation(**TOLD, decoder_width=32)
    same._trainer = task._trainer
    same.on_load_checkpoint(old_checkpoint(same))


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


def test_mode_reaches_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With CUDA graphs, each batch begins with a mark."""
    calls: list[Any] = []
    monkeypatch.setattr(torch.nn.Module, 'compile', lambda module, **kwargs: calls.append(kwargs))
    monkeypatch.setattr(torch.compiler, 'cudagraph_mark_step_begin', lambda: calls.append('batch'))
    monkeypatch.setattr(base, 'require_compiler', lambda device: None)
    monkeypatch.setattr(compiling, '_Marked', lambda function, varying: None)
    for mode in (True, 'max-autotune-no-cudagraphs', 'reduce-overhead'):
        calls.clear()
        task = OmniSatSegmentation(**TOLD, compile=mode)
        loader = make_loader([make_sample(index) for index in range(4)])
        make_trainer(tmp_path).fit(task, loader, loader)
        modes = [call['mode'] for call in calls if call != 'batch']
        assert modes == [None if mode is True else mode] * len(list(compiling.regions(task.model)))
        assert calls.count('batch') == (4 if mode == 'reduce-overhead' else 0)
    with pytest.raises(ValueError, match='accumulate_grad_batches=1'):
        make_trainer(tmp_path, accumulate_grad_batches=2).fit(OmniSatSegmentation(**TOLD, compile=mode), loader)
    with pytest.raises(ValueError, match="compile is 'fast'"):
        OmniSatSegmentation(**TOLD, compile='fast')  # type: ignore[arg-type]


@pytest.mark.usefixtures('validation_figures')
@pytest.mark.parametrize(('word', 'value'), [('true', True), ('reduce-overhead', 'reduce-overhead')])
def test_command_line(word: str, value: Any, capsys: pytest.CaptureFixture[str]) -> None:
    plugin.load()
    with pytest.raises(SystemExit, match=r'^0$'):
        torchgeo.main.main(['fit', '--model', 'omnisat', '--model.compile', word, '--print_config'])
    assert yaml.safe_load(capsys.readouterr().out)['model']['init_args']['compile'] == value
