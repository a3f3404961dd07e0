# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Report of a robustness test in CSV, JSON and Markdown, with two figures."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from ..utils.atomic import atomic_file
from ..utils.cli.console import printable, table_cell
from .plots import draw_degradations, draw_subsets, write_figure
from .robustness import KINDS
from .subsets import SubsetRow


@dataclass(frozen=True)
class Scored:
    """Scores of one model.

    Args:
        label: Name of the model.
        rows: One row per subset of its sensors.
        degraded: Levels and their rows by kind of degradation, the clean level first.
    """

    label: str
    rows: Sequence[SubsetRow]
    degraded: Mapping[str, Sequence[tuple[float, SubsetRow]]] = field(default_factory=dict)

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield one flat record per row, with model, test, setting and scores."""
        for row in self.rows:
            yield {'model': self.label, 'test': 'sensors', 'setting': row.subset, **_cells(row)}
        for kind, levels in self.degraded.items():
            for level, row in levels:
                yield {'model': self.label, 'test': kind, 'setting': f'{level:g}', **_cells(row)}


def write_report(scored: Sequence[Scored], folder: Path, data: str, circumstances: Mapping[str, Any]) -> list[Path]:
    """Write the report of at least one model, each file atomically; every file states the name of the data."""
    records = [{**record, 'data': data} for model in scored for record in model.records()]
    files = {name: folder / name for name in ('robustness.csv', 'robustness.json', 'robustness.md')}
    with atomic_file(files['robustness.csv']) as path:
        pd.DataFrame(records).to_csv(path, index=False, float_format='%.6f', na_rep='nan')
    with atomic_file(files['robustness.json']) as path:
        plain = [{k: None if v != v else v for k, v in record.items()} for record in records]
        path.write_text(json.dumps({'data': data, **circumstances, 'scores': plain}, indent=1) + '\n', encoding='utf-8')
    with atomic_file(files['robustness.md']) as path:
        path.write_text(markdown(scored, data), encoding='utf-8')
    title = scored[0].rows[0].title
    subsets = {printable(model.label): {row.subset: row.score for row in model.rows} for model in scored}
    files['subsets.png'] = folder / 'subsets.png'
    write_figure(draw_subsets(subsets, title, f'Sensors at test time\ndata: {printable(data)}'), files['subsets.png'])
    lines = {
        printable(m.label): {k: {at: r.score for at, r in v} for k, v in m.degraded.items()}
        for m in scored
        if m.degraded
    }
    if lines:
        files['degradations.png'] = folder / 'degradations.png'
        axes = {name: kind.axis for name, kind in KINDS.items()}
        figure = draw_degradations(
            lines, axes, title, f'Sensors that see less; {scored[0].rows[0].subset}, data: {printable(data)}'
        )
        write_figure(figure, files['degradations.png'])
    return list(files.values())


def markdown(scored: Sequence[Scored], data: str) -> str:
    """Return two Markdown tables with one column per model: subsets of the sensors, and degradations."""
    title = scored[0].rows[0].title
    head = ['| ' + ' | '.join(['{kind}', *(table_cell(model.label) for model in scored), 'samples']) + ' |']
    head.append('| --- |' + ' --- |' * (len(scored) + 1))
    subsets = sorted(
        {row.subset: row for model in scored for row in model.rows}.values(), key=lambda row: -row.modalities
    )
    lines = [
        f'# Robustness\n\n{title} in %, data: **{table_cell(data)}**.\n',
        head[0].replace('{kind}', 'sensors', 1),
        head[1],
    ]
    for row in subsets:
        found = [next((r for r in model.rows if r.subset == row.subset), None) for model in scored]
        lines.append(_line(row.subset, found))
    degraded = dict.fromkeys((k, at) for model in scored for k, levels in model.degraded.items() for at, _ in levels)
    if degraded:
        lines += ['', head[0].replace('{kind}', 'degraded', 1), head[1]]
    for kind, level in degraded:
        found = [dict(model.degraded.get(kind, ())).get(level) for model in scored]
        lines.append(_line(f'{KINDS[kind].axis}: {"no noise" if math.isinf(level) else f"{level:g}"}', found))
    note = 'Samples without any of the sensors are left out of a row. What is degraded is drawn from a seed.'
    return '\n'.join([*lines, '', note]) + '\n'


def _line(name: str, found: Sequence[SubsetRow | None]) -> str:
    scores = ['-' if row is None or row.score != row.score else f'{100 * row.score:.1f}' for row in found]
    samples = sorted({row.samples for row in found if row is not None})
    return '| ' + ' | '.join([table_cell(name), *scores, ', '.join(map(str, samples))]) + ' |'


def _cells(row: SubsetRow) -> dict[str, Any]:
    cells = {key: value for key, value in row.as_dict().items() if key != 'subset'}
    return {'sensors': cells.pop('modalities'), **cells}
