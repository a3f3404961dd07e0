# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Datasets: files to samples."""

from .pastis import PASTISMultimodal
from .synthetic import SyntheticLandscapes

__all__ = ['PASTISMultimodal', 'SyntheticLandscapes']
