# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Command `baseline`: pixel-wise classification, to compare models with."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.impute import SimpleImputer
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torchgeo.datasets.utils import Sample
from torchmetrics.classification import MulticlassJaccardIndex
from tqdm import tqdm

from ..datasets import PASTISMultimodal, SyntheticLandscapes
from ..datasets.pastis import FOLDS
from ..datasets.series import DAY
from ..datasets.synthetic.writing import is_synthetic
from ..modality import Modality, subset_name
from ..utils.console import say
from . import parsers
from .parsers import SYNTHETIC_ROOT

Features = NDArray[np.float32]
Days = NDArray[np.int64]

#: Days between the dates to which time series are interpolated.
STEP = 20


def pixel_features(sample: Sample, modality: Modality, calendar: Days, size: tuple[int, int]) -> Features:
    """Return the features of one modality for every label pixel, without its neighbours.

    A series becomes its bands on common dates, interpolated between the two nearest
    valid ones, and what a tenth, half and nine tenths of its dates stay below. A single
    image becomes its mean over the pixel.

    Args:
        sample: A sample of a dataset.
        modality: The modality.
        calendar: (D,) days since 1970-01-01.
        size: Height and width of the labels.

    Returns:
        (H W, F); NaN where nothing was measured.
    """
    bands, pixels = len(modality.bands), size[0] * size[1]
    width = bands * (len(calendar) + 3) if modality.temporal else bands
    if not sample.get(modality.valid_key, torch.zeros(1)).any():
        return np.full((pixels, width), np.nan, dtype=np.float32)
    image = sample[modality.image_key]
    if not modality.temporal:
        return torch.nn.functional.adaptive_avg_pool2d(image, size).reshape(bands, pixels).T.numpy()
    valid = sample[modality.valid_key]
    days, frames = sample[modality.dates_key][valid].numpy(), image[valid].numpy().reshape(-1, bands, pixels)
    identity = np.eye(len(days), dtype=np.float32)
    weight = np.stack([np.interp(calendar, days, row) for row in identity], axis=1).astype(np.float32)
    onto = np.einsum('dt,tcp->dcp', weight, frames)
    spread = np.quantile(frames, (0.1, 0.5, 0.9), axis=0).astype(np.float32)
    return np.concatenate([onto, spread]).reshape(-1, pixels).T


def score_pixels(train: PASTISMultimodal, test: PASTISMultimodal, max_pixels: int = 30000, seed: int = 0) -> float:
    """Return the mean IoU of a small pixel-wise MLP.

    Of forests, boosted trees and perceptrons, the perceptron scored best on the
    synthetic landscapes, at a tenth of the time. What is not measured is set to the mean
    and flagged.

    Args:
        train: What it learns from.
        test: What it is scored on, with the modalities of *train*.
        max_pixels: About how many labelled pixels it learns from, spread over the tiles.
        seed: Seed of the choice of pixels and of the weights.

    Returns:
        The mean over the classes that occur in the labels or in the answer, without the
        ignored one; the score that a model reports as ``test_AverageJaccardIndex``.
    """
    rng = np.random.default_rng(seed)
    calendar = _calendar(train[0])
    share, features, target = max(1, max_pixels // len(train)), [], []
    for sample in tqdm(_samples(train), total=len(train), desc='Learn', disable=None, leave=False):
        mask = sample['mask'].flatten().numpy()
        chosen = rng.permutation(np.flatnonzero(mask != train.ignore_index))[:share]
        features.append(_all_features(sample, train.modalities, calendar)[chosen])
        target.append(mask[chosen])
    known, wanted = np.concatenate(features), np.concatenate(target)
    size, batch = (128,), min(256, len(wanted))
    perceptron = MLPClassifier(
        size, alpha=0.01, batch_size=batch, learning_rate_init=2e-3, max_iter=15, random_state=seed
    )
    impute = SimpleImputer(add_indicator=True, keep_empty_features=True)
    model = make_pipeline(StandardScaler(), impute, perceptron)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', ConvergenceWarning)  # it stops after 15 epochs on purpose
        model.fit(known, wanted)
    metric = MulticlassJaccardIndex(len(train.classes), ignore_index=train.ignore_index)
    for sample in tqdm(_samples(test), total=len(test), desc='Score', disable=None, leave=False):
        answer = model.predict(_all_features(sample, train.modalities, calendar))
        metric.update(torch.from_numpy(answer), sample['mask'].flatten())
    return float(metric.compute())


def main(argv: Sequence[str] | None = None) -> int:
    """Print the scores with Sentinel-2 only and with all modalities.

    Args:
        argv: Arguments of the command line.

    Returns:
        Exit status, 0 for success.
    """
    args = parsers.baseline().parse_args(argv)
    root = Path(args.root or SYNTHETIC_ROOT)
    if args.root is None and not root.exists():
        SyntheticLandscapes(root)
    every = PASTISMultimodal(root, missing='allow')
    kind = 'synthetic landscapes' if is_synthetic(every.path) else 'PASTIS'
    say(f'Per-pixel perceptron on {kind} ({root}), fold {args.fold}:')
    for names in dict.fromkeys((tuple(every.modalities)[:1], tuple(every.modalities))):
        train, test = (PASTISMultimodal(root, FOLDS[args.fold][k], names, missing='allow') for k in (0, 2))
        score = score_pixels(train, test, args.max_pixels, seed=args.seed)
        say(f'  {subset_name(names):<20} mean IoU {score:.3f}')
    return 0


def _samples(dataset: PASTISMultimodal) -> Iterator[Sample]:
    """Return every sample once; the length of the dataset is its end."""
    return (dataset[index] for index in range(len(dataset)))


def _all_features(sample: Sample, modalities: Mapping[str, Modality], calendar: Days) -> Features:
    """Return the features of all modalities, concatenated (H W, F)."""
    height, width = sample['mask'].shape
    return np.concatenate([pixel_features(sample, m, calendar, (height, width)) for m in modalities.values()], axis=1)


def _calendar(sample: Sample) -> Days:
    """Return dates every :data:`STEP` days over the period of a sample; none without time series."""
    first, last = sample['bounds'][6:8].tolist()
    return np.arange(first // DAY, last // DAY, STEP, dtype=np.int64) if first == first else np.zeros(0, np.int64)
