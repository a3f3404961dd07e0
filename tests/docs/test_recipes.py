# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Recipes and hardware of docs/configs fit together, and the page about them prints what was counted."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torchgeo.main
import yaml

from torchgeo_omnisat import plugin

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / 'docs' / 'configs'
PAGE = ROOT / 'docs' / 'howto' / 'training.md'
#: Tiles per step of the optimizer, on which the learning rate depends.
TILES = 8
pytestmark = pytest.mark.skipif(not CONFIGS.is_dir(), reason='the site is not here')


@pytest.fixture(scope='module')
def cost():
    """The script that counts, as a module."""
    spec = importlib.util.spec_from_file_location('cost', ROOT / 'benchmarks' / 'cost.py')
    module = importlib.util.module_from_spec(spec)
    sys.modules['cost'] = module  # its named tuples are looked up there
    spec.loader.exec_module(module)
    return module


def test_every_hardware_is_counted_and_takes_equal_steps(cost):
    assert {hardware.name for hardware in cost.HARDWARE} == {path.stem for path in CONFIGS.glob('hardware/*.yaml')}
    for hardware in cost.HARDWARE:
        setting = cost.read(f'hardware/{hardware.name}')
        trainer, batch = setting['trainer'], setting['data']['init_args']['batch_size']
        assert batch * trainer['devices'] * trainer['accumulate_grad_batches'] == TILES
    for recipe in cost.RECIPES.values():
        config = cost.read(recipe.config)
        assert config['data']['init_args']['batch_size'] * config['trainer']['accumulate_grad_batches'] == TILES
        savers = {one['init_args']['filename']: one['init_args'] for one in config['trainer']['callbacks']}
        assert list(savers) == ['best', 'last', 'last-by-time']
        assert 'train_time_interval' in savers['last-by-time']
        assert not {'monitor', 'save_last'} & savers['last'].keys(), 'each epoch is saved'


def test_page_prints_the_counts(cost):
    counts = json.loads(cost.RESULT.read_text())['counts']
    assert list(counts) == list(cost.RECIPES)
    assert cost.table(counts, cost.UTILISATION) in PAGE.read_text()
    for name, found in counts.items():
        for hardware in cost.HARDWARE:
            assert cost.estimate(name, found, hardware, cost.UTILISATION)['GB'] < 0.8 * hardware.memory


def test_memory_counts_what_is_alive_at_once(cost):
    import torch

    with cost.PeakMemory() as memory:
        first = torch.zeros(1000)
        view = first[:10]
        del first
        second = torch.ones(500)
        del view
        third = torch.ones(700)
    assert memory.peak == 4 * 1500
    assert memory.now == second.nbytes + third.nbytes


@pytest.mark.slow
def test_small_tiles_are_counted(cost, monkeypatch):
    small = cost.RECIPES['flair']._replace(pixels={'aerial': 512, 's2': 10}, dates={'s2': 3})
    monkeypatch.setitem(cost.RECIPES, 'flair', small)
    one, two = (cost.count('flair', tiles) for tiles in (1, 2))
    assert two['step'] == pytest.approx(2 * one['step'], rel=0.01)
    assert 2 * one['forward'] < one['step'] < 4 * one['forward']
    assert one['GB'] < two['GB'] < 2 * one['GB']


@pytest.mark.usefixtures('validation_figures')
@pytest.mark.slow
@pytest.mark.parametrize('hardware', sorted(path.stem for path in CONFIGS.glob('hardware/*.yaml')))
def test_recipe_and_hardware_parse_together(hardware, capsys):
    plugin.load()
    for recipe in ('pastis-hd', 'pretraining-hd', 'flair'):
        paths = [str(CONFIGS / f'{recipe}.yaml'), str(CONFIGS / 'hardware' / f'{hardware}.yaml')]
        with pytest.raises(SystemExit, match=r'^0$'):
            torchgeo.main.main(['fit', '--config', paths[0], '--config', paths[1], '--print_config'])
        both = yaml.safe_load(capsys.readouterr().out)
        expected = yaml.safe_load(Path(paths[1]).read_text())
        if isinstance(strategy := expected['trainer'].pop('strategy', None), dict):
            assert both['trainer']['strategy']['class_path'] == strategy['class_path']
            assert both['trainer']['strategy']['init_args'].items() >= strategy['init_args'].items()
        assert both['trainer'].items() >= expected['trainer'].items()
        assert both['data']['init_args'].items() >= expected['data']['init_args'].items()
        assert both['trainer']['max_epochs'] == yaml.safe_load(Path(paths[0]).read_text())['trainer']['max_epochs']


@pytest.mark.slow
def test_job_continues_from_its_latest_checkpoint(made, linked):
    programs = {
        'srun': 'while [[ $1 == --* ]]; do shift; done\nexec "$@"',
        'torchgeo': f'exec {sys.executable} -m torchgeo_omnisat "$@"',
    }
    for name, text in programs.items():
        Path('bin').mkdir(exist_ok=True)
        Path('bin', name).write_text(f'#!/bin/bash\n{text}\n')
        Path('bin', name).chmod(0o755)
    Path('docs').mkdir()
    Path('docs/configs').symlink_to(CONFIGS)
    told = {
        'DATA': str(made('pastis')),
        'SLURM_ARRAY_TASK_ID': '2',
        'CUDA_VISIBLE_DEVICES': '',
        'PYTHONPATH': str(ROOT),
    }
    environment = os.environ | told | {'PATH': f'{Path("bin").absolute()}:{os.environ["PATH"]}'}
    words = ['--trainer.accelerator', 'cpu', '--trainer.devices', '1', '--trainer.strategy', 'auto']
    words += ['--trainer.precision', '32', '--data.num_workers', '0', '--model.backbone', 'omnisat_tiny']
    outputs = []
    for epochs in ('1', '2'):
        command = ['bash', str(CONFIGS / 'slurm.sh'), *words, '--trainer.max_epochs', epochs]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        outputs.append(done.stdout + done.stderr)
    last = re.compile(r'Restor\w+ .*last\.ckpt')
    assert not last.search(outputs[0])
    assert last.search(outputs[1])
    assert sorted(path.name for path in Path('runs/pastis-hd-fold2/checkpoints').iterdir()) == [
        'best.ckpt',
        'last.ckpt',
    ]
    assert list(Path('runs/pastis-hd-fold2').rglob('subsets.csv'))
