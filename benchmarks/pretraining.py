# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""What pre-training is worth with few labels, by its terms, on synthetic landscapes.

Every line fine-tunes for as many steps on the same tiles; they differ in what came before: nothing, or steps of
``omnisat_pretraining`` on the images of all training tiles, with the reconstruction, the contrast of patches, both, the
reconstruction of patches and of pixels, or the reconstruction and a teacher of patches. The runs, and what is printed
of them, are those of ``ablation.py``: each is kept when it is done, and not done again.

    python benchmarks/pretraining.py                                # three seeds, nothing and reconstruction
    python benchmarks/pretraining.py --terms none contrast both --seeds 0
    python benchmarks/pretraining.py --steps 360                    # a longer fine-tuning
    python benchmarks/pretraining.py --steps 360 --labels 0.01      # a hundredth of the labels
"""

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ablation import HERE, SCRATCH

from torchgeo_omnisat.reproduction import runs
from torchgeo_omnisat.reproduction.rows import REBUILDING, SIZES, make_run
from torchgeo_omnisat.utils.atomic import atomic_file

#: Terms of the pre-training, by what a line is called; None is no pre-training.
TERMS: dict[str, Mapping[str, Any] | None] = {
    'none': None,
    'reconstruction': REBUILDING,
    'contrast': {'tile_weight': 0, 'reconstruction_weight': 0},
    'both': {'tile_weight': 0},
    'pixels': {'tile_weight': 0, 'patch_weight': 0, 'embedding_dim': 64},
    'teacher': {'tile_weight': 0, 'patch_weight': 0, 'granularity': ['pixel']},
}


def scores(row: Mapping[str, str]) -> tuple[float, float]:
    """Mean IoU in % with all modalities, and its mean over all subsets of them."""
    return float(row['mean_iou']), statistics.mean(json.loads(row['subsets']).values())


def line(name: str, done: Sequence[Mapping[str, str]], scratch: Sequence[Mapping[str, str]]) -> str:
    """Return a row of the table; gains are over the run of the same seed without pre-training."""
    cells = [name, str(len(done))]
    for index in (0, 1):
        values, before = ([scores(row)[index] for row in rows] for rows in (done, scratch))
        cells.append(_pretty(values))
        cells.append('' if name == 'none' else _pretty([a - b for a, b in zip(values, before, strict=True)], '+.1f'))
    return f'| {" | ".join(cells)} |'


def _pretty(values: Sequence[float], form: str = '.1f') -> str:
    """Mean and standard deviation of a sample."""
    deviation = f' ± {statistics.stdev(values):.1f}' if len(values) > 1 else ''
    return f'{statistics.mean(values):{form}}{deviation}'


def main() -> None:
    """Do what is not done yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--terms', choices=list(TERMS), nargs='+', default=['none', 'reconstruction'])
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2], help='seeds of both steps and of the labels')
    parser.add_argument('--labels', type=float, default=0.1, help='part of the training tiles with labels')
    parser.add_argument('--steps', type=int, default=80, help='steps of fine-tuning')
    parser.add_argument('--pretraining-steps', type=int, default=300)
    parser.add_argument('--batch-size', type=int, default=8, help='tiles a step')
    parser.add_argument('--tiles', type=int, default=640, help='landscapes, of which three fifths train')
    parser.add_argument('--root', help='where the landscapes are, or are written')
    parser.add_argument('--folder', type=Path, default=HERE / 'runs', help='for checkpoints')
    parser.add_argument('--results', type=Path, default=HERE / 'results', help='for the runs and the table')
    args = parser.parse_args()
    size = replace(SIZES['small'], steps=args.steps, batch_size=args.batch_size, tiles=args.tiles)
    wanted = {}
    for name in dict.fromkeys(['none', *args.terms]):
        told, steps = TERMS[name], 0 if TERMS[name] is None else args.pretraining_steps
        made = [make_run(SCRATCH, size, 'synthetic', 1, seed) for seed in args.seeds]
        arguments = '' if told is None else json.dumps(told)
        wanted[name] = [
            replace(run, labels=args.labels, pretraining_steps=steps, pretraining_args=arguments) for run in made
        ]
    root = args.root or str(args.folder / f'landscapes-{size.tiles}')
    results, folder = args.results / 'runs-pretraining.csv', args.folder / 'pretraining'
    done = runs.complete([run for made in wanted.values() for run in made], results, folder, root)
    found = {name: [done[run.key] for run in made] for name, made in wanted.items()}
    text = [
        f'Synthetic landscapes, {args.labels:.0%} of the labels, {args.steps} steps of fine-tuning, '
        f'{args.pretraining_steps} of pre-training, mean IoU in %.',
        '',
        '| pre-training | seeds | all modalities | gain | mean of all subsets | gain |',
        '| --- | --- | --- | --- | --- | --- |',
        *(line(name, rows, found['none']) for name, rows in found.items()),
    ]
    name = f'pretraining-{args.steps}' + (f'-{args.labels:g}' if args.labels != 0.1 else '')
    with atomic_file(args.results / f'{name}.md') as path:
        path.write_text('\n'.join(text) + '\n')
    print('\n'.join(text))


if __name__ == '__main__':
    main()
