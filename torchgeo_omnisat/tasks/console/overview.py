# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Callbacks of the command line in place of Lightning's: parameters of a model in a line, and shorter progress bars."""

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelSummary, RichModelSummary, RichProgressBar, TQDMProgressBar
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.model_summary.model_summary import get_human_readable_count
from torch import nn

#: Modules whose parts are listed instead of them.
CONTAINERS = ('model', 'backbone')


class PartsSummary(ModelSummary):
    """One line with the number of parameters of a model and of its parts, instead of a table of all attributes."""

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Log the line."""
        total = _count(pl_module)
        trained = sum(parameter.numel() for parameter in pl_module.parameters() if parameter.requires_grad)
        frozen = '' if trained == total else f', {_readable(trained)} of them trained'
        parts = ', '.join(f'{name} {_readable(count)}' for name, count in count_parts(pl_module).items())
        rank_zero_info(f'Model: {_readable(total)} parameters{frozen} ({parts})')


def count_parts(module: nn.Module) -> dict[str, int]:
    """Return the number of parameters of the parts of a task, without parts that have none."""
    counts: dict[str, int] = {}
    for name, part in module.named_children():
        counts |= count_parts(part) if name in CONTAINERS else {name.replace('_', ' '): _count(part)}
    return {name: count for name, count in counts.items() if count}


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _readable(count: int) -> str:
    return get_human_readable_count(count).strip()


def _losses(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if name.endswith('loss')}


class EpochBar(RichProgressBar):
    """Progress bar that counts epochs from 1, as the line of an epoch does, and shows losses alone."""

    def get_metrics(self, trainer: Any, pl_module: Any) -> dict[str, Any]:
        """Return the losses; the line of an epoch has the other metrics."""
        return _losses(super().get_metrics(trainer, pl_module))

    def _get_train_description(self, current_epoch: int) -> str:
        return f'Epoch {current_epoch + 1}'.ljust(len(self.validation_description))


class EpochTQDMBar(TQDMProgressBar):
    """As :class:`EpochBar`, where the package rich is not installed."""

    def get_metrics(self, trainer: Any, pl_module: Any) -> dict[str, Any]:
        """Return the losses; the line of an epoch has the other metrics."""
        return _losses(super().get_metrics(trainer, pl_module))

    def on_train_epoch_start(self, trainer: Any, *args: Any) -> None:
        """Start the bar of an epoch."""
        next_epoch: Any = SimpleNamespace(current_epoch=trainer.current_epoch + 1)  # all that it reads
        super().on_train_epoch_start(next_epoch, *args)


#: Callbacks by the one that Lightning adds by default.
BRIEF: dict[type[Callback], type[Callback]] = {
    ModelSummary: PartsSummary,
    RichModelSummary: PartsSummary,
    RichProgressBar: EpochBar,
    TQDMProgressBar: EpochTQDMBar,
}


def shorten_defaults(trainer: Any, configured: Iterable[str] = ()) -> None:
    """Replace Lightning's default callbacks by :data:`BRIEF`, except those whose class is *configured*."""
    names = {path.rpartition('.')[-1] for path in configured}
    for place, callback in enumerate(trainer.callbacks):
        kind = type(callback)
        if kind in BRIEF and kind.__name__ not in names:
            trainer.callbacks[place] = BRIEF[kind]()
