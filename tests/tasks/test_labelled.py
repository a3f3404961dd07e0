# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Epochs and batches without labels, and classes in another order than the checkpoint's."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from torchgeo_omnisat.tasks import OmniSatClassification, OmniSatSegmentation
from torchgeo_omnisat.tasks.supervised import MeanLoss, check_classes

from .helpers import TOLD, make_datamodule, make_loader, make_sample, make_trainer


def blank(index: int) -> dict[str, torch.Tensor]:
    """A sample whose pixels all have the ignored label."""
    sample = make_sample(index)
    return sample | {'mask': torch.full_like(sample['mask'], TOLD['ignore_index'])}


def test_mean_is_over_labelled_samples() -> None:
    mean = MeanLoss()
    for loss, weight in ((1.0, 2), (0.0, 0), (float('nan'), 0), (4.0, 1)):
        mean.update(torch.tensor(loss), torch.tensor(weight))
    assert mean.compute().tolist() == [2.0, 3.0]
    mean.update(torch.tensor(float('nan')), torch.tensor(1))
    assert mean.compute()[0].isnan(), 'a loss that is NaN must show'


def test_a_validation_without_labels_logs_nothing_and_is_not_the_best(tmp_path: Path) -> None:
    task = OmniSatSegmentation(**TOLD, scheduler='plateau')
    best, early = ModelCheckpoint(tmp_path / 'best', monitor='val_loss'), EarlyStopping('val_loss')
    trainer = make_trainer(tmp_path, callbacks=[best, early], enable_checkpointing=True, max_steps=4)
    with pytest.warns(UserWarning, match=r"'val'.*ModelCheckpoint.*'val_loss'"):
        trainer.fit(task, make_loader([make_sample(0), make_sample(1)]), make_loader([blank(2), blank(3)]))
    assert trainer.global_step == 4
    assert not [name for name in trainer.callback_metrics if name.startswith('val_')]
    assert 'train_loss' in trainer.callback_metrics
    assert best.best_model_score is None
    assert Path(best.best_model_path).exists()


def test_batches_without_labels_do_not_count(tmp_path: Path) -> None:
    task, some = OmniSatSegmentation(**TOLD), [make_sample(0), make_sample(1)]
    (full,) = make_trainer(tmp_path).validate(task, make_loader(some), verbose=False)
    (diluted,) = make_trainer(tmp_path).validate(task, make_loader([*some, blank(2), blank(3)]), verbose=False)
    assert diluted == pytest.approx(full)
    assert full['val_loss'] > 0


def test_a_test_without_labels_has_no_score(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="'test'"):
        (logged,) = make_trainer(tmp_path).test(OmniSatSegmentation(**TOLD), make_loader([blank(0)]), verbose=False)
    assert logged == {}


def test_a_training_batch_without_labels_logs_no_loss_and_changes_no_weight(tmp_path: Path) -> None:
    task = OmniSatSegmentation(**TOLD, weight_decay=0)
    before = {name: value.clone() for name, value in task.named_parameters()}
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.fit(task, make_loader([blank(0), blank(1)]))
    assert 'train_loss' not in trainer.callback_metrics
    assert all(torch.equal(value, before[name]) for name, value in task.named_parameters())


@pytest.mark.parametrize(
    ('theirs', 'alone', 'value'),
    [(['b', 'a'], True, r'\[a, b\]'), (['a', 'c'], False, r"\['b'\] .*\['c'\]"), (['a'], False, r"\['b'\]")],
)
def test_other_classes_are_refused_with_the_order_to_use(theirs: list[str], alone: bool, value: str) -> None:
    with pytest.raises(ValueError, match=value):
        check_classes('data', theirs, ['a', 'b'], alone)


@pytest.mark.parametrize(
    ('theirs', 'alone'), [(['a', 'b'], False), ([], False), (None, False), (['0', '1'], False), (['a', 'c'], True)]
)
def test_the_same_or_unnamed_classes_fit(theirs: Any, alone: bool) -> None:
    check_classes('data', theirs, ['a', 'b'], alone)


def test_data_in_another_order_than_the_checkpoint_are_refused(fitted: Path, root: Path, tmp_path: Path) -> None:
    task = OmniSatSegmentation.load_from_checkpoint(fitted, weights_only=True)
    datamodule = make_datamodule(root)
    datamodule.labels = [*datamodule.labels[1:], datamodule.labels[0]]
    with pytest.raises(ValueError, match=f'labels.*{datamodule.labels[-1]}'):
        make_trainer(tmp_path).test(task, datamodule=datamodule, verbose=False)
    moved = make_datamodule(root)
    moved.ignore_index = 3
    with pytest.raises(ValueError, match=r'ignore_index .* 3.* 19'):
        make_trainer(tmp_path).test(task, datamodule=moved, verbose=False)
    # A model that is new asks the data, and only the checkpoint knows better.
    with pytest.raises(ValueError, match='another order'):
        make_trainer(tmp_path).test(OmniSatSegmentation('omnisat_tiny'), datamodule=datamodule, ckpt_path=fitted)


def test_a_checkpoint_that_knows_no_labels_still_loads(tmp_path: Path) -> None:
    task = OmniSatSegmentation(**{**TOLD, 'labels': None})
    trainer = make_trainer(tmp_path)
    trainer.fit(task, make_loader([make_sample(0)]))
    trainer.save_checkpoint(tmp_path / 'old.ckpt')
    (logged,) = make_trainer(tmp_path).test(
        OmniSatSegmentation(**TOLD), make_loader([make_sample(0)]), tmp_path / 'old.ckpt', verbose=False
    )
    assert logged['test_loss'] > 0


def test_labels_of_tiles_always_count() -> None:
    task = OmniSatClassification('omnisat_tiny', TOLD['modalities'], ['a', 'b'], 40.0)
    assert task.labelled({'label': torch.zeros(3, 2)}).tolist() == [True] * 3
