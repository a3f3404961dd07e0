# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Pre-trained encoders: backbones of TorchGeo and timm, and foundation models.

Modules with registered encoders are imported here.
"""

from . import copernicusfm, croma, deo, dictionary, dofa, olmoearth, panopticon, presto, tessera

__all__ = ('copernicusfm', 'croma', 'deo', 'dictionary', 'dofa', 'olmoearth', 'panopticon', 'presto', 'tessera')
