# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Rounds of ``speed.py``: which of them count, and what the table says of them."""

import pytest
import speed
from speed import Spent


def test_spent_is_the_difference_of_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = iter([(1.0, 2.0, 10.0, 3.0), (2.5, 2.25, 12.0, 3.5)])
    monkeypatch.setattr(speed, '_clocks', lambda: next(clocks))
    spent = speed.spent(lambda: None)
    assert spent[1:] == (1.5, 0.25, 0.25, 0.5)
    assert spent.processor == 1.75


def test_cores_that_no_thread_needs_may_be_busy() -> None:
    spent = Spent(wall=2, user=2, system=0, others=3, stolen=0.5)
    assert [spent.disturbance(idle) for idle in (0, 1, 2)] == [1.75, 0.75, 0.25]
    assert (
        Spent(wall=0.1, user=0.1, system=0, others=0.04, stolen=0).disturbance(0) == 0
    )  # less than the clock resolves


def test_summary_is_of_pairs_of_a_run_and_its_yardstick() -> None:
    quick, slow = Spent(1, 1.8, 0.1, 0, 0), Spent(4, 5.5, 0.2, 0.0, 0.8)
    found = speed.summary([(Spent(2, 3.6, 0.2, 0.1, 0), quick), (slow, quick), (Spent(3, 5, 0.7, 0, 0), quick)])
    assert found['ratios'] == [2, 4, 3]
    assert (found['Y'], found['processor Y']) == (3, pytest.approx(3))
    assert found['cores'] == pytest.approx({'user': 5 / 3, 'system': 0.1, 'others': 0, 'stolen': 0})
    assert found['disturbed'] == 1
    assert speed.summary([(slow, quick)], samples=2)['Y'] == 2


def test_disturbed_rounds_are_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> None:
        raise AssertionError

    taken = iter([0.5, 0.0, 0.9, 0.0, 0.09, 0.0, 0.0, 0.0])
    monkeypatch.setattr(speed, 'spent', lambda run: Spent(1, 1, 0, next(taken), 0))
    kept = speed.rounds(run, run, repeats=2)
    assert [run.others for run, _ in kept] == [0.0, 0.09]
    assert next(taken, None) is None


def test_table_names_disturbed_rounds() -> None:
    result = speed.summary([(Spent(2, 3, 0.5, 0, 1), Spent(1, 1, 0, 0, 0))]) | {'GB': 1.2}
    line = speed.table({'omnisat_small inference': result}).splitlines()[-1]
    assert '2 Y, 3.5 processor Y, 1.2 GB' in line
    assert 'user 1.50, system 0.25, others 0.00, stolen 0.50 (1 of 1 disturbed)' in line
