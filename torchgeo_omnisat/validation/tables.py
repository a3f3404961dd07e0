# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Tables of a report of `check`, of at most 100 columns if names are short enough."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..datasets.common.integrity import Problem, Report
from ..utils.cli.console import align
from ..utils.plurals import counted

#: Maximum number of printed lines of problems; the output file has all.
ROWS = 50
WIDTH = 100


def table(report: Report, rows: int = ROWS) -> str:
    """Return the whole report: values, labels, at most so many *rows* of problems, and a summary."""
    parts = [modality_table(report), band_table(report), class_table(report), problem_table(report, rows)]
    return '\n\n'.join([*filter(None, parts), summary(report)])


def modality_table(report: Report) -> str:
    """Return coverage and acquisition dates, one line per modality."""
    cells = [('modality', 'kind', 'unit', 'GSD', 'tiles with it', 'dates', 'dates/tile', 'first date', 'last date')]
    for row in report.statistics.get('modalities', ()):
        tiles = f'{row["tiles"]} of {row["of"]}'
        if 0 < row['tiles'] < row['of']:
            tiles += f' ({_percent(row["tiles"] / row["of"])})'
        dates = (str(row['dates']), f'{row["dates_per_tile"] or 0:g}') if row['temporal'] else ('-', '-')
        facts = row['modality'], row['kind'] or 'unknown', row['unit'], f'{row["gsd"]:g} m'
        cells.append((*facts, tiles, *dates, row['first'] or '-', row['last'] or '-'))
    return 'Images\n' + align(cells, '<<<>>>><<') if len(cells) > 1 else ''


def band_table(report: Report) -> str:
    """Return minimum, mean, maximum, standard deviation and valid fraction, one line per band."""
    cells = [('modality', 'band', 'unit', 'min', 'mean', 'max', 'std', 'valid')]
    previous = None
    for row in report.statistics.get('bands', ()):
        name = row['modality'] if row['modality'] != previous else ''
        previous = row['modality']
        numbers = [_number(row[key]) for key in ('minimum', 'mean', 'maximum', 'std')]
        cells.append((name, row['band'], row['unit'] or 'unknown', *numbers, _percent(row['valid'])))
    return 'Values of valid pixels\n' + align(cells, '<<<>>>>>') if len(cells) > 1 else ''


def class_table(report: Report) -> str:
    """Return tiles, labelled pixels and fraction of each class, with the splits side by side.

    Continuous labels have no classes: the tiles and pixels with a value.
    """
    splits = report.statistics.get('splits', ())
    if not splits:
        return ''
    lines = [
        f'{row["split"]}: {_labelled(row)} labels'
        + f', {_percent(row["labelled"] / max(1, row["of"]))} of their pixels' * (row['counted'] != 'tiles')
        for row in splits
    ]
    if not report.statistics['classes']:
        return '\n'.join(['Labels', *lines])
    found = {(row['split'], row['class']): row for row in report.statistics['classes']}
    names = list(dict.fromkeys(name for _, name in found))
    text = ''
    for compact in (False, True):
        count = _compact if compact else str
        blocks = [align([('class',), *((name,) for name in names)], '<', f'{"":<5}')]
        for row in splits:
            cells = [_class_cells(found.get((row['split'], name)), row['counted'], count) for name in names]
            blocks.append(align([_heads(row), *cells], '>>>'[: len(_heads(row))], row['split']))
        text = beside(blocks)
        if max(map(len, text.splitlines())) <= WIDTH:
            break
    return '\n'.join(['Labels', *lines, text])


def problem_table(report: Report, rows: int = ROWS) -> str:
    """Return one line per problem and warning, first those of the whole dataset; empty if there is none.

    The same problem of several samples is one line.
    """
    merged: dict[tuple[bool, bool, str, str, str], list[str]] = {}
    for problem in sorted(report.problems, key=lambda problem: (problem.warning, bool(problem.sample))):
        key = (problem.warning, not problem.sample, problem.file, problem.kind, problem.reason)
        merged.setdefault(key, []).append(problem.sample)
    if not merged:
        return ''
    shown = list(merged.items())[:rows]
    cells = [('', 'sample', 'file', 'reason')]
    for (warning, whole, file, kind, reason), names in shown:
        if not whole:
            more = f' and {len(names) - 1} more' * (len(names) > 1)
            cells.append((_level(warning), names[0] + more, file, f'{kind}: {reason}'))
    aligned = iter(align(cells, '<<<<').splitlines())
    head, lines, open_ = next(aligned), [], False
    for (warning, whole, file, kind, reason), _ in shown:
        if whole:
            where = f'{file}: ' * bool(file and file not in reason)
            lines.append(f'{_level(warning)}  {kind}: {where}{reason}')
        else:
            lines += [next(aligned)] if open_ else [head, next(aligned)]
            open_ = True
    if len(merged) > rows:
        lines.append(f'... and {counted(len(merged) - rows, "more line")}; --output FILE writes all')
    return '\n'.join(lines)


def summary(report: Report) -> str:
    """Return the number of tiles and problems."""
    lines = []
    total = sum(report.samples.values())
    for name, count in report.absent.items():
        if name in ('mask', 'label'):
            lines.append(f'{_tiles(count)} no labels (this is not an error).'.replace('have', 'contain', 1))
        else:
            lines.append(f'{_tiles(count)} no {name} (partial coverage is not an error).')
    counts = ', '.join(f'{count} {kind}' for kind, count in report.count().items()) or 'none'
    splits = ', '.join(f'{count} of {split!r}' for split, count in report.samples.items())
    warned = sum(problem.warning for problem in report.problems)
    read = f'read {counted(total, "tile")} ({splits})' if total else 'no tile could be read'
    lines.append(f'{report.layout} in {report.root}: {read}.')
    where = f'; in {counted(len(report.samples_at_fault), "tile")}' * bool(report.samples_at_fault)
    lines.append(f'Problems: {counts}{where}. Warnings: {warned or "none"}.')
    return '\n'.join(lines)


def beside(blocks: Sequence[str]) -> str:
    """Return blocks with the same number of lines side by side."""
    columns = [block.split('\n') for block in blocks]
    widths = [max(map(len, lines)) for lines in columns]
    return '\n'.join(
        '   '.join(f'{part:<{width}}' for part, width in zip(parts, widths, strict=True)).rstrip()
        for parts in zip(*columns, strict=True)
    )


def write_csv(report: Report, path: Path) -> None:
    """Write the report as CSV with one row per value: table, split, modality, item, quantity, value."""
    rows: list[tuple[Any, ...]] = []
    names = {'modalities': ('', 'modality', ''), 'bands': ('', 'modality', 'band')}
    names |= {'splits': ('split', '', ''), 'classes': ('split', '', 'class')}
    for kind, keys in names.items():
        for row in report.statistics.get(kind, ()):
            where = [row.get(key, '') for key in keys]
            rows += [(kind, *where, quantity, value) for quantity, value in row.items() if quantity not in keys]
    rows += [
        ('problems', '', problem.part, problem.sample, problem.kind, _message(problem)) for problem in report.problems
    ]
    pd.DataFrame(rows, columns=['table', 'split', 'modality', 'item', 'quantity', 'value']).to_csv(path, index=False)


def _message(problem: Problem) -> str:
    level = 'warning: ' if problem.warning else ''
    return f'{level}{problem.file}: {problem.reason}' if problem.file else level + problem.reason


def _heads(row: Mapping[str, Any]) -> list[str]:
    return ['tiles', 'pixels', 'share'] if row['counted'] == 'pixels' else ['tiles', 'share']


def _class_cells(row: Mapping[str, Any] | None, counted: str, count: Any) -> list[str]:
    if row is None:
        return ['-'] * (3 if counted == 'pixels' else 2)
    pixels = [count(row['pixels'])] if counted == 'pixels' else []
    return [str(row['tiles']), *pixels, _percent(row['share'])]


def _level(warning: bool) -> str:
    return 'warning' if warning else 'PROBLEM'


def _labelled(row: Mapping[str, Any]) -> str:
    of = f'of {counted(row["tiles"], "tile")}'
    return counted(row['labelled_tiles'], f'{of} has', f'{of} have')


def _tiles(count: int) -> str:
    return counted(count, 'tile has', 'tiles have')


def _percent(value: float) -> str:
    """Format a fraction in per cent, without rounding to 0 or 100 %."""
    if 0 < value < 0.0005:
        return '<0.1 %'
    return '>99.9 %' if 0.9995 <= value < 1 else f'{value:.1%}'.replace('%', ' %').replace('.0 ', ' ')


def _number(value: float | None) -> str:
    if value is None:
        return '-'
    if value == 0 or (value == int(value) and abs(value) < 1e7):
        return f'{value:.0f}'
    if not 1e-4 <= abs(value) < 1e7:
        return f'{value:.2e}'
    return f'{value:.{max(0, 3 - math.floor(math.log10(abs(value))))}f}'


def _compact(count: int) -> str:
    for unit, size in (('M', 1e6), ('k', 1e3)):
        if count >= 10 * size:
            return f'{count / size:.0f}{unit}' if count >= 100 * size else f'{count / size:.1f}{unit}'
    return str(count)
