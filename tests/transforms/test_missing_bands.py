# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""A band that is missing stays missing in every transform, and takes no other band with it."""

from functools import partial
from typing import Any

import pytest
import torch

from torchgeo_omnisat import Modality, transforms

SENSORS = [
    Modality('s2', ('B02', 'B03', 'B04'), 10.0, True, kind='optical', unit='reflectance'),
    Modality('s1', ('VV', 'VH'), 10.0, True, kind='radar', unit='db'),
    Modality('spot', ('R', 'G'), 5.0, False),
]


@pytest.mark.parametrize(
    'make',
    [
        transforms.RandomDihedral,
        partial(transforms.RandomGroundCrop, size=80.0, patch_size=40.0),
        partial(transforms.RandomGroundAffine, translate=0.0, scale=(1.25, 1.25)),
        transforms.RandomTemporalDropout,
        partial(transforms.RandomClouds, p=1.0),
        transforms.RandomSpeckle,
        transforms.RandomJitter,
        transforms.GaussianNoise,
        transforms.CloudCover,
        transforms.PartialCover,
        transforms.Normalize,
        transforms.ModalityDropout,
    ],
)
def test_missing_band_stays_missing(make: Any) -> None:
    torch.manual_seed(0)
    batch = {}
    for m in SENSORS:
        side, dates = m.pixels(160), 3 if m.temporal else 1
        image = torch.randn(2, dates, len(m.bands), side, side)
        image[0, :, 1] = torch.nan
        batch[m.image_key] = image if m.temporal else image[:, 0]
        batch[m.dates_key] = 18_000 + torch.arange(dates).repeat(2, 1)
        batch[m.valid_key] = torch.ones(2, dates, dtype=torch.bool)
    changed = make(SENSORS)(batch)
    for m in SENSORS:
        finite = changed[m.image_key].isfinite()
        assert not finite[0, ..., 1, :, :].any()
        assert finite[1, ..., 1, :, :].equal(finite[1, ..., 0, :, :])
        assert finite[0, ..., 0, :, :].float().mean() > 0.3
