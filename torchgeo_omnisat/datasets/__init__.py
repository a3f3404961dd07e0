# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Datasets of multimodal samples."""

from .adapters import MappedDataset
from .base import MultimodalDataset
from .biomassters import BioMasstersSeries
from .chips.dataset import ImageChips
from .flair import FLAIR
from .flairhub import FLAIRHUBMultimodal
from .geo.join import MultimodalGeoDataset
from .geobench2 import GeoBench2
from .pastis import PASTISMultimodal
from .rasters.embeddings import AlphaEarthEmbeddings, EmbeddingRasters, TesseraRasters
from .rasters.embeddings import TesseraEmbeddings as TesseraEmbeddings  # the former name of TesseraRasters
from .rasters.netcdf import NetCDFTimeSeries
from .rasters.sentinel import Sentinel1TimeSeries, Sentinel2TimeSeries
from .rasters.stac import STACTimeSeries
from .rasters.timeseries import RasterTimeSeries
from .shards import ShardedDataset
from .synthetic.dataset import SyntheticLandscapes
from .tables import PixelTable
from .treesatai import TreeSatAITimeSeries

__all__ = [
    'FLAIR',
    'AlphaEarthEmbeddings',
    'BioMasstersSeries',
    'EmbeddingRasters',
    'FLAIRHUBMultimodal',
    'GeoBench2',
    'ImageChips',
    'MappedDataset',
    'MultimodalDataset',
    'MultimodalGeoDataset',
    'NetCDFTimeSeries',
    'PASTISMultimodal',
    'PixelTable',
    'RasterTimeSeries',
    'STACTimeSeries',
    'Sentinel1TimeSeries',
    'Sentinel2TimeSeries',
    'ShardedDataset',
    'SyntheticLandscapes',
    'TesseraRasters',
    'TreeSatAITimeSeries',
]
