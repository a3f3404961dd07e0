# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

import pytest


@pytest.fixture(autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trainer that is told no folder writes to the working directory, which is then a temporary one."""
    monkeypatch.chdir(tmp_path_factory.mktemp('elsewhere'))
