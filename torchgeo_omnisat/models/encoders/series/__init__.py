# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Encoders of time series.

Modules with registered encoders are imported here.
"""

from . import ltae, monthly, utae

__all__ = ('ltae', 'monthly', 'utae')
