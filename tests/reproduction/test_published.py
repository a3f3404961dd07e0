# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Weights of the published form are evaluated as the published code does: one tile at a time, in plain loops."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import SHARED, write_pastis
from tests.models.encoders.test_weights import checkpoint, published_state
from torchgeo_omnisat.__main__ import main
from torchgeo_omnisat.datasets.pastis import FOLDS
from torchgeo_omnisat.models import UTAE
from torchgeo_omnisat.reproduction import published
from torchgeo_omnisat.reproduction.published import EXPECTED, NORMALIZATIONS, evaluate, published_run, verdict
from torchgeo_omnisat.reproduction.runs import Machine

START = np.datetime64('1970-01-01')
CLASSES, VOID = 20, 19


def weights_of(fold: int) -> dict[str, torch.Tensor]:
    """Random weights that do not predict one class everywhere."""
    state = published_state(fold)
    generator = torch.Generator().manual_seed(fold)
    for name, value in state.items():
        if value.is_floating_point() and not name.endswith(('running_var', 'running_mean')):
            scale = value[0].numel() ** -0.5 if value.ndim > 1 else 1.0
            state[name] = scale * torch.randn(value.shape, generator=generator)
    state['out_conv.conv.conv.4.bias'][VOID] += 1000  # the argmax of all classes is void at some pixels
    return state


@pytest.fixture(scope='module')
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('weights')
    for fold in FOLDS:
        (folder / f'Fold_{fold}').mkdir()
        (folder / f'Fold_{fold}/model.pth.tar').write_bytes(checkpoint(weights_of(fold)))
    return folder


@pytest.fixture(scope='module')
def pastis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Statistics differ by band, because U-TAE normalises images of one scale anyway."""
    root = write_pastis(tmp_path_factory.mktemp('pastis') / 'PASTIS-R', size=16)
    rng = np.random.default_rng(0)
    norm = {
        f'Fold_{k}': {'mean': list(rng.uniform(0, 8000, 10)), 'std': list(rng.uniform(500, 4000, 10))} for k in FOLDS
    }
    (root / 'NORM_S2_patch.json').write_text(json.dumps(norm))
    return root


def days_of(dates: Any) -> list[int]:
    """Days since 1970 of the dates of a patch, which are a mapping or a string."""
    days = (np.datetime64(f'{day[:4]}-{day[4:6]}-{day[6:]}') for day in re.findall(r'\d{8}', str(dates)))
    return [int((day - START).astype(int)) for day in days]


def reference(root: Path, fold: int) -> np.ndarray:
    """Confusion matrix of the test fold: raw files, statistics of the test fold, no batch, no padding."""
    (test,) = FOLDS[fold][2]
    model = UTAE.from_published(weights_of(fold))
    norm = json.loads((root / 'NORM_S2_patch.json').read_text())[f'Fold_{test}']
    mean, std = (np.array(norm[kind], np.float32)[:, None, None] for kind in ('mean', 'std'))
    counts = np.zeros((CLASSES, CLASSES), np.int64)
    for feature in json.loads((root / 'metadata.geojson').read_text())['features']:
        about = feature['properties']
        if about['Fold'] != test:
            continue
        image = np.load(root / f'DATA_S2/S2_{about["ID_PATCH"]}.npy').astype(np.float32)
        target = np.load(root / f'ANNOTATIONS/TARGET_{about["ID_PATCH"]}.npy')[0].astype(int)
        days = torch.tensor([days_of(about['dates-S2'])])
        with torch.inference_mode():
            logits = model(torch.from_numpy((image - mean) / std)[None], days, torch.ones_like(days, dtype=torch.bool))
        answer = logits[0, :VOID].argmax(0).numpy()
        for t, p in zip(target.ravel(), answer.ravel(), strict=True):
            if t != VOID:
                counts[t, p] += 1
    return counts


@pytest.mark.parametrize('fold', [1, 4])
def test_confusion_of_a_fold(pastis: Path, weights: Path, tmp_path: Path, fold: int) -> None:
    run = published_run('pastis', fold, str(weights))
    row = evaluate(run, tmp_path, str(pastis), Machine(weights=str(weights), accelerator='cpu'))
    counts = np.array(json.loads((tmp_path / run.key / 'confusion.json').read_text())['s2'])
    expected = reference(pastis, fold)
    assert (expected.sum(0) > 0).sum() > 3  # several classes are predicted
    assert np.array_equal(counts, expected)
    assert row['predicted_void'] > 0
    assert row['overall_accuracy'] == round(100 * np.trace(expected) / expected.sum(), 3)
    other = np.array(json.loads((tmp_path / run.key / 'normalizations.json').read_text())[NORMALIZATIONS[1]])
    assert not np.array_equal(other, counts)  # other statistics


def test_weights_are_part_of_the_key(weights: Path, tmp_path: Path) -> None:
    (tmp_path / 'Fold_1').mkdir()
    (tmp_path / 'Fold_1/model.pth.tar').write_bytes(checkpoint(weights_of(2)))
    keys = {published_run('pastis', 1, str(folder)).key for folder in (weights, tmp_path)}
    assert len(keys | {published_run('pastis', 1, None).key}) == 3
    with pytest.raises(FileNotFoundError, match=r'Fold_2/model\.pth\.tar'):
        published_run('pastis', 2, str(tmp_path))
    with pytest.raises(ValueError, match='flair'):
        published_run('flair', 1, str(weights))


def counts_with(iou: float) -> np.ndarray:
    """Two classes of equal IoU: 1000 hits each, and as many errors as make it."""
    counts = np.zeros((CLASSES, CLASSES), np.int64)
    wrong = round((1000 / iou - 1000) / 2)
    counts[0, 0] = counts[1, 1] = 1000
    counts[0, 1] = counts[1, 0] = wrong
    return counts


@pytest.mark.parametrize(
    ('score', 'folds', 'complete', 'said'),
    [
        (EXPECTED, 5, True, 'as published'),
        (EXPECTED + 0.25, 5, True, 'as published'),
        (EXPECTED + 0.5, 5, True, 'THE PIPELINE IS WRONG'),
        (EXPECTED - 0.5, 5, True, 'THE PIPELINE IS WRONG'),
        (EXPECTED - 5, 4, True, 'cannot be compared'),
        (EXPECTED - 5, 5, False, 'cannot be compared'),
        (EXPECTED, 5, False, 'cannot be compared'),
    ],
)
def test_verdict(score: float, folds: int, complete: bool, said: str) -> None:
    text = verdict(dict.fromkeys(list(FOLDS)[:folds], counts_with(score / 100)), complete)
    assert said in text
    assert f'{score:.1f}'[:3] in text


def test_verdict_is_of_the_summed_matrices() -> None:
    """The mean of the splits would be within the tolerance."""
    counts = {fold: counts_with(0.5 if fold == 1 else 0.66375) for fold in FOLDS}
    counts[1] = 100 * counts[1]
    assert 'WRONG' in verdict(counts, True)


def test_random_weights_on_another_dataset_say_that_they_cannot_be_compared(
    pastis: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ['--data', 'pastis', '--root', str(pastis), '--rows', 'published', '--weights', str(weights)]
    words += ['--output', str(tmp_path / 'out'), '--accelerator', 'cpu']
    assert main(['reproduce', *words]) == 0
    text = capsys.readouterr().out
    assert 'It cannot be compared with the published 63.1 %, because the data are not the whole of PASTIS' in text
    results = json.loads((tmp_path / 'out/results.json').read_text())
    (row,) = results['rows']
    total = sum(reference(pastis, fold) for fold in FOLDS)
    assert row['scores']['overall_accuracy']['mean'] == pytest.approx(100 * np.trace(total) / total.sum())
    assert len(row['runs']) == 5
    monkeypatch.setattr(published, 'count', lambda *_: pytest.fail('done again'))
    assert main(['reproduce', *words, '--no-check']) == 0


@pytest.mark.skipif(not SHARED.is_dir(), reason='needs real data')
def test_real_patches(weights: Path, tmp_path: Path) -> None:
    root = SHARED / 'pastis-r-mini'
    run = replace(published_run('pastis', 2, str(weights)), batch_size=1)
    evaluate(run, tmp_path, str(root), Machine(weights=str(weights), accelerator='cpu'))
    counts = np.array(json.loads((tmp_path / run.key / 'confusion.json').read_text())['s2'])
    assert np.array_equal(counts, reference(root, 2))
