# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Datasets: files to samples."""

from .flair import FLAIR
from .flairhub import FLAIRHUBMultimodal
from .multimodal import MultimodalGeoDataset
from .pastis import PASTISMultimodal
from .raster import RasterTimeSeries
from .sentinel import Sentinel1TimeSeries, Sentinel2TimeSeries
from .synthetic import SyntheticLandscapes
from .treesatai import TreeSatAITimeSeries

__all__ = [
    'FLAIR',
    'FLAIRHUBMultimodal',
    'MultimodalGeoDataset',
    'PASTISMultimodal',
    'RasterTimeSeries',
    'Sentinel1TimeSeries',
    'Sentinel2TimeSeries',
    'SyntheticLandscapes',
    'TreeSatAITimeSeries',
]
