# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Report of a run as one HTML file without references to other files or to the network."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from ..utils.cli.console import printable
from .classes import metric_title

#: Nothing may be loaded, not even if a name of a class contained a reference.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


@dataclass(frozen=True)
class MapImage:
    """Map for the report, at reduced resolution.

    Args:
        name: Name of the file.
        image: Colours, ``(H, W, 4)`` uint8; transparent where there is no data.
        legend: Colour and fraction of the mapped pixels by class, or the range of values by colour.
        transform: Coefficients a to f of the affine transform from column and row of *image* to coordinates.
        crs: Name of the coordinate reference system.
        metres: Width of a pixel of *image* in metres, or None if it is unknown.
    """

    name: str
    image: NDArray[Any]
    legend: Sequence[tuple[str, str, float | None]]
    transform: Sequence[float]
    crs: str
    metres: float | None


@dataclass
class Run:
    """Content of a report; empty parts are left out.

    Args:
        title: First heading.
        scores: Metrics by name.
        summary: Metrics of the headline, by title.
        classes: Table of ``classes.csv``.
        subsets: Table of ``subsets.csv``.
        figures: PNG files by title: confusion matrix, subsets.
        curves: Logged values by name: table with the columns ``step`` and ``value``.
        examples: PNG files and the classes that each shows.
        sensors: One row of facts per modality.
        data: Facts about the data.
        maps: Maps.
        configuration: Texts by file name.
        versions: Versions by package.
        notes: What is missing, and how to obtain it.
    """

    title: str
    scores: Mapping[str, float] = field(default_factory=dict)
    summary: Mapping[str, float] = field(default_factory=dict)
    classes: pd.DataFrame | None = None
    subsets: pd.DataFrame | None = None
    figures: Mapping[str, bytes] = field(default_factory=dict)
    curves: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    examples: Sequence[tuple[bytes, Sequence[str]]] = ()
    sensors: Sequence[Mapping[str, Any]] = ()
    data: Mapping[str, str] = field(default_factory=dict)
    maps: Sequence[MapImage] = ()
    configuration: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()


def render(run: Run) -> str:
    """Return the HTML of a report."""
    parts = {
        'Scores': _scores(run),
        'Classes': _classes(run),
        'Confusion matrix': _figure(run.figures.get('confusion'), 'Confusion matrix in percent of the true class'),
        'Subsets of the sensors': _subsets(run),
        'Training': _curves(run),
        'Examples': _examples(run),
        'Maps': ''.join(_map(number, image) for number, image in enumerate(run.maps)),
        'Data': _data(run),
        'Configuration': ''.join(
            f'<details><summary>{_text(name)}</summary><pre>{_text(text)}</pre></details>'
            for name, text in run.configuration.items()
        ),
        'Versions': _pairs(run.versions),
    }
    shown = {title: body for title, body in parts.items() if body}
    links = ''.join(f'<a href="#{_anchor(title)}">{title}</a>' for title in shown)
    notes = ''.join(f'<p class="note">{_text(note)}</p>' for note in run.notes)
    body = ''.join(f'<section id="{_anchor(title)}"><h2>{title}</h2>{body}</section>' for title, body in shown.items())
    assets = files('torchgeo_omnisat.evaluation')
    style, script = (assets.joinpath(f'page.{kind}').read_text(encoding='utf-8') for kind in ('css', 'js'))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{_text(run.title)}</title><style>{style}</style></head>\n'
        f'<body><header><h1>{_text(run.title)}</h1><nav>{links}</nav></header>\n<main>{notes}{body}</main>'
        f'<script>{script}</script></body></html>\n'
    )


def _scores(run: Run) -> str:
    tiles = ''.join(f'<div><b>{value:.3f}</b>{_text(name)}</div>' for name, value in run.summary.items())
    others = {name: f'{value:.4f}' for name, value in run.scores.items() if not name.startswith('Classwise')}
    more = f'<details><summary>All metrics</summary>{_pairs(others)}</details>' if others else ''
    return (f'<div class="tiles">{tiles}</div>' if tiles else '') + more


def _classes(run: Run) -> str:
    """Return the scores of the classes that occur or are predicted."""
    if run.classes is None:
        return ''
    there = (run.classes.iloc[:, 1:3] != 0).any(axis=1)
    never = ', '.join(map(str, run.classes.iloc[:, 0][~there]))
    note = f'<p><small>Neither in the labels nor predicted: {_text(never)}</small></p>' if never else ''
    return _table(run.classes[there], bars=('iou', 'f1', 'precision', 'recall')) + note


def _subsets(run: Run) -> str:
    if run.subsets is None:
        return ''
    table = run.subsets.drop(columns=[name for name in ('data', 'modalities') if name in run.subsets])
    note = '<p>The same model, with only these sensors at test time.</p>'
    return note + _figure(run.figures.get('subsets'), 'Scores of the subsets') + _table(table)


def _curves(run: Run) -> str:
    if not run.curves:
        return ''
    names = {'loss': [name for name in run.curves if name.endswith('loss')]}
    names['score'] = [name for name in run.curves if not name.endswith('loss')]
    panels = [kind for kind, found in names.items() if found]
    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 2.8), squeeze=False, layout='constrained')
    for kind, panel in zip(panels, axes[0], strict=True):
        for name in names[kind]:
            curve = run.curves[name]
            panel.plot(curve['step'], curve['value'], marker='.' if len(curve) < 40 else None, label=name)
        panel.set(xlabel='step', ylabel=kind)
        panel.grid(color='#dddddd', linewidth=0.5)
        panel.legend(fontsize=7, frameon=False)
        panel.spines[['top', 'right']].set_visible(False)
    return _figure(png_of(figure), 'Losses and score during training')


def _examples(run: Run) -> str:
    shown = []
    for image, classes in run.examples:
        listed = ', '.join(map(_text, classes))
        shown.append(f'<figure>{_image(image, "Example")}<figcaption>{listed}</figcaption></figure>')
    return f'<div class="examples">{"".join(shown)}</div>' if shown else ''


def _data(run: Run) -> str:
    sensors = _table(pd.DataFrame(list(run.sensors))) if run.sensors else ''
    return _pairs(run.data) + sensors


def _map(number: int, image: MapImage) -> str:
    """Return a map that can be panned and zoomed, with its legend."""
    height, width = image.image.shape[:2]
    entries = ''.join(
        f'<li><i style="background:{color}"></i>{_text(name)}'
        + ('' if share is None else f' <small>{100 * share:.1f} %</small>')
        + '</li>'
        for name, color, share in image.legend
    )
    buffer = io.BytesIO()
    Image.fromarray(image.image, 'RGBA').save(buffer, 'PNG', optimize=True)
    facts = {
        'transform': list(image.transform),
        'crs': printable(image.crs),
        'metres': image.metres,
        'legend': {color: printable(name) for name, color, _ in image.legend},
        'width': width,
        'height': height,
    }
    described = escape(json.dumps(facts), quote=True)
    return (
        f'<h3>{_text(image.name)}</h3><div class="map" id="map{number}" tabindex="0" data-facts="{described}" '
        f'role="application" aria-label="Map; drag to move, scroll or + and - to zoom">'
        f'{_image(buffer.getvalue(), image.name)}<div class="buttons"><button>+</button><button>&minus;</button>'
        '<button>&#8634;</button></div><div class="scale"></div></div>'
        '<p class="place">Move the pointer over the map for class and coordinates.</p>'
        f'<ul class="legend">{entries}</ul>'
    )


def _table(table: pd.DataFrame, bars: Sequence[str] = ()) -> str:
    head = ''.join(f'<th>{_text(metric_title(str(name)))}</th>' for name in table.columns)
    rows = []
    for row in table.itertuples(index=False):
        cells = [_cell(value, name in bars) for name, value in zip(table.columns, row, strict=True)]
        rows.append(f'<tr>{"".join(cells)}</tr>')
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _cell(value: Any, bar: bool) -> str:
    if isinstance(value, float):
        if value != value:
            return '<td class="number">-</td>'
        style = f' style="--part:{max(0.0, min(1.0, value)):.3f}"' if bar else ''
        kind = 'number bar' if bar else 'number'
        return f'<td class="{kind}"{style}>{value:.3f}</td>'
    if isinstance(value, int) or hasattr(value, 'item'):
        return f'<td class="number">{int(value):,}</td>'
    return f'<td>{_text(value)}</td>'


def _pairs(pairs: Mapping[str, Any]) -> str:
    rows = ''.join(f'<dt>{_text(name)}</dt><dd>{_text(value)}</dd>' for name, value in pairs.items())
    return f'<dl>{rows}</dl>' if rows else ''


def png_of(figure: Figure) -> bytes:
    """Return a figure as PNG and close it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=130)
    plt.close(figure)
    return buffer.getvalue()


def _figure(image: bytes | None, title: str) -> str:
    return '' if image is None else f'<figure>{_image(image, title)}</figure>'


def _image(image: bytes, title: str) -> str:
    encoded = base64.b64encode(image).decode('ascii')
    return f'<img alt="{_text(title)}" src="data:image/png;base64,{encoded}">'


def _text(value: Any) -> str:
    return escape(printable(str(value), kept='\n\t'), quote=True)


def _anchor(title: str) -> str:
    return title.lower().replace(' ', '-')
