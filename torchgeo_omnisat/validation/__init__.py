# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Validation of a dataset before training, for the command `check`.

``check.py`` reads every tile, ``values.py`` summarises the values, ``findings.py`` reports problems of the whole
dataset, ``trial.py`` tries one training step, ``tables.py`` prints the report.
"""

from .check import check_data, walk
from .tables import table

__all__ = ['check_data', 'table', 'walk']
