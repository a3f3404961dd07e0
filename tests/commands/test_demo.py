# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""The demonstration leaves what it promises, and says that it is synthetic."""

import csv
import sys
from pathlib import Path

import pytest
import torch

from torchgeo_omnisat.commands import demo, parsers


@pytest.mark.usefixtures('validation_figures')
def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, 'argv', ['torchgeo_omnisat'])
    output = tmp_path / 'a folder'
    assert demo.main(['--output', str(output), '--tiles', '10', '--epochs', '1']) == 0

    with (output / 'subsets.csv').open(newline='') as file:
        rows = {row['subset']: row['mean_iou'] for row in csv.DictReader(file)}
    assert len(rows) == 15
    assert (output / 'subsets.png').stat().st_size > 0
    assert len(list((output / 'pictures').glob('*.png'))) == 2  # a fifth of the tiles is held out
    checkpoint = torch.load(output / 'omnisat.ckpt', weights_only=True)
    assert checkpoint['hyper_parameters']['backbone'] == parsers.BACKBONE

    printed = capsys.readouterr().out
    assert 'synthetic' in printed
    assert str(output / 'omnisat.ckpt') in printed
    everything, s2 = (line.split() for line in printed.splitlines() if line.startswith(('s1a+s1d+s2+spot ', 's2 ')))
    assert everything[1] == f'{float(rows["s1a+s1d+s2+spot"]):.3f}'
    for words in (everything, s2):  # beside the model stands the baseline
        assert 0 < float(words[2]) < 1


@pytest.mark.parametrize('option', ['--epochs', '--tiles'])
def test_nothing_to_do_is_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        demo.main([option, '0'])
    assert f'argument {option}: expected at least 1, got 0' in capsys.readouterr().err
