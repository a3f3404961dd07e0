# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""The preset `few` of `init` compared with pixel-wise classifiers, with few labels of a real area.

The data are ``belgium-crops``, see ``belgium.py``. Some random pixels of the western half have a label. `init` divides
them into training and validation and chooses all settings. The model is trained as `fit` does. Its last state is
scored on all 1200 pixels of the eastern half. Classifiers of `baseline` are trained on the
same training pixels (``classifiers``), or also on those of validation (``classifiers, all labels``), because they need
no validation. No setting is chosen by the eastern half.

Rows are appended to ``results/preset.csv``. Rows of the same files of ``--root`` and ``--weights``, compared by their
hashes, are not computed again.

    python benchmarks/preset.py --labels 300 900 --seeds 0 1 2
"""

import argparse
import csv
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import rasterio
import shapely
from crops import digest
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import ConcatDataset

from torchgeo_omnisat.commands.baseline import METRICS, score_classes
from torchgeo_omnisat.datamodules import MultimodalGeoDataModule
from torchgeo_omnisat.inspection.files import list_files
from torchgeo_omnisat.inspection.labels import find_labels
from torchgeo_omnisat.inspection.plan import Plan, make_plan
from torchgeo_omnisat.inspection.sensors import find_sensors, single_bands
from torchgeo_omnisat.tasks import OmniSatSegmentation
from torchgeo_omnisat.utils.atomic import atomic_file

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / 'shared/data'
CLASSES = ('no crop', 'winter cereals', 'spring cereals', 'maize', 'other temporary crop')
#: Number of columns of the western half.
WEST = 24
COLUMNS = ('labels', 'seed', 'method', 'data', 'weights', *METRICS, 'epochs', 'seconds')
METHODS = ('few', 'few, presto', 'classifiers', 'classifiers, all labels')


def prepare(root: Path, folder: Path, number: int, seed: int, presto: Path | None) -> tuple[Plan, dict[str, Any]]:
    """Return the plan of `init` for some labels of the western half, and a datamodule that is tested on the east.

    Args:
        root: Folder of ``belgium-crops``.
        folder: Empty folder, which receives links to the images, and labels.
        number: Number of pixels with a label.
        seed: Seed of their positions.
        presto: File of the weights of Presto; None to train from scratch.
    """
    for part in ('s1', 's2', 'dem'):
        (folder / part).symlink_to((root / part).resolve())
    (path,) = (root / 'crops').glob('*.tif')
    with rasterio.open(path) as file:
        crops, profile, (left, bottom, right, top) = file.read(1), file.profile, file.bounds
    places = np.random.default_rng(seed).permutation(crops.shape[0] * WEST)[:number]
    labelled = np.zeros(crops.shape, bool)
    labelled[np.unravel_index(places, (crops.shape[0], WEST))] = True
    for name, shown in {'labels': labelled, 'every': labelled | (np.arange(crops.shape[1]) >= WEST)}.items():
        (folder / name).mkdir()
        with rasterio.open(folder / name / 'crops.tif', 'w', **profile | {'nodata': 255}) as file:
            file.write(np.where(shown, crops, 255).astype(np.uint8), 1)
    files = [name for name in list_files(folder) if not name.startswith('every')]
    labels, _ = find_labels(folder, files, single_bands(folder, files), 'labels', None, lambda *_: None)
    assert labels is not None
    sensors, _ = find_sensors(folder, [name for name in files if name not in labels.files], lambda *_: None)
    plan = make_plan(folder, sensors, labels, 'few', None if presto is None else str(presto))
    grounds = MultimodalGeoDataModule(**plan.data).grounds
    middle = left + WEST * (right - left) / crops.shape[1]
    west, east = shapely.box(left, bottom, middle, top), shapely.box(middle, bottom, right, top)
    parts = {'train': grounds['train'].union(grounds['test']), 'val': grounds['val']}
    shapes = [*(part.intersection(west) for part in parts.values()), east]
    table = gpd.GeoDataFrame({'split': [*parts, 'test']}, geometry=shapes, crs=profile['crs'])
    table.to_file(folder / 'split.gpkg')
    names = dict(enumerate(CLASSES))
    return plan, plan.data | {'mask': {'path': 'every', 'classes': names}, 'split': {'file': 'split.gpkg'}}


def train(plan: Plan, data: Mapping[str, Any], seed: int, output: Path) -> dict[str, Any]:
    """Train and test the model of a plan; return its scores and the number of epochs."""
    seed_everything(seed)
    callbacks: list[Any] = [ModelCheckpoint(**x['init_args']) for x in plan.trainer['callbacks']]
    trainer = Trainer(
        **{**plan.trainer, 'callbacks': callbacks},
        limit_val_batches=0,  # validation does not change the last state
        accelerator='cpu',
        logger=False,
        default_root_dir=output,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    task, datamodule = OmniSatSegmentation(**plan.model), MultimodalGeoDataModule(**data)
    task.figures = 0
    trainer.fit(task, datamodule=datamodule)
    epochs, (saved, *_) = trainer.current_epoch, callbacks
    (found,) = trainer.test(task, datamodule=datamodule, ckpt_path=saved.best_model_path, verbose=False)
    return {key: found[f'test_{key}'] for key in METRICS} | {'epochs': epochs}


def classify(data: Mapping[str, Any], seed: int, every: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the scores of classifiers trained on training pixels, with *every* also on those of validation."""
    datamodule = MultimodalGeoDataModule(**data)
    parts = [datamodule.make_dataset(split, every=True) for split in (('train', 'val') if every else ('train',))]
    pixels: Any = ConcatDataset(parts)
    pixels.modalities = parts[0].modalities
    yield from score_classes(pixels, datamodule.make_dataset('test'), len(CLASSES), 255, seed=seed).scores.items()


def files_of(method: str, root: Path, weights: Path) -> dict[str, str]:
    """Return the hashes of the files that a method reads."""
    return {'data': digest(root), 'weights': digest(weights) if method == 'few, presto' else ''}


def run(method: str, number: int, seed: int, root: Path, weights: Path) -> Iterator[dict[str, str]]:
    """Yield the rows of a method."""
    with tempfile.TemporaryDirectory() as name:
        folder, start = Path(name), time.process_time()
        plan, data = prepare(root, folder, number, seed, weights if method == 'few, presto' else None)
        if method.startswith('few'):
            found = {method: train(plan, data, seed, folder / 'output')}
        else:
            found = {f'{method}: {one}': each for one, each in classify(data, seed, method.endswith('all labels'))}
        seconds = round(time.process_time() - start)
    for one, each in found.items():
        numbers = {key: f'{value:.4f}' if isinstance(value, float) else str(value) for key, value in each.items()}
        files = files_of(method, root, weights)
        yield {'labels': str(number), 'seed': str(seed), 'method': one, **files, **numbers, 'seconds': str(seconds)}


def write(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Write all rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary, temporary.open('w', newline='') as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Return mean and standard deviation over the seeds as Markdown."""
    groups = {(row['labels'], row['method']): [r for r in rows if r['labels'] == row['labels']] for row in rows}
    lines = ['| labels | method | mean IoU | accuracy | seeds |', '| --- | --- | --- | --- | --- |']
    for (labels, method), found in groups.items():
        own = [row for row in found if row['method'] == method]
        cells = []
        for key in ('AverageJaccardIndex', 'OverallAccuracy'):
            values = [float(row[key]) for row in own]
            spread = f' ± {statistics.stdev(values):.3f}' if len(values) > 1 else ''
            cells.append(f'{statistics.mean(values):.3f}{spread}')
        lines.append(f'| {labels} | {method} | {" | ".join(cells)} | {len(own)} |')
    return '\n'.join(lines)


def main() -> None:
    """Run what is not in the table yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--root', type=Path, default=SHARED / 'belgium-crops')
    parser.add_argument('--weights', type=Path, default=SHARED / 'weights/presto_default_model.pt', help='of Presto')
    parser.add_argument('--labels', type=int, nargs='+', default=[300, 900])
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--methods', nargs='+', choices=METHODS, default=list(METHODS))
    parser.add_argument('--results', type=Path, default=Path(__file__).parent / 'results/preset.csv')
    args = parser.parse_args()
    warnings.simplefilter('ignore')
    rows: list[dict[str, str]] = []
    if args.results.exists():
        with args.results.open(newline='') as file:
            rows = list(csv.DictReader(file))
    wanted = [row for row in rows if row.items() >= files_of(row['method'], args.root, args.weights).items()]
    known = {(row['labels'], row['seed'], row['method'].partition(':')[0]) for row in wanted}
    for seed in args.seeds:
        for number in args.labels:
            for method in args.methods:
                if (str(number), str(seed), method) in known:
                    continue
                for row in run(method, number, seed, args.root, args.weights):
                    rows.append(row)
                    wanted.append(row)
                    print(row, flush=True)
                write(args.results, rows)
    print(table(wanted))


if __name__ == '__main__':
    logging.getLogger('lightning.pytorch').setLevel(logging.WARNING)
    main()
