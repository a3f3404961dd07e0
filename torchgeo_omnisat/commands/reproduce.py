# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Command `reproduce`: train and test models on a public dataset, and report their scores beside published ones."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.request import Request, urlopen

import torchgeo.datasets

from ..datasets.common.integrity import Report
from ..reproduction.data import PUBLIC, PublicData
from ..reproduction.estimate import count_files, measure
from ..reproduction.report import write_report
from ..reproduction.runs import Machine, device_name
from ..reproduction.study import CHECK, Study, make_study
from ..utils.atomic import atomic_file
from ..utils.cli.console import align, say
from ..utils.plurals import counted
from ..validation import check_data, table
from . import parsers
from .data import one_error

#: Download rate in bits per second for which minutes are stated.
_RATE = 100e6


def main(argv: Sequence[str] | None = None) -> int:
    """Print the plan, do the runs that are not done yet, and print the table; return 1 if files have problems."""
    words = sys.argv[1:] if argv is None else list(argv)
    args = parsers.reproduce_parser().parse_args(words)
    with one_error('reproduce'):
        data = PUBLIC[args.data]
        if data.download and not available(data, args.root):
            say(describe_download(data))
            if args.dry_run:
                return 0
            download(data, args.root)
        machine = Machine(args.workers, args.devices, args.accelerator, args.save_every, args.weights, args.splits)
        study = make_study(
            args.data,
            args.root,
            args.rows,
            args.folds,
            args.seeds,
            machine,
            args.output,
            args.precision,
            steps=args.steps,
            pretraining_steps=args.pretraining_steps,
            batch_size=args.batch_size,
            backbone=args.backbone,
            max_dates=args.max_dates,
            tiles=args.tiles,
        )
        say(describe_files(study))
        if args.check and not args.dry_run:
            study.claim()
            if not is_sound(study):
                return 1
        say(describe_cost(study))
        if args.dry_run:
            return 0
        study.claim()
        command = f'python -m torchgeo_omnisat reproduce {shlex.join(words)}'
        text = ''
        for row in study.rows:
            study.do(row)
            text = write_report(study, command)
    say(text)
    say(f'Written to {args.output}: README.md, results.json, runs.csv, subsets.csv, figures, checkpoints')
    return 0


def available(data: PublicData, root: str) -> bool:
    """Return whether a dataset that can be downloaded is in *root*, as a folder or an archive."""
    return Path(root, data.folder).is_dir()


def describe_download(data: PublicData) -> str:
    """Return what is downloaded, with its size and duration."""
    kind = getattr(torchgeo.datasets, str(data.download))
    url = str(getattr(kind, 'download_link', None) or kind.url)
    try:
        with urlopen(Request(url, method='HEAD'), timeout=30) as response:
            size = int(response.headers['Content-Length'])
        cost = f'{size / 1e9:.2f} GB, about {size * 8 / _RATE / 60:.0f} minutes at 100 Mbit/s'
    except (OSError, TypeError, ValueError) as error:
        cost = f'its size is unknown ({error})'
    return f'Download of {data.title} from {url}: {cost}'


def download(data: PublicData, root: str) -> None:
    """Download a dataset with TorchGeo, which verifies its checksum."""
    getattr(torchgeo.datasets, str(data.download))(root, download=True, checksum=True)


def describe_files(study: Study) -> str:
    """Return the number of tiles and files, the sensors, and the protocol."""
    files, size = count_files(Path(study.root).expanduser())
    tiles = ', '.join(f'{number} {split}' for split, number in study.tiles.items())
    data = study.data
    whole = '' if study.complete or data.tiles is None else f'; not the whole dataset of {data.tiles} tiles'
    return '\n'.join(
        [
            f'Data: {data.title} in {study.root}: {counted(files, "file")}, {size / 1e9:.2f} GB',
            f'Tiles of {study.first_split}: {tiles}{whole}',
            f'Sensors: {", ".join(f"{sensor} ({', '.join(names)})" for sensor, names in study.sensors.items())}',
            f'Protocol: {study.protocol}',
        ]
    )


def describe_cost(study: Study) -> str:
    """Return the steps and the estimated hours of each row, from the time of a few steps of the real models."""
    done, total = study.done(), 0.0
    cells = [['row', 'sensors', 'runs', 'done', 'steps', 's/step', 's/test batch', 'hours left']]
    for row, run in study.each():
        runs = study.runs(row)
        left = [each for each in runs if each.key not in {line['key'] for line in done[row]}]
        numbers = ['', '', '0.00']
        if left:
            cost = measure(run, study.root, study.machine, study.test_tiles[run.fold])
            hours = cost.hours * len(left)
            total += hours
            numbers = [f'{cost.step:.3g}', f'{cost.test_batch:.3g}', f'{hours:.2f}']
        steps = f'{run.steps}' + f' + {run.pretraining_steps}' * bool(run.pretraining_steps)
        cells.append(
            [row, '+'.join(study.sensors_of(row)), f'{len(runs)}', f'{len(runs) - len(left)}', steps, *numbers]
        )
    device = device_name(study.machine.accelerator)
    title = (
        f'Estimate, from the time of a few steps of each row on {study.machine.devices} x {device}: '
        f'{total:.2f} hours. The first epoch may be slower, and other processes change it.'
    )
    return align(cells, '<<>>>>>>', title)


def is_sound(study: Study) -> bool:
    """Check all files of the first split, unless that was done, and print the problems."""
    path = study.output / CHECK
    if path.is_file() and not Report.read(path).faults:
        return True
    workers, ignored = study.machine.workers, study.data.ignored
    report = check_data(study.datamodule(), {}, num_workers=workers, ignore=ignored, dry_run=False)
    with atomic_file(path) as temporary:
        report.write(temporary)
    if report.faults:
        say(table(report))
        say(f'Files have problems, see {path}. Repair them, or continue with --no-check.')
        return False
    say(f'Files: no problem in {counted(sum(report.samples.values()), "tile")}')
    return True
