# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Writing: made-up landscapes into files of FLAIR's layout, whole or not at all."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.transform import Affine
from scipy.ndimage import zoom

from torchgeo_omnisat.datasets.flair import AERIAL_GSD, CENTROIDS, CLASSES, DIRECTORIES, S2_GSD
from torchgeo_omnisat.datasets.synthetic.landscape import (
    BUILT,
    CROPS,
    GSD,
    ROAD,
    VERGE,
    WOODS,
    Cover,
    Indices,
    Landscape,
    draw_landscape,
    smooth_noise,
)
from torchgeo_omnisat.datasets.synthetic.rendering import render_s2, render_spot
from torchgeo_omnisat.datasets.synthetic.writing import MANIFEST, write_image, write_once

#: Version of what is drawn.
VERSION = 1
#: The domains that zones are dealt to in turn, by split.
DOMAINS = (('train', 'D001_2019'), ('train', 'D033_2019'), ('train', 'D072_2019'), ('val', 'D004_2019'),
           ('test', 'D015_2019'))  # fmt: skip

_START = np.datetime64('2018-09-01')
_STEPS = round(1 / AERIAL_GSD)
_COLUMNS = 40


@dataclass(frozen=True)
class Ground:
    """What a cover is on an aerial image.

    Args:
        name: One of FLAIR's classes.
        height: Mean height in metres; it varies with the texture.
        infrared: NIR above red, of 255.
    """

    name: str
    height: float
    infrared: float


#: Aerial images of June hardly tell meadow, fodder and summer crops, of one texture: Sentinel-2
#: sees which is mown, and which was bare in spring.
GROUND: dict[Cover, Ground] = {
    ROAD: Ground('impervious surface', 0.0, -5),
    VERGE: Ground('herbaceous vegetation', 0.3, 55),
    WOODS: Ground('deciduous', 14.0, 75),
    BUILT: Ground('building', 6.0, -10),
    **{cover: Ground('agricultural land', 0.6, 45) for cover in CROPS.values()},
    **{CROPS[crop]: Ground('plowed land', 0.5, 45) for crop in (3, 9, 13)},
    CROPS[1]: Ground('herbaceous vegetation', 0.3, 55),
    CROPS[16]: Ground('brushwood', 3.0, 60),
}


@dataclass(frozen=True)
class FLAIRRecipe:
    """What determines the landscapes, bit by bit.

    Args:
        zones: Number of zones, dealt to three domains of training, one of validation and
            one of test in turn.
        seed: Seed of every draw.
        size: Sentinel-2 pixels a side of a super-area.
        tile: Aerial pixels a side of a patch, a multiple of 256; 512 in FLAIR.
        dates: Number of dates of a super-area.
        version: Version of the generator.
        layout: Whose files these are.

    Raises:
        ValueError: If one of them makes no landscape.
    """

    zones: int = 10
    seed: int = 0
    size: int = 24
    tile: int = 256
    dates: int = 12
    version: int = VERSION
    layout: str = 'FLAIR'

    def __post_init__(self) -> None:
        """Refuse what makes no landscape."""
        for name, least in (('zones', 1), ('seed', 0), ('tile', 256), ('dates', 1)):
            if getattr(self, name) < least:
                raise ValueError(f'{name} must be at least {least}, got {getattr(self, name)}')
        if self.tile % 256:
            raise ValueError(f'tile must be a multiple of 256 pixels, which are five of {S2_GSD} m, got {self.tile}')
        if self.dates > 80:
            raise ValueError(f'dates must be at most 80, got {self.dates}')
        if not self.patches:
            raise ValueError(
                f'size must be more than {self.tile * AERIAL_GSD / GSD + 1} pixels of {GSD} m, got {self.size}'
            )

    @property
    def patches(self) -> int:
        """Patches a side of a zone; half a pixel stays free around them."""
        return int((self.size - 1) * GSD // (self.tile * AERIAL_GSD))


def write_flair(root: Path, recipe: FLAIRRecipe | None = None) -> None:
    """Write made-up patches in FLAIR's layout below *root*, unless they are there.

    A root is complete or absent, and of several processes one wins. What comes out of a model
    here says nothing about real land; results are to be called synthetic.

    Args:
        root: Directory to write to: absent, empty, or holding these patches.
        recipe: What determines them; None for the default.

    Raises:
        ValueError: If *root* holds anything else.
    """
    write_once(root, FLAIRRecipe() if recipe is None else recipe, _write)


def render_clouded(
    seed: int | list[int], land: Landscape, days: Indices
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sentinel-2 series and how probable clouds are: what the same draws with and without them differ by.

    Args:
        seed: Where the draws come from.
        land: What is on the ground.
        days: (T,) days since 2018-09-01.

    Returns:
        (T, 10, S / 10, S / 10) as :func:`render_s2` has it, and (T, S / 10, S / 10) in %.
    """
    clean, image = (render_s2(np.random.default_rng(seed), land, days, clouds=clouds) for clouds in (False, True))
    return image, ((image[:, 0] - clean[:, 0]) / 40).clip(0, 100)


def render_aerial(rng: np.random.Generator, land: Landscape) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Aerial image and labels at 0.2 m: SPOT's textures seen closer, with infrared and heights.

    Args:
        rng: Where the draws come from.
        land: What is on the ground.

    Returns:
        ``(5, 5 S, 5 S)`` R G B NIR nDSM as FLAIR stores them, and ``(5 S, 5 S)`` classes 1 to 19.
    """
    ground = [GROUND[cover] for cover in land.covers]
    spot = render_spot(rng, land)
    grey = spot.mean(0)
    mean = np.bincount(land.parcels.ravel(), grey.ravel()) / np.maximum(np.bincount(land.parcels.ravel()), 1)
    texture = grey - mean[land.parcels]
    height, infrared = (np.array([getattr(g, name) for g in ground]) for name in ('height', 'infrared'))
    nir = spot[0] + (infrared + 6 * land.vigour)[land.parcels] + 4 * smooth_noise(rng, texture.shape, 2)
    ndsm = height[land.parcels] * (1 + 0.02 * texture + 0.1 * smooth_noise(rng, texture.shape, 3))
    coarse = np.stack([*spot, nir, 5 * ndsm])
    fine = np.stack([zoom(band, _STEPS, order=1, grid_mode=True, mode='nearest') for band in coarse])
    fine += rng.normal(0, 1, fine.shape) * np.array([4, 4, 4, 4, 1])[:, None, None]
    label = np.array([CLASSES.index(g.name) + 1 for g in ground], dtype=np.uint8)[land.parcels]
    return np.rint(fine).clip(0, 255).astype(np.uint8), label.repeat(_STEPS, 0).repeat(_STEPS, 1)


def _write(root: Path, recipe: FLAIRRecipe) -> None:
    """Every file of the layout; the manifest comes last."""
    centroids: dict[str, list[int]] = {}
    metadata: dict[str, dict[str, Any]] = {}
    for zone in range(recipe.zones):
        rng = np.random.default_rng([recipe.seed, zone])
        land = draw_landscape(rng, recipe.size)
        split, domain = DOMAINS[zone % len(DOMAINS)]
        name = f'Z{zone // len(DOMAINS) + 1}_AN'
        places = {what: root / folder / domain / name for what, folder in DIRECTORIES[split].items()}
        _write_super_area(places['s2'] / 'sen', f'SEN2_sp_{domain}-{name}', recipe, zone, land)
        image, label = render_aerial(rng, land)
        day = str(np.datetime64('2019-06-20') + np.timedelta64(rng.integers(40), 'D'))
        corner = (700000.0 + zone % _COLUMNS * 5000, 6600000.0 - zone // _COLUMNS * 5000)
        margin = (recipe.size * GSD * _STEPS - recipe.patches * recipe.tile) // 2
        for index, (row, column) in enumerate(np.ndindex(recipe.patches, recipe.patches)):
            number = f'{zone * recipe.patches**2 + index:06}'
            top, left = margin + row * recipe.tile, margin + column * recipe.tile
            part = np.s_[..., top : top + recipe.tile, left : left + recipe.tile]
            transform = Affine(AERIAL_GSD, 0, corner[0] + left / _STEPS, 0, -AERIAL_GSD, corner[1] - top / _STEPS)
            write_image(places['aerial'] / 'img' / f'IMG_{number}.tif', image[part], transform)
            write_image(places['labels'] / 'msk' / f'MSK_{number}.tif', label[None][part], transform)
            centroids[f'IMG_{number}.tif'] = [_centre(top, recipe.tile), _centre(left, recipe.tile)]
            metadata[f'IMG_{number}'] = {'domain': domain, 'zone': name, 'date': day}
    (root / CENTROIDS).write_text(json.dumps(centroids))
    (root / 'flair_aerial_metadata.json').write_text(json.dumps(metadata))
    (root / MANIFEST).write_text(json.dumps(asdict(recipe), indent=1))


def _centre(first: int, tile: int) -> int:
    """The Sentinel-2 pixel around which as many as a patch covers lie best over it."""
    pixels = round(tile * AERIAL_GSD / S2_GSD)
    return round((first + tile / 2) / _STEPS / GSD - pixels % 2 / 2)


def _write_super_area(folder: Path, stem: str, recipe: FLAIRRecipe, zone: int, land: Landscape) -> None:
    """Reflectance, probabilities of snow and clouds, and product names."""
    draws = np.random.default_rng([recipe.seed, zone, 1])
    days: Indices = np.sort(draws.choice(np.arange(0, 400, 5), recipe.dates, replace=False)) + draws.integers(5)
    image, cloud = render_clouded([recipe.seed, zone, 2], land, days)
    masks = np.stack([np.zeros_like(cloud), cloud], axis=1)
    folder.mkdir(parents=True)
    np.save(folder / f'{stem}_data.npy', np.rint(image).clip(1, 20000).astype(np.uint16))
    np.save(folder / f'{stem}_masks.npy', np.rint(masks).astype(np.uint8))
    stamps = [str(stamp).replace('-', '') for stamp in _START + days.astype('timedelta64[D]')]
    lines = [f'S2A_MSIL2A_{stamp}T105031_N0212_R051_T31TCJ_{stamp}T141541' for stamp in stamps]
    (folder / f'{stem}_products.txt').write_text('\n'.join(lines) + '\n')
