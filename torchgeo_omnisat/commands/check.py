# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Check: what is wrong with the files of a dataset."""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torchgeo.datasets import DatasetNotFoundError

from ..datamodules import MultimodalDataModule
from ..datamodules.stream import stream
from ..datasets.inspection import below, inspect
from ..datasets.integrity import KINDS, Findings, Problem, Report
from ..tasks.outputs import replacing
from ..transforms.intensity import say_unknown
from .data import data_parser, one_error, parse_data

#: At most so many rows of the table are printed; the file has all.
ROWS = 50
SPLITS = ('train', 'val', 'test')


def main(argv: Sequence[str] | None = None) -> int:
    """Walk the dataset, print what is wrong, and write it if asked to.

    Args:
        argv: The words of the command line.

    Returns:
        The exit status: 1 if there is a problem, 0 if there is none or nothing but warnings.
    """
    parser = data_parser(
        'check',
        'Opens every file of every split, with all bands and dates, and tells what is wrong. Exit status 1 if there '
        'is a problem. Warnings are about what published files have as well and nothing needs. Training leaves out '
        'the samples with a problem if it is given what --output wrote: --data.exclude FILE.',
    )
    parser.add_argument('--output', type=Path, help='JSON file to write')
    parser.add_argument('--max-nan', type=_share, default=0.25, help='greatest share of NaN or nodata (default: 0.25)')
    parser.add_argument(
        '--ignore',
        nargs='+',
        default=[],
        choices=list(KINDS),
        metavar='KIND',
        help=f'kinds to pass over: {list(KINDS)}',
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    parser.add_argument('--workers', type=int, default=cores, help='processes that read (default: as many as cores)')
    args, datamodule = parse_data(parser, argv)
    with one_error('check'):
        report = walk(datamodule, args.max_nan, args.workers, args.ignore)
    if report.samples and hasattr(datamodule, 'contents'):
        print(datamodule.contents(), end='\n\n')
    print(table(report))
    if line := say_unknown(getattr(datamodule, 'modalities', {}).values()):
        print(line)
    if args.output is not None:
        with replacing(args.output) as path:
            report.write(path)
        print(f'Written to {args.output}')
    return 1 if report.faults else 0


def walk(
    datamodule: MultimodalDataModule, max_nan: float = 0.25, num_workers: int = 0, ignore: Sequence[str] = ()
) -> Report:
    """Look at every sample of every split that is there.

    Args:
        datamodule: The data. What it is told to exclude is looked at too.
        max_nan: Greatest share of the pixels of a modality that may not be measured.
        num_workers: Processes that read.
        ignore: Kinds of problem to pass over.

    Returns:
        What was found.

    Raises:
        DatasetNotFoundError: If no split is there.
        TypeError: If the dataset does not say what its files should hold.
    """
    kind = datamodule.dataset_class
    if not hasattr(kind, 'parts'):
        raise TypeError(f'{kind.__name__} does not say what its files should hold, expected a dataset with parts')
    datamodule.exclude = None
    allow_missing = datamodule.kwargs.get('missing', 'allow') == 'allow'
    changes: dict[str, Any] = datamodule.whole_series()
    changes |= {'missing': 'check'} if 'missing' in datamodule.kwargs else {}
    problems: list[Problem] = []
    absent: Counter[str] = Counter()
    root = Path(datamodule.kwargs.get('root', getattr(datamodule, 'root', '.'))).expanduser()
    samples, lost = {}, []
    for split in SPLITS:
        try:
            if split in getattr(datamodule, 'left_out', tuple)():
                continue
            dataset = datamodule.make_dataset(split, **changes)
        except DatasetNotFoundError as error:
            lost.append(error)
            continue
        except (ValueError, OSError, RuntimeError) as error:
            problems.append(_about_dataset(error, root))
            continue
        samples[split], root = len(dataset), dataset.path
        datamodule.modalities = dict(dataset.modalities)
        look = partial(inspect, dataset, max_nan=max_nan, allow_missing=allow_missing)
        results: Any = stream(look, len(dataset), num_workers, f'Check {split}')
        for findings in results:
            _gather(findings, problems, absent)
    if len(lost) == len(SPLITS):
        raise lost[0]
    for absent_split in lost:
        print(f'Not checked: {absent_split}', file=sys.stderr)
    kept = [problem for problem in dict.fromkeys(problems) if problem.kind not in ignore]
    return Report(kind.layout, str(root.resolve()), samples, kept, dict(absent))


def table(report: Report, rows: int = ROWS) -> str:
    """What was found, a line for each thing that is wrong, and a summary.

    Args:
        report: What was found.
        rows: At most so many lines; the same about several samples is one.
    """
    merged: dict[tuple[bool, str, str, str], list[str]] = {}
    for problem in sorted(report.problems, key=lambda problem: problem.warning):
        merged.setdefault((problem.warning, problem.file, problem.kind, problem.reason), []).append(problem.sample)
    lines = []
    if merged:
        cells = [('', 'sample', 'file', 'reason')]
        for (warning, file, kind, reason), names in list(merged.items())[:rows]:
            more = f' and {len(names) - 1} more' * (len(names) > 1)
            cells.append(('warning' if warning else 'PROBLEM', (names[0] or 'all') + more, file, f'{kind}: {reason}'))
        widths = [max(len(row[column]) for row in cells) for column in range(3)]
        lines += [
            '  '.join([*(f'{cell:<{width}}' for cell, width in zip(row, widths, strict=False)), row[3]])
            for row in cells
        ]
        if len(merged) > rows:
            lines.append(f'... and {len(merged) - rows} more lines; --output FILE writes all')
        lines.append('')
    for name, count in report.absent.items():
        lines.append(f'{count} samples have no {name}, and nothing says that they should.')
    counts = ', '.join(f'{count} {kind}' for kind, count in report.count().items()) or 'none'
    splits = ', '.join(f'{count} of {split!r}' for split, count in report.samples.items()) or 'none'
    warned = sum(problem.warning for problem in report.problems)
    lines.append(f'{report.layout} in {report.root}: looked at {sum(report.samples.values())} samples ({splits}).')
    lines.append(f'Problems: {counts}; in {len(report.samples_at_fault)} samples. Warnings: {warned}.')
    return '\n'.join(lines)


def _gather(findings: Findings, problems: list[Problem], absent: Counter[str]) -> None:
    """Add what was found of one sample."""
    problems += findings.problems
    absent.update(findings.absent)


def _about_dataset(error: Exception, root: Path) -> Problem:
    """What keeps a dataset from being made at all; the file is the longest path that the error names."""
    words = [Path(word.strip('\'",;:')) for word in str(error).split() if word.startswith(str(root))]
    path = max(words, key=lambda word: len(word.parts), default=root)
    kind = 'missing' if isinstance(error, FileNotFoundError) else 'unreadable'
    return Problem('', '', below(path, root), kind, ' '.join(str(error).split()))


def _share(text: str) -> float:
    """A number from 0 to 1."""
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f'expected a share from 0 to 1, got {number}')
    return number
