# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Trials of changes to OmniSat on synthetic landscapes, with equal steps.

Every trial is a run of ``ablation.py`` at the size ``small`` with one change. A trial that has a row in the table is
not repeated.

    python benchmarks/leads.py                              # all leads, seed 0
    python benchmarks/leads.py --leads experts --seeds 0 1 2
    python benchmarks/leads.py --version 2                  # on the harder version of the landscapes
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ablation import HERE, WHOLE

from torchgeo_omnisat.datasets.synthetic.landscape import VERSIONS
from torchgeo_omnisat.reproduction import runs
from torchgeo_omnisat.reproduction.rows import NARROW, SENSORS, SIZES, make_run
from torchgeo_omnisat.reproduction.runs import Run, pretty, spread

BASELINE = {'backbone_args': json.dumps(NARROW), 'options': '', 'modality_dropout': 0.0, 'subset_weight': 0.0}
#: Task with experts as they were before their losses had a weight of 1, and before decoders had 48 channels.
LIGHT = json.dumps({'experts': True, 'expert_weight': 0.3})
NARROWER = json.dumps({'experts': True, 'expert_weight': 1.0})
#: Default of the task, with dropout of the last channels of decoder and experts.
DROPPED = json.dumps({'experts': True, 'expert_weight': 1.0, 'decoder_width': 48, 'decoder_dropout': 0.4})
DECAYED = json.dumps({'experts': True, 'expert_weight': 1.0, 'decoder_width': 48, 'weight_decay': 0.3})
#: Changes of the run without pre-training that learns from all and from some sensors in each step, by lead. It has
#: experts of weight 1, a decoder of 48 channels and a learning rate of 0.004.
LEADS: dict[str, dict[str, Any]] = {
    'baseline': {'options': '', 'lr': 2e-3},
    'experts': {'options': LIGHT, 'lr': 2e-3},
    'learning rate 0.004': {'options': ''},
    'experts, learning rate 0.004': {'options': LIGHT},
    'experts, learning rate 0.004, modality dropout 0.5': {'options': LIGHT, 'modality_dropout': 0.5},
    'experts, learning rate 0.004, patches of 20 m': {'options': json.dumps(json.loads(LIGHT) | {'patch_size': 20})},
    'experts, learning rate 0.004, dates dropped at rates of 0 to 0.75': {
        'options': LIGHT,
        'data_options': json.dumps({'temporal_dropout': [0, 0.75]}),
    },
    'experts, learning rate 0.004, no dropout': {'options': LIGHT, 'modality_dropout': 0.0, 'subset_weight': 0.0},
    'experts of weight 3, learning rate 0.004': {'options': json.dumps({'experts': True, 'expert_weight': 3.0})},
    'experts of weight 1, learning rate 0.004': {'options': NARROWER},
    'experts of weight 1, learning rate 0.006': {'options': NARROWER, 'lr': 6e-3},
    'experts of weight 1, some sensors in each step, 445 steps': {
        'options': NARROWER,
        'subset_weight': 0.0,
        'modality_dropout': 0.2,
        'steps': 445,
    },
    'experts of weight 1, 720 steps': {'options': NARROWER, 'steps': 720},
    'experts of weight 1, no dropout': {'options': NARROWER, 'modality_dropout': 0.0, 'subset_weight': 0.0},
    'decoder of 48 channels': {},
    'decoder of 48 channels, 720 steps': {'steps': 720},
    'decoder of 48 channels, 1440 steps': {'steps': 1440},
    'decoder of 48 channels, weight decay 0.3, 1440 steps': {'options': DECAYED, 'steps': 1440},
    'decoder of 48 channels, dropout of 0.4': {'options': DROPPED},
    'decoder of 48 channels, dropout of 0.4, 720 steps': {'options': DROPPED, 'steps': 720},
    'decoder of 48 channels, dropout of 0.4, 1440 steps': {'options': DROPPED, 'steps': 1440},
    'decoder of 48 channels, no dropout': {'modality_dropout': 0.0, 'subset_weight': 0.0},
    'late fusion, learning rate 0.004': {'backbone': 'late_fusion', **BASELINE},
    'late fusion, learning rate 0.004, 720 steps': {'backbone': 'late_fusion', 'steps': 720, **BASELINE},
    'late fusion, learning rate 0.004, 1440 steps': {'backbone': 'late_fusion', 'steps': 1440, **BASELINE},
    'U-TAE of Sentinel-2, learning rate 0.004': {'backbone': 'utae', 'modalities': tuple(SENSORS['S2']), **BASELINE},
}


def trial(lead: str, seed: int, version: int = 1) -> Run:
    """Return the run of a lead on a version of the landscapes."""
    run = make_run(replace(WHOLE, pretrained=False), SIZES['small'], 'synthetic', 1, seed)
    run = replace(run, **LEADS[lead])
    if version == 1:
        return run
    return replace(run, data_options=json.dumps(json.loads(run.data_options or '{}') | {'version': version}))


def markdown(done: Mapping[str, list[dict[str, str]]]) -> str:
    """Return the scores of each lead as a Markdown table, as mean and standard deviation over its seeds."""
    lines = ['| change | seeds | all sensors | mean of all subsets |', '| --- | --- | --- | --- |']
    for lead, rows in done.items():
        means = [{'mean': str(_mean(json.loads(row['subsets'])))} for row in rows]
        seeds = ', '.join(row['seed'] for row in rows)
        lines.append(f'| {lead} | {seeds} | {pretty(*spread(rows))} | {pretty(*spread(means, "mean"))} |')
    return '\n'.join(lines)


def _mean(scores: Mapping[str, float]) -> float:
    return sum(scores.values()) / len(scores)


def main() -> None:
    """Run the trials that have no row yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--leads', nargs='+', choices=list(LEADS), default=list(LEADS), metavar='LEAD')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0])
    parser.add_argument('--version', type=int, choices=list(VERSIONS), default=1, help='version of the landscapes')
    parser.add_argument('--folder', type=Path, default=HERE / 'runs', help='for checkpoints and the landscapes')
    args = parser.parse_args()
    wanted = {lead: [trial(lead, seed, args.version) for seed in args.seeds] for lead in args.leads}
    table, folder = HERE / 'results' / 'runs-leads.csv', args.folder / 'leads'
    name = f'landscapes-{SIZES["small"].tiles}' + (f'-version-{args.version}' if args.version > 1 else '')
    root = str(args.folder / name)
    done = runs.complete([run for trials in wanted.values() for run in trials], table, folder, root)
    print(markdown({lead: [done[run.key] for run in trials] for lead, trials in wanted.items()}))


if __name__ == '__main__':
    main()
