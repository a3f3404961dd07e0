# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Models."""

from .classification import OmniSatClassifier
from .image import ImageEncoder
from .ltae import LTAEEncoder
from .omnisat import FeatureMaps, OmniSat, OmniSatOutput, omnisat_base, omnisat_small, omnisat_tiny
from .patches import ImagePatchEncoder, SeriesPatchEncoder
from .segmentation import OmniSatSegmenter
from .utae import UTAE, UTAEEncoder

__all__ = [
    'UTAE',
    'FeatureMaps',
    'ImageEncoder',
    'ImagePatchEncoder',
    'LTAEEncoder',
    'OmniSat',
    'OmniSatClassifier',
    'OmniSatOutput',
    'OmniSatSegmenter',
    'SeriesPatchEncoder',
    'UTAEEncoder',
    'omnisat_base',
    'omnisat_small',
    'omnisat_tiny',
]
