# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Utilities shared by all packages: atomic writing, distributed collectives, errors."""
