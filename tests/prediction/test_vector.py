# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Parcels: whole fields of one class, however the map is read."""

from pathlib import Path
from typing import Any

import fiona
import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from pyproj import CRS
from rasterio import Affine
from scipy.ndimage import label
from shapely.geometry import shape

from torchgeo_omnisat.grid import Grid
from torchgeo_omnisat.prediction.raster import MapBands, Precision, class_colors, write_map
from torchgeo_omnisat.prediction.tiling import Window
from torchgeo_omnisat.prediction.vector import write_parcels

from .areas import LABELS, make_grid


def write(folder: Path, classes: NDArray[Any], precision: Precision = 'uint8', grid: Grid | None = None) -> Path:
    """A map of these classes, -1 for nodata; class k has the probability 0.5 + k / 10."""
    height, width = classes.shape
    codes = np.arange(3)[:, None, None]
    probabilities = np.where(classes == codes, 0.5 + codes / 10, 0.1).astype(np.float32)
    bands = MapBands(LABELS, ['s2'], precision)
    values = bands.encode(probabilities, (classes >= 0).astype(np.uint16))
    path = folder / 'map.tif'
    parts = [(Window(0, 0, height, width), values)]
    write_map(path, folder / 'scratch.tif', grid or make_grid(height, width), bands, parts, class_colors(3))
    return path


def parcels(path: Path, **kwargs: Any) -> list[Any]:
    package = path.with_suffix('.gpkg')
    count = write_parcels(path, package, LABELS, **kwargs)
    with fiona.open(package) as file:
        found = [(dict(record['properties']), shape(record['geometry'])) for record in file]
        assert file.crs.to_epsg() == 32631
    assert len(found) == count
    return found


def patchwork(seed: int = 0, height: int = 60, width: int = 47) -> NDArray[np.int64]:
    """Fields of many sizes, some nodata between."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(-1, 3, (height // 5 + 1, width // 5 + 1))
    return coarse.repeat(5, 0).repeat(5, 1)[:height, :width]


@pytest.mark.parametrize('block', [1024, 16, 7])
def test_every_connected_field_is_one_polygon(tmp_path: Path, block: int) -> None:
    classes = patchwork()
    found = parcels(write(tmp_path, classes), smallest=0, block=block)
    wanted = sorted(
        (code, int(size)) for code in range(3) for size in np.bincount(label(classes == code)[0].ravel())[1:]
    )
    assert sorted((p['class'], round(p['area_ha'] * 100)) for p, _ in found) == wanted
    assert all(geometry.area / 1e4 == pytest.approx(p['area_ha']) for p, geometry in found)
    assert all(geometry.geom_type == 'Polygon' and geometry.is_valid for _, geometry in found)
    assert {(p['class'], p['name'], p['probability']) for p, _ in found} == {
        (0, 'water', 0.5),
        (1, 'field', 0.6),
        (2, 'town', 0.7),
    }


def test_polygons_lie_where_their_pixels_are(tmp_path: Path) -> None:
    classes = np.full((8, 8), -1)
    classes[2:4, 3:8] = 1
    ((_, geometry),) = parcels(write(tmp_path, classes), smallest=0)
    assert geometry.bounds == (600030, 5600000 - 40, 600080, 5600000 - 20)


@pytest.mark.parametrize('block', [1024, 16])
def test_small_ones_go_to_their_neighbour(tmp_path: Path, block: int) -> None:
    classes = np.zeros((40, 40), int)
    classes[10:30, 16:30] = 1
    classes[15:17, 15:18] = 2  # 6 pixels, over the borders of blocks
    classes[35:37, 35:37] = -1
    classes[33, 35] = 1
    found = parcels(write(tmp_path, classes), smallest=0.1, block=block)
    assert sorted((p['class'], round(p['area_ha'] * 100)) for p, _ in found)[0][0] == 0
    assert len(found) == 2
    assert sum(p['area_ha'] for p, _ in found) == pytest.approx(15.96)
    assert len(parcels(write(tmp_path, classes), smallest=0.06, block=block)) == 3
    assert len(parcels(write(tmp_path, classes), smallest=0.065, block=block)) == 2


def test_neighbours_share_a_side_and_have_a_class(tmp_path: Path) -> None:
    classes = np.zeros((20, 20), int)
    classes[5:7, 5:8] = classes[7:9, 8:11] = 1  # 6 pixels each, that meet in a corner
    assert len(parcels(write(tmp_path, classes), smallest=0.1)) == 1
    classes[:], classes[4, 4] = -1, 2
    assert [p['class'] for p, _ in parcels(write(tmp_path, classes), smallest=0.1)] == [2]


def test_a_foot_is_no_metre(tmp_path: Path) -> None:
    grid = Grid(CRS.from_epsg(2263), make_grid(8, 8).transform, 8, 8)
    path = write(tmp_path, np.zeros((8, 8), int), grid=grid)
    write_parcels(path, tmp_path / 'parcels.gpkg', LABELS, 0)
    with fiona.open(tmp_path / 'parcels.gpkg') as file:
        assert next(iter(file))['properties']['area_ha'] == pytest.approx((80 * 0.3048006) ** 2 / 1e4, rel=1e-4)


def test_a_spiral_through_all_blocks_is_one(tmp_path: Path) -> None:
    classes = np.zeros((33, 33), int)
    classes[1:-1:2] = 1
    classes[2:-1:4, 31] = 1
    classes[4:-1:4, 1] = 1
    found = parcels(write(tmp_path, classes), smallest=0, block=8)
    assert [p['class'] for p, _ in found].count(1) == 1


def test_on_fine_pixels_a_parcel_over_blocks_is_one_polygon(tmp_path: Path) -> None:
    """Where 0.2 m are no binary fraction, sides of blocks that meet differ in the last digit."""
    grid = Grid(CRS.from_epsg(32631), Affine(0.2, 0, 500000.1, 0, -0.2, 5600000.3), 4, 5000)
    ((properties, geometry),) = parcels(write(tmp_path, np.zeros((4, 5000), int), grid=grid), smallest=0)
    assert geometry.geom_type == 'Polygon'
    assert geometry.bounds == pytest.approx(grid.bounds, abs=1e-6)
    assert properties['area_ha'] == pytest.approx(0.08)


def test_without_probabilities(tmp_path: Path) -> None:
    found = parcels(write(tmp_path, patchwork(), 'none'), smallest=0)
    assert {p['probability'] for p, _ in found} == {None}


@pytest.mark.parametrize('block', [1024, 3])
def test_nodata_of_probabilities_is_no_parcel_and_no_probability(tmp_path: Path, block: int) -> None:
    """Other programs write a class where all probabilities are nodata, or nodata as one of them."""
    classes = np.ones((8, 8), int)
    classes[0, 0] = 2
    path = write(tmp_path, classes)
    with rasterio.open(path, 'r+', IGNORE_COG_LAYOUT_BREAK='YES') as file:
        bands = file.read()
        bands[2:, 4:] = 255
        bands[3, 0:2] = 255
        file.write(bands)
    ((properties, geometry),) = parcels(path, smallest=0.02, block=block)
    assert geometry.bounds == (600000, 5600000 - 40, 600080, 5600000)
    assert (properties['class'], properties['probability']) == (1, 0.6)
    assert properties['area_ha'] == pytest.approx(0.32)


def test_degrees_have_no_hectares(tmp_path: Path) -> None:
    grid = Grid(CRS.from_epsg(4326), make_grid(8, 8).transform, 8, 8)
    with pytest.raises(ValueError, match='EPSG:4326'):
        parcels(write(tmp_path, np.zeros((8, 8), int), grid=grid))
