# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Datasets: files to samples."""

from .chips import ImageChips
from .flair import FLAIR
from .flairhub import FLAIRHUBMultimodal
from .mapped import MappedDataset
from .multimodal import MultimodalGeoDataset
from .netcdf import NetCDFTimeSeries
from .pastis import PASTISMultimodal
from .raster import RasterTimeSeries
from .sentinel import Sentinel1TimeSeries, Sentinel2TimeSeries
from .shards import ShardedDataset
from .stac import STACTimeSeries
from .synthetic import SyntheticLandscapes
from .treesatai import TreeSatAITimeSeries

__all__ = [
    'FLAIR',
    'FLAIRHUBMultimodal',
    'ImageChips',
    'MappedDataset',
    'MultimodalGeoDataset',
    'NetCDFTimeSeries',
    'PASTISMultimodal',
    'RasterTimeSeries',
    'STACTimeSeries',
    'Sentinel1TimeSeries',
    'Sentinel2TimeSeries',
    'ShardedDataset',
    'SyntheticLandscapes',
    'TreeSatAITimeSeries',
]
