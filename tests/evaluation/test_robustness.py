# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Scores of missing and degraded sensors are those of a loop that does it the long way."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from torchgeo_omnisat.batch import collate, drop
from torchgeo_omnisat.evaluation.robustness import KINDS, RobustnessTest, sensors
from torchgeo_omnisat.tasks import OmniSatClassification, OmniSatSegmentation, SupervisedTask

from ..tasks.helpers import MODALITIES, TOLD, make_loader, make_sample, make_trainer

GROUPS = {'s': ('s2', 's1a')}
FEW = {'dates': (40,), 'clouds': (50,), 'noise': (0,), 'cover': (50,)}
CLEAN = {kind: (found.clean,) for kind, found in KINDS.items()}


def make_task(kind: str = 'segmentation') -> SupervisedTask:
    torch.manual_seed(1)
    if kind == 'segmentation':
        return OmniSatSegmentation(**TOLD)
    told = {key: TOLD[key] for key in ('backbone', 'modalities', 'patch_size')}
    return OmniSatClassification(**told, label_names=['a', 'b'])


def make_samples() -> list[dict[str, Tensor]]:
    held = [('s2', 's1a', 'spot'), ('s2', 's1a', 'spot'), ('s2', 's1a'), ('spot',), ('s1a', 'spot')]
    samples = [make_sample(index, names) for index, names in enumerate(held)]
    for index, sample in enumerate(samples):
        sample['label'] = torch.tensor([index % 2, index % 3 > 0]).long()
    return samples


def run(folder: Path, task: SupervisedTask, samples: list[dict[str, Tensor]], **told: Any) -> RobustnessTest:
    test = RobustnessTest(task, **told)
    make_trainer(folder, logger=False).test(test, make_loader(samples), verbose=False)
    return test


@pytest.mark.parametrize('kind', ['segmentation', 'classification'])
def test_scores_are_those_of_a_naive_loop(kind: str, tmp_path: Path) -> None:
    """Every subset and degradation, a sample at a time, from the files to the score."""
    task, samples = make_task(kind), make_samples()
    rows, degraded = run(tmp_path, task, samples, groups=GROUPS, seed=3, levels=FEW).results()
    assert [row.subset for row in rows] == ['s+spot', 's', 'spot']

    def score(batches: list[dict[str, Tensor]]) -> tuple[float, float, int]:
        (scores,) = [task.make_scores(['all'])]
        for batch in batches:
            keys = [key for key in batch if key.startswith('valid')]
            if keys and any(batch[key].any() for key in keys):
                with torch.no_grad():
                    out = task.model(batch)
                every = torch.ones(1, dtype=torch.bool)
                scores.update(('all',), task.answer(out), task.truth(batch), every[:, None], every)
        (row,) = scores.compute()
        return row.score, list(row.scores.values())[1], row.samples

    alone = [collate([sample], MODALITIES) for sample in samples]
    for row, names in zip(rows, (tuple(MODALITIES), ('s2', 's1a'), ('spot',)), strict=True):
        gone = [m for m in MODALITIES.values() if m.name not in names]
        assert (row.score, list(row.scores.values())[1], row.samples) == pytest.approx(
            score([drop(batch, gone) for batch in alone])
        )
    assert [(row.samples, row.complete_samples, row.blind_samples) for row in rows] == [(5, 3, 0), (4, 4, 1), (4, 4, 1)]
    for name, levels in degraded.items():
        assert levels[0] == (KINDS[name].clean, rows[0])
        for level, row in levels[1:]:
            transform = KINDS[name].make(MODALITIES, level, 3)
            naive = [transform(batch | {'index': torch.tensor([i])}) for i, batch in enumerate(alone)]
            assert (row.score, list(row.scores.values())[1], row.samples) == pytest.approx(score(naive)), (name, level)
    assert list(degraded) == list(KINDS)


def test_nothing_lost_is_the_clean_score_exactly(tmp_path: Path) -> None:
    rows, degraded = run(tmp_path, make_task(), make_samples(), levels=CLEAN).results()
    for levels in degraded.values():
        (_, whole), (_, again) = levels
        assert again == whole == rows[0]


def test_what_is_absent_has_no_influence(tmp_path: Path) -> None:
    """Other content of one sensor changes the scores of subsets with it, and no other bit."""
    samples = make_samples()
    before, _ = run(tmp_path, make_task(), samples, kinds=()).results()
    other = [sample | {'image_s2': 9 * sample['image_s2']} if 'image_s2' in sample else sample for sample in samples]
    after, _ = run(tmp_path, make_task(), other, kinds=()).results()
    changed = {one.subset for one, two in zip(before, after, strict=True) if one != two}
    assert changed == {row.subset for row in before if 's2' in row.subset.split('+')}


def test_each_tile_is_encoded_once_and_again_where_it_is_degraded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, calls = make_task(), []
    for name, encoder in task.model.backbone.encoders.items():
        encoder.register_forward_hook(lambda *_, name=name: calls.append(name))
    samples = [make_sample(index) for index in range(2)]
    run(tmp_path, task, samples, kinds=())
    assert sorted(calls) == ['s1a', 's2', 'spot']
    calls.clear()
    run(tmp_path, task, samples, kinds=('clouds', 'cover'), levels={'clouds': (50,), 'cover': (50, 25)})
    assert sorted(calls) == ['s1a', *['s2'] * 2, *['spot'] * 3]


@pytest.mark.parametrize('kind', KINDS)
def test_a_degradation_changes_what_the_model_receives(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, received = make_task(), []
    encode = type(task.model.backbone).encode

    def spy(self: Any, batch: dict[str, Tensor]) -> Any:
        received.append(dict(batch))
        return encode(self, batch)

    monkeypatch.setattr(type(task.model.backbone), 'encode', spy)
    run(tmp_path, task, [make_sample(1)], kinds=(kind,), levels={kind: (40,)})
    clean, less = received
    concerned = {n for n, m in MODALITIES.items() if KINDS[kind].transform.concerns(m)}
    assert {key for key in less if key.startswith('image')} == {f'image_{name}' for name in concerned}
    for name in concerned:
        keys = (f'image_{name}', f'valid_{name}')
        assert any(not torch.equal(clean[key].nan_to_num(nan=-9), less[key].nan_to_num(nan=-9)) for key in keys)


def test_the_same_again_whatever_the_batch(tmp_path: Path) -> None:
    """Draws belong to seed and place."""
    samples = make_samples()
    one = run(tmp_path, make_task(), samples, levels=FEW).results()
    test = RobustnessTest(make_task(), levels=FEW)
    loader = torch.utils.data.DataLoader(samples, batch_size=5, collate_fn=lambda s: collate(s, MODALITIES))
    make_trainer(tmp_path, logger=False).test(test, loader, verbose=False)
    found, expected = (
        [row.scores['overall_accuracy'] for levels in degraded.values() for _, row in levels]
        for degraded in (test.results()[1], one[1])
    )
    assert found == pytest.approx(expected, abs=2e-3)  # other sums of floats may turn a pixel over
    other = run(tmp_path, make_task(), samples, seed=1, levels=FEW).results()
    assert other[0] == one[0]
    assert other[1] != one[1]


def test_what_does_not_apply_is_left_out(tmp_path: Path) -> None:
    task = OmniSatSegmentation(**TOLD | {'modalities': {'spot': MODALITIES['spot']}})
    _, degraded = run(tmp_path, task, [make_sample(0, ('spot',))]).results()
    assert list(degraded) == ['noise', 'cover']
    assert [level for level, _ in degraded['noise']] == [math.inf, 20, 10, 5, 0]


def test_blind_batch_is_counted(tmp_path: Path) -> None:
    """No sample of it has anything that the model takes."""
    task = OmniSatSegmentation(**TOLD | {'modalities': {'spot': MODALITIES['spot']}})
    samples = [make_sample(0, ('spot',)), make_sample(1, ('spot',)), make_sample(2, ())]
    rows, degraded = run(tmp_path, task, samples, levels=FEW).results()
    assert [(row.samples, row.blind_samples) for row in rows] == [(2, 1)]
    assert all((row.samples, row.blind_samples) == (2, 1) for levels in degraded.values() for _, row in levels)


class TestSensors:
    def test_grouped(self) -> None:
        names = ['s2', 's1a', 's1d', 'spot']
        found = sensors(names, {'s1': ('s1a', 's1d'), 'other': ('aerial',)})
        assert found == {'s2': ('s2',), 's1': ('s1a', 's1d'), 'spot': ('spot',)}
        assert sensors(names, {'spot': ('spot', 's2')}) == {'spot': ('s2', 'spot'), 's1a': ('s1a',), 's1d': ('s1d',)}

    def test_nonsense_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r'\bs2\b'):
            sensors(['s2'], {'a': ('s2',), 'b': ('s2',)})
        with pytest.raises(ValueError, match=r"groups.*\['spot'\]"):
            sensors(['s2', 'spot'], {'spot': ('s2',)})
        with pytest.raises(ValueError, match=r"degradations.*\['fog'\]"):
            RobustnessTest(make_task(), kinds=('fog',))

    def test_data_without_the_target(self, tmp_path: Path) -> None:
        sample = {key: value for key, value in make_sample(0).items() if key != 'mask'}
        with pytest.raises(ValueError, match=r"'mask'.*OmniSatSegmentation"):
            run(tmp_path, make_task(), [sample])
