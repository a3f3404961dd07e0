# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Gains are over the default pre-training of the same seed, and variants are arguments of the task."""

from pathlib import Path

import embeddings
import granularity
import location
import pytest

from tests.tasks.helpers import TOLD
from torchgeo_omnisat.reproduction.runs import keep
from torchgeo_omnisat.tasks import OmniSatPretraining


def row(variant: str, seed: int, score: float) -> dict[str, str]:
    columns = (*granularity.SCORES, 'patch_rank', 'tile_rank', 'patch_spread')
    return {'variant': variant, 'seed': str(seed), **dict.fromkeys(columns, str(score))}


def test_gains_are_over_the_same_seed() -> None:
    rows = [row('default', 1, 10), row('object', 1, 12), row('default', 2, 20), row('object', 2, 24), row('none', 3, 5)]
    _, _, *lines = granularity.table(rows).splitlines()
    assert [line.split(' | ')[:2] for line in lines] == [['| none', '1'], ['| default', '2'], ['| object', '2']]
    assert [line.split(' | ')[5] for line in lines] == ['', '', '+3.0 ± 1.4']


def test_variants_are_arguments() -> None:
    known = {key: TOLD[key] for key in ('backbone', 'modalities', 'patch_size')}
    for name, told in granularity.VARIANTS.items():
        if told is not None:
            terms = OmniSatPretraining(**known, **told).terms
            assert ('object' in terms) is (name in ('object', 'together'))
            assert ('teacher_image' in terms) is ('all' in name or name in ('teacher image', 'together'))


def test_rows_of_other_settings_are_not_those_of_a_command(tmp_path: Path) -> None:
    path = tmp_path / 'rows.csv'
    assert not embeddings.is_done(path, 'default 0', {'steps': 50})
    keep(path, {'key': 'default 0', 'steps': 50})
    assert embeddings.is_done(path, 'default 0', {'steps': 50, 'regions': ''})
    with pytest.raises(SystemExit, match='100'):
        embeddings.is_done(path, 'default 0', {'steps': 100})


def test_the_summary_of_the_location_is_of_one_number_of_steps() -> None:
    values = ('images', 'held out', 'none', '0.2', '0.5'), ('images', 'held out', 'none', '0.4', '0.5')
    rows = [
        dict(zip(location.COLUMNS, (0, steps, *own), strict=True)) for steps, own in zip((20, 300), values, strict=True)
    ]
    assert '| images | none | 40.0 ± 0.0 |' in location.summary(rows, 300)
