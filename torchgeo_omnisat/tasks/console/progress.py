# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Progress of a training on the console: losses, validation score, best score so far and remaining time."""

import math
import time
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from ...utils.cli.console import format_duration, printable

#: Batches after which the duration of a training is estimated, without the first one.
TIMED = 5


class EpochSummary(Callback):
    """One line per epoch: losses, validation score, best score so far, time of the epoch and remaining time.

    The line is printed above a progress bar, and also if the output is not a terminal. Without a progress bar it is
    logged. The remaining time is an upper bound if the training may stop early.

    Args:
        score: Name of the logged validation score.
        title: Name of the score on the console.
        mode: ``'max'`` if higher scores are better, else ``'min'``.
    """

    def __init__(self, score: str, title: str, mode: str) -> None:
        self.score, self.title, self.sign = score, title, 1 if mode == 'max' else -1
        #: Best score so far and its epoch, from 1.
        self.best: tuple[float, int] | None = None
        self._validated = False
        self._began = self._first = self._epoch_began = 0.0
        self._loss: Tensor | float = 0.0
        self._batches = 0

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Save the best score; with a state of the callback, Lightning would warn in each test of the checkpoint."""
        checkpoint['best_score'] = self.best

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Restore the best score of a training that is resumed."""
        self.best = checkpoint.get('best_score')

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Start the clock."""
        self._began = self._epoch_began = time.monotonic()
        self._first = trainer.global_step

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Start the mean loss of an epoch."""
        self._loss, self._batches, self._validated, self._epoch_began = 0.0, 0, False, time.monotonic()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Add the loss of a batch, and estimate the duration of a long training from its first batches."""
        loss = outputs.get('loss') if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor):
            self._loss = self._loss + loss.detach().float() * trainer.accumulate_grad_batches
            self._batches += 1
        if trainer.current_epoch == 0 and batch_idx == 0:
            self._began = time.monotonic()  # the first batch also starts workers and allocates memory
            self._first = trainer.global_step
        elif trainer.current_epoch == 0 and batch_idx == TIMED:
            left = self._left(trainer)
            if left is not None and left > 60:
                self._say(trainer, f'About {format_duration(left)} of training, plus validation')

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Update the best score; print a line if this validation is not at the end of an epoch."""
        if trainer.sanity_checking:
            return
        value = trainer.callback_metrics.get(self.score)
        self._validated = value is not None
        if value is not None and math.isfinite(value):
            if self.best is None or self.sign * (float(value) - self.best[0]) > 0:
                self.best = float(value), trainer.current_epoch + 1
            if not trainer.is_last_batch:
                self._print(trainer)
                self._validated = False

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Print the line of an epoch."""
        self._print(trainer)

    def _print(self, trainer: Any) -> None:
        metrics, epochs = trainer.callback_metrics, trainer.max_epochs
        now = f'epoch {trainer.current_epoch + 1}' + (f' of {epochs}' if epochs and epochs > 0 else '')
        if not epochs or epochs < 0 or not trainer.is_last_batch:
            now += f', step {trainer.global_step}' + (f' of {trainer.max_steps}' if trainer.max_steps > 0 else '')
        parts = []
        if self._batches:
            parts.append(f'train loss {float(self._loss) / self._batches:.3f}')
        if self._validated and 'val_loss' in metrics:
            parts.append(f'validation loss {float(metrics["val_loss"]):.3f}')
        if self._validated:
            value = float(metrics[self.score])
            shown = '' if self.score == 'val_loss' else f'{self.title} {value:.3f} '
            if self.best is not None:
                is_best = self.best == (value, trainer.current_epoch + 1)
                shown += '(best so far)' if is_best else f'(best {self.best[0]:.3f} in epoch {self.best[1]})'
            parts.append(shown.strip())
        text = ', '.join(parts).replace(', (', ' (')
        took = format_duration(time.monotonic() - self._epoch_began)
        left = self._left(trainer)
        ends = f'; {took}' + (f', {format_duration(left)} left' if left else '')
        self._say(trainer, f'{now}: {text}{ends}')

    def _left(self, trainer: Any) -> float | None:
        """Return the remaining seconds, or None if they are unknown."""
        total, done = trainer.estimated_stepping_batches, trainer.global_step - self._first
        if not math.isfinite(total) or total < 0 or done <= 0:
            return None
        spent = time.monotonic() - self._began
        return spent / done * max(0.0, total - trainer.global_step)

    def _say(self, trainer: Any, line: str) -> None:
        bar = trainer.progress_bar_callback
        if bar is None or not bar.is_enabled:
            rank_zero_info(printable(line))
        elif trainer.is_global_zero:
            bar.print(printable(line))
