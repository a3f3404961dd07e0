# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Panoptic quality of delineated fields and of connected pixels of one class, by sensors.

For each seed, a model with ``instances`` is trained on synthetic landscapes with all sensors, and tested for every
subset of them. Both scores come from the same model. Each finished seed is appended to the table, and a repeated
command continues after it. Models whose checkpoint exists are only tested.

    python benchmarks/fields.py --seeds 0 1 2
"""

import argparse
import csv
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from lightning.pytorch import Trainer, seed_everything

from torchgeo_omnisat.datamodules import SyntheticLandscapesDataModule
from torchgeo_omnisat.tasks import OmniSatSegmentation
from torchgeo_omnisat.utils.atomic import atomic_file

#: Columns of the table that identify a run.
SETTINGS = ('seed', 'steps', 'tiles', 'size', 'backbone')
#: Scores of the printed table, by column.
SCORES = {
    'pq': 'PQ',
    'components_pq': 'PQ, connected pixels',
    'sq': 'SQ',
    'rq': 'RQ',
    'object_f1': 'object F1',
    'over_segmentation': 'over-segmentation',
    'under_segmentation': 'under-segmentation',
    'boundary_f1': 'boundary F1',
    'mean_iou': 'mean IoU',
}

Row = Mapping[str, str]


def run(folder: Path, seed: int, args: argparse.Namespace) -> list[dict[str, str]]:
    """Train and test a model, and return the scores of every subset of the sensors."""
    seed_everything(seed)
    data = SyntheticLandscapesDataModule(
        root=str(folder / f'landscapes-{args.tiles}-{args.size}'),
        num_tiles=args.tiles,
        size=args.size,
        max_dates=args.max_dates,
    )
    task = OmniSatSegmentation(args.backbone, instances=True, lr=args.lr)
    trainer = Trainer(
        accelerator='cpu',
        max_steps=args.steps,
        max_epochs=-1,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        default_root_dir=folder / f'{args.backbone}-{args.steps}-{seed}',
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    last = Path(trainer.default_root_dir) / 'last.ckpt'
    if not last.exists():
        trainer.fit(task, data)
        trainer.save_checkpoint(last)
    trainer.test(OmniSatSegmentation.load_from_checkpoint(last), data, verbose=False)
    with (last.parent / 'subsets.csv').open(newline='') as file:
        return list(csv.DictReader(file))


def markdown(rows: Sequence[Row]) -> str:
    """Return the mean over seeds, and its standard deviation, of every subset in percent."""
    lines = ['| sensors | ' + ' | '.join(SCORES.values()) + ' |', '| --- |' + ' --- |' * len(SCORES)]
    for subset in dict.fromkeys(row['subset'] for row in rows):
        own = [row for row in rows if row['subset'] == subset]
        cells = [_spread([100 * float(row[column]) for row in own]) for column in SCORES]
        lines.append(f'| {subset} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def _spread(values: Sequence[float]) -> str:
    mean = statistics.mean(values)
    return f'{mean:.1f}' + (f' ± {statistics.stdev(values):.1f}' if len(values) > 1 else '')


def main() -> None:
    """Run the seeds that the table lacks, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--steps', type=int, default=360, help='training steps of eight tiles')
    parser.add_argument('--tiles', type=int, default=160, help='number of landscapes, in five folds')
    parser.add_argument('--size', type=int, default=32, help='side of a landscape in pixels of 10 m')
    parser.add_argument('--max-dates', type=int, default=8, help='maximum number of dates of a time series')
    parser.add_argument('--backbone', default='omnisat_tiny')
    parser.add_argument('--lr', type=float, default=2e-3, help='learning rate')
    parser.add_argument('--threads', type=int, default=min(2, os.cpu_count() or 1), help='threads of PyTorch')
    parser.add_argument(
        '--folder', type=Path, default=Path('benchmarks/runs/fields'), help='landscapes and checkpoints'
    )
    parser.add_argument('--output', type=Path, default=Path('benchmarks/results/fields.csv'))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows: list[Row] = []
    if args.output.exists():
        with args.output.open(newline='') as file:
            rows = list(csv.DictReader(file))
    for seed in args.seeds:
        key = {name: str(value) for name, value in zip(SETTINGS, (seed, *_settings(args)), strict=True)}
        if any(all(row[name] == value for name, value in key.items()) for row in rows):
            continue
        rows += [key | row for row in run(args.folder, seed, args)]
        with atomic_file(args.output) as temporary, temporary.open('w', newline='') as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    chosen = tuple(map(str, _settings(args)))
    print(markdown([row for row in rows if tuple(row[name] for name in SETTINGS[1:]) == chosen]))


def _settings(args: argparse.Namespace) -> tuple[int, int, int, str]:
    return args.steps, args.tiles, args.size, args.backbone


if __name__ == '__main__':
    main()
