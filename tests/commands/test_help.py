# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Help texts: quick to print, and without mark-up, representations of objects or repeated defaults."""

import re
import subprocess
import sys
from typing import Any

import pytest
import torchgeo.main

from torchgeo_omnisat import datamodules, plugin, tasks
from torchgeo_omnisat.__main__ import COMMANDS, main
from torchgeo_omnisat.commands import parsers
from torchgeo_omnisat.datasets.common.integrity import KINDS
from torchgeo_omnisat.datasets.pastis import FOLDS
from torchgeo_omnisat.evaluation import robustness
from torchgeo_omnisat.tasks.checkpoints import CONFIG, MODEL
from torchgeo_omnisat.utils.cli.help import plain

#: Representations of objects, roles, literals, and a default that is stated twice.
MARKUP = (
    r'<(function|class|module|object)\b',
    r'\bat 0x',
    r':[a-z]+:`',
    r'``',
    r'default: [^()]*\)\s*\([^)]*default',
)


def assert_plain(text: str) -> None:
    assert 'usage' in text or 'options' in text or '--' in text
    for pattern in MARKUP:
        assert not re.search(pattern, text), re.findall(f'.*{pattern}.*', text)


def test_a_checkpoint_may_be_named_as_in_torchgeo() -> None:
    """``torchgeo test`` has ``--ckpt_path``."""
    assert str(parsers.export_parser().parse_args(['--ckpt_path', 'a.ckpt', '--output', 'hub']).ckpt) == 'a.ckpt'


def test_help_of_a_command_imports_no_torch() -> None:
    code = (
        'import contextlib, io, sys; from torchgeo_omnisat.__main__ import main, COMMANDS\n'
        'with contextlib.redirect_stdout(io.StringIO()):\n'
        '    assert [main([name, "--help"]) for name in COMMANDS] == [0] * len(COMMANDS)\n'
        'print({"torch", "torchgeo", "lightning", "numpy", "rasterio", "matplotlib"} & set(sys.modules))'
    )
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == 'set()'


@pytest.mark.parametrize('command', COMMANDS)
def test_help_of_a_command_is_plain(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, '-h']) == 0
    text = capsys.readouterr().out
    assert_plain(text)
    assert text.startswith(f'usage: python -m torchgeo_omnisat {command}')


def test_a_parser_that_needs_no_library_knows_their_names() -> None:
    assert parsers.PARSERS.keys() == COMMANDS.keys()
    assert tuple(KINDS) == parsers.PROBLEMS
    assert tuple(FOLDS) == parsers.FOLDS
    assert tuple(robustness.KINDS) == parsers.DEGRADATIONS
    assert parsers.EXPORTED == (CONFIG, MODEL)
    assert {*parsers.datamodules(), 'MultimodalDataModule'} == set(datamodules.__all__)


TOPICS = [
    ['--help'],
    ['--help', '--model', 'omnisat'],
    *(['--model.help', name] for name in tasks.__all__ if name.startswith('omnisat')),
    *(['--data.help', name] for name in datamodules.__all__),
]


@pytest.mark.parametrize('words', TOPICS, ids=' '.join)
def test_help_of_fit_is_plain(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments: Any = ['fit', *words]
    monkeypatch.setattr(sys, 'argv', ['torchgeo'])
    plugin.load()
    with pytest.raises(SystemExit) as stop:
        torchgeo.main.main(arguments)
    assert stop.value.code == 0
    assert_plain(capsys.readouterr().out)


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('a :class:`~torchgeo_omnisat.\n  datasets.FLAIR`', 'a FLAIR'),
        (':func:`.split_ground` of :meth:`Modality.select`', 'split_ground of Modality.select'),
        (':ref:`the title <target>`', 'the title'),
        ('``path`` or *column*', 'path or column'),
        ("(type: <class 'Path'>, default: <function mean at 0x7f>)", '(type: Path, default: mean)'),
        ('a file (default: null)', 'a file'),
        ('2 * 3 * 4, *.csv', '2 * 3 * 4, *.csv'),
    ],
)
def test_plain_text(text: str, expected: str) -> None:
    assert plain(text) == expected
