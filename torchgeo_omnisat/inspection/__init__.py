# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Inspection of a folder of rasters and labels, from which a configuration is written."""
