# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""What pre-training is worth: lines differ in their pre-training alone, gains are over the same seed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pretraining
import pytest
import yaml

from torchgeo_omnisat.reproduction import runs
from torchgeo_omnisat.reproduction.rows import SIZES, make_run

from .test_ablation import fake


def test_gains_are_over_the_run_of_the_same_seed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[runs.Run] = []

    def execute(run: runs.Run, *_: object) -> dict[str, Any]:
        done.append(run)
        return fake(replace(run, seed=run.seed * (2 if run.pretraining_steps else 1))) | {'key': run.key}

    monkeypatch.setattr(runs, 'execute', execute)
    words = ['--terms', 'reconstruction', '--seeds', '1', '2', '3', '--folder', str(tmp_path)]
    monkeypatch.setattr('sys.argv', ['pretraining', *words, '--results', str(tmp_path)])
    pretraining.main()
    table = (tmp_path / 'pretraining-80.md').read_text()
    assert table == capsys.readouterr().out
    assert 'Synthetic landscapes, 10% of the labels' in table
    assert '| none | 3 | 202.0 ± 1.0 |  |' in table
    assert '| reconstruction | 3 | 204.0 ± 2.0 | +2.0 ± 1.0 |' in table
    monkeypatch.setattr('sys.argv', ['pretraining', *words, '--labels', '0.01', '--results', str(tmp_path)])
    pretraining.main()
    assert 'Synthetic landscapes, 1% of the labels' in (tmp_path / 'pretraining-80-0.01.md').read_text()
    assert (tmp_path / 'pretraining-80.md').read_text() == table
    done = [run for run in done if run.labels == 0.1]
    none, rebuilt = ([run for run in done if bool(run.pretraining_steps) is told] for told in (False, True))
    assert [replace(run, pretraining_steps=0, pretraining_args='') for run in rebuilt] == none


def test_terms_reach_the_command_line(tmp_path: Path) -> None:
    size = SIZES['small']
    run = replace(make_run(pretraining.SCRATCH, size, 'synthetic', 1, 0), pretraining_steps=3)
    for name, told in pretraining.TERMS.items():
        if told is not None:
            words = runs.commands(replace(run, pretraining_args=pretraining.json.dumps(told)), tmp_path, 'x')[
                'pretrain'
            ]
            said = {key: yaml.safe_load(words[words.index(f'--model.{key}') + 1]) for key in told}
            assert said == told, name
