# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torchgeo.main import main

import torchgeo_omnisat.plugin  # noqa: F401 (short names resolve among classes that are imported)

from .helpers import command


@pytest.fixture(autouse=True, scope='package')
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope='package')
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the landscapes are written once."""
    return tmp_path_factory.mktemp('landscapes')


@pytest.fixture(scope='package')
def fitted(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint after two steps on the command line, told no more than the backbone."""
    folder = tmp_path_factory.mktemp('fitted')
    main(command(root, folder, 'fit', '--model.backbone', 'omnisat_tiny', '--trainer.max_steps', '2'))
    return next(folder.rglob('*.ckpt'))
