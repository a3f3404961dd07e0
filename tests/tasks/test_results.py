# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""What `test` and `validate` print and write."""

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from torchgeo_omnisat.tasks import OmniSatClassification, OmniSatRegression, OmniSatSegmentation
from torchgeo_omnisat.tasks.console.results import Examples

from .helpers import TOLD, make_datamodule, make_loader, make_sample, make_trainer


@pytest.fixture(scope='module')
def tested(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp('tested')
    torch.manual_seed(0)
    trainer = make_trainer(folder)
    task = OmniSatSegmentation(**TOLD)
    (scores,) = trainer.test(task, make_loader([make_sample(i) for i in range(3)]), verbose=False)
    return trainer, scores, Path(trainer.log_dir)


def test_files_agree_with_logged_metrics(tested: Any) -> None:
    _, logged, folder = tested
    classes = pd.read_csv(folder / 'classes.csv').set_index('class')
    for name in ('a', 'b', 'c', 'd'):
        for column, metric in {'iou': 'JaccardIndex', 'f1': 'F1Score', 'recall': 'Accuracy'}.items():
            assert classes.loc[name, column] == pytest.approx(logged[f'test_Classwise{metric}_{name}'], abs=1e-6)
    assert classes['iou'].mean() == pytest.approx(logged['test_AverageJaccardIndex'], abs=1e-6)
    matrix = pd.read_csv(folder / 'confusion.csv', index_col=0)
    truth = torch.cat([make_sample(i)['mask'].flatten() for i in range(3)])
    assert matrix.sum(axis=1).tolist() == [int((truth == k).sum()) for k in range(4)] + [0]
    assert np.trace(matrix) / matrix.to_numpy().sum() == pytest.approx(logged['test_OverallAccuracy'], abs=1e-6)
    scores = pd.read_csv(folder / 'scores.csv').set_index('metric')['score']
    assert scores['AverageJaccardIndex'] == pytest.approx(logged['test_AverageJaccardIndex'], abs=1e-6)
    assert (folder / 'confusion.png').stat().st_size > 1000


def test_every_metric_is_logged_and_a_short_table_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = make_trainer(tmp_path)
    (logged,) = trainer.test(OmniSatSegmentation(**TOLD), make_loader([make_sample(0)]))
    text = capsys.readouterr().out
    assert len(logged) > 30
    assert 'ClasswiseAccuracy' not in text
    assert f'mean IoU {logged["test_AverageJaccardIndex"]:.3f}' in text
    lines = text.splitlines()
    assert len(lines) < 35
    (row,) = (line.split() for line in lines if line.startswith('a '))
    assert row[2] == f'{logged["test_ClasswiseJaccardIndex_a"]:.3f}'
    assert any(line.startswith('s1a+s2+spot ') for line in lines)
    assert 'confusion.csv' in text


def test_silence_and_validation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer, task = make_trainer(tmp_path), OmniSatSegmentation(**TOLD)
    loader = make_loader([make_sample(0)])
    trainer.test(task, loader, verbose=False)
    trainer.validate(task, loader, verbose=False)
    assert 'mean IoU' not in capsys.readouterr().out
    trainer.validate(task, loader)
    text = capsys.readouterr().out
    assert 'Validation' in text
    assert 'mean IoU' in text
    assert len(text.splitlines()) < 15


def test_classification(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = {name: TOLD[name] for name in ('backbone', 'modalities', 'patch_size')}
    samples = [make_sample(i) | {'label': torch.tensor([1.0, i % 2, 0])} for i in range(3)]
    trainer = make_trainer(tmp_path)
    task = OmniSatClassification(label_names=['x', 'y', 'z'], **told)
    (logged,) = trainer.test(task, make_loader(samples))
    classes = pd.read_csv(Path(trainer.log_dir or '') / 'classes.csv').set_index('class')
    assert classes['tiles'].tolist() == [3, 1, 0]
    for name in ('x', 'y'):
        assert classes.loc[name, 'f1'] == pytest.approx(logged[f'test_ClasswiseF1Score_{name}'], abs=1e-6)
    assert f'macro F1 {logged["test_AverageF1Score"]:.3f}' in capsys.readouterr().out


def test_regression(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = {name: TOLD[name] for name in ('backbone', 'modalities', 'patch_size', 'label_gsd')}
    trainer = make_trainer(tmp_path)
    (logged,) = trainer.test(OmniSatRegression(target_mean=2.0, target_std=1.0, **told), make_loader([make_sample(0)]))
    text = capsys.readouterr().out
    assert f'R2 {logged["test_R2"]:.3f}, MAE {logged["test_MAE"]:.3f}, RMSE {logged["test_RMSE"]:.3f}' in text
    assert len(text.splitlines()) < 20


def test_examples(tmp_path: Path, validation_figures: None) -> None:
    """Figures of some tiles, with the classes that they show."""
    trainer = make_trainer(tmp_path)
    trainer.test(OmniSatSegmentation('omnisat_tiny'), datamodule=make_datamodule(tmp_path / 'data'), verbose=False)
    folder = Path(trainer.log_dir or '') / 'examples'
    examples = json.loads((folder / 'examples.json').read_text())
    assert 1 <= len(examples) <= 8
    assert {path.name for path in folder.glob('*.png')} == set(examples)
    assert any(names for names in examples.values())


def test_examples_show_new_classes(tmp_path: Path) -> None:
    examples = Examples(tmp_path, ['a', 'b', 'c'])
    there = torch.tensor([[1, 0, 0], [1, 1, 0]]).bool()
    assert examples.choose(there) == 1
    for number in range(4):
        examples.add(there[1], plt.figure)
        assert examples.files[f'{number}.png'] == ['a', 'b']
    assert examples.choose(there) is None
    assert examples.choose(torch.tensor([[1, 1, 0], [0, 0, 1]]).bool()) == 1
