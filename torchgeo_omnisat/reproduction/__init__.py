# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Reproduction of scores on public datasets: runs that are kept once done, their protocols and reports."""
