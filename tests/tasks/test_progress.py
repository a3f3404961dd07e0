# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""What a training says on the console."""

import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import RichModelSummary, RichProgressBar, TQDMProgressBar

from torchgeo_omnisat.tasks import OmniSatPretraining, OmniSatSegmentation
from torchgeo_omnisat.tasks.console.overview import count_parts, shorten_defaults
from torchgeo_omnisat.tasks.console.progress import EpochSummary

from .helpers import TOLD, make_loader, make_sample, make_trainer

LINE = re.compile(
    r'epoch (\d) of 3: train loss [\d.]+, validation loss [\d.]+, mean IoU ([\d.]+) '
    r'\(best (?:so far|([\d.]+) in epoch (\d))\); \d+ s'
)


def fit(folder: Path, bar: bool | Any, **kwargs: Any) -> tuple[Trainer, OmniSatSegmentation]:
    torch.manual_seed(0)
    task = OmniSatSegmentation(**TOLD)
    callbacks = {} if isinstance(bar, bool) else {'callbacks': [bar]}
    shown = {'enable_progress_bar': bar is not False}
    trainer = make_trainer(folder, **{'max_epochs': 3, 'max_steps': -1, **callbacks, **shown, **kwargs})
    loader = make_loader([make_sample(i) for i in range(2)])
    trainer.fit(task, loader, loader)
    return trainer, task


@pytest.mark.parametrize('bar', [RichProgressBar, TQDMProgressBar])
def test_one_line_an_epoch_without_terminal(bar: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer, _ = fit(tmp_path, bar())
    captured = capsys.readouterr()
    lines = list(LINE.finditer(captured.out + captured.err))
    assert [line[1] for line in lines] == ['1', '2', '3']
    logged = float(trainer.callback_metrics['val_AverageJaccardIndex'])
    assert lines[-1][2] == f'{logged:.3f}'
    scores = [float(line[2]) for line in lines]
    for number, line in enumerate(lines):
        best = max(scores[: number + 1])
        assert (line[3] is None) == (scores[number] == best)
        assert line[3] is None or (float(line[3]) == best and scores[int(line[4]) - 1] == best)
    assert 'val_AverageJaccardIndex' in trainer.progress_bar_metrics


def test_without_a_bar_it_is_logged(tmp_path: Path, caplog: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with caplog.at_level('INFO'):
        fit(tmp_path, False)
    assert 'epoch 3 of 3' in caplog.text + capsys.readouterr().err


@pytest.mark.parametrize('bar', [RichProgressBar, TQDMProgressBar])
def test_defaults_of_lightning_are_shortened(
    bar: Any, tmp_path: Path, caplog: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    callbacks = [RichModelSummary(), bar()]
    trainer = make_trainer(
        tmp_path, max_epochs=2, max_steps=-1, callbacks=callbacks, enable_progress_bar=True, enable_model_summary=True
    )
    shorten_defaults(trainer, ['lightning.pytorch.callbacks.RichModelSummary', bar.__name__])
    kinds = [type(callback) for callback in trainer.callbacks]  # type: ignore[attr-defined]
    assert kinds[:2] == [RichModelSummary, bar]
    shorten_defaults(trainer)
    task, loader = OmniSatSegmentation(**TOLD), make_loader([make_sample(i) for i in range(2)])
    with caplog.at_level('INFO'):
        trainer.fit(task, loader, loader)
    shown = capsys.readouterr()
    text = shown.out + shown.err + caplog.text
    assert 'Epoch 2' in text
    assert not re.search(r'FLOPs|v_num|val_Average|Epoch 0', text)
    parts = count_parts(task)
    assert next(iter(parts)) == 'encoders'
    assert sum(parts.values()) == sum(p.numel() for p in task.parameters())
    assert re.search(r'Model: [\d.]+ [KM] parameters \(encoders [\d.]+ [KM], heads ', text)


def test_remaining_time_is_proportional(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    summary = EpochSummary('val_x', 'x', 'max')
    trainer: Any = type('T', (), {'estimated_stepping_batches': 100, 'global_step': 25})
    summary._began, summary._first = 1000.0, 5
    monkeypatch.setattr('torchgeo_omnisat.tasks.console.progress.time.monotonic', lambda: 1040.0)
    assert summary._left(trainer) == pytest.approx(40 / 20 * 75)
    trainer.estimated_stepping_batches = float('inf')
    assert summary._left(trainer) is None


def test_the_first_of_equal_scores_is_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(EpochSummary, '_say', lambda self, trainer, text: said.append(text))
    summary = EpochSummary('val_x', 'x', 'max')
    for epoch in (0, 1):
        trainer: Any = SimpleNamespace(
            current_epoch=epoch, max_epochs=2, max_steps=-1, global_step=epoch, is_last_batch=True,
            sanity_checking=False, callback_metrics={'val_x': torch.tensor(0.7)}, estimated_stepping_batches=math.inf,
        )  # fmt: skip
        summary.on_train_epoch_start(trainer, None)
        summary.on_validation_end(trainer, None)
        summary.on_train_epoch_end(trainer, None)
    assert [line.partition('; ')[0] for line in said] == [
        'epoch 1 of 2: x 0.700 (best so far)',
        'epoch 2 of 2: x 0.700 (best 0.700 in epoch 1)',
    ]


def test_best_score_survives_a_resumed_training(tmp_path: Path, caplog: Any) -> None:
    trainer, _ = fit(tmp_path, False, max_epochs=1)
    trainer.save_checkpoint(tmp_path / 'a.ckpt')
    (first,) = [c for c in trainer.callbacks if isinstance(c, EpochSummary)]  # type: ignore[attr-defined]
    assert first.best is not None
    later = make_trainer(tmp_path, max_epochs=1, max_steps=-1)
    loader = make_loader([make_sample(0)])
    later.fit(OmniSatSegmentation(**TOLD), loader, loader, ckpt_path=tmp_path / 'a.ckpt')
    (second,) = [c for c in later.callbacks if isinstance(c, EpochSummary)]  # type: ignore[attr-defined]
    assert second.best == first.best


def test_pretraining_reports_its_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = {name: TOLD[name] for name in ('backbone', 'modalities', 'patch_size')}
    trainer = make_trainer(tmp_path, max_epochs=1, max_steps=-1, enable_progress_bar=True)
    loader = make_loader([make_sample(i) for i in range(2)])
    trainer.fit(OmniSatPretraining(**told), loader, loader)
    assert re.search(r'epoch 1 of 1: train loss \S+, validation loss \S+ \(best so far\)', capsys.readouterr().out)
