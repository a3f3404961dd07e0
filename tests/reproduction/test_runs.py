# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

from dataclasses import fields
from pathlib import Path

import pytest

from torchgeo_omnisat.reproduction.runs import Run, keep, read

RESULTS = Path(__file__).parents[2] / 'benchmarks/results'
#: Types of the cells of a run; others are strings.
KINDS = {'fold': int, 'seed': int, 'pretraining_steps': int, 'steps': int, 'batch_size': int, 'tiles': int}
KINDS |= dict.fromkeys(('modality_dropout', 'labels', 'lr', 'subset_weight', 'distill'), float)
KINDS |= {'max_dates': int, 'modalities': lambda text: tuple(text.split('+'))}
NONE = ('tiles', 'max_dates')


def run_of(row: dict[str, str]) -> Run:
    """The run of a row of a table."""
    cells = {field.name: row.get(field.name, '') or '' for field in fields(Run)}
    return Run(**{k: None if k in NONE and not v else KINDS.get(k, str)(v) for k, v in cells.items()})


@pytest.mark.skipif(not RESULTS.is_dir(), reason='the benchmarks are not here')
@pytest.mark.parametrize('name', ['runs-synthetic-small', 'runs-dropout', 'runs-pretraining'])
def test_committed_rows_keep_their_keys(name: str) -> None:
    rows = read(RESULTS / f'{name}.csv')
    assert len(rows) > 1
    assert {key: run_of(row).key for key, row in rows.items()} == {key: key for key in rows}


def test_table_with_more_columns_than_before(tmp_path: Path) -> None:
    table = tmp_path / 'runs.csv'
    keep(table, {'key': 'a', 'seed': 0, 'old': 1})
    keep(table, {'key': 'b', 'seed': 1, 'new': 2})
    assert read(table)['a'] == {'key': 'a', 'seed': '0', 'old': '1', 'new': ''}
    assert read(table)['b']['old'] == ''
