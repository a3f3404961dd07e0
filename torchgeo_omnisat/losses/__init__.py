# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Losses."""

from .contrastive import CrossModalInfoNCE, PatchContrast, PatchContrastiveLoss, TileContrast, too_close
from .fields import FieldLoss, FieldTargets, field_targets
from .reconstruction import MaskedReconstruction, Reconstruction, draw_hidden
from .supervised import CrossEntropyDice, MultiLabelLoss

__all__ = [
    'CrossEntropyDice',
    'CrossModalInfoNCE',
    'FieldLoss',
    'FieldTargets',
    'MaskedReconstruction',
    'MultiLabelLoss',
    'PatchContrast',
    'PatchContrastiveLoss',
    'Reconstruction',
    'TileContrast',
    'draw_hidden',
    'field_targets',
    'too_close',
]
