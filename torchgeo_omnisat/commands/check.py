# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Check: what is in a dataset, and what is wrong with it."""

import os
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ActionYesNo
from jsonargparse.typing import ClosedUnitInterval

from ..datasets.integrity import KINDS
from ..tasks.outputs import replacing
from ..transforms.intensity import say_unknown
from ..validation import check, table, walk
from ..validation.tables import write_csv
from .data import data_parser, one_error, parse_data

__all__ = ['main', 'table', 'walk']


def main(argv: Sequence[str] | None = None) -> int:
    """Read the dataset, print what is in it and what is wrong, and write it if asked to.

    Args:
        argv: The words of the command line.

    Returns:
        The exit status: 1 if there is a problem, 0 if there is none or nothing but warnings.
    """
    parser = data_parser(
        'check',
        'Reads every file of every split, with all bands and dates, and prints values, dates, labels and problems. '
        'Exit status 1 if there is a problem. Warnings are about what published files have as well and nothing '
        'needs, or about values that are implausible. Training leaves out the tiles with a problem if it is given '
        'what --output wrote: --data.exclude FILE.',
    )
    parser.add_argument('--output', type=Path, help='JSON file to write, or CSV if it is called *.csv')
    parser.add_argument('--max-nan', type=ClosedUnitInterval, default=0.25, help='greatest fraction of invalid pixels')
    parser.add_argument(
        '--ignore',
        nargs='+',
        default=[],
        choices=list(KINDS),
        metavar='KIND',
        help=f'kinds of problem to pass over: {", ".join(KINDS)}',
    )
    parser.add_argument(
        '--dry-run',
        action=ActionYesNo(no_prefix='no-'),
        default=True,
        help='build the model of --config, load its checkpoint, and train and validate it on one batch on the CPU; '
        '--no-dry-run does not',
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    parser.add_argument('--workers', type=int, default=cores, help='number of processes that read')
    args, datamodule = parse_data(parser, argv)
    with one_error('check'):
        report = check(datamodule, args.training, args.max_nan, args.workers, args.ignore, args.dry_run)
    if report.samples and hasattr(datamodule, 'contents'):
        print(f'Files\n{datamodule.contents()}', end='\n\n')
    print(table(report))
    if line := say_unknown(getattr(datamodule, 'modalities', {}).values()):
        print(line)
    if args.output is not None:
        with replacing(args.output) as path:
            if args.output.suffix == '.csv':
                write_csv(report, path)
            else:
                report.write(path)
        print(f'Written to {args.output}')
    return 1 if report.faults else 0
