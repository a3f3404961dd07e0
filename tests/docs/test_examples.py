# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Configurations on the pages, and commands that want many devices, are accepted without being run."""

import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Trainer

from torchgeo_omnisat import plugin
from torchgeo_omnisat.__main__ import COMMANDS, main
from torchgeo_omnisat.tasks import OmniSatSegmentation

ROOT = Path(__file__).parents[2]
PAGES = [page for page in sorted((ROOT / 'docs').rglob('*.md')) if not {'_build', 'tutorials'} & set(page.parts)]
pytestmark = pytest.mark.skipif(not PAGES, reason='the site is not here')


def blocks(language):
    """The blocks of a language, by page."""
    fence = re.compile(rf'^```{language}\n(.*?)^```$', re.M | re.S)
    return [(page, block) for page in PAGES for block in fence.findall(page.read_text())]


UNTRIED = ('--trainer.devices', 'WandbLogger')  # what these need is not here
LINES = sorted({line for _, block in blocks('sh') for line in block.splitlines() if any(o in line for o in UNTRIED)})
CONFIGS = {page.name: block for page, block in blocks('yaml') if re.search('^model:', block, re.M)}


class Accepted(Exception):
    """The words were understood; now something would be done."""


@pytest.fixture
def accept(tmp_path, monkeypatch):
    """Run the words of a command line up to where something would be done."""

    def stop(*_):
        raise Accepted

    def run(words):
        monkeypatch.setattr('sys.argv', ['torchgeo', *words])
        with pytest.raises((Accepted, SystemExit)) as caught:
            main(words)
        assert caught.type is Accepted or caught.value.code in (0, None), words

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plugin.OmniSatCLI, 'before_instantiate_classes', stop)
    Path('FILE.yaml').write_text(CONFIGS['rasters.md'])
    return run


@pytest.mark.parametrize('line', LINES)
def test_command_is_accepted(line, accept):
    accept(shlex.split(line)[1:])


@pytest.mark.parametrize('page', CONFIGS)
def test_configuration_is_accepted(page, accept):
    Path('other.yaml').write_text(CONFIGS[page])
    accept(['fit', '--config', 'other.yaml'])


def test_a_word_too_many_is_not_accepted(accept):
    with pytest.raises(AssertionError):
        accept(['fit', '--model', 'omnisat', '--model.no_such_argument', '1'])


def test_configurations_are_yaml():
    assert {'rasters.md', 'configuration.md'} <= set(CONFIGS)
    assert all({'model', 'data'} <= set(yaml.safe_load(block)) for block in CONFIGS.values())


def python_blocks(page):
    return re.findall(r'^```python\n(.*?)^```$', (ROOT / page).read_text(), re.M | re.S)


@pytest.mark.parametrize('index', range(4))  # a modality, a dataset, an encoder, a task
def test_example_of_contributing_runs_and_is_short(index):
    block = python_blocks('CONTRIBUTING.md')[index]
    assert block.count('\n') <= 40
    exec(block, {})


def test_dataset_of_contributing_trains(tmp_path):
    names = {'__name__': 'ponds'}
    exec(python_blocks('CONTRIBUTING.md')[1], names)
    datamodule = names['PondsDataModule'](str(tmp_path), batch_size=2)
    trainer = Trainer(fast_dev_run=True, accelerator='cpu', enable_progress_bar=False, enable_model_summary=False)
    task = OmniSatSegmentation('omnisat_tiny')
    trainer.fit(task, datamodule=datamodule)
    assert trainer.global_step == 1
    trainer.test(task, datamodule=datamodule, verbose=False)
    assert set(datamodule.mean) == {'s2', 'aerial'}
    assert (tmp_path / 'STATISTICS.json').exists()
    assert datamodule.plot(datamodule.train_dataset[0]).axes


def test_task_of_contributing_trains_and_loads(tmp_path):
    names = {'__name__': 'ponds'}
    for block in python_blocks('CONTRIBUTING.md')[1::2]:
        exec(block, names)
    trainer = Trainer(
        max_epochs=1,
        accelerator='cpu',
        logger=False,
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    datamodule = names['PondsDataModule'](str(tmp_path), batch_size=2)
    task = names['CoverFraction'](cover=0, backbone='omnisat_tiny')
    trainer.fit(task, datamodule=datamodule)
    (scores,) = trainer.test(task, datamodule=datamodule, verbose=False)
    assert 0 <= scores['test_MeanAbsoluteError/s2'] < 2
    assert (tmp_path / 'subsets.csv').read_text().startswith('subset,modalities,mae,samples,')
    trainer.save_checkpoint(tmp_path / 'cover.ckpt')
    loaded = names['CoverFraction'].load_from_checkpoint(tmp_path / 'cover.ckpt')
    assert loaded.hparams == task.hparams
    (prediction,) = trainer.predict(loaded, datamodule.val_dataloader())[:1]
    assert prediction['prediction'].shape == (2, 1)


def test_example_of_readme_runs():
    (block,) = python_blocks('README.md')
    batch = {'image_s2': torch.rand(2, 3, 4, 16, 16), 'dates_s2': torch.arange(6).view(2, 3)}
    names = {'batch': batch | {'valid_s2': torch.ones(2, 3, dtype=torch.bool)}}
    exec(block, names)
    assert names['logits'].shape == (2, 20, 16, 16)


def test_every_command_of_ours_is_described():
    page = (ROOT / 'docs' / 'reference' / 'cli.md').read_text()
    assert all(f'`{command}`' in page for command in COMMANDS)
