# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Losses."""

from .contrastive import CrossModalInfoNCE, PatchContrast, PatchContrastiveLoss, TileContrast
from .fields import FieldLoss, FieldTargets, field_targets
from .granularity import GRAINS, GrainDistillation, GrainHead, pool_tile
from .negatives import too_close, too_close_places
from .objects import Objects, PatchClusters, mean_of_sources, pool_objects
from .reconstruction import MaskedReconstruction, Reconstruction, draw_hidden
from .supervised import CrossEntropyDice, MultiLabelLoss

__all__ = [
    'GRAINS',
    'CrossEntropyDice',
    'CrossModalInfoNCE',
    'FieldLoss',
    'FieldTargets',
    'GrainDistillation',
    'GrainHead',
    'MaskedReconstruction',
    'MultiLabelLoss',
    'Objects',
    'PatchClusters',
    'PatchContrast',
    'PatchContrastiveLoss',
    'Reconstruction',
    'TileContrast',
    'draw_hidden',
    'field_targets',
    'mean_of_sources',
    'pool_objects',
    'pool_tile',
    'too_close',
    'too_close_places',
]
