# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Models."""

from .image import ImageEncoder
from .ltae import LTAEEncoder
from .omnisat import FeatureMaps, OmniSat, OmniSatOutput, omnisat_base, omnisat_small, omnisat_tiny
from .segmentation import OmniSatSegmenter
from .utae import UTAEEncoder

__all__ = [
    'FeatureMaps',
    'ImageEncoder',
    'LTAEEncoder',
    'OmniSat',
    'OmniSatOutput',
    'OmniSatSegmenter',
    'UTAEEncoder',
    'omnisat_base',
    'omnisat_small',
    'omnisat_tiny',
]
