# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Frozen Presto compared with training from scratch and a random forest, on two sets of real crops.

``worldcereal``: three tiles of 64 x 64 pixels in Flanders, tens of kilometres apart and of two
years, with Sentinel-2 (DN, with its scene classification), Sentinel-1 (dB) and the crops of farmers'
declarations. Trained on two tiles and tested on the third, in all three ways. Pixels without a
declared crop are ignored; only the bands of 20 m are used, since one tile has no others.

``belgium``: the western half of ``belgium-crops`` for training, the eastern half for testing, as in
``belgium.py``. Its labels are WorldCereal 2021, a product of a model of Presto's family.

All methods see the same monthly composites. Every pixel of Presto is embedded once; the decoder is
trained on the embeddings, standardised by the training pixels. No setting was chosen by pixels that
are tested: those of Presto were chosen by leaving out strips of the western half (README.md), those
of *scratch* are those of docs/configs/belgium-crops.yaml.

    python benchmarks/crops.py worldcereal --root DIR --weights presto_default_model.pt
    python benchmarks/crops.py belgium --root DIR --weights presto_default_model.pt         # minutes on one core
"""

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rasterio
import rasterio.warp
import torch
import xarray as xr
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from torch import Tensor, nn

from torchgeo_omnisat import Modality
from torchgeo_omnisat.losses import CrossEntropyDice
from torchgeo_omnisat.models import OmniSatSegmenter, PrestoEncoder, omnisat_tiny
from torchgeo_omnisat.tasks.base import warmup_cosine
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
#: Steps, and pixels of a step.
STEPS, PIXELS = 300, 512


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


def embed(tile: Tile, weights: Path, modalities: Mapping[str, Modality]) -> Tile:
    """Replace the series of a tile by its embeddings."""
    images = {}
    for name, modality in modalities.items():
        encoder = PrestoEncoder(modality.bands, modality.unit, weights=weights, latlon=tile.latlon, cache_size=0).eval()
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


def network(
    tiles: Sequence[Tile], training: Sequence[int], test: int, seed: int, data: str, method: Mapping[str, Any]
) -> Labels:
    """Return the classes of the test tile by an OmniSat trained on the others."""
    torch.manual_seed(seed)
    tiles, names = normalised(tiles, training), method['names']
    if method['frozen']:
        encoders: dict[str, Any] = {name: Given() for name in names}
        modalities = {n: Modality(n, tuple(f'e{i}' for i in range(128)), 10.0, True) for n in names}
    else:
        encoders, modalities = dict.fromkeys(names, 'ltae'), {name: MODALITIES[data][name] for name in names}
    backbone = omnisat_tiny(modalities, patch_size=10.0, encoders=encoders, widths=[128], embed_dim=128, depth=0)
    model = OmniSatSegmenter(backbone, len(LABELS[data]), label_gsd=10.0).train()
    criterion = CrossEntropyDice(IGNORED, None, method['dice'])
    flat = [p for p in model.parameters() if p.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {'params': [p for p in model.parameters() if p.ndim > 1]},
        {'params': flat, 'weight_decay': 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=method['lr'], weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_cosine(STEPS, 0.05))
    labelled = [(tiles[i].labels.flatten() != IGNORED).nonzero().squeeze(1) for i in training]
    for _ in range(STEPS):
        drawn = batch(
            [tiles[i] for i in training],
            [k[torch.randint(len(k), (PIXELS // len(training),))] for k in labelled],
            names,
        )
        optimizer.zero_grad()
        criterion(model(drawn), drawn['mask']).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    with torch.inference_mode():
        logits = model.eval()(batch([tiles[test]], [torch.arange(tiles[test].labels.numel())], names))
    classes: Labels = logits.argmax(1).view(tiles[test].labels.shape).numpy()
    return classes


def forest(tiles: Sequence[Tile], training: Sequence[int], test: int, seed: int) -> Labels:
    """Return the classes of the test tile by a random forest on the stacked composites."""
    stacked = [torch.cat([x.flatten(0, 1) for x in t.images.values()]).flatten(1).T.numpy() for t in tiles]
    known = [(t.labels.flatten() != IGNORED).numpy() for t in tiles]
    model = make_pipeline(
        SimpleImputer(strategy='median', keep_empty_features=True), RandomForestClassifier(300, random_state=seed)
    )
    labels = np.concatenate([tiles[i].labels.flatten().numpy()[known[i]] for i in training])
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
NETWORKS: dict[str, dict[str, Any]] = {
    'scratch s2+s1': {'frozen': False, 'names': ('s2', 's1'), 'lr': 2e-3, 'dice': 1.0},
    'presto s2+s1': {'frozen': True, 'names': ('s2', 's1'), 'lr': 3e-4, 'dice': 0.0},
    'presto s2': {'frozen': True, 'names': ('s2',), 'lr': 3e-4, 'dice': 0.0},
}


def main() -> None:
    """Train, test and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = ROOT.parent / 'shared/data'
    parser.add_argument('data', choices=list(LABELS))
    parser.add_argument('--root', type=Path, help='folder of the data')
    parser.add_argument('--weights', type=Path, default=shared / 'weights/presto_default_model.pt')
    parser.add_argument('--output', type=Path, default=Path('logs'), help='folder of the scores')
    parser.add_argument('--seeds', type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.data == 'belgium':
        raw = read_halves(args.root or shared / 'belgium-crops')
    else:
        folders = sorted(folder for folder in (args.root or shared / 'worldcereal-tiles').iterdir() if folder.is_dir())
        raw = [read(folder) for folder in folders]
    embedded = [embed(tile, args.weights, MODALITIES[args.data]) for tile in raw]
    rows: list[dict[str, Any]] = []
    print(f'{"test tile":<10}{"seed":<6}{"method":<16}{"mean IoU":>10}{"accuracy":>10}')
    for test in (1,) if args.data == 'belgium' else range(len(raw)):
        training, truth = [i for i in range(len(raw)) if i != test], raw[test].labels.numpy()
        for seed in range(args.seeds):
            answers = {'random forest': forest(raw, training, test, seed)}
            for name, method in NETWORKS.items():
                answers[name] = network(embedded if method['frozen'] else raw, training, test, seed, args.data, method)
            for name, answer in answers.items():
                iou, accuracy = scores(answer, truth)
                rows.append({'test': test, 'seed': seed, 'method': name, 'mean_iou': iou, 'accuracy': accuracy})
                print(f'{test:<10}{seed:<6}{name:<16}{iou:>10.3f}{accuracy:>10.3f}', flush=True)
    for name in ('random forest', *NETWORKS):
        chosen = [row for row in rows if row['method'] == name]
        means = [statistics.mean(row[kind] for row in chosen) for kind in ('mean_iou', 'accuracy')]
        print(f'{"all":<16}{name:<16}{means[0]:>10.3f}{means[1]:>10.3f}')
    args.output.mkdir(parents=True, exist_ok=True)
    with atomic_file(args.output / f'crops-{args.data}.json') as temporary:
        temporary.write_text(json.dumps(rows, indent=1) + '\n')


if __name__ == '__main__':
    main()
