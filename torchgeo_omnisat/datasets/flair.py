# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""FLAIR #1 and #2: land cover from aerial images and Sentinel-2 time series."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.transform import Affine, array_bounds
from torchgeo.datasets.utils import Path as PathLike
from torchgeo.datasets.utils import Sample

from ..modality import Modality
from ..utils.checks import check_choice
from ..utils.plurals import counted
from ..utils.reading import refuse_special
from ..utils.signatures import refuse_unexpected, with_arguments_of
from .base import PublishedDataset, bounds_of, keep_seen, pick, refuse_missing, tensors
from .common.arguments import choose_modalities, leave_out, not_found, select_bands
from .common.integrity import Dates, Expected, Part
from .common.plotting import S2_COMPOSITES, Composite, Palette
from .common.series import S2_BANDS, S2_FACTS, choose_clear, finite_mean, merge_days, parse_day
from .io.download import Archive, obtain
from .io.files import measured, occurring, open_array, read_json, read_raster
from .io.links import refuse_outside
from .io.opening import open_raster

#: Domains for validation, and for the test of FLAIR #2 and of FLAIR #1; all others are for training.
VAL_DOMAINS = ('D004', 'D014', 'D029', 'D031', 'D058', 'D066', 'D067', 'D077')
TEST_DOMAINS = ('D015', 'D022', 'D026', 'D036', 'D061', 'D064', 'D068', 'D069', 'D071', 'D084')
TEST_DOMAINS_1 = ('D012', 'D022', 'D026', 'D064', 'D068', 'D071', 'D075', 'D076', 'D083', 'D085')

#: Directories by content and split. Training and validation share their directories.
_TRAIN = {'labels': 'flair_labels_train', 'aerial': 'flair_aerial_train', 's2': 'flair_sen_train'}
_TEST = {'labels': 'flair_2_labels_test', 'aerial': 'flair_2_aerial_test', 's2': 'flair_2_sen_test'}
DIRECTORIES: dict[str, dict[str, str]] = {'train': _TRAIN, 'val': _TRAIN, 'test': _TEST}
#: Those of the test of FLAIR #1, which has no Sentinel-2.
_TEST_1 = {'labels': 'flair_1_labels_test', 'aerial': 'flair_1_aerial_test'}
#: Files in the directory of a zone, with ``{}`` for the number of a patch.
FILES = {'labels': 'msk/MSK_{}.tif', 'aerial': 'img/IMG_{}.tif', 's2': 'sen/SEN2_*_{{data.npy,masks.npy,products.txt}}'}

#: File with the positions of patches in their super-areas.
CENTROIDS = 'flair-2_centroids_sp_to_patch.json'
#: File with the dates of aerial images; its name differs between releases.
METADATA = 'flair*metadata*.json'

URL = 'https://storage.gra.cloud.ovh.net/v1/AUTH_366279ce616242ebb14161b7991a8461/defi-ia/flair_data_2'
#: Archives by content.
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
ARCHIVES |= {
    name: Archive(f'{URL.replace("data_2", "data_1")}/{name}.zip', f'{name}.zip', name, None)
    for name in _TEST_1.values()
}

#: GSD in metres. Sentinel-2 pixels are treated as 10.24 m, so that ten of them cover the 102.4 m of a patch.
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
#: Published mean and standard deviation of the aerial bands over the training split, in the units of a
#: sample (nDSM in metres).
AERIAL_MEAN = (113.78, 118.08, 109.27, 102.36, 16.70 / 5)
AERIAL_STD = (51.0, 45.0, 44.0, 40.0, 16.0 / 5)

#: Names of the 19 classes, with the values 1 to 19 in files.
CLASSES: tuple[str, ...] = (
    'building', 'pervious surface', 'impervious surface', 'bare soil', 'water', 'coniferous', 'deciduous',
    'brushwood', 'vineyard', 'herbaceous vegetation', 'agricultural land', 'plowed land', 'swimming pool', 'snow',
    'clear cut', 'mixed', 'ligneous', 'greenhouse', 'other',
)  # fmt: skip
#: Colours of the 19 classes.
COLORS: tuple[str, ...] = (
    '#db0e9a', '#938e7b', '#f80c00', '#a97101', '#1553ae', '#194a26', '#46e483', '#f3a60d', '#660082', '#55ff00',
    '#fff30d', '#e4df7c', '#3de6eb', '#ffffff', '#8ab3a0', '#6b714f', '#c5dc42', '#9999ff', '#000000',
)  # fmt: skip


@dataclass(frozen=True, order=True)
class FLAIRPatch:
    """Patch of 102.4 x 102.4 m.

    Args:
        domain: Department and year, such as ``D004_2021``.
        zone: Area in the domain, such as ``Z6_NU``; its patches share a super-area.
        number: Six digits, which are part of file names.
    """

    domain: str
    zone: str
    number: str

    @property
    def id(self) -> str:
        """Unique name, such as ``D004_2021/Z6_NU/IMG_000473``."""
        return f'{self.domain}/{self.zone}/IMG_{self.number}'


def flair_class_names(count: int) -> tuple[str, ...]:
    """Return the names of 13 or 19 classes; the last is ``'other'``."""
    return (*CLASSES[: count - 1], CLASSES[-1])


def split_of(domain: str, release: int = 2) -> str:
    """Return the split of a domain such as ``D004_2021`` in FLAIR #1 or #2."""
    code, test = domain.partition('_')[0], TEST_DOMAINS if release == 2 else TEST_DOMAINS_1
    return 'val' if code in VAL_DOMAINS else 'test' if code in test else 'train'


def find_patches(directory: Path, folder: str, prefix: str) -> set[FLAIRPatch]:
    """Return the patches with a file ``<domain>/<zone>/<folder>/<prefix>_<number>.tif`` in a directory."""
    pattern = re.compile(rf'{prefix}_(\d+)\.tif')
    found = set()
    for place in directory.glob(f'D*_*/*/{folder}'):
        zone = place.parent
        names = (pattern.fullmatch(path.name) for path in place.iterdir())
        found |= {FLAIRPatch(zone.parent.name, zone.name, name[1]) for name in names if name}
    return found


def read_mask(path: Path) -> tuple[NDArray[np.uint8], Affine]:
    """Read classes ``(H, W)``, 1 to 19, and the transform to EPSG:2154; the CRS, often missing, is not read."""
    expected = f'uint8 (1, H, W) of classes 1 to {len(CLASSES)}'
    array, _, transform, _ = read_raster(path, expected)
    if len(array) != 1 or array.dtype != np.uint8:
        raise ValueError(f'{path} holds {array.dtype} {array.shape}, expected {expected}')
    mask = np.ascontiguousarray(array[0], dtype=np.uint8)
    if mask.min() < 1 or mask.max() > len(CLASSES):
        raise ValueError(f'{path} holds classes from {mask.min()} to {mask.max()}, expected {expected}')
    return mask, transform


def read_size(paths: Iterable[Path]) -> tuple[int, int]:
    """Return height and width of the first raster that can be opened; 0 and 0 if none can."""
    for path in paths:
        with suppress(RasterioError), open_raster(str(path)) as source:
            return source.height, source.width
    return 0, 0


def read_aerial_dates(paths: Iterable[Path], patches: Iterable[FLAIRPatch]) -> dict[str, int]:
    """Read the known dates of aerial images, as days since 1970-01-01 by number of the patch."""
    numbers = {patch.number for patch in patches}
    dates = {}
    for path in paths:
        for name, entry in read_json(path, '{"IMG_000000": {"date": "2021-07-09", ...}, ...}').items():
            number = name.removeprefix('IMG_').removesuffix('.tif')
            if number in numbers and isinstance(entry, Mapping) and entry.get('date'):
                dates[number] = parse_day(entry['date'], f'{name} of {path}')
    return dates


@dataclass(frozen=True)
class SuperArea:
    """Files of the Sentinel-2 time series of a zone.

    Args:
        data: ``(T, 10, H, W)`` reflectance x 10000.
        masks: ``(T, 2, H, W)`` probability of snow and of clouds, 0 to 100.
        products: Text file with T product names, one per line.
    """

    data: Path
    masks: Path
    products: Path


def find_super_area(zone: Path, strict: bool = True) -> SuperArea | None:
    """Return the super-area in the directory of a zone; None without files, an error if *strict* and one lacks."""
    found = sorted(zone.glob('sen/SEN2*'))
    if not found:
        return None
    stem = re.sub(r'(data\.npy|masks\.npy|products\.txt)$', '', found[0].name)
    data, masks, products = (found[0].with_name(stem + end) for end in ('data.npy', 'masks.npy', 'products.txt'))
    for path in (data, masks, products):
        if strict and not path.exists():
            raise FileNotFoundError(f'{path} does not exist, expected it beside {found[0].name}')
    return SuperArea(data, masks, products)


def read_centroids(path: Path, patches: Iterable[FLAIRPatch], strict: bool = True) -> dict[str, tuple[int, int]]:
    """Read row and column of patches in their super-areas, by number; *strict* if all must be there."""
    expected = '{"IMG_000000.tif": [row, column], ...} of the pixel in the super-area at a patch\'s centre'
    entries = read_json(path, expected)
    centroids = {}
    for number in (patch.number for patch in patches):
        entry = entries.get(f'IMG_{number}.tif')
        if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(place, int) for place in entry)):
            if strict:
                raise ValueError(f'{path} holds {entry!r} for IMG_{number}.tif, expected {expected}')
            continue
        centroids[number] = (entry[0], entry[1])
    return centroids


def read_products(path: Path) -> NDArray[np.int64]:
    """Read days since 1970-01-01 from the names of Sentinel-2 products, one per line."""
    refuse_special(path, 'the names of products')
    days = []
    for number, line in enumerate(path.read_text(encoding='utf-8', errors='replace').split(), start=1):
        where = f'line {number} of {path}'
        if re.match(r'S2[A-Z]_\w{6}_\d{8}T', line) is None:
            expected = "expected a product name such as 'S2A_MSIL2A_20210119T104351...'"
            raise ValueError(f'{where} holds {line!r}, {expected}')
        days.append(parse_day(f'{line[11:15]}-{line[15:17]}-{line[17:19]}', where))
    return np.array(days, dtype=np.int64)


def open_super_area(area: SuperArea, dates: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Map reflectance x 10000 ``(T, 10, H, W)`` and probabilities of snow and clouds ``(T, 2, H, W)``."""
    arrays: list[NDArray[Any]] = []
    for path, bands in ((area.data, len(MODALITIES['s2'].bands)), (area.masks, 2)):
        size = f'{arrays[0].shape[2]}, {arrays[0].shape[3]}' if arrays else 'H, W'
        expected = f'numbers ({dates}, {bands}, {size}): {counted(dates, "date")} in {area.products.name}'
        array = open_array(path, expected)
        if array.ndim != 4 or array.shape[:2] != (dates, bands) or (arrays and array.shape[2:] != arrays[0].shape[2:]):
            raise ValueError(f'{path} has shape {array.shape}, expected {expected}')
        arrays.append(array)
    return arrays[0], arrays[1]


def window_around(
    centre: Sequence[int], counts: Sequence[int], size: Sequence[int], where: str
) -> tuple[tuple[slice, ...], tuple[tuple[int, int], ...]]:
    """Return the window around a pixel, clipped to the image; raise ValueError if they do not intersect.

    *centre* is row and column; for an even size *counts* of the window, the first pixel after the centre. The result is
    the slice of each axis, and the number of pixels that were clipped before and after it.
    """
    slices, lacks = [], []
    for middle, count, length in zip(centre, counts, size, strict=True):
        first = middle - count // 2
        start, stop = max(first, 0), min(first + count, length)
        if start >= stop:
            raise ValueError(f'{where}, expected a position within its super-area of {tuple(size)} pixels')
        slices.append(slice(start, stop))
        lacks.append((start - first, first + count - stop))
    return tuple(slices), tuple(lacks)


def expect_series(area: SuperArea | None, absent: Path, centroids: Path) -> tuple[tuple[Expected, ...], Dates | None]:
    """Return the expected files and dates of the time series of a patch, or *absent* without super-area."""
    if area is None:
        return (Expected(absent, optional=True),), None
    bands = ((area.data, len(MODALITIES['s2'].bands)), (area.masks, 2))
    arrays = (Expected(path, (None, count, None, None), series=True) for path, count in bands)
    dates = Dates(area.products, partial(read_products, area.products), ordered=False)
    return (*arrays, Expected(area.products), Expected(centroids)), dates


#: Units of the stored nDSM per metre.
_STEPS = 5


class FLAIR(PublishedDataset):
    """FLAIR #1 and #2 datasets: aerial images with heights, Sentinel-2 time series and land cover.

    ======  ==============================================  =======  =========================
    name    bands                                           GSD      units
    ======  ==============================================  =======  =========================
    aerial  R G B NIR, 0 to 255, and nDSM                   0.2 m    nDSM in metres above the
                                                                     ground, at most 51
    s2      B02 B03 B04 B05 B06 B07 B08 B8A B11 B12         10.24 m  reflectance x 10000
    ======  ==============================================  =======  =========================

    A patch covers 102.4 x 102.4 m. Its Sentinel-2 images are the 10 x 10 pixels around its
    centroid in the super-area of its zone. These pixels of 10 m are treated as 10.24 m, so that
    they cover the patch. nDSM is stored in steps of 0.2 m and saturates at 51 m.

    A sample has ``image_<name>``, ``dates_<name>`` and ``valid_<name>`` of each available
    modality (see :mod:`torchgeo_omnisat.batch`), in raw units; ``mask`` (H, W); ``label`` (K,),
    which of the K scored classes occur; and ``bounds`` (9,).

    With 13 classes, as in the benchmark: building, pervious surface, impervious surface, bare
    soil, water, coniferous, deciduous, brushwood, vineyard, herbaceous vegetation, agricultural
    land, plowed land (0 to 11), and other (12), which is ignored. With 19 classes, none is
    ignored, and other is split into swimming pool, snow, clear cut, mixed, ligneous, greenhouse
    and other (12 to 18).

    Dates of aerial images come from ``flair_aerial_metadata.json``, and are 0 without this file.
    Dates of Sentinel-2 come from product names. A date is not valid if at least a fraction
    *cloud_cover* of its pixels in the patch are snow or cloud with a probability of at least
    *cloud_probability* %. Pixels that are 0 in all bands or outside the super-area are nodata.
    Frames of one day are merged, from clear ones only if there are any.

    Domains are split as in FLAIR #2, or as in FLAIR #1 with *release* 1. Both have the same training and validation
    domains. The test of FLAIR #1 has other domains, and aerial images only. Licence: Etalab 2.0.
    If you use this dataset in your research, please cite:

    * FLAIR #1: https://doi.org/10.48550/arXiv.2211.12979
    * FLAIR #2: https://doi.org/10.48550/arXiv.2310.13336
    """

    #: GSD of the mask in metres.
    label_gsd = MODALITIES['aerial'].gsd
    layout: ClassVar[str] = 'FLAIR'
    #: CRS of the transforms in the files; masks have no CRS with an EPSG code.
    crs = CRS.from_epsg(2154)
    splits: ClassVar[tuple[str, ...]] = tuple(DIRECTORIES)
    all_modalities: ClassVar[dict[str, Modality]] = MODALITIES
    composites = COMPOSITES

    @with_arguments_of(PublishedDataset, without=('date_range',), is_last=True)
    def __init__(
        self,
        root: PathLike = 'data',
        split: str = 'train',
        modalities: Sequence[str] | None = None,
        bands: Mapping[str, Sequence[str]] | None = None,
        *,
        num_classes: int = 13,
        release: int = 2,
        exclude: Collection[str] = (),
        **kwargs: Any,
    ) -> None:
        """List the files and read their metadata; no image is opened.

        The archives for training and validation have 50.7 GB (aerial) and 22.8 GB (s2).

        Args:
            root: Directory with ``flair_labels_train``, ``flair_aerial_train`` etc., or their archives.
            split: ``'train'``, ``'val'`` or ``'test'``.
            modalities: ``'aerial'``, ``'s2'`` or both; None for all that are in *root*.
            bands: Bands to keep by modality, such as ``{'aerial': ('R', 'G', 'B')}``.
            num_classes: 13 or 19.
            release: 1 for the test domains of FLAIR #1, in ``flair_1_aerial_test`` and ``flair_1_labels_test``; 2 for
                those of FLAIR #2.
            exclude: Names of samples to exclude (:attr:`ids`, of any split).
            **kwargs: Arguments of all published datasets.

        Raises:
            DatasetNotFoundError: If the split is not found and *download* is False.
            FileNotFoundError: If a file is missing.
            ValueError: If an argument is invalid.
        """
        refuse_unexpected(FLAIR.__init__, kwargs)
        check_choice(
            split=(split, self.splits), num_classes=(num_classes, (13, len(CLASSES))), release=(release, (1, 2))
        )
        choose_modalities(modalities, MODALITIES, MODALITIES, root)
        super().__init__(root, **kwargs)
        self.split, self.num_classes, self.release = split, num_classes, release
        self._places = _TEST_1 if (split, release) == ('test', 1) else DIRECTORIES[split]
        if lacking := [name for name in modalities or () if name not in self._places]:
            raise ValueError(f'modalities has {lacking[0]!r}, expected only aerial: the test of FLAIR #1 has no other')
        self.ignore_index = 12 if num_classes == 13 else None
        self.classes, self.colors = flair_class_names(num_classes), (*COLORS[: num_classes - 1], COLORS[-1])
        self.palette = Palette(self.classes, self.colors)
        self._find_or_download(modalities)
        refuse_outside(self.path, ('flair*',), self.allow_outside)
        self.patches = self._list(exclude)
        wanted = 's2' in self._places and (modalities is None or 's2' in modalities)
        zones = {(patch.domain, patch.zone) for patch in self.patches} if wanted else set()
        place = self.path / self._places.get('s2', '')
        strict = self.missing != 'check'
        self._areas = {(domain, zone): find_super_area(place / domain / zone, strict) for domain, zone in zones}
        self.modalities = select_bands(self._choose(modalities), bands)
        patches = self.patches if 's2' in self.modalities else []
        self._centroids = read_centroids(self.path / CENTROIDS, patches, strict) if patches else {}
        self._days = read_aerial_dates(sorted(self.path.glob(METADATA)), self.patches)

    def __getitem__(self, index: int) -> Sample:
        """Return the sample of a patch."""
        patch = self.patches[index]
        stored, transform = read_mask(self._file('labels', patch))
        readers = {'aerial': self._read_aerial, 's2': self._read_s2}
        sample: Sample = {}
        for name in self.modalities:
            sample |= readers[name](patch, (stored.shape[0], stored.shape[1]))
        classes = self._classes(stored)
        scored = self.num_classes if self.ignore_index is None else self.ignore_index
        sample['mask'] = torch.from_numpy(classes).long()
        sample['label'] = torch.from_numpy(occurring(classes, scored))
        extent = (np.nan,) * 4 if transform.is_identity else array_bounds(*stored.shape, transform)
        sample['bounds'] = bounds_of(extent, self.label_gsd, sample)
        return sample if self.transforms is None else self.transforms(sample)

    def parts(self, index: int) -> Iterator[Part]:
        """Yield the mask and the modalities of a patch, for checks; published masks have no CRS."""
        patch = self.patches[index]
        path, code = self._file('labels', patch), self.crs.to_epsg()
        size = read_size([path, self._file('aerial', patch)])
        mask = Expected(path, (1, *size), 'uint8', classes=(1, len(CLASSES)), crs=code, crs_unused=True)
        yield Part('mask', (mask,), lambda: torch.from_numpy(self._classes(read_mask(path)[0])).long())
        if 'aerial' in self.modalities:
            shape = (len(MODALITIES['aerial'].bands), *size)
            image = Expected(self._file('aerial', patch), shape, 'uint8', optional=True, crs=code)
            yield Part('aerial', (image,), partial(self._read_aerial, patch, size), None, self.modalities['aerial'])
        if 's2' in self.modalities:
            area = self._areas[patch.domain, patch.zone]
            files, dates = expect_series(area, self._file('s2', patch), self.path / CENTROIDS)
            yield Part('s2', files, partial(self._read_s2, patch, size), dates, self.modalities['s2'])

    def image_files(self, name: str, indices: Iterable[int]) -> list[Path]:
        """Return the files of a modality and some samples, including files that do not exist."""
        patches = [self.patches[index] for index in indices]
        if name == 'aerial':
            return [self._file('aerial', patch) for patch in patches]
        areas = {self._areas[patch.domain, patch.zone] for patch in patches} - {None}
        files = [path for area in areas if area for path in (area.data, area.masks, area.products)]
        return [*files, self.path / CENTROIDS]

    def _classes(self, stored: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return class indices (H, W) from the stored values from 1; rare classes are merged."""
        return np.minimum(stored - np.uint8(1), np.uint8(self.num_classes - 1))

    def _read_aerial(self, patch: FLAIRPatch, size: tuple[int, int]) -> Sample:
        path, asked, modality = self._file('aerial', patch), self.modalities['aerial'], MODALITIES['aerial']
        if self.missing == 'allow' and not path.exists():
            return {}
        shape = (len(modality.bands), *size)
        raster = read_raster(path, f'uint8 {shape}: {modality.bands} on the pixels of its labels', shape)
        image = measured(raster.array, 'uint8', None, path, shown=raster.shown)
        image[modality.bands.index('nDSM')] /= _STEPS
        days = np.array([self._days.get(patch.number, 0)], dtype=np.int64)
        valid = np.isfinite(image).any(keepdims=True).reshape(1)
        return tensors(asked, pick(asked, modality.bands, image), days, valid)

    def _read_s2(self, patch: FLAIRPatch, size: tuple[int, int]) -> Sample:
        """Read the part of the super-area's time series that the patch covers."""
        area = self._areas[patch.domain, patch.zone]
        if area is None:
            return {}
        days = read_products(area.products)
        data, masks = open_super_area(area, len(days))
        try:
            counts = [MODALITIES['s2'].pixels(pixels * self.label_gsd) for pixels in size]
        except ValueError as error:
            raise ValueError(f'{self._file("labels", patch)} has {size} pixels: {error}') from None
        if patch.number not in self._centroids:
            raise FileNotFoundError(f'{self.path / CENTROIDS} has no centre of IMG_{patch.number}.tif')
        centre = self._centroids[patch.number]
        where = f'{self.path / CENTROIDS} puts IMG_{patch.number}.tif at {centre}'
        (rows, columns), beyond = window_around(centre, counts, data.shape[2:], where)
        visible = (masks[:, :, rows, columns] < self.cloud_probability).all(1)  # False where it is NaN
        clear = (~visible).mean((1, 2)) < self.cloud_cover
        frames = choose_clear(days, clear, max_dates=self.max_dates)
        if len(frames) == 0:
            return {}
        image = measured(data[frames, :, rows, columns], str(data.dtype), None, area.data)
        image[np.broadcast_to((image == 0).all(1, keepdims=True), image.shape)] = np.nan
        image = np.pad(image, ((0, 0), (0, 0), *beyond), constant_values=np.nan)
        image, merged = merge_days(image, days[frames], finite_mean)
        valid = np.isin(merged, days[clear]) & np.isfinite(image).any((1, 2, 3))
        asked = self.modalities['s2']
        return tensors(asked, pick(asked, MODALITIES['s2'].bands, image), merged, valid)

    def _file(self, what: str, patch: FLAIRPatch) -> Path:
        place = self.path / self._places.get(what, '') / patch.domain / patch.zone
        return place / FILES[what].format(patch.number)

    def _find_or_download(self, modalities: Sequence[str] | None) -> None:
        has = partial(obtain, root=self.path, download=self.download, checksum=self.checksum)
        places = self._places
        names = tuple(name for name in MODALITIES if name in places) if modalities is None else tuple(modalities)
        held = {what: has(ARCHIVES[places[what]]) for what in ('labels', *names)}
        enough = any if modalities is None else all
        if not held['labels'] or not enough(held[name] for name in names):
            lacking = [places[what] for what, there in held.items() if not there]
            raise not_found(self, f'Expected {lacking} there, or archives of them.')
        for name, beside in (('aerial', METADATA), ('s2', CENTROIDS)):
            if held.get(name):
                has(ARCHIVES[beside])

    def _list(self, exclude: Collection[str]) -> list[FLAIRPatch]:
        """Return the patches of the split that have labels or an aerial image, sorted."""
        places = self._places
        labelled = find_patches(self.path / places['labels'], 'msk', 'MSK')
        self._photographed = find_patches(self.path / places['aerial'], 'img', 'IMG')
        found = labelled | self._photographed
        patches = sorted(patch for patch in found if split_of(patch.domain, self.release) == self.split)
        if not patches:
            held = sorted({patch.domain for patch in found})
            raise not_found(self, f'Expected domains of the split {self.split!r} in {places["labels"]}, got {held}.')
        ours = {name for name in exclude if split_of(name, self.release) == self.split}
        known = {patch.id for patch in found}
        patches, self.excluded = leave_out(patches, [patch.id for patch in patches], ours, known, self.path)
        if self.missing != 'check' and (lost := [patch for patch in patches if patch not in labelled]):
            path = self._file('labels', lost[0])
            raise FileNotFoundError(
                f'{path} does not exist, expected labels for each aerial image, of which {len(lost)} have none'
            )
        return patches

    def _choose(self, names: Sequence[str] | None) -> dict[str, Modality]:
        lost = {
            'aerial': [patch for patch in self.patches if patch not in self._photographed],
            's2': [patch for patch in self.patches if not self._areas.get((patch.domain, patch.zone))],
        }
        chosen = [name for name in MODALITIES if len(lost[name]) < len(self.patches)] if names is None else names
        if not chosen:
            raise not_found(self, f'Expected images of {counted(len(self.patches), "patch")} of {self.split!r}.')
        for name in chosen:
            if self.missing == 'error' or len(lost[name]) == len(self.patches):
                refuse_missing([self._file(name, patch) for patch in lost[name]], len(self.patches))
        if self.missing != 'check':
            seen = [any(patch not in lost[name] for name in chosen) for patch in self.patches]
            self.patches, self.unseen = keep_seen(self.patches, self.ids, seen, chosen, self.path)
        return {name: MODALITIES[name] for name in chosen}
