# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Fields: segmentation of the predicted maps, and outlines as polygons."""

from .outlines import write_fields
from .segmentation import FieldOptions, segment_fields, segment_map

__all__ = ['FieldOptions', 'segment_fields', 'segment_map', 'write_fields']
