# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Draw every augmentation on one synthetic tile, all its modalities side by side.

    python docs/figures/augmentation.py             # writes docs/figures/augmentation.png

A row is an augmentation; what was drawn for it is the same in every column. Grey is what
is not there: NaN, a date that is not valid, a modality that was dropped.
"""

import argparse
import io
import tempfile
from collections.abc import Callable
from pathlib import Path

import kornia.augmentation as K
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

from torchgeo_omnisat import transforms as T
from torchgeo_omnisat.batch import collate
from torchgeo_omnisat.datasets import SyntheticLandscapes
from torchgeo_omnisat.datasets.pastis import COLORS
from torchgeo_omnisat.modality import Modality

#: What is shown of each modality: three dates of Sentinel-2, one of radar, and the single image.
COLUMNS = (('s2', 0), ('s2', 1), ('s2', 2), ('s1a', 0), ('s1d', 0), ('spot', 0))
BANDS = {'s2': ('B04', 'B03', 'B02'), 's1a': ('VV', 'VH', 'VV'), 's1d': ('VV', 'VH', 'VV'), 'spot': ('R', 'G', 'B')}
GREY = (0.86, 0.86, 0.88)


def rows(modalities: dict[str, Modality]) -> dict[str, Callable[[], nn.Module]]:
    """Every augmentation, stronger than its default where that would not be seen."""
    return {
        'as it is': nn.Identity,
        'RandomDihedral': lambda: T.RandomDihedral(modalities),
        'RandomGroundCrop\n160 of 320 m': lambda: T.RandomGroundCrop(modalities, 160.0),
        'RandomGroundAffine': lambda: T.RandomGroundAffine(modalities, degrees=30, ignore_index=19),
        'RandomTemporalDropout\np = 0.5': lambda: T.RandomTemporalDropout(modalities, 0.5),
        'TemporalSubsample\n2 dates': lambda: T.TemporalSubsample(modalities, 2),
        'RandomDateShift\n30 days': lambda: T.RandomDateShift(modalities, 30),
        'ModalityDropout\np = 0.5': lambda: T.ModalityDropout(modalities, 0.5),
        'RandomClouds\np = 0.5': lambda: T.RandomClouds(modalities, 0.5, (0.3, 0.6)),
        'RandomSpeckle\n2 looks': lambda: T.RandomSpeckle(modalities, 2),
        'RandomBandDropout\np = 0.3': lambda: T.RandomBandDropout(modalities, 0.3),
        'Kornia: gamma\nand erasing': lambda: T.MultimodalAugmentation(
            modalities, K.RandomGamma((0.8, 0.9), p=1.0), K.RandomErasing((0.05, 0.1), p=1.0)
        ),
        'all defaults': lambda: T.MultimodalAugmentation(modalities),
    }


def three_dates(sample: dict[str, Tensor], modalities: dict[str, Modality]) -> dict[str, Tensor]:
    """Return the three least cloudy dates of every time series."""
    for m in (m for m in modalities.values() if m.temporal):
        order = sample[m.image_key].nanmean((1, 2, 3)).argsort()[:3].sort().values
        sample |= {key: sample[key][order] for key in m.keys}
    return sample


def draw(batch: dict[str, Tensor], modalities: dict[str, Modality], seed: int) -> Figure:
    """Draw the figure."""
    table = rows(modalities)
    columns = len(COLUMNS) + 1
    figure, axes = plt.subplots(len(table), columns, figsize=(columns + 1.5, 1.1 * len(table)))
    figure.subplots_adjust(left=0.15, right=0.995, top=0.965, bottom=0.005, wspace=0.05, hspace=0.22)
    stretch = {name: limits(batch, modalities[name]) for name in BANDS}
    for line, (title, make) in zip(axes, table.items(), strict=True):
        torch.manual_seed(seed)
        after = make()(batch)
        for ax, (name, date) in zip(line, COLUMNS, strict=False):
            panel(ax, after, modalities[name], date, *stretch[name])
        cmap = ListedColormap(COLORS)
        line[-1].imshow(after['mask'][0], cmap=cmap, vmin=-0.5, vmax=len(COLORS) - 0.5, interpolation='none')
        line[0].set_ylabel(title, rotation=0, ha='right', va='center', fontsize=7)
        for ax in line:
            ax.set(xticks=[], yticks=[], facecolor=GREY)
    for ax, heading in zip(axes[0], [*(name for name, _ in COLUMNS), 'mask'], strict=True):
        ax.annotate(heading, (0.5, 1.22), xycoords='axes fraction', ha='center', fontsize=8, weight='bold')
    return figure


def limits(batch: dict[str, Tensor], modality: Modality) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of black and white in every row."""
    pixels = pictures(batch, modality).reshape(-1, 3)
    return np.nanquantile(pixels, 0.01, axis=0), np.nanquantile(pixels, 0.99, axis=0)


def pictures(batch: dict[str, Tensor], modality: Modality) -> np.ndarray:
    """Return the images of the first sample, ``(T, H, W, 3)``."""
    image = batch[modality.image_key][0]
    image = image if modality.temporal else image[None]
    channels = [modality.bands.index(band) for band in BANDS[modality.name]]
    return image[:, channels].movedim(1, -1).numpy()


def panel(ax: plt.Axes, batch: dict[str, Tensor], modality: Modality, date: int, low: object, high: object) -> None:
    """One date of a modality, grey where there is nothing."""
    frames = pictures(batch, modality)
    ax.set_box_aspect(1)
    if date < len(frames) and batch[modality.valid_key][0, date]:
        frame = ((frames[date] - low) / (high - low)).clip(0, 1)
        lost = np.isnan(frame)
        frame[lost.all(-1)] = GREY
        ax.imshow(np.nan_to_num(frame))
        if modality.temporal:
            day = batch[modality.dates_key][0, date].numpy().astype('datetime64[D]')
            ax.set_title(str(day), fontsize=5.5, pad=1.5)


def main() -> None:
    """Make a landscape up and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--output', type=Path, default=Path(__file__).with_suffix('.png'))
    parser.add_argument('--tile', type=int, default=0)
    parser.add_argument('--seed', type=int, default=5)
    parser.add_argument('--dpi', type=int, default=72)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        dataset = SyntheticLandscapes(Path(folder) / 'root', num_tiles=args.tile + 1)
        sample = three_dates(dataset[args.tile], dataset.modalities)
    figure = draw(collate([sample], dataset.modalities), dataset.modalities, args.seed)
    temporary = args.output.with_suffix('.tmp')
    with io.BytesIO() as buffer:
        figure.savefig(buffer, format='png', dpi=args.dpi)
        Image.open(buffer).convert('RGB').quantize(64, dither=Image.Dither.NONE).save(temporary, 'png', optimize=True)
    temporary.replace(args.output)
    print(f'{args.output}, {args.output.stat().st_size / 1000:.0f} kB')


if __name__ == '__main__':
    main()
