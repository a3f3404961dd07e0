# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Writing: made-up landscapes into files of PASTIS-HD's layout, whole or not at all."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.transform import Affine
from tqdm import tqdm

from ...utils.atomic import atomic_folder
from ...utils.jsonfile import load_json
from .landscape import GSD, VOID, Indices, draw_landscape
from .rendering import render_s1, render_s2, render_spot

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

#: Version of what is drawn. Whoever changes it re-runs every table of results.
VERSION = 1
#: File of a root that says what was written there.
MANIFEST = 'synthetic.json'
SPOT = 'SPOT6_RVB_1M00_2019'

_START = np.datetime64('2018-09-01')
_SERIES = ('S2', 'S1A', 'S1D')


@dataclass(frozen=True)
class Recipe:
    """What determines the landscapes, bit by bit.

    Args:
        num_tiles: Number of tiles, dealt to the five folds in turn.
        seed: Seed of every draw.
        size: Pixels of 10 m a side, a multiple of 4, so that patches of 40 m fit.
        dates: Least and greatest number of dates of a series.
        version: Version of the generator.

    Raises:
        ValueError: If one of them makes no landscape.
    """

    num_tiles: int
    seed: int
    size: int
    dates: Sequence[int]
    version: int = VERSION

    def __post_init__(self) -> None:
        """Refuse what makes no landscape."""
        if self.num_tiles < 1:
            raise ValueError(f'num_tiles must be at least 1, got {self.num_tiles}')
        if self.seed < 0:
            raise ValueError(f'seed must be 0 or more, got {self.seed}')
        if self.size < 8 or self.size % 4:
            raise ValueError(f'size must be a multiple of 4 pixels of {GSD} m and at least 8, got {self.size}')
        if len(self.dates) != 2 or not 1 <= self.dates[0] <= self.dates[1] <= 60:
            raise ValueError(f'dates must be two numbers from 1 to 60, the least first, got {self.dates!r}')


@dataclass(frozen=True)
class Tile:
    """One tile as the files hold it.

    Args:
        number: ``ID_PATCH``.
        arrays: ``S2`` int16 (T, 10, H, W); ``S1A``, ``S1D`` float16 (T, 3, H, W);
            ``SPOT`` uint8 (3, 10 H, 10 W); ``TARGET`` (3, H, W) uint8, uint16 when
            there are more than 255 parcels; ``ParcelIDs`` int32 (H, W). What the tile lacks is not among them.
        dates: Days since 2018-09-01 of each series.
    """

    number: int
    arrays: dict[str, NDArray[Any]]
    dates: dict[str, Indices]


def draw_tile(recipe: Recipe, index: int) -> Tile:
    """One tile, the same whatever the number of tiles.

    The first tile of each fold has every modality. Of the others some lack SPOT, some
    Sentinel-1 descending.

    Args:
        recipe: What determines it.
        index: Its place, from 0.

    Returns:
        The tile.
    """
    rng = np.random.default_rng([recipe.seed, index])
    land = draw_landscape(rng, recipe.size)
    lacks_spot, lacks_s1d = rng.random(2) < (0.15 if index >= 5 else 0)
    days = {name: _draw_days(rng, recipe.dates, repeat) for name, repeat in zip(_SERIES, (5, 6, 6), strict=True)}
    images: dict[str, NDArray[Any]] = {
        'S2': np.rint(render_s2(rng, land, days['S2'])).clip(-9999, 22000).astype(np.int16),
        'S1A': render_s1(rng, land, days['S1A'], look=0.22).astype(np.float16),
        'S1D': render_s1(rng, land, days['S1D'], look=-0.22).astype(np.float16),
        'SPOT': np.rint(render_spot(rng, land)).astype(np.uint8),
    }
    lacking = [name for name, lacks in (('SPOT', lacks_spot), ('S1D', lacks_s1d)) if lacks]
    ids = land.ids()
    label = land.label[ids]
    parcels = np.where((label > 0) & (label != VOID), ids, 0)
    target = np.stack([label, parcels, label])
    target = target.astype(np.min_scalar_type(target.max()))
    images |= {'TARGET': target, 'ParcelIDs': parcels.astype(np.int32)}
    return Tile(
        number=10000 + index,
        arrays={name: array for name, array in images.items() if name not in lacking},
        dates={name: day for name, day in days.items() if name not in lacking},
    )


def write_landscapes(root: Path, recipe: Recipe) -> None:
    """Write the landscapes below *root*, unless they are there.

    Everything goes to a temporary directory beside *root*, which then takes its name,
    so a root is complete or absent, and of several processes one wins.

    Args:
        root: Directory of the data set.
        recipe: What determines the landscapes.

    Raises:
        ValueError: If *root* holds anything else.
    """
    write_once(root, recipe, _write)


def write_once[R: 'DataclassInstance'](root: Path, recipe: R, write: Callable[[Path, R], None]) -> None:
    """Have a directory written whole or not at all, unless what a recipe determines is there.

    Args:
        root: Directory to write to.
        recipe: A dataclass of plain values, which *write* keeps in :data:`MANIFEST`.
        write: Writes what the recipe determines into an empty directory.

    Raises:
        ValueError: If *root* holds anything else.
    """
    if _holds(root, recipe):
        return
    try:
        with atomic_folder(root) as temporary:
            write(temporary, recipe)
    except OSError:
        if not _holds(root, recipe):
            raise


def write_image(
    path: Path, image: NDArray[Any], transform: Affine, crs: str = 'EPSG:2154', compress: str = 'deflate', **more: Any
) -> None:
    """Bands ``(C, H, W)`` as GeoTIFF, in a directory that is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = image.shape
    profile = {'dtype': image.dtype, 'count': count, 'height': height, 'width': width, 'crs': crs}
    with rasterio.open(path, 'w', 'GTiff', transform=transform, compress=compress, **profile, **more) as target:
        target.write(image)


def is_synthetic(root: Path) -> bool:
    """Whether the dataset in that directory is made up, so that results from it are called so."""
    return (root / MANIFEST).exists()


def _holds(root: Path, recipe: 'DataclassInstance') -> bool:
    """Whether these landscapes are there already; an error if anything else is."""
    manifest = root / MANIFEST
    if not manifest.exists():
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise ValueError(f'{root} holds other files, expected synthetic landscapes, an empty directory or none')
        return False
    asked = json.loads(json.dumps(asdict(recipe)))
    found = load_json(manifest)
    differing = [name for name in asked if found.get(name) != asked[name]]
    if differing:
        there, here = ([f'{name}={values.get(name)}' for name in differing] for values in (found, asked))
        raise ValueError(
            f'{root} holds synthetic landscapes with {", ".join(there)}, expected {", ".join(here)}: '
            'choose another root, or delete this one'
        )
    return True


def _write(root: Path, recipe: Recipe) -> None:
    """Every file of the layout; the manifest comes last."""
    for folder in ('DATA_S2', 'DATA_S1A', 'DATA_S1D', 'ANNOTATIONS', f'DATA_SPOT/PASTIS_{SPOT}'):
        (root / folder).mkdir(parents=True)
    features, moments = [], {name: np.zeros((5, 3, 10 if name == 'S2' else 3)) for name in _SERIES}
    for index in tqdm(range(recipe.num_tiles), desc='Synthetic landscapes', disable=None, leave=False):
        tile = draw_tile(recipe, index)
        transform = _place(index, recipe.size)
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
        features.append(_feature(tile, index, recipe.size, transform))
    for name in _SERIES:
        (root / f'NORM_{name}_patch.json').write_text(json.dumps(_norm(moments[name]), indent=1))
    crs = {'type': 'name', 'properties': {'name': 'urn:ogc:def:crs:EPSG::2154'}}
    index_of_tiles = {'type': 'FeatureCollection', 'name': 'metadata', 'crs': crs, 'features': features}
    (root / 'metadata.geojson').write_text(json.dumps(index_of_tiles))
    (root / MANIFEST).write_text(json.dumps(asdict(recipe), indent=1))


def _feature(tile: Tile, index: int, size: int, transform: Affine) -> dict[str, Any]:
    """A tile's entry of the index, with the properties of PASTIS-R."""
    label, parcels = tile.arrays['TARGET'][0], tile.arrays['ParcelIDs']
    dates = {
        f'dates-{name}': {str(t): int(str(_START + day).replace('-', '')) for t, day in enumerate(tile.dates[name])}
        if name in tile.dates
        else None
        for name in _SERIES
    }
    extent = size * GSD
    corners = ((0, 0), (extent, 0), (extent, extent), (0, extent), (0, 0))
    a, b, x, c, d, y = transform[:6]
    ring = [(a * column + b * row + x, c * column + d * row + y) for column, row in corners]
    properties = {
        'ID_PATCH': tile.number,
        'Fold': index % 5 + 1,
        'TILE': 'synthetic',
        'N_Parcel': len(np.unique(parcels[parcels > 0])),
        'Parcel_Cover': float(np.mean((label > 0) & (label != VOID))),
        **dates,
    }
    geometry = {'type': 'MultiPolygon', 'coordinates': [[ring]]}
    return {'type': 'Feature', 'id': str(tile.number), 'properties': properties, 'geometry': geometry}


def _place(index: int, size: int) -> Affine:
    """Where a tile lies in EPSG:2154: rotated as PASTIS's are, apart from its neighbours, 1 m a pixel."""
    row, column = divmod(index, 40)
    step = 2 * size * GSD
    turn = np.deg2rad(4.4)
    sine, cosine = float(np.sin(turn)), float(np.cos(turn))
    return Affine(cosine, -sine, 700000 + column * step, -sine, -cosine, 6600000 - row * step)


def _norm(moments: NDArray[np.float64]) -> dict[str, Any]:
    """Mean and deviation of each fold; a fold without an image takes those of all."""
    norm = {}
    for fold, (count, total, square) in enumerate(moments, start=1):
        if not count.all():
            count, total, square = moments.sum(0)
        mean = total / count
        norm[f'Fold_{fold}'] = {'mean': mean.tolist(), 'std': np.sqrt(square / count - mean**2).tolist()}
    return norm


def _draw_days(rng: np.random.Generator, dates: Sequence[int], repeat: int) -> Indices:
    """Days of one satellite from September 2018 to October 2019, *repeat* days apart at least."""
    count = int(rng.integers(dates[0], dates[1] + 1))
    cycle = np.arange(rng.integers(repeat), 410, repeat)
    edges = np.linspace(0, len(cycle), count + 1).astype(np.int64)
    return cycle[rng.integers(edges[:-1], edges[1:])]
