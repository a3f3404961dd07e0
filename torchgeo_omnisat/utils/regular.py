# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Check that a path is a regular file before it is opened."""

import os
import stat
from pathlib import Path


def refuse_special(path: Path | str, expected: str) -> None:
    """Check that a path is a regular file; reading a named pipe, for example, would block forever."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f'{path} does not exist, expected {expected}') from None
    if not stat.S_ISREG(mode):
        what = 'a directory' if stat.S_ISDIR(mode) else 'no regular file'
        raise ValueError(f'{path} cannot be read (it is {what}), expected {expected}')


def is_special(path: Path | str) -> bool:
    """Return whether a local path exists and is neither a regular file nor a directory."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
