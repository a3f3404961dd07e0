# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Command `init`: write a configuration for a folder of rasters and labels."""

import shlex
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..inspection.configuration import render
from ..inspection.files import list_files
from ..inspection.labels import Labels, described, find_float_labels, find_labels, may_be_labels
from ..inspection.like import prediction_data, read_trained
from ..inspection.plan import Plan, make_plan
from ..inspection.sensors import Sensor, find_sensors, single_bands
from ..utils.atomic import atomic_file
from ..utils.cli.console import say
from ..utils.plurals import counted
from . import parsers

#: Word in the comments of settings that the user must complete.
FILL_IN = 'FILL IN'


def main(argv: Sequence[str] | None = None) -> int:
    """Inspect a folder and write a configuration; return 0, also if facts are unknown."""
    args = parsers.init_parser().parse_args(argv)
    if args.output.exists() and not args.overwrite:
        raise ValueError(f'output is {args.output}, which exists, expected a new file, or --overwrite')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # check repeats them
        text, report = write_configuration(args)
    with atomic_file(args.output) as path:
        path.write_text(text, encoding='utf-8')
    say(report)
    say(f'Written to {args.output}. Next: python -m torchgeo_omnisat check --config {args.output}')
    return 0


def write_configuration(args: Any) -> tuple[str, str]:
    """Return the YAML and a report for the arguments of the command."""
    root = args.folder
    files = list_files(root)
    ask = ask_terminal if sys.stdin.isatty() and sys.stdout.isatty() else ask_nobody
    trained = None if args.like is None else read_trained(args.like)
    labels, notes = find_labels(root, files, single_bands(root, files), args.labels, args.column, ask)
    unread = bool(notes)
    if labels is None:
        labels = find_float_labels(root, files, single_bands(root, files, floats=True))
    used = set() if labels is None else set(labels.files)
    sensors, more = find_sensors(root, [file for file in files if file not in used], ask)
    notes += more
    labels = labels if trained is None else None
    readable = [sensor for sensor in sensors if sensor.modality is not None]
    if not sensors:
        notes += [] if labels is None else [f'it has only labels ({", ".join(labels.files[:3])}): add the images']
        notes += [] if files else ['it is empty']
        listed = '; '.join(['', *notes])
        raise ValueError(f'{root} has no rasters that can be read, expected GeoTIFFs or products{listed}')
    if labels is None and (args.preset != 'auto' or args.presto is not None):
        why = 'no labels were found' if trained is None else 'the model is that of --like'
        raise ValueError(
            f'--preset is {args.preset!r} and --presto is {args.presto!r}, but {why}: expected neither of them'
        )
    plan = Plan()
    if labels is not None and len(readable) == len(sensors):
        plan = make_plan(root, sensors, labels, args.preset, args.presto)
    data: dict[str, Any] = {}
    if trained is not None:
        data, more = prediction_data(root, sensors, trained)
        notes += more
    data = (
        data
        or plan.data
        or {
            'root': str(root),
            'rasters': {sensor.name: sensor.settings for sensor in sensors},
            'mask': None if labels is None else labels.mask,
            **({} if labels is None or labels.names is None else {'labels': labels.names}),
        }
    )
    if labels is None and trained is None:
        tables = [file for file in files if file.lower().endswith('.csv') and not may_be_labels(root, file)]
        other = f' ({", ".join(tables[:3])}: no columns lon and lat, or x and y)' if tables else ''
        notes.append(
            f'no labels were {"read" if unread else "found"}{other}: this configuration predicts maps and pre-trains; '
            + ('to train, mend the labels above or write the mask by hand' if unread else '--labels FILE names them')
        )
    config = {
        'seed_everything': 0,
        'trainer': {'default_root_dir': f'logs/{args.output.stem}', **plan.trainer},
        'model': (trained or {}).get('model')
        or {'class_path': 'omnisat', 'init_args': plan.model or {'backbone': 'omnisat_tiny'}},
        'data': {'class_path': 'MultimodalGeoDataModule', 'init_args': data},
    }
    comments = _comments(plan, sensors, labels)
    problems = [f'{sensor.name}: {sensor.problem}' for sensor in sensors if sensor.problem]
    unknown = [f'{path}: {note}' for path, note in comments.items() if FILL_IN in note]
    facts = [f'{sensor.name}: {sensor.summary}' for sensor in readable]
    facts += [] if labels is None else [f'labels: {described(labels)}']
    head = [
        f'Written by: python -m torchgeo_omnisat init {shlex.join([str(root), *_options(args)])}',
        *facts,
        *(f'NOTE {note}' for note in [*notes, *plan.warnings, *problems]),
        '',
        *_next(args.output, labels is not None),
    ]
    report = '\n'.join(
        [
            *facts,
            *(f'Note: {note}' for note in [*notes, *plan.warnings]),
            *(f'Problem: {problem}' for problem in problems),
            *(f'Unknown: {text}' for text in unknown),
        ]
    )
    return render(config, comments, head), report


def _options(args: Any) -> list[str]:
    """Return the options that determine a configuration, as they are given."""
    given = {name: getattr(args, name) for name in ('output', 'like', 'labels', 'column', 'preset', 'presto')}
    is_set = {name: value for name, value in given.items() if value not in (None, 'auto')}
    return [word for name, value in is_set.items() for word in (f'--{name}', str(value))]


def _next(output: Path, labelled: bool) -> list[str]:
    words = ['check', 'fit', 'test', 'predict', 'baseline'] if labelled else ['check', 'predict']
    checkpoint = ' --ckpt_path FILE.ckpt'
    return [
        f'  python -m torchgeo_omnisat {word:<8} --config {output}' + checkpoint * (word in ('test', 'predict'))
        for word in words
    ]


def _comments(plan: Plan, sensors: Sequence[Sensor], labels: Labels | None) -> dict[str, str]:
    """Return the comments by path of the setting."""
    start = 'data.init_args'
    comments = {
        path.replace('data.', f'{start}.', 1).replace('model.', 'model.init_args.', 1): note
        for path, note in plan.notes.items()
    }
    for sensor in sensors:
        for key, note in sensor.notes.items():
            is_set = key in sensor.settings
            comments[f'{start}.rasters.{sensor.name}.{key}'] = note if is_set else f'# {key}: {note}'
        if sensor.problem:
            comments[f'{start}.rasters.{sensor.name}'] = f'{FILL_IN}: {sensor.problem}'
    if labels is not None:
        for key, note in labels.notes.items():
            is_set = key in labels.mask or note.startswith('#')
            comments[f'{start}.mask.{key}'] = note if is_set else f'# {key}: {note}'
        listed = 'labels' if labels.names is not None else 'mask.classes'
        for name, count in labels.counts.items():
            key = name if labels.names is not None else _code(labels, name)
            where = {split: counts.get(name, 0) for split, counts in plan.counts.items()}
            pixels = ', '.join(f'{split} {each}' for split, each in where.items())
            number = counted(count, labels.what.removesuffix('s'))
            comments[f'{start}.{listed}.{key}'] = f'{number}; pixels: {pixels}' if pixels else number
    return comments


def _code(labels: Labels, name: str) -> Any:
    return next((code for code, other in labels.mask['classes'].items() if other == name), '')


def ask_nobody(question: str, choices: Sequence[str]) -> str | None:
    """Return None: without a terminal, nothing is asked."""
    return None


def ask_terminal(question: str, choices: Sequence[str]) -> str | None:
    """Ask the user on the terminal to choose by name or number; None for an empty answer."""
    say(question)
    for number, choice in enumerate(choices, 1):
        say(f'  {number}  {choice}')
    while True:
        try:
            answer = input('Number or name (Enter: unknown): ').strip()
        except EOFError:
            return None
        if not answer:
            return None
        if answer in choices:
            return answer
        if answer.isdigit() and 1 <= int(answer) <= len(choices):
            return choices[int(answer) - 1]
        say(f'{answer!r} is none of them, expected a number from 1 to {len(choices)} or a name')
