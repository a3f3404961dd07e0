# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Datasets: files to samples."""

from .flair import FLAIR
from .pastis import PASTISMultimodal
from .synthetic import SyntheticLandscapes
from .treesatai import TreeSatAITimeSeries

__all__ = ['FLAIR', 'PASTISMultimodal', 'SyntheticLandscapes', 'TreeSatAITimeSeries']
