# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

from pathlib import Path

import crops
import pytest
import torch

REAL = Path(__file__).parents[2].parent / 'shared/data'


def test_join_of_two_series():
    image = torch.arange(4.0).view(2, 2, 1, 1)
    days = {'s2': torch.tensor([0, 59]), 's1': torch.tensor([0, 31])}
    tile = crops.Tile({'s2': image, 's1': 10 + image}, days, torch.zeros(1, 1), (0.0, 0.0))
    joined = crops.joined(tile)
    assert joined.dates['s2s1'].tolist() == [0, 31, 59]
    nan = float('nan')
    expected = torch.tensor([[0, 1, 10, 11], [nan, nan, 12, 13], [2, 3, nan, nan]])
    torch.testing.assert_close(joined.images['s2s1'].flatten(1), expected, equal_nan=True)
    assert {name: len(days) for name, days in crops.first_months(tile, 2).dates.items()} == {'s2': 1, 's1': 2}


@pytest.mark.skipif(not REAL.is_dir(), reason='needs real data')
@pytest.mark.slow
def test_smoke_run(tmp_path, monkeypatch):
    weights = REAL / 'weights/presto_default_model.pt'
    words = ['belgium', '--smoke', '--root', REAL / 'belgium-crops', '--weights', weights, '--output', tmp_path]
    monkeypatch.setattr('sys.argv', ['crops.py', *map(str, words)])
    crops.main()
    rows = crops.read_rows(tmp_path / 'crops-belgium-smoke.csv')
    assert [row['method'] for row in rows] == ['random forest', *crops.NETWORKS]
    assert all(0 <= row[kind] <= 1 for row in rows for kind in ('mean_iou', 'accuracy'))
