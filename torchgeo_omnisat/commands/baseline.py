# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Command `baseline`: pixel-wise classification as a baseline for models."""

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
from ..datasets.common.series import DAY
from ..datasets.pastis import FOLDS
from ..datasets.synthetic.writing import is_synthetic
from ..modality import Modality, subset_name
from ..utils.cli.console import say
from . import parsers
from .parsers import SYNTHETIC_ROOT

Features = NDArray[np.float32]
Days = NDArray[np.int64]

#: Days between the dates to which time series are interpolated.
STEP = 20


def pixel_features(sample: Sample, modality: Modality, calendar: Days, size: tuple[int, int]) -> Features:
    """Return the features (H W, F) of one modality for every label pixel, NaN where it is not observed.

    Features of a time series are its bands, interpolated linearly to the days of *calendar* (since 1970-01-01), and
    their 10 %, 50 % and 90 % quantiles over time. The feature of a single image is its mean over the label pixel.
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
    interpolated = np.einsum('dt,tcp->dcp', weight, frames)
    quantiles = np.quantile(frames, (0.1, 0.5, 0.9), axis=0).astype(np.float32)
    return np.concatenate([interpolated, quantiles]).reshape(-1, pixels).T


def score_pixels(train: PASTISMultimodal, test: PASTISMultimodal, max_pixels: int = 30000, seed: int = 0) -> float:
    """Return the mean IoU of a small pixel-wise MLP, as a model reports in ``test_AverageJaccardIndex``.

    On the synthetic landscapes, it scores better than random forests and boosted trees, in a tenth of the time. It is
    trained on about *max_pixels* labelled pixels. Missing features are replaced by their mean, with an indicator.
    """
    rng = np.random.default_rng(seed)
    calendar = _calendar(train[0])
    per_tile, features, target = max(1, max_pixels // len(train)), [], []
    for sample in tqdm(_samples(train), total=len(train), desc='Learn', disable=None, leave=False):
        mask = sample['mask'].flatten().numpy()
        chosen = rng.permutation(np.flatnonzero(mask != train.ignore_index))[:per_tile]
        features.append(_all_features(sample, train.modalities, calendar)[chosen])
        target.append(mask[chosen])
    x, y = np.concatenate(features), np.concatenate(target)
    size, batch = (128,), min(256, len(y))
    mlp = MLPClassifier(size, alpha=0.01, batch_size=batch, learning_rate_init=2e-3, max_iter=15, random_state=seed)
    impute = SimpleImputer(add_indicator=True, keep_empty_features=True)
    model = make_pipeline(StandardScaler(), impute, mlp)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', ConvergenceWarning)  # 15 epochs are sufficient
        model.fit(x, y)
    metric = MulticlassJaccardIndex(len(train.classes), ignore_index=train.ignore_index)
    for sample in tqdm(_samples(test), total=len(test), desc='Score', disable=None, leave=False):
        prediction = model.predict(_all_features(sample, train.modalities, calendar))
        metric.update(torch.from_numpy(prediction), sample['mask'].flatten())
    return float(metric.compute())


def main(argv: Sequence[str] | None = None) -> int:
    """Print the scores with Sentinel-2 only and with all modalities."""
    args = parsers.baseline_parser().parse_args(argv)
    root = Path(args.root or SYNTHETIC_ROOT)
    if args.root is None and not root.exists():
        SyntheticLandscapes(root)
    every = PASTISMultimodal(root, missing='allow')
    kind = 'synthetic landscapes' if is_synthetic(every.path) else 'PASTIS'
    say(f'Pixel-wise MLP on {kind} ({root}), fold {args.fold}:')
    for names in dict.fromkeys((tuple(every.modalities)[:1], tuple(every.modalities))):
        train, test = (PASTISMultimodal(root, FOLDS[args.fold][k], names, missing='allow') for k in (0, 2))
        score = score_pixels(train, test, args.max_pixels, seed=args.seed)
        say(f'  {subset_name(names):<20} mean IoU {score:.3f}')
    return 0


def _samples(dataset: PASTISMultimodal) -> Iterator[Sample]:
    """Iterate over a dataset up to its length, which ``iter`` would ignore."""
    return (dataset[index] for index in range(len(dataset)))


def _all_features(sample: Sample, modalities: Mapping[str, Modality], calendar: Days) -> Features:
    height, width = sample['mask'].shape
    return np.concatenate([pixel_features(sample, m, calendar, (height, width)) for m in modalities.values()], axis=1)


def _calendar(sample: Sample) -> Days:
    """Return dates every :data:`STEP` days over the period of a sample; none without time series."""
    first, last = sample['bounds'][6:8].tolist()
    return np.arange(first // DAY, last // DAY, STEP, dtype=np.int64) if first == first else np.zeros(0, np.int64)
