# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Pre-trained encoders.

``images`` encode single images, ``series`` time series. Modules with registered encoders are imported here.
"""

from . import dictionary, images, series

__all__ = ('dictionary', 'images', 'series')
