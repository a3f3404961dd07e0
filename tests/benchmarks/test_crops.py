# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

from pathlib import Path

import belgium
import crops
import numpy as np
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


def test_class_weights_balance_the_classes():
    labels = torch.tensor([0, 0, 0, 2])
    weights = crops.class_weights(labels, 3)
    torch.testing.assert_close(weights, torch.tensor([2 / 3, 0.0, 2.0]))
    assert float(weights[labels].mean()) == pytest.approx(1)


def test_own_statistics_remove_the_gain_of_a_tile():
    torch.manual_seed(0)
    images = {'s2': torch.rand(3, 2, 4, 4) + 1000, 's1': torch.rand(3, 2, 4, 4)}
    days = dict.fromkeys(images, torch.arange(3))
    tile = crops.Tile(images, days, torch.zeros(4, 4), (0.0, 0.0))
    brighter = tile._replace(images={'s2': 3 * images['s2'], 's1': images['s1'] + 5})
    first, second = crops.adapted([tile, brighter])
    for name, image in first.images.items():
        torch.testing.assert_close(image.mean((0, 2, 3)), torch.zeros(2), atol=1e-3, rtol=0)
        torch.testing.assert_close(second.images[name], image, atol=1e-2, rtol=0)


@pytest.mark.skipif(not REAL.is_dir(), reason='needs real data')
@pytest.mark.slow
def test_smoke_run(tmp_path, monkeypatch):
    weights = REAL / 'weights/presto_default_model.pt'
    words = ['belgium', '--smoke', '--root', REAL / 'belgium-crops', '--weights', weights, '--output', tmp_path]
    monkeypatch.setattr('sys.argv', ['crops.py', *map(str, words)])
    crops.main()
    rows = crops.read_rows(tmp_path / 'crops-belgium-smoke.csv')
    assert [row['method'] for row in rows] == list(crops.METHODS)
    assert all(0 <= row[kind] <= 1 for row in rows for kind in ('mean_iou', 'accuracy'))


def test_rows_of_other_files_do_not_count(tmp_path, monkeypatch):
    tile = crops.Tile({}, {}, torch.zeros(2, 2, dtype=torch.int64), (0.0, 0.0))
    monkeypatch.setattr(crops, 'read_halves', lambda root: [tile, tile])
    monkeypatch.setattr(crops, 'classify', lambda *args: np.zeros((2, 2), np.int64))
    for name in ('a', 'b', 'b'):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / 'x.tif').write_text(name)
        words = ['belgium', '--methods', 'mlp', '--root', tmp_path / name, '--output', tmp_path, '--seeds', '1']
        monkeypatch.setattr('sys.argv', ['crops.py', *map(str, words)])
        crops.main()
    rows = crops.read_rows(tmp_path / 'crops-belgium.csv')
    assert len(rows) == 2
    assert rows[0]['data'] != rows[1]['data']


def test_weights_count_for_the_methods_that_read_them(tmp_path):
    found = []
    for name in ('a', 'b'):
        (tmp_path / name).write_text(name)
        found.append([crops.files_of(method, tmp_path / 'a', tmp_path / name) for method in ('presto s2', 'mlp')])
    (presto, mlp), (others, same) = found
    assert presto != others
    assert mlp == same


def test_links_lead_to_the_data_that_are_asked_for(tmp_path):
    for name in ('a', 'b'):
        (tmp_path / name / 's2').mkdir(parents=True)
    assert (belgium.linked(tmp_path / 'a', tmp_path / 'out') / 's2').resolve() == tmp_path / 'a/s2'
    belgium.linked(tmp_path / 'a', tmp_path / 'out')
    with pytest.raises(SystemExit, match='--output'):
        belgium.linked(tmp_path / 'b', tmp_path / 'out')
