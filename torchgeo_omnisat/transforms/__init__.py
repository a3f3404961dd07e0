# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Multimodal transforms of batches."""

from .base import Transform
from .container import MultimodalAugmentation
from .degraded import CloudCover, Degradation, FewerDates, GaussianNoise, PartialCover
from .ground import RandomDihedral, RandomGroundAffine, RandomGroundCrop
from .intensity import RandomBandDropout, RandomClouds, RandomJitter, RandomSpeckle
from .modality import ModalityDropout
from .normalize import Denormalize, Normalize
from .temporal import RandomDateShift, RandomTemporalDropout, TemporalSubsample

__all__ = [
    'CloudCover',
    'Degradation',
    'Denormalize',
    'FewerDates',
    'GaussianNoise',
    'ModalityDropout',
    'MultimodalAugmentation',
    'Normalize',
    'PartialCover',
    'RandomBandDropout',
    'RandomClouds',
    'RandomDateShift',
    'RandomDihedral',
    'RandomGroundAffine',
    'RandomGroundCrop',
    'RandomJitter',
    'RandomSpeckle',
    'RandomTemporalDropout',
    'TemporalSubsample',
    'Transform',
]
