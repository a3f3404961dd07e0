# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""The layout of PASTIS: its files, bands, classes, folds and index."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fiona
from fiona.errors import FionaError
from matplotlib.colors import to_hex
from rasterio.crs import CRS
from torchgeo.datasets import PASTIS

from ..modality import Modality
from .download import download_files
from .figures import S1_COMPOSITES, S2_COMPOSITES, Composite
from .opening import refuse_other_format
from .series import S2_BANDS, S2_FACTS, SPOT_WAVELENGTHS, Merge, backscatter_mean, finite_mean

#: Folds of training, validation and test, by the number of the official split.
FOLDS: dict[int, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    1: ((1, 2, 3), (4,), (5,)),
    2: ((2, 3, 4), (5,), (1,)),
    3: ((3, 4, 5), (1,), (2,)),
    4: ((4, 5, 1), (2,), (3,)),
    5: ((5, 1, 2), (3,), (4,)),
}


@dataclass(frozen=True)
class Source:
    """Where the images of a modality lie below the root, and what their numbers mean.

    Args:
        modality: The modality with all its bands.
        path: The file of a patch, with ``{}`` for its id.
        dtype: How the numbers are stored; what is stored as integers has no NaN.
        dates: Property of the index that holds the dates; None where there are none.
        nodata: The number that says *not measured*.
        merge: What makes several frames of one day one.
        composites: How to show it, the best way first.
    """

    modality: Modality
    path: str
    dtype: str
    dates: str | None = None
    nodata: float | None = None
    merge: Merge = finite_mean
    composites: tuple[Composite, ...] = ()


#: PASTIS-HD as loose files on Hugging Face.
REPOSITORY = 'IGNF/PASTIS-HD'


@dataclass(frozen=True)
class Patch:
    """One entry of the index, a square of 1280 m.

    Args:
        id: Its number, which is part of every file name.
        fold: 1 to 5.
        bounds: xmin, ymin, xmax, ymax of its bounding box, beyond it: the squares are turned.
        corners: Its upper left, upper right and lower left corner.
        properties: All that the index says of it.
    """

    id: int
    fold: int
    bounds: tuple[float, float, float, float]
    corners: tuple[tuple[float, float], ...]
    properties: Mapping[str, Any]


#: Every source, in the order of the modalities.
SOURCES: tuple[Source, ...] = (
    Source(
        Modality('s2', S2_BANDS, 10.0, True, **S2_FACTS),
        'DATA_S2/S2_{}.npy',
        'int16',
        'dates-S2',
        nodata=-10000,
        composites=S2_COMPOSITES,
    ),
    *(
        Source(
            Modality(name, ('VV', 'VH', 'VV-VH'), 10.0, True, 'radar', 'db'),
            f'DATA_{name.upper()}/{name.upper()}_{{}}.npy',
            'float16',
            f'dates-{name.upper()}',
            merge=backscatter_mean,
            composites=(*S1_COMPOSITES, Composite('VV-VH', ('VV-VH',))),
        )
        for name in ('s1a', 's1d')
    ),
    Source(
        Modality('spot', ('R', 'G', 'B'), 1.0, False, 'optical', 'dn', SPOT_WAVELENGTHS[:3]),
        'DATA_SPOT/PASTIS_SPOT6_RVB_1M00_2019/SPOT6_RVB_1M00_2019_{}.tif',
        'uint8',
        composites=(Composite('true colour', ('R', 'G', 'B'), alike=True),),
    ),
)

#: Names of the classes; the last is void, parcels that mostly lie outside, and is ignored.
CLASSES: tuple[str, ...] = (
    'background',
    'meadow',
    'soft winter wheat',
    'corn',
    'winter barley',
    'winter rapeseed',
    'spring barley',
    'sunflower',
    'grapevine',
    'beet',
    'winter triticale',
    'winter durum wheat',
    'fruits, vegetables, flowers',
    'potatoes',
    'leguminous fodder',
    'soybeans',
    'orchard',
    'mixed cereal',
    'sorghum',
    'void',
)
#: Colours of the classes.
COLORS: tuple[str, ...] = tuple(to_hex(PASTIS.cmap(index)) for index in range(len(CLASSES)))


def read_index(path: Path) -> tuple[list[Patch], CRS]:
    """Every patch of an index, ``metadata.geojson``, and the system of its coordinates.

    Args:
        path: The file.

    Returns:
        The patches in the order of the file.

    Raises:
        ValueError: If it is no such index.
    """
    expected = "expected PASTIS's index, features with a geometry and 'ID_PATCH', 'Fold', 'dates-S2'"
    try:
        refuse_other_format(str(path))
        with fiona.open(path) as features:
            crs = CRS.from_wkt(features.crs_wkt)
            found = [(feature.geometry, dict(feature.properties)) for feature in features]
    except (FionaError, OSError, ValueError) as error:
        raise ValueError(f'{path} cannot be read ({error}), {expected}') from error
    patches = []
    for place, (geometry, properties) in enumerate(found):
        try:
            number, fold = int(properties['ID_PATCH']), int(properties['Fold'])
            patch = Patch(number, fold, fiona.bounds(geometry), _corners(geometry), properties)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
            raise ValueError(f'feature {place} of {path} has {sorted(properties)}, {expected}') from error
        if fold not in FOLDS:
            raise ValueError(f'patch {number} of {path} has the fold {fold}, expected one of {list(FOLDS)}')
        patches.append(patch)
    if twice := [number for number, count in Counter(patch.id for patch in patches).items() if count > 1]:
        raise ValueError(f'{path} has {len(twice)} ids several times, such as {twice[0]}, expected each once')
    return patches, crs


def obtain_hd(root: Path, sources: Sequence[Source], target: str, index: str, checksum: bool) -> None:
    """Download what is not there of PASTIS-HD, file by file; the index, which makes a root one, comes last.

    Args:
        root: Where it belongs.
        sources: What to download besides labels and statistics.
        target: The labels of a patch, with ``{}`` for its id.
        index: The index.
        checksum: Whether to check files that are there already.
    """
    if (root / index).is_file() and all(_files(root, source.path) >= _files(root, target) for source in sources):
        return
    images = [source.path.format('*') for source in sources]
    download_files(REPOSITORY, ['NORM_*_patch.json', target.format('*'), *images, index], root, checksum)


def _files(root: Path, path: str) -> int:
    """How many patches have such a file."""
    return sum(1 for _ in root.glob(path.format('*')))


def _corners(geometry: Any) -> tuple[tuple[float, float], ...]:
    """Upper left, upper right and lower left corner of a square that is turned by less than an eighth."""
    rings = geometry['coordinates']
    while not isinstance(rings[0][0], float | int):
        rings = rings[0]
    points = [(float(point[0]), float(point[1])) for point in rings]
    return tuple(min(points, key=lambda point: x * point[0] + y * point[1]) for x, y in ((1, -1), (-1, -1), (1, 1)))
