# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Command `baseline`: pixel-wise classification or regression as a baseline for models."""

import math
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.compose import TransformedTargetRegressor
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_selection import VarianceThreshold
from sklearn.impute import SimpleImputer
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torchgeo.datasets.utils import Sample
from torchmetrics.classification import MulticlassJaccardIndex
from tqdm import tqdm

from ..datasets import PASTISMultimodal, SyntheticLandscapes
from ..datasets.common.labelcounts import evenly_spaced
from ..datasets.common.series import DAY
from ..datasets.pastis import FOLDS
from ..datasets.synthetic.writing import is_synthetic
from ..modality import Modality, subset_name
from ..tasks.regression import value_metrics
from ..tasks.supervised import classification_metrics
from ..utils.cli.console import align, say
from ..utils.plurals import counted
from . import parsers
from .data import data_parser, one_error, parse_data
from .parsers import SYNTHETIC_ROOT

Features = NDArray[np.float32]
Days = NDArray[np.int64]

#: Days between the dates to which time series are interpolated.
STEP = 20
#: Number of training pixels below which a classifier may be better than a model.
FEW = 5000
#: Name of the classifier that predicts the most frequent class of the training pixels.
MAJORITY = 'most frequent class'
#: Classifiers of :func:`score_classes`, besides that.
CLASSIFIERS = ('random forest', 'gradient boosting', 'pixel-wise MLP')
#: Their metrics, those of ``torchgeo test``: names and titles.
METRICS = {'AverageJaccardIndex': 'mean IoU', 'AverageF1Score': 'mean F1', 'OverallAccuracy': 'accuracy'}


class PixelScores(NamedTuple):
    """Scores of pixel-wise classifiers.

    Attributes:
        scores: :data:`METRICS` by classifier.
        trained: Number of training pixels.
        scored: Number of scored pixels.
    """

    scores: dict[str, dict[str, float]]
    trained: int
    scored: int


def pixel_features(sample: Sample, modality: Modality, calendar: Days, size: tuple[int, int]) -> Features:
    """Return the features (H W, F) of one modality for every label pixel, NaN where it is not observed.

    Features of a time series are its bands, interpolated linearly to the days of *calendar* (since 1970-01-01), and
    their 10 %, 50 % and 90 % quantiles over time. Dates at which a pixel is not observed are interpolated. Features of
    a single image are its bands. Pixels that are finer than those of the label are averaged.
    """
    bands, pixels = len(modality.bands), size[0] * size[1]
    width = bands * (len(calendar) + 3) if modality.temporal else bands
    if not sample.get(modality.valid_key, torch.zeros(1)).any():
        return np.full((pixels, width), np.nan, dtype=np.float32)
    image = _resized(sample[modality.image_key], size)
    if not modality.temporal:
        return image.reshape(bands, pixels).T.numpy()
    valid = sample[modality.valid_key]
    days, frames = sample[modality.dates_key][valid].numpy(), image[valid].numpy().reshape(-1, bands, pixels)
    frames = _filled(frames, days)
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
    calendar = _calendar(train[0])
    x, y = _training_pixels(train, calendar, lambda mask: mask != train.ignore_index, max_pixels, seed)
    size, batch = (128,), min(256, len(y))
    mlp = MLPClassifier(size, alpha=0.01, batch_size=batch, learning_rate_init=2e-3, max_iter=15, random_state=seed)
    model = _fit_quietly(_standardised(mlp), x, y)
    metric = MulticlassJaccardIndex(len(train.classes), ignore_index=train.ignore_index)
    for sample in tqdm(_samples(test), total=len(test), desc='Score', disable=None, leave=False):
        prediction = model.predict(_all_features(sample, train.modalities, calendar))
        metric.update(torch.from_numpy(prediction), sample['mask'].flatten())
    return float(metric.compute())


def score_classes(
    train: Any,
    test: Any,
    num_classes: int,
    ignore_index: int | None = None,
    max_pixels: int = 30000,
    seed: int = 0,
    classifiers: Sequence[str] = CLASSIFIERS,
) -> PixelScores:
    """Score pixel-wise classifiers of a dataset with class labels.

    They are trained on at most *max_pixels* labelled pixels, a uniform sample of those of *train*, and scored on all
    labelled pixels of *test*, with the metrics of ``torchgeo test``.

    Args:
        train: Training samples.
        test: Samples to score.
        num_classes: Number of classes.
        ignore_index: Label of pixels without a class.
        max_pixels: Maximum number of training pixels.
        seed: Seed of the sample and of the classifiers.
        classifiers: Some of :data:`CLASSIFIERS`.

    Raises:
        ValueError: If there is no labelled pixel in *train* or *test*, or labels are of whole tiles.
    """
    calendar = _calendar_of(train)
    features, target = _uniform_pixels(train, calendar, ignore_index, max_pixels, seed)
    if not len(target):
        raise ValueError(f'no pixel of {counted(len(train), "training tile")} has a label, expected some')
    models = {MAJORITY: DummyClassifier()} | _classifiers(classifiers, len(target), seed)
    for model in models.values():
        _fit_quietly(model, features, target)
    every = classification_metrics('multiclass', num_classes=num_classes, ignore_index=ignore_index)
    metrics = {name: {key: every[key].clone() for key in METRICS} for name in models}
    scored = 0
    for sample in tqdm(_samples(test), total=len(test), desc='Score', disable=None, leave=False):
        mask = _mask_of(sample).flatten()
        labelled = _labelled(mask, ignore_index)
        if not labelled.any():
            continue
        scored += int(labelled.sum())
        found = _all_features(sample, train.modalities, calendar)[labelled.numpy()]
        for name, model in models.items():
            prediction = torch.from_numpy(model.predict(found))
            for metric in metrics[name].values():
                metric.update(prediction, mask[labelled])
    if not scored:
        raise ValueError(f'no pixel of {counted(len(test), "test tile")} has a label, expected some')
    scores = {name: {key: float(metric.compute()) for key, metric in each.items()} for name, each in metrics.items()}
    return PixelScores(scores, len(target), scored)


def score_values(train: Any, test: Any, max_pixels: int = 30000, seed: int = 0) -> dict[str, dict[str, float]]:
    """Return MAE, RMSE and R2 of the mean of the training labels, and of a small pixel-wise MLP, by name.

    Both are trained on about *max_pixels* pixels with a finite ``mask``, and scored on all such pixels of *test*.

    Raises:
        ValueError: If no pixel of *train* or *test* has a value.
    """
    calendar = _calendar_of(train)
    x, y = _training_pixels(train, calendar, np.isfinite, max_pixels, seed)
    if not len(y):
        raise ValueError(f'no pixel of {counted(len(train), "training tile")} has a value, expected some')
    size, batch = (128,), min(256, len(y))
    mlp = MLPRegressor(hidden_layer_sizes=size, alpha=0.01, batch_size=batch, learning_rate_init=2e-3, max_iter=15)
    pipeline = _standardised(mlp.set_params(random_state=seed))
    model = _fit_quietly(TransformedTargetRegressor(pipeline, transformer=StandardScaler()), x, y)
    predictors: dict[str, Callable[[Features], Any]] = {
        'mean': lambda found: np.full(len(found), y.mean()),
        'pixel-wise MLP': model.predict,
    }
    metrics = {name: value_metrics() for name in predictors}
    for sample in tqdm(_samples(test), total=len(test), desc='Score', disable=None, leave=False):
        found = _all_features(sample, train.modalities, calendar)
        for name, predict in predictors.items():
            for metric in metrics[name].values():
                metric.update(torch.from_numpy(predict(found)), sample['mask'].flatten())
    if not metrics['mean']['R2'].total:
        raise ValueError(f'no pixel of {counted(len(test), "test tile")} has a value, expected some')
    return {name: {key: float(metric.compute()) for key, metric in each.items()} for name, each in metrics.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the scores with Sentinel-2 only and with all modalities, or those of continuous labels."""
    words = sys.argv[1:] if argv is None else list(argv)
    if any(word.split('=')[0].split('.')[0] in ('--data', '--config', '-c') for word in words):
        return _print_scores(words)
    args = parsers.baseline_parser().parse_args(argv)
    if args.classifiers is not None:
        raise ValueError(f'--classifiers is {args.classifiers}, expected it with --data or --config only')
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


def _print_scores(words: Sequence[str]) -> int:
    args, datamodule = parse_data(parsers.data_baseline_parser(data_parser), words)
    with one_error('baseline'):
        train = datamodule.make_dataset('train', **datamodule.whole_series())
        split = 'val' if 'test' in getattr(datamodule, 'left_out', list)() else 'test'
        test = datamodule.make_dataset(split)
        origin = f'{datamodule.origin} ({subset_name(tuple(train.modalities))})'
        if datamodule.continuous:
            if args.classifiers is not None:
                raise ValueError(f'--classifiers is {args.classifiers}, expected none of them for continuous labels')
            return _print_values(datamodule, origin, score_values(train, test, args.max_pixels, args.seed), split)
        found = score_classes(
            train,
            test,
            datamodule.num_classes,
            datamodule.ignore_index,
            args.max_pixels,
            args.seed,
            [
                name
                for name in CLASSIFIERS
                if name.split()[-1].lower() in (args.classifiers or parsers.PIXEL_CLASSIFIERS)
            ],
        )
    say(
        f'Baselines of {origin}, trained on {counted(found.trained, "pixel")}, scored on '
        f'{counted(found.scored, "labelled pixel")} of the {split} split:'
    )
    rows = [['', *METRICS.values()]]
    rows += [[name, *(f'{each[key]:.3f}' for key in METRICS)] for name, each in found.scores.items()]
    say(align(rows, '<>>>'))
    if found.trained < FEW:
        say(
            f'{counted(found.trained, "training pixel is", "training pixels are")} few: use a model only if `test` '
            'scores higher on this split'
        )
    return 0


def _print_values(datamodule: Any, origin: str, scores: Mapping[str, Mapping[str, float]], split: str) -> int:
    unit = f' {datamodule.target_unit}' if datamodule.target_unit else ''
    say(f'Baselines of {origin}, {split} split:')
    for name, found in scores.items():
        say(f'  {name:<16} MAE {found["MAE"]:.4g}{unit}, RMSE {found["RMSE"]:.4g}{unit}, R2 {found["R2"]:.3f}')
    return 0


def _classifiers(names: Sequence[str], count: int, seed: int) -> dict[str, Any]:
    """Return untrained classifiers by name for *count* training pixels."""
    epochs = max(15, math.ceil(2000 / math.ceil(count / 256)))  # at least 2000 steps
    mlp = MLPClassifier(
        (128,), alpha=0.01, batch_size=min(256, count), learning_rate_init=2e-3, max_iter=epochs, random_state=seed
    )
    median = SimpleImputer(strategy='median', keep_empty_features=True)
    forest = make_pipeline(median, RandomForestClassifier(300, random_state=seed, n_jobs=-1))
    boosting = make_pipeline(VarianceThreshold(), HistGradientBoostingClassifier(random_state=seed))
    every = dict(zip(CLASSIFIERS, (forest, boosting, _standardised(mlp)), strict=True))
    return {name: every[name] for name in names}


def _uniform_pixels(
    train: Any, calendar: Days, ignore_index: int | None, max_pixels: int, seed: int
) -> tuple[Features, NDArray[Any]]:
    """Return features (N, F) and classes (N,) of a uniform sample of at most *max_pixels* labelled pixels.

    Each pixel has a random key. Those with the smallest keys are kept, so that the number of labelled pixels need not
    be known in advance.
    """
    rng = np.random.default_rng(seed)
    keys, features, target = np.zeros(0), np.zeros((0, 0), np.float32), np.zeros(0, np.int64)
    for sample in tqdm(_samples(train), total=len(train), desc='Learn', disable=None, leave=False):
        mask = _mask_of(sample).flatten()
        places = np.flatnonzero(_labelled(mask, ignore_index).numpy())
        own = rng.random(len(places))
        chosen = own < (keys.max() if len(keys) == max_pixels else 1)
        places, own = places[chosen], own[chosen]
        if not len(places):
            continue
        found = _all_features(sample, train.modalities, calendar)[places]
        features = np.concatenate([features, found]) if len(keys) else found
        keys, target = np.concatenate([keys, own]), np.concatenate([target, mask.numpy()[places]])
        if len(keys) > max_pixels:
            kept = np.sort(np.argpartition(keys, max_pixels - 1)[:max_pixels])
            keys, features, target = keys[kept], features[kept], target[kept]
    return features, target


def _mask_of(sample: Sample) -> Tensor:
    if 'mask' not in sample:
        raise ValueError(
            f'samples have {sorted(map(str, sample))}, expected mask: baselines are of pixels, not of whole tiles'
        )
    return sample['mask']


def _labelled(mask: Tensor, ignore_index: int | None) -> Tensor:
    return torch.ones_like(mask, dtype=torch.bool) if ignore_index is None else mask != ignore_index


def _training_pixels(
    train: Any, calendar: Days, is_labelled: Callable[[NDArray[Any]], NDArray[np.bool_]], max_pixels: int, seed: int
) -> tuple[Features, NDArray[Any]]:
    """Return features (N, F) and targets (N,) of about *max_pixels* random labelled pixels."""
    rng = np.random.default_rng(seed)
    per_tile, features, target = max(1, max_pixels // len(train)), [], []
    for sample in tqdm(_samples(train), total=len(train), desc='Learn', disable=None, leave=False):
        mask = sample['mask'].flatten().numpy()
        chosen = rng.permutation(np.flatnonzero(is_labelled(mask)))[:per_tile]
        features.append(_all_features(sample, train.modalities, calendar)[chosen])
        target.append(mask[chosen])
    return np.concatenate(features), np.concatenate(target)


def _standardised(mlp: Any) -> Any:
    impute = SimpleImputer(add_indicator=True, keep_empty_features=True)
    return make_pipeline(StandardScaler(), impute, mlp)


def _fit_quietly(model: Any, x: Features, y: NDArray[Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', ConvergenceWarning)  # 15 epochs are sufficient
        warnings.simplefilter('ignore', RuntimeWarning)  # of features without a value
        return model.fit(x, y)


def _resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Average pixels ``(..., H, W)`` that are finer than those of *size*, and repeat those that are coarser."""
    height, width = image.shape[-2:]
    if (height, width) == size:
        return image
    if height >= size[0] and width >= size[1]:
        return F.adaptive_avg_pool2d(image, size)
    flat = image.reshape(1, -1, height, width)
    return F.interpolate(flat, size, mode='nearest-exact').reshape(*image.shape[:-2], *size)


def _samples(dataset: Any) -> Iterator[Sample]:
    """Iterate over a dataset up to its length, which ``iter`` would ignore."""
    return (dataset[index] for index in range(len(dataset)))


def _all_features(sample: Sample, modalities: Mapping[str, Modality], calendar: Days) -> Features:
    height, width = sample['mask'].shape
    return np.concatenate([pixel_features(sample, m, calendar, (height, width)) for m in modalities.values()], axis=1)


def _calendar(sample: Sample) -> Days:
    """Return dates every :data:`STEP` days over the period of a sample; none without time series."""
    first, last = sample['bounds'][6:8].tolist()
    return np.arange(first // DAY, last // DAY, STEP, dtype=np.int64) if first == first else np.zeros(0, np.int64)


def _calendar_of(dataset: Any) -> Days:
    """Return the dates of the features of time series, from up to 20 evenly spaced samples.

    These are the acquisition dates if all samples have the same ones, else dates every :data:`STEP` days from the first
    to the last valid one.
    """
    days: list[int] = []
    series = dict[str, set[tuple[int, ...]]]()
    for index in evenly_spaced(len(dataset), 20):
        sample = dataset[index]
        for name, modality in dataset.modalities.items():
            if modality.temporal and modality.image_key in sample:
                days += sample[modality.dates_key][sample[modality.valid_key]].tolist()
                series.setdefault(name, set()).add(tuple(sample[modality.dates_key].tolist()))
    if not days:
        return np.zeros(0, np.int64)
    if all(len(dates) == 1 for dates in series.values()):
        return np.array(sorted({day for dates in series.values() for day in next(iter(dates))}), np.int64)
    return np.arange(min(days), max(days) + 1, STEP, dtype=np.int64)


def _filled(frames: Features, days: Days) -> Features:
    """Interpolate NaN of *frames* (T, C, P) linearly in time; before the first and after the last value it is constant.

    Series without a value stay NaN.
    """
    missing = np.isnan(frames)
    if not missing.any():
        return frames
    index = np.arange(len(days))[:, None, None]
    before = np.maximum.accumulate(np.where(missing, -1, index), axis=0)
    after = np.minimum.accumulate(np.where(missing, len(days), index)[::-1], axis=0)[::-1]
    before, after = (
        np.where(before < 0, np.minimum(after, len(days) - 1), before),
        np.where(after >= len(days), np.maximum(before, 0), after),
    )
    low, high = (np.take_along_axis(frames, place, axis=0) for place in (before, after))
    gap = days[after] - days[before]
    weight = np.where(gap > 0, (days[:, None, None] - days[before]) / np.maximum(gap, 1), 0).astype(np.float32)
    return np.where(missing, low + weight * (high - low), frames)
