# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""A real map: trained on the western half of a field area, predicted over all of it, scored on the eastern half.

The data are ``belgium-crops``: monthly Sentinel-2 and Sentinel-1, elevation and a crop map
(WorldCereal 2021, a map product itself) of 48 x 50 pixels near Hasselt. ``torchgeo fit`` and
``torchgeo predict`` run with ``docs/configs/belgium-crops.yaml``; the map must lie exactly on the
crop map. A pixel-wise MLP is trained on the same half.

No setting and no state is chosen by the eastern half: the last state of training is what is scored. One of
the five classes, maize, is nowhere in the western half, so that its IoU is 0 for everyone.

    python benchmarks/belgium.py --root DIR         # minutes on one core
"""

import argparse
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
import torchgeo.main
import yaml
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.impute import SimpleImputer
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from torchgeo_omnisat import plugin
from torchgeo_omnisat.datamodules import MultimodalGeoDataModule
from torchgeo_omnisat.utils.atomic import atomic_file

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / 'docs/configs/belgium-crops.yaml'
Labels = NDArray[np.int64]


def scores(answer: Labels, truth: Labels, classes: int) -> dict[str, Any]:
    """Mean IoU over the classes that occur in either, and overall accuracy."""
    confusion = np.bincount(classes * truth.ravel() + answer.ravel(), minlength=classes**2).reshape(classes, classes)
    union = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    iou = confusion.diagonal()[union > 0] / union[union > 0]
    return {
        'mean_iou': float(iou.mean()),
        'overall_accuracy': float(confusion.diagonal().sum() / confusion.sum()),
        'iou': [round(float(value), 3) for value in iou],
    }


def by_pixel(datamodule: MultimodalGeoDataModule, west: NDArray[np.bool_], truth: Labels, seed: int) -> Labels:
    """Return the prediction of an MLP for every pixel, trained on the western pixels."""
    dataset = datamodule.unlabelled
    xmin, ymin, xmax, ymax = dataset.area.bounds
    sample = dataset[slice(xmin, xmax), slice(ymin, ymax)]
    images = [sample[modality.image_key].flatten(0, -3) for modality in dataset.modalities.values()]
    pixels = torch.cat(images)[:, : truth.shape[0], : truth.shape[1]].flatten(1).T.numpy()
    perceptron = MLPClassifier(
        (128,), alpha=0.01, batch_size=256, learning_rate_init=2e-3, max_iter=15, random_state=seed
    )
    model = make_pipeline(StandardScaler(), SimpleImputer(add_indicator=True, keep_empty_features=True), perceptron)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', ConvergenceWarning)  # it stops after 15 epochs, as it is to
        model.fit(pixels[west.ravel()], truth[west])
    answer: Labels = model.predict(pixels).reshape(truth.shape)
    return answer


def linked(root: Path, folder: Path) -> Path:
    """Create a folder with links to the data, so that statistics are not saved beside the originals."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in root.resolve().iterdir():
        link = folder / part.name
        if part.is_dir() and not link.exists():
            link.symlink_to(part)
        if part.is_dir() and link.resolve() != part:
            raise SystemExit(f'{link} is a link to {link.resolve()}, expected {part}: choose another --output')
    return folder


def fit_and_predict(root: Path, output: Path, seed: int, options: Sequence[str]) -> Path:
    """Run ``torchgeo fit`` and ``torchgeo predict``, and give the map."""
    plugin.load()
    shared = ['--config', str(CONFIG), '--data.root', str(root), '--seed_everything', str(seed)]
    shared += ['--trainer.default_root_dir', str(output), '--trainer.logger', 'false', *options]
    keep = ['--trainer.callbacks', 'ModelCheckpoint', '--trainer.callbacks.dirpath', str(output)]
    keep += ['--trainer.callbacks.filename', 'belgium', '--trainer.callbacks.enable_version_counter', 'false']
    torchgeo.main.main(['fit', *shared, *keep])
    path = output / 'belgium.tif'
    write = ['--trainer.callbacks', 'GeoTIFFWriter', '--trainer.callbacks.output', str(path)]
    write += ['--trainer.callbacks.parcels', 'true']
    torchgeo.main.main(['predict', *shared, *write, '--ckpt_path', str(output / 'belgium.ckpt')])
    return path


def main() -> None:
    """Train, predict, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--root', type=Path, default=ROOT.parent / 'shared/data/belgium-crops', help='folder of the data'
    )
    parser.add_argument('--output', type=Path, default=Path('logs/belgium'), help='folder for model, map and scores')
    parser.add_argument('--seed', type=int, default=0)
    args, options = parser.parse_known_args()
    root = linked(args.root, args.output / 'data')
    path = fit_and_predict(root, args.output, args.seed, options)
    (crops,) = (root / 'crops').glob('*.tif')
    with rasterio.open(crops) as wanted, rasterio.open(path) as made:
        same = (made.crs, made.transform, made.shape) == (wanted.crs, wanted.transform, wanted.shape)
        truth, answer, x0, step = wanted.read(1).astype(np.int64), made.read(1), wanted.transform.c, wanted.transform.a
    if not same:
        raise SystemExit(f'{path} does not lie on {crops}')
    data = yaml.safe_load(CONFIG.read_text())['data']['init_args']
    classes, edge = len(data['labels']), data['split']['train'][2]
    west = np.broadcast_to(x0 + step * (np.arange(truth.shape[1]) + 0.5) < edge, truth.shape)
    everything = data | {'root': str(root), 'modalities': None}  # the perceptron sees elevation too
    datamodule = MultimodalGeoDataModule(**everything)
    pixel = by_pixel(datamodule, west, truth, args.seed)
    most = np.full_like(truth, np.bincount(truth[~west]).argmax())
    answers = {'omnisat': answer.astype(np.int64), 'one pixel at a time': pixel, 'most frequent class': most}
    rows = {name: scores(value[~west], truth[~west], classes) for name, value in answers.items()}
    print(f'{path} lies exactly on {crops.name}. The {int((~west).sum())} pixels of the eastern half:')
    print(f'{"":<22}{"mean IoU":>10}{"accuracy":>10}   IoU of the classes that occur')
    for name, row in rows.items():
        print(f'{name:<22}{row["mean_iou"]:>10.3f}{row["overall_accuracy"]:>10.3f}   {row["iou"]}')
    with atomic_file(args.output / 'scores.json') as temporary:
        temporary.write_text(json.dumps({'seed': args.seed, 'rows': rows}, indent=1) + '\n')


if __name__ == '__main__':
    main()
