# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Losses."""

from .classification import MultiLabelLoss
from .segmentation import CrossEntropyDice

__all__ = ['CrossEntropyDice', 'MultiLabelLoss']
