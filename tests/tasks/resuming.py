# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""A training that can be killed and taken up again, by one process or by two."""

import os
import signal
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from tests.tasks.helpers import make_trainer
from torchgeo_omnisat import tasks
from torchgeo_omnisat.datamodules import MixedDataModule, SyntheticLandscapesDataModule

#: The checkpoint that is written after so many steps, in the middle of the second epoch of four steps.
SAVED = 6


class Killer(Callback):
    """Ends its process without a chance to tidy up, after so many batches."""

    def __init__(self, batches: int) -> None:
        self.batches = batches

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.batches and trainer.is_global_zero:
            os.kill(os.getpid(), signal.SIGKILL)


class Keep(Callback):
    """Writes what each process has in the end, to ``<name>.<rank>``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        torch.save(outcome(trainer, pl_module), f'{self.path}.{trainer.global_rank}')


def outcome(trainer: Trainer, model: LightningModule) -> dict[str, Any]:
    """What the last checkpoint would hold."""
    return {
        'state': model.state_dict(),
        'optimizer': trainer.optimizers[0].state_dict(),
        'metrics': {key: value for key, value in trainer.callback_metrics.items() if key.startswith('train')},
        'step': trainer.global_step,
    }


def fit(
    root: Path,
    folder: Path,
    task: str = 'OmniSatSegmentation',
    workers: int = 0,
    batches: Any = 'anywhere',
    devices: int = 1,
    kill: int = 0,
    resume: bool = False,
    keep: Path | None = None,
    saver: dict[str, Any] | None = None,
    saved: int = SAVED,
) -> dict[str, Any]:
    """Train three epochs of four steps of two tiles; one process returns its :func:`outcome`.

    With *batches* ``'mixed'``, two of the steps are of three tiles that lack a modality. *saver* says when
    checkpoints are written, and *saved* after which step the one was that a training goes on from.
    """
    seed_everything(100 if resume else 3, verbose=False)

    def make(name: str, tiles: int, batches: Any, *modalities: str) -> SyntheticLandscapesDataModule:
        told: dict[str, Any] = {'num_tiles': tiles, 'size': 16, 'dates': (2, 3), 'batch_size': 2 // devices}
        told |= {'modalities': modalities, 'num_workers': workers, 'batches': batches}
        return SyntheticLandscapesDataModule(str(root / name), **told)

    datamodule: Any
    if batches == 'mixed':
        parts: Any = {'most': make('most', 10, 'anywhere', 's2', 's1a'), 'few': make('few', 5, 'region', 's2')}
        datamodule = MixedDataModule(parts, temperature=8)
    else:
        datamodule = make('', 15, batches, 's2', 's1a')
    told_saver: dict[str, Any] = {'every_n_train_steps': 3} if saver is None else saver
    trainer = make_trainer(
        folder,
        max_epochs=3,
        max_steps=-1,
        devices=devices,
        strategy='ddp_fork' if devices > 1 else 'auto',
        enable_checkpointing=True,
        logger=False,
        limit_val_batches=1,
        callbacks=[
            ModelCheckpoint(folder, '{step}', save_top_k=-1, **told_saver),
            *([Killer(kill)] if kill else []),
            *([Keep(keep)] if keep else []),
        ],
    )
    told: dict[str, Any] = {'ema': 0.9} if task == 'OmniSatPretraining' else {}
    model = getattr(tasks, task)(backbone='omnisat_tiny', **told)
    trainer.fit(model, datamodule, ckpt_path=folder / f'step={saved}.ckpt' if resume else None, weights_only=True)
    return outcome(trainer, model) if devices == 1 else {}
