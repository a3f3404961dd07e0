# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""What a user can get wrong is one line; a fault of the code keeps its traceback."""

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader, Dataset

from torchgeo_omnisat import Modality
from torchgeo_omnisat.__main__ import COMMANDS, main
from torchgeo_omnisat.utils.cli import errors
from torchgeo_omnisat.utils.cli.console import brief_warnings
from torchgeo_omnisat.utils.cli.help import plain

REFUSED = "ValueError: gsd of 's2' must be a positive number of metres, got -1.0"


def raised(function: Any, *args: Any) -> Exception:
    try:
        function(*args)
    except Exception as error:
        return error
    raise AssertionError('nothing was raised')


class Refusing(Dataset[int]):
    """Refuses a value on purpose, or fails."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        return int(self.function())


def refuse() -> None:
    Modality('s2', ('B02',), -1.0, True)


def fail() -> None:
    np.zeros(3).reshape(2)


class TestDescribe:
    def test_a_value_that_we_refuse(self) -> None:
        assert (
            errors.describe_error(raised(refuse))
            == "ValueError: gsd of 's2' must be a positive number of metres, got -1.0"
        )

    def test_files(self, tmp_path: Path) -> None:
        said = errors.describe_error(raised(np.load, tmp_path / 'a.npy'))
        assert said is not None
        assert str(tmp_path / 'a.npy') in said
        assert errors.describe_error(raised(open, tmp_path))

    def test_lines_are_joined(self) -> None:
        error = FileNotFoundError('a\n  b')
        assert errors.describe_error(error) == 'FileNotFoundError: a b'

    @pytest.mark.parametrize('error', [MisconfigurationException('x'), ConnectionError('x')])
    def test_other_packages(self, error: Exception) -> None:
        assert errors.describe_error(error)

    @pytest.mark.parametrize(
        'function',
        [fail, lambda: {}['a'], lambda: torch.zeros(2) @ torch.zeros(3), lambda: int('a'), lambda: Modality()],
    )
    def test_a_fault_of_the_code(self, function: Any) -> None:
        assert errors.describe_error(raised(function)) is None

    @pytest.mark.parametrize(('function', 'user'), [(refuse, True), (fail, False)])
    def test_in_a_worker(self, function: Any, user: bool) -> None:
        loader = DataLoader(Refusing(function), num_workers=1)
        said = errors.describe_error(raised(lambda: list(loader)))
        assert (said == REFUSED) == user
        assert (said is None) != user

    def test_checkpoints(self, tmp_path: Path) -> None:
        (tmp_path / 'a.ckpt').write_bytes(b'nothing')
        said = errors.describe_error(raised(torch.load, tmp_path / 'a.ckpt'))
        assert said is not None
        assert said.startswith(f'{tmp_path / "a.ckpt"} cannot be read as a checkpoint: ')
        said = errors.describe_error(raised(torch.nn.Linear(2, 2).load_state_dict, torch.nn.Linear(3, 2).state_dict()))
        assert said is not None
        assert 'size mismatch for weight' in said


class TestHook:
    def test_that_error_alone(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        shown: list[BaseException | None] = []
        monkeypatch.setattr(sys, 'excepthook', lambda kind, error, traceback: shown.append(error))
        error, other = raised(refuse), raised(refuse)
        errors.shorten(error, 'torchgeo fit')
        sys.excepthook(type(error), error, error.__traceback__)
        assert capsys.readouterr().err == f'torchgeo fit: {errors.describe_error(error)}\n'
        sys.excepthook(type(other), other, other.__traceback__)
        assert shown == [other]

    def test_a_fault_or_a_wish_changes_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        before = sys.excepthook
        errors.shorten(raised(fail), 'torchgeo fit')
        monkeypatch.setenv(errors.VARIABLE, '1')
        errors.shorten(raised(refuse), 'torchgeo fit')
        assert sys.excepthook is before

    def test_context(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended, errors.one_line('stats'):
            refuse()
        assert ended.value.code == 1
        assert capsys.readouterr().err.startswith('stats: ValueError: gsd of')
        monkeypatch.setenv(errors.VARIABLE, '1')
        with pytest.raises(ValueError, match='gsd of'), errors.one_line('stats'):
            refuse()


def test_message_of_the_parser() -> None:
    message = (
        'Parser key "data":\n  Does not validate against any of the Union subtypes\n  Subtypes: [A, B]\n  Errors:\n'
        "    - Problem with given class_path 'x.A':\n        labels are 3,\n        expected 4\n"
        "    - Expected a <class 'NoneType'>\n  Given value type: <class 'dict'>\n  Given value: {'a': 1}"
    )
    said = errors.of_parser(message)
    assert said == "data: Problem with given class_path 'x.A': labels are 3, expected 4"
    assert errors.of_parser('no such\n  option') == 'no such option'


def test_markup_of_docstrings() -> None:
    text = 'a :class:`.ModalityDropout`, :mod:`~torchgeo_omnisat.models`, *subset_weight* and ``None``; 2 * 3 * 4'
    assert plain(text) == 'a ModalityDropout, models, subset_weight and None; 2 * 3 * 4'


def test_unknown_command_names_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['chekc']) == 2
    said = capsys.readouterr().err
    assert said.count('\n') == 1
    assert all(name in said for name in ('fit', *COMMANDS))
    assert 'did you mean check' in said


def test_warnings_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, 'formatwarning', warnings.formatwarning)
    brief_warnings()
    assert warnings.formatwarning(UserWarning('a\nb\x1b[2J'), UserWarning, 'f.py', 3) == 'warning: a b\\x1b[2J\n'
    assert 'f.py:3' in warnings.formatwarning(DeprecationWarning('a'), DeprecationWarning, 'f.py', 3)
