# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Transforms: batch to batch, every modality alike."""

from .modality import ModalityDropout
from .normalize import Denormalize, Normalize

__all__ = ['Denormalize', 'ModalityDropout', 'Normalize']
