# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""TorchGeo knows our names wherever it is started, and keeps working without us."""

import re
import shlex
import sys
import warnings
from collections.abc import Iterator
from contextlib import closing
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torchgeo.main
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch.cli import LightningCLI
from torchgeo.models import api, list_models

from torchgeo_omnisat import __main__, _autoload, plugin, registry
from torchgeo_omnisat.datamodules import PASTISMultimodalDataModule
from torchgeo_omnisat.datasets import SyntheticLandscapes
from torchgeo_omnisat.datasets.synthetic.writing import Recipe
from torchgeo_omnisat.tasks.console.progress import EpochSummary
from torchgeo_omnisat.utils.cli import errors

from .interpreters import Interpreters

#: Ten small landscapes; Lightning runs one batch of each kind and writes nothing.
TINY = ['--model.backbone', 'omnisat_tiny', '--data.num_tiles', '10', '--data.dates', '[3,4]', '--data.batch_size', '2']
ONCE = ['--trainer.fast_dev_run', 'true', '--trainer.accelerator', 'cpu']


@pytest.fixture(scope='module')
def interpreters() -> Iterator[Interpreters]:
    """Runs programs in processes that have imported nothing of TorchGeo or ours."""
    with closing(Interpreters()) as interpreters:
        yield interpreters


@pytest.fixture
def command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """TorchGeo's command line, called from Python in an empty folder."""
    monkeypatch.setattr(sys, 'argv', ['torchgeo'])
    monkeypatch.chdir(tmp_path)
    return lambda *words: torchgeo.main.main(list(words))


def test_without_data_it_trains_on_synthetic_landscapes_and_says_so(
    command_line: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    landscapes, said = Path('data/synthetic/metadata.geojson'), []
    monkeypatch.setattr(plugin, '_announce', lambda message: said.append((message, landscapes.exists())))
    command_line('fit', '--model', 'omnisat', *TINY, *ONCE)
    ((data, begun),) = said
    assert 'synthetic' in data
    assert '--data' in data
    assert re.search(r'about \d+ MB', data)
    assert not begun
    assert landscapes.exists()


def test_training_without_data_ends_by_default(
    command_line: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It stops early, keeps the best checkpoint and says so; the run can be tested with the printed command."""
    said: list[str] = []
    monkeypatch.setattr(plugin, '_announce', said.append)
    monkeypatch.setattr(plugin, 'EPOCHS', 2)
    quick = ['--trainer.limit_train_batches', '1', '--trainer.limit_val_batches', '1', '--trainer.accelerator', 'cpu']
    with caplog.at_level('INFO'):
        command_line('fit', '--model', 'omnisat', *TINY, *quick)
    assert re.search(r'Model: [\d.]+ M parameters \(encoders', caplog.text)
    folder = Path('lightning_logs/version_0')
    trainer = yaml.safe_load((folder / 'config.yaml').read_text())['trainer']
    assert trainer['max_epochs'] == 2
    stopping, checkpoint = (callback['init_args'] for callback in trainer['callbacks'])
    assert stopping['monitor'] == checkpoint['monitor'] == 'val_AverageJaccardIndex'
    assert stopping['mode'] == checkpoint['mode'] == 'max'
    assert [path.name for path in folder.rglob('*.ckpt')] == ['best.ckpt']
    assert any('at most 2 epochs' in line and '--trainer.max_epochs' in line for line in said)
    assert any(line.startswith(f'Output: {folder}') for line in said)
    assert any(line.startswith('Checkpoint of the best epoch: ') for line in said)
    (printed,) = (line.partition('Test it with: ')[2] for line in said if 'Test it with' in line)
    command_line(*shlex.split(printed)[1:], '--trainer.limit_test_batches', '1')
    assert list(Path('lightning_logs').rglob('subsets.csv'))


@pytest.mark.parametrize(
    ('monitor', 'score', 'paths', 'which'),
    [
        ('val_loss', None, ('a.ckpt', 'b.ckpt'), 'best epoch'),
        ('val_loss', 'val_loss', ('a.ckpt', ''), 'best epoch'),
        ('val_loss', 'val_AverageJaccardIndex', ('a.ckpt', ''), 'epoch with the lowest val_loss'),
        (None, 'val_loss', ('a.ckpt', ''), 'last epoch'),
        (None, None, ('', 'a.ckpt'), 'last epoch'),
    ],
)
def test_checkpoint_of_which_epoch(
    monkeypatch: pytest.MonkeyPatch, monitor: str | None, score: str | None, paths: tuple[str, str], which: str
) -> None:
    said: list[str] = []
    monkeypatch.setattr(plugin, '_announce', said.append)
    saved = SimpleNamespace(monitor=monitor, mode='min', best_model_path=paths[0], last_model_path=paths[1])
    summaries = [] if score is None else [EpochSummary(score, 'score', 'min')]
    trainer = SimpleNamespace(
        checkpoint_callback=saved, callbacks=summaries, interrupted=False, logger=None, default_root_dir='nowhere'
    )
    plugin.OmniSatCLI.after_fit(SimpleNamespace(trainer=trainer, _ours=True))  # type: ignore[arg-type]
    assert said == [f'Checkpoint of the {which}: a.ckpt']


@pytest.mark.parametrize('given', [['--trainer.max_epochs', '7'], ['--trainer.max_steps', '9']])
def test_length_of_the_user_wins(command_line: Any, monkeypatch: pytest.MonkeyPatch, given: list[str]) -> None:
    seen: dict[str, Any] = {}

    def look(cli: Any) -> None:
        seen.update(cli.config.fit.trainer.as_dict())
        raise ValueError('seen')

    monkeypatch.setattr(plugin.OmniSatCLI, 'instantiate_classes', look)
    with pytest.raises(ValueError, match='seen'):
        command_line('fit', '--model', 'omnisat', *given)
    name = given[0].rpartition('.')[2]
    assert seen[name] == int(given[1])
    assert seen['callbacks'] is None
    assert (seen['max_epochs'], seen['max_steps']) == ((7, -1) if name == 'max_epochs' else (None, 9))


def test_size_of_the_landscapes(command_line: Any) -> None:
    recipe = {'num_tiles': 10, 'seed': 0, 'size': 32, 'dates': (8, 14)}
    SyntheticLandscapes('land', **recipe)
    files = sum(path.stat().st_size for path in Path('land').rglob('*') if path.is_file())
    assert Recipe(**recipe).bytes == pytest.approx(files, rel=0.15)


@pytest.mark.parametrize('command', ['fit', 'test'])
@pytest.mark.parametrize('model', ['SemanticSegmentation', 'torchgeo.tasks.SemanticSegmentation'])
def test_other_models_still_need_data(command_line: Any, capfd: Any, command: str, model: str) -> None:
    with pytest.raises(SystemExit):
        command_line(command, '--model', model)
    captured = capfd.readouterr()
    assert re.search(rf'required: {command}\.data|{command}\.data\W is required', captured.err)
    assert 'ynthetic' not in captured.err + captured.out


def test_data_that_is_named_is_used(command_line: Any, capfd: Any) -> None:
    with pytest.raises(SystemExit) as exit_:
        command_line('fit', '--model', 'omnisat', '--data', 'EuroSATDataModule', '--print_config')
    assert exit_.value.code == 0
    captured = capfd.readouterr()
    assert 'EuroSATDataModule' in captured.out
    assert 'ynthetic' not in captured.err + captured.out


def test_data_that_are_named_keep_their_own_defaults(command_line: Any, capfd: Any) -> None:
    """Not those of the landscapes, which have arguments of the same names."""
    with pytest.raises(SystemExit):
        command_line('fit', '--model', 'omnisat', '--data', 'PASTISMultimodalDataModule', '--print_config')
    data = yaml.safe_load(capfd.readouterr().out)['data']['init_args']
    parser = ArgumentParser()
    parser.add_class_arguments(PASTISMultimodalDataModule)
    assert data == parser.get_defaults().as_dict()


@pytest.mark.parametrize(
    ('words', 'collected'),
    [(['fit', '--model', 'omnisat', '--print_config'], 1), (['--config', 'nested.yaml', 'fit', '--print_config'], 4)],
)
def test_arguments_of_other_subcommands_are_not_collected(
    command_line: Any, capfd: Any, monkeypatch: pytest.MonkeyPatch, words: list[str], collected: int
) -> None:
    """They take seconds; options before the subcommand may configure any of them."""
    Path('nested.yaml').write_text('fit: {model: omnisat, trainer: {max_steps: 7}}\ntest: {model: omnisat}')
    count: list[object] = []
    collect = LightningCLI.add_core_arguments_to_parser
    monkeypatch.setattr(LightningCLI, 'add_core_arguments_to_parser', lambda *args: count.append(0) or collect(*args))
    with pytest.raises(SystemExit) as exit_:
        command_line(*words)
    assert exit_.value.code == 0
    assert len(count) == collected
    config = yaml.safe_load(capfd.readouterr().out)
    config = config.get('fit', config)
    assert config['model']['class_path'].startswith('torchgeo_omnisat.tasks.')
    assert config['trainer']['max_steps'] == (-1 if collected == 1 else 7)


@pytest.mark.parametrize(
    ('args', 'expected'),
    [
        (['fit', '--model', 'omnisat'], 'omnisat'),
        (['fit', '--trainer.max_epochs', '3', '--model=omnisat', '--data.root', 'x'], 'omnisat'),
        (['test', '--model.class_path', 'a.b.C', '--model.lr', '1'], 'a.b.C'),
        (['fit', '-c', 'flat.yaml'], 'omnisat'),
        (['--config', 'nested.yaml', 'fit'], 'other'),
        (['fit', '-c', 'nested.yaml', '--config=flat.yaml'], 'omnisat'),
        (['fit', '-c', 'flat.yaml', '--model', 'another'], 'another'),
        ({'subcommand': 'fit', 'fit': {'model': {'class_path': 'omnisat'}}}, 'omnisat'),
        (['fit', '--model.lr', '1'], None),
        (['fit', '--model'], None),
        (['fit', '-c', '{model: omnisat}'], None),
        ([], None),
    ],
)
def test_requested_model(args: Any, expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path('flat.yaml').write_text('model: {class_path: omnisat, init_args: {lr: 1}}')
    Path('nested.yaml').write_text('fit: {model: other}')
    assert plugin.requested('model', args) == expected


def test_a_configuration_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / 'broken.yaml'
    with pytest.raises(FileNotFoundError, match=r'broken\.yaml'):
        plugin.requested('model', ['fit', '-c', str(path)])
    for text in ('model: [', 'model:\n\tlr: 1', '', 'omnisat'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r'broken\.yaml'):
            plugin.requested('model', ['fit', '-c', str(path)])
    path.write_bytes(b'\xff\xfe')
    with pytest.raises(ValueError, match='UTF-8'):
        plugin.requested('model', ['fit', '-c', str(path)])


@pytest.mark.parametrize(
    ('model', 'ours'),
    [
        ('omnisat', True),
        ('OmniSatSegmentation', True),
        ('torchgeo_omnisat.tasks.OmniSatSegmentation', True),
        ('SemanticSegmentation', False),
        ('torchgeo_omnisat_of_others.Task', False),
        (None, False),
    ],
)
def test_only_our_tasks_are_ours(model: str | None, ours: bool) -> None:
    assert plugin._is_ours(model) == ours


def test_registry_is_private_and_guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(registry.BUILDERS) <= set(list_models())
    taken = object()
    monkeypatch.setattr(api, '_model', {registry.BUILDERS[0]: taken})
    registry.register_models()
    assert api._model[registry.BUILDERS[0]] is taken  # type: ignore[comparison-overlap]
    monkeypatch.delattr(api, '_model')
    with pytest.warns(UserWarning, match='get_model'):
        registry.register_models()


def test_load_leaves_a_command_line_of_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    other = type('Other', (LightningCLI,), {})
    monkeypatch.setattr(torchgeo.main, 'LightningCLI', other)
    plugin.load()
    assert torchgeo.main.LightningCLI is other


def test_hook_is_installed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    (entry,) = entry_points(group='torch.backends', name='torchgeo_omnisat')
    assert entry.load() is _autoload.install
    monkeypatch.setattr(sys, 'meta_path', list(sys.meta_path))
    for _ in range(3):
        _autoload.install()
    assert sum(type(finder).__name__ == '_Watcher' for finder in sys.meta_path) == 1


@pytest.mark.slow
def test_plain_session_and_torchgeo_if_the_plugin_does_not_work(interpreters: Interpreters, tmp_path: Path) -> None:
    """Models are known without an import of ours; nothing of ours is imported until then.

    Where our part fails, the warning says why, once, and the command line is TorchGeo's own.
    """
    code = """
import sys, torch
assert 'torchgeo' not in sys.modules
from torchgeo.models import get_model, list_models
assert 'omnisat_tiny' in list_models()
assert not [name for name in sys.modules if name.startswith('torchgeo_omnisat.models')]
modalities = [{'name': 's2', 'bands': ['B02', 'B03'], 'gsd': 10.0, 'temporal': True}]
print(type(get_model('omnisat_tiny', modalities, patch_size=40.0)).__name__)
import torchgeo.models.api
print(torchgeo.models.api.__spec__.loader.get_source('torchgeo.models.api')[:1])
print('so far', file=sys.stderr)
assert 'torchgeo_omnisat.tasks' not in sys.modules
sys.modules['torchgeo_omnisat.tasks'] = None  # its import fails from now on
from torchgeo.main import LightningCLI, main
print(LightningCLI.__module__)
main(['fit', '--model', 'SemanticSegmentation', '--data', 'EuroSATDataModule', '--print_config'])
"""
    result = interpreters.run(tmp_path, code=code)
    assert result.returncode == 0, result.stderr
    ours, quoted, theirs = result.stdout.split()[:3]
    assert (ours, quoted, theirs) == ('OmniSat', '#', 'lightning.pytorch.cli')
    assert 'torchgeo_omnisat' not in result.stderr.partition('so far')[0]
    assert 'torchgeo.tasks.SemanticSegmentation' in result.stdout
    assert result.stderr.count('torchgeo_omnisat could not be loaded') == 1
    assert 'torchgeo_omnisat.tasks' in result.stderr


@pytest.mark.slow
def test_two_processes_from_the_console_script(interpreters: Interpreters, tmp_path: Path) -> None:
    """Both are told the model by its short name; one says what the data are."""
    program = str(Path(sys.executable).with_name('torchgeo'))
    several = ['--trainer.devices', '2', '--trainer.strategy', 'ddp']
    result = interpreters.run(tmp_path, [program, 'fit', '--model', 'omnisat', *TINY, *ONCE, *several])
    assert result.returncode == 0, result.stderr
    assert 'Starting with 2 processes' in result.stderr
    assert result.stderr.count('synthetic landscapes') == 1


@pytest.mark.parametrize('wanted', ['', '1'])
def test_error_of_the_console_script(interpreters: Interpreters, tmp_path: Path, wanted: str) -> None:
    """One line, or a traceback where it is wanted, though nothing of ours is imported first."""
    program = str(Path(sys.executable).with_name('torchgeo'))
    words = [program, 'fit', '--model', 'omnisat', '--data', 'FLAIRDataModule', '--data.root', str(tmp_path)]
    result = interpreters.run(tmp_path, words, environment={errors.VARIABLE: wanted})
    assert result.returncode == 1
    assert ('Traceback' in result.stderr) == bool(wanted)
    last = result.stderr.strip().splitlines()[-1]
    assert 'DatasetNotFoundError: Dataset not found' in last
    assert last.startswith('torchgeo fit: ') != bool(wanted)


def test_as_a_module_without_entry_points(interpreters: Interpreters, tmp_path: Path) -> None:
    """As ``torchgeo`` itself is started, :func:`test_two_processes_from_the_console_script` tells."""
    code = """
import runpy, sys
sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__name__ != '_Watcher']  # no entry point ran
sys.argv = ['-m', 'fit', '--model', 'omnisat', '--print_config']
runpy.run_module('torchgeo_omnisat', run_name='__main__', alter_sys=True)
"""
    result = interpreters.run(tmp_path, code=code)
    assert result.returncode == 0, result.stderr
    assert 'class_path: torchgeo_omnisat.tasks.' in result.stdout
    assert 'class_path: torchgeo_omnisat.datamodules.' in result.stdout


@pytest.mark.parametrize('words', [[], ['--help']])
def test_help(words: list[str], capsys: Any) -> None:
    with warnings.catch_warnings(action='error'):
        assert __main__.main(words) == 0
    out = capsys.readouterr().out
    for name in ('fit', 'test', *__main__.COMMANDS):
        assert f'  {name} ' in out
