# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Plots of the modalities, dates, labels and prediction of a sample."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from torchgeo.datasets import RGBBandsMissingError
from torchgeo.datasets.utils import Sample

from ...modality import Modality
from ...utils.cli.console import abbreviate
from ...utils.figures import plain_text

#: Maximum number of dates to plot of a time series.
DATES = 5
#: Colour of nodata.
MISSING = (0.86, 0.86, 0.88)


@dataclass(frozen=True)
class Composite:
    """Band combination of a plot: three bands as red, green and blue, or one in grey.

    Args:
        title: Title of the plot.
        bands: Three band names, which may be repeated, or one.
        alike: Whether all bands share one contrast stretch, as in true colour; else each band is
            stretched separately.
    """

    title: str
    bands: tuple[str, ...]
    alike: bool = False


#: Band combinations of Sentinel-1.
S1_COMPOSITES = (Composite('VV, VH, VV', ('VV', 'VH', 'VV')), Composite('VV', ('VV',)), Composite('VH', ('VH',)))
#: Band combinations of Sentinel-2.
S2_COMPOSITES = (
    Composite('true colour', ('B04', 'B03', 'B02'), alike=True),
    Composite('colour infrared', ('B08', 'B04', 'B03')),
)
#: Band combinations for datasets that do not define any.
COMPOSITES = (
    S2_COMPOSITES[0],
    Composite('true colour', ('red', 'green', 'blue'), alike=True),
    Composite('true colour', ('R', 'G', 'B'), alike=True),
    Composite('VV, VH', ('VV', 'VH', 'VV')),
)


@dataclass(frozen=True)
class Palette:
    """Names and colours of the classes; other values are drawn as nodata.

    Args:
        labels: K names.
        colors: K Matplotlib colours.
    """

    labels: Sequence[str]
    colors: Sequence[str]


@plain_text()  # class names may contain $
def plot_sample(
    sample: Sample,
    modalities: Mapping[str, Modality],
    composites: Mapping[str, Sequence[Composite]],
    palette: Palette,
    show_titles: bool = True,
    suptitle: str | None = None,
) -> Figure:
    """Draw one row of dates per time series; single images, labels and legend in the last row.

    The sample is in raw units, optionally with ``mask`` and ``prediction``, which are class indices or continuous
    values. The outlines of ``instances`` are drawn on the mask, those of predicted ``fields`` on the prediction, and
    the latter, else the former, on single images. The first of the composites with available bands is used; raise
    RGBBandsMissingError if no modality has one.
    """
    rows, last = [], []
    true, found = (sample[key].cpu().numpy() if key in sample else None for key in ('instances', 'fields'))
    for modality in modalities.values():
        options = [c for c in composites.get(modality.name, ()) if set(c.bands) <= set(modality.bands)]
        if options:
            panels = _pictures(sample, modality, options[0])
            if modality.temporal:
                rows.append((f'{modality.name}\n{options[0].title}', panels))
            else:
                last += [replace(panel, fields=true if found is None else found) for panel in panels]
    if not rows and not last:
        raise RGBBandsMissingError
    targets = {key: sample[key].cpu().numpy() for key in ('mask', 'prediction') if key in sample}
    last += [_Panel(key, value, true if key == 'mask' else found) for key, value in targets.items()]
    classes = {key: value for key, value in targets.items() if value.dtype.kind != 'f'}
    limits = _limits([value for value in targets.values() if value.dtype.kind == 'f'])
    rows += [('', last)] if last else []
    columns = max([len(panels) for _, panels in rows] + [len(last) + bool(classes)])
    size = (2.2 * columns + 0.4, 2.4 * len(rows))
    figure, axes = plt.subplots(len(rows), columns, figsize=size, squeeze=False, layout='constrained')
    for ax in axes.flat:
        ax.set_axis_off()
    for line, (name, panels) in zip(axes, rows, strict=True):
        for ax, panel in zip(line, panels, strict=False):
            _show(ax, panel, palette, show_titles, limits)
        if show_titles:
            line[0].set_ylabel(name, fontsize=9)
    if classes:
        _legend(axes[-1, len(last)], classes.values(), palette, crowded=columns - len(last) < 2)
    if suptitle is not None:
        figure.suptitle(suptitle)
    return figure


@plain_text()  # class names may contain $
def draw_any(
    sample: Sample,
    modalities: Mapping[str, Modality],
    labels: Sequence[str] | None,
    ignore_index: int | None,
    show_titles: bool,
    suptitle: str | None,
) -> Figure:
    """Plot a sample by :func:`plot_sample` with default colours and band combinations, else the first band."""
    composites = {name: (*COMPOSITES, Composite(m.bands[0], m.bands[:1])) for name, m in modalities.items()}
    targets = [sample[key] for key in ('mask', 'prediction') if key in sample]
    classes = [target for target in targets if not target.is_floating_point()]
    ignored = -1 if ignore_index is None else ignore_index
    greatest = [int(value.masked_fill(value == ignored, 0).max()) for value in classes]
    names = labels or [str(index) for index in range(max(greatest, default=0) + 1)]
    colors = [to_hex(colormaps['tab20'](index % 20)) for index in range(len(names))]
    return plot_sample(sample, modalities, composites, Palette(names, colors), show_titles, suptitle)


@dataclass(frozen=True)
class _Panel:
    """Panel of a figure: an image ``(H, W, 3)``, classes or values ``(H, W)``, or None for a missing modality.

    *fields* are the ids of fields whose outlines are drawn, on any grid.
    """

    title: str
    image: NDArray[np.float32] | NDArray[np.int64] | None
    fields: NDArray[np.int64] | None = None


def _pictures(sample: Sample, modality: Modality, composite: Composite) -> list[_Panel]:
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
    """Stretch the contrast of ``(T, C, H, W)`` to ``(T, H, W, 3)`` in [0, 1], equally on all dates.

    The limits are the lower quartiles over all dates of the 2nd and the 98th percentile of each date.
    So clouds are white and do not darken the other dates.
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


def _show(ax: Axes, panel: _Panel, palette: Palette, show_title: bool, limits: tuple[float, float]) -> None:
    ax.set_axis_on()
    ax.set(xticks=[], yticks=[], facecolor=MISSING, box_aspect=1)
    ax.spines[:].set(color='0.7', linewidth=0.5)
    if panel.image is None:
        ax.text(0.5, 0.5, 'absent', ha='center', va='center', color='0.4')
    elif panel.image.ndim == 2 and panel.image.dtype.kind == 'f':
        drawn = ax.imshow(panel.image, vmin=limits[0], vmax=limits[1], interpolation='none')
        ax.figure.colorbar(drawn, ax=ax, shrink=0.8).ax.tick_params(labelsize=7)
    elif panel.image.ndim == 2:
        count = len(palette.colors)
        shown = np.ma.masked_outside(panel.image, 0, count - 1)
        ax.imshow(shown, cmap=ListedColormap(palette.colors), vmin=-0.5, vmax=count - 0.5, interpolation='none')
    else:
        ax.imshow(panel.image)
    if panel.image is not None and panel.fields is not None:
        ax.add_collection(
            _outlines(panel.fields, panel.image.shape[:2], 'black' if panel.image.ndim == 2 else 'yellow')
        )
    if show_title:
        ax.set_title(panel.title, fontsize=9, pad=3)


def _limits(targets: Sequence[NDArray[np.float32]]) -> tuple[float, float]:
    """Return the common range of continuous targets; 0 to 1 without any finite value."""
    values = np.concatenate([target[np.isfinite(target)] for target in targets] or [np.zeros(0, np.float32)])
    return (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)


def _outlines(ids: NDArray[np.int64], size: tuple[int, ...], color: str) -> LineCollection:
    """Return the sides of pixels between two fields, or a field and none, in the pixels of an image of *size*."""
    rows, columns = np.nonzero(ids[1:] != ids[:-1])
    level = np.stack([np.stack([columns, rows + 1], -1), np.stack([columns + 1, rows + 1], -1)], 1)
    rows, columns = np.nonzero(ids[:, 1:] != ids[:, :-1])
    upright = np.stack([np.stack([columns + 1, rows], -1), np.stack([columns + 1, rows + 1], -1)], 1)
    scale = np.array([size[1] / ids.shape[1], size[0] / ids.shape[0]])
    return LineCollection(list(np.concatenate([level, upright]) * scale - 0.5), colors=color, linewidths=0.8)


def _legend(ax: Axes, classes: Iterable[NDArray[np.int64]], palette: Palette, crowded: bool) -> None:
    occurring = {int(value) for values in classes for value in np.unique(values)}
    present = sorted(occurring & set(range(len(palette.colors))))
    handles = [
        Patch(fc=palette.colors[k], ec='0.5', lw=0.5, label=f'{k}  {abbreviate(palette.labels[k])}') for k in present
    ]
    style = {'fontsize': 6.5, 'labelspacing': 0.2} if crowded else {'fontsize': 8, 'ncols': 1 + (len(handles) > 10)}
    legend = ax.legend(handles=handles, loc='center left', bbox_to_anchor=(0, 0.5), frameon=False, **style)
    legend.set_in_layout(False)
