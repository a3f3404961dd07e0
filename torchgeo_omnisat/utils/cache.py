# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Cache folder of PyTorch, for downloads and statistics."""

from pathlib import Path

import torch


def cache_folder() -> Path:
    """Return the folder of :func:`torch.hub.get_dir`; raise FileNotFoundError without a home directory."""
    folder = Path(torch.hub.get_dir())
    if folder.parts[:1] and folder.parts[0].startswith('~'):
        raise FileNotFoundError(
            f'{folder} is unusable without a home directory: expected TORCH_HOME, XDG_CACHE_HOME or HOME to be set'
        )
    return folder
