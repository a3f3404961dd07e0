# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""The scripts of benchmarks/ are imported as they import each other."""

import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / 'benchmarks'
collect_ignore_glob = [] if FOLDER.is_dir() else ['test_*.py']
sys.path.insert(0, str(FOLDER))
