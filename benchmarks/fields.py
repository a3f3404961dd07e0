# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Panoptic quality of delineated fields and of connected pixels of one class, by sensors.

For each seed, a model with ``instances`` is trained on synthetic landscapes with all sensors, or without some of them,
and tested for every subset of its sensors. Both scores come from the same model. Each finished seed is appended to the
table, and a repeated command continues after it. Models whose checkpoint exists are only tested.

    python benchmarks/fields.py --seeds 0 1 2
    python benchmarks/fields.py --seeds 0 1 2 --without spot

With ``--grid``, the trained models are scored on the validation tiles for a grid of settings of the watershed.

    python benchmarks/fields.py --seeds 0 1 --grid benchmarks/results/fields_grid.csv
"""

import argparse
import csv
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor
from torchgeo.datasets.utils import Sample

from torchgeo_omnisat.datamodules import SyntheticLandscapesDataModule
from torchgeo_omnisat.evaluation import PanopticQuality
from torchgeo_omnisat.evaluation.fields import FieldScores
from torchgeo_omnisat.prediction import segment_fields
from torchgeo_omnisat.tasks import OmniSatSegmentation
from torchgeo_omnisat.utils.atomic import atomic_file

#: Columns of the table that identify a run.
SETTINGS = ('seed', 'steps', 'tiles', 'size', 'backbone', 'without')
#: Maximum number of dates of a time series, and learning rate.
MAX_DATES, LR = 8, 2e-3
#: Sensors of the landscapes.
SENSORS = ('s2', 's1a', 's1d', 'spot')
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

#: Grid of settings of the watershed.
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)
HEIGHTS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)

Row = Mapping[str, str]


class Maps(NamedTuple):
    """Predicted and true maps of samples.

    Attributes:
        probabilities: Probabilities of the classes, ``(B, K, H, W)``.
        extent: Probabilities of other, interior and boundary, ``(B, 3, H, W)``.
        distance: Distance to the edge of the field, ``(B, H, W)``.
        instances: True field of each pixel, ``(B, H, W)``; 0 is none.
        mask: True class of each pixel, ``(B, H, W)``.
    """

    probabilities: Tensor
    extent: Tensor
    distance: Tensor
    instances: Tensor
    mask: Tensor


def grid(maps: Maps, void: int | None, smallest: int = 10) -> list[dict[str, float]]:
    """Return the scores of fields for every setting of the watershed; class 0 is not a field.

    Args:
        maps: Maps of all samples.
        void: Class that is not scored; None if there is none.
        smallest: Minimum size of a field in pixels.
    """
    return [
        {'threshold': threshold, 'h': h, **field_scores(maps, void, smallest, threshold, h)}
        for threshold in THRESHOLDS
        for h in HEIGHTS
    ]


def field_scores(maps: Maps, void: int | None, smallest: int, threshold: float, h: float) -> dict[str, float]:
    """Return the scores of the fields of one setting of the watershed."""
    ids, classes = [], []
    for probabilities, extent, distance, *_ in zip(*maps, strict=True):
        found = segment_fields(extent.numpy(), distance.numpy(), threshold=threshold, h=h, smallest=smallest)
        index = torch.from_numpy(found).long()
        sums = probabilities.new_zeros(len(probabilities), int(index.max()) + 1)
        sums.index_add_(1, index.flatten(), probabilities.flatten(1))
        sums[0] = -torch.inf
        ids.append(index)
        classes.append(torch.where(index > 0, sums.argmax(0)[index], 0))
    return scores(torch.stack(ids), torch.stack(classes), maps, void)


def scores(ids: Tensor, classes: Tensor, maps: Maps, void: int | None) -> dict[str, float]:
    """Return the scores of predicted fields and their classes, ``(B, H, W)``."""
    metrics = PanopticQuality(maps.probabilities.shape[1] + 1, 0, void), FieldScores(void)
    found: dict[str, float] = {}
    for metric in metrics:
        metric.update(ids, classes, maps.instances, maps.mask)
        found |= {name: float(value) for name, value in metric.compute().items() if name in SCORES}
    return found


class KeepMaps(OmniSatSegmentation):
    """Task that keeps its predictions of validation tiles."""

    def on_validation_start(self) -> None:
        """Start without predictions."""
        self.kept: list[Maps] = []

    def validation_step(self, batch: Sample, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Keep the maps of a batch."""
        logits, more = self.infer(self.renormalise(batch))
        assert more is not None
        probabilities, extent = self.without_ignored(logits).softmax(1), more.extent.softmax(1)
        self.kept.append(Maps(probabilities, extent, more.distance, batch['instances'], batch['mask']))

    def on_validation_epoch_end(self) -> None:
        """Log nothing."""

    def maps(self) -> Maps:
        """Return the maps of all validation tiles."""
        return Maps(*map(torch.cat, zip(*self.kept, strict=True)))


def search(folder: Path, seed: int, args: argparse.Namespace) -> list[dict[str, str]]:
    """Return the scores of a trained model on validation tiles for a grid of settings of the watershed."""
    task = KeepMaps.load_from_checkpoint(checkpoint_of(folder, seed, args))
    trainer = make_trainer(checkpoint_of(folder, seed, args).parent, args)
    trainer.validate(task, make_data(folder, args), verbose=False)
    ignored = task.hparams['ignore_index']
    return [{name: f'{value:.6f}' for name, value in row.items()} for row in grid(task.maps(), ignored)]


def make_data(folder: Path, args: argparse.Namespace) -> SyntheticLandscapesDataModule:
    """Return the landscapes, with the sensors to train with."""
    return SyntheticLandscapesDataModule(
        root=str(folder / f'landscapes-{args.tiles}-{args.size}'),
        num_tiles=args.tiles,
        size=args.size,
        max_dates=MAX_DATES,
        modalities=tuple(name for name in SENSORS if name not in args.without),
    )


def checkpoint_of(folder: Path, seed: int, args: argparse.Namespace) -> Path:
    """Return the checkpoint of a seed."""
    name = '-'.join([*map(str, (*_settings(args), seed)), *_without(args)])
    return folder / name / 'last.ckpt'


def make_trainer(folder: Path, args: argparse.Namespace) -> Trainer:
    """Return a trainer without validation during training."""
    return Trainer(
        accelerator='cpu',
        max_steps=args.steps,
        max_epochs=-1,
        limit_val_batches=0 if args.grid is None else None,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )


def run(folder: Path, seed: int, args: argparse.Namespace) -> list[dict[str, str]]:
    """Train and test a model, and return the scores of every subset of the sensors."""
    seed_everything(seed)
    data, last = make_data(folder, args), checkpoint_of(folder, seed, args)
    trainer = make_trainer(last.parent, args)
    if not last.exists():
        trainer.fit(OmniSatSegmentation(args.backbone, instances=True, lr=LR), data)
        trainer.save_checkpoint(last)
    trainer.test(OmniSatSegmentation.load_from_checkpoint(last), data, verbose=False)
    with (last.parent / 'subsets.csv').open(newline='') as file:
        return list(csv.DictReader(file))


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a table; none if it does not exist."""
    if not path.exists():
        return []
    with path.open(newline='') as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write a table."""
    with atomic_file(path) as temporary, temporary.open('w', newline='') as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def markdown(rows: Sequence[Row]) -> str:
    """Return the mean over seeds, and its standard deviation, of every subset in percent."""
    lines = ['| trained without | sensors | seeds | ' + ' | '.join(SCORES.values()) + ' |']
    lines.append('| --- | --- | --- |' + ' --- |' * len(SCORES))
    for without, subset in dict.fromkeys((row['without'], row['subset']) for row in rows):
        own = [row for row in rows if (row['without'], row['subset']) == (without, subset)]
        cells = [_spread([100 * float(row[column]) for row in own]) for column in SCORES]
        lines.append(f'| {without} | {subset} | {len(own)} | ' + ' | '.join(cells) + ' |')
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
    parser.add_argument('--backbone', default='omnisat_tiny')
    parser.add_argument(
        '--without', nargs='*', default=[], choices=SENSORS, help='sensors that the model is trained without'
    )
    parser.add_argument('--threads', type=int, default=min(2, os.cpu_count() or 1), help='threads of PyTorch')
    parser.add_argument(
        '--folder', type=Path, default=Path('benchmarks/runs/fields'), help='landscapes and checkpoints'
    )
    parser.add_argument('--output', type=Path, default=Path('benchmarks/results/fields.csv'))
    parser.add_argument(
        '--grid', type=Path, help='table of the scores of settings of the watershed; only these are computed'
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    compute, path = (run, args.output) if args.grid is None else (search, args.grid)
    rows = read_rows(path)
    for seed in args.seeds:
        values = seed, *_settings(args), '+'.join(_without(args))
        key = {name: str(value) for name, value in zip(SETTINGS, values, strict=True)}
        if any(all(row[name] == value for name, value in key.items()) for row in rows):
            continue
        rows += [key | row for row in compute(args.folder, seed, args)]
        write_rows(path, rows)
    if args.grid is not None:
        return
    chosen = tuple(map(str, _settings(args)))
    print(markdown([row for row in rows if tuple(row[name] for name in SETTINGS[1:-1]) == chosen]))


def _without(args: argparse.Namespace) -> list[str]:
    return [name for name in SENSORS if name in args.without]


def _settings(args: argparse.Namespace) -> tuple[int, int, int, str]:
    return args.steps, args.tiles, args.size, args.backbone


if __name__ == '__main__':
    main()
