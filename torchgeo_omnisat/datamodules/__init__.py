# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Datamodules that load normalised batches of official splits."""

from .adapters import MappedDataModule, ShardedDataModule
from .base import MultimodalDataModule
from .flair import FLAIRDataModule
from .flairhub import FLAIRHUBMultimodalDataModule
from .geo import ChipsDataModule, MultimodalGeoDataModule
from .geobench2 import GeoBench2DataModule
from .mixed import MixedDataModule
from .pastis import PASTISMultimodalDataModule
from .synthetic import SyntheticLandscapesDataModule
from .tables import PixelTableDataModule
from .treesatai import TreeSatAITimeSeriesDataModule

__all__ = [
    'ChipsDataModule',
    'FLAIRDataModule',
    'FLAIRHUBMultimodalDataModule',
    'GeoBench2DataModule',
    'MappedDataModule',
    'MixedDataModule',
    'MultimodalDataModule',
    'MultimodalGeoDataModule',
    'PASTISMultimodalDataModule',
    'PixelTableDataModule',
    'ShardedDataModule',
    'SyntheticLandscapesDataModule',
    'TreeSatAITimeSeriesDataModule',
]
