# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Hostile and damaged files: each is refused with one error that names it, and runs or reads nothing else."""
