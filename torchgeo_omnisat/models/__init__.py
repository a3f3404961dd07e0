# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Models."""

from .classification import OmniSatClassifier
from .image import ImageEncoder
from .late import LATE_FUSION, LateFusion, dual_stream, late_fusion
from .listening import Attention, attention
from .ltae import LTAEEncoder
from .omnisat import FeatureMaps, OmniSat, OmniSatOutput, omnisat_base, omnisat_small, omnisat_tiny
from .patches import ImagePatchEncoder, SeriesPatchEncoder
from .segmentation import OmniSatSegmenter
from .utae import UTAE, UTAEEncoder
from .weights import UTAE_Weights, utae

__all__ = [
    'LATE_FUSION',
    'UTAE',
    'Attention',
    'FeatureMaps',
    'ImageEncoder',
    'ImagePatchEncoder',
    'LTAEEncoder',
    'LateFusion',
    'OmniSat',
    'OmniSatClassifier',
    'OmniSatOutput',
    'OmniSatSegmenter',
    'SeriesPatchEncoder',
    'UTAEEncoder',
    'UTAE_Weights',
    'attention',
    'dual_stream',
    'late_fusion',
    'omnisat_base',
    'omnisat_small',
    'omnisat_tiny',
    'utae',
]
