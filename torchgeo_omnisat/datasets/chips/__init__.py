# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Folders of image chips and masks, each chip in its own CRS."""

from .dataset import ImageChips

__all__ = ('ImageChips',)
