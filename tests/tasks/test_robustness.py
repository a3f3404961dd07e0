# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from torchgeo_omnisat.batch import collate, drop
from torchgeo_omnisat.modality import Modality, as_modalities, subset_name, subsets
from torchgeo_omnisat.tasks import OmniSatSegmentation

from .helpers import MODALITIES, TOLD, make_datamodule, make_loader, make_sample, make_trainer, read_csv


class TestSubsets:
    def test_subset_is_as_if_the_rest_had_not_been_there(self, tmp_path: Path) -> None:
        torch.manual_seed(1)
        task = OmniSatSegmentation(**TOLD)
        samples = [make_sample(0), make_sample(1), make_sample(2, ('s2', 's1a')), make_sample(3, ('spot',))]
        make_trainer(tmp_path, logger=False).test(task, make_loader(samples), verbose=False)
        rows = {row['subset']: row for row in read_csv(tmp_path / 'subsets.csv')}
        assert len(rows) == 7
        for subset in subsets(MODALITIES):
            others = [m for m in MODALITIES.values() if m.name not in subset]
            parts = [drop(sample, others) for sample in samples]
            seen = [part for part in parts if any(key.startswith('image') for key in part)]
            with torch.no_grad():
                given = torch.cat([task.classes(task(collate([part], MODALITIES))) for part in seen])
            wanted = torch.stack([part['mask'] for part in seen])
            row = rows[subset_name(subset)]
            accuracy = (given == wanted)[wanted != 4].float().mean().item()
            assert float(row['overall_accuracy']) == pytest.approx(accuracy, abs=1e-6)
            complete = sum(all(f'image_{name}' in part for name in subset) for part in parts)
            counts = [len(seen), complete, len(samples) - len(seen)]
            assert [int(row[f'{kind}samples']) for kind in ('', 'complete_', 'blind_')] == counts
            assert int(row['modalities']) == len(subset)

    def test_modality_that_no_sample_has(self, tmp_path: Path) -> None:
        samples = [make_sample(i, ('s2', 's1a')) for i in range(2)]
        task = OmniSatSegmentation(**TOLD)
        (scores,) = make_trainer(tmp_path).test(task, make_loader(samples), verbose=False)
        (row,) = [row for row in read_csv(next(tmp_path.rglob('subsets.csv'))) if row['subset'] == 'spot']
        assert (row['mean_iou'], row['samples'], row['blind_samples']) == ('nan', '0', '2')
        assert 'test_AverageJaccardIndex/spot' not in scores
        assert scores['test_AverageJaccardIndex/s2'] == scores['test_AverageJaccardIndex/s2+spot']

    def test_only_what_the_data_have(self, fitted: Path, root: Path, tmp_path: Path) -> None:
        task = OmniSatSegmentation.load_from_checkpoint(fitted, weights_only=True)
        trainer = make_trainer(tmp_path)
        trainer.test(task, datamodule=make_datamodule(root, modalities=('s1a',)), verbose=False)
        assert [row['subset'] for row in read_csv(next(tmp_path.rglob('subsets.csv')))] == ['s1a']

    def test_unfinished_file_leaves_the_old_one(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / 'subsets.csv').write_text('old')
        monkeypatch.setattr('pandas.DataFrame.to_csv', lambda _, path, **__: Path(path).write_text('half') and 1 / 0)
        with pytest.raises(ZeroDivisionError):
            make_trainer(tmp_path, logger=False).test(OmniSatSegmentation(**TOLD), make_loader([make_sample(0)]))
        assert [path.name for path in tmp_path.iterdir()] == ['subsets.csv']
        assert (tmp_path / 'subsets.csv').read_text() == 'old'


SEVEN = [Modality(name, ('a',), 10.0, False) for name in 'abcdefg']


def many(index: int) -> dict[str, Tensor]:
    """A sample of seven images."""
    generator = torch.Generator().manual_seed(index)
    sample = {'mask': torch.randint(0, 4, (8, 8), generator=generator)}
    for modality in SEVEN:
        sample[modality.image_key] = torch.randn(1, 8, 8, generator=generator)
        sample |= {modality.dates_key: torch.zeros(1, dtype=torch.int64), modality.valid_key: torch.ones(1).bool()}
    return sample


@pytest.mark.parametrize(
    ('which', 'count'), [('auto', 15), pytest.param('all', 127, marks=pytest.mark.slow), (['a+c', 'b'], 3)]
)
def test_decodes_grow_with_the_subsets_that_are_asked_for(which: Any, count: int, tmp_path: Path) -> None:
    """Seven modalities have 127 subsets, each of which costs a decode of every batch."""
    small = {'widths': [16, 16], 'image_widths': [16, 16, 16, 16]}
    told = {'num_classes': 4, 'patch_size': 40.0, 'label_gsd': 10.0, 'backbone_args': small}
    task, decodes = OmniSatSegmentation('omnisat_tiny', SEVEN, **told, subsets=which), []
    decode = task.model.decode
    task.model.decode = lambda out, *more: decodes.append(len(out.maps)) or decode(out, *more)
    loader = DataLoader([many(0), many(1)], 2, collate_fn=lambda s: collate(s, as_modalities(SEVEN)))
    make_trainer(tmp_path, logger=False).test(task, loader, verbose=False)
    assert len(decodes) == count
    assert decodes == sorted(decodes, reverse=True)
    assert len(read_csv(tmp_path / 'subsets.csv')) == count
    assert 'subsets' not in task.hparams


def test_subset_of_a_modality_that_the_data_lack(tmp_path: Path) -> None:
    task = OmniSatSegmentation(**TOLD, subsets=['s2+dem'])
    with pytest.raises(ValueError, match='dem'):
        make_trainer(tmp_path, logger=False).test(task, make_loader([make_sample(0)]), verbose=False)
