# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Prediction of areas and tiles as GeoTIFFs."""

from .embeddings.writer import EmbeddingBands, EmbeddingWriter
from .fields.segmentation import FieldOptions, segment_fields
from .raster import seen_bits
from .tiling import Stitcher, Strip, Tiling, Window, area_loader, patch_pixels, tile_loader
from .values import ValueBands, ValueWriter
from .writer import GeoTIFFWriter

__all__ = [
    'EmbeddingBands',
    'EmbeddingWriter',
    'FieldOptions',
    'GeoTIFFWriter',
    'Stitcher',
    'Strip',
    'Tiling',
    'ValueBands',
    'ValueWriter',
    'Window',
    'area_loader',
    'patch_pixels',
    'seen_bits',
    'segment_fields',
    'tile_loader',
]
