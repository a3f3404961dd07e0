# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Command `robustness`: score trained models with missing and degraded sensors."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer

from ..datamodules import MultimodalDataModule
from ..datasets.common.arguments import class_at
from ..evaluation.report import Scored, markdown, write_report
from ..evaluation.robustness import RobustnessTest
from ..tasks import OmniSatClassification, OmniSatRegression, OmniSatSegmentation, SupervisedTask
from ..tasks.checkpoints import read_checkpoint
from ..utils.cli.console import quiet, say
from . import parsers
from .data import data_parser, one_error, parse_data


def main(argv: Sequence[str] | None = None) -> int:
    """Score the checkpoints, and write and print the report."""
    args, datamodule = parse_data(parsers.robustness_parser(data_parser), argv)
    with one_error('robustness'):
        labelled, groups = parse_checkpoints(args.ckpt), parse_groups(args.groups)
        which = args.subsets[0] if args.subsets in (['auto'], ['all']) else args.subsets
        tasks = {label: [load_task(path, args.task) for path in paths] for label, paths in labelled.items()}
        datamodule.prepare_data()
        datamodule.setup('test')
        if unknown := [name for names in groups.values() for name in names if name not in datamodule.modalities]:
            raise ValueError(f'--groups contains {unknown}, expected some of {list(datamodule.modalities)}')
        there = tuple(datamodule.modalities)
        scored = []
        for label, models in tasks.items():
            kinds = args.degrade if len(models) == 1 else ()
            tests = [RobustnessTest(task, groups, kinds, seed=args.seed, subsets=which) for task in models]
            for path, test in zip(labelled[label], tests, strict=True):
                say(f'{label}: {path}', error=True)
                run(test, datamodule, there, args.accelerator)
            scored.append(join(label, [Scored(label, *test.results()) for test in tests]))
        if len(titles := {model.rows[0].title for model in scored}) > 1:
            raise ValueError(f'metrics of the checkpoints are {sorted(titles)}, expected models of one task')
        name = type(datamodule).__name__.removesuffix('DataModule')
        data = 'synthetic landscapes' if datamodule.synthetic else name
        files = write_report(
            scored,
            args.output,
            data,
            {
                'checkpoints': {label: [str(path) for path in paths] for label, paths in labelled.items()},
                'groups': groups,
                'seed': args.seed,
                'datamodule': type(datamodule).__name__,
                'versions': {name: version(name) for name in ('torch', 'torchgeo', 'torchgeo_omnisat')},
            },
        )
    say(markdown(scored, data))
    say('\n'.join(map(str, files)))
    return 0


def run(test: RobustnessTest, datamodule: MultimodalDataModule, there: Sequence[str], accelerator: str) -> None:
    """Score a model on the test split, without reading modalities that it does not use.

    *datamodule* is changed accordingly; *there* are the names of the modalities of the data. Raise ValueError if model
    and data share no modality, the data have no target, or the accelerator is not available.
    """
    trained = list(test.task.modalities)
    names = tuple(name for name in there if name in trained)
    if not names:
        raise ValueError(f'modalities of the model are {trained}, expected some of those of the data, {list(there)}')
    if 'modalities' in datamodule.kwargs:
        datamodule.kwargs['modalities'] = names
    elif len(names) < len(there):
        raise ValueError(
            f'modalities of the model are {trained}, expected all of {list(there)}, which {type(datamodule).__name__} '
            'always reads'
        )
    with quiet():
        try:
            trainer = Trainer(
                accelerator=accelerator, devices=1, logger=False, enable_checkpointing=False, enable_model_summary=False
            )
        except MisconfigurationException as error:
            raise ValueError(f'--accelerator {accelerator}: {error}') from error
        trainer.test(test, datamodule=datamodule, verbose=False)


def join(label: str, models: Sequence[Scored]) -> Scored:
    """Join the scores of the models of one label; of several models, only those with all of their sensors.

    Raises:
        ValueError: If two models have the same sensors.
    """
    if len(models) == 1:
        return models[0]
    rows = [model.rows[0] for model in models]
    names = [row.subset for row in rows]
    if len(set(names)) < len(names):
        raise ValueError(f'checkpoints with label {label!r} have the sensors {names}, expected different ones')
    return Scored(label, sorted(rows, key=lambda row: -row.modalities))


def load_task(path: Path, class_path: str | None = None) -> SupervisedTask:
    """Load the trained task of a checkpoint, whose class is *class_path* or one of this package."""
    _, hparams = read_checkpoint(path)
    kinds: dict[str, Any] = {
        'num_classes': OmniSatSegmentation,
        'label_names': OmniSatClassification,
        'target_mean': OmniSatRegression,
    }
    kind: Any = class_at(class_path, SupervisedTask, '--task') if class_path else None
    kind = kind or next((kind for key, kind in kinds.items() if key in hparams), None)
    if kind is None or not path.is_file():
        raise ValueError(f'expected a checkpoint of {" or ".join(k.__name__ for k in kinds.values())}, got {path}')
    task: SupervisedTask = kind.load_from_checkpoint(path, map_location='cpu', weights_only=True)
    return task


def parse_checkpoints(words: Sequence[str]) -> dict[str, list[Path]]:
    """Return checkpoints by label, which defaults to the file name, with ``=`` allowed as in Lightning's.

    Raises:
        ValueError: If two files without a label have the same name.
    """
    labelled: dict[str, list[Path]] = {}
    for word in words:
        label, sign, name = word.partition('=')
        bare = not sign or '/' in label or Path(word).is_file()
        path = Path(word if bare else name)
        if bare and path.stem in labelled:
            raise ValueError(f'--ckpt has two models with label {path.stem!r}, expected LABEL={path}')
        labelled.setdefault(path.stem if bare else label, []).append(path.expanduser())
    return labelled


def parse_groups(words: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Parse modalities by sensor from arguments such as ``s1=s1a,s1d``.

    Raises:
        ValueError: If an argument does not have that form.
    """
    groups = {}
    for word in words:
        sensor, sign, names = word.partition('=')
        members = tuple(names.split(','))
        if not (sensor and sign and all(members)):
            raise ValueError(f'--groups contains {word!r}, expected SENSOR=MODALITY,MODALITY')
        groups[sensor] = members
    return groups
