# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Trained models without a trainer: prediction of arrays, export of programs."""
