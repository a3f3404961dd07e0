# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Synthetic chips of 16 x 16 pixels, each in its own UTM zone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.geo_tree import write

#: CRS and upper left corner of chips that are far from each other.
PLACES = (
    ('EPSG:32632', (550000.0, 6344000.0)),
    ('EPSG:32616', (694000.0, 6075000.0)),
    ('EPSG:32718', (717000.0, 5700000.0)),
    ('EPSG:32722', (790000.0, 7198000.0)),
    ('EPSG:32736', (617000.0, 9625000.0)),
)
RASTERS: dict[str, dict[str, Any]] = {'s2': {'path': 's2', 'gsd': 10, 'kind': 'optical', 'unit': 'dn'}}
MASK = {'path': 'masks'}
LABELS = ['land', 'water']


def write_chips(root: Path, count: int = 3, series: Sequence[str] = ()) -> Path:
    """Write ``s2`` of four bands, and ``masks`` of 0 and 1 and, with dates, the series ``s1`` of 20 m."""
    rng = np.random.default_rng(0)
    for number in range(count):
        crs, corner = PLACES[number % len(PLACES)]
        corner = (corner[0] + 20000.0 * (number // len(PLACES)), corner[1])
        name = f'chip{number}'
        write(root / f's2/{name}.tif', rng.integers(1, 4000, (4, 16, 16)).astype(np.uint16), corner, crs=crs)
        mask = rng.integers(0, 2, (16, 16)).astype(np.uint8)
        write(root / f'masks/{name}.tif', mask, corner, crs=crs)
        for day in series:
            image = rng.normal(-12, 2, (2, 8, 8)).astype(np.float32)
            write(root / f's1/{name}_{day}.tif', image, corner, 20.0, crs=crs, bands=('VV', 'VH'))
    return root
