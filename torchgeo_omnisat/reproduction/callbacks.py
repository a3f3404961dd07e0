# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Callbacks of runs: confusion matrices of a test, and the time of steps."""

import json
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from ..modality import subset_name
from ..utils.atomic import atomic_file


class KeepConfusion(Callback):
    """Write the confusion matrix of every subset of the modalities after a test, as JSON.

    Rows are the true classes, columns the predicted ones. Ignored pixels are not counted.

    Args:
        path: File to write.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file; a test of runs is on one device, so that counts are complete."""
        scores: Any = pl_module.subset_scores
        found = {}
        for subset in scores.subsets:
            name = subset_name(subset)
            metrics = scores.metrics_of(name)
            found[name] = next(iter(metrics.values())).confmat.tolist()
        with atomic_file(self.path) as temporary:
            temporary.write_text(json.dumps(found))


class StepTimes(Callback):
    """Write the seconds of each training step or test batch, including the reading of its data, as JSON.

    Args:
        path: File to write.
    """

    def __init__(self, path: str) -> None:
        self.path, self.seconds = Path(path), list[float]()
        self._last = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._tick(pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._tick(pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Add a step."""
        self.seconds.append(self._tick(pl_module))

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Add a batch."""
        self.seconds.append(self._tick(pl_module))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file."""
        self._write(trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file."""
        self._write(trainer)

    def _tick(self, module: LightningModule) -> float:
        if module.device.type == 'cuda':
            torch.cuda.synchronize(module.device)
        before, self._last = self._last, time.perf_counter()
        return self._last - before

    def _write(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            with atomic_file(self.path) as temporary:
                temporary.write_text(json.dumps(self.seconds))
