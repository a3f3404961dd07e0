# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Crops from few labels, on frozen embeddings and on raw time series, with the same classifiers.

``belgium``: 5, 20 or 50 pixels of each class, drawn from the western half of ``belgium-crops``, are
the labels; all pixels of the eastern half are scored. Its labels are WorldCereal 2021, a product of a
model of Presto's family. Maize occurs in the eastern half only, so its IoU is 0 for everyone. Ours is
pre-trained here, without labels, on both halves, with the pixel-wise backbone of
``docs/configs/belgium-crops.yaml``.

``points``: the 500 points of ``worldcereal-points``, cross-validated in five folds of blocks of 0.1
degrees, with all 12 months of Sentinel-2 and Sentinel-1. Classes with fewer than 15 points are one class.

Classifiers are those of ``python -m torchgeo_omnisat classify``, and a random forest. Missing values of
raw time series are replaced by the median. No setting was chosen by the pixels that are scored. Scores
are appended to ``fewshot-<data>.csv``. Rows of the same files of ``--root`` and ``--weights``, compared by
their hashes, are not computed again.

    python benchmarks/fewshot.py belgium
    python benchmarks/fewshot.py points
"""

import argparse
import csv
import functools
import itertools
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import crops
import numpy as np
import torch
import yaml
from belgium import CONFIG, linked
from lightning.pytorch import Trainer, seed_everything
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.model_selection import StratifiedGroupKFold

from torchgeo_omnisat.datamodules import MultimodalGeoDataModule, PixelTableDataModule
from torchgeo_omnisat.datasets import PixelTable
from torchgeo_omnisat.models import PrestoEncoder
from torchgeo_omnisat.prediction.embeddings.few_labels import Validation, fit_classifier
from torchgeo_omnisat.tasks import OmniSatPretraining
from torchgeo_omnisat.utils.atomic import atomic_file
from torchgeo_omnisat.utils.tensors.quantization import dequantize, quantize

Features = NDArray[np.float32]
Labels = NDArray[np.int64]
SHOTS = (5, 20, 50)
CLASSIFIERS = ('logistic', 'knn', 'random forest')
KEY = ('features', 'classifier', 'labels', 'data', 'weights')
SCORES = ('accuracy', 'macro_f1', 'mean_iou')
FIELDS = (*KEY[:3], 'seed', *KEY[3:], *SCORES)
#: Columns and classes of ``worldcereal-points``.
SERIES = {
    's2': {
        'bands': ('B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B8A', 'B11', 'B12'),
        'columns': 'OPTICAL-{band}-ts{step}-*',
        'kind': 'optical',
        'unit': 'dn',
    },
    's1': {'bands': ('VV', 'VH'), 'columns': 'SAR-{band}-ts{step}-*', 'amplitude': -83, 'kind': 'radar', 'unit': 'db'},
}
POINTS = {
    'label': 'sampling_label', 'start': 'start_date', 'pixel': 'sample_id', 'nodata': 65535, 'other': 'other',
    'classes': {name: name for name in ('sorghum', 'maize', 'other_oilseeds', 'trees_mixed', 'dry_pulses_legumes')},
}  # fmt: skip
#: Size and length of our pre-training, its tiles, and the area and the year of ``belgium-crops``.
DIM, STEPS = 64, {'belgium': 120, 'points': 300}
TILES = {'tile_size': 80, 'batch_size': 8}
POINT_BATCH = 64
#: Arguments of the pre-training of each row.
TERMS: dict[str, dict[str, Any]] = {
    'ours': {},
    'ours, without contrast': {
        'tile_weight': 0, 'patch_weight': 0, 'reconstruction_weight': 0, 'embedding_contrast_weight': 0,
        'embedding_pixels': 256,
    },
}  # fmt: skip
AREA, YEAR = (664760, 5611900, 665240, 5612400), ('2020-08-01', '2021-07-31')


def pretrain(datamodule: Any, seed: int, steps: int, name: str = 'ours') -> OmniSatPretraining:
    """Return a task that is pre-trained without labels, or has random weights after 0 steps."""
    seed_everything(seed, verbose=False)
    backbone = yaml.safe_load(CONFIG.read_text())['model']['init_args']['backbone_args']
    task = OmniSatPretraining('omnisat_tiny', embedding_dim=DIM, backbone_args=backbone, **TERMS[name])
    quiet: dict[str, Any] = {'logger': False, 'enable_checkpointing': False, 'enable_progress_bar': False}
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_steps=max(1, steps), accelerator='cpu', enable_model_summary=False, default_root_dir=folder,
            limit_val_batches=0, limit_train_batches=1.0 if steps else 0, log_every_n_steps=1, **quiet,
        )  # fmt: skip
        trainer.fit(task, datamodule)
    return task.eval()


def embed(task: OmniSatPretraining, datamodule: Any, samples: Sequence[Any]) -> torch.Tensor:
    """Return the embeddings ``(B, D, H, W)`` of samples."""
    with torch.inference_mode():
        batch = datamodule.aug(datamodule.collate_fn(samples))
        dense: torch.Tensor = task.model.dense(task.model.backbone(batch))
    return dense


def pretrained(root: Path, seed: int, steps: int, name: str = 'ours') -> Features:
    """Return our embeddings ``(2, P, D)`` of both halves of ``belgium-crops``, pre-trained on them without labels."""
    arguments = yaml.safe_load(CONFIG.read_text())['data']['init_args']
    del arguments['mask'], arguments['labels'], arguments['colors'], arguments['ignore_index']
    for settings in arguments['rasters'].values():
        settings['date_range'] = YEAR
    arguments |= {'root': str(root), 'split': {'train': AREA}, 'length': TILES['batch_size'] * max(1, steps), **TILES}
    datamodule = MultimodalGeoDataModule(**arguments)
    task = pretrain(datamodule, seed, steps, name)
    xmin, ymin, xmax, ymax = AREA
    (image,) = embed(task, datamodule, [datamodule.unlabelled[slice(xmin, xmax), slice(ymin, ymax)]])
    return np.stack([half.flatten(1).T.numpy() for half in (image[:, :50, :24], image[:, :50, 24:48])])


def pretrained_points(path: Path, table: PixelTable, seed: int, steps: int, name: str = 'ours') -> Features:
    """Return our embeddings ``(N, D)`` of the points, pre-trained on them without labels, one pixel a sample."""
    datamodule = PixelTableDataModule(
        str(path), series=SERIES, fractions=(1, 0, 0), batch_size=POINT_BATCH, temporal_dropout=0, speckle=0, **POINTS
    )
    task = pretrain(datamodule, seed, steps, name)
    return embed(task, datamodule, [table[index] for index in range(len(table))]).flatten(1).numpy()


def belgium_features(
    root: Path, weights: Path, steps: int, scratch: Path
) -> tuple[dict[str, Callable[[int], Features]], Labels]:
    """Return the features ``(2, P, F)`` of the western and the eastern pixels by name, and their classes."""
    halves = crops.read_halves(root)
    labels = np.stack([half.labels.flatten().numpy() for half in halves])
    first = [crops.first_months(half, 12) for half in halves]
    raw = np.stack([torch.cat([x.flatten(0, 1) for x in half.images.values()]).flatten(1).T for half in first])
    found: dict[str, Callable[[int], Features]] = {'raw series': lambda _: raw}

    @functools.cache
    def presto(names: tuple[str, ...]) -> Features:
        embedded = [crops.embed(half, weights, crops.MODALITIES['belgium'], names) for half in halves]
        return np.stack([half.images[names[0]][0].flatten(1).T.numpy() for half in embedded])

    found['presto s2'] = lambda _: presto(('s2',))
    found['presto s2+s1'] = lambda _: presto(('s2s1',))
    ours = functools.cache(functools.partial(pretrained, linked(root, scratch)))
    for name in TERMS:
        found[name] = functools.partial(ours, steps=steps, name=name)
        found[f'{name}, int8'] = lambda seed, name=name: dequantize(quantize(ours(seed, steps=steps, name=name)))
    found['ours, random weights'] = lambda seed: ours(seed, 0)
    return found, labels


def point_features(path: Path, weights: Path, steps: int) -> tuple[dict[str, Callable[[int], Features]], PixelTable]:
    """Return functions from the seed to the features ``(N, F)`` of the points, by name, and the points."""
    table = PixelTable(path, SERIES, **POINTS)
    parts = [table[index] for index in range(len(table))]
    stacked = {key: torch.stack([part[key] for part in parts]) for key in parts[0]}
    raw = table.features()
    found: dict[str, Callable[[int], Features]] = {'raw series': lambda _: raw}
    places = stacked['coordinates']

    @functools.cache
    def presto(*names: str) -> Features:
        modalities = [table.modalities[name] for name in names]
        bands = [band for modality in modalities for band in modality.bands]
        units = [modality.unit for modality in modalities for _ in modality.bands]
        encoder = PrestoEncoder(bands, units, weights=weights, cache_size=0).eval()
        image = torch.cat([stacked[modality.image_key] for modality in modalities], 2)
        dates = stacked[modalities[0].dates_key]
        valid = torch.stack([stacked[modality.valid_key] for modality in modalities]).any(0)
        with torch.no_grad():
            (out,) = encoder(image, dates, valid, places)
        vectors: Features = out.flatten(1).numpy()
        return vectors

    found['presto s2'] = lambda _: presto('s2')
    found['presto s2+s1'] = lambda _: presto('s2', 's1')
    for name in TERMS:
        found[name] = functools.partial(pretrained_points, path, table, steps=steps, name=name)
    found['ours, random weights'] = functools.partial(pretrained_points, path, table, steps=0)
    return found, table


def predict(name: str, train: Features, classes: Labels, test: Features, seed: int) -> Labels:
    """Return the classes of test vectors by a classifier that is fitted to training vectors."""
    impute = SimpleImputer(strategy='median', keep_empty_features=True)
    train, test = impute.fit_transform(train), impute.transform(test)
    if name == 'random forest':
        model: Any = RandomForestClassifier(300, random_state=seed).fit(train, classes)
    else:
        model = fit_classifier(name, train, classes, seed)  # type: ignore[arg-type]
    answer: Labels = model.predict(test)
    return answer


def scores(truth: Labels, answer: Labels) -> dict[str, float]:
    """Return accuracy, and macro F1 and mean IoU over the classes that occur in the truth."""
    count = 1 + max(int(truth.max()), int(answer.max()))
    confusion = np.bincount(count * truth + answer, minlength=count**2).reshape(count, count)
    there = np.unique(truth)
    rows = Validation(tuple(map(str, range(count))), confusion, 0, 0, 0).rows()
    means = {
        name: float(np.mean([rows[index][key] for index in there]))
        for name, key in (('macro_f1', 'f1'), ('mean_iou', 'iou'))
    }
    return {'accuracy': float(np.trace(confusion) / confusion.sum()), **means}


def draw(classes: Labels, count: int, seed: int) -> Labels:
    """Return the indices of *count* random pixels of each class, or of all if there are fewer."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.permutation(np.flatnonzero(classes == index))[:count] for index in np.unique(classes)])


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of earlier runs."""
    if not path.exists():
        return []
    with path.open(newline='') as file:
        texts = list(csv.DictReader(file))
    kinds = {'seed': int, 'accuracy': float, 'macro_f1': float, 'mean_iou': float}
    return [{key: kinds.get(key, str)(value) for key, value in row.items()} for row in texts]


def missing(keys: Sequence[dict[str, Any]], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the keys without a row."""
    return [key for key in keys if not any(all(row[part] == value for part, value in key.items()) for row in rows)]


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write all rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary, temporary.open('w', newline='') as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator='\n')
        writer.writeheader()
        writer.writerows({**row, **{key: round(row[key], 4) for key in SCORES}} for row in rows)


def files_of(features: str, root: Path, weights: Path) -> dict[str, str]:
    """Return the name of features, and the hashes of the files that they are computed from."""
    of_presto = crops.digest(weights) if features.startswith('presto') else ''
    return {'features': features, 'data': crops.digest(root), 'weights': of_presto}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return mean and standard deviation over the seeds."""
    lines = [f'{"features":<24}{"classifier":<16}{"labels":<12}{"accuracy":>16}{"macro F1":>16}{"mean IoU":>16}']
    keys = dict.fromkeys(tuple(row[part] for part in KEY) for row in rows)
    for key in sorted(keys, key=lambda key: (key[2].zfill(10), key[0], key[1])):
        chosen = [row for row in rows if tuple(row[part] for part in KEY) == key]
        line = f'{key[0]:<24}{key[1]:<16}{key[2]:<12}'
        for kind in SCORES:
            values = [row[kind] for row in chosen]
            spread = f' ± {statistics.stdev(values):.3f}' if len(values) > 1 else ''
            line += f'{f"{statistics.mean(values):.3f}{spread}":>16}'
        lines.append(line)
    return '\n'.join(lines)


def run_belgium(args: argparse.Namespace, rows: list[dict[str, Any]], save: Callable[[dict[str, Any]], None]) -> None:
    """Score all methods on ``belgium-crops``."""
    scratch = Path(tempfile.mkdtemp())
    features, labels = belgium_features(args.root, args.weights, args.steps, scratch)
    for seed, (name, make) in itertools.product(range(args.seeds), features.items()):
        keys = [
            {**files_of(name, args.root, args.weights), 'classifier': kind, 'labels': f'{shots} a class', 'seed': seed}
            for shots, kind in itertools.product(SHOTS, CLASSIFIERS)
        ]
        keys = missing(keys, rows)
        west, east = make(seed) if keys else (np.zeros(0), np.zeros(0))
        for key in keys:
            chosen = draw(labels[0], int(str(key['labels']).split()[0]), seed)
            answer = predict(str(key['classifier']), west[chosen], labels[0][chosen], east, seed)
            save({**key, **scores(labels[1], answer)})


def run_points(args: argparse.Namespace, rows: list[dict[str, Any]], save: Callable[[dict[str, Any]], None]) -> None:
    """Score all methods on ``worldcereal-points``."""
    path = args.root / 'public_extractions.parquet'
    features, points = point_features(path, args.weights, args.steps)
    classes, places = points.targets, points.places
    assert classes is not None
    assert places is not None
    blocks = np.unique(np.floor(places / 0.1), axis=0, return_inverse=True)[1].ravel()
    print(f'{len(classes)} points of {points.labels} in {blocks.max() + 1} blocks: {np.bincount(classes).tolist()}')
    for seed, (name, make) in itertools.product(range(args.seeds), features.items()):
        files = files_of(name, args.root, args.weights)
        keys = [{**files, 'classifier': kind, 'labels': '5 folds', 'seed': seed} for kind in CLASSIFIERS]
        keys = missing(keys, rows)
        values = make(seed) if keys else np.zeros(0)
        for key in keys:
            answer = np.zeros_like(classes)
            for train, test in StratifiedGroupKFold(5, shuffle=True, random_state=seed).split(values, classes, blocks):
                answer[test] = predict(str(key['classifier']), values[train], classes[train], values[test], seed)
            save({**key, **scores(classes, answer)})


def main() -> None:
    """Fit, score and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = crops.ROOT.parent / 'shared/data'
    parser.add_argument('data', choices=('belgium', 'points'))
    parser.add_argument('--root', type=Path, help='folder of the data')
    parser.add_argument('--weights', type=Path, default=shared / 'weights/presto_default_model.pt')
    parser.add_argument('--output', type=Path, default=crops.ROOT / 'benchmarks/results', help='folder of the scores')
    parser.add_argument('--seeds', type=int, default=3)
    args = parser.parse_args()
    args.root = args.root or shared / ('belgium-crops' if args.data == 'belgium' else 'worldcereal-points')
    args.steps = STEPS[args.data]
    torch.set_num_threads(1)
    path = args.output / f'fewshot-{args.data}.csv'
    rows = read_rows(path)

    def save(row: dict[str, Any]) -> None:
        rows.append(row)
        write_rows(path, rows)

    (run_belgium if args.data == 'belgium' else run_points)(args, rows, save)
    print(table([row for row in rows if row.items() >= files_of(row['features'], args.root, args.weights).items()]))


if __name__ == '__main__':
    main()
