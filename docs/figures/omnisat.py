# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""How OmniSat works, as a picture: `python docs/figures/omnisat.py` writes omnisat.svg beside it."""

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, Rectangle

SERIES_2, SERIES_1, IMAGE, NONE = '#009E73', '#0072B2', '#D55E00', '#999999'  # Okabe and Ito
FUSED, CROPS = '#5b4a8a', ('#E69F00', '#56B4E9', '#F0E442', '#CC79A7')
#: Name, what it is, how many dates, what encodes it, colour; and whether this tile has it.
ROWS = (
    ('s2', 'series, 10 m', 4, 'U-TAE', SERIES_2, True),
    ('s1', 'series, 10 m', 3, 'U-TAE', SERIES_1, True),
    ('spot', 'one image, 1 m', 1, 'ResNet', IMAGE, True),
    ('aerial', 'not acquired here', 1, 'ResNet', NONE, False),
)
TOP, STEP = 4.4, 1.15


def box(axes: Axes, x: float, y: float, width: float, height: float, text: str, color: str) -> None:
    """Draw a rounded box around its centre."""
    corner = (x - width / 2, y - height / 2)
    shape = 'round,pad=0.02,rounding_size=0.1'
    axes.add_patch(FancyBboxPatch(corner, width, height, shape, ec=color, fc=color + '22', lw=1.5))
    axes.text(x, y, text, ha='center', va='center', fontsize=9.5, linespacing=1.35)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], color: str = '#444444') -> None:
    """Draw an arrow between two points."""
    axes.annotate('', end, start, arrowprops={'arrowstyle': '-|>', 'color': color, 'lw': 1.4})


def ground(axes: Axes, x: float, y: float, colors: list[str], size: float = 0.26) -> None:
    """Draw a grid of 3 x 3 ground patches around its centre."""
    for index, color in enumerate(colors):
        row, column = divmod(index, 3)
        corner = (x + (column - 1.5) * size, y + (0.5 - row) * size)
        axes.add_patch(Rectangle(corner, size, size, fc=color, ec='white', lw=1.2))


def inputs(axes: Axes) -> None:
    """Every modality: its images, its encoder, its tokens."""
    for index, (name, what, dates, encoder, color, there) in enumerate(ROWS):
        y = TOP - STEP * index
        style = {'fc': color + '55'} if there else {'fc': 'white', 'linestyle': (0, (4, 3))}
        for date in range(dates):
            axes.add_patch(Rectangle((1.5 + 0.13 * date, y - 0.38 + 0.05 * date), 0.6, 0.6, ec=color, lw=1.3, **style))
        axes.text(1.35, y + 0.13, name, ha='right', va='center', fontsize=11, fontweight='bold')
        axes.text(1.35, y - 0.17, what, ha='right', va='center', fontsize=8.5, color='#555555')
        if not there:
            axes.text(2.9, y - 0.08, 'no image, no token, no influence', va='center', fontsize=9, color='#555555')
            continue
        arrow(axes, (2.65, y), (3.15, y))
        box(axes, 3.8, y, 1.2, 0.62, encoder, color)
        arrow(axes, (4.45, y), (4.95, y))
        # SPOT covers a part of the tile: two columns of patches have no token of it.
        colors = [color if name != 'spot' or patch % 3 < 1 else '#eeeeee' for patch in range(9)]
        ground(axes, 5.45, y, colors)
        arrow(axes, (5.95, y), (6.65, TOP - STEP + 0.35 * (1 - index)))


def draw() -> plt.Figure:
    """Draw the figure."""
    figure, axes = plt.subplots(figsize=(11, 5))
    axes.set(xlim=(-0.1, 11.2), ylim=(0.2, 5.5), aspect='equal')
    axes.axis('off')
    titles = ((1.0, 'images of one tile'), (3.8, 'an encoder\neach'), (5.45, 'tokens on one\nground grid'))
    for x, text in (*titles, (7.55, 'fusion'), (10.25, 'a map')):
        axes.text(x, 5.2, text, ha='center', va='center', fontsize=10, color='#333333')
    inputs(axes)
    middle = TOP - STEP
    fusion = 'each patch asks\nthe modalities\nthat saw it,\nthen its\nneighbours'
    box(axes, 7.55, middle, 1.65, 2.1, fusion, FUSED)
    arrow(axes, (8.42, middle), (8.7, middle))
    box(axes, 9.15, middle, 0.85, 0.75, 'decoder', FUSED)
    arrow(axes, (9.62, middle), (9.82, middle))
    ground(axes, 10.28, middle, [CROPS[i] for i in (0, 0, 1, 0, 2, 1, 3, 3, 1)], 0.28)
    axes.plot([3.8, 3.8, 9.15], [1.7, 1.35, 1.35], color='#999999', lw=1.2)
    arrow(axes, (9.15, 1.35), (9.15, middle - 0.42), '#999999')
    skips = 'fine feature maps, of those that are there'
    axes.text(6.3, 1.44, skips, ha='center', va='bottom', fontsize=8.5, color='#555555')
    return figure


if __name__ == '__main__':
    mpl.rcParams.update({'svg.hashsalt': 'omnisat', 'font.family': 'DejaVu Sans'})
    path = Path(__file__).with_suffix('.svg')
    draw().savefig(path, bbox_inches='tight', metadata={'Date': None})
    print(path)
