# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Print the table of all leads: change, seeds, scores, effect, cost, and whether it was kept.

``results/leads-synthetic-small.csv`` has the scores of every trial, ``results/leads.csv`` the trials that each change
is compared with. An effect is a difference between runs of the same seed.

    python benchmarks/lead_table.py
"""

import csv
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

RESULTS = Path(__file__).parent / 'results'
ALL, MEAN = 's2+s1a+s1d+spot', 'mean'
HEAD = (
    '| change | seeds | all sensors | mean of subsets | effect with all sensors | effect in the mean | cost | kept |',
    '| --- | --- | --- | --- | --- | --- | --- | --- |',
)
#: Scores of the trials of a lead by seed and column.
Scores = Mapping[str, Mapping[str, float]]


def read_trials(path: Path) -> dict[tuple[str, str, str], dict[str, dict[str, float]]]:
    """Return the scores of trials by lead, setting and evaluation, then by seed and column."""
    found: dict[tuple[str, str, str], dict[str, dict[str, float]]] = defaultdict(dict)
    for row in csv.DictReader(path.open()):
        setting = 'command line' if 'command line' in row['code'] else 'loop'
        scores = {column: float(row[column]) for column in (ALL, MEAN) if row[column]}
        found[row['lead'], setting, row['evaluation']][row['seed']] = scores
    return found


def line(row: Mapping[str, str], trials: Mapping[tuple[str, str, str], Scores]) -> str:
    """Return a line of the table."""
    own = trials[row['lead'], row['setting'], row['evaluation']]
    other = trials.get((row['reference'], row['setting'], row['reference_evaluation']), {})
    shared = sorted(own.keys() & other.keys())
    scores = [_pretty([own[seed][column] for seed in sorted(own)]) for column in (ALL, MEAN)]
    effects = [_pretty([own[s][column] - other[s][column] for s in shared], '+.1f') for column in (ALL, MEAN)]
    return f'| {" | ".join([row["change"], ", ".join(sorted(own)), *scores, *effects, row["cost"], row["kept"]])} |'


def table(results: Path = RESULTS) -> str:
    """Return the table as Markdown."""
    trials = read_trials(results / 'leads-synthetic-small.csv')
    return '\n'.join([*HEAD, *(line(row, trials) for row in csv.DictReader((results / 'leads.csv').open()))])


def _pretty(values: Sequence[float], form: str = '.1f') -> str:
    """Format mean and sample standard deviation; empty without values."""
    if not values:
        return ''
    return f'{statistics.mean(values):{form}}' + (f' ± {statistics.stdev(values):.1f}' if len(values) > 1 else '')


if __name__ == '__main__':
    print(table())
