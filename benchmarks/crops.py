# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Frozen Presto compared with training from scratch, a random forest and an MLP, on two sets of real crops.

``worldcereal``: three tiles of 64 x 64 pixels in Flanders, tens of kilometres apart and of two
years, with Sentinel-2 (DN, with its scene classification), Sentinel-1 (dB) and the crops of farmers'
declarations. Trained on two tiles and tested on the third, in all three ways. Pixels without a
declared crop are ignored; only the bands of 20 m are used, since one tile has no others.

``belgium``: the western half of ``belgium-crops`` for training, the eastern half for testing, as in
``belgium.py``. Its labels are WorldCereal 2021, a product of a model of Presto's family.

All methods use the same monthly composites; Presto is given their first twelve months, chosen as its
other settings. Every pixel of Presto is embedded once. The decoder is trained on the embeddings,
standardised by the training pixels. No setting was chosen by pixels that are tested: those of Presto
were chosen by leaving out strips of the western half of ``belgium-crops`` (reports/crops.md), those of
*scratch* are those of docs/configs/belgium-crops.yaml, and those of *monthly* and *linear* those of the
preset `few` of `init`. *balanced* and *adapted* are an exception: they had the best mean score of all
pairs of a training and a scored tile of ``worldcereal``, whose scored tiles are also tested (reports/crops.md has
the scores of a choice for each tested tile). *balanced* weights the classes and drops half of the dates.
*adapted* also takes the logarithm of Sentinel-2, standardises each tile by its own images without their
labels, and averages the probabilities over 5 x 5 pixels.

Scores are appended to ``crops-<data>.csv``. Rows of the same files of ``--root`` and ``--weights``, compared by their
hashes, are not computed again, so an interrupted command continues when it is repeated.

    python benchmarks/crops.py worldcereal --root DIR --weights presto_default_model.pt
    python benchmarks/crops.py belgium --root DIR --weights presto_default_model.pt         # minutes on one core
    python benchmarks/crops.py belgium --smoke                                              # one step, few pixels
"""

import argparse
import csv
import functools
import hashlib
import itertools
import math
import statistics
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rasterio
import rasterio.warp
import torch
import torch.nn.functional as F
import xarray as xr
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.impute import SimpleImputer
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from torchgeo_omnisat import Modality
from torchgeo_omnisat.losses import CrossEntropyDice
from torchgeo_omnisat.models import OmniSatSegmenter, PrestoEncoder, late_fusion, omnisat_tiny
from torchgeo_omnisat.tasks.setup.optimization import warmup_cosine
from torchgeo_omnisat.transforms import RandomJitter, RandomTemporalDropout
from torchgeo_omnisat.utils.atomic import atomic_file

ROOT = Path(__file__).parents[1]
Labels = NDArray[np.int64]
LABELS = {
    'worldcereal': ('cereals', 'maize', 'grass', 'other crop'),
    'belgium': ('no crop', 'winter cereals', 'spring cereals', 'maize', 'other temporary crop'),
}
IGNORED = 255
#: The bands of 20 m, because one tile has no others.
OPTICAL, RADAR = ('B05', 'B06', 'B07', 'B8A', 'B11', 'B12'), ('VV', 'VH')
BELGIUM = ('B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B11', 'B12')
MODALITIES = {
    data: {
        's2': Modality('s2', bands, 10.0, True, 'optical', 'dn'),
        's1': Modality('s1', RADAR, 10.0, True, 'radar', 'db'),
    }
    for data, bands in (('worldcereal', OPTICAL), ('belgium', BELGIUM))
}
#: Classes of the scene classification that show the ground: vegetation, bare soil, water, unclassified.
CLEAR = (4, 5, 6, 7)


class Tile(NamedTuple):
    """Monthly series of a tile.

    Attributes:
        images: Composites ``(T, C, H, W)`` by modality; NaN is missing.
        dates: First day of each month, days since 1970-01-01, by modality.
        labels: Classes ``(H, W)``.
        latlon: Latitude and longitude of the centre.
    """

    images: dict[str, Tensor]
    dates: dict[str, Tensor]
    labels: Tensor
    latlon: tuple[float, float]


@functools.cache
def digest(path: Path) -> str:
    """Return a short hash of a file, or of the names and contents of all files below a folder."""
    found = hashlib.sha256()
    for file in sorted(file for file in path.rglob('*') if file.is_file()) if path.is_dir() else [path]:
        found.update(file.relative_to(path).as_posix().encode())
        found.update(hashlib.sha256(file.read_bytes()).digest())
    return found.hexdigest()[:8]


def read(folder: Path) -> Tile:
    """Read a tile."""
    (path,) = folder.glob('OUTPUT_POLY*.nc')
    with xr.open_dataset(path, mask_and_scale=False) as data:
        codes = data['CT'].values
        centre = [float(data[axis].mean()) for axis in 'xy']
    conditions = [(codes == 9120), (codes == 1200), (codes // 100 == 11) | (codes // 1000 == 1), codes > 0]
    labels = np.select(conditions, [2, 1, 0, 3], IGNORED)
    (lon,), (lat,) = rasterio.warp.transform('EPSG:32631', 'EPSG:4326', *([value] for value in centre))
    (path,) = folder.glob('S2_L2A_20m*.nc')
    with xr.open_dataset(path, mask_and_scale=False) as data:
        clear, optical, days = np.isin(data['SCL'].values, CLEAR), _stack(data, OPTICAL), _days(data)
    optical[~np.broadcast_to(clear[:, None], optical.shape)] = np.nan
    (path,) = folder.glob('S1_*.nc')
    with xr.open_dataset(path, mask_and_scale=False) as data:
        radar, radar_days = _stack(data, RADAR) * np.float32(1e-4), _days(data)
    start = days.min().astype('datetime64[M]')
    months = start + np.arange(16)
    images = {
        's2': _monthly(optical, days, months, np.nanmedian),
        's1': 10 * _monthly(10 ** (radar / 10), radar_days, months, np.nanmean).log10(),
    }
    images = {name: image.repeat_interleave(2, -2).repeat_interleave(2, -1) for name, image in images.items()}
    dates = torch.as_tensor(months.astype('datetime64[D]').astype(np.int64))
    return Tile(images, dict.fromkeys(images, dates), torch.as_tensor(labels), (lat, lon))


def read_halves(root: Path) -> list[Tile]:
    """Read the western and the eastern half of ``belgium-crops``."""
    images, dates = {}, {}
    for name in ('s2', 's1'):
        frames, days = [], []
        for path in sorted((root / name).glob('*.tif')):
            with rasterio.open(path) as file:
                frames.append(file.read(masked=True).astype(np.float32).filled(np.nan))
                days.append(np.datetime64(f'{path.stem[3:7]}-{path.stem[7:9]}-{path.stem[9:11]}').astype(int))
        images[name], dates[name] = torch.as_tensor(np.stack(frames)), torch.as_tensor(np.array(days))
    (path,) = (root / 'crops').glob('*.tif')
    with rasterio.open(path) as file:
        labels = torch.as_tensor(file.read(1).astype(np.int64))
    halves = [slice(0, 24), slice(24, 48)]
    return [
        Tile({n: x[..., half] for n, x in images.items()}, dates, labels[:, half], (50.638, 5.333)) for half in halves
    ]


def _stack(data: xr.Dataset, bands: Sequence[str]) -> NDArray[np.float32]:
    values = np.stack([data[band].values for band in bands], axis=1).astype(np.float32)
    values[values == 0] = np.nan
    return values


def _days(data: xr.Dataset) -> NDArray[np.datetime64]:
    return data['timestamp'].values.astype('datetime64[D]')


def _monthly(values: NDArray[Any], days: NDArray[Any], months: NDArray[Any], combine: Any) -> Tensor:
    """Combine the dates of each month per pixel; NaN where there is none."""
    out = np.full((len(months), *values.shape[1:]), np.nan, np.float32)
    for index, month in enumerate(months):
        chosen = values[days.astype('datetime64[M]') == month]
        seen = np.isfinite(chosen).any(0)
        out[index][seen] = combine(chosen[:, seen], axis=0)
    return torch.as_tensor(out)


class Given(nn.Module):
    """Encoder whose input is an embedding computed before, as a series of one date."""

    channels, strides = (128,), (1,)

    def forward(self, image: Tensor, dates: Tensor, valid: Tensor) -> list[Tensor]:
        """Return the embeddings."""
        return [image[:, 0]]


def first_months(tile: Tile, months: int) -> Tile:
    """Return the tile with only the dates of its first *months* months."""
    start = min(int(days[0]) for days in tile.dates.values())
    end = (
        (np.datetime64(start, 'D').astype('datetime64[M]') + np.timedelta64(months, 'M'))
        .astype('datetime64[D]')
        .astype(int)
    )
    chosen = {name: days < end for name, days in tile.dates.items()}
    images = {name: image[chosen[name]] for name, image in tile.images.items()}
    return tile._replace(images=images, dates={name: days[chosen[name]] for name, days in tile.dates.items()})


def joined(tile: Tile) -> Tile:
    """Join the series of a tile to one series ``s2s1``; bands of the other sensor are NaN."""
    dates = torch.cat(list(tile.dates.values())).unique()
    parts = []
    for name, image in tile.images.items():
        part = image.new_full((len(dates), *image.shape[1:]), torch.nan)
        part[torch.searchsorted(dates, tile.dates[name])] = image
        parts.append(part)
    return tile._replace(images={'s2s1': torch.cat(parts, 1)}, dates={'s2s1': dates})


def embed(tile: Tile, weights: Path, modalities: Mapping[str, Modality], names: Sequence[str]) -> Tile:
    """Replace the series of a tile by the embeddings of their first twelve months.

    Args:
        tile: Tile.
        weights: File of Presto's weights.
        modalities: Modalities by name.
        names: Modalities to embed, or ``s2s1`` for both in one series.
    """
    tile = first_months(tile, 12)
    if names == ('s2s1',):
        tile = joined(tile)
    images = {}
    for name in names:
        parts = [modalities[part] for part in (('s2', 's1') if name == 's2s1' else (name,))]
        bands = [band for part in parts for band in part.bands]
        units = [part.unit for part in parts for _ in part.bands]
        encoder = PrestoEncoder(bands, units, weights=weights, latlon=tile.latlon, cache_size=0).eval()
        dates = tile.dates[name].unsqueeze(0)
        with torch.no_grad():
            images[name] = encoder(tile.images[name].unsqueeze(0), dates, torch.ones_like(dates, dtype=torch.bool))[0]
    return tile._replace(images=images, dates={name: dates[:1] for name, dates in tile.dates.items()})


def batch(tiles: Sequence[Tile], pixels: Sequence[Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """Return as many pixels of each tile, given by flat index, as small images."""
    found: dict[str, Tensor] = {
        'mask': torch.stack([t.labels.flatten()[p] for t, p in zip(tiles, pixels, strict=True)])
    }
    found['mask'] = found['mask'].unflatten(1, (-1, 16))
    for name in names:
        images = [t.images[name].flatten(2)[..., p].unflatten(2, (-1, 16)) for t, p in zip(tiles, pixels, strict=True)]
        found[f'image_{name}'] = torch.stack(images)
        found[f'dates_{name}'] = torch.stack([t.dates[name] for t in tiles])
        found[f'valid_{name}'] = torch.ones_like(found[f'dates_{name}'], dtype=torch.bool)
    return found


def single_pixels(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return every pixel of a batch as a sample, whose gain and offset vary separately."""
    count = batch['mask'][0].numel()
    found = {'mask': batch['mask'].flatten()[:, None, None]}
    for key, value in batch.items():
        if key.startswith('image'):
            found[key] = value.movedim((-2, -1), (1, 2)).flatten(0, 2)[..., None, None]
        elif key != 'mask':
            found[key] = value.repeat_interleave(count, 0)
    return found


def normalised(tiles: Sequence[Tile], training: Sequence[int]) -> list[Tile]:
    """Standardise every band by the training tiles."""
    out = list(tiles)
    for name in tiles[0].images:
        values = torch.cat([tiles[i].images[name].movedim(1, 0).flatten(1) for i in training], 1).double()
        mean = values.nanmean(1)
        std = (values - mean[:, None]).square().nanmean(1).sqrt()
        mean, std = (x.float().view(-1, 1, 1) for x in (mean, std))
        out = [t._replace(images=t.images | {name: (t.images[name] - mean) / std}) for t in out]
    return out


def adapted(tiles: Sequence[Tile]) -> list[Tile]:
    """Standardise every band, of Sentinel-2 its logarithm, by the images of its own tile, which need no labels."""
    out = []
    for tile in tiles:
        images = {n: x.clamp(min=1).log() if n == 's2' else x for n, x in tile.images.items()}
        out += normalised([tile._replace(images=images)], [0])
    return out


def class_weights(labels: Tensor, classes: int) -> Tensor:
    """Return the inverse frequency of each class, 0 for classes without labels."""
    counts = labels.bincount(minlength=classes)
    return torch.where(counts > 0, len(labels) / (counts > 0).sum() / counts.clamp(min=1), 0.0)


def network(
    tiles: Sequence[Tile],
    training: Sequence[int],
    test: int,
    seed: int,
    data: str,
    method: Mapping[str, Any],
    steps: int | None = None,
) -> Labels:
    """Return the classes of the test tile by an OmniSat trained on the others."""
    torch.manual_seed(seed)
    names = method['names']
    tiles = adapted(tiles) if method.get('adapted', False) else normalised(tiles, training)
    if method['frozen']:
        encoders: dict[str, Any] = {name: Given() for name in names}
        modalities = {n: Modality(n, tuple(f'e{i}' for i in range(128)), 10.0, True) for n in names}
    else:
        encoders, modalities = dict.fromkeys(names, 'ltae'), {name: MODALITIES[data][name] for name in names}
    augment: nn.Module = nn.Identity()
    if method['linear']:
        encoders = encoders if method['frozen'] else dict.fromkeys(names, 'monthly')
        backbone: Any = late_fusion(modalities, patch_size=10.0, encoders=encoders, linear=True)
        if not method['frozen']:
            chance = method.get('temporal_dropout', 0.0)
            dropout = RandomTemporalDropout(modalities, chance) if chance else nn.Identity()
            augment = nn.Sequential(dropout, RandomJitter(modalities, 0.3))
    else:
        backbone = omnisat_tiny(modalities, patch_size=10.0, encoders=encoders, widths=[128], embed_dim=128, depth=0)
    model = OmniSatSegmenter(backbone, len(LABELS[data]), label_gsd=10.0).train()
    labelled = [(tiles[i].labels.flatten() != IGNORED).nonzero().squeeze(1) for i in training]
    weights = None
    if method.get('balanced', False):
        labels = torch.cat([tiles[i].labels.flatten()[k] for i, k in zip(training, labelled, strict=True)])
        weights = class_weights(labels, len(LABELS[data]))
    criterion = CrossEntropyDice(IGNORED, weights, method['dice'])
    flat = [p for p in model.parameters() if p.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {'params': [p for p in model.parameters() if p.ndim > 1]},
        {'params': flat, 'weight_decay': 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=method['lr'], weight_decay=0.01)
    steps = steps or method['steps']
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_cosine(steps, 0.05))
    for _ in range(steps):
        drawn = batch(
            [tiles[i] for i in training],
            [k[torch.randint(len(k), (method['pixels'] // len(training),))] for k in labelled],
            names,
        )
        if method['linear']:
            drawn = augment(single_pixels(drawn))
        optimizer.zero_grad()
        criterion(model(drawn), drawn['mask']).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    with torch.inference_mode():
        logits = model.eval()(batch([tiles[test]], [torch.arange(tiles[test].labels.numel())], names))
    probabilities = logits.softmax(1).reshape(1, -1, *tiles[test].labels.shape)
    classes: Labels = smoothed(probabilities, method.get('smoothing', 1)).argmax(1)[0].numpy()
    return classes


def smoothed(probabilities: Tensor, side: int) -> Tensor:
    """Return the mean of probabilities (1, K, H, W) over squares of *side* pixels, an odd number."""
    edge = side // 2
    return F.avg_pool2d(F.pad(probabilities, (edge, edge, edge, edge), mode='replicate'), side, 1)


def classifier(kind: str, count: int, seed: int) -> Any:
    """Return an untrained classifier of the command `baseline` for *count* pixels."""
    if kind == 'random forest':
        impute: Any = SimpleImputer(strategy='median', keep_empty_features=True)
        return make_pipeline(impute, RandomForestClassifier(300, random_state=seed))
    epochs = max(15, math.ceil(2000 / math.ceil(count / 256)))
    mlp = MLPClassifier(
        (128,), alpha=0.01, batch_size=min(256, count), learning_rate_init=2e-3, max_iter=epochs, random_state=seed
    )
    return make_pipeline(StandardScaler(), SimpleImputer(add_indicator=True, keep_empty_features=True), mlp)


def classify(
    kind: str, names: Sequence[str], tiles: Sequence[Tile], training: Sequence[int], test: int, seed: int
) -> Labels:
    """Return the classes of the test tile by a classifier of the stacked composites of some sensors."""
    stacked = [torch.cat([t.images[n].flatten(0, 1) for n in names]).flatten(1).T.numpy() for t in tiles]
    known = [(t.labels.flatten() != IGNORED).numpy() for t in tiles]
    labels = np.concatenate([tiles[i].labels.flatten().numpy()[known[i]] for i in training])
    model = classifier(kind, len(labels), seed)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', ConvergenceWarning)
        model.fit(np.concatenate([stacked[i][known[i]] for i in training]), labels)
    classes: Labels = model.predict(stacked[test]).reshape(tiles[test].labels.shape)
    return classes


def scores(answer: Labels, truth: Labels) -> tuple[float, float]:
    """Return mean IoU over the classes that occur in either, and overall accuracy, over labelled pixels."""
    known, k = truth != IGNORED, 1 + max(int(answer.max()), int(truth[truth != IGNORED].max()))
    confusion = np.bincount(k * truth[known] + answer[known], minlength=k * k).reshape(k, k)
    union = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    iou = confusion.diagonal()[union > 0] / union[union > 0]
    return float(iou.mean()), float(confusion.diagonal().sum() / confusion.sum())


#: Settings of each network.
SCRATCH = {'frozen': False, 'linear': False, 'lr': 2e-3, 'dice': 1.0, 'steps': 300, 'pixels': 512}
FROZEN = {'frozen': True, 'linear': False, 'lr': 3e-4, 'dice': 0.0, 'steps': 150, 'pixels': 256}
LINEAR = {'frozen': False, 'linear': True, 'lr': 3e-4, 'dice': 0.0, 'steps': 250, 'pixels': 128}
BALANCED = {**LINEAR, 'balanced': True, 'temporal_dropout': 0.5}
ADAPTED = {**BALANCED, 'adapted': True, 'smoothing': 5}
NETWORKS: dict[str, dict[str, Any]] = {
    'presto s2': {**FROZEN, 'names': ('s2',)},
    'presto s2+s1 in one series': {**FROZEN, 'names': ('s2s1',)},
    'presto s2+s1': {**FROZEN, 'names': ('s2', 's1')},
    'scratch s2+s1': {**SCRATCH, 'names': ('s2', 's1')},
    'monthly s2+s1': {**LINEAR, 'names': ('s2', 's1')},
    'monthly s2': {**LINEAR, 'names': ('s2',)},
    'presto s2, linear': {**LINEAR, 'frozen': True, 'names': ('s2',)},
    'monthly s2+s1, balanced': {**BALANCED, 'names': ('s2', 's1')},
    'monthly s2+s1, adapted': {**ADAPTED, 'names': ('s2', 's1')},
    'monthly s2, adapted': {**ADAPTED, 'names': ('s2',)},
    'monthly s1, adapted': {**ADAPTED, 'names': ('s1',)},
    'monthly s1': {**LINEAR, 'names': ('s1',)},
}
#: Kind and sensors of each classifier.
CLASSIFIERS: dict[str, tuple[str, tuple[str, ...]]] = {
    'random forest': ('random forest', ('s2', 's1')),
    'random forest s2': ('random forest', ('s2',)),
    'random forest s1': ('random forest', ('s1',)),
    'mlp': ('mlp', ('s2', 's1')),
    'mlp s2': ('mlp', ('s2',)),
    'mlp s1': ('mlp', ('s1',)),
}
#: All methods.
METHODS = (*CLASSIFIERS, *NETWORKS)
FIELDS = ('test', 'seed', 'method', 'data', 'weights', 'mean_iou', 'accuracy')


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of earlier runs."""
    if not path.exists():
        return []
    with path.open(newline='') as file:
        return [
            {
                'test': int(row['test']),
                'seed': int(row['seed']),
                **{name: row[name] for name in ('method', 'data', 'weights')},
                'mean_iou': float(row['mean_iou']),
                'accuracy': float(row['accuracy']),
            }
            for row in csv.DictReader(file)
        ]


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write all rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary, temporary.open('w', newline='') as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)


def files_of(method: str, root: Path, weights: Path) -> dict[str, str]:
    """Return a method, and the hashes of the files that it reads."""
    is_frozen = method in NETWORKS and NETWORKS[method]['frozen']
    return {'method': method, 'data': digest(root), 'weights': digest(weights) if is_frozen else ''}


def main() -> None:
    """Train, test and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = ROOT.parent / 'shared/data'
    parser.add_argument('data', choices=list(LABELS))
    parser.add_argument('--root', type=Path, help='folder of the data')
    parser.add_argument('--weights', type=Path, default=shared / 'weights/presto_default_model.pt')
    parser.add_argument('--output', type=Path, default=ROOT / 'benchmarks/results', help='folder of the scores')
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--methods', nargs='+', choices=METHODS, default=list(METHODS))
    parser.add_argument('--smoke', action='store_true', help='one step on few pixels, to see that the script runs')
    args = parser.parse_args()
    torch.set_num_threads(1)
    root = args.root or shared / ('belgium-crops' if args.data == 'belgium' else 'worldcereal-tiles')
    if args.data == 'belgium':
        raw = read_halves(root)
    else:
        raw = [read(folder) for folder in sorted(folder for folder in root.iterdir() if folder.is_dir())]
    if args.smoke:
        args.seeds = 1
        raw = [
            t._replace(images={n: x[..., :16, :16] for n, x in t.images.items()}, labels=t.labels[:16, :16])
            for t in raw
        ]
        for tile in raw:
            tile.labels[0, 0] = 0  # a tile without any label cannot be tested
    path = args.output / f'crops-{args.data}{"-smoke" if args.smoke else ""}.csv'
    rows = [] if args.smoke else read_rows(path)
    embedded: dict[tuple[str, ...], list[Tile]] = {}
    print(f'{"test tile":<10}{"seed":<6}{"method":<28}{"mean IoU":>10}{"accuracy":>10}')
    tests = (1,) if args.data == 'belgium' else range(len(raw))
    for seed, name, test in itertools.product(range(args.seeds), args.methods, tests):
        key = {'test': test, 'seed': seed, **files_of(name, root, args.weights)}
        if any(row.items() >= key.items() for row in rows):
            continue
        training = [i for i in range(len(raw)) if i != test]
        if name in CLASSIFIERS:
            answer = classify(*CLASSIFIERS[name], raw, training, test, seed)
        else:
            method, tiles = NETWORKS[name], raw
            names = method['names']
            if method['frozen']:
                if names not in embedded:
                    embedded[names] = [embed(tile, args.weights, MODALITIES[args.data], names) for tile in raw]
                tiles = embedded[names]
            answer = network(tiles, training, test, seed, args.data, method, 1 if args.smoke else None)
        iou, accuracy = scores(answer, raw[test].labels.numpy())
        rows.append({**key, 'mean_iou': iou, 'accuracy': accuracy})
        write_rows(path, rows)
        print(f'{test:<10}{seed:<6}{name:<28}{iou:>10.3f}{accuracy:>10.3f}', flush=True)
    for name in args.methods:
        chosen = [row for row in rows if row.items() >= files_of(name, root, args.weights).items()]
        means = [statistics.mean(row[kind] for row in chosen) for kind in ('mean_iou', 'accuracy')]
        print(f'{"all":<16}{name:<28}{means[0]:>10.3f}{means[1]:>10.3f}')


if __name__ == '__main__':
    main()
