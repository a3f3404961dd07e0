# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Overview: a small picture of a map, with its legend."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rasterio
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from .cog import Colors

#: Longest side of the map in the picture, in pixels.
SIDE = 1024
#: Colour of what was not measured.
NODATA = (220, 220, 224)


@rc_context({'text.parse_math': False})  # a class may be called $x$
def draw_overview(path: Path, labels: Sequence[str], colors: Colors, title: str = '') -> Figure:
    """Draw the classes of a map, of which no more is read than is drawn.

    Args:
        path: What :func:`.write_map` wrote.
        labels: Names of the classes.
        colors: ``(K, 3)``.
        title: A title.

    Returns:
        The figure; the legend has the classes that occur, and their share of the map.
    """
    with rasterio.open(path) as file:
        factor = max(1.0, max(file.height, file.width) / SIDE)
        shape = max(1, round(file.height / factor)), max(1, round(file.width / factor))
        classes = file.read(1, out_shape=shape)
        nodata, bounds, crs = file.nodata, file.bounds, file.crs
    table = np.tile(np.array(NODATA, np.uint8), (int(nodata) + 1, 1))
    table[: len(colors)] = colors
    figure = Figure(figsize=(9, 6.5), layout='constrained')
    axes = figure.add_subplot()
    axes.imshow(table[classes], extent=(bounds.left, bounds.right, bounds.bottom, bounds.top), interpolation='nearest')
    axes.ticklabel_format(useOffset=False, style='plain')
    axes.tick_params(labelsize=7)
    axes.set_xlabel(crs.to_string() if crs and crs.is_epsg_code else '', fontsize=8)
    axes.set_title(title, fontsize=10)
    counts = np.bincount(classes.ravel(), minlength=len(labels))[: len(labels)]
    total = max(1, int(counts.sum()))
    shown = [
        Patch(facecolor=_fraction(colors[index]), label=f'{labels[index]}  {counts[index] / total:.1%}')
        for index in range(len(labels))
        if counts[index]
    ]
    if counts.sum() < classes.size:
        shown.append(Patch(facecolor=_fraction(NODATA), label='nodata'))
    axes.legend(handles=shown, loc='upper left', bbox_to_anchor=(1.01, 1.0), fontsize=8, frameon=False)
    return figure


def _fraction(color: Sequence[int] | Colors) -> tuple[float, float, float]:
    """A colour as matplotlib takes it."""
    red, green, blue = (float(part) / 255 for part in color)
    return red, green, blue
