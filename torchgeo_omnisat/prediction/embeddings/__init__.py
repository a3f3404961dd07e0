# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Embedding maps: writing, reading, classification from few labels, similarity and change."""
