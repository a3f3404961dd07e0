# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Estimated duration of runs, from the measured time of a few steps."""

import json
import os
import statistics
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from .callbacks import StepTimes
from .published import seconds_per_batch
from .runs import PUBLISHED, Machine, Run, as_words, callback, commands, torchgeo_command, torchgeo_process

#: Training steps and test batches that are timed; the first of each is not counted.
TIMED = 4
#: Files that are counted at most.
_MOST_FILES = 1_000_000


@dataclass(frozen=True)
class Cost:
    """Estimated duration of a run.

    Args:
        step: Seconds of a training step.
        pretraining_step: Seconds of a step of pre-training; 0 without it.
        test_batch: Seconds of a batch of the test.
        hours: Hours of the run.
    """

    step: float
    pretraining_step: float
    test_batch: float
    hours: float


def measure(run: Run, root: str, machine: Machine, test_tiles: int) -> Cost:
    """Time some steps of a run with the real model and data, in a temporary folder."""
    batches = -(-test_tiles // run.batch_size)
    if run.backbone == PUBLISHED:
        seconds = seconds_per_batch(root, run.fold, machine)
        return Cost(0.0, 0.0, seconds, batches * seconds / 3600)
    short = replace(run, steps=TIMED, pretraining_steps=min(TIMED, run.pretraining_steps))
    found = {'pretrain': 0.0}
    with tempfile.TemporaryDirectory() as folder:
        for step, words in commands(short, Path(folder), root, replace(machine, save_every=0)).items():
            path = Path(folder, f'{step}.json')
            timed = [*words, *as_words(callback(StepTimes, '+', path=path))]
            if step == 'test':
                torchgeo_command([*timed, '--trainer.limit_test_batches', str(min(TIMED, batches))], announce=False)
            else:
                (torchgeo_process if machine.devices > 1 else torchgeo_command)(timed, announce=False)
            seconds = json.loads(path.read_text())
            found[step] = statistics.median(seconds[1:] or seconds)
    total = run.steps * found['fit'] + run.pretraining_steps * found['pretrain'] + batches * found['test']
    return Cost(found['fit'], found['pretrain'], found['test'], total / 3600)


def count_files(root: Path) -> tuple[int, int]:
    """Return number and bytes of the files below a folder, of at most :data:`_MOST_FILES` files."""
    number = size = 0
    for folder, _, names in os.walk(root):
        for name in names:
            number += 1
            size += os.stat(os.path.join(folder, name), follow_symlinks=False).st_size
            if number >= _MOST_FILES:
                return number, size
    return number, size
