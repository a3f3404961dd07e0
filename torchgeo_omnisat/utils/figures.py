# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Saving of figures with names of the user, such as those of classes."""

import warnings
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure


@rc_context({'text.parse_math': False})  # a class may be called $x$
def save_figure(figure: Figure, path: Path, **kwargs: Any) -> None:
    """Save a figure as PNG.

    Characters that the font lacks are drawn as boxes, without matplotlib's warning for each of them.

    Args:
        figure: Figure.
        path: Output file.
        **kwargs: Arguments of ``Figure.savefig``.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', r'Glyph .* missing from', UserWarning)
        figure.savefig(path, format='png', **kwargs)
