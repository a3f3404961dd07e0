# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Robustness by command: checkpoints in, tables and figures out."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from torchgeo_omnisat.__main__ import main
from torchgeo_omnisat.commands.robustness import load_task, parse_checkpoints
from torchgeo_omnisat.datamodules import SyntheticLandscapesDataModule
from torchgeo_omnisat.datasets.synthetic.writing import MANIFEST
from torchgeo_omnisat.tasks import OmniSatSegmentation

DATA = {'num_tiles': 10, 'size': 8, 'dates': (2, 3)}
WORDS = ['robustness', '--data=SyntheticLandscapesDataModule', '--data.num_tiles=10', '--data.size=8']
WORDS += ['--data.dates=[2,3]', '--accelerator=cpu']
FILES = ['degradations.png', 'robustness.csv', 'robustness.json', 'robustness.md', 'subsets.png']


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Landscapes, and three models of which none has learnt anything: of all sensors, of S2, and of S1 and S2."""
    folder = tmp_path_factory.mktemp('robustness')
    for name, modalities in {'all': None, 's2': ('s2',), 's1s2': ('s2', 's1a', 's1d')}.items():
        torch.manual_seed(0)
        datamodule = SyntheticLandscapesDataModule(str(folder / 'data'), modalities=modalities, **DATA)
        trainer = Trainer(
            accelerator='cpu', devices=1, max_steps=1, logger=False, enable_model_summary=False,
            enable_progress_bar=False, limit_val_batches=0, enable_checkpointing=False, default_root_dir=folder,
        )  # fmt: skip
        trainer.fit(OmniSatSegmentation('omnisat_tiny'), datamodule=datamodule)
        trainer.save_checkpoint(folder / f'{name}.ckpt', weights_only=True)
    return folder


def run(folder: Path, output: Path, *words: str) -> int:
    return main([*WORDS, f'--data.root={folder / "data"}', f'--output={output}', *words])


def read(output: Path) -> list[dict[str, str]]:
    with (output / 'robustness.csv').open(newline='') as file:
        return list(csv.DictReader(file))


def test_some_subsets(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ['--ckpt', str(folder / 'all.ckpt'), '--groups', 's1=s1a,s1d', '--degrade', '--subsets', 'spot+s2', 's1']
    assert run(folder, tmp_path / 'out', *words) == 0
    assert [row['setting'] for row in read(tmp_path / 'out')] == ['s1+s2+spot', 's2+spot', 's1']
    with pytest.raises(SystemExit):
        run(folder, tmp_path / 'out', *words, 's3')
    assert 's3' in capsys.readouterr().err


class OwnTask(OmniSatSegmentation):
    pass


def test_task_of_the_user(folder: Path) -> None:
    assert type(load_task(folder / 'all.ckpt', f'{__name__}.OwnTask')) is OwnTask
    with pytest.raises(ValueError, match='OwnTusk'):
        load_task(folder / 'all.ckpt', f'{__name__}.OwnTusk')


def test_one_model(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, tmp_path / 'out', '--ckpt', str(folder / 'all.ckpt'), '--groups', 's1=s1a,s1d') == 0
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == FILES
    rows = read(tmp_path / 'out')
    sensors = {row['setting']: row for row in rows if row['test'] == 'sensors'}
    assert list(sensors) == ['s1+s2+spot', 's1+s2', 's2+spot', 's1+spot', 's2', 's1', 'spot']
    assert [int(row['sensors']) for row in sensors.values()] == [3, 2, 2, 2, 1, 1, 1]
    levels = {kind: [row['setting'] for row in rows if row['test'] == kind] for kind in ('dates', 'noise', 'cover')}
    assert levels == {
        'dates': ['100', '50', '25', '10'], 'noise': ['inf', '20', '10', '5', '0'], 'cover': ['100', '75', '50', '25'],
    }  # fmt: skip
    assert {row['data'] for row in rows} == {'synthetic landscapes'}
    assert {row['model'] for row in rows} == {'all'}
    told = json.loads((tmp_path / 'out/robustness.json').read_text())
    assert told['groups'] == {'s1': ['s1a', 's1d']}
    assert told['checkpoints'] == {'all': [str(folder / 'all.ckpt')]}
    assert len(told['scores']) == len(rows)
    text = (tmp_path / 'out/robustness.md').read_text()
    assert 'data: **synthetic landscapes**' in text
    assert f'| s1+s2+spot | {100 * float(sensors["s1+s2+spot"]["mean_iou"]):.1f} | 2 |' in text
    assert '| tile covered by the image (%): 50 |' in text
    assert text in capsys.readouterr().out
    assert all((tmp_path / 'out' / name).read_bytes().startswith(b'\x89PNG') for name in (FILES[0], FILES[4]))


def test_dedicated_models_beside_it(folder: Path, tmp_path: Path) -> None:
    """Each with all of its own sensors; the scores are those of ``test``, and no other sensor's file is opened."""
    words = ['--ckpt', f'all={folder / "all.ckpt"}', f'own={folder / "s2.ckpt"}', f'own={folder / "s1s2.ckpt"}']
    assert run(folder, tmp_path / 'out', *words, '--groups', 's1=s1a,s1d', '--degrade') == 0
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == FILES[1:]
    own = {row['setting']: float(row['mean_iou']) for row in read(tmp_path / 'out') if row['model'] == 'own'}
    assert list(own) == ['s1+s2', 's2']
    task = OmniSatSegmentation.load_from_checkpoint(folder / 's2.ckpt', weights_only=True)
    without = Path(shutil.copytree(folder / 'data', tmp_path / 'data'))
    for directory in ('DATA_S1A', 'DATA_S1D', 'DATA_SPOT'):
        for path in filter(Path.is_file, (without / directory).rglob('*')):
            path.write_bytes(b'')
    kept = json.loads((without / 'STATISTICS.json').read_text())
    for entry in (entry for groups in kept.values() for entry in groups.values()):
        entry.pop('files')  # as written by hand, or the files that changed would be measured anew
    (without / 'STATISTICS.json').write_text(json.dumps(kept))
    datamodule = SyntheticLandscapesDataModule(str(without), modalities=('s2',), **DATA)
    trainer = Trainer(accelerator='cpu', logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    (scores,) = trainer.test(task, datamodule=datamodule, verbose=False)
    assert scores['test_AverageJaccardIndex/s2'] == pytest.approx(own['s2'], abs=1e-6)
    assert run(folder, tmp_path / 'again', '--ckpt', str(folder / 's2.ckpt'), f'--data.root={without}') == 0
    assert {row['setting'] for row in read(tmp_path / 'again') if row['test'] == 'sensors'} == {'s2'}


def test_made_up_data_in_a_real_layout_are_called_so(folder: Path, tmp_path: Path) -> None:
    words = ['robustness', '--data=PASTISMultimodalDataModule', f'--data.root={folder / "data"}', '--accelerator=cpu']
    words += ['--data.missing=allow', '--data.batch_size=2', f'--output={tmp_path}', '--degrade', 'cover']
    assert main([*words, '--ckpt', str(folder / 'all.ckpt')]) == 0
    assert {row['data'] for row in read(tmp_path)} == {'synthetic landscapes'}
    real = Path(shutil.copytree(folder / 'data', tmp_path / 'data'))
    (real / MANIFEST).unlink()
    words[2] = f'--data.root={real}'
    assert main([*words, '--ckpt', str(folder / 's2.ckpt')]) == 0
    assert {row['data'] for row in read(tmp_path)} == {'PASTISMultimodal'}


@pytest.mark.parametrize(
    ('word', 'label', 'path'),
    [
        ('a.ckpt', 'a', 'a.ckpt'),
        ('plain=a.ckpt', 'plain', 'a.ckpt'),
        ('plain=runs/epoch=3-step=9.ckpt', 'plain', 'runs/epoch=3-step=9.ckpt'),
        ('runs/epoch=3-step=9.ckpt', 'epoch=3-step=9', 'runs/epoch=3-step=9.ckpt'),
        ('epoch=3.ckpt', 'epoch=3', 'epoch=3.ckpt'),
    ],
)
def test_names_of_checkpoints_hold_what_they_like(
    word: str, label: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'epoch=3.ckpt').touch()
    assert parse_checkpoints([word]) == {label: [Path(path)]}


def test_what_is_wrong_is_said_in_a_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, other = folder / 'all.ckpt', tmp_path / 'other.ckpt'
    other.write_text('no checkpoint')
    torch.save({'state_dict': {}, 'hyper_parameters': {}}, tmp_path / 'empty.ckpt')
    cases: dict[str, list[Any]] = {
        "gone.ckpt' is not a file": [tmp_path / 'gone.ckpt'],
        'other.ckpt cannot be read as a checkpoint': [other],
        'empty.ckpt': [tmp_path / 'empty.ckpt'],
        "--groups contains 's1'": [good, '--groups', 's1'],
        "--groups contains ['s3']": [good, '--groups', 's1=s1a,s3'],
        "label 'a'": [f'a={good}', f'a={good}', '--degrade'],
        "label 'all'": [good, good],
        "['spot']": [folder / 's2.ckpt', '--data.modalities=[spot]'],
    }
    for message, words in cases.items():
        with pytest.raises(SystemExit) as ended:
            run(folder, tmp_path / 'out', '--ckpt', *map(str, words))
        assert ended.value.code == 1
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert said.startswith('python -m torchgeo_omnisat robustness: '), message
        assert message in said
    assert not (tmp_path / 'out').exists()
