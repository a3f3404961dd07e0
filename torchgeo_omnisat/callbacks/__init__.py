# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Callbacks: what watches a training."""

from .probe import ProbeCallback

__all__ = ['ProbeCallback']
