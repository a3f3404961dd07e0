# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Figures: every modality of a sample, its dates, its labels and a prediction."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from torchgeo.datasets import RGBBandsMissingError
from torchgeo.datasets.utils import Sample

from ..modality import Modality
from ..utils.console import abbreviate

#: How many dates of a series are shown at most.
DATES = 5
#: Colour of what was not measured.
MISSING = (0.86, 0.86, 0.88)


@dataclass(frozen=True)
class Composite:
    """Bands shown as red, green and blue, or one as grey.

    Args:
        title: What to call it.
        bands: Three names, which may repeat themselves, or one.
        alike: Whether the bands are of one kind and share one stretch, as those of true
            colour do; else each has its own.
    """

    title: str
    bands: tuple[str, ...]
    alike: bool = False


#: Ways to show Sentinel-1.
S1_COMPOSITES = (
    Composite('VV, VH, VV', ('VV', 'VH', 'VV')),
    Composite('VV', ('VV',)),
    Composite('VH', ('VH',)),
)
#: Ways to show Sentinel-2.
S2_COMPOSITES = (
    Composite('true colour', ('B04', 'B03', 'B02'), alike=True),
    Composite('colour infrared', ('B08', 'B04', 'B03')),
)
#: Ways to show a modality of a dataset that knows none of its own.
COMPOSITES = (
    S2_COMPOSITES[0],
    Composite('true colour', ('red', 'green', 'blue'), alike=True),
    Composite('true colour', ('R', 'G', 'B'), alike=True),
    Composite('VV, VH', ('VV', 'VH', 'VV')),
)


@dataclass(frozen=True)
class Palette:
    """Names and colours of the classes; what is none of them is drawn as what was not measured.

    Args:
        labels: K names.
        colors: K colours, as matplotlib takes them.
    """

    labels: Sequence[str]
    colors: Sequence[str]


@rc_context({'text.parse_math': False})  # a class may be called $x$
def plot_sample(
    sample: Sample,
    modalities: Mapping[str, Modality],
    composites: Mapping[str, Sequence[Composite]],
    palette: Palette,
    show_titles: bool = True,
    suptitle: str | None = None,
) -> Figure:
    """Draw one row of dates per time series; single images, labels and legend in the last row.

    Args:
        sample: A sample in raw units, with ``mask`` and ``prediction`` if they are known.
        modalities: The modalities that it may have.
        composites: Ways to show a modality; the first whose bands it has is taken.
        palette: The classes.
        show_titles: Whether to write dates and names beside the images.
        suptitle: A title for the whole figure.

    Returns:
        The figure.

    Raises:
        RGBBandsMissingError: If the bands of no modality can be shown.
    """
    rows, last = [], []
    for modality in modalities.values():
        options = [c for c in composites.get(modality.name, ()) if set(c.bands) <= set(modality.bands)]
        if options:
            panels = _pictures(sample, modality, options[0])
            if modality.temporal:
                rows.append((f'{modality.name}\n{options[0].title}', panels))
            else:
                last += panels
    if not rows and not last:
        raise RGBBandsMissingError
    classes = {key: sample[key].cpu().numpy() for key in ('mask', 'prediction') if key in sample}
    last += [_Panel(key, value) for key, value in classes.items()]
    rows += [('', last)] if last else []
    columns = max([len(panels) for _, panels in rows] + [len(last) + bool(classes)])
    size = (2.2 * columns + 0.4, 2.4 * len(rows))
    figure, axes = plt.subplots(len(rows), columns, figsize=size, squeeze=False, layout='constrained')
    for ax in axes.flat:
        ax.set_axis_off()
    for line, (name, panels) in zip(axes, rows, strict=True):
        for ax, panel in zip(line, panels, strict=False):
            _show(ax, panel, palette, show_titles)
        if show_titles:
            line[0].set_ylabel(name, fontsize=9)
    if classes:
        _legend(axes[-1, len(last)], classes.values(), palette, crowded=columns - len(last) < 2)
    if suptitle is not None:
        figure.suptitle(suptitle)
    return figure


@rc_context({'text.parse_math': False})  # a class may be called $x$
def draw_any(
    sample: Sample,
    modalities: Mapping[str, Modality],
    labels: Sequence[str] | None,
    ignore_index: int | None,
    show_titles: bool,
    suptitle: str | None,
) -> Figure:
    """As :func:`plot_sample`, of a dataset that knows neither composites nor colours of its own.

    Args:
        sample: As for :func:`plot_sample`.
        modalities: Modalities to plot; without an RGB composite the first band is shown.
        labels: Names of the classes; None or none for the numbers that occur.
        ignore_index: The number that is no class; None if there is none.
        show_titles: As for :func:`plot_sample`.
        suptitle: Title of the figure.
    """
    composites = {name: (*COMPOSITES, Composite(m.bands[0], m.bands[:1])) for name, m in modalities.items()}
    classes = [sample[key] for key in ('mask', 'prediction') if key in sample]
    ignored = -1 if ignore_index is None else ignore_index
    greatest = [int(value.masked_fill(value == ignored, 0).max()) for value in classes]
    names = labels or [str(index) for index in range(max(greatest, default=0) + 1)]
    colors = [to_hex(colormaps['tab20'](index % 20)) for index in range(len(names))]
    return plot_sample(sample, modalities, composites, Palette(names, colors), show_titles, suptitle)


@dataclass(frozen=True)
class _Panel:
    """One picture: an image ``(H, W, 3)``, classes ``(H, W)``, or nothing at all."""

    title: str
    image: NDArray[np.float32] | NDArray[np.int64] | None


def _pictures(sample: Sample, modality: Modality, composite: Composite) -> list[_Panel]:
    """Return the RGB images of a modality; of a time series, valid dates that are evenly spread."""
    if modality.image_key not in sample or not sample[modality.valid_key].any():
        return [_Panel('' if modality.temporal else modality.name, None)]
    channels = [modality.bands.index(band) for band in composite.bands]
    image = sample[modality.image_key].detach().cpu().float()[..., channels, :, :].numpy()
    if not modality.temporal:
        return [_Panel(f'{modality.name}: {composite.title}', _stretch(image[None], composite.alike)[0])]
    valid = np.flatnonzero(sample[modality.valid_key].cpu().numpy())
    if len(valid) > DATES:
        valid = valid[np.linspace(0, len(valid) - 1, DATES).round().astype(int)]
    days = sample[modality.dates_key].cpu().numpy()[valid].astype('datetime64[D]')
    frames = _stretch(image[valid], composite.alike)
    return [_Panel(str(day), frame) for day, frame in zip(days, frames, strict=True)]


def _stretch(frames: NDArray[np.float32], alike: bool) -> NDArray[np.float32]:
    """``(T, C, H, W)`` in any unit to colours ``(T, H, W, 3)`` from 0 to 1, alike on all dates.

    The darkest and brightest 2 % of each date are measured. The lower quartile of these
    over the dates is the stretch: clouds come out white and leave the other dates bright.
    """
    step = -(-frames.shape[-1] // 256)
    some = frames[..., ::step, ::step]
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'All-NaN', RuntimeWarning)
        ends = np.nanquantile(some, (0.02, 0.98), axis=(1, 2, 3) if alike else (2, 3), keepdims=True)
        low, high = np.nanquantile(ends, 0.25, axis=1, keepdims=True)
    scaled = ((frames - low) / np.maximum(high - low, 1e-6)).clip(0, 1) ** (0.75 if alike else 1)
    colours = np.moveaxis(np.broadcast_to(scaled, (len(frames), 3, *frames.shape[2:])), 1, -1).copy()
    colours[~np.isfinite(frames).all(1)] = MISSING
    return colours


def _show(ax: Axes, panel: _Panel, palette: Palette, show_title: bool) -> None:
    """Draw one panel; grey where there is nothing."""
    ax.set_axis_on()
    ax.set(xticks=[], yticks=[], facecolor=MISSING, box_aspect=1)
    ax.spines[:].set(color='0.7', linewidth=0.5)
    if panel.image is None:
        ax.text(0.5, 0.5, 'absent', ha='center', va='center', color='0.4')
    elif panel.image.ndim == 2:
        count = len(palette.colors)
        shown = np.ma.masked_outside(panel.image, 0, count - 1)
        ax.imshow(shown, cmap=ListedColormap(palette.colors), vmin=-0.5, vmax=count - 0.5, interpolation='none')
    else:
        ax.imshow(panel.image)
    if show_title:
        ax.set_title(panel.title, fontsize=9, pad=3)


def _legend(ax: Axes, classes: Iterable[NDArray[np.int64]], palette: Palette, crowded: bool) -> None:
    """Names of the classes that occur, in an empty place and to its right."""
    occurring = {int(value) for values in classes for value in np.unique(values)}
    present = sorted(occurring & set(range(len(palette.colors))))
    handles = [
        Patch(fc=palette.colors[k], ec='0.5', lw=0.5, label=f'{k}  {abbreviate(palette.labels[k])}') for k in present
    ]
    style = {'fontsize': 6.5, 'labelspacing': 0.2} if crowded else {'fontsize': 8, 'ncols': 1 + (len(handles) > 10)}
    legend = ax.legend(handles=handles, loc='center left', bbox_to_anchor=(0, 0.5), frameon=False, **style)
    legend.set_in_layout(False)
