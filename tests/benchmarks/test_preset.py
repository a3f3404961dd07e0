# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

from pathlib import Path

import preset
import pytest

from torchgeo_omnisat.datamodules import MultimodalGeoDataModule

REAL = Path(__file__).parents[2].parent / 'shared/data/belgium-crops'


def test_table_has_mean_and_spread_over_seeds():
    common = {'labels': '300', 'method': 'few', 'OverallAccuracy': '0.9'}
    rows = [common | {'AverageJaccardIndex': iou} for iou in ('0.5', '0.7')]
    rows.append({'labels': '900', 'method': 'few', 'AverageJaccardIndex': '0.8', 'OverallAccuracy': '0.95'})
    assert preset.table(rows).splitlines()[2:] == [
        '| 300 | few | 0.600 ± 0.141 | 0.900 ± 0.000 | 2 |',
        '| 900 | few | 0.800 | 0.950 | 1 |',
    ]


@pytest.mark.skipif(not REAL.is_dir(), reason='needs real data')
def test_models_learn_from_the_labels_of_the_western_half(tmp_path):
    plan, data = preset.prepare(REAL, tmp_path, 300, 0, None)
    datamodule = MultimodalGeoDataModule(**data)
    pixels = {split: sum(datamodule.label_counts(split).pixels.values()) for split in ('train', 'val', 'test')}
    assert pixels['train'] + pixels['val'] == 300
    assert pixels['test'] == 1200
    assert plan.data['train_places'] == 'labels'
    bounds = datamodule.grounds['test'].bounds
    assert all(datamodule.grounds[split].bounds[2] <= bounds[0] for split in ('train', 'val'))


def test_rows_of_other_files_do_not_count(tmp_path, monkeypatch):
    scores = dict.fromkeys(preset.METRICS, 0.5)
    monkeypatch.setattr(preset, 'prepare', lambda *_: (None, {}))
    monkeypatch.setattr(preset, 'classify', lambda *_: iter([('mlp', scores)]))
    for name in ('a', 'b', 'b'):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / 'x.tif').write_text(name)
        words = ['--root', tmp_path / name, '--results', tmp_path / 'preset.csv', '--methods', 'classifiers']
        monkeypatch.setattr('sys.argv', ['preset.py', *map(str, words), '--labels', '300', '--seeds', '0'])
        preset.main()
    lines = (tmp_path / 'preset.csv').read_text().splitlines()
    assert len(lines) == 3
    assert len({line.split(',')[3] for line in lines[1:]}) == 2
