# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""The command `reproduce`, which can be killed at a step of a task."""

import os
import signal
from pathlib import Path
from typing import Any

from torchgeo_omnisat import tasks
from torchgeo_omnisat.__main__ import main
from torchgeo_omnisat.commands import reproduce as command

#: Steps of the training and of the pre-training, and between checkpoints.
STEPS, PRETRAINING, EVERY = 5, 3, 2


def reproduce(root: Path, output: Path, task: str = '', step: int = 0) -> None:
    """Reproduce a pre-trained row; kill the process before a step of *task*, if it is set."""
    if task:
        kind: Any = getattr(tasks, task)
        train = kind.training_step

        def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
            if self.global_step == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return train(self, *args, **kwargs)

        kind.training_step = training_step
    command.describe_cost = lambda study: 'not estimated'
    words = ['--data', 'pastis-hd', '--root', str(root), '--rows', 'omnisat-pretrained', '--folds', '1', '--no-check']
    words += ['--steps', str(STEPS), '--pretraining-steps', str(PRETRAINING), '--save-every', str(EVERY)]
    words += ['--backbone', 'omnisat_tiny', '--batch-size', '2', '--accelerator', 'cpu', '--output', str(output)]
    assert main(['reproduce', *words]) == 0
