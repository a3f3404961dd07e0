# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Every switch of the ablation changes what the model receives; runs are done once and kept."""

import csv
import json
import shutil
import threading
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import ablation
import curves
import pytest
import torch
from ablation import TABLES, WHOLE
from filelock import FileLock
from torch import Tensor
from torchgeo.main import main

from torchgeo_omnisat.datamodules import SyntheticLandscapesDataModule
from torchgeo_omnisat.modality import subset_name, subsets
from torchgeo_omnisat.models import OmniSatOutput, OmniSatSegmenter
from torchgeo_omnisat.reproduction import few, runs
from torchgeo_omnisat.reproduction.rows import NARROW, SENSORS, SIZES, Row, Size, make_run
from torchgeo_omnisat.tasks import OmniSatSegmentation

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")
TINY = Size('omnisat_tiny', NARROW, steps=3, pretraining_steps=1, batch_size=2, tiles=10)
ROWS = {row.name: row for table in TABLES.values() for row in table}
#: Small landscapes, as arguments and as words of the command line.
SMALL: dict[str, Any] = {'size': 16, 'dates': (2, 3)}
FEW = ['--data.size', '16', '--data.dates', '[2,3]']
DIRECTORIES = {'S2': ('DATA_S2',), 'S1': ('DATA_S1A', 'DATA_S1D'), 'SPOT': ('DATA_SPOT',)}


@pytest.fixture(scope='module')
def landscapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten tiles, measured, to be copied."""
    root = tmp_path_factory.mktemp('landscapes') / 'data'
    SyntheticLandscapesDataModule(root=str(root), num_tiles=TINY.tiles, **SMALL).prepare_data()
    return root


class Step(NamedTuple):
    """What a model decodes in training; a step decodes twice where it learns from all sensors and from some."""

    model: OmniSatSegmenter
    #: Parameters of the backbone.
    state: dict[str, Tensor]
    #: What the task was given.
    batch: dict[str, Tensor]
    #: How many modalities each tile has.
    there: list[int]


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    """Everything that models decode in training, in order."""
    calls: list[Step] = []
    batches: list[dict[str, Tensor]] = []
    learn, decode = OmniSatSegmentation.learn, OmniSatSegmenter.decode

    def spy_learn(self: OmniSatSegmentation, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        batches.append(dict(batch))
        return learn(self, batch)

    def spy_decode(self: OmniSatSegmenter, out: OmniSatOutput, *args: Any) -> Tensor:
        state = {key: value.clone() for key, value in self.backbone.state_dict().items()}
        calls.append(Step(self, state, batches[-1], out.available.sum(1).tolist()))
        return decode(self, out, *args)

    monkeypatch.setattr(OmniSatSegmentation, 'learn', spy_learn)
    monkeypatch.setattr(OmniSatSegmenter, 'decode', spy_decode)
    return calls


def train(words: list[str]) -> None:
    """Run a command on the small landscapes."""
    main([*words, *FEW])


def without(landscapes: Path, sensors: tuple[str, ...], root: Path) -> Path:
    """A copy in which the files of all other sensors are empty: whoever opens one fails."""
    shutil.copytree(landscapes, root)
    for sensor in set(SENSORS) - set(sensors):
        for directory in DIRECTORIES[sensor]:
            for path in filter(Path.is_file, (root / directory).rglob('*')):
                path.write_bytes(b'')
    return root


@pytest.mark.slow
@pytest.mark.parametrize('name', ROWS)
def test_a_row_receives_what_it_says(name: str, landscapes: Path, tmp_path: Path, received: list[Step]) -> None:
    """The sensors, of which no other file is opened; their loss in training; the backbone."""
    row = ROWS[name]
    run = make_run(replace(row, pretrained=False), TINY, 'synthetic', 1, 0)
    run = replace(run, modality_dropout=1.0 if run.modality_dropout else 0.0)
    root = without(landscapes, row.sensors, tmp_path / 'data')
    train(runs.commands(run, tmp_path, str(root))['fit'])
    held = [modality for sensor in row.sensors for modality in SENSORS[sensor]]
    drops = row.backbone is None and row.dropout and len(held) > 1
    decodes = 2 if drops and row.both else 1  # all of a tile, and then what dropout leaves of it
    assert len(received) == decodes * TINY.steps
    for number, step in enumerate(received, 1):
        assert sorted(step.model.backbone.encoders) == sorted(held)
        assert {key for key in step.batch if key.startswith('image_')} <= {f'image_{name}' for name in held}
        if drops and number % decodes == 0:
            assert step.there == [1, 1]
        else:
            assert min(step.there) >= len(held) - 1  # a tile of the landscapes may lack a file
    assert type(received[0].model.backbone).__name__ == ('LateFusion' if row.backbone else 'OmniSat')


@pytest.mark.slow
def test_a_sensor_that_is_there_is_opened(landscapes: Path, tmp_path: Path) -> None:
    """So that the rows above would have failed."""
    root = without(landscapes, ('S2', 'SPOT'), tmp_path / 'data')
    run = make_run(ROWS['without pre-training'], TINY, 'synthetic', 1, 0)
    with pytest.raises(ValueError, match='S1'):
        train(runs.commands(run, tmp_path, str(root))['fit'])


@pytest.mark.slow
def test_pretraining_is_what_training_begins_with(landscapes: Path, tmp_path: Path, received: list[Step]) -> None:
    whole = make_run(WHOLE, TINY, 'synthetic', 1, 0)
    words = runs.commands(whole, tmp_path, str(landscapes))
    train(words['pretrain'])
    assert not received  # no label is learnt from
    train(words['fit'])
    train(runs.commands(replace(whole, pretraining_steps=0), tmp_path, str(landscapes))['fit'])
    pretrained = torch.load(tmp_path / whole.pretraining.key / 'pretrained.ckpt', weights_only=True)['state_dict']
    first, other = received[0].state, received[2 * TINY.steps].state
    theirs = {key: next(v for k, v in pretrained.items() if k.endswith(f'backbone.{key}')) for key in first}
    assert all(torch.equal(value, theirs[key]) for key, value in first.items())
    assert not all(torch.equal(value, theirs[key]) for key, value in other.items())


def test_rows_differ_in_what_they_say() -> None:
    made = {name: make_run(row, TINY, 'synthetic', 1, 0) for name, row in ROWS.items()}
    assert len({run.key for run in made.values()}) == len(made)
    for name, run in made.items():
        same = ('data', 'fold', 'seed', 'steps', 'batch_size', 'lr', 'tiles', 'labels')
        assert all(getattr(run, field) == getattr(made[WHOLE.name], field) for field in same), name


def test_every_part_of_a_run_is_in_its_key() -> None:
    run = make_run(WHOLE, TINY, 'synthetic', 1, 0)
    changed = {'modalities': ('s2',), 'backbone': 'utae', 'backbone_args': '{"width": 7}', 'data': 'pastis'}
    changed |= {'pretraining_args': '{}', 'options': '{}', 'data_options': '{}', 'precision': '16-mixed'}
    for field in fields(run):
        value = getattr(run, field.name)
        other = changed[field.name] if field.name in changed else (value or 0) + 1
        assert replace(run, **{field.name: other}).key != run.key, field.name
    tuned = replace(run, labels=0.1, modality_dropout=0.0, steps=7, lr=1.0, subset_weight=1.0, distill=1.0)
    assert tuned.pretraining == run.pretraining


class TestFewLabels:
    def test_parts_are_nested_and_as_long_as_the_whole(self, landscapes: Path) -> None:
        def tiles(part: float, draw: int = 0) -> list[int]:
            made = few.FewSyntheticLandscapesDataModule(part, draw, root=str(landscapes), num_tiles=TINY.tiles, **SMALL)
            assert len(made.make_dataset('test')) == 2
            return [patch.id for patch in made.make_dataset('train').patches]

        whole = tiles(1.0)
        assert [len(tiles(part)) for part in (0.01, 0.3, 0.5)] == [len(whole)] * 3 == [6] * 3
        assert [len(set(tiles(part))) for part in (0.01, 0.3, 0.5, 1.0)] == [1, 2, 3, 6]
        assert set(tiles(0.01)) < set(tiles(0.3)) < set(tiles(0.5)) < set(whole)
        assert len({frozenset(tiles(0.3, draw)) for draw in range(5)}) > 1

    @pytest.mark.slow
    def test_from_the_command_line(self, landscapes: Path, tmp_path: Path, received: list[Step]) -> None:
        """All labels of an epoch are those of one tile, up to turning and mirroring."""
        run = replace(make_run(ROWS['OmniSat of S2'], TINY, 'synthetic', 1, 0), labels=0.01)
        train(runs.commands(run, tmp_path, str(landscapes))['fit'])
        masks = torch.cat([step.batch['mask'] for step in received])
        counts = torch.stack([torch.bincount(mask.flatten(), minlength=20) for mask in masks])
        assert len(masks) == 6
        assert (counts == counts[0]).all()


def fake(run: runs.Run, *_: object) -> dict[str, Any]:
    """What a run would say that scored its seed and 50 for each modality."""
    score = 50 * len(run.modalities) + run.seed
    lost = {subset_name(names): score - 10 * (len(run.modalities) - len(names)) for names in subsets(run.modalities)}
    found = {'mean_iou': score, 'overall_accuracy': score + 1, 'subsets': json.dumps(lost), 'seconds': '{}'}
    found |= {'made_up': run.data == 'synthetic'}
    return {'key': run.key, **runs.flat(run), **found, **runs.circumstances()}


class TestTable:
    @pytest.fixture
    def executed(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        calls: list[str] = []

        def execute(run: runs.Run, *rest: object) -> dict[str, Any]:
            calls.append(run.key)
            return fake(run)

        monkeypatch.setattr(runs, 'execute', execute)
        return calls

    def test_what_is_done_is_not_done_again(self, executed: list[str], tmp_path: Path) -> None:
        table = tmp_path / 'runs.csv'
        made = [make_run(WHOLE, TINY, 'synthetic', 1, seed) for seed in (0, 1)]
        assert list(runs.complete([made[0], made[0]], table, tmp_path, '')) == [made[0].key]
        before = table.read_text()
        assert runs.complete(made, table, tmp_path, '').keys() == {run.key for run in made}
        assert table.read_text().startswith(before)
        assert executed == [run.key for run in made]
        assert runs.complete(made[1:], table, tmp_path, '')[made[1].key]['mean_iou'] == '201'

    def test_a_run_that_fails_leaves_the_others(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        made, table = [make_run(WHOLE, TINY, 'synthetic', 1, seed) for seed in (0, 1)], tmp_path / 'runs.csv'

        def execute(run: runs.Run, *_: object) -> dict[str, Any]:
            if run.seed == 1:
                raise KeyboardInterrupt
            return fake(run)

        monkeypatch.setattr(runs, 'execute', execute)
        with pytest.raises(KeyboardInterrupt):
            runs.complete(made, table, tmp_path, '')
        assert list(runs.read(table)) == [made[0].key]

    def test_what_another_process_is_at_comes_last(self, executed: list[str], tmp_path: Path) -> None:
        """It is waited for, and then not done again if it is done."""
        made, table = [make_run(WHOLE, TINY, 'synthetic', 1, seed) for seed in (0, 1)], tmp_path / 'runs.csv'
        held = threading.Event()

        def other() -> None:
            with FileLock(tmp_path / f'{made[0].key}.lock'):
                held.set()
                time.sleep(0.5)
                runs.keep(table, fake(made[0]))

        thread = threading.Thread(target=other)
        thread.start()
        held.wait()
        assert runs.complete(made, table, tmp_path, '').keys() == {run.key for run in made}
        assert executed == [made[1].key]
        thread.join()

    def test_report(self, executed: list[str], tmp_path: Path) -> None:
        args = ablation.parser(None).parse_args(['--smoke', '--seeds', '0', '1', '2', '--folder', str(tmp_path)])
        made = ablation.plan(args)
        rows = {row: made.runs(row) for row in TABLES['summary']}
        done = made.complete(run for row_runs in rows.values() for run in row_runs)
        text = ablation.report({'summary': [(row, [done[r.key] for r in rs]) for row, rs in rows.items()]}, made)
        assert '| S2 only (U-TAE) | S2 | 51.0 ± 1.0 | 52.0 ± 1.0 | 3 | 63.1 |' in text
        assert '| all (OmniSat) | S2+S1+SPOT | 201.0 ± 1.0 |' in text
        assert 'Data: **synthetic landscapes**, 80 tiles, fold 1. Every row: 40 optimiser steps of 4 tiles' in text
        assert (tmp_path / 'ablation-synthetic-smoke.md').read_text() == text
        assert (tmp_path / 'ablation-synthetic-smoke.png').read_bytes().startswith(b'\x89PNG')
        assert len(list(csv.DictReader((tmp_path / 'runs-synthetic-smoke.csv').open()))) == 9
        assert ablation.pretty(*ablation.spread([{'mean_iou': '12.34'}])) == '12.3'

    def test_curves_share_runs_with_the_tables(
        self, executed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> None:
        words = ['--smoke', '--folder', str(tmp_path)]
        for module in (ablation, curves):
            monkeypatch.setattr('sys.argv', [module.__name__, *words])
            module.main()
        assert len(executed) == len(set(executed)) == 7 + 8
        assert (tmp_path / 'curves-synthetic-smoke.png').read_bytes().startswith(b'\x89PNG')
        assert 'without pre-training,0.01,200.00,nan,1' in capsys.readouterr().out
        monkeypatch.setattr('sys.argv', ['ablation', *words, '--fresh'])
        ablation.main()
        assert len(executed) == 15 + 7

    def test_real_data_need_a_root_and_take_every_fold(self, tmp_path: Path) -> None:
        with pytest.raises(SystemExit, match=r'pastis.*--root'):
            ablation.plan(ablation.parser(None).parse_args(['--data', 'pastis']))
        made = ablation.plan(ablation.parser(None).parse_args(['--data', 'pastis', '--root', 'x']))
        assert made.draws == tuple((fold, 0) for fold in (1, 2, 3, 4, 5))
        assert made.size == SIZES['long']
        (run, *_) = made.runs(Row('', ('S2',), 'utae'))
        assert (run.tiles, json.loads(run.backbone_args)) == (None, {})


@pytest.mark.slow
def test_a_run_from_end_to_end(landscapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = runs.torchgeo_command
    monkeypatch.setattr(runs, 'torchgeo_command', lambda words: command([*words, *FEW]))
    run = make_run(ROWS['S1+S2 (dual-stream)'], TINY, 'synthetic', 1, 0)
    (row,) = runs.complete([run], tmp_path / 'runs.csv', tmp_path, str(landscapes)).values()
    scores = json.loads(row['subsets'])
    assert next(iter(scores)) == 's1a+s1d+s2'
    assert len(scores) == 7
    assert 0 <= float(row['mean_iou']) == scores['s1a+s1d+s2'] <= 100
    assert json.loads(row['seconds']).keys() == {'fit', 'test'}
    assert row['data'] == 'synthetic'
    assert {'torch', 'torchgeo'} <= json.loads(row['versions']).keys()
    state = torch.load(tmp_path / run.key / 'model.ckpt', weights_only=True)
    assert state['global_step'] == TINY.steps
