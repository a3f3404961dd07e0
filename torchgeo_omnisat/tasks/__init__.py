# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Tasks: models in training, each a TorchGeo task."""

from .base import OmniSatTask
from .names import omnisat
from .segmentation import OmniSatSegmentation

__all__ = ['OmniSatSegmentation', 'OmniSatTask', 'omnisat']
