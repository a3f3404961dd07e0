# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Encoders of time series: Presto, TESSERA and OlmoEarth.

Modules with registered encoders are imported here.
"""

from . import olmoearth, presto, tessera

__all__ = ('olmoearth', 'presto', 'tessera')
