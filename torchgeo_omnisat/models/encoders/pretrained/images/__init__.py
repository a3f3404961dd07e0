# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Encoders of single images: backbones of timm and torchvision, and foundation models of TorchGeo.

Modules with registered encoders are imported here.
"""

from . import copernicusfm, croma, deo, dofa, panopticon

__all__ = ('copernicusfm', 'croma', 'deo', 'dofa', 'panopticon')
