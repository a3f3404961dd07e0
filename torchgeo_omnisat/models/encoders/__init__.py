# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Encoders: from the images of one modality to feature maps.

Modules with registered encoders are imported here.
"""

from . import pretrained, projection, series, weights
from .build import build_encoders
from .registry import Encoder, register_encoder

__all__ = (
    'Encoder',
    'build_encoders',
    'pretrained',
    'projection',
    'register_encoder',
    'series',
    'weights',
)
