# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Report of a study: tables beside published scores, figures, checkpoints and a model card."""

import json
import math
import shutil
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ..evaluation.plots import COLOURS, GREY, draw_subsets, write_figure
from ..tasks.backbone import export_hub
from ..utils.atomic import atomic_file
from ..utils.cli.console import table_cell
from ..utils.figures import plain_text
from ..utils.plurals import counted
from .published import verdict
from .runs import CONFUSION, MODEL, circumstances
from .scores import SCORES, Counts, mean_iou, overall_accuracy
from .study import ROWS, RUNS, Study

#: Files of the report.
CARD, RESULTS, SUBSETS, FIGURES, CHECKPOINTS = 'README.md', 'results.json', 'subsets.csv', 'figures', 'checkpoints'
_OF_COUNTS = {'mean_iou': mean_iou, 'overall_accuracy': overall_accuracy}

#: Mean over the seeds, and its standard deviation, NaN for a single seed.
Spread = tuple[float, float]
Lines = Sequence[Mapping[str, str]]


def write_report(study: Study, command: str = '') -> str:
    """Write the report of the runs that are done so far, and return its tables as Markdown.

    Args:
        study: Study.
        command: Command line that is stated in the model card.
    """
    done = {row: lines for row, lines in study.done().items() if lines}
    results = [summarize(study, row, lines) for row, lines in done.items()]
    said = _verdict(study, done)
    text = markdown(study, results, said)
    write_checkpoints(study, done)
    content = {
        'data': study.data.title,
        'synthetic': study.synthetic,
        'tiles': dict(study.tiles),
        'complete': study.complete,
        'protocol': study.protocol,
        'splits': dict(study.hashes),
        'comparable': comparable(study) == '',
        'rows': results,
        'published': [asdict(score) for score in SCORES.get(study.name, ())],
        'verdict': said,
        'seeds': list(study.seeds),
        'folds': [] if study.hashes else list(study.folds),
        'command': command,
        'torchgeo_omnisat': version('torchgeo_omnisat'),
        **circumstances(study.machine.accelerator),
    }
    with atomic_file(study.output / RESULTS) as path:
        path.write_text(json.dumps(_finite(content), indent=2) + '\n')
    if results:
        rows = [{'row': r['row'], 'subset': s, **v} for r in results for s, v in r['subsets'].items()]
        with atomic_file(study.output / SUBSETS) as path:
            pd.DataFrame(rows).to_csv(path, index=False, float_format='%.3f', na_rep='nan')
        write_figures(study, results)
    with atomic_file(study.output / CARD) as path:
        path.write_text(card(study, results, text, command))
    return '\n\n'.join([text.rstrip(), describe_training(results), describe_versions(study)]) + '\n'


def summarize(study: Study, row: str, lines: Lines) -> dict[str, Any]:
    """Return the scores of a row over its runs that are done.

    Of data whose published scores are of summed confusion matrices, those of the folds of each seed are summed.
    ``scores`` and ``subsets`` are mean and standard deviation over the seeds, and ``folds`` the main score of each
    fold, averaged over the seeds.
    """
    data, by_seed = study.data, dict[str, list[Mapping[str, str]]]()
    for line in lines:
        by_seed.setdefault(line['seed'], []).append(line)
    every = [_of_seed(study, each) for each in by_seed.values()]
    scores = {metric: _spread([found[0][metric] for found in every]) for metric in data.metrics}
    names = list(dict.fromkeys(name for _, subsets in every for name in subsets))
    subsets = {name: _spread([found[1][name] for found in every if name in found[1]]) for name in names}
    folds = {fold: [float(line[data.score]) for line in lines if int(line['fold']) == fold] for fold in study.folds}
    seconds = sum(sum(json.loads(line['seconds']).values()) * int(line['devices'] or 1) for line in lines)
    return {
        'row': row,
        'model': study.title(row),
        'sensors': '+'.join(study.sensors_of(row)),
        'scores': {metric: _named(score) for metric, score in scores.items()},
        'folds': {fold: statistics.mean(values) for fold, values in folds.items() if values},
        'subsets': {name: _named(score) for name, score in subsets.items()},
        'seeds': sorted(int(seed) for seed in by_seed),
        'runs': [line['key'] for line in lines],
        'missing_runs': len(study.runs(row)) - len(lines),
        'steps': int(lines[0]['steps']),
        'pretraining_steps': int(lines[0]['pretraining_steps']),
        'batch_size': int(lines[0]['batch_size']),
        'backbone': lines[0]['backbone'],
        'device_hours': seconds / 3600,
        'device': ', '.join(sorted({line['device'] for line in lines})),
        'commit': ', '.join(sorted({line['commit'] for line in lines})),
    }


def _of_seed(study: Study, lines: Lines) -> tuple[dict[str, float], dict[str, float]]:
    """Return the scores by metric of all modalities, and the main score by subset, of the folds of a seed."""
    data = study.data
    counts = [counts_of(study, line) for line in lines]
    known = [found for found in counts if found]
    if data.summed and len(known) == len(lines):
        total = {name: sum((found[name] for found in known), start=0 * known[0][name]) for name in known[0]}
        whole = next(iter(total))
        scores = {metric: _OF_COUNTS[metric](total[whole]) for metric in data.metrics}
        return scores, {name: _OF_COUNTS[data.score](found) for name, found in total.items()}
    scores = {metric: statistics.mean(float(line[metric]) for line in lines) for metric in data.metrics}
    subsets = [json.loads(line['subsets']) for line in lines]
    return scores, {name: statistics.mean(found[name] for found in subsets) for name in subsets[0]}


def counts_of(study: Study, line: Mapping[str, str]) -> dict[str, Counts]:
    """Return the confusion matrices of a run by subset, that of all modalities first; none if they were not kept."""
    path = study.output / RUNS / line['key'] / CONFUSION
    if not path.is_file():
        return {}
    return {name: np.array(counts, np.int64) for name, counts in json.loads(path.read_text()).items()}


def comparable(study: Study) -> str:
    """Return why the scores cannot be compared with published ones; empty if they can."""
    data, number = study.data, sum(study.tiles.values())
    if study.synthetic:
        return 'the data are synthetic'
    if study.hashes:
        return f'the tiles are those of {study.lists}'
    if data.tiles is None:
        return f'the number of tiles of the whole of {data.title} is not known here (found: {number})'
    if not study.complete:
        return f'the data are not the whole of {data.title} ({counted(number, "tile")}, expected {data.tiles})'
    if data.summed and set(study.folds) != set(data.folds):
        return f'only the splits {", ".join(map(str, study.folds))} of {len(data.folds)} were evaluated'
    missing = sum(len(study.runs(row)) - len(done) for row, done in study.done().items())
    return f'{missing} of the runs are missing' if missing else ''


def comparison(study: Study) -> str:
    """Return the sentence on what the scores can be compared with; empty if with all scores of the protocol."""
    why = comparable(study)
    if study.hashes and not study.synthetic:
        return f'These scores can only be compared with those of the same lists of tiles ({study.lists}).'
    return why and f'These scores cannot be compared with the published ones, because {why}.'


def markdown(study: Study, results: Sequence[Mapping[str, Any]], said: str = '') -> str:
    """Return the table of rows beside the published scores, and that of the subsets of the sensors."""
    data = study.data
    metrics = list(data.metrics)
    head = ['model', 'sensors', *(data.title_of(metric) for metric in metrics), 'mean of splits']
    head += ['runs', 'device hours', 'protocol']
    lines = ['| ' + ' | '.join([*head, 'source']) + ' |', '| --- ' * (len(head) + 1) + '|']
    own = f'tiles of {study.lists}' if study.hashes else f'splits {", ".join(map(str, study.folds))}'
    for found in results:
        cells = [found['model'], found['sensors'], *(_pretty(found['scores'][metric]) for metric in metrics)]
        missing = f' of {len(found["runs"]) + found["missing_runs"]}' if found['missing_runs'] else ''
        cells += [
            _pretty(_named(_spread(list(found['folds'].values())))),
            f'{len(found["runs"])}{missing}',
            f'{found["device_hours"]:.2f}',
            own,
            'this run',
        ]
        lines.append('| ' + ' | '.join(map(table_cell, cells)) + ' |')
    for score in SCORES.get(study.name, ()):
        cells = [score.model, score.sensors, f'{score.score:.1f}', *[''] * (len(metrics) + 2), score.protocol]
        lines.append('| ' + ' | '.join(map(table_cell, cells)) + f' | [{score.source}]({score.url}) |')
    parts = ['\n'.join(lines)]
    if said:
        parts.append(f'**{said}**')
    if (note := comparison(study)) and study.name in SCORES:
        parts.append(f'**{note}**')
    if results:
        parts += [f'### Subsets of the sensors at test time\n\n{data.title_of(data.score)}', _subset_table(results)]
    return '\n\n'.join(parts) + '\n'


def _subset_table(results: Sequence[Mapping[str, Any]]) -> str:
    names = dict.fromkeys(name for found in results for name in found['subsets'])
    order = sorted(names, key=lambda name: -name.count('+'))
    lines = ['| modalities | ' + ' | '.join(found['model'] for found in results) + ' |']
    lines.append('| --- ' * (len(results) + 1) + '|')
    for name in order:
        cells = [_pretty(found['subsets'][name]) if name in found['subsets'] else '' for found in results]
        lines.append(f'| {name} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def write_checkpoints(study: Study, done: Mapping[str, Lines]) -> None:
    """Write the checkpoint of each run as a folder in the layout of the Hugging Face hub, with the whole task."""
    for row, lines in done.items():
        if ROWS[row] is None:
            continue
        for line in lines:
            source = study.output / RUNS / line['key'] / MODEL
            split = 'splits' if study.hashes else f'split{line["fold"]}'
            folder = study.output / CHECKPOINTS / f'{row}-{split}-seed{line["seed"]}'
            about = folder / 'run.json'
            if not source.is_file() or (about.is_file() and json.loads(about.read_text())['key'] == line['key']):
                continue
            export_hub(source, folder)
            with atomic_file(folder / MODEL) as path:
                shutil.copyfile(source, path)
            with atomic_file(about) as path:
                path.write_text(json.dumps(dict(line), indent=2) + '\n')


def write_figures(study: Study, results: Sequence[Mapping[str, Any]]) -> None:
    """Draw the scores of every subset, and the rows beside the published scores."""
    data = study.data
    name = 'synthetic landscapes' if study.synthetic else data.title
    title = data.title_of(data.score).removesuffix(' (%)')
    models = {r['model']: {s: v['mean'] / 100 for s, v in r['subsets'].items()} for r in results}
    write_figure(draw_subsets(models, title, f'data: {name}'), study.output / FIGURES / 'subsets.png')
    write_figure(draw_scores(study, results, name), study.output / FIGURES / 'scores.png')


@plain_text()
def draw_scores(study: Study, results: Sequence[Mapping[str, Any]], name: str) -> Figure:
    """Draw the main score of every row, with a dot for each split, above those of the published models."""
    data, published = study.data, SCORES.get(study.name, ())
    labels = [f'{found["model"]} ({found["sensors"]})' for found in results]
    labels += [f'{score.model} ({score.sensors})' for score in published]
    figure, axes = plt.subplots(figsize=(7.2, 1.2 + 0.32 * len(labels)), layout='constrained')
    for y, found in enumerate(results):
        axes.barh(y, found['scores'][data.score]['mean'], color=COLOURS[0], height=0.6)
        axes.scatter(list(found['folds'].values()), [y] * len(found['folds']), color=COLOURS[1], s=14, zorder=2)
    for y, score in enumerate(published, len(results)):
        axes.barh(y, score.score, color=GREY, height=0.6)
    axes.set(yticks=range(len(labels)), yticklabels=labels, ylim=(len(labels) - 0.5, -0.5))
    axes.set_xlabel(f'{data.title_of(data.score)}, dots: splits', fontsize=8)
    notes = [f'data: {name}', *(['grey: published by the authors', comparison(study)] if published else [])]
    figure.supxlabel('\n'.join(textwrap.fill(note, 90) for note in notes if note), fontsize=8)
    axes.tick_params(labelsize=8)
    axes.spines[['top', 'right']].set_visible(False)
    return figure


def card(study: Study, results: Sequence[Mapping[str, Any]], tables: str, command: str) -> str:
    """Return the model card, with the front matter of the Hugging Face hub."""
    data = study.data
    kinds = {'omnisat': 'image-segmentation', 'omnisat_classification': 'image-classification'}
    kind = kinds.get(data.task)
    front = ['---', 'library_name: torchgeo_omnisat', *([f'pipeline_tag: {kind}'] if kind else [])]
    front += ['tags: [earth-observation, satellite-image-time-series, torchgeo]', '---', '']
    note = 'The data are synthetic: the scores are not those of a real dataset.\n\n' if study.synthetic else ''
    checkpoint = 'ROW-splits-seedS' if study.hashes else 'ROW-splitN-seedS'
    sections = [
        f'# OmniSat on {data.title}\n\n{note}Models of the TorchGeo plugin torchgeo_omnisat, after '
        '[OmniSat](https://arxiv.org/abs/2404.08351), for several sensors, any of which may be missing.',
        f'## Scores\n\n{tables.rstrip()}',
        f'## Protocol\n\n{data.title}: {study.protocol}. {_tile_sentence(study)}',
        f'## Training\n\n{describe_training(results)}',
        '## Files\n\n'
        f'- `{RESULTS}`, `runs.csv`, `{SUBSETS}`: scores, one row per run, scores by subset\n'
        f'- `{CHECKPOINTS}/{checkpoint}`: `config.json` and `model.safetensors`, the backbone, for '
        '`--model.weights`; `model.ckpt`, the whole task, for `--ckpt_path`\n'
        f'- `{FIGURES}`: figures\n- `{RUNS}`: working files of the runs, not to be published',
        f'## Licences\n\nData: {data.licence}'
        + (f', {data.url}' if data.url else '')
        + '. Code: MIT. State the licence of the weights before you publish them; it must agree with that of the data.',
        f'## Versions\n\n{describe_versions(study)}',
    ]
    if command:
        sections.append(f'## Command\n\n```shell\n{command}\n```')
    return '\n'.join(front) + '\n\n'.join(sections) + '\n'


def describe_training(results: Sequence[Mapping[str, Any]]) -> str:
    """Return steps, seeds, device hours and commit of each row that was trained."""
    lines = []
    for found in results:
        if ROWS[found['row']] is None:
            continue
        before = f', after {found["pretraining_steps"]} steps of pre-training' * bool(found['pretraining_steps'])
        lines.append(
            f'- {found["model"]}: {counted(found["steps"], "step")} of {counted(found["batch_size"], "tile")}{before}; '
            f'seeds {", ".join(map(str, found["seeds"]))}; {found["device_hours"]:.2f} hours of {found["device"]}; '
            f'commit {found["commit"] or "unknown"}'
        )
    if not lines:
        return 'No model was trained.'
    lines += [
        '',
        'Device hours are the time of training and test multiplied by the number of devices. Of an interrupted '
        'training, the steps after its last checkpoint are not counted.',
    ]
    return '\n'.join(lines)


def describe_versions(study: Study) -> str:
    """Return versions and commit of this report."""
    made = circumstances(study.machine.accelerator)
    versions = ', '.join(f'{name} {number}' for name, number in json.loads(made['versions']).items())
    return (
        f'torchgeo_omnisat {version("torchgeo_omnisat")}, commit {made["commit"] or "unknown"}; '
        f'Python {made["python"]}, {versions}.'
    )


def _tile_sentence(study: Study) -> str:
    counts = ', '.join(f'{number} {split}' for split, number in study.tiles.items())
    return f'Tiles of {study.first_split}: {counts}.'


def _verdict(study: Study, done: Mapping[str, Lines]) -> str:
    """Return the sentence about the published weights; empty if they were not evaluated."""
    lines = next((lines for row, lines in done.items() if ROWS[row] is None), [])
    counts = {int(line['fold']): next(iter(counts_of(study, line).values())) for line in lines}
    complete = study.complete
    return verdict(counts, complete) if counts else ''


def _spread(values: Sequence[float]) -> Spread:
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def _named(score: Spread) -> dict[str, float]:
    return {'mean': score[0], 'std': score[1]}


def _pretty(score: Mapping[str, float]) -> str:
    deviation = f' ± {score["std"]:.1f}' if math.isfinite(score['std']) else ''
    return f'{score["mean"]:.1f}{deviation}'


def _finite(value: Any) -> Any:
    """Return the value with None for NaN, which JSON does not have."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
