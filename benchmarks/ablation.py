# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""The tables of the OmniSat summary, each row a command that anyone can run.

Every row trains as many steps on as many tiles of the same folds with the same loss and
schedule, and is tested on the same fold. Each run is a line of a CSV file, written when it
is done; whoever calls this again, or at the same time, goes on with the others.

    python benchmarks/ablation.py                             # synthetic landscapes
    python benchmarks/ablation.py --smoke                     # the same rows, one seed, minutes
    python benchmarks/ablation.py --data pastis --root DIR    # PASTIS-HD in its official folds
    python benchmarks/ablation.py --tables dedicated          # a model for each subset of the sensors
    python benchmarks/ablation.py --tables robustness         # what missing sensors cost, beside these
    python benchmarks/ablation.py --tables robustness --report   # tables of the runs that are done
"""

import argparse
import itertools
import shutil
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib.pyplot as plt
import missing
from matplotlib.figure import Figure

from torchgeo_omnisat.reproduction import runs
from torchgeo_omnisat.reproduction.rows import SENSORS, SIZES, Row, Size, make_run
from torchgeo_omnisat.reproduction.runs import Run, described, pretty, spread
from torchgeo_omnisat.utils.atomic import atomic_file

HERE = Path(__file__).parent
#: Data of the tables.
DATA = ('synthetic', 'pastis')
#: The lines of each table with their runs.
Tables = Mapping[str, Sequence[tuple[Row, Sequence[Mapping[str, str]]]]]

WHOLE = Row('all (OmniSat)', claimed=67.5)
SCRATCH = Row('without pre-training', pretrained=False, claimed=64.1)
ALONE = Row('all or some sensors in each step', pretrained=False, both=False)
#: An OmniSat for each subset of the sensors, which never lacks any of them.
DEDICATED = tuple(
    Row(f'OmniSat of {"+".join(sensors)}', sensors, pretrained=False, dropout=False)
    for count in (3, 2, 1)
    for sensors in itertools.combinations(SENSORS, count)
)
TABLES = {
    'summary': (
        Row('S2 only (U-TAE)', ('S2',), 'utae', claimed=63.1),
        Row('S1+S2 (dual-stream)', ('S2', 'S1'), 'dual_stream', claimed=65.2),
        WHOLE,
    ),
    'ablation': (
        WHOLE,
        SCRATCH,
        Row('without modality dropout', dropout=False, claimed=65.8),
        Row('without S1', ('S2', 'SPOT'), claimed=66.2),
        Row('without SPOT', ('S2', 'S1'), claimed=65.9),
    ),
    'dedicated': (Row('late fusion of all', backbone='late_fusion'), *DEDICATED),
    'robustness': (WHOLE, SCRATCH, ALONE, *DEDICATED),
}
#: Models that lose sensors at test time, by what they are called beside the dedicated ones.
TESTED = {
    'no dropout': DEDICATED[0],
    'all or some in each step': ALONE,
    'all and some in each step': SCRATCH,
    'pre-trained, all and some': WHOLE,
}


def budget(done: Iterable[Mapping[str, str]]) -> str:
    """Return the budget and hardware of all runs: one value where they agree, otherwise all values."""

    def values(column: str) -> str:
        return ', '.join(sorted({row[column] for row in rows}))

    rows = list(done)
    what = f'Data: **{described(rows)}**'
    tiles = f', {values("tiles")} tiles' if values('tiles') else ''
    steps = sorted({row['pretraining_steps'] for row in rows} - {'0'})
    return '\n'.join(
        [
            f'{what}{tiles}, fold {values("fold")}. Every row: {values("steps")} optimiser steps of '
            f'{values("batch_size")} tiles, learning rate {values("lr")}, seeds {values("seed")}; rows with '
            f'pre-training also {", ".join(steps) or "no"} steps of it, without labels.',
            f'Device: {values("device")}, {values("cores")} cores, {values("threads")} threads. Python '
            f'{values("python")}, {values("versions")}, commit {values("commit")}.',
        ]
    )


def markdown(tables: Tables) -> str:
    """Return the tables as Markdown, without runs that are not complete."""
    parts = []
    for title, lines in tables.items():
        table = [f'## {title}', '', '| | sensors | mean IoU (%) | overall accuracy (%) | runs | claimed for PASTIS |']
        table.append('| --- | --- | --- | --- | --- | --- |')
        for row, done in lines:
            scores = [pretty(*spread(done, column)) for column in ('mean_iou', 'overall_accuracy')]
            claimed = '' if row.claimed is None else f'{row.claimed}'
            table.append(f'| {row.name} | {"+".join(row.sensors)} | {" | ".join(scores)} | {len(done)} | {claimed} |')
        parts.append('\n'.join(table))
    parts.append(budget(run for lines in tables.values() for _, done in lines for run in done))
    parts.append(
        'Mean and standard deviation over the runs. The last column is what the OmniSat summary claims for '
        'PASTIS, of which 63.1 alone has a public source; made-up landscapes cannot confirm or refute it.'
    )
    return '\n\n'.join(parts) + '\n'


def draw(tables: Tables) -> Figure:
    """Plot the mean IoU of every row: one dot per run, a line at their mean."""
    lines = list(dict.fromkeys((row.name, row) for table in tables.values() for row, _ in table))
    found = {row.name: done for table in tables.values() for row, done in table}
    figure, axes = plt.subplots(figsize=(6.4, 1.0 + 0.35 * len(lines)), layout='constrained')
    for y, (name, _) in enumerate(lines):
        values = [float(run['mean_iou']) for run in found[name]]
        axes.plot([statistics.mean(values)] * 2, [y - 0.3, y + 0.3], color='#08306b', linewidth=2)
        axes.scatter(values, [y] * len(values), color='#4292c6', zorder=2)
    data = described(run for done in found.values() for run in done)
    axes.set(yticks=range(len(lines)), yticklabels=[name for name, _ in lines], ylim=(len(lines) - 0.5, -0.5))
    axes.set_xlabel(f'mean IoU (%), test fold\ndata: {data}')
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(axis='x', color='#d9d9d9')
    axes.set_axisbelow(True)
    return figure


def report(tables: Tables, made: 'Plan') -> str:
    """Write the tables as Markdown and the figure as PNG beside the CSV, and return the Markdown."""
    text, figure = markdown(tables), draw(tables)
    with atomic_file(made.path('ablation', '.md')) as path:
        path.write_text(text)
    with atomic_file(made.path('ablation', '.png')) as path:
        figure.savefig(path, format='png', dpi=110)
    plt.close(figure)
    return text


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the arguments that tables and curves share."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument('--data', choices=DATA, default='synthetic')
    made.add_argument('--root', help='where the data are (synthetic: where they are written)')
    made.add_argument('--size', choices=list(SIZES), help='default: small for synthetic data, long for others')
    made.add_argument('--smoke', action='store_true', help='--size smoke')
    made.add_argument('--fresh', action='store_true', help='forget what runs of this size are done')
    made.add_argument('--seeds', type=int, nargs='+', help='default: 0 1 2, of the smoke size 0')
    made.add_argument('--folds', type=int, nargs='+', help='default: 1 for synthetic data, 1 to 5 for others')
    made.add_argument('--steps', type=int, help='optimiser steps of every row')
    made.add_argument('--pretraining-steps', type=int, help='steps of pre-training, where a row has it')
    made.add_argument('--batch-size', type=int, help='tiles a step')
    made.add_argument('--max-dates', type=int, help='the most dates of a series')
    made.add_argument('--workers', type=int, default=0, help='processes that read')
    made.add_argument('--folder', type=Path, default=HERE / 'runs', help='for checkpoints, and results of --smoke')
    return made


@dataclass(frozen=True)
class Plan:
    """What the arguments ask for: a size, where things are, and the folds and seeds of each row."""

    size: Size
    data: str
    root: str
    folder: Path
    results: Path
    draws: tuple[tuple[int, int], ...]
    workers: int

    def runs(self, row: Row) -> list[Run]:
        """Return the runs of a row."""
        return [make_run(row, self.size, self.data, fold, seed) for fold, seed in self.draws]

    def complete(self, wanted: Iterable[Run]) -> dict[str, dict[str, str]]:
        """Do what is not done; lines by key."""
        return runs.complete(wanted, self.path('runs', '.csv'), self.folder, self.root, runs.Machine(self.workers))

    def path(self, name: str, suffix: str) -> Path:
        """Where a result goes; tables and curves share the CSV."""
        return self.results / f'{name}-{self.folder.name}{suffix}'


def plan(args: argparse.Namespace) -> Plan:
    """Make sense of the arguments."""
    synthetic = args.data == 'synthetic'
    if args.root is None and not synthetic:
        raise SystemExit(f'--data {args.data} needs --root, the directory that holds it')
    chosen = 'smoke' if args.smoke else args.size or ('small' if synthetic else 'long')
    told = {key: getattr(args, key) for key in ('steps', 'pretraining_steps', 'batch_size', 'max_dates')}
    size = replace(SIZES[chosen], **{key: value for key, value in told.items() if value is not None})
    folds = args.folds or ([1] if synthetic else [1, 2, 3, 4, 5])
    seeds = args.seeds or (size.seeds if synthetic else (0,))
    made = Plan(
        size=size,
        data=args.data,
        root=args.root or str(args.folder / f'landscapes-{size.tiles}'),
        folder=args.folder / f'{args.data}-{chosen}',
        results=args.folder if chosen == 'smoke' else HERE / 'results',
        draws=tuple(itertools.product(folds, seeds)),
        workers=args.workers,
    )
    if args.fresh:
        shutil.rmtree(made.folder, ignore_errors=True)
        made.path('runs', '.csv').unlink(missing_ok=True)
    return made


def main() -> None:
    """Do what is not done yet, and print the tables."""
    arguments = parser(__doc__)
    arguments.add_argument('--tables', choices=list(TABLES), nargs='+', default=['summary', 'ablation'])
    arguments.add_argument('--report', action='store_true', help='print the tables of the runs that are done')
    args = arguments.parse_args()
    if args.report and args.fresh:
        raise SystemExit('--report prints the runs that --fresh would forget, expected one of them')
    made = plan(args)
    wanted = {title: {row: made.runs(row) for row in TABLES[title]} for title in args.tables}
    if args.report:
        done = runs.read(made.path('runs', '.csv'))
        if not any(run.key in done for rows in wanted.values() for row_runs in rows.values() for run in row_runs):
            raise SystemExit(
                f'{made.path("runs", ".csv")} has no run of the tables {args.tables}: run without --report'
            )
    else:
        done = made.complete(run for rows in wanted.values() for row_runs in rows.values() for run in row_runs)
    found = {
        title: [
            (row, lines)
            for row, row_runs in rows.items()
            if (lines := [done[run.key] for run in row_runs if run.key in done])
        ]
        for title, rows in wanted.items()
    }
    print(report(found, made))
    if found.get('robustness'):
        lines = dict(found['robustness'])
        tested = {name: lines[row] for name, row in TESTED.items() if row in lines}
        dedicated = {row.sensors: lines[row] for row in DEDICATED if row in lines}
        print(missing.report(tested, dedicated, SENSORS, made.path))


if __name__ == '__main__':
    main()
