# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""TreeSatAI Time-Series' layout, random and from a seed."""

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import rasterio
from rasterio.transform import from_origin

from torchgeo_omnisat.datasets.treesatai import LABELS, MODALITIES, SERIES

__all__ = ['MODALITIES', 'NAMES', 'archive', 'h5', 'rewrite', 'write_treesatai_tree']

NAMES = ['Betula_spec._1_7_WEFL_NLF', 'Picea_abies_2_8_BI_NLF', 'Quercus_robur_3_9_X_NLF']
SHARES = [
    [['Betula', 0.7], ['Picea', 0.0701], ['Quercus', 0.07]],
    [['Picea', 1.0]],
    [['Cleared', 0.02]],
]


def write_treesatai_tree(root: Path) -> Path:
    """Three plots without lists of splits: four dates of S2, three of S1, two of them of one day."""
    rng = np.random.default_rng(0)
    for folder in ('aerial', 'sentinel-ts', 'labels'):
        (root / folder).mkdir(parents=True)
    for index, name in enumerate(NAMES):
        size = {'count': 4, 'height': 304, 'width': 304, 'dtype': 'uint8'}
        where = {'crs': 'EPSG:25832', 'transform': from_origin(500000 + 1000 * index, 5.8e6, 0.2, 0.2)}
        with rasterio.open(root / f'aerial/{name}.tif', 'w', driver='GTiff', **size, **where) as file:
            file.write(rng.integers(1, 255, (4, 304, 304)).astype(np.uint8))
        for key in SERIES:
            bands = len(MODALITIES[key].bands)
            if key == 's2':
                days, image = ['20190103', '20190205', '20190404', '20190801'], rng.uniform(1, 9000, (4, bands, 6, 6))
            else:
                days, image = ['20190103', '20190103', '20190109'], rng.uniform(0.01, 0.5, (3, bands, 6, 6))
            masks = np.zeros((4, 2 + 8 * (index % 2), 6, 6), np.float32) if key == 's2' else None
            rewrite(h5(root, index), key, image.astype(np.float32), days, masks)
    (root / LABELS).write_text(json.dumps({f'{n}.tif': shares for n, shares in zip(NAMES, SHARES, strict=True)}))
    return root


def h5(root: Path, index: int) -> Path:
    """The file of the series of a plot."""
    return root / f'sentinel-ts/{NAMES[index]}_2019.h5'


def rewrite(
    path: Path,
    name: str,
    image: np.ndarray[Any, Any],
    days: Sequence[str],
    masks: np.ndarray[Any, Any] | None = None,
) -> None:
    """Put a series in the place of another; without masks there are none."""
    series = SERIES[name]
    with h5py.File(path, 'a') as file:
        for kind in ('data', 'masks', 'products'):
            if f'{series.prefix}-{kind}' in file:
                del file[f'{series.prefix}-{kind}']
        file[f'{series.prefix}-data'] = image
        if masks is not None:
            file[f'{series.prefix}-masks'] = masks
        pattern = 'S1A_IW_GRDH_1SDV_{}T054940_x_1' if series.radar else 'S2A_MSIL2A_{}T104431_N0211_R008_T32UMD_x'
        products = [pattern.format(day) for day in days]
        file.create_dataset(f'{series.prefix}-products', data=products, dtype=h5py.string_dtype())


def archive(root: Path, folder: str, place: Path) -> None:
    """A directory as the archive that it is published in."""
    with zipfile.ZipFile(place / f'{folder}.zip', 'w') as file:
        for path in sorted((root / folder).iterdir()):
            file.write(path, f'{folder}/{path.name}')
