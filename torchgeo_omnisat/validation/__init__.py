# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Validation: what `check` finds in a dataset before it is trained on.

``check.py`` reads every tile, ``values.py`` summarises what was read, ``findings.py`` warns of it, ``trial.py``
tries a step of training, ``tables.py`` prints everything.
"""

from .check import check, walk
from .tables import table

__all__ = ['check', 'table', 'walk']
