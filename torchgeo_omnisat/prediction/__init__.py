# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Prediction over areas, out to maps."""

from .loading import area_loader, tile_loader
from .seen import seen_bits
from .stitching import Stitcher
from .tiling import Strip, Tiling, Window, patch_pixels
from .writer import GeoTIFFWriter

__all__ = [
    'GeoTIFFWriter',
    'Stitcher',
    'Strip',
    'Tiling',
    'Window',
    'area_loader',
    'patch_pixels',
    'seen_bits',
    'tile_loader',
]
