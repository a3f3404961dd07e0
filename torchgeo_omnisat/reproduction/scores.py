# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Scores that authors report, with their protocols and sources, and scores of confusion matrices."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class PublishedScore:
    """Score that was reported by authors.

    Args:
        model: Name of the model.
        sensors: Sensors of its input.
        score: Score in %.
        protocol: Splits and training.
        source: Document that states the score.
        url: Address of the source or of the paper.
    """

    model: str
    sensors: str
    score: float
    protocol: str
    source: str
    url: str


_MAESTRO = 'https://github.com/IGNF/MAESTRO'
_MAESTRO_README = 'README of MAESTRO'
_OWN_SPLITS = 'split files of MAESTRO'
_FLAIR2 = 'FLAIR #2 filtered again from FLAIR-HUB, 12 classes'
_OFFICIAL_DOMAINS = 'official test domains, 12 classes'
_FLAIR2_PAPER = 'https://arxiv.org/abs/2305.14467'
_FLAIRHUB = 'land cover, 15 classes'
_PASTIS = (
    PublishedScore(
        'U-TAE',
        'S2',
        63.1,
        'five folds, confusion matrices summed',
        'README of utae-paps',
        'https://github.com/VSainteuf/utae-paps',
    ),
    PublishedScore('TSViT', 'S2', 65.4, 'custom', 'README of Exchanger', 'https://arxiv.org/abs/2301.04944'),
    PublishedScore(
        'Exchanger with U-Net', 'S2', 66.8, 'custom', 'README of Exchanger', 'https://arxiv.org/abs/2305.02086'
    ),
    PublishedScore(
        'Exchanger with Mask2Former', 'S2', 67.9, 'custom', 'README of Exchanger', 'https://arxiv.org/abs/2305.02086'
    ),
    PublishedScore('U-TAE, late fusion', 'S2+S1', 66.3, 'five folds', 'paper', 'https://arxiv.org/abs/2112.07558'),
    PublishedScore(
        'OlmoEarth-L, frozen, linear probe',
        'S2+S1',
        51.8,
        'linear probe',
        'table of UniverSat (assets/results_geobench.png)',
        'https://github.com/gastruc/UniverSat',
    ),
)

#: Scores by dataset, as in ``docs/comparison.md`` and the sources.
SCORES: dict[str, tuple[PublishedScore, ...]] = {
    'pastis': _PASTIS,
    'pastis100': _PASTIS,
    'pastis-hd': (
        *_PASTIS,
        PublishedScore('AnySat', 'S2+S1+SPOT', 66.5, 'fold 5', _MAESTRO_README, 'https://arxiv.org/abs/2412.14123'),
        PublishedScore('MAESTRO', 'S2+S1+SPOT', 68.6, _OWN_SPLITS, _MAESTRO_README, _MAESTRO),
        PublishedScore(
            'MAESTRO, pre-trained for twice the epochs', 'S2+S1+SPOT', 69.0, _OWN_SPLITS, _MAESTRO_README, _MAESTRO
        ),
    ),
    'flair': (
        PublishedScore('DINOv2', 'aerial+DEM', 64.2, _FLAIR2, _MAESTRO_README, _MAESTRO),
        PublishedScore('previous best', 'unknown', 64.1, _FLAIR2, _MAESTRO_README, _MAESTRO),
        PublishedScore(
            'MAESTRO, pre-trained for twice the epochs', 'aerial+DEM+S2', 63.3, _FLAIR2, _MAESTRO_README, _MAESTRO
        ),
        PublishedScore('MAESTRO', 'aerial+DEM+S2', 62.6, _FLAIR2, _MAESTRO_README, _MAESTRO),
        PublishedScore('UT&T, best of 55.9 to 57.6', 'aerial+S2', 57.6, _OFFICIAL_DOMAINS, 'paper', _FLAIR2_PAPER),
        PublishedScore('U-Net', 'aerial', 54.7, _OFFICIAL_DOMAINS, 'paper', _FLAIR2_PAPER),
    ),
    'flair-hub': (
        PublishedScore('DINOv2', 'aerial+DEM', 66.0, _FLAIRHUB, _MAESTRO_README, _MAESTRO),
        PublishedScore('MAESTRO', 'aerial+DEM+S2+S1', 65.9, _FLAIRHUB, _MAESTRO_README, _MAESTRO),
        PublishedScore(
            'baseline LC-L', 'several', 65.8, 'land cover', 'README of FLAIR-HUB', 'https://github.com/IGNF/FLAIR-HUB'
        ),
    ),
    'treesatai': (
        PublishedScore(
            'MAESTRO, pre-trained on FLAIR-HUB', 'aerial+S2+S1', 79.6, _OWN_SPLITS, _MAESTRO_README, _MAESTRO
        ),
        PublishedScore(
            'MAESTRO, pre-trained for twice the epochs', 'aerial+S2+S1', 79.4, _OWN_SPLITS, _MAESTRO_README, _MAESTRO
        ),
        PublishedScore('SatMAE, adapted', 'aerial+S2+S1', 76.9, _OWN_SPLITS, _MAESTRO_README, _MAESTRO),
        PublishedScore('DINOv2, adapted', 'aerial+S2+S1', 76.7, _OWN_SPLITS, _MAESTRO_README, _MAESTRO),
        PublishedScore('AnySat', 'aerial+S2+S1', 75.1, 'custom', 'paper', 'https://arxiv.org/abs/2412.14123'),
    ),
}
SCORES['flairhub-toy'] = SCORES['flair-hub']


def mean_iou(counts: Counts) -> float:
    """Return the mean IoU in % of a confusion matrix ``(K, K)``, over the classes that occur in truth or prediction.

    It is NaN if nothing was counted.
    """
    hits = np.diag(counts)
    union = counts.sum(0) + counts.sum(1) - hits
    occurs = union > 0
    return 100 * float((hits[occurs] / union[occurs]).mean()) if occurs.any() else float('nan')


def overall_accuracy(counts: Counts) -> float:
    """Return the fraction of correct pixels in % of a confusion matrix ``(K, K)``; NaN if nothing was counted."""
    return 100 * float(np.trace(counts) / counts.sum()) if counts.any() else float('nan')
