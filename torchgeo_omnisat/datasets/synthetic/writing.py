# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Atomic writing of synthetic landscapes in the file layout of PASTIS-HD."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.transform import Affine
from tqdm import tqdm

from ...utils.atomic import atomic_folder
from ...utils.reading import load_json
from .landscape import GSD, VERSIONS, VOID, Indices, Landscape, draw_landscape
from .rendering import render_s1, render_s2, render_spot

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

#: File with the arguments of the landscapes in a directory.
MANIFEST = 'synthetic.json'
SPOT = 'SPOT6_RVB_1M00_2019'

#: ``ID_PATCH`` of the first tile.
FIRST_ID = 10000

#: Limits of the centres of the regions in degrees, and side of a region in metres.
LATITUDES, LONGITUDES, REGION_SIDE = (36.0, 56.0), (-2.0, 18.0), 64_000.0
#: Delay of the season in days per degree of latitude, and latitude without delay. The delay is that of Hopkins'
#: bioclimatic law (Richardson et al., "Testing Hopkins' Bioclimatic Law with PhenoCam data", 2019,
#: doi:10.1002/aps3.1228).
DAYS_PER_DEGREE, LATITUDE = 4.0, 46.0

_START = np.datetime64('2018-09-01')
_SERIES = ('S2', 'S1A', 'S1D')
_INSTANCES = 'INSTANCE_ANNOTATIONS'


@dataclass(frozen=True)
class Recipe:
    """Arguments that determine the landscapes, which are reproducible to the bit.

    Args:
        num_tiles: Number of tiles, assigned to the five folds in turn.
        seed: Random seed.
        size: Side of a tile in pixels of 10 m, a multiple of 4 for patches of 40 m.
        dates: Minimum and maximum number of dates of a time series.
        version: Version of the landscapes, a key of :data:`~torchgeo_omnisat.datasets.synthetic.landscape.VERSIONS`.
        regions: Number of regions, a multiple of five; 0 for tiles next to each other, with one crop calendar.

    Raises:
        ValueError: If an argument is invalid.
    """

    num_tiles: int
    seed: int
    size: int
    dates: Sequence[int]
    version: int = 1
    regions: int = 0

    def __post_init__(self) -> None:
        if self.num_tiles < 1:
            raise ValueError(f'num_tiles must be at least 1, got {self.num_tiles}')
        if self.seed < 0:
            raise ValueError(f'seed must be 0 or more, got {self.seed}')
        if self.size < 8 or self.size % 4:
            raise ValueError(f'size must be a multiple of 4 pixels of {GSD} m and at least 8, got {self.size}')
        if len(self.dates) != 2 or not 1 <= self.dates[0] <= self.dates[1] <= 60:
            raise ValueError(f'dates must be two numbers from 1 to 60, the least first, got {self.dates!r}')
        if self.version not in VERSIONS:
            raise ValueError(f'version must be one of {list(VERSIONS)}, got {self.version!r}')
        if self.regions < 0 or self.regions % 5:
            raise ValueError(f'regions must be 0 or a multiple of the five folds, got {self.regions}')
        if self.regions and self.num_tiles > (most := self.regions * cells(self.size) ** 2):
            raise ValueError(f'num_tiles must be at most {most} in {self.regions} regions, got {self.num_tiles}')

    @property
    def bytes(self) -> int:
        """Approximate size of the files: time series of two bytes, SPOT without 15 % of the tiles, and labels."""
        series = (10 + 3 + 0.85 * 3) * 2 * (self.dates[0] + self.dates[1]) / 2
        spot = 0.85 * 3 * GSD**2
        return round(self.num_tiles * self.size**2 * (series + spot + 24))


@dataclass(frozen=True)
class Tile:
    """Tile as stored in files.

    Args:
        number: ``ID_PATCH``.
        arrays: ``S2`` int16 (T, 10, H, W); ``S1A``, ``S1D`` float16 (T, 3, H, W);
            ``SPOT`` uint8 (3, 10 H, 10 W); ``TARGET`` (3, H, W) uint8, or uint16 for
            more than 255 parcels; ``ParcelIDs`` int32 (H, W). Missing modalities are left out.
        dates: Days since 2018-09-01 of each time series.
        instances: Parcel of each pixel, int64 (H, W), 0 for background. As in PASTIS, it includes parcels of the
            class void, unlike ``ParcelIDs``.
    """

    number: int
    arrays: dict[str, NDArray[Any]]
    dates: dict[str, Indices]
    instances: Indices


def draw_tile(recipe: Recipe, index: int) -> Tile:
    """Draw a tile, which does not depend on the number of tiles.

    The first tile of each fold has every modality. Some of the others lack SPOT or
    Sentinel-1 descending.

    Args:
        recipe: Arguments of the landscapes.
        index: Index of the tile, from 0.
    """
    difficulty = VERSIONS[recipe.version]
    rng, land = _draw_land(recipe, index)
    lacks_spot, lacks_s1d = rng.random(2) < (0.15 if index >= 5 else 0)
    days = {name: _draw_days(rng, recipe.dates, repeat) for name, repeat in zip(_SERIES, (5, 6, 6), strict=True)}
    seen = {
        name: land.shifted(rng, difficulty.shift) if difficulty.shift else land for name in ('S2', 'S1A', 'S1D', 'SPOT')
    }
    reflectance = render_s2(rng, seen['S2'], days['S2'], difficulty=difficulty)
    images: dict[str, NDArray[Any]] = {
        'S2': np.rint(reflectance).clip(-9999, 22000).astype(np.int16),
        'S1A': render_s1(rng, seen['S1A'], days['S1A'], look=0.22).astype(np.float16),
        'S1D': render_s1(rng, seen['S1D'], days['S1D'], look=-0.22).astype(np.float16),
        'SPOT': np.rint(render_spot(rng, seen['SPOT'])).astype(np.uint8),
    }
    lacking = [name for name, lacks in (('SPOT', lacks_spot), ('S1D', lacks_s1d)) if lacks]
    ids = land.ids()
    label = land.label[ids]
    parcels = np.where((label > 0) & (label != VOID), ids, 0)
    target = np.stack([label, parcels, label])
    target = target.astype(np.min_scalar_type(target.max()))
    images |= {'TARGET': target, 'ParcelIDs': parcels.astype(np.int32)}
    return Tile(
        number=FIRST_ID + index,
        arrays={name: array for name, array in images.items() if name not in lacking},
        dates={name: day for name, day in days.items() if name not in lacking},
        instances=np.where(label > 0, ids, 0),  # roads and verges, the parcels 0 and 1, are background
    )


def draw_instances(recipe: Recipe, index: int, gsd: float) -> Indices:
    """Return the parcel at the centre of each pixel of a tile, (S / gsd, S / gsd), 0 for background.

    Args:
        recipe: Arguments of the landscapes.
        index: Index of the tile, from 0.
        gsd: GSD in metres, of which the side S of the tile is a multiple. Landscapes have a resolution of one metre.
    """
    _, land = _draw_land(recipe, index)
    centres = np.floor((np.arange(round(recipe.size * GSD / gsd)) + 0.5) * gsd).astype(np.int64)
    parcels = land.parcels[centres][:, centres]
    return np.where(land.label[parcels] > 0, parcels, 0)


def _draw_land(recipe: Recipe, index: int) -> tuple[np.random.Generator, Landscape]:
    rng, difficulty = np.random.default_rng([recipe.seed, index]), VERSIONS[recipe.version]
    delay = difficulty.delay * (index % 5 == 4)
    if recipe.regions:
        delay = DAYS_PER_DEGREE * (tile_place(recipe, index)[1] - LATITUDE)
    return rng, draw_landscape(rng, recipe.size, difficulty.frequencies, delay)


def write_landscapes(root: Path, recipe: Recipe) -> None:
    """Write the landscapes to *root* unless they exist.

    They are written to a temporary directory next to *root*, which is then renamed. So *root* is complete or absent,
    even if several processes write it.
    """
    write_once(root, recipe, _write)


def cells(size: int) -> int:
    """Return the number of places of tiles of *size* along the side of a region."""
    return max(2, round(REGION_SIDE / (2 * size * GSD)))


def region_centre(region: int) -> tuple[float, float]:
    """Return longitude and latitude of the centre of a region in degrees.

    The regions are spread evenly over :data:`LATITUDES` and :data:`LONGITUDES` whatever their number, by multiples of
    the golden ratio and of the square root of two modulo 1. Regions of different folds alternate.
    """
    steps = (region + 0.5) * math.sqrt(2) % 1, (region + 0.5) * (math.sqrt(5) - 1) / 2 % 1
    longitude, latitude = (
        low + step * (high - low) for step, (low, high) in zip(steps, (LONGITUDES, LATITUDES), strict=True)
    )
    return longitude, latitude


def tile_place(recipe: Recipe, index: int) -> tuple[float, float]:
    """Return longitude and latitude of the centre of a tile in degrees, rounded to 0.1 m."""
    half = recipe.size * GSD / 2
    x, y = tile_transform(recipe, index) @ (half, half)
    longitude, latitude = _projection().transform(x, y, direction='INVERSE')
    return round(longitude, 6), round(latitude, 6)


def write_once[R: 'DataclassInstance'](root: Path, recipe: R, write: Callable[[Path, R], None]) -> None:
    """Write a directory by *write* atomically, unless it exists with the same arguments *recipe*.

    Raise ValueError if *root* contains other files.
    """
    if _is_written(root, recipe):
        return
    try:
        with atomic_folder(root) as temporary:
            write(temporary, recipe)
    except OSError:
        if not _is_written(root, recipe):
            raise


def write_image(
    path: Path, image: NDArray[Any], transform: Affine, crs: str = 'EPSG:2154', compress: str = 'deflate', **more: Any
) -> None:
    """Write an image ``(C, H, W)`` as GeoTIFF; create its directory if it does not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = image.shape
    profile = {'dtype': image.dtype, 'count': count, 'height': height, 'width': width, 'crs': crs}
    with rasterio.open(path, 'w', 'GTiff', transform=transform, compress=compress, **profile, **more) as target:
        target.write(image)


def is_synthetic(root: Path) -> bool:
    """Return whether the dataset in a directory is synthetic, so that results are reported as such."""
    return (root / MANIFEST).exists()


def _is_written(root: Path, recipe: 'DataclassInstance') -> bool:
    manifest = root / MANIFEST
    if not manifest.exists():
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise ValueError(f'{root} holds other files, expected synthetic landscapes, an empty directory or none')
        return False
    requested, existing = _manifest(recipe), load_json(manifest)
    differing = [name for name in {**requested, **existing} if existing.get(name) != requested.get(name)]
    if differing:
        there, here = ([f'{name}={values.get(name)}' for name in differing] for values in (existing, requested))
        raise ValueError(
            f'{root} holds synthetic landscapes with {", ".join(there)}, expected {", ".join(here)}: '
            'choose another root, or delete this one'
        )
    return True


def _write(root: Path, recipe: Recipe) -> None:
    """Write all files of the layout; the manifest comes last."""
    for folder in (*(f'DATA_{name}' for name in _SERIES), 'ANNOTATIONS', _INSTANCES, f'DATA_SPOT/PASTIS_{SPOT}'):
        (root / folder).mkdir(parents=True)
    features, moments = [], {name: np.zeros((5, 3, 10 if name == 'S2' else 3)) for name in _SERIES}
    for index in tqdm(range(recipe.num_tiles), desc='Synthetic landscapes', disable=None, leave=False):
        tile = draw_tile(recipe, index)
        transform = tile_transform(recipe, index)
        for name, array in tile.arrays.items():
            if name == 'SPOT':
                path = root / f'DATA_SPOT/PASTIS_{SPOT}/{SPOT}_{tile.number}.tif'
                write_image(path, array, transform, photometric='RGB', compress='none')
            else:
                folder = f'DATA_{name}' if name in _SERIES else 'ANNOTATIONS'
                np.save(root / folder / f'{name}_{tile.number}.npy', array)
            if name in _SERIES:
                flat = array.astype(np.float64)
                moments[name][index % 5] += [(flat**power).sum((0, 2, 3)) for power in range(3)]
        np.save(root / _INSTANCES / f'INSTANCES_{tile.number}.npy', tile.instances)
        features.append(_feature(tile, index, recipe, transform))
    for name in _SERIES:
        (root / f'NORM_{name}_patch.json').write_text(json.dumps(_statistics(moments[name]), indent=1))
    crs = {'type': 'name', 'properties': {'name': 'urn:ogc:def:crs:EPSG::2154'}}
    index_of_tiles = {'type': 'FeatureCollection', 'name': 'metadata', 'crs': crs, 'features': features}
    (root / 'metadata.geojson').write_text(json.dumps(index_of_tiles))
    (root / MANIFEST).write_text(json.dumps(_manifest(recipe), indent=1))


def _manifest(recipe: 'DataclassInstance') -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(json.dumps(asdict(recipe)))
    return {name: value for name, value in facts.items() if name != 'regions' or value}


def _feature(tile: Tile, index: int, recipe: Recipe, transform: Affine) -> dict[str, Any]:
    """Return the GeoJSON feature of a tile, with the properties of PASTIS-R."""
    label, parcels = tile.arrays['TARGET'][0], tile.arrays['ParcelIDs']
    dates = {
        f'dates-{name}': {str(t): int(str(_START + day).replace('-', '')) for t, day in enumerate(tile.dates[name])}
        if name in tile.dates
        else None
        for name in _SERIES
    }
    extent = recipe.size * GSD
    corners = ((0, 0), (extent, 0), (extent, extent), (0, extent), (0, 0))
    a, b, x, c, d, y = transform[:6]
    ring = [(a * column + b * row + x, c * column + d * row + y) for column, row in corners]
    properties = {
        'ID_PATCH': tile.number,
        'Fold': index % 5 + 1,
        'TILE': f'region {index % recipe.regions}' if recipe.regions else 'synthetic',
        'N_Parcel': len(np.unique(parcels[parcels > 0])),
        'Parcel_Cover': float(np.mean((label > 0) & (label != VOID))),
        **dates,
    }
    geometry = {'type': 'MultiPolygon', 'coordinates': [[ring]]}
    return {'type': 'Feature', 'id': str(tile.number), 'properties': properties, 'geometry': geometry}


def tile_transform(recipe: Recipe, index: int) -> Affine:
    """Return the transform of a tile in EPSG:2154 at 1 m, rotated as in PASTIS and apart from its neighbours."""
    row, column = divmod(index, 40)
    left, top = 700000.0, 6600000.0
    if recipe.regions:
        member, region = divmod(index, recipe.regions)
        side = cells(recipe.size)
        row, column = divmod(int(_order_of_cells(recipe.seed, region, side)[member]), side)
        x, y = _projection().transform(*region_centre(region))
        left, top = round(x) - REGION_SIDE / 2, round(y) + REGION_SIDE / 2
    step = 2 * recipe.size * GSD
    turn = np.deg2rad(4.4)
    sine, cosine = float(np.sin(turn)), float(np.cos(turn))
    return Affine(cosine, -sine, left + column * step, -sine, -cosine, top - row * step)


@lru_cache(maxsize=128)
def _order_of_cells(seed: int, region: int, side: int) -> Indices:
    """Return the order in which the places of a region are used, which differs between seeds."""
    return np.random.default_rng([seed, region, side]).permutation(side**2)


@lru_cache(maxsize=1)
def _projection() -> Transformer:
    """Return the transformer from longitude and latitude to the CRS of the tiles."""
    return Transformer.from_crs('EPSG:4326', 'EPSG:2154', always_xy=True)


def _statistics(moments: NDArray[np.float64]) -> dict[str, Any]:
    """Return mean and standard deviation of each fold; those of all folds for a fold without images."""
    norm = {}
    for fold, (count, total, square) in enumerate(moments, start=1):
        if not count.all():
            count, total, square = moments.sum(0)
        mean = total / count
        norm[f'Fold_{fold}'] = {'mean': mean.tolist(), 'std': np.sqrt(square / count - mean**2).tolist()}
    return norm


def _draw_days(rng: np.random.Generator, dates: Sequence[int], repeat: int) -> Indices:
    """Draw acquisition dates from September 2018 to October 2019, at least *repeat* days apart."""
    count = int(rng.integers(dates[0], dates[1] + 1))
    cycle = np.arange(rng.integers(repeat), 410, repeat)
    edges = np.linspace(0, len(cycle), count + 1).astype(np.int64)
    return cycle[rng.integers(edges[:-1], edges[1:])]
