# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Runs: a training and its test by the command line of TorchGeo, whose results are kept in a table.

A run is identified by everything that its result depends on. A run with a row in the table is not repeated, and an
interrupted one resumes from its last checkpoint. Several processes that share a folder do different runs.
"""

import csv
import hashlib
import io
import json
import logging
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torchgeo.main
from filelock import FileLock, Timeout
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from .. import plugin
from ..datasets.synthetic.writing import is_synthetic
from ..modality import subset_name, subsets
from ..utils.atomic import atomic_file
from ..utils.cli.console import quiet, say
from . import few  # noqa: F401 (the command line finds datamodules among the imported classes)
from .callbacks import KeepConfusion
from .data import PUBLIC, PublicData, sensors_in

#: Name of the final checkpoint of a run, of its pre-training, and of the one from which a training resumes.
MODEL, PRETRAINED, PROGRESS = 'model.ckpt', 'pretrained.ckpt', 'progress.ckpt'
#: File with the confusion matrices of a test.
CONFUSION = 'confusion.json'
#: Backbone of a run that only tests published weights.
PUBLISHED = 'utae_published'
#: Subcommand of ``torchgeo`` for each step of a run.
_SUBCOMMANDS = {'pretrain': 'fit', 'fit': 'fit', 'test': 'test'}
#: Fields of a run that each task has as arguments.
_ARGUMENTS = {
    'omnisat': ('modality_dropout', 'subset_weight', 'distill', 'lr'),
    'omnisat_regression': ('modality_dropout', 'subset_weight', 'lr'),
    'omnisat_classification': ('modality_dropout', 'lr'),
}
#: Fields that were added after the first tables. They are part of a key only if they are set.
_ADDED = ('options', 'data_options', 'precision', 'splits')


@dataclass(frozen=True)
class Run:
    """Everything that a result depends on, except for the code.

    Args:
        data: Name in :data:`.PUBLIC`.
        fold: Official split.
        seed: Seed of parameters, order and augmentation.
        backbone: Value of ``--model.backbone``; :data:`PUBLISHED` for published weights.
        backbone_args: Value of ``--model.backbone_args``, as JSON.
        modalities: Modalities to read.
        modality_dropout: Probability of dropping each modality of a training tile.
        pretraining_steps: Steps of ``omnisat_pretraining`` on the same tiles before; 0 for none.
        labels: Fraction of the training tiles whose labels are used.
        steps: Optimiser steps.
        batch_size: Tiles per step.
        lr: Learning rate after the warm-up.
        tiles: Number of synthetic landscapes; None for other data.
        max_dates: Maximum number of dates of a time series; None for all.
        subset_weight: Weight of the loss of the modalities that remain after dropout; 0 to train on these alone.
        distill: Weight of the divergence of their prediction from that of all modalities.
        pretraining_args: Further arguments of the task of pre-training, as JSON.
        options: Further arguments of the task, as JSON. Without them, a model has no experts and a
            decoder of width 32, as in the first tables.
        data_options: Further arguments of the datamodule, as JSON. If empty, each date is dropped with a probability
            of 0.2, as in the first tables.
        precision: Precision of the trainer; the default if empty.
        splits: Names of the files that list the tiles, with their SHA-256, as JSON; empty for the official split.
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
    precision: str = ''
    splits: str = ''

    @property
    def key(self) -> str:
        """Identifier of the configuration."""
        known = {name: value for name, value in asdict(self).items() if name not in _ADDED or value}
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def pretraining(self) -> 'Run':
        """Pre-training of the run, which is shared by runs that differ in the fine-tuning only."""
        unused: dict[str, Any] = dict.fromkeys(('modality_dropout', 'labels', 'lr', 'subset_weight', 'distill'), 0.0)
        return replace(self, steps=self.pretraining_steps, options='', **unused)


@dataclass(frozen=True)
class Machine:
    """How runs are executed, which their results do not depend on.

    Args:
        workers: Processes that read.
        devices: Devices of a training. The batch is divided between them.
        accelerator: Accelerator of the trainer.
        save_every: Steps between the checkpoints from which an interrupted training resumes; 0 for none.
        weights: Folder of published weights; None to download them.
        splits: Files that list the tiles of a run with *splits*, as for :func:`.read_splits`.
    """

    workers: int = 0
    devices: int = 1
    accelerator: str = 'auto'
    save_every: int = 0
    weights: str | None = None
    splits: str | None = None


#: Called with the run, the folder of the runs, the root of the data, and the machine; returns a row of the table.
Execute = Callable[[Run, Path, str, Machine], dict[str, Any]]


def commands(run: Run, folder: Path, root: str, machine: Machine = Machine()) -> dict[str, list[str]]:
    """Return the arguments of ``torchgeo`` for each step of a run: pre-training if any, fit and test.

    Args:
        run: Run.
        folder: Folder of the checkpoints of all runs.
        root: Root of the data.
        machine: How the run is executed.
    """
    data = PUBLIC[run.data]
    pretrained, checkpoint = folder / run.pretraining.key / PRETRAINED, folder / run.key / MODEL
    arguments = {f'model.{name}': getattr(run, name) for name in _ARGUMENTS[data.task]}
    first = {} if data.task == 'omnisat_classification' else {'experts': False, 'decoder_width': 32}
    arguments |= {f'model.{name}': _word(x) for name, x in (first | json.loads(run.options or '{}')).items()}
    task = {'model': data.task, **_backbone(run), **arguments}
    trained = task | _training(run, checkpoint, run.steps, machine) | _data(run, root, machine, machine.devices)
    tested = task | _trainer(checkpoint.parent, run, replace(machine, devices=1)) | _data(run, root, machine)
    tested |= {'ckpt_path': checkpoint, 'verbose': 'false'}
    tested |= _subsets(data, run.modalities)
    if data.task == 'omnisat':
        tested |= callback(KeepConfusion, path=checkpoint.parent / CONFUSION)
    steps = {'fit': trained, 'test': tested}
    if run.pretraining_steps:
        pretrain = {'model': 'omnisat_pretraining', **_backbone(run)}
        pretrain |= _data(replace(run, labels=1.0), root, machine, machine.devices)
        pretrain |= _training(run, pretrained, run.pretraining_steps, machine)
        pretrain |= {f'model.{name}': value for name, value in json.loads(run.pretraining_args or '{}').items()}
        steps = {'pretrain': pretrain, 'fit': trained | {'model.weights': pretrained}, 'test': tested}
    return {step: [_SUBCOMMANDS[step], *as_words(options)] for step, options in steps.items()}


def execute(run: Run, folder: Path, root: str, machine: Machine = Machine()) -> dict[str, Any]:
    """Do a run and return its row of the table.

    Args:
        run: Run.
        folder: Folder of the checkpoints of all runs.
        root: Root of the data.
        machine: How the run is executed.

    Returns:
        The configuration, the scores on the test split with all modalities and with every subset of them, the seconds
        of each step, and versions and hardware.
    """
    seconds = {}
    for step, words in commands(run, folder, root, machine).items():
        if step == 'test':
            start = time.perf_counter()
            torchgeo_command(words)
            seconds[step] = round(time.perf_counter() - start, 1)
        elif step == 'fit':
            seconds[step] = round(_train(words, folder / run.key / MODEL, run.steps, machine), 1)
        else:
            target = folder / run.pretraining.key / PRETRAINED
            target.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(target.parent / 'lock'):
                done = target.with_name('done')
                if not done.exists():
                    spent = _train(words, target, run.pretraining_steps, machine)
                    done.write_text(f'{spent}')
                seconds[step] = round(float(done.read_text() or 'nan'), 1)
    data = PUBLIC[run.data]
    with (folder / run.key / 'subsets.csv').open(newline='') as file:
        rows = list(csv.DictReader(file))
    scores = {row['subset']: round(data.metrics[data.score] * float(row[data.score]), 3) for row in rows}
    return {
        'key': run.key,
        **flat(run),
        'made_up': is_synthetic(Path(root)),
        **{metric: round(factor * float(rows[0][metric]), 3) for metric, factor in data.metrics.items()},
        'subsets': json.dumps(scores),
        'seconds': json.dumps(seconds),
        **circumstances(machine.accelerator),
        'devices': machine.devices,
        'test_tiles': rows[0]['samples'],
    }


def torchgeo_command(words: list[str], announce: bool = True) -> None:
    """Run ``torchgeo`` in this process, without messages of Lightning; unless *announce*, print only if it fails."""
    if announce:
        say('$ torchgeo', shlex.join(words), error=True)
    plugin.load()
    with quiet(every_warning=True, level=logging.WARNING), nullcontext() if announce else print_failures():
        torchgeo.main.main(words)


@contextmanager
def print_failures() -> Iterator[None]:
    """Print what is written to the standard streams only if there is an error."""
    said = io.StringIO()
    try:
        with redirect_stdout(said), redirect_stderr(said):
            yield
    except BaseException:
        sys.stderr.write(said.getvalue())
        raise


def torchgeo_process(words: list[str], announce: bool = True) -> None:
    """Run ``torchgeo`` in a process, which starts those of the other devices.

    Raises:
        RuntimeError: If it fails.
    """
    if announce:
        say('$ python -m torchgeo_omnisat', shlex.join(words), error=True)
    process = subprocess.Popen([sys.executable, '-m', 'torchgeo_omnisat', *words])
    try:
        status = process.wait()
    finally:
        process.terminate()
    if status:
        raise RuntimeError(f'python -m torchgeo_omnisat {words[0]} ended with status {status}, expected 0')


def complete(
    runs: Iterable[Run],
    table: Path,
    folder: Path,
    root: str,
    machine: Machine = Machine(),
    do: Execute | None = None,
) -> dict[str, dict[str, str]]:
    """Do the runs that have no row yet, and return the rows of all of them.

    Args:
        runs: Runs; a repeated one is done once.
        table: CSV file with a row per run.
        folder: Folder of checkpoints and locks.
        root: Root of the data.
        machine: How the runs are executed.
        do: Function that does a run; :func:`execute` if None.

    Returns:
        Rows of the table by key.
    """
    todo, do = {run.key: run for run in runs}, do or execute
    folder.mkdir(parents=True, exist_ok=True)
    for patience in (0, -1):  # first the runs that no other process is doing, then the others
        for number, (key, run) in enumerate(todo.items(), 1):
            try:
                with FileLock(folder / f'{key}.lock', timeout=patience):
                    if key not in read(table):
                        say(f'Run {number} of {len(todo)}, {key}', error=True)
                        keep(table, do(run, folder, root, machine))
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
    """Add a row to a table, which other processes may extend at the same time."""
    table.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(table.with_name(f'.{table.name}.lock')):
        rows = {**read(table), row['key']: row}
        columns = list(dict.fromkeys(column for each in rows.values() for column in each))
        with atomic_file(table) as temporary, temporary.open('w', newline='') as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows.values())


def spread(rows: Sequence[Mapping[str, str]], column: str = 'mean_iou') -> tuple[float, float]:
    """Return mean and sample standard deviation of a column; the latter is NaN for a single row."""
    values = [float(row[column]) for row in rows]
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else float('nan')


def pretty(mean: float, deviation: float) -> str:
    """Format a mean with its standard deviation, if there is one."""
    return f'{mean:.1f}' + (f' ± {deviation:.1f}' if deviation == deviation else '')


def described(done: Iterable[Mapping[str, str]]) -> str:
    """Return the name of the data of some runs, which states whether they are synthetic."""
    return ', '.join(sorted({'synthetic landscapes' if row['made_up'] == 'True' else row['data'] for row in done}))


def circumstances(accelerator: str = 'auto') -> dict[str, Any]:
    """Return versions, commit and hardware."""
    packages = ('torch', 'torchgeo', 'lightning', 'timm', 'segmentation-models-pytorch')
    return {
        'commit': commit(),
        'python': platform.python_version(),
        'versions': json.dumps({name: version(name) for name in packages}),
        'device': device_name(accelerator),
        'cores': os.cpu_count(),
        'threads': torch.get_num_threads(),
    }


def device_name(accelerator: str = 'auto') -> str:
    """Return the name of the GPU, or else of the processor."""
    if uses_gpu(accelerator):
        return torch.cuda.get_device_name()
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor() or platform.machine()


def uses_gpu(accelerator: str) -> bool:
    """Return whether an accelerator of the trainer is a CUDA device."""
    return torch.cuda.is_available() and accelerator in ('auto', 'gpu', 'cuda')


def commit() -> str:
    """Return the commit of this package, with a plus sign if files are modified; empty outside of its repository."""
    package = Path(__file__).parents[1]

    def git(*words: str) -> str:
        try:
            made = subprocess.run(['git', *words], cwd=package, capture_output=True, text=True, check=False)
        except FileNotFoundError:  # git is not installed
            return ''
        return made.stdout.strip()

    if not git('ls-files', '__init__.py'):  # another repository may contain an installed package
        return ''
    return git('rev-parse', '--short', 'HEAD') + '+' * bool(git('status', '--porcelain', '--untracked-files=no', '.'))


def _train(words: list[str], target: Path, steps: int, machine: Machine) -> float:
    """Train until the checkpoint *target* exists, and return the seconds that led to it.

    Of an interrupted attempt, the time until its last checkpoint counts.
    """
    progress, attempts = target.with_name(PROGRESS), target.with_name(f'{target.stem}.attempts.json')
    resumable = 0 < machine.save_every < steps
    earlier = json.loads(attempts.read_text()) if resumable and attempts.is_file() else []
    if earlier and target.is_file():
        return sum(end - start for start, end in earlier)
    if resumable:
        words = [*words, *as_words(callback(ModelCheckpoint, '+', **_saving(progress, machine.save_every, False)))]
        if progress.is_file():
            say(f'Resuming from {progress}', error=True)
            words += ['--ckpt_path', str(progress)]
            start = earlier[-1][0]
            earlier[-1][1] = max(start, progress.stat().st_mtime)
    earlier.append([time.time(), time.time()])
    _write_json(attempts, earlier)
    (torchgeo_process if machine.devices > 1 else torchgeo_command)(words)
    earlier[-1][1] = time.time()
    _write_json(attempts, earlier)
    progress.unlink(missing_ok=True)
    return float(sum(end - start for start, end in earlier))


def _write_json(path: Path, content: Any) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(content))


def _data(run: Run, root: str, machine: Machine, devices: int = 1) -> dict[str, Any]:
    """Return the arguments of the datamodule; the batch is divided between the devices."""
    data = PUBLIC[run.data]
    if run.batch_size % devices:
        raise ValueError(f'batch size is {run.batch_size}, expected a multiple of the {devices} devices')
    if run.labels < 1 and data.few is None:
        raise ValueError(f'labels is {run.labels}, expected 1: {data.title} has no datamodule of a part of the labels')
    other = {'temporal_dropout': 0.2} | json.loads(run.data_options or '{}')
    options: dict[str, Any] = {
        'batch_size': run.batch_size // devices,
        'num_workers': machine.workers,
        **data.options(root, run.fold, run.modalities),
    }
    if run.labels < 1:
        options |= {'part': run.labels, 'draw': run.seed}
    if run.splits:
        options['splits'] = machine.splits
    if run.tiles is not None:
        options['num_tiles'] = run.tiles
    if run.max_dates is not None:
        options['max_dates'] = run.max_dates
    name = data.datamodule if run.labels == 1 else data.few
    return {'data': name, **{f'data.{key}': _word(value) for key, value in (options | other).items()}}


def _backbone(run: Run) -> dict[str, Any]:
    """Return the arguments of the backbone."""
    return {'model.backbone': run.backbone, 'model.backbone_args': run.backbone_args}


def _subsets(data: PublicData, modalities: Sequence[str]) -> dict[str, Any]:
    """Return the argument for every subset of the sensors; a task scores those of five modalities by default."""
    if len(modalities) <= 5:
        return {}
    sensors = sensors_in(data, modalities)
    groups = ([name for sensor in chosen for name in sensors[sensor]] for chosen in subsets(sensors, 'all'))
    return {'model.subsets': json.dumps([subset_name(names) for names in groups])}


def _trainer(folder: Path, run: Run, machine: Machine) -> dict[str, Any]:
    """Return the arguments of every trainer, which writes to *folder*."""
    chosen = {'trainer.accelerator': machine.accelerator} if machine.accelerator != 'auto' else {}
    chosen |= {'trainer.precision': run.precision} if run.precision else {}
    return {
        'trainer.default_root_dir': folder,
        'trainer.logger': 'false',
        'trainer.devices': machine.devices,
        'trainer.enable_progress_bar': 'false',
        'trainer.enable_model_summary': 'false',
        **chosen,
    }


def _training(run: Run, checkpoint: Path, steps: int, machine: Machine) -> dict[str, Any]:
    """Return the arguments of a training of some steps that ends in a checkpoint, without validation."""
    return {
        'seed_everything': run.seed,
        **_trainer(checkpoint.parent, run, machine),
        'trainer.max_steps': steps,
        'trainer.limit_val_batches': 0,
        **callback(ModelCheckpoint, **_saving(checkpoint, steps, True)),
    }


def _saving(checkpoint: Path, steps: int, weights_only: bool) -> dict[str, Any]:
    return {
        'dirpath': checkpoint.parent,
        'filename': checkpoint.stem,
        'every_n_train_steps': steps,
        'save_weights_only': weights_only,
        'enable_version_counter': False,
    }


def callback(kind: type[Callback], add: str = '', **arguments: Any) -> dict[str, Any]:
    """Return the arguments of a callback; with *add* ``'+'``, it is added to others."""
    name = kind.__name__ if kind is ModelCheckpoint else f'{kind.__module__}.{kind.__name__}'
    named = {f'trainer.callbacks.{key}': _word(value) for key, value in arguments.items()}
    return {f'trainer.callbacks{add}': name, **named}


def _word(value: Any) -> str:
    """Return a value as a word of the command line."""
    if isinstance(value, str | Path):
        return str(value)
    return json.dumps(value)


def as_words(options: Mapping[str, Any]) -> list[str]:
    """Return options as words of a command line."""
    return [word for name, value in options.items() for word in (f'--{name}', str(value))]


def flat(run: Run) -> dict[str, Any]:
    """Return the configuration as cells of a table."""
    return {**asdict(run), 'modalities': '+'.join(run.modalities)}
