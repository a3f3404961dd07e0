# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Figures draw names of the user as they are, and leave the settings of a notebook alone."""

from pathlib import Path

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure

import torchgeo_omnisat
from torchgeo_omnisat.utils.figures import plain_text


@plain_text()
def draw(interactive: bool) -> bool:
    mpl.interactive(interactive)  # as the first figure of a notebook does
    text = Figure().subplots().set_title('$x$')
    return bool(text.get_parse_math())


def test_text_is_plain_and_no_other_setting_is_restored() -> None:
    before = mpl.is_interactive(), mpl.rcParams['text.parse_math']
    try:
        for interactive in (True, False):
            assert not draw(interactive)
            assert mpl.is_interactive() == interactive
            assert mpl.rcParams['text.parse_math'] == before[1]
        with pytest.raises(ZeroDivisionError), plain_text():
            _ = 1 / 0
        assert mpl.rcParams['text.parse_math'] == before[1]
    finally:
        mpl.interactive(before[0])


def test_nothing_restores_all_settings() -> None:
    package = Path(torchgeo_omnisat.__file__).parent
    assert [path.name for path in package.rglob('*.py') if 'rc_context(' in path.read_text()] == []
