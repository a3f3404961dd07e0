# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""FLAIR's layout from random numbers: two patches of training, one of validation, one of test."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.transform import from_origin

from tests.conftest import save

#: Patches: split, zone, number, and the pixel of their centre in the super-area.
PATCHES = (
    ('train', 'D001_2019/Z1_AA', '000001', (4, 5)),
    ('train', 'D001_2019/Z1_AA', '000002', (8, 9)),
    ('val', 'D004_2021/Z6_NU', '000473', (5, 6)),
    ('test', 'D015_2020/Z3_UN', '000500', (3, 3)),
)
DATES = ('20190601', '20190115', '20190301', '20190420')


def place(what: str, split: str) -> str:
    """The directory of aerial images, series or labels."""
    return f'flair_2_{what}_test' if split == 'test' else f'flair_{what}_train'


def write_image(path: Path, image: np.ndarray[Any, Any], **profile: Any) -> None:
    """A raster of 0.2 m a pixel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = image.shape
    size = {'count': count, 'height': height, 'width': width, 'dtype': image.dtype}
    where = {'crs': 'EPSG:2154', 'transform': from_origin(961436.8, 6329262.4, 0.2, 0.2)} | profile
    with rasterio.open(path, 'w', driver='GTiff', **size, **where) as file:
        file.write(image)


def aerial(root: Path, number: str) -> Path:
    """The aerial image of a patch."""
    (zone,) = ((split, zone) for split, zone, found, _ in PATCHES if found == number)
    return root / place('aerial', zone[0]) / zone[1] / f'img/IMG_{number}.tif'


def labels(root: Path, number: str) -> Path:
    """The mask of a patch."""
    (zone,) = ((split, zone) for split, zone, found, _ in PATCHES if found == number)
    return root / place('labels', zone[0]) / zone[1] / f'msk/MSK_{number}.tif'


def series(root: Path, zone: str, end: str, split: str = 'train') -> Path:
    """A file of a super-area: ``data.npy``, ``masks.npy`` or ``products.txt``."""
    return root / place('sen', split) / zone / 'sen' / f'SEN2_sp_{zone.replace("/", "-")}_{end}'


def write_products(path: Path, dates: tuple[str, ...]) -> None:
    """Product names of dates such as ``20190601``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join(f'S2A_MSIL2A_{day}T105031_N0212_R051_T31TCJ_{day}T141541' for day in dates) + '\n')


def write_tree(root: Path, size: int = 256, s2: bool = True, seed: int = 0) -> Path:
    """Write it; masks have no CRS that anyone knows, as published."""
    rng = np.random.default_rng(seed)
    centroids, metadata = {}, {}
    for split, zone, number, centre in PATCHES:
        write_image(aerial(root, number), rng.integers(0, 256, (5, size, size)).astype(np.uint8))
        mask = rng.integers(1, 20, (1, size, size)).astype(np.uint8)
        write_image(labels(root, number), mask, crs='LOCAL_CS["RGF93 v1 / Lambert-93",UNIT["metre",1]]')
        centroids[f'IMG_{number}.tif'] = list(centre)
        metadata[f'IMG_{number}'] = {'domain': zone[:9], 'date': '2019-08-26', 'time': None}
        if s2:
            save(series(root, zone, 'data.npy', split), rng.integers(1, 9000, (4, 10, 12, 14)).astype(np.int16))
            save(series(root, zone, 'masks.npy', split), np.zeros((4, 2, 12, 14), np.uint8))
            write_products(series(root, zone, 'products.txt', split), DATES)
    if s2:
        (root / 'flair-2_centroids_sp_to_patch.json').write_text(json.dumps(centroids))
    (root / 'flair_aerial_metadata.json').write_text(json.dumps(metadata))
    return root
