# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Validation: what `check` finds in a dataset before it is trained on.

``check.py`` reads every tile, ``values.py`` summarises what was read, ``tables.py`` prints it.
"""

from .check import walk
from .tables import table

__all__ = ['table', 'walk']
