# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""What sensors that are missing at test time cost, beside models that never had them."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torchgeo_omnisat.evaluation.plots import draw_subsets, write_figure
from torchgeo_omnisat.modality import subset_name, subsets
from torchgeo_omnisat.reproduction.runs import described, pretty, spread
from torchgeo_omnisat.utils.atomic import atomic_file

#: Lines of the table of runs.
Lines = Sequence[Mapping[str, str]]
Sensors = Mapping[str, Sequence[str]]
OWN = 'dedicated to these'


def with_sensors(done: Lines, chosen: Sequence[str], sensors: Sensors) -> list[dict[str, str]]:
    """Return rows with the mean IoU of each run for some of the sensors.

    Args:
        done: Runs of a model that has all sensors.
        chosen: The sensors that are left at test time.
        sensors: The modalities of each sensor.
    """
    subset = subset_name(name for sensor in chosen for name in sensors[sensor])
    return [{'mean_iou': json.loads(run['subsets'])[subset]} for run in done]


def columns(
    tested: Mapping[str, Lines], dedicated: Mapping[tuple[str, ...], Lines], sensors: Sensors
) -> dict[str, dict[tuple[str, ...], tuple[float, float]]]:
    """Return mean and deviation of every model for every subset; the dedicated models, as far as done, are last."""
    every = subsets(sensors)
    found = {
        name: {chosen: spread(with_sensors(done, chosen, sensors)) for chosen in every} for name, done in tested.items()
    }
    return found | {OWN: {chosen: spread(dedicated[chosen]) for chosen in every if chosen in dedicated}}


def markdown(found: Mapping[str, Mapping[tuple[str, ...], tuple[float, float]]], data: str) -> str:
    """Return a table with one row per subset and one column per model, and the means over the subsets.

    Args:
        found: What :func:`columns` gave.
        data: What was scored.
    """
    lines = [f'## robustness\n\nMean IoU (%) with these sensors at test time, data: **{data}**.\n']
    lines.append('| sensors | ' + ' | '.join(found) + ' |')
    lines.append('| --- |' + ' --- |' * len(found))
    every = list(dict.fromkeys(chosen for scores in found.values() for chosen in scores))
    for chosen in every:
        cells = [pretty(*scores[chosen]) if chosen in scores else '' for scores in found.values()]
        lines.append(f'| {"+".join(chosen)} | ' + ' | '.join(cells) + ' |')
    means = [_mean(scores) if len(scores) == len(every) else '' for scores in found.values()]
    lines.append('| mean | ' + ' | '.join(means) + ' |')
    return '\n'.join(lines) + '\n'


def _mean(scores: Mapping[tuple[str, ...], tuple[float, float]]) -> str:
    return f'{sum(mean for mean, _ in scores.values()) / len(scores):.1f}'


def report(
    tested: Mapping[str, Lines],
    dedicated: Mapping[tuple[str, ...], Lines],
    sensors: Sensors,
    path: Callable[[str, str], Path],
) -> str:
    """Write table and figure, and return the table.

    Args:
        tested: Runs of models that have all sensors, by what they are called.
        dedicated: Runs of the models of each subset.
        sensors: The modalities of each sensor.
        path: Where a result goes, of its name and suffix.
    """
    found = columns(tested, dedicated, sensors)
    data = described(run for done in (*tested.values(), *dedicated.values()) for run in done)
    text = markdown(found, data)
    with atomic_file(path('robustness', '.md')) as file:
        file.write_text(text)
    scores = {
        name: {'+'.join(chosen): mean / 100 for chosen, (mean, _) in column.items()} for name, column in found.items()
    }
    write_figure(
        draw_subsets(scores, 'mean IoU', f'Sensors at test time; means over runs\ndata: {data}'),
        path('robustness', '.png'),
    )
    return text
