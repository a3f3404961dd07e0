# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Writing: made-up landscapes into files of FLAIR-HUB's layout, whole or not at all."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import fiona
import numpy as np
from numpy.typing import NDArray
from rasterio.transform import from_origin

from torchgeo_omnisat.datasets.flair import CLASSES
from torchgeo_omnisat.datasets.flairhub import (
    CLOUDS,
    MODALITIES,
    PRODUCTS,
    SPLIT_COLUMNS,
    label_product,
    palette,
    table_of,
)
from torchgeo_omnisat.datasets.synthetic.landscape import GSD, Indices, Landscape, draw_landscape, smooth_noise
from torchgeo_omnisat.datasets.synthetic.rendering import render_s1, render_spot
from torchgeo_omnisat.datasets.synthetic.writing import MANIFEST, write_image, write_once

from .flair import render_aerial, render_clouded

#: Version of what is drawn.
VERSION = 1
#: The domains that areas are dealt to in turn, by split.
DOMAINS = (('train', 'D005-2018'), ('train', 'D006-2020'), ('train', 'D008-2019'), ('valid', 'D004-2021'),
           ('test', 'D012-2019'))  # fmt: skip

_FINE = MODALITIES['aerial'].gsd
_START = np.datetime64('2018-09-01')
_COLUMNS = 40


@dataclass(frozen=True)
class FLAIRHUBRecipe:
    """What determines the patches, bit by bit.

    Args:
        areas: Number of areas of four patches each, dealt to the splits in turn: of each five
            three train, one validates and one tests.
        seed: Seed of every draw.
        tile: Aerial pixels a side of a patch, a multiple of 256; 512 in FLAIR-HUB.
        dates: Number of dates of a series, at most.
        version: Version of the generator.
        layout: Whose files these are.

    Raises:
        ValueError: If one of them makes no landscape.
    """

    areas: int = 10
    seed: int = 0
    tile: int = 256
    dates: int = 12
    version: int = VERSION
    layout: str = 'FLAIR-HUB'

    def __post_init__(self) -> None:
        """Refuse what makes no landscape."""
        for name, least in (('areas', 1), ('seed', 0), ('tile', 256), ('dates', 3)):
            if getattr(self, name) < least:
                raise ValueError(f'{name} must be at least {least}, got {getattr(self, name)}')
        if self.tile % 256:
            raise ValueError(f'tile must be a multiple of 256 pixels, which are five of 10.24 m, got {self.tile}')
        if self.dates > 60:
            raise ValueError(f'dates must be at most 60, got {self.dates}')

    @property
    def size(self) -> int:
        """Pixels of 10 m a side of an area: two patches, and what lies beyond their border."""
        return int(np.ceil(2 * self.tile * _FINE / GSD)) + 1


def write_flairhub(root: Path, recipe: FLAIRHUBRecipe | None = None) -> None:
    """Write made-up patches in FLAIR-HUB's layout below *root*, unless they are there.

    The land is that of :func:`.write_flair`, with its
    classes under the numbers of FLAIR-HUB; the labels of crops are background alone. What comes
    out of a model here says nothing about real land; results are to be called synthetic.

    Args:
        root: Directory to write to: absent, empty, or holding these patches.
        recipe: What determines them; None for the default.

    Raises:
        ValueError: If *root* holds anything else.
    """
    write_once(root, FLAIRHUBRecipe() if recipe is None else recipe, _write)


def _write(root: Path, recipe: FLAIRHUBRecipe) -> None:
    """Every file of the layout; the manifest comes last."""
    rows: dict[str, list[dict[str, Any]]] = {
        name: [] for name in ('SPLIT', *(p.table for p in PRODUCTS.values() if p.table))
    }
    for index in range(recipe.areas):
        split, domain = DOMAINS[index % len(DOMAINS)]
        area = f'AA-S{index // len(DOMAINS) + 1}-{index}'
        rng = np.random.default_rng([recipe.seed, index])
        days, whole = _draw(rng, recipe)
        year = int(domain[-4:]) - 2019
        for place in np.ndindex(2, 2):
            patch = f'{domain}_{area}_{place[0]}-{place[1]}'
            rows['SPLIT'].append({'patch_id': patch, **dict.fromkeys(SPLIT_COLUMNS, split)})
            rows['AERIAL'].append({'patch_id': patch, 'date': f'{domain[-4:]}0714'})
            rows['SPOT'].append({'patch_id': patch, 'date': f'{domain[-4:]}0600'})
            for name, image in whole.items():
                where = f'{domain[:-4]}195X' if name == PRODUCTS['aerial_rlt'].name else domain
                path = root / f'{where}_{name}/{area}/{where}_{name}_{area}_{place[0]}-{place[1]}.tif'
                _write_image(path, image, place, recipe.tile * _FINE, index)
        for table, series in days.items():
            stamps = [str(_START + np.timedelta64(int(day), 'D')).replace('-', '') for day in series]
            stamps = [f'{int(stamp[:4]) + year}{stamp[4:]}' for stamp in stamps]
            dates = json.dumps({str(frame): stamp for frame, stamp in enumerate(stamps, start=1)})
            rows[table].append({'patch_id': f'{domain}_{area}_0-0', 'acquisition_dates': dates})
    for name, content in rows.items():
        path = root / 'GLOBAL_ALL_MTD/GLOBAL_ALL_MTD_SPLIT.gpkg' if name == 'SPLIT' else table_of(root, name)
        write_table(path, content)
    (root / MANIFEST).write_text(json.dumps(asdict(recipe), indent=1))


def _draw(rng: np.random.Generator, recipe: FLAIRHUBRecipe) -> tuple[dict[str, Indices], dict[str, NDArray[Any]]]:
    """Days of the series by table, and images of a whole area by product, ``(C, H, W)`` on two patches a side."""
    land = draw_landscape(rng, recipe.size)
    aerial, label = render_aerial(rng, land)
    terrain = 200 + 5 * smooth_noise(rng, aerial.shape[1:], 60)
    cosia = {name: code for code, name in enumerate(palette('land_cover').labels)}
    codes = np.array([cosia.get(name, cosia['undefined']) for name in CLASSES], dtype=np.uint8)
    days, series = _draw_series(rng, land, recipe)
    crops = np.full((3, *label.shape), [[[22]], [[30]], [[45]]], dtype=np.uint8)
    spot = np.concatenate([render_spot(rng, land), aerial[3:4, ::5, ::5]]) * 6
    images: dict[str, NDArray[Any]] = {
        'AERIAL_RGBI': aerial[:4],
        'DEM_ELEV': np.stack([terrain + aerial[4] / 5, terrain]).astype(np.float32),
        'AERIAL-RLT_PAN': aerial[:3].mean(0, keepdims=True).astype(np.uint8),
        'SPOT_RGBI': spot.astype(np.uint16),
        label_product('land_cover'): codes[label - 1][None],
        label_product('crop_type'): crops,
        **series,
    }
    gsd: dict[str, float] = {product.name: product.modality.gsd for product in PRODUCTS.values()}
    gsd[CLOUDS] = MODALITIES['s2'].gsd
    return days, {name: _resample(image, land, gsd.get(name, _FINE), recipe) for name, image in images.items()}


def _draw_series(
    rng: np.random.Generator, land: Landscape, recipe: FLAIRHUBRecipe
) -> tuple[dict[str, Indices], dict[str, NDArray[Any]]]:
    """Days, and series as they are stored, frame after frame; each has another number of dates."""
    days: dict[str, Indices] = {}
    images: dict[str, NDArray[Any]] = {}
    for lacking, (name, product) in enumerate((n, p) for n, p in PRODUCTS.items() if p.modality.temporal):
        day = np.sort(rng.choice(np.arange(0, 400, 6), recipe.dates - lacking, replace=False)) + lacking
        days[str(product.table)] = day
        if product.radar:
            image = 10 ** (render_s1(rng, land, day, look=0.22 if name == 's1a' else -0.22)[:, :2] / 10)
            images[product.name] = image.reshape(-1, *image.shape[2:]).astype(np.float32)
        else:
            image, cloud = render_clouded(int(rng.integers(2**31)), land, day)
            masks = np.stack([np.zeros_like(cloud), cloud], axis=1)
            images[product.name] = np.rint(image).clip(1, 20000).reshape(-1, *image.shape[2:]).astype(np.uint16)
            images[CLOUDS] = np.rint(masks).reshape(-1, *image.shape[2:]).astype(np.uint16)
    return days, images


def _resample(image: NDArray[Any], land: Landscape, gsd: float, recipe: FLAIRHUBRecipe) -> NDArray[Any]:
    """The pixels of two patches a side, in the middle of an area, each the nearest that there is."""
    extent = 2 * recipe.tile * _FINE
    first = (len(land.parcels) - extent) / 2
    centres = first + (np.arange(round(extent / gsd)) + 0.5) * gsd
    nearest = (centres / len(land.parcels) * image.shape[-1]).astype(np.int64)
    return image[:, nearest][:, :, nearest]


def _write_image(path: Path, image: NDArray[Any], place: tuple[int, ...], extent: float, index: int) -> None:
    """The georeferenced part of an area's image that is a patch."""
    side = image.shape[-1] // 2
    part = image[:, place[0] * side :, place[1] * side :][:, :side, :side]
    east, south = index % _COLUMNS * 5000 + place[1] * extent, index // _COLUMNS * 5000 + place[0] * extent
    transform = from_origin(700000 + east, 6600000 - south, extent / side, extent / side)
    write_image(path, part, transform)


def write_table(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """A GeoPackage with a column of text for each entry of the rows, and a point that says nothing."""
    content = [dict(row) for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = {'geometry': 'Point', 'properties': dict.fromkeys(content[0], 'str')}
    with fiona.open(path, 'w', driver='GPKG', crs='EPSG:2154', schema=schema) as file:
        file.writerecords(
            {'geometry': {'type': 'Point', 'coordinates': (0.0, 0.0)}, 'properties': row} for row in content
        )
