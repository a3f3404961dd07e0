# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Runs: one training and its test, by the command line that a user would type, kept once done.

A run is known by everything that its result depends on. What is done is a line of a CSV
file and is not done again; of several processes on one folder each takes other runs.
"""

import csv
import hashlib
import json
import logging
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torchgeo.main
from filelock import FileLock, Timeout

from torchgeo_omnisat import plugin
from torchgeo_omnisat.datasets.synthetic.writing import is_synthetic
from torchgeo_omnisat.utils.atomic import atomic_file
from torchgeo_omnisat.utils.cli.console import quiet

#: The datamodule of each kind of data, and of a part of its labels.
DATAMODULES = {
    'synthetic': ('SyntheticLandscapesDataModule', 'FewSyntheticLandscapesDataModule'),
    'pastis': ('PASTISMultimodalDataModule', 'FewPASTISDataModule'),
}
#: The subcommand of ``torchgeo`` for each step of a run.
_SUBCOMMANDS = {'pretrain': 'fit', 'fit': 'fit', 'test': 'test'}


@dataclass(frozen=True)
class Run:
    """Everything that a result depends on, but the code.

    Args:
        data: ``'synthetic'`` or ``'pastis'``.
        fold: The official split.
        seed: Seed of parameters, order and augmentation.
        backbone: What ``--model.backbone`` says.
        backbone_args: What ``--model.backbone_args`` says, as JSON.
        modalities: The only ones whose files are read.
        modality_dropout: Probability that a training tile loses each of them.
        pretraining_steps: Steps of ``omnisat_pretraining`` on the same tiles before; 0 for none.
        labels: Part of the training tiles whose labels are used.
        steps: Optimiser steps.
        batch_size: Tiles a step.
        lr: Learning rate after the warm-up.
        tiles: Number of synthetic landscapes; None for real data.
        max_dates: The most dates of a series that are read; None for all.
        subset_weight: Weight of what dropout leaves beside all modalities, which are then learnt
            from in every step too; 0 for what dropout leaves alone.
        distill: Weight of its divergence from what all modalities give.
        pretraining_args: Other options of the pre-training's model, as JSON; its defaults if empty.
        options: Other options of the task, as JSON. Without any, a model has no experts, as when the tables were
            measured.
        data_options: Other options of the datamodule, as JSON. Without any, each date is dropped with a probability of
            0.2, as when the tables were measured.
    """

    data: str
    fold: int
    seed: int
    backbone: str
    backbone_args: str
    modalities: tuple[str, ...]
    modality_dropout: float
    pretraining_steps: int
    labels: float
    steps: int
    batch_size: int
    lr: float
    tiles: int | None = None
    max_dates: int | None = None
    subset_weight: float = 0.0
    distill: float = 0.0
    pretraining_args: str = ''
    options: str = ''
    data_options: str = ''

    @property
    def key(self) -> str:
        """What the run is called: the same for the same configuration, today and tomorrow."""
        added = ('options', 'data_options')  # after the first tables
        known = {name: value for name, value in asdict(self).items() if name not in added or value}
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def pretraining(self) -> 'Run':
        """The pre-training of the run, which others share: it knows no label and no fine-tuning."""
        untold = dict.fromkeys(('modality_dropout', 'labels', 'lr', 'subset_weight', 'distill'), 0.0)
        return replace(self, steps=self.pretraining_steps, options='', **untold)


def commands(run: Run, folder: Path, root: str, workers: int = 0) -> dict[str, list[str]]:
    """Return the arguments of ``torchgeo`` for each step of a run: pre-training if any, fit and test.

    Args:
        run: The run.
        folder: Where runs leave their checkpoints.
        root: Where the data are.
        workers: Processes that read.
    """
    pretrained, checkpoint = folder / run.pretraining.key / 'pretrained.ckpt', folder / run.key / 'model.ckpt'
    told = {f'model.{name}': getattr(run, name) for name in ('modality_dropout', 'subset_weight', 'distill', 'lr')}
    told |= {f'model.{name}': value for name, value in ({'experts': False} | json.loads(run.options or '{}')).items()}
    task, data = {'model': 'omnisat', **_backbone(run), **told}, _data(run, root, workers)
    fit = task | _training(run, checkpoint, run.steps) | data
    test = task | _trainer(checkpoint.parent) | data | {'ckpt_path': checkpoint, 'verbose': 'false'}
    if not run.pretraining_steps:
        steps = {'fit': fit, 'test': test}
    else:
        pretrain = {'model': 'omnisat_pretraining', **_backbone(run)} | _data(replace(run, labels=1.0), root, workers)
        pretrain |= _training(run, pretrained, run.pretraining_steps)
        pretrain |= {f'model.{name}': value for name, value in json.loads(run.pretraining_args or '{}').items()}
        steps = {'pretrain': pretrain, 'fit': fit | {'model.weights': pretrained}, 'test': test}
    return {step: [_SUBCOMMANDS[step], *_words(options)] for step, options in steps.items()}


def execute(run: Run, folder: Path, root: str, workers: int = 0) -> dict[str, Any]:
    """Do a run and say what came out.

    Returns:
        The configuration, the scores on the test fold with all its modalities and with every
        subset of them, the seconds that each step took, and where and with what it ran.
    """
    steps, seconds = commands(run, folder, root, workers), {}
    for step, words in steps.items():
        start = time.perf_counter()
        shared = folder / run.pretraining.key
        if step == 'pretrain':
            shared.mkdir(parents=True, exist_ok=True)
            with FileLock(shared / 'lock'):
                if not (shared / 'done').exists():
                    torchgeo_command(words)
                    (shared / 'done').touch()
        else:
            torchgeo_command(words)
        seconds[step] = round(time.perf_counter() - start, 1)
    with (folder / run.key / 'subsets.csv').open(newline='') as file:
        rows = list(csv.DictReader(file))
    scores = {row['subset']: round(100 * float(row['mean_iou']), 3) for row in rows}
    return {
        'key': run.key,
        **_flat(run),
        'made_up': is_synthetic(Path(root)),
        'mean_iou': scores[rows[0]['subset']],
        'overall_accuracy': round(100 * float(rows[0]['overall_accuracy']), 3),
        'subsets': json.dumps(scores),
        'seconds': json.dumps(seconds),
        **circumstances(),
    }


def torchgeo_command(words: list[str]) -> None:
    """Run ``torchgeo`` with these words in this process, its notices left out."""
    print('$ torchgeo', shlex.join(words), file=sys.stderr, flush=True)
    plugin.load()
    with quiet(every_warning=True, level=logging.WARNING):
        torchgeo.main.main(words)


def complete(runs: Iterable[Run], table: Path, folder: Path, root: str, workers: int = 0) -> dict[str, dict[str, str]]:
    """Do the runs that are not done yet, and return the lines of all that are.

    Args:
        runs: The runs; the same one twice is done once.
        table: The CSV with a line a run.
        folder: Where runs leave their checkpoints and locks.
        root: Where the data are.
        workers: Processes that read.

    Returns:
        Lines of the table by key.
    """
    todo = {run.key: run for run in runs}
    folder.mkdir(parents=True, exist_ok=True)
    for patience in (0, -1):  # first what nobody else is at, then what others leave
        for number, (key, run) in enumerate(todo.items(), 1):
            try:
                with FileLock(folder / f'{key}.lock', timeout=patience):
                    if key not in read(table):
                        print(f'Run {number} of {len(todo)}, {key}', file=sys.stderr, flush=True)
                        keep(table, execute(run, folder, root, workers))
            except Timeout:
                continue
    return {key: row for key, row in read(table).items() if key in todo}


def read(table: Path) -> dict[str, dict[str, str]]:
    """Return the rows of a table by key; none if there is no table."""
    if not table.is_file():
        return {}
    with table.open(newline='') as file:
        return {row['key']: row for row in csv.DictReader(file)}


def keep(table: Path, row: Mapping[str, Any]) -> None:
    """Add a line to a table; the file is whole at any time, whoever else adds to it."""
    table.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(table.with_name(f'.{table.name}.lock')):
        rows = {**read(table), row['key']: row}
        with atomic_file(table) as temporary, temporary.open('w', newline='') as file:
            writer = csv.DictWriter(file, list(row))
            writer.writeheader()
            writer.writerows(rows.values())


def spread(rows: Sequence[Mapping[str, str]], column: str = 'mean_iou') -> tuple[float, float]:
    """Mean and standard deviation (of a sample; nan of a single one) of a column."""
    values = [float(row[column]) for row in rows]
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else float('nan')


def pretty(mean: float, deviation: float) -> str:
    """Format a mean with its standard deviation, if there is one."""
    return f'{mean:.1f}' + (f' ± {deviation:.1f}' if deviation == deviation else '')


def described(done: Iterable[Mapping[str, str]]) -> str:
    """Return the name of the data of some runs, which states whether they are synthetic."""
    return ', '.join(sorted({'synthetic landscapes' if row['made_up'] == 'True' else row['data'] for row in done}))


def circumstances() -> dict[str, Any]:
    """Versions, commit and hardware."""
    packages = ('torch', 'torchgeo', 'lightning', 'timm', 'segmentation-models-pytorch')
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    return {
        'commit': _commit(),
        'python': platform.python_version(),
        'versions': json.dumps({name: version(name) for name in packages}),
        'device': device,
        'cores': os.cpu_count(),
        'threads': torch.get_num_threads(),
    }


def _data(run: Run, root: str, workers: int) -> dict[str, Any]:
    """Options of the datamodule."""
    every, few = DATAMODULES[run.data]
    options: dict[str, Any] = {
        'data': every if run.labels == 1 else few,
        'data.root': root,
        'data.fold': run.fold,
        'data.modalities': json.dumps(run.modalities),
        'data.batch_size': run.batch_size,
        'data.num_workers': workers,
    }
    if run.labels < 1:
        options |= {'data.part': run.labels, 'data.draw': run.seed}
    if run.tiles is not None:
        options['data.num_tiles'] = run.tiles
    if run.max_dates is not None:
        options['data.max_dates'] = run.max_dates
    other = {'temporal_dropout': 0.2} | json.loads(run.data_options or '{}')
    return options | {f'data.{name}': value for name, value in other.items()}


def _backbone(run: Run) -> dict[str, Any]:
    """Options of the backbone."""
    return {'model.backbone': run.backbone, 'model.backbone_args': run.backbone_args}


def _trainer(folder: Path) -> dict[str, Any]:
    """Options of every trainer: results go to *folder*, nothing else is written."""
    return {
        'trainer.default_root_dir': folder,
        'trainer.logger': 'false',
        'trainer.devices': 1,
        'trainer.enable_progress_bar': 'false',
        'trainer.enable_model_summary': 'false',
    }


def _training(run: Run, checkpoint: Path, steps: int) -> dict[str, Any]:
    """Options of a training that ends after so many steps in a checkpoint, without validation."""
    return {
        'seed_everything': run.seed,
        **_trainer(checkpoint.parent),
        'trainer.max_steps': steps,
        'trainer.limit_val_batches': 0,
        'trainer.callbacks': 'ModelCheckpoint',
        'trainer.callbacks.dirpath': checkpoint.parent,
        'trainer.callbacks.filename': checkpoint.stem,
        'trainer.callbacks.every_n_train_steps': steps,
        'trainer.callbacks.save_weights_only': 'true',
        'trainer.callbacks.enable_version_counter': 'false',
    }


def _words(options: Mapping[str, Any]) -> list[str]:
    """Options as words of a command line."""
    return [word for name, value in options.items() for word in (f'--{name}', str(value))]


def _flat(run: Run) -> dict[str, Any]:
    """Return the configuration as cells of a table."""
    return {**asdict(run), 'modalities': '+'.join(run.modalities)}


def _commit() -> str:
    """Return the commit of the code, with a plus sign if files are modified; empty without git."""
    root = Path(__file__).parents[1]
    said = [
        subprocess.run(['git', *words], cwd=root, capture_output=True, text=True, check=False).stdout.strip()
        for words in (
            ['rev-parse', '--short', 'HEAD'],
            ['status', '--porcelain', '--untracked-files=no', 'torchgeo_omnisat'],
        )
    ]
    return said[0] + ('+' if said[1] else '')


def _processor() -> str:
    """Return the name of the processor."""
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor() or platform.machine()
