# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Learning curves over the part of the labels that is used, with and without pre-training.

Pre-training sees the images of all training tiles, of which fine-tuning then has some with
their labels, drawn from the seed; the smaller parts are inside the larger ones. Every point
trains as many steps of as many tiles; the runs, and their arguments, are ``ablation.py``'s.

    python benchmarks/curves.py            # synthetic landscapes
    python benchmarks/curves.py --smoke    # minutes
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import matplotlib.pyplot as plt
from ablation import WHOLE, parser, plan
from matplotlib.figure import Figure

from torchgeo_omnisat.reproduction.runs import described, spread
from torchgeo_omnisat.utils.atomic import atomic_file

#: Parts of the labels.
PARTS = (0.01, 0.03, 0.1, 0.3, 1.0)
#: The two curves.
ROWS = {'with pre-training': WHOLE, 'without pre-training': replace(WHOLE, pretrained=False)}

Point = tuple[float, Sequence[Mapping[str, str]]]


def draw(curves: Mapping[str, Sequence[Point]]) -> Figure:
    """Mean IoU over the part of the labels; the spread of the runs as bars."""
    figure, axes = plt.subplots(figsize=(5.4, 3.6), layout='constrained')
    for (name, points), style in zip(curves.items(), ('o-', 's--'), strict=True):
        means, deviations = zip(*(spread(done) for _, done in points), strict=True)
        bars = [0.0 if deviation != deviation else deviation for deviation in deviations]
        axes.errorbar([100 * part for part, _ in points], means, bars, fmt=style, capsize=3, label=name)
    data = described(run for points in curves.values() for _, done in points for run in done)
    axes.set_xscale('log')
    axes.set_xticks([100 * part for part in PARTS], [f'{100 * part:g}' for part in PARTS])
    axes.minorticks_off()
    axes.set(xlabel='labels of the training tiles (%)', ylabel=f'mean IoU (%), test fold\ndata: {data}')
    axes.spines[['top', 'right']].set_visible(False)
    axes.legend(frameon=False)
    return figure


def main() -> None:
    """Do what is not done yet, draw the curves, and print them."""
    args = parser(__doc__).parse_args()
    made = plan(args)
    wanted = {
        name: {part: [replace(run, labels=part) for run in made.runs(row)] for part in PARTS}
        for name, row in ROWS.items()
    }
    done = made.complete(run for parts in wanted.values() for part_runs in parts.values() for run in part_runs)
    curves = {
        name: [(part, [done[run.key] for run in part_runs]) for part, part_runs in parts.items()]
        for name, parts in wanted.items()
    }
    figure = draw(curves)
    with atomic_file(made.path('curves', '.png')) as path:
        figure.savefig(path, format='png', dpi=110)
    print('curve,labels,mean_iou,deviation,runs')
    for name, points in curves.items():
        for part, runs in points:
            print(f'{name},{part:g},{",".join(f"{value:.2f}" for value in spread(runs))},{len(runs)}')


if __name__ == '__main__':
    main()
