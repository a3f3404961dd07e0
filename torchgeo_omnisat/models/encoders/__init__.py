# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Encoders: from the images of one modality to feature maps."""

from .registry import Encoder, build_encoders

__all__ = ('Encoder', 'build_encoders')
