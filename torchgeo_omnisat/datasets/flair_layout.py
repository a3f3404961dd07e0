# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""The layout of FLAIR #1 and #2: archives, directories, bands, classes, domains and side files."""

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.transform import Affine

from ..modality import Modality
from .download import Archive
from .figures import S2_COMPOSITES, Composite
from .files import read_json, read_raster
from .opening import open_raster
from .series import S2_BANDS, S2_FACTS, parse_day

#: Domains of validation and of FLAIR #2's test; the others train.
VAL_DOMAINS = ('D004', 'D014', 'D029', 'D031', 'D058', 'D066', 'D067', 'D077')
TEST_DOMAINS = ('D015', 'D022', 'D026', 'D036', 'D061', 'D064', 'D068', 'D069', 'D071', 'D084')

#: Directories by what they hold, for each split. Training and validation share theirs.
_TRAIN = {'labels': 'flair_labels_train', 'aerial': 'flair_aerial_train', 's2': 'flair_sen_train'}
_TEST = {'labels': 'flair_2_labels_test', 'aerial': 'flair_2_aerial_test', 's2': 'flair_2_sen_test'}
DIRECTORIES: dict[str, dict[str, str]] = {'train': _TRAIN, 'val': _TRAIN, 'test': _TEST}
#: Files in the directory of a zone, by the number of a patch.
FILES = {
    'labels': 'msk/MSK_{}.tif',
    'aerial': 'img/IMG_{}.tif',
    's2': 'sen/SEN2_*_{{data.npy,masks.npy,products.txt}}',
}

#: Where a patch lies in its super-area.
CENTROIDS = 'flair-2_centroids_sp_to_patch.json'
#: When a patch was photographed; the name differs between releases.
METADATA = 'flair*metadata*.json'

URL = 'https://storage.gra.cloud.ovh.net/v1/AUTH_366279ce616242ebb14161b7991a8461/defi-ia/flair_data_2'
#: Archives by what they hold.
ARCHIVES: dict[str, Archive] = {
    holds: Archive(f'{URL}/{name}.zip', f'{name}.zip', holds, md5)
    for holds, name, md5 in (
        ('flair_labels_train', 'flair_labels_train', '80d3cd2ee117a61128faa08cbb842c0c'),
        ('flair_aerial_train', 'flair_aerial_train', '0f575b360800f58add19c08f05e18429'),
        ('flair_sen_train', 'flair_sen_train', '56fbbd465726ea4dfeea02734edd7cc5'),
        ('flair_2_labels_test', 'flair_2_labels_test', '394a769ffcb4a783335eecd3f8baef57'),
        ('flair_2_aerial_test', 'flair_2_aerial_test', 'a647e0ba7e5345b28c48d7887ee79888'),
        ('flair_2_sen_test', 'flair_2_sen_test', 'aae8649dbe457620a76269d915d07624'),
        (CENTROIDS, 'flair_2_centroids_sp_to_patch', 'f8ba3b176197c254b6c165c97e93c759'),
        (METADATA, 'flair_2_aerial_metadata', None),
    )
}

#: Sides of the pixels, in metres. Ten Sentinel-2 pixels are taken for the 102.4 m of a patch.
AERIAL_GSD, S2_GSD = 0.2, 10.24
MODALITIES: dict[str, Modality] = {
    'aerial': Modality('aerial', ('R', 'G', 'B', 'NIR', 'nDSM'), AERIAL_GSD, False, 'optical', 'dn'),
    's2': Modality('s2', S2_BANDS, S2_GSD, True, **S2_FACTS),
}
COMPOSITES: dict[str, tuple[Composite, ...]] = {
    'aerial': (
        Composite('true colour', ('R', 'G', 'B'), alike=True),
        Composite('colour infrared', ('NIR', 'R', 'G')),
        *(Composite(band, (band,)) for band in MODALITIES['aerial'].bands),
    ),
    's2': S2_COMPOSITES,
}
#: Published mean of the aerial bands over the training split, and deviation of the pixels,
#: in the units of a sample (nDSM in metres).
AERIAL_MEAN = (113.78, 118.08, 109.27, 102.36, 16.70 / 5)
AERIAL_STD = (51.0, 45.0, 44.0, 40.0, 16.0 / 5)

#: Names of the 19 classes, 1 to 19 on disk.
CLASSES: tuple[str, ...] = (
    'building',
    'pervious surface',
    'impervious surface',
    'bare soil',
    'water',
    'coniferous',
    'deciduous',
    'brushwood',
    'vineyard',
    'herbaceous vegetation',
    'agricultural land',
    'plowed land',
    'swimming pool',
    'snow',
    'clear cut',
    'mixed',
    'ligneous',
    'greenhouse',
    'other',
)
#: Colours of the 19 classes.
COLORS: tuple[str, ...] = (
    '#db0e9a', '#938e7b', '#f80c00', '#a97101', '#1553ae', '#194a26', '#46e483', '#f3a60d', '#660082', '#55ff00',
    '#fff30d', '#e4df7c', '#3de6eb', '#ffffff', '#8ab3a0', '#6b714f', '#c5dc42', '#9999ff', '#000000',
)  # fmt: skip


@dataclass(frozen=True, order=True)
class Patch:
    """One aerial image, 102.4 m a side.

    Args:
        domain: A department and a year, such as ``D004_2021``.
        zone: An area of it, such as ``Z6_NU``; all its patches share a super-area.
        number: Six digits, which are part of the file names.
    """

    domain: str
    zone: str
    number: str

    @property
    def id(self) -> str:
        """Its name among all patches, such as ``D004_2021/Z6_NU/IMG_000473``."""
        return f'{self.domain}/{self.zone}/IMG_{self.number}'


def class_names(count: int) -> tuple[str, ...]:
    """Names of 13 or 19 classes; the last is ``'other'``."""
    return (*CLASSES[: count - 1], CLASSES[-1])


def split_of(domain: str) -> str:
    """The split that a domain such as ``D004_2021`` belongs to."""
    code = domain.partition('_')[0]
    return 'val' if code in VAL_DOMAINS else 'test' if code in TEST_DOMAINS else 'train'


def find_patches(directory: Path, folder: str, prefix: str) -> set[Patch]:
    """Patches of which ``<domain>/<zone>/<folder>/<prefix>_<number>.tif`` exists in a directory."""
    pattern = re.compile(rf'{prefix}_(\d+)\.tif')
    found = set()
    for place in directory.glob(f'D*_*/*/{folder}'):
        zone = place.parent
        names = (pattern.fullmatch(path.name) for path in place.iterdir())
        found |= {Patch(zone.parent.name, zone.name, name[1]) for name in names if name}
    return found


def read_mask(path: Path) -> tuple[NDArray[np.uint8], Affine]:
    """Classes ``(H, W)``, 1 to 19, and where they lie. The file's own CRS, often none, is not read.

    Args:
        path: The file.

    Returns:
        The classes, and the transform from pixels to metres of EPSG:2154.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is truncated, no such raster, or holds other numbers.
    """
    expected = f'uint8 (1, H, W) of classes 1 to {len(CLASSES)}'
    array, _, transform, _ = read_raster(path, expected)
    if len(array) != 1 or array.dtype != np.uint8:
        raise ValueError(f'{path} holds {array.dtype} {array.shape}, expected {expected}')
    mask = np.ascontiguousarray(array[0], dtype=np.uint8)
    if mask.min() < 1 or mask.max() > len(CLASSES):
        raise ValueError(f'{path} holds classes from {mask.min()} to {mask.max()}, expected {expected}')
    return mask, transform


def read_size(paths: Iterable[Path]) -> tuple[int, int]:
    """Height and width of the first raster that can be opened; 0 and 0 if none can."""
    for path in paths:
        with suppress(RasterioError), open_raster(str(path)) as source:
            return source.height, source.width
    return 0, 0


def read_aerial_dates(paths: Iterable[Path], patches: Iterable[Patch]) -> dict[str, int]:
    """Days since 1970-01-01 on which patches were photographed, by number, as far as that is known.

    Raises:
        ValueError: If a file is damaged or holds no date of the calendar.
    """
    numbers = {patch.number for patch in patches}
    dates = {}
    for path in paths:
        for name, entry in read_json(path, '{"IMG_000000": {"date": "2021-07-09", ...}, ...}').items():
            number = name.removeprefix('IMG_').removesuffix('.tif')
            if number in numbers and isinstance(entry, Mapping) and entry.get('date'):
                dates[number] = parse_day(entry['date'], f'{name} of {path}')
    return dates
