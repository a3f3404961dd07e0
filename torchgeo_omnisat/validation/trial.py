# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Trial of `fit`: build the model, load its checkpoint, and train and validate on one small batch.

It finds errors that `fit` would raise in its first epoch.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torchgeo.tasks import BaseTask

from ..datamodules.base import no_valid_pixel
from ..datamodules.common.sampling import seed_draws
from ..models.encoders.registry import class_paths
from ..tasks import OmniSatClassification, OmniSatPretraining, OmniSatRegression, OmniSatSegmentation
from ..tasks.checkpoints import limited_size, read_hyper_parameters
from ..utils.cli import errors
from ..utils.cli.console import quiet
from .values import SplitValues

#: Number of tiles in the batch.
TILES = 2
#: Arguments of the trainer that are used; others concern devices and files.
_TAKEN = ('max_epochs', 'max_steps', 'accumulate_grad_batches', 'gradient_clip_val', 'gradient_clip_algorithm')
#: Values of ckpt_path that are not files; Lightning looks for the checkpoint when training starts.
_LATER = ('best', 'last', 'hpc', 'registry')


def try_training(
    datamodule: Any, settings: Mapping[str, Any], splits: Mapping[str, SplitValues], step: bool = True
) -> str | None:
    """Set up data and model as `fit` does, without writing files or changing the global random state.

    *settings* has ``model``, ``trainer``, ``ckpt_path`` and ``weights_only`` as in a configuration for `fit`. Without a
    model, the smallest one that fits the data is used. The statistics of *splits* are used instead of reading the tiles
    again. With *step*, train and validate on a batch. Return the error message of `fit`, or None.
    """
    workers, size = datamodule.num_workers, datamodule.batch_size
    with isolate_rng(include_cuda=False), TemporaryDirectory() as folder, quiet(every_warning=True):
        seed_draws(0, devices=False)
        try:
            task, trainer = _build(settings, splits, folder)
            datamodule.num_workers, datamodule.batch_size = 0, min(size, TILES)
            if 'train' in splits:
                datamodule.statistics = _Measured(datamodule, splits['train'])
                datamodule.report_labels = lambda splits: None  # the labels of all tiles are in the report
            trainer.callbacks.append(_Resume(settings))  # type: ignore[attr-defined]
            trainer.callbacks.append(_Stop(step))  # type: ignore[attr-defined]
            trainer.fit(task, datamodule=datamodule)
        except _StopError:
            pass
        except Exception as error:
            kind = f'{type(error).__name__}: '
            return (errors.describe_error(error) or '').removeprefix(kind) or kind + ' '.join(str(error).split())
        finally:
            datamodule.num_workers, datamodule.batch_size = workers, size
            for name in ('statistics', 'report_labels'):
                datamodule.__dict__.pop(name, None)
    return None


class _StopError(Exception):
    """Exception that ends a trial."""


class _Stop(Callback):
    """Callback that ends training after one batch, or before it."""

    def __init__(self, step: bool) -> None:
        self.step = step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.step:
            raise _StopError

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        trainer.should_stop = True


class _Resume(Callback):
    """Callback that loads ``ckpt_path`` into model and optimizer, but not the progress of the training."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.path, self.weights_only = str(settings.get('ckpt_path') or ''), settings.get('weights_only')

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.path or self.path.partition(':')[0] in _LATER:
            return
        checkpoint: dict[str, Any] = trainer.strategy.load_checkpoint(self.path, weights_only=self.weights_only)
        epochs, done = trainer.max_epochs, checkpoint.get('epoch', 0)
        if epochs is not None and epochs != -1 and done > epochs:
            raise ValueError(f'{self.path} was written in epoch {done}, expected max_epochs >= {done}, not {epochs}')
        pl_module.on_load_checkpoint(checkpoint)
        trainer.strategy.load_model_state_dict(checkpoint, strict=pl_module.strict_loading)
        trainer.strategy.load_optimizer_state_dict(checkpoint)


class _Measured:
    """Statistics from the summary of the training split, instead of those of the datamodule."""

    def __init__(self, datamodule: Any, train: SplitValues) -> None:
        self.official, self.train = datamodule.official, train

    def __call__(self, dataset: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        mean, std = {}, {}
        for name, modality in dataset.modalities.items():
            numbers = self.official(dataset, dataset.all_modalities[name])
            if numbers is None:
                moments = self.train.values[name].moments.as_dict()
                if not moments['mean']:
                    raise no_valid_pixel(name, self.train.tiles, dataset.path)
                numbers = torch.tensor(moments['mean']), torch.tensor(moments['std'])
            chosen = [self.train.modalities[name].bands.index(band) for band in modality.bands]
            mean[name], std[name] = (number[chosen].float() for number in numbers)
        return mean, std


def _build(settings: Mapping[str, Any], splits: Mapping[str, SplitValues], folder: str) -> tuple[Any, Trainer]:
    """Return the task and a trainer for one batch on the CPU."""
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_lightning_class_args(Trainer, 'trainer')
    parser.add_lightning_class_args(BaseTask, 'model', subclass_mode=True, required=False)
    given = {name: settings[name] for name in ('trainer', 'model') if settings.get(name)}
    try:
        config = parser.parse_object(given)
        path = os.path.expanduser(settings.get('ckpt_path') or '')
        if Path(path).is_file() and (kept := read_hyper_parameters(path, class_paths(given.get('model')))):
            config = parser.parse_object({'model': kept}, config)
        with limited_size(path):
            made = parser.instantiate_classes(config)
    except Exception as error:
        if 'Errors:' in str(error) or type(error).__name__ == 'ArgumentError':
            raise ValueError(errors.of_parser(str(error))) from None
        raise
    on_cpu = isinstance(made.trainer.accelerator, CPUAccelerator)  # else the precision may not be available on the CPU
    taken = (*_TAKEN, 'precision') if on_cpu else _TAKEN
    trained = {name: config.trainer[name] for name in taken if config.trainer.get(name) is not None}
    trainer = Trainer(
        accelerator='cpu',
        devices=1,
        limit_train_batches=1,
        limit_val_batches=1,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **trained,
    )
    return made.get('model') or _default(splits), trainer


def _default(splits: Mapping[str, SplitValues]) -> Any:
    counted = next((values.counted for values in splits.values() if values.counted), '')
    kinds: dict[str, type[Any]] = {
        'pixels': OmniSatSegmentation,
        'tiles': OmniSatClassification,
        'values': OmniSatRegression,
    }
    return kinds.get(counted, OmniSatPretraining)(backbone='omnisat_tiny')
