# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Command `check`: print a summary of a dataset and its problems."""

from collections.abc import Sequence

from ..transforms.intensity import describe_not_simulated
from ..utils.atomic import atomic_file
from ..utils.cli.console import say
from ..validation import check_data, table, walk
from ..validation.tables import write_csv
from . import parsers
from .data import data_parser, one_error, parse_data

__all__ = ['main', 'table', 'walk']


def main(argv: Sequence[str] | None = None) -> int:
    """Validate a dataset, print and optionally write the report; return 1 if there is a problem, else 0."""
    args, datamodule = parse_data(parsers.check_parser(data_parser), argv)
    with one_error('check'):
        report = check_data(datamodule, args.training, args.max_nan, args.workers, args.ignore, args.dry_run)
    if report.samples and hasattr(datamodule, 'contents'):
        say(f'Files\n{datamodule.contents()}', end='\n\n')
    say(table(report))
    if line := describe_not_simulated(getattr(datamodule, 'modalities', {}).values()):
        say(line)
    if args.output is not None:
        with one_error('check'), atomic_file(args.output) as path:
            if args.output.suffix == '.csv':
                write_csv(report, path)
            else:
                report.write(path)
        say(f'Written to {args.output}')
    return 1 if report.faults else 0
