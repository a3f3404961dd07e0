# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Synthetic landscapes in the layout of PASTIS-HD."""

from .dataset import SyntheticLandscapes

__all__ = ('SyntheticLandscapes',)
