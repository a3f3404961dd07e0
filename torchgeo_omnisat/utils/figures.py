# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Drawing, logging and saving of figures with names of the user, such as those of classes."""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib import rcParams
from matplotlib.figure import Figure

from .atomic import atomic_file


@contextmanager
def plain_text() -> Iterator[None]:
    """Draw text as it is: a class may be called ``$x$``.

    Unlike ``matplotlib.rc_context``, it restores no other setting. The first figure of a notebook turns on the
    interactive mode, which is a setting too; without it, later figures are not displayed.
    """
    before = rcParams['text.parse_math']
    rcParams['text.parse_math'] = False
    try:
        yield
    finally:
        rcParams['text.parse_math'] = before


@plain_text()
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


def log_figure(figure: Figure, tag: str, step: int, loggers: Iterable[Any], folder: Path) -> None:
    """Add a figure to the loggers that accept figures, or else write ``figures/<tag>/<step>.png`` below a folder."""
    experiments = [getattr(logger, 'experiment', None) for logger in loggers]
    takers: list[Any] = [experiment for experiment in experiments if hasattr(experiment, 'add_figure')]
    for taker in takers:
        taker.add_figure(tag, figure, global_step=step)
    if not takers:
        with atomic_file(folder / 'figures' / tag / f'{step:06d}.png') as path:
            save_figure(figure, path)
