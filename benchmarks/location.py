# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Gain of the location as a modality on synthetic regions, and what it costs where it is withheld or wrong.

Models with and without location are trained on Sentinel-2 of six regions. They are tested on two regions at other
latitudes, and on new tiles of the training regions: with the coordinates, without them, and with those of random
training tiles. A gain that remains with wrong coordinates does not come from the place; a gain only in the training
regions comes from memorised places.

    python benchmarks/location.py            # three seeds, two models each, about two minutes a model
    python benchmarks/location.py --seeds 0 --steps 20

Results are written to results/location.csv after each model; models whose rows exist are not trained again.
"""

import argparse
import csv
import statistics
import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor

from torchgeo_omnisat.datamodules import SyntheticLandscapesDataModule
from torchgeo_omnisat.tasks import OmniSatSegmentation
from torchgeo_omnisat.utils.atomic import atomic_file
from torchgeo_omnisat.utils.cli.console import quiet

HERE = Path(__file__).parent
#: Arguments of the landscapes; each region has 20 tiles.
LANDSCAPES: dict[str, Any] = {'num_tiles': 200, 'regions': 10, 'version': 2, 'modalities': ('s2',), 'batch_size': 8}
#: Encoders of both models.
ENCODERS = {'s2': 'ltae'}
COLUMNS = ('seed', 'steps', 'trained_with', 'regions', 'coordinates', 'mean_iou', 'accuracy')


class Landscapes(SyntheticLandscapesDataModule):
    """Landscapes whose coordinates can be replaced by those of random training tiles.

    Args:
        same: Whether the test split is that of the training regions.
        **kwargs: See :class:`.SyntheticLandscapesDataModule`.
    """

    def __init__(self, same: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.same, self.wrong = same, False

    def selection(self, split: str) -> dict[str, Any]:
        """Return the folds of a split."""
        return super().selection('train' if self.same and split == 'test' else split)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Normalise a batch, and replace its coordinates."""
        batch = super().on_after_batch_transfer(batch, dataloader_idx)
        if not self.wrong:
            return batch
        places = self.training_places
        key = int(batch['coordinates'].abs().sum() * 1e6)
        chosen = torch.randint(len(places), (len(batch['coordinates']),), generator=torch.Generator().manual_seed(key))
        return {**batch, 'coordinates': places[chosen]}

    @cached_property
    def training_places(self) -> Tensor:
        """Return longitude and latitude of all training tiles."""
        dataset = self.make_dataset('train')
        places: Tensor = self.collate_fn([{'bounds': dataset[i]['bounds']} for i in range(len(dataset))])['coordinates']
        return places


def train(located: bool, seed: int, steps: int, folder: Path) -> OmniSatSegmentation:
    """Train a model on the training regions."""
    seed_everything(seed)
    encoders = {**ENCODERS, 'location': 'scaled'} if located else ENCODERS
    task = OmniSatSegmentation(backbone='omnisat_tiny', backbone_args={'encoders': encoders})
    trainer(folder, max_steps=steps, limit_val_batches=0).fit(
        task, Landscapes(root=str(folder / 'train'), **LANDSCAPES)
    )
    return task


def test(task: OmniSatSegmentation, same: bool, wrong: bool, folder: Path) -> dict[str, float]:
    """Return the metrics of a model, with true or wrong coordinates."""
    root, seed = ('same', 1) if same else ('train', 0)
    data = Landscapes(same=same, root=str(folder / root), seed=seed, **LANDSCAPES)
    data.wrong = wrong
    (scores,) = trainer(folder).test(task, data, verbose=False)
    return dict(scores)


def trainer(folder: Path, **kwargs: Any) -> Trainer:
    """Return a trainer without logs and checkpoints."""
    return Trainer(
        accelerator='cpu',
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder / 'logs',
        **kwargs,
    )


def rows_of(located: bool, seed: int, steps: int, folder: Path) -> list[dict[str, Any]]:
    """Train and test a model, and return its rows of the table."""
    task = train(located, seed, steps, folder)
    rows = []

    def add(regions: str, coordinates: str, scores: dict[str, float], suffix: str = '') -> None:
        accuracy = scores['test_OverallAccuracy'] if not suffix else None
        values = seed, steps, 'location' if located else 'images', regions, coordinates
        rows.append(dict(zip(COLUMNS, (*values, scores[f'test_AverageJaccardIndex{suffix}'], accuracy), strict=True)))

    for same in (False, True):
        regions = 'same' if same else 'held out'
        scores = test(task, same, False, folder)
        add(regions, 'true' if located else 'none', scores)
        if located:
            add(regions, 'withheld', scores, '_without_location')
            add(regions, 'wrong', test(task, same, True, folder))
    return rows


def summary(rows: Sequence[dict[str, Any]], steps: int) -> str:
    """Return the table of mean and standard deviation over the seeds of some number of steps in Markdown."""
    lines = [
        '| trained with | coordinates at test time | held-out regions | same regions |',
        '| --- | --- | --- | --- |',
    ]
    for trained, coordinates in (('images', 'none'), *(('location', kind) for kind in ('true', 'withheld', 'wrong'))):
        cells = []
        for regions in ('held out', 'same'):
            key = trained, regions, coordinates
            found = [
                100 * float(row['mean_iou'])
                for row in rows
                if (row['trained_with'], row['regions'], row['coordinates']) == key and str(row['steps']) == str(steps)
            ]
            deviation = statistics.stdev(found) if len(found) > 1 else 0.0
            cells.append(f'{statistics.mean(found):.1f} ± {deviation:.1f}' if found else '')
        lines.append(f'| {trained} | {coordinates} | {cells[0]} | {cells[1]} |')
    return '\n'.join(lines)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--steps', type=int, default=300)
    parser.add_argument('--output', type=Path, default=HERE / 'results' / 'location.csv')
    parser.add_argument('--data', type=Path, help='folder of the landscapes, temporary by default')
    words = parser.parse_args()
    rows: list[dict[str, Any]] = list(csv.DictReader(words.output.open())) if words.output.exists() else []
    with quiet(every_warning=True), tempfile.TemporaryDirectory() as temporary:
        folder = words.data or Path(temporary)
        for seed in words.seeds:
            for located in (False, True):
                name = 'location' if located else 'images'
                done = {(str(row['seed']), str(row['steps']), row['trained_with']) for row in rows}
                if (str(seed), str(words.steps), name) in done:
                    continue
                rows += rows_of(located, seed, words.steps, folder)
                with atomic_file(words.output) as path, path.open('w', newline='') as file:
                    writer = csv.DictWriter(file, COLUMNS)
                    writer.writeheader()
                    writer.writerows(rows)
                print(f'seed {seed}, {name}:', *(row['mean_iou'] for row in rows[-6 if located else -2 :]), flush=True)
    print(summary(rows, words.steps))


if __name__ == '__main__':
    main()
