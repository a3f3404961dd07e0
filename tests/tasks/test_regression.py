# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""OmniSatRegression: labelled pixels alone count, values are in the unit of the target, every subset is scored."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from torchgeo_omnisat.batch import collate
from torchgeo_omnisat.tasks import OmniSatRegression, OmniSatSegmentation
from torchgeo_omnisat.tasks.regression import RegressionLoss
from torchgeo_omnisat.transforms import RandomDihedral, RandomGroundAffine, RandomGroundCrop

from .helpers import MODALITIES, make_loader, make_sample, make_trainer, read_csv

GIVEN: dict[str, Any] = {
    'backbone': 'omnisat_tiny',
    'modalities': MODALITIES,
    'patch_size': 40.0,
    'label_gsd': 10.0,
    'target_mean': 150.0,
    'target_std': 40.0,
}


def sample(index: int, names: tuple[str, ...] = tuple(MODALITIES), offset: float = 100.0) -> dict[str, Tensor]:
    """A sample whose images show its values, without a label in the first two rows."""
    made = make_sample(index, names)
    made['mask'] = offset + 25.0 * made['mask'].float()
    made['mask'][:2] = torch.nan
    return made


def make_task(**changes: Any) -> OmniSatRegression:
    torch.manual_seed(0)
    task = OmniSatRegression(**GIVEN | changes)
    task.allow_random = True
    return task


SAMPLES = [sample(0), sample(1, ('s2',)), sample(2, ('s1a', 'spot')), sample(3)]


@pytest.fixture(scope='module')
def task() -> OmniSatRegression:
    return make_task().eval()


def gradients(task: OmniSatRegression, loss: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(loss, list(task.model.parameters()), allow_unused=True)
    return [torch.zeros(1) if one is None else one for one in found]


def test_batch_neighbours_padding_and_absent_sensors_do_not_matter(task: OmniSatRegression) -> None:
    together = task.predict_step(collate(SAMPLES, MODALITIES), 0)['values']
    assert together is not None
    assert together.shape == (4, 1, 16, 16)
    for index, one in enumerate(SAMPLES):
        alone = task.predict_step(collate([one], MODALITIES), 0)['values']
        torch.testing.assert_close(alone, together[index : index + 1], rtol=1e-4, atol=1e-2)
    batch = collate(SAMPLES, MODALITIES)
    batch['image_spot'][1] = 1e3
    torch.testing.assert_close(task.predict_step(batch, 0)['values'], together)


@pytest.mark.parametrize('settings', [{}, {'experts': False}, {'subset_weight': 1.0, 'modality_dropout': 0.5}])
def test_unlabelled_pixels_do_not_count(settings: dict[str, Any]) -> None:
    task = make_task(**{'modality_dropout': 0.0} | settings)
    results = []
    for value in (torch.nan, -1.0, torch.inf):
        task.save_hyperparameters({'nodata': -1.0})
        batch = collate(SAMPLES[:2], MODALITIES)
        batch['mask'][:, :2] = value
        torch.manual_seed(0)
        _, loss = task.learn(batch)
        results.append([loss, *gradients(task, loss)])
    for other in results[1:]:
        torch.testing.assert_close(other, results[0])
    changed = collate(SAMPLES[:2], MODALITIES)
    changed['mask'][:, 5] += 100
    assert not torch.equal(task.learn(changed)[1], results[0][0])


def test_batch_without_labels_has_no_loss_and_no_gradient() -> None:
    task = make_task()
    batch = collate(SAMPLES, MODALITIES)
    batch['mask'][:] = torch.nan
    _, loss = task.learn(batch)
    assert loss.item() == 0
    assert all(not one.any() for one in gradients(task, loss))
    assert not task.labelled(batch).any()


@pytest.mark.parametrize(('kind', 'expected'), [('mse', 1.25), ('l1', 1.0), ('smooth_l1', (0.125 + 1.0) / 2)])
def test_loss_of_standardised_values(kind: str, expected: float) -> None:
    target = torch.tensor([[[10.0, 26.0, torch.nan]]])  # -2 and 2 standard deviations
    values = torch.tensor([[[[-1.5, 0.5, 9.0]]]], requires_grad=True)
    loss = RegressionLoss(kind, 4.0, 18.0)(values, target)
    (gradient,) = torch.autograd.grad(loss, values)
    assert loss.item() == pytest.approx(expected)
    assert (gradient != 0).flatten().tolist() == [True, True, False]


def test_metrics_are_those_of_all_labelled_pixels(task: OmniSatRegression) -> None:
    metrics, errors, truths = task.make_metrics(), [], []
    generator = torch.Generator().manual_seed(0)
    for number in range(5):
        truth = 1e4 + torch.randn(2, 6, 6, generator=generator) * (number + 1)
        answer = truth + torch.randn(2, 6, 6, generator=generator)
        truth[:, number:] = torch.nan
        for metric in metrics.values():
            metric.update(answer, truth)
        known = truth.isfinite()
        errors.append((answer - truth)[known].double().numpy())
        truths.append(truth[known].double().numpy())
    error, truth = np.concatenate(errors), np.concatenate(truths)
    r2 = 1 - (error**2).sum() / ((truth - truth.mean()) ** 2).sum()
    expected = {'MAE': np.abs(error).mean(), 'RMSE': np.sqrt((error**2).mean()), 'R2': r2}
    for name, metric in metrics.items():
        assert metric.compute().item() == pytest.approx(expected[name], rel=1e-6)


def test_sums_of_ranks_are_the_metrics_of_all(task: OmniSatRegression) -> None:
    truth = torch.arange(64.0).view(4, 4, 4)
    answer = truth + torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(0))
    for name, whole in task.make_metrics().items():
        ranks = [task.make_metrics()[name] for _ in range(3)]
        whole.update(answer, truth)
        for rank, part in zip(ranks, (slice(0, 1), slice(1, 4)), strict=False):  # the last rank has no tile
            rank.update(answer[part], truth[part])
        states = [rank.metric_state for rank in ranks]
        assert {key: value.dtype for key, value in states[2].items()} == {k: v.dtype for k, v in states[0].items()}
        for key in states[0]:
            setattr(ranks[0], key, torch.stack([state[key] for state in states]).sum(0))
        assert ranks[0].compute().item() == pytest.approx(whole.compute().item(), rel=1e-9)


def test_test_scores_every_subset(tmp_path: Path) -> None:
    task = make_task()
    trainer = make_trainer(tmp_path)
    (logged,) = trainer.test(task, make_loader(SAMPLES), verbose=False)
    rows = {row['subset']: row for row in read_csv(task.folder / 'subsets.csv')}
    assert len(rows) == 7
    for name, scored in (('s2', [0, 1, 3]), ('s1a+s2+spot', [0, 1, 2, 3])):
        row, kept = rows[name], [SAMPLES[index] for index in scored]
        removed = {key for one in set(MODALITIES) - set(name.split('+')) for key in MODALITIES[one].keys}
        batch = collate([{k: v for k, v in one.items() if k not in removed} for one in kept], MODALITIES)
        error = task.predict_step(batch, 0)['values'][:, 0] - batch['mask']  # type: ignore[index]
        error = error[error.isfinite()].double()
        assert float(row['mae']) == pytest.approx(error.abs().mean().item(), rel=1e-4)
        assert float(row['rmse']) == pytest.approx(error.square().mean().sqrt().item(), rel=1e-4)
        assert int(row['samples']) == len(scored)
    assert float(rows['s1a+s2+spot']['r2']) == pytest.approx(logged['test_R2'], abs=1e-5)
    assert logged['test_R2/s2'] == pytest.approx(float(rows['s2']['r2']), abs=1e-5)
    assert {'test_MAE', 'test_RMSE', 'test_loss'} <= set(logged)


def test_training_and_checkpoint_keep_the_unit(tmp_path: Path) -> None:
    samples = [sample(index, offset=3000.0) for index in range(4)]
    task = make_task(target_mean=3050.0, target_std=35.0)
    trainer = make_trainer(tmp_path, max_steps=6)
    trainer.fit(task, make_loader(samples), make_loader(samples))
    trainer.save_checkpoint(tmp_path / 'last.ckpt')
    batch = collate(samples, MODALITIES)
    values = task.eval().predict_step(batch, 0)['values']
    assert values is not None
    assert (values - 3050).abs().mean() < 100
    loaded = OmniSatRegression.load_from_checkpoint(tmp_path / 'last.ckpt').eval()
    torch.testing.assert_close(loaded.predict_step(batch, 0)['values'], values)


def test_checkpoint_from_before_decoders_had_a_width() -> None:
    old, task = make_task(), make_task(decoder_width=48)
    saved = {name: value for name, value in old.hparams.items() if name != 'decoder_width'}
    task.on_load_checkpoint({'state_dict': old.state_dict(), 'hyper_parameters': saved})
    task.load_state_dict(old.state_dict())
    assert task.hparams['decoder_width'] == 32


def test_dropout_of_the_decoder() -> None:
    parts = make_task(decoder_dropout=0.3).model.modules()
    assert {part.p for part in parts if isinstance(part, nn.Dropout2d)} == {0.3}


def test_constant_target_is_predicted(tmp_path: Path) -> None:
    samples = [{**one, 'mask': torch.full((16, 16), 7.0)} for one in SAMPLES]
    task = make_task(target_mean=7.0, target_std=0.0)
    make_trainer(tmp_path, max_steps=20).fit(task, make_loader(samples))
    values = task.eval().predict_step(collate(samples, MODALITIES), 0)['values']
    assert values is not None
    assert (values - 7).abs().mean() < 0.5


def test_all_unlabelled_training_keeps_finite_weights(tmp_path: Path) -> None:
    samples = [{**one, 'mask': torch.full((16, 16), torch.nan)} for one in SAMPLES]
    task = make_task()
    with pytest.warns(UserWarning, match="'train' has no labels"):
        make_trainer(tmp_path).fit(task, make_loader(samples))
    assert all(parameter.isfinite().all() for parameter in task.parameters())


def test_transforms_move_values_with_the_ground() -> None:
    batch = collate(SAMPLES[:1] * 2, MODALITIES)
    del batch['bounds']
    batch['image_spot'] = batch['mask'].repeat_interleave(2, 1).repeat_interleave(2, 2)[:, None]
    for transform in (RandomDihedral(MODALITIES), RandomGroundCrop(MODALITIES, 80.0, 40.0)):
        torch.manual_seed(3)
        moved = transform(batch)
        torch.testing.assert_close(moved['mask'], moved['image_spot'][:, 0, ::2, ::2], equal_nan=True)


def test_values_beyond_a_moved_tile_are_unknown() -> None:
    batch = collate(SAMPLES[:1], MODALITIES)
    del batch['bounds']
    batch['mask'] = torch.ones(1, 16, 16)
    moved = RandomGroundAffine(MODALITIES, degrees=0, scale=(0.5, 0.5), translate=0)(batch)['mask']
    assert set(moved[moved.isfinite()].tolist()) == {1.0}
    assert moved.isnan().sum() == 16 * 16 - 8 * 8


def test_tta_averages_flips(task: OmniSatRegression) -> None:
    batch = collate(SAMPLES, MODALITIES)
    task.tta = True
    try:
        averaged = task.predict_step(batch, 0)['values']
        flipped = {key: value.flip(-1) if key.startswith('image') else value for key, value in batch.items()}
        other = task.predict_step(flipped, 0)['values']
    finally:
        task.tta = False
    assert averaged is not None
    assert other is not None
    torch.testing.assert_close(averaged, other.flip(-1), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(
    'settings', [{'target_std': -1.0}, {'target_mean': float('nan')}, {'loss': 'huber'}, {'subset_weight': -1.0}]
)
def test_invalid_arguments(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r'-1|nan|huber'):
        make_task(**settings)


def test_labels_of_classes_are_an_error() -> None:
    task = make_task()
    task.trainer = SimpleNamespace(datamodule=SimpleNamespace(continuous=False), predicting=False)  # type: ignore[assignment]
    with pytest.raises(ValueError, match='continuous'):
        task.configure_model()
    flat = collate(SAMPLES, MODALITIES)
    with pytest.raises(ValueError, match=r'\(4, 1, 16, 16\)'):
        make_task().target_of({**flat, 'mask': flat['mask'][:, None]})


def test_segmentation_has_the_same_shared_arguments() -> None:
    assert OmniSatSegmentation.ignore == OmniSatRegression.ignore
