# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Figures of robustness: scores of subsets of sensors, and of degraded sensors."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..utils.atomic import atomic_file
from ..utils.figures import plain_text, save_figure
from .subsets import SubsetRow

#: Colours for colour-blind readers (Okabe and Ito), dark and light in turn.
COLOURS = ('#0072b2', '#e69f00', '#009e73', '#cc79a7', '#56b4e9', '#d55e00', '#000000')
#: Hatches and markers distinguish models without colours.
HATCHES = ('', '///', '...', 'xx', '\\\\\\', '++', 'oo')
MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X')
DARK, GREY = '#333333', '#d9d9d9'

#: Scores up to 1, from 0 or, for R2, below it; for example by the name of a subset.
Scores = Mapping[str, float]


def write_subsets(rows: Sequence[SubsetRow], path: Path, data: str) -> None:
    """Write :func:`draw_subsets` of the rows of one model that have a score as PNG, atomically."""
    write_figure(draw_subsets({'': {row.subset: row.score for row in rows}}, rows[0].title, f'data: {data}'), path)


def write_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG and close it."""
    with atomic_file(path) as temporary:
        save_figure(figure, temporary, dpi=150)
    plt.close(figure)


@plain_text()  # a class may be called $x$
def draw_subsets(models: Mapping[str, Scores], score: str, title: str) -> Figure:
    """Draw the scores of every subset, such as ``'s1+s2'``, as bars above dots that mark its sensors.

    Subsets are sorted by size, then by the score of the first model. A dashed line marks the first model's score with
    all sensors. The gap between a bar and the line is the cost of the missing sensors. Missing and NaN scores are
    omitted.
    """
    found = {name: {k: v for k, v in scores.items() if math.isfinite(v)} for name, scores in models.items()}
    best = {subset: value for scores in reversed(found.values()) for subset, value in scores.items()}
    order = sorted(best, key=lambda subset: (-len(subset.split('+')), -best[subset]))
    sensors = sorted({sensor for subset in order for sensor in subset.split('+')})
    width = max(4.0, 1.6 + (0.3 + 0.25 * len(found)) * len(order))
    figure, (bars, dots) = plt.subplots(
        2,
        1,
        sharex=True,
        figsize=(width, 3.4 + 0.3 * len(sensors)),
        height_ratios=(3.0, 0.4 + 0.35 * len(sensors)),
        layout='constrained',
    )
    figure.suptitle(title, fontsize=10)
    _draw_bars(bars, found, order)
    _draw_dots(dots, order, sensors)
    bars.set_ylabel(f'{score} (%)')
    handles, labels = bars.get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', ncols=3, frameon=False, fontsize=8)
    return figure


@plain_text()  # a class may be called $x$
def draw_degradations(
    models: Mapping[str, Mapping[str, Mapping[float, float]]], axes_of: Mapping[str, str], score: str, title: str
) -> Figure:
    """Draw the score over the level of degradation, one panel per kind and one line per model.

    *axes_of* is the label of the axis of each kind, with its unit. The first level is the clean one.
    """
    kinds = [kind for kind in axes_of if any(levels.get(kind) for levels in models.values())]
    figure, panels = plt.subplots(
        1, len(kinds), sharey=True, squeeze=False, figsize=(1.0 + 2.7 * len(kinds), 3.4), layout='constrained'
    )
    figure.suptitle(title, fontsize=10)
    for kind, panel in zip(kinds, panels[0], strict=True):
        levels = list(dict.fromkeys(level for model in models.values() for level in model.get(kind, {})))
        for number, (name, found) in enumerate(models.items()):
            if kind not in found:
                continue
            where = [levels.index(level) for level in found[kind]]
            values = [100 * value for value in found[kind].values()]
            style = {'color': COLOURS[number % 7], 'marker': MARKERS[number % 7], 'linestyle': ('-', '--')[number % 2]}
            panel.plot(where, values, label=name or None, markersize=5, **style)
        panel.set_xticks(range(len(levels)), ['none' if math.isinf(level) else f'{level:g}' for level in levels])
        panel.set_xlabel(axes_of[kind])
        _tidy(panel)
    panels[0, 0].set_ylabel(f'{score} (%)')
    panels[0, 0].set_ylim(bottom=0)
    if len(models) > 1:
        figure.legend(
            *panels[0, 0].get_legend_handles_labels(), loc='outside lower center', ncols=3, frameon=False, fontsize=8
        )
    return figure


def _draw_bars(axes: Axes, models: Mapping[str, Scores], order: Sequence[str]) -> None:
    """Draw a bar with its value for each model and subset, and a line at the full score of the first model."""
    thick = 0.8 / max(1, len(models))
    for number, (name, scores) in enumerate(models.items()):
        places = [x for x, subset in enumerate(order) if subset in scores]
        heights = [100 * scores[order[x]] for x in places]
        offset = (number - (len(models) - 1) / 2) * thick
        style: dict[str, Any] = {
            'color': COLOURS[number % 7],
            'hatch': HATCHES[number % 7],
            'edgecolor': 'white',
            'linewidth': 0,
        }
        bars = axes.bar([x + offset for x in places], heights, thick * 0.95, label=name or None, **style)
        box = {'facecolor': 'white', 'edgecolor': 'none', 'pad': 0.3}
        axes.bar_label(bars, fmt='%.1f', padding=2, fontsize=8 if len(models) == 1 else 6, bbox=box)
        if number == 0 and heights and places[0] == 0:
            whole = f'{name}: all sensors' if name else 'all sensors'
            axes.axhline(heights[0], color=DARK, linewidth=1, linestyle='--', zorder=0, label=whole)
    values = [100 * value for scores in models.values() for value in scores.values()]
    least, most = min(values, default=0), max(values, default=0)
    axes.set(ylim=(max(-100, min(0, 1.12 * least)), max(1.0, 1.12 * most)), xlim=(-0.8, max(len(order), 1) - 0.2))
    axes.tick_params(axis='x', bottom=False)
    _tidy(axes)


def _draw_dots(axes: Axes, order: Sequence[str], sensors: Sequence[str]) -> None:
    for x, subset in enumerate(order):
        present = [sensors.index(sensor) for sensor in subset.split('+')]
        axes.plot([x, x], [min(present), max(present)], color=DARK, linewidth=2, zorder=1)
        axes.scatter([x] * len(sensors), range(len(sensors)), s=70, color=GREY, zorder=0)
        axes.scatter([x] * len(present), present, s=70, color=DARK, zorder=2)
    axes.set(yticks=range(len(sensors)), yticklabels=sensors, ylim=(max(len(sensors), 1) - 0.5, -0.5), xticks=[])
    axes.spines[:].set_visible(False)
    axes.tick_params(axis='y', left=False)


def _tidy(axes: Axes) -> None:
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(axis='y', color=GREY, linewidth=0.5)
    axes.set_axisbelow(True)
