# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Backbones, decoders and baselines."""

from .attention_maps import Attention, attention
from .classification import OmniSatClassifier
from .encoders.image import ImageEncoder
from .encoders.patches import ImagePatchEncoder, SeriesPatchEncoder
from .encoders.pretrained.dictionary import DictionaryEncoder
from .encoders.pretrained.images.copernicusfm import CopernicusFMEncoder
from .encoders.pretrained.images.croma import CROMAEncoder
from .encoders.pretrained.images.deo import DEOEncoder
from .encoders.pretrained.images.dofa import DOFAEncoder
from .encoders.pretrained.images.panopticon import PanopticonEncoder
from .encoders.pretrained.series.olmoearth import OlmoEarthEncoder
from .encoders.pretrained.series.presto import PrestoEncoder
from .encoders.pretrained.series.tessera import TesseraEncoder
from .encoders.registry import register_encoder
from .encoders.series.ltae import LTAEEncoder
from .encoders.series.utae import UTAE, UTAEEncoder
from .encoders.weights import UTAE_Weights, utae
from .late_fusion import LATE_FUSION, LateFusion, dual_stream, late_fusion
from .omnisat import FeatureMaps, OmniSat, OmniSatOutput, omnisat_base, omnisat_small, omnisat_tiny
from .segmentation import FieldMaps, OmniSatSegmenter

__all__ = [
    'LATE_FUSION',
    'UTAE',
    'Attention',
    'CROMAEncoder',
    'CopernicusFMEncoder',
    'DEOEncoder',
    'DOFAEncoder',
    'DictionaryEncoder',
    'FeatureMaps',
    'FieldMaps',
    'ImageEncoder',
    'ImagePatchEncoder',
    'LTAEEncoder',
    'LateFusion',
    'OlmoEarthEncoder',
    'OmniSat',
    'OmniSatClassifier',
    'OmniSatOutput',
    'OmniSatSegmenter',
    'PanopticonEncoder',
    'PrestoEncoder',
    'SeriesPatchEncoder',
    'TesseraEncoder',
    'UTAEEncoder',
    'UTAE_Weights',
    'attention',
    'dual_stream',
    'late_fusion',
    'omnisat_base',
    'omnisat_small',
    'omnisat_tiny',
    'register_encoder',
    'utae',
]
