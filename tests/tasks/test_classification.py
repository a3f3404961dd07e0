# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchgeo.main import main

from tests.landscapes.treesatai import TreeSatAIRecipe, write_treesatai
from torchgeo_omnisat.batch import collate, drop
from torchgeo_omnisat.datamodules import TreeSatAITimeSeriesDataModule
from torchgeo_omnisat.datasets.treesatai import GENERA
from torchgeo_omnisat.datasets.treesatai import LABELS as LABELS_FILE
from torchgeo_omnisat.modality import subset_name, subsets
from torchgeo_omnisat.tasks import OmniSatClassification, omnisat_classification

from .helpers import MODALITIES, command, make_datamodule, make_loader, make_sample, make_trainer, read_csv

REAL = Path(__file__).parents[2].parent / 'shared/data/treesatai-ts'
LABELS = ['a', 'b', 'c']
TOLD: dict[str, Any] = {
    'backbone': 'omnisat_tiny',
    'modalities': MODALITIES,
    'label_names': LABELS,
    'patch_size': 40.0,
}


def make(index: int, names: tuple[str, ...] = tuple(MODALITIES)) -> dict[str, Tensor]:
    """A sample whose labels can be seen in its images; no sample has the third one."""
    sample = make_sample(index, names)
    del sample['mask']
    label = torch.tensor([index % 2, index % 3 == 0, 0]).float()
    for name in names:
        sample[f'image_{name}'] += 3 * label[0] - 2 * label[1]
    return sample | {'label': label}


def f1_by_hand(said: Tensor, true: Tensor) -> tuple[float, float]:
    """Macro and weighted F1, label by label."""
    scores, weights = [], []
    for s, t in zip(said.T.tolist(), true.T.tolist(), strict=True):
        hits = sum(a and b for a, b in zip(s, t, strict=True))
        wrong = sum(a != b for a, b in zip(s, t, strict=True))
        scores.append(2 * hits / (2 * hits + wrong) if hits else 0.0)
        weights.append(sum(t))
    return sum(scores) / len(scores), sum(a * b for a, b in zip(scores, weights, strict=True)) / sum(weights)


class TestScores:
    @pytest.mark.usefixtures('validation_figures')
    def test_every_subset_against_f1_by_hand(self, tmp_path: Path) -> None:
        torch.manual_seed(3)
        task = OmniSatClassification(**TOLD).eval()
        task.model.head.logits.bias.data[:] = torch.tensor([0.3, 0.0, -5.0])
        samples = [make(0), make(1), make(2), make(3, ('s2', 's1a')), make(4, ('spot',))]
        (scores,) = make_trainer(tmp_path).test(task, make_loader(samples), verbose=False)
        rows = {row['subset']: row for row in read_csv(next(tmp_path.rglob('subsets.csv')))}
        assert len(rows) == 7
        for subset in subsets(MODALITIES):
            parts = [drop(sample, [m for m in MODALITIES.values() if m.name not in subset]) for sample in samples]
            seen = [part for part in parts if any(key.startswith('image') for key in part)]
            with torch.no_grad():
                said = torch.cat([task(collate([part], MODALITIES)) for part in seen]) > 0
            macro, weighted = f1_by_hand(said, torch.stack([part['label'] for part in seen]) > 0)
            row = rows[subset_name(subset)]
            assert float(row['macro_f1']) == pytest.approx(macro, abs=1e-6)
            assert float(row['weighted_f1']) == pytest.approx(weighted, abs=1e-6)
            assert int(row['samples']) == len(seen)
            assert scores[f'test_AverageF1Score/{subset_name(subset)}'] == pytest.approx(macro, abs=1e-6)
        everything = rows['s1a+s2+spot']
        assert scores['test_AverageF1Score'] == pytest.approx(float(everything['macro_f1']), abs=1e-6)
        assert scores['test_WeightedF1Score'] == pytest.approx(float(everything['weighted_f1']), abs=1e-6)
        assert 'test_ClasswiseF1Score_b' in scores
        assert next(tmp_path.rglob('subsets.png')).is_file()

    def test_modality_that_no_sample_has(self, tmp_path: Path) -> None:
        samples = [make(i, ('s2', 's1a')) for i in range(2)]
        (scores,) = make_trainer(tmp_path).test(OmniSatClassification(**TOLD), make_loader(samples), verbose=False)
        (row,) = [row for row in read_csv(next(tmp_path.rglob('subsets.csv'))) if row['subset'] == 'spot']
        assert (row['macro_f1'], row['weighted_f1'], row['blind_samples']) == ('nan', 'nan', '2')
        assert 'test_AverageF1Score/spot' not in scores

    def test_probabilities(self, tmp_path: Path) -> None:
        task = OmniSatClassification(**TOLD)
        (prediction, *_) = make_trainer(tmp_path).predict(task, make_loader([make(0), make(1)])) or []
        assert isinstance(prediction, dict)
        assert prediction['probabilities'].shape == (2, 3)
        assert prediction['probabilities'].ge(0).all()
        assert prediction['probabilities'].le(1).all()
        assert prediction['bounds'].shape[0] == 2


class TestTraining:
    @pytest.mark.parametrize(('loss', 'steps'), [('asymmetric', 30), ('bce', 16)])
    def test_loss_falls(self, tmp_path: Path, loss: str, steps: int) -> None:
        torch.manual_seed(0)
        task = OmniSatClassification(**TOLD, lr=3e-3, modality_dropout=0.0, loss=loss)  # type: ignore[arg-type]
        make_trainer(tmp_path, max_steps=steps).fit(task, make_loader([make(0), make(1)]))
        rows = [row for row in read_csv(next(tmp_path.rglob('metrics.csv'))) if row['train_loss']]
        assert float(rows[-1]['train_loss']) < 0.3 * float(rows[0]['train_loss'])

    def test_checkpoint_is_plain_and_rebuilds(self, tmp_path: Path) -> None:
        task = OmniSatClassification(**TOLD)
        trainer = make_trainer(tmp_path, max_steps=1)
        trainer.fit(task, make_loader([make(0), make(1)]))
        trainer.save_checkpoint(tmp_path / 'last.ckpt', weights_only=False)
        told = torch.load(tmp_path / 'last.ckpt', weights_only=True)['hyper_parameters']
        assert told['label_names'] == LABELS
        assert not {'task', 'num_labels', 'num_classes', 'labels', 'ignore_index'} & told.keys()
        loaded = omnisat_classification.load_from_checkpoint(tmp_path / 'last.ckpt', weights_only=True)
        assert all(torch.equal(value, task.state_dict()[key]) for key, value in loaded.state_dict().items())

    def test_unknown_loss(self) -> None:
        with pytest.raises(ValueError, match=r"loss.*'ce'"):
            OmniSatClassification(**TOLD, loss='ce')  # type: ignore[arg-type]

    @pytest.mark.parametrize('names', [[], ['corn']])
    def test_one_label(self, names: list[str]) -> None:
        with pytest.raises(ValueError, match=rf'label_names is {re.escape(str(names))}, expected at least two'):
            OmniSatClassification(**{**TOLD, 'label_names': names})


class TestData:
    @pytest.mark.usefixtures('validation_figures')
    def test_crops_of_pastis(self, root: Path, tmp_path: Path) -> None:
        datamodule = make_datamodule(root, modalities=('s2',))
        task = OmniSatClassification('omnisat_tiny')
        trainer = make_trainer(tmp_path, limit_train_batches=1, max_steps=1, limit_val_batches=1)
        trainer.fit(task, datamodule=datamodule)
        assert task.hparams['label_names'] == list(datamodule.labels[1:19])
        assert list(tmp_path.rglob('figures/val/0/*.png'))

    def test_command_line(self, tmp_path: Path) -> None:
        write_treesatai(tmp_path / 'plots', TreeSatAIRecipe(num_tiles=5, dates=3))
        words = command(tmp_path / 'plots', tmp_path / 'out', 'fit', '--trainer.fast_dev_run', 'true')
        words[words.index('SyntheticLandscapesDataModule')] = 'TreeSatAITimeSeriesDataModule'
        words[words.index('omnisat')] = 'omnisat_classification'
        for argument in ('--data.num_tiles', '--data.dates'):
            place = words.index(argument)
            del words[place : place + 2]
        main([*words, '--model.backbone', 'omnisat_tiny'])

    @pytest.mark.usefixtures('validation_figures')
    @pytest.mark.skipif(not REAL.is_dir(), reason='needs the real plot')
    def test_real_plot(self, tmp_path: Path) -> None:
        """One plot under two names, as there is but one."""
        image, series = (next((REAL / folder).iterdir()) for folder in ('aerial', 'sentinel-ts'))
        for folder in ('aerial', 'labels', 'sentinel-ts', 'split'):
            (tmp_path / 'plots' / folder).mkdir(parents=True)
        plots = tmp_path / 'plots'
        for name, splits in (('one', ('train',)), ('two', ('val', 'test'))):
            shutil.copy(image, plots / f'aerial/{name}.tif')
            shutil.copy(series, plots / f'sentinel-ts/{name}_2019.h5')
            for split in splits:
                (plots / f'split/{split}_filenames.lst').write_text(f'{name}.tif')
        (shares,) = json.loads((REAL / LABELS_FILE).read_text()).values()
        (plots / LABELS_FILE).write_text(json.dumps({'one.tif': shares, 'two.tif': shares}))
        task = OmniSatClassification('omnisat_tiny')
        trainer = make_trainer(tmp_path, max_steps=1)
        trainer.fit(task, datamodule=TreeSatAITimeSeriesDataModule(str(plots)))
        assert task.hparams['label_names'] == list(GENERA)
        assert trainer.callback_metrics['train_loss'].isfinite()
        assert trainer.callback_metrics['val_loss'].isfinite()
        assert list(tmp_path.rglob('figures/val/0/*.png'))
