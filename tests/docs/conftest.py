# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Made-up data under the names that the examples of the site expect, written once."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
from shapely.geometry import box

from tests.biomassters_tree import write_biomassters
from tests.chips_tree import write_chips
from tests.conftest import write_pastis
from tests.geo_tree import UTM, X, Y, write
from tests.landscapes.flair import FLAIRRecipe, write_flair
from tests.landscapes.flairhub import FLAIRHUBRecipe, write_flairhub
from tests.landscapes.treesatai import TreeSatAIRecipe, write_treesatai
from tests.tortilla_tree import write_geobench2


def write_region(root: Path) -> Path:
    """The rasters of the examples, 128 x 128 px of 10 m: two series, an aerial image of a part, polygons."""
    rng = np.random.default_rng(0)
    for day in ('20210315', '20210615'):
        write(root / f's2/S2_{day}.tif', rng.uniform(1, 4000, (4, 128, 128)).astype(np.int16))
        write(root / f's1/S1_{day}.tif', rng.normal(-12, 2, (2, 128, 128)).astype(np.float32), bands=('VV', 'VH'))
    write(root / 'aerial/ortho.tif', rng.integers(1, 255, (3, 256, 256)).astype(np.uint8), step=2.5)
    fields = [box(X + 160 * c, Y - 160 * (r + 1), X + 160 * (c + 1), Y - 160 * r) for r in range(8) for c in range(8)]
    crops = [number % 3 for number in range(64)]
    gpd.GeoDataFrame({'crop': crops}, geometry=fields, crs=UTM).to_file(root / 'fields.gpkg')
    write(root / 'canopy.tif', rng.uniform(0, 30, (128, 128)).astype(np.float32), nodata=-1)
    return root


def write_belgium(root: Path) -> Path:
    """The files that the configuration of Belgian crops names, on the ground that it names."""
    rng, corner = np.random.default_rng(0), (664760.0, 5612400.0)
    for day in ('20200315', '20200615'):
        write(root / f's2/S2_{day}.tif', rng.uniform(1, 4000, (4, 50, 48)).astype(np.int16), corner)
        write(root / f's1/S1_{day}.tif', rng.normal(-12, 2, (2, 50, 48)).astype(np.float32), corner)
    write(root / 'dem/dem.tif', rng.normal(60, 9, (1, 50, 48)).astype(np.float32), corner)
    write(root / 'crops/crops.tif', rng.integers(0, 5, (50, 48)).astype(np.uint8), corner)
    return root


WRITERS: dict[str, Callable[[Path], Any]] = {
    'pastis': lambda root: write_pastis(root, size=16),
    'flair': lambda root: write_flair(root, FLAIRRecipe(zones=5, size=8, dates=3)),
    'flair-hub': lambda root: write_flairhub(root, FLAIRHUBRecipe(areas=5, dates=3)),
    'geobench2': lambda root: write_geobench2(root, 'pastis'),
    'treesatai': lambda root: write_treesatai(root, TreeSatAIRecipe(num_tiles=5, dates=3)),
    'region': write_region,
    'belgium': write_belgium,
    'biomassters': write_biomassters,
    'chips': lambda root: write_chips(root, 5, series=('20210315', '20210615')),
}


@pytest.fixture(scope='session')
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the folder of some made-up data by name, and writes it where it is not yet there."""
    folder = tmp_path_factory.mktemp('made')

    def give(name: str) -> Path:
        if not (folder / name).exists():
            WRITERS[name](folder / name)
        return folder / name

    return give


@pytest.fixture
def linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, where commands leave what they leave."""
    monkeypatch.chdir(tmp_path)
    os.makedirs('data')
    return tmp_path
