# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Writing: made-up landscapes into files of TreeSatAI Time-Series' layout, whole or not at all."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from rasterio.transform import from_origin

from torchgeo_omnisat.datasets.synthetic.landscape import CROPS, Array, Indices, Landscape, draw_landscape
from torchgeo_omnisat.datasets.synthetic.rendering import render_s1
from torchgeo_omnisat.datasets.synthetic.writing import MANIFEST, write_image, write_once
from torchgeo_omnisat.datasets.treesatai import EXTENT, GENERA, LABELS, MARGIN, SERIES

from .flair import render_aerial, render_clouded

#: Version of what is drawn.
VERSION = 1
#: The genus that each crop of the landscapes stands in for.
STAND_INS: dict[int, str] = dict(zip(CROPS, (g for g in GENERA if g != 'Cleared'), strict=False))

_YEAR = 2019
_START = np.datetime64('2018-09-01')
#: A landscape is a pixel of 10 m larger than the plot on every side.
_SIZE = round(EXTENT / 10) + 2
_SPLITS = ('train', 'train', 'train', 'val', 'test')


@dataclass(frozen=True)
class TreeSatAIRecipe:
    """What determines the plots, bit by bit.

    Args:
        num_tiles: Number of plots, of which of each five three train, one validates and one
            tests.
        seed: Seed of every draw.
        dates: Number of dates of a series.
        version: Version of the generator.
        layout: Whose files these are.

    Raises:
        ValueError: If one of them makes no plot.
    """

    num_tiles: int = 100
    seed: int = 0
    dates: int = 20
    version: int = VERSION
    layout: str = 'TreeSatAI'

    def __post_init__(self) -> None:
        """Refuse what makes no plot."""
        for name, least in (('num_tiles', 5), ('seed', 0), ('dates', 2)):
            if getattr(self, name) < least:
                raise ValueError(f'{name} must be at least {least}, got {getattr(self, name)}')
        if self.dates > 50:
            raise ValueError(f'dates must be at most 50, got {self.dates}')


def write_treesatai(root: Path, recipe: TreeSatAIRecipe | None = None) -> None:
    """Write made-up plots in TreeSatAI Time-Series' layout below *root*, unless they are there.

    The crops of the landscapes stand in for genera (:data:`STAND_INS`), and are told apart
    as they are there: some by Sentinel-2 alone, some by Sentinel-1, some by texture. The
    series have the faults of the real ones: clouds with masks of two shapes, NaN and zeros
    in Sentinel-1, and two frames of one day. What comes out of a model here says nothing
    about real forests; results are to be called synthetic.

    Args:
        root: Directory to write to: absent, empty, or holding these plots.
        recipe: What determines them; None for the default.

    Raises:
        ValueError: If *root* holds anything else.
    """
    write_once(root, TreeSatAIRecipe() if recipe is None else recipe, _write)


def _write(root: Path, recipe: TreeSatAIRecipe) -> None:
    """Every file of the layout; the manifest comes last."""
    for folder in ('aerial', 'sentinel-ts', 'labels', 'split'):
        (root / folder).mkdir()
    labels: dict[str, list[tuple[str, float]]] = {}
    lists: dict[str, list[str]] = {split: [] for split in _SPLITS}
    for index in range(recipe.num_tiles):
        rng = np.random.default_rng([recipe.seed, index])
        land = draw_landscape(rng, _SIZE)
        shares = _shares(land)
        leading = next(iter(shares), 'Cleared')
        name = f'{leading}_spec._{index % 3 + 1}_{index}_SYN_NLF'
        labels[f'{name}.tif'] = [(genus, round(share, 5)) for genus, share in shares.items()]
        lists[_SPLITS[index % len(_SPLITS)]].append(f'{name}.tif')
        _write_aerial(root / f'aerial/{name}.tif', render_aerial(rng, land)[0], index)
        _write_series(root / f'sentinel-ts/{name}_{_YEAR}.h5', rng, land, recipe, index)
    (root / LABELS).write_text(json.dumps(labels))
    for split, names in lists.items():
        (root / f'split/{split}_filenames.lst').write_text('\n'.join(names) + '\n')
    (root / MANIFEST).write_text(json.dumps(asdict(recipe), indent=1))


def _shares(land: Landscape) -> dict[str, float]:
    """What share of the plot each genus covers, the largest first."""
    crops = land.label[land.parcels[10:-10, 10:-10]]
    found = {genus: float(np.mean(crops == crop)) for crop, genus in STAND_INS.items()}
    return {genus: found[genus] for genus in sorted(found, key=lambda g: -found[g]) if found[genus] > 0}


def _write_aerial(path: Path, image: NDArray[np.uint8], index: int) -> None:
    """Near infrared, green, blue and red of the plot and its margin, as GeoTIFF."""
    side = round(EXTENT / 0.2) + 2 * MARGIN
    first = (image.shape[-1] - side) // 2
    image = image[[3, 1, 2, 0], first : first + side, first : first + side]
    transform = from_origin(500000 + index % 40 * 200, 5800000 - index // 40 * 200, 0.2, 0.2)
    write_image(path, image, transform, 'EPSG:25832')


def _write_series(path: Path, rng: np.random.Generator, land: Landscape, recipe: TreeSatAIRecipe, index: int) -> None:
    """The three series with their products and masks."""
    with h5py.File(path, 'w') as file:
        for number, (name, series) in enumerate(SERIES.items()):
            days: Indices = np.sort(rng.choice(np.arange(0, 400, 6), recipe.dates, replace=False)) + number
            if series.radar:
                days[1] = days[0]  # two frames of one day
                image = _power(rng, land, days, look=0.22 if name == 's1a' else -0.22)
            else:
                image, cloud = (a[..., 1:-1, 1:-1] for a in render_clouded(int(rng.integers(2**31)), land, days))
                image = np.rint(image).clip(1, 20000)
                masks = np.zeros((len(days), 10 if index % 2 else 2, *cloud.shape[1:]), dtype=np.float32)
                masks[:, 1] = cloud
                file[f'{series.prefix}-masks'] = masks
            file[f'{series.prefix}-data'] = image.astype(np.float32)
            products = [_product(int(day), series.radar) for day in days]
            file.create_dataset(f'{series.prefix}-products', data=products, dtype=h5py.string_dtype())


def _power(rng: np.random.Generator, land: Landscape, days: Indices, look: float) -> Array:
    """Sentinel-1 in linear power, with a pixel that is NaN and, now and then, a frame that is zero."""
    decibel = render_s1(rng, land, days, look)[:, :2, 1:-1, 1:-1]
    power: Array = 10 ** (decibel / 10)
    frame, row, column = rng.integers((len(days), *power.shape[2:]))
    power[frame, :, row, column] = np.nan
    if rng.random() < 0.3:
        power[-1] = 0
    return power


def _product(day: int, radar: bool) -> Any:
    """A name as Copernicus gives it."""
    stamp = str(_START + day).replace('-', '')
    if radar:
        return f'S1A_IW_GRDH_1SDV_{stamp}T054940_{stamp}T055005_025309_02CCD2_4331'
    return f'S2A_MSIL2A_{stamp}T104431_N0211_R008_T32UMD_{stamp}T115449'
