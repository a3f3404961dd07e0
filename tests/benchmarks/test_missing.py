# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""The table of missing sensors, real data's layout, and every switch of a run on the command line."""

import json
import re
import shlex
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import ablation
import curves
import missing
import pytest
import torch
from ablation import ALONE, DEDICATED, SCRATCH, TABLES, TESTED
from torch import Tensor
from torchgeo.main import main

from torchgeo_omnisat.datamodules import SyntheticLandscapesDataModule
from torchgeo_omnisat.models import OmniSat, OmniSatSegmenter
from torchgeo_omnisat.models.omnisat import OmniSatOutput
from torchgeo_omnisat.reproduction import runs
from torchgeo_omnisat.reproduction.rows import SENSORS, SIZES, make_run

from .test_ablation import ROWS, TINY, fake

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")
PAGE = Path(__file__).parents[2] / 'docs/howto/tables.md'


@pytest.fixture(scope='module')
def landscapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five tiles, one a fold, of which each has every modality."""
    root = tmp_path_factory.mktemp('landscapes') / 'data'
    SyntheticLandscapesDataModule(root=str(root), num_tiles=5, dates=(2, 3), size=16).prepare_data()
    return root


class TestSwitches:
    @pytest.mark.parametrize('name', [field.name for field in fields(runs.Run)])
    def test_each_is_told_to_torchgeo(self, name: str) -> None:
        """A field of a run that no word of the command line depends on would do nothing."""
        run = make_run(SCRATCH, TINY, 'synthetic', 1, 0)
        changed = {'modalities': ('s2',), 'backbone': 'utae', 'backbone_args': '{"width": 7}', 'data': 'pastis'}
        changed |= {
            'labels': 0.1,
            'max_dates': 3,
            'pretraining_args': '{"tile_weight": 0}',
            'options': '{"experts": false}',
            'data_options': '{"jitter": 0.1}',
            'precision': 'bf16-mixed',
        }
        if name == 'pretraining_args':
            run = replace(run, pretraining_steps=1)
        value = changed[name] if name in changed else (getattr(run, name) or 0) + 1
        other = replace(run, **{name: value})

        def words(run: runs.Run) -> list[str]:
            told = runs.commands(run, Path('folder'), 'root')
            assert ('pretrain' in told) == bool(run.pretraining_steps)
            step = 'pretrain' if name == 'pretraining_args' else 'fit'
            return [word for word in told[step] if not {run.key, run.pretraining.key} & set(Path(word).parts)]

        assert words(other) != words(run)
        switches = {'modality_dropout', 'subset_weight', 'distill', 'backbone', 'backbone_args', 'lr'}
        if name in switches:
            at = words(other).index(f'--model.{name}') + 1
            assert words(other)[at] == str(getattr(other, name))

    def test_rows_with_both_learn_from_all_and_some(self, landscapes: Path, tmp_path: Path) -> None:
        """A step encodes once and decodes twice: everything, and what dropout leaves."""
        seen: list[tuple[str, Tensor]] = []

        def spy(name: str) -> Any:
            true = getattr(OmniSatSegmenter, name)

            def call(self: OmniSatSegmenter, out: OmniSatOutput, *args: Any) -> Tensor:
                seen.append((name, out.available.clone()))
                return true(self, out, *args)

            return call

        run = replace(make_run(SCRATCH, TINY, 'synthetic', 1, 0), modality_dropout=1.0, tiles=None, data='pastis')
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(OmniSatSegmenter, 'decode', spy('decode'))
            main(runs.commands(run, tmp_path, str(landscapes))['fit'])
        counts = [available.sum(1).tolist() for _, available in seen]
        assert counts == [[4, 4], [1, 1]] * TINY.steps

    def test_the_number_of_dates_is_what_is_read(self, landscapes: Path, tmp_path: Path) -> None:
        run = replace(make_run(ROWS['OmniSat of S2'], TINY, 'pastis', 1, 0), max_dates=1)
        received: list[dict[str, Tensor]] = []
        forward = OmniSat.forward

        def spy(self: OmniSat, batch: dict[str, Tensor]) -> OmniSatOutput:
            received.append(dict(batch))
            return forward(self, batch)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(OmniSat, 'forward', spy)
            main(runs.commands(run, tmp_path, str(landscapes))['fit'])
        assert [batch['image_s2'].shape[1] for batch in received] == [1] * TINY.steps


def scored(row: ablation.Row) -> list[dict[str, str]]:
    """Two runs that score 50 a modality and their seed, and 10 less for each modality that is lost."""
    return [{k: str(v) for k, v in fake(make_run(row, TINY, 'synthetic', 1, seed)).items()} for seed in (0, 1)]


class TestTable:
    def test_numbers(self, tmp_path: Path) -> None:
        tested = {name: scored(row) for name, row in TESTED.items()}
        dedicated = {row.sensors: scored(row) for row in DEDICATED}
        text = missing.report(tested, dedicated, SENSORS, lambda name, suffix: tmp_path / f'{name}{suffix}')
        head, *lines = [line for line in text.splitlines() if line.startswith('|')]
        assert head.split(' | ')[-1] == 'dedicated to these |'
        cells = {line.split(' | ')[0][2:]: line.split(' | ')[1:] for line in lines[1:]}
        assert list(cells) == ['S2+S1+SPOT', 'S2+S1', 'S2+SPOT', 'S1+SPOT', 'S2', 'S1', 'SPOT', 'mean']
        assert cells['S2+S1'][0] == '190.5 ± 0.7'
        assert cells['S2+S1'][-1] == '150.5 ± 0.7 |'
        assert cells['S1'][1] == '180.5 ± 0.7'
        assert cells['mean'][0] == f'{(200 + 190 + 180 + 190 + 170 + 180 + 170) / 7 + 0.5:.1f}'
        assert 'data: **synthetic landscapes**' in text
        assert (tmp_path / 'robustness.md').read_text() == text
        assert (tmp_path / 'robustness.png').read_bytes().startswith(b'\x89PNG')

    def test_runs_are_shared_with_other_tables(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        done: list[str] = []

        def execute(run: runs.Run, *_: object) -> dict[str, Any]:
            done.append(run.key)
            return fake(run)

        monkeypatch.setattr(runs, 'execute', execute)
        words = ['ablation', '--smoke', '--folder', str(tmp_path), '--tables']
        for tables in (['summary', 'ablation'], ['dedicated'], ['robustness'], ['robustness', 'dedicated']):
            monkeypatch.setattr('sys.argv', [*words, *tables])
            ablation.main()
        assert len(done) == len(set(done)) == 7 + 8 + 1
        assert 'all and some in each step' in (tmp_path / 'robustness-synthetic-smoke.md').read_text()

    def test_report_of_the_runs_that_are_done(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for row in (SCRATCH, DEDICATED[0]):
            run = make_run(row, SIZES['smoke'], 'synthetic', 1, 0)
            runs.keep(tmp_path / 'runs-synthetic-smoke.csv', fake(run))
        monkeypatch.setattr(runs, 'execute', lambda *_: pytest.fail('a run was done'))
        words = ['--smoke', '--folder', str(tmp_path), '--report', '--tables', 'ablation', 'robustness']
        monkeypatch.setattr('sys.argv', ['ablation', *words, '--fresh'])
        with pytest.raises(SystemExit, match='expected one of them'):
            ablation.main()
        monkeypatch.setattr('sys.argv', ['ablation', *words, '--seeds', '7'])
        with pytest.raises(SystemExit, match='no run of the tables'):
            ablation.main()
        assert not (tmp_path / 'ablation-synthetic-smoke.md').exists()
        monkeypatch.setattr('sys.argv', ['ablation', *words])
        ablation.main()
        text = capsys.readouterr().out
        assert '| without pre-training | S2+S1+SPOT | 200.0 |' in text
        assert 'all (OmniSat)' not in text
        assert '| S2 | 170.0 | 170.0 |  |' in text
        assert '| S2+S1+SPOT | 200.0 | 200.0 | 200.0 |' in text
        assert '| mean | 182.9 | 182.9 |  |' in text

    def test_the_rows_differ_in_one_thing(self) -> None:
        whole = make_run(DEDICATED[0], TINY, 'synthetic', 1, 0)
        dropout, both = (make_run(row, TINY, 'synthetic', 1, 0) for row in (ALONE, SCRATCH))
        assert replace(dropout, modality_dropout=0.0) == whole
        assert replace(both, modality_dropout=0.0, subset_weight=0.0) == whole
        assert both.subset_weight == 1
        assert whole.modality_dropout == 0 < dropout.modality_dropout


@pytest.mark.slow
def test_pastis_in_its_folds(landscapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Two folds of a tree in PASTIS-HD's layout, of which nothing but the root is told; made up, and called so."""
    words = ['--data', 'pastis', '--root', str(landscapes), '--smoke', '--folds', '1', '4', '--steps', '2']
    words += ['--pretraining-steps', '1', '--batch-size', '2', '--max-dates', '2', '--folder', str(tmp_path)]
    monkeypatch.setattr('sys.argv', ['ablation', *words, '--tables', 'summary'])
    monkeypatch.setitem(TABLES, 'summary', TABLES['summary'][::2])  # one row without pre-training and one with it
    ablation.main()
    rows = list(runs.read(tmp_path / 'runs-pastis-smoke.csv').values())
    assert [(row['backbone'], row['fold']) for row in rows] == [
        (backbone, fold) for backbone in ('utae', 'omnisat_tiny') for fold in ('1', '4')
    ]
    for row in rows:
        assert (row['data'], row['made_up'], row['tiles']) == ('pastis', 'True', '')
        assert {'torch', 'lightning'} <= json.loads(row['versions']).keys()
        assert all(row[column] for column in ('commit', 'python', 'device', 'cores', 'threads', 'seconds'))
        assert len(json.loads(row['subsets'])) == 2 ** len(row['modalities'].split('+')) - 1
    assert (
        'Data: **synthetic landscapes**, fold 1, 4. Every row: 2 optimiser steps of 2 tiles' in capsys.readouterr().out
    )
    monkeypatch.setattr(runs, 'execute', lambda *_: pytest.fail('done again'))
    ablation.main()
    states = [torch.load(tmp_path / 'pastis-smoke' / row['key'] / 'model.ckpt', weights_only=True) for row in rows]
    assert {state['global_step'] for state in states} == {2}


@pytest.mark.skipif(not PAGE.exists(), reason='the site is not here')
def test_commands_of_the_page_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r'^```shell\n(.*?)^```$', PAGE.read_text(), re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    assert len(lines) > 4
    for line in lines:
        python, script, *words = shlex.split(line)
        assert python == 'python'
        module = {'benchmarks/ablation.py': ablation, 'benchmarks/curves.py': curves}[script]
        wanted: list[runs.Run] = []

        def stop(self: ablation.Plan, asked: Any, wanted: list[runs.Run] = wanted) -> None:
            wanted.extend(asked)
            raise KeyboardInterrupt

        monkeypatch.setattr(ablation.Plan, 'complete', stop)
        monkeypatch.setattr('sys.argv', [script, *words])
        with pytest.raises(KeyboardInterrupt):
            module.main()
        assert len(wanted) > 4
