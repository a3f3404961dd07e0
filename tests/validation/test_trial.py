# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""`check` fails wherever `fit` fails, with the same sentence."""

import copy
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from tests.geo_tree import ramp, write
from torchgeo_omnisat.__main__ import main
from torchgeo_omnisat.utils.cli import errors
from torchgeo_omnisat.validation import check
from torchgeo_omnisat.validation.trial import try_training

DATA, MODEL = 'data/init_args', 'model/init_args'
#: What is wrong: where in the file of `fit`, the value, and what the sentence names.
BROKEN: dict[str, tuple[str, Any, str]] = {
    'tile larger than the ground': (f'{DATA}/tile_size', 240, 'at most 160'),
    'tile no multiple of a patch': (f'{DATA}/tile_size', 90, 'tile_size is 90'),
    'patch no multiple of pixels': (f'{DATA}/patch_size', 15, 'tile_size is 80'),
    'empty split': (f'{DATA}/split', {'axis': 'x', 'fractions': [0, 0.5, 0.5]}, "'train'"),
    'two fractions': (f'{DATA}/split', {'axis': 'x', 'fractions': [0.5, 0.5]}, '[0.5, 0.5]'),
    'codes that are no class': (f'{DATA}/mask/path', 'codes', '99'),
    'missing folder': (f'{DATA}/rasters/s1/path', 'nowhere', 'nowhere'),
    'misspelt setting': (f'{DATA}/rasters/s1/pth', 's1', 'pth'),
    'unknown band': (f'{DATA}/rasters/s2/bands', ['B04', 'B99'], 'B99'),
    'unknown modality': (f'{DATA}/modalities', ['s2', 's3'], 's3'),
    'too few classes': (f'{DATA}/labels', ['a'], 'num_classes is 1'),
    'batch of nothing': (f'{DATA}/batch_size', 0, 'batch_size is 0'),
    'augmentation': (f'{DATA}/temporal_dropout', 3.0, '3.0'),
    'unknown backbone': (f'{MODEL}/backbone', 'omnisat_tny', 'omnisat_tny'),
    'unknown encoder': (f'{MODEL}/backbone_args', {'encoders': {'s2': 'nonsense'}}, 'nonsense'),
    'heads': (f'{MODEL}/backbone_args', {'num_heads': 7}, 'num_heads'),
    'unknown argument of a builder': (f'{MODEL}/backbone_args', {'foo': 7}, 'foo'),
    'unknown argument of a model': (f'{MODEL}/lern_rate', 1, 'lern_rate'),
    'unknown model': ('model/class_path', 'omnisatt', 'omnisatt'),
    'unknown loss': (f'{MODEL}/loss', 'dice', 'dice'),
    'missing weights': (f'{MODEL}/weights', 'nowhere.ckpt', 'nowhere.ckpt'),
    'class weights': (f'{MODEL}/class_weights', [1.0, 2.0, 3.0], 'class_weights has 3'),
    'other number of classes': (f'{MODEL}/num_classes', 7, '7'),
    'task for other labels': ('model/class_path', 'omnisat_classification', "'label'"),
    'other modalities': (
        f'{MODEL}/modalities',
        [{'name': name, 'bands': ['B02'], 'gsd': 10.0, 'temporal': True} for name in ('s2', 's1')],
        'B02',
    ),
    'statistics of an unknown source': (f'{MODEL}/statistics', 'paris', 'paris'),
    'unknown precision': ('trainer/precision', 'bf17', 'trainer.precision'),
    'missing checkpoint': ('ckpt_path', 'nowhere.ckpt', 'nowhere.ckpt'),
    'no checkpoint': ('ckpt_path', 'fit.yaml', 'fit.yaml cannot be read as a checkpoint'),
    'no end of training': ('trainer/max_epochs', -1, 'max_epochs'),
}


@pytest.fixture(scope='module')
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A configuration of `fit` that works."""
    root = tmp_path_factory.mktemp('region')
    for stamp in ('20210301', '20210401'):
        write(root / f's2/a_{stamp}.tif', ramp(32, 32, 2), bands=('B04', 'B08'))
    write(root / 's1/a_20210405.tif', -ramp(32, 32) / 100, bands=('VV',))
    numbers = np.arange(1024).reshape(32, 32)
    write(root / 'labels/crops.tif', (numbers % 2).astype(np.uint8))
    write(root / 'codes/crops.tif', np.where(numbers % 7, 99, 1).astype(np.uint8))
    rasters = {
        's2': {'path': 's2', 'kind': 'optical', 'unit': 'dn'},
        's1': {'path': 's1', 'kind': 'radar', 'unit': 'db'},
    }
    data = {'root': str(root), 'rasters': rasters, 'mask': {'path': 'labels'}, 'labels': ['a', 'b'], 'batch_size': 2}
    data |= {'tile_size': 80, 'patch_size': 20, 'split': {'axis': 'x', 'fractions': [0.5, 0.25, 0.25]}}
    trainer = {'max_epochs': 1, 'accelerator': 'cpu', 'limit_train_batches': 1, 'limit_val_batches': 1}
    trainer |= {'logger': False, 'enable_checkpointing': False, 'enable_progress_bar': False}
    return {
        'trainer': trainer,
        'model': {'class_path': 'omnisat', 'init_args': {'backbone': 'omnisat_tiny'}},
        'data': {'class_path': 'MultimodalGeoDataModule', 'init_args': data},
    }


def changed(good: dict[str, Any], place: str, value: Any) -> str:
    config = part = copy.deepcopy(good)
    *keys, last = place.split('/')
    for key in keys:
        part = part.setdefault(key, {})
    part[last] = value
    Path('fit.yaml').write_text(yaml.safe_dump(config))
    return 'fit.yaml'


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['torchgeo'])
    monkeypatch.setattr(sys, 'excepthook', sys.excepthook)


def run(capsys: Any, *words: str) -> tuple[int, str]:
    """Return the exit status, and the line that is printed of an error."""
    try:
        status = main(list(words))
    except SystemExit as ended:
        status = int(ended.code or 0)
    except Exception as error:
        return 1, errors.describe_error(error) or repr(error)
    captured = capsys.readouterr()
    problems = [line for line in captured.out.splitlines() if line.startswith('PROBLEM')]
    assert len(problems) < 2
    return status, ''.join(problems) or captured.err.strip().rpartition('\n')[-1]


def sentence(line: str) -> str:
    """Return a line without the names of the program, the error and the kind of problem."""
    parts = line.split(': ')
    while parts[0] in ('PROBLEM  settings', 'PROBLEM  label', 'PROBLEM  missing', 'PROBLEM  training', 'error') or (
        parts[0].startswith(('torchgeo', 'python -m')) or (parts[0].endswith('Error') and ' ' not in parts[0])
    ):
        parts = parts[1:]
    return ': '.join(parts)


@pytest.mark.parametrize('name', BROKEN)
def test_both_fail_with_one_sentence(good: dict[str, Any], name: str, capsys: Any) -> None:
    place, value, named = BROKEN[name]
    config = changed(good, place, value)
    status, checked = run(capsys, 'check', '--config', config, '--workers', '0')
    assert status != 0
    assert named in checked
    status, fitted = run(capsys, 'fit', '--config', config)
    assert status != 0
    assert named in fitted
    if named != '99':  # check counts the pixels of all splits, fit those of training
        assert sentence(checked) == sentence(fitted)


@pytest.fixture(scope='module')
def checkpoint(good: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `fit` leaves after three epochs of this configuration."""
    folder = tmp_path_factory.mktemp('trained')
    config = copy.deepcopy(good)
    config['trainer'] |= {'enable_checkpointing': True, 'default_root_dir': str(folder), 'max_epochs': 3}
    (folder / 'fit.yaml').write_text(yaml.safe_dump(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', ['torchgeo'])
        main(['fit', '--config', str(folder / 'fit.yaml')])
    return next(folder.rglob('*.ckpt'))


@pytest.mark.parametrize(
    ('place', 'value', 'named'),
    [
        (f'{DATA}/labels', ['b', 'a'], 'labels: [a, b]'),
        ('trainer/max_epochs', 1, 'max_epochs'),
    ],
)
def test_checkpoints_of_another_model(
    good: dict[str, Any], checkpoint: Path, place: str, value: Any, named: str, capsys: Any
) -> None:
    trainer = {**good['trainer'], 'max_epochs': 4}
    config = changed({**good, 'trainer': trainer, 'ckpt_path': str(checkpoint)}, place, value)
    for words in (['check', '--config', config, '--workers', '0'], ['fit', '--config', config]):
        status, said = run(capsys, *words)
        assert status != 0
        assert named in said


def test_a_checkpoint_that_fits(good: dict[str, Any], checkpoint: Path, capsys: Any) -> None:
    trainer = {**good['trainer'], 'max_epochs': 4}
    config = {**good, 'trainer': trainer, 'ckpt_path': str(checkpoint)}
    config = changed(config, f'{MODEL}/backbone_args', {'embed_dim': 32})  # the checkpoint's arguments go first
    assert run(capsys, 'check', '--config', config, '--workers', '0') == (0, '')


def states() -> tuple[Any, ...]:
    numbers = np.random.get_state()  # noqa: NPY002 (for other libraries)
    return random.getstate(), str(numbers), torch.get_rng_state().tolist()


def test_what_fit_accepts(good: dict[str, Any], capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[bool] = []

    def trial(*args: Any, **kwargs: Any) -> str | None:
        before = states()
        message = try_training(*args, **kwargs)
        kept.append(states() == before)
        return message

    monkeypatch.setattr(check, 'try_training', trial)
    config = changed(good, 'data/init_args/rasters/aerial', {'path': 'nowhere'})
    before = sorted(Path(good['data']['init_args']['root']).rglob('*'))
    words = ['check', '--config', config, '--workers', '0', '--data.modalities', '[s2, s1]']
    assert main(words) == 0  # the folder of a modality that is not used may be missing
    assert 'Problems: none' in capsys.readouterr().out
    assert kept == [True]
    assert sorted(Path(good['data']['init_args']['root']).rglob('*')) == before
    assert [path.name for path in Path().iterdir()] == ['fit.yaml']


def test_without_a_dry_run_the_model_is_not_built(good: dict[str, Any], capsys: Any) -> None:
    config = changed(good, *BROKEN['unknown backbone'][:2])
    assert main(['check', '--config', config, '--workers', '0', '--no-dry-run']) == 0
