# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""PASTIS-R and PASTIS-HD: crop types from Sentinel-2 and Sentinel-1 time series and SPOT images."""

import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import fiona
import numpy as np
import torch
from fiona.errors import FionaError
from matplotlib.colors import to_hex
from numpy.typing import NDArray
from rasterio.crs import CRS
from torch import Tensor
from torchgeo.datasets import PASTIS
from torchgeo.datasets.utils import Path as PathLike
from torchgeo.datasets.utils import Sample

from ..modality import Modality, half_up
from ..utils.plurals import counted
from ..utils.signatures import refuse_unexpected, with_arguments_of
from .base import PublishedDataset, bounds_of, keep_seen, pick, refuse_missing, tensors
from .common.arguments import SPLITS, choose_modalities, leave_out, not_found, select_bands
from .common.integrity import Dates, Expected, Part
from .common.plotting import S1_COMPOSITES, S2_COMPOSITES, Composite, Palette
from .common.series import (
    S2_BANDS,
    S2_FACTS,
    SPOT_WAVELENGTHS,
    Merge,
    backscatter_mean,
    choose_dates,
    finite_mean,
    merge_days,
    parse_dates,
)
from .common.splits import read_splits
from .io.download import download_files, fetch
from .io.files import (
    extract_directory,
    has_values,
    measured,
    occurring,
    open_array,
    read_array,
    read_array_frames,
    read_raster,
)
from .io.links import refuse_outside
from .io.opening import refuse_other_format

#: Folds for training, validation and test, by official split.
FOLDS: dict[int, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    1: ((1, 2, 3), (4,), (5,)),
    2: ((2, 3, 4), (5,), (1,)),
    3: ((3, 4, 5), (1,), (2,)),
    4: ((4, 5, 1), (2,), (3,)),
    5: ((5, 1, 2), (3,), (4,)),
}


@dataclass(frozen=True)
class SensorFiles:
    """Files of a modality and their encoding.

    Args:
        modality: Modality with all its bands.
        path: Path of the file of a patch, relative to the root, with ``{}`` for the id.
        dtype: Data type in the file; integers have no NaN.
        dates: Property of the index with the dates; None if there are none.
        nodata: Nodata value.
        merge: Function that merges the frames of one day.
        composites: Band combinations for plots, in order of preference.
    """

    modality: Modality
    path: str
    dtype: str
    dates: str | None = None
    nodata: float | None = None
    merge: Merge = finite_mean
    composites: tuple[Composite, ...] = ()


#: Repository of PASTIS-HD on Hugging Face, with one file per patch and modality.
REPOSITORY = 'IGNF/PASTIS-HD'


@dataclass(frozen=True)
class PASTISPatch:
    """Patch of 1280 x 1280 m, an entry of the index.

    Args:
        id: Identifier, which is part of file names.
        fold: 1 to 5.
        bounds: xmin, ymin, xmax, ymax of the bounding box, which is larger than the rotated patch.
        corners: Upper left, upper right and lower left corner.
        properties: Properties in the index.
    """

    id: int
    fold: int
    bounds: tuple[float, float, float, float]
    corners: tuple[tuple[float, float], ...]
    properties: Mapping[str, Any]


#: Files of all modalities.
SOURCES: tuple[SensorFiles, ...] = (
    SensorFiles(
        Modality('s2', S2_BANDS, 10.0, True, **S2_FACTS),
        'DATA_S2/S2_{}.npy',
        'int16',
        'dates-S2',
        nodata=-10000,
        composites=S2_COMPOSITES,
    ),
    *(
        SensorFiles(
            Modality(name, ('VV', 'VH', 'VV-VH'), 10.0, True, 'radar', 'db'),
            f'DATA_{name.upper()}/{name.upper()}_{{}}.npy',
            'float16',
            f'dates-{name.upper()}',
            merge=backscatter_mean,
            composites=(*S1_COMPOSITES, Composite('VV-VH', ('VV-VH',))),
        )
        for name in ('s1a', 's1d')
    ),
    SensorFiles(
        Modality('spot', ('R', 'G', 'B'), 1.0, False, 'optical', 'dn', SPOT_WAVELENGTHS[:3]),
        'DATA_SPOT/PASTIS_SPOT6_RVB_1M00_2019/SPOT6_RVB_1M00_2019_{}.tif',
        'uint8',
        composites=(Composite('true colour', ('R', 'G', 'B'), alike=True),),
    ),
)

#: Names of the classes; the last, void, is ignored: parcels that are mostly outside the patch.
CLASSES: tuple[str, ...] = (
    'background', 'meadow', 'soft winter wheat', 'corn', 'winter barley', 'winter rapeseed', 'spring barley',
    'sunflower', 'grapevine', 'beet', 'winter triticale', 'winter durum wheat', 'fruits, vegetables, flowers',
    'potatoes', 'leguminous fodder', 'soybeans', 'orchard', 'mixed cereal', 'sorghum', 'void',
)  # fmt: skip
#: Colours of the classes.
COLORS: tuple[str, ...] = tuple(to_hex(PASTIS.cmap(index)) for index in range(len(CLASSES)))


def read_index(path: Path) -> tuple[list[PASTISPatch], CRS]:
    """Read the patches, in the order of the file, and the CRS of an index, ``metadata.geojson``."""
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
            patch = PASTISPatch(number, fold, fiona.bounds(geometry), _corners(geometry), properties)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
            raise ValueError(f'feature {place} of {path} has {sorted(properties)}, {expected}') from error
        if fold not in FOLDS:
            raise ValueError(f'patch {number} of {path} has the fold {fold}, expected one of {list(FOLDS)}')
        patches.append(patch)
    if twice := [number for number, count in Counter(patch.id for patch in patches).items() if count > 1]:
        raise ValueError(f'{path} has {len(twice)} ids several times, such as {twice[0]}, expected each once')
    return patches, crs


def obtain_hd(
    root: Path, sources: Sequence[SensorFiles], target: str, index: str, checksum: bool, parcels: Sequence[str] = ()
) -> None:
    """Download missing files of PASTIS-HD; the index comes last, because it marks a complete root."""
    paths = [*parcels, *(source.path for source in sources)]
    if (root / index).is_file() and all(_count_files(root, path) >= _count_files(root, target) for path in paths):
        return
    others = [path.format('*') for path in paths]
    download_files(REPOSITORY, ['NORM_*_patch.json', target.format('*'), *others, index], root, checksum)


def _count_files(root: Path, path: str) -> int:
    return sum(1 for _ in root.glob(path.format('*')))


def _corners(geometry: Any) -> tuple[tuple[float, float], ...]:
    """Return the upper left, upper right and lower left corner of a square rotated by less than 45 degrees."""
    rings = geometry['coordinates']
    while not isinstance(rings[0][0], float | int):
        rings = rings[0]
    points = [(float(point[0]), float(point[1])) for point in rings]
    return tuple(min(points, key=lambda point: x * point[0] + y * point[1]) for x, y in ((1, -1), (-1, -1), (1, 1)))


class PASTISMultimodal(PublishedDataset):
    """PASTIS-R and PASTIS-HD datasets: Sentinel-2 and Sentinel-1 time series, SPOT images and crop types.

    ======  ==============================================  =======  ====================
    name    bands                                           GSD      stored as
    ======  ==============================================  =======  ====================
    s2      B02 B03 B04 B05 B06 B07 B08 B8A B11 B12         10 m     reflectance x 10000
    s1a     VV, VH, VV-VH, ascending orbit                  10 m     dB
    s1d     VV, VH, VV-VH, descending orbit                 10 m     dB
    spot    R G B, only in PASTIS-HD                        1 m      0 to 255, no date
    ======  ==============================================  =======  ====================

    A sample has ``image_<name>``, ``dates_<name>`` and ``valid_<name>`` of each available
    modality (see :mod:`torchgeo_omnisat.batch`), in raw units with NaN for nodata; ``mask``
    (H, W) with the classes 0 to 19, of which 19 (void) is ignored; ``label`` (18,), the crops
    that occur; and ``bounds`` (9,). Dates are sorted, and frames of one day are merged. With *instances*,
    ``instances`` (H, W) is the parcel of each pixel, from 1 in every patch, and 0 for background.

    Source: https://huggingface.co/datasets/IGNF/PASTIS-HD, for PASTIS-R Zenodo; licence: Etalab 2.0.
    If you use this dataset in your research, please cite:

    * PASTIS: https://doi.org/10.1109/ICCV48922.2021.00483
    * PASTIS-R: https://doi.org/10.1016/j.isprsjprs.2022.03.012
    * PASTIS-HD: https://doi.org/10.1007/978-3-031-73390-1_24
    """

    url, md5, filename, directory = PASTIS.url, PASTIS.md5, PASTIS.filename, PASTIS.directory
    layout: ClassVar[str] = 'PASTIS'
    index = 'metadata.geojson'
    label_gsd = 10.0
    ignore_index = 19
    sources: ClassVar[tuple[SensorFiles, ...]] = SOURCES
    all_modalities: ClassVar[dict[str, Modality]] = {source.modality.name: source.modality for source in SOURCES}
    target = 'ANNOTATIONS/TARGET_{}.npy'
    parcels = 'INSTANCE_ANNOTATIONS/INSTANCES_{}.npy'
    classes: ClassVar[tuple[str, ...]] = CLASSES
    _missing_instances: ClassVar[str] = '; they are in the folder INSTANCE_ANNOTATIONS of PASTIS and PASTIS-R'

    @with_arguments_of(PublishedDataset, without=('cloud_probability', 'cloud_cover'), is_last=True)
    def __init__(
        self,
        root: PathLike = 'data',
        folds: Sequence[int] = (1, 2, 3, 4, 5),
        modalities: Sequence[str] | None = None,
        bands: Mapping[str, Sequence[str]] | None = None,
        *,
        exclude: Collection[str] = (),
        instances: bool = False,
        splits: PathLike | None = None,
        split: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Read the index and check that files exist; no image is opened.

        *download* gets PASTIS-HD, only the files of *modalities*, if they include ``'spot'``, else PASTIS-R
        (54 GB). *checksum* compares the MD5 of the archive, or of existing files of PASTIS-HD.

        Args:
            root: Directory with ``metadata.geojson``, with a directory ``PASTIS-HD`` or ``PASTIS-R``
                that contains it, or with the archive ``PASTIS-R.zip``.
            folds: Folds to use, of 1 to 5.
            modalities: Names of the modalities to read; None for all that are in *root*.
            bands: Bands to keep by modality, such as ``{'s1a': ('VV', 'VH')}``.
            exclude: Names of samples to exclude (:attr:`ids`, of any fold).
            instances: Whether samples have ``instances`` (H, W), the parcel of each pixel.
            splits: Other splits than the folds: a directory with ``train.csv``, ``val.csv`` and ``test.csv`` as for
                MAESTRO, the path of these files with ``{}`` for the split, or one CSV or GeoJSON file with the
                columns ``id`` and ``split``.
            split: ``'train'``, ``'val'`` or ``'test'`` of *splits*; None for all of them.
            **kwargs: Arguments of all published datasets.

        Raises:
            DatasetNotFoundError: If the dataset is not found and *download* is False.
            FileNotFoundError: If a file is missing.
            ValueError: If an argument or the index is invalid.
        """
        refuse_unexpected(PASTISMultimodal.__init__, kwargs)
        super().__init__(root, **kwargs)
        self.instances = instances
        self.folds = _folds(folds)
        self.path = self._verify(modalities)
        refuse_outside(self.path, allow_outside=self.allow_outside)
        patches, self.crs = read_index(self.path / self.index)
        self.patches = [patch for patch in patches if patch.fold in self.folds]
        if not self.patches:
            held = sorted({patch.fold for patch in patches})
            raise ValueError(f'folds is {self.folds}, of which {self.path / self.index} has no patch; it has {held}')
        known = {str(patch.id) for patch in patches}
        self.split = split
        if splits is not None or split is not None:
            self.patches = self._in_split(splits, split, known)
        self.patches, self.excluded = leave_out(self.patches, self.ids, exclude, known, self.path / self.index)
        self._sources = self._choose(patches, modalities)
        self.composites = {name: source.composites for name, source in self._sources.items()}
        self.palette = Palette(self.classes, COLORS)
        self.modalities = select_bands({name: source.modality for name, source in self._sources.items()}, bands)
        self._check_dates()
        self._check_files()

    def __getitem__(self, index: int) -> Sample:
        """Return the sample of a patch."""
        patch = self.patches[index]
        mask = self._read_mask(patch)
        sample: Sample = {}
        for name in self.modalities:
            sample |= self._read(patch, name, tuple(mask.shape))
        sample['mask'] = mask
        if self.instances:
            sample['instances'] = self._read_instances(patch, tuple(mask.shape))
        sample['label'] = torch.from_numpy(occurring(mask.numpy(), self.ignore_index)[1:])
        sample['bounds'] = bounds_of(patch.bounds, self.label_gsd, sample)
        return sample if self.transforms is None else self.transforms(sample)

    @property
    def positions(self) -> NDArray[np.float64]:
        """Centre of every patch ``(N, 2)`` in metres of :attr:`crs`; no image is read."""
        return np.asarray(self.corners[:, 1:].mean(1), np.float64)

    @property
    def corners(self) -> NDArray[np.float64]:
        """Upper left, upper right and lower left corner of every patch ``(N, 3, 2)`` in :attr:`crs`."""
        return np.array([patch.corners for patch in self.patches])

    def parts(self, index: int) -> Iterator[Part]:
        """Yield the mask and the modalities of a patch, for checks; the index lists its time series."""
        patch = self.patches[index]
        size = self._size(patch)
        mask = Expected(self._file(self.target, patch), (3, *size), 'integer', classes=(0, len(self.classes) - 1))
        yield Part('mask', (mask,), partial(self._read_mask, patch))
        if self.instances:
            parcels = Expected(self._file(self.parcels, patch), size, 'integer')
            yield Part('instances', (parcels,), partial(self._read_instances, patch, size))
        for name, source in self._sources.items():
            modality, series = self.modalities[name], source.dates is not None
            ground = [half_up(side * self.label_gsd / modality.gsd) for side in size]
            shape = (*(None,) * series, len(source.modality.bands), *ground)
            acquired = source.dates is not None and patch.properties.get(source.dates) is not None
            path, crs = self._file(source.path, patch), None if series else 0
            image = Expected(path, shape, source.dtype, series=series, optional=not acquired, crs=crs)
            dates = Dates(self.path / self.index, partial(self._days, patch, source)) if series else None
            yield Part(name, (image,), partial(self._read, patch, name, size), dates, modality)

    def image_files(self, name: str, indices: Iterable[int]) -> list[Path]:
        """Return the files of a modality and some samples, including files that do not exist."""
        return [self._file(self._sources[name].path, self.patches[index]) for index in indices]

    def _in_split(self, splits: PathLike | None, split: str | None, known: Collection[str]) -> list[PASTISPatch]:
        if splits is None or split not in (*SPLITS, None):
            raise ValueError(f'split is {split!r} and splits {splits!r}, expected one of {SPLITS} and a file')
        parts = read_splits(os.fspath(splits))
        ids = {tile for name, tiles in parts.items() for tile in tiles if split in (name, None)}
        if unknown := sorted(set().union(*parts.values()) - set(known)):
            more = f' and {len(unknown) - 1} more' * (len(unknown) > 1)
            raise ValueError(f'{splits} has the tile {unknown[0]!r}{more}, unknown to {self.path / self.index}')
        patches = [patch for patch in self.patches if str(patch.id) in ids]
        if not patches:
            raise ValueError(f'split is {split!r}, of which {splits} has no tile in the folds {self.folds}')
        return patches

    def _size(self, patch: PASTISPatch) -> tuple[int, ...]:
        alike = [source.path for source in self._sources.values() if source.modality.gsd == self.label_gsd]
        sizes: Counter[tuple[int, ...]] = Counter()
        for path in (self.target, *alike):
            with suppress(OSError, ValueError, EOFError):
                sizes[open_array(self._file(path, patch), 'an array').shape[-2:]] += 1
        return sizes.most_common(1)[0][0] if sizes else (0, 0)

    def _file(self, path: str, patch: PASTISPatch) -> Path:
        return self.path / path.format(patch.id)

    def _read_mask(self, patch: PASTISPatch) -> Tensor:
        path = self._file(self.target, patch)
        expected = f'integers (3, H, W), of which the first channel is classes 0 to {len(self.classes) - 1}'
        array = read_array(path, expected)
        if array.ndim != 3 or len(array) != 3 or array.size == 0 or array.dtype.kind == 'f':
            count = int(np.isnan(array).sum())
            raise ValueError(f'{path} holds {array.dtype} {array.shape} with {count} NaN, expected {expected}')
        mask = np.array(array[0], dtype=np.int64)
        if mask.min() < 0 or mask.max() >= len(self.classes):
            raise ValueError(f'{path} holds classes from {mask.min()} to {mask.max()}, expected {expected}')
        return torch.from_numpy(mask)

    def _read_instances(self, patch: PASTISPatch, size: tuple[int, ...]) -> Tensor:
        path, expected = self._file(self.parcels, patch), f'integers {size}, the parcel of each pixel, at least 0'
        array = read_array(path, expected)
        least = int(array.min()) if array.size and array.dtype.kind in 'iu' else 0
        if array.shape != size or array.dtype.kind not in 'iu' or least < 0:
            raise ValueError(f'{path} holds {array.dtype} {array.shape} from {least}, expected {expected}')
        return torch.from_numpy(np.array(array, dtype=np.int64))

    def _read(self, patch: PASTISPatch, name: str, size: tuple[int, ...]) -> Sample:
        source, modality = self._sources[name], self.modalities[name]
        path, bands = self._file(source.path, patch), source.modality.bands
        if self.missing == 'allow' and not path.exists():
            return {}
        days = self._days(patch, source)
        ground = tuple(half_up(side * self.label_gsd / modality.gsd) for side in size)
        shape = (len(days), len(bands), *ground) if modality.temporal else (len(bands), *ground)
        dates = f'{counted(len(days), "date")} in {self.index}, ' if modality.temporal else ''
        expected = f'{source.dtype} {shape}: {dates}{counted(len(bands), "band")}, '
        expected += f'and {modality.gsd} m pixels on the ground of its labels'
        if modality.temporal:
            frames = choose_dates(days, self._span, self.max_dates)
            if len(frames) == 0:
                return {}
            image = read_array_frames(path, expected, shape, frames, source.dtype, source.nodata)
            image, days = merge_days(image, days[frames], source.merge)
        else:
            array, nodata, _, shown = read_raster(path, expected, shape)
            image = measured(array, source.dtype, nodata, path, shown=shown)
        image = pick(modality, bands, image)
        return tensors(modality, image, days, has_values(image.reshape(len(days), -1)))

    def _days(self, patch: PASTISPatch, source: SensorFiles) -> NDArray[np.int64]:
        if source.dates is None:
            return np.zeros(1, dtype=np.int64)
        where = f'{source.dates!r} of patch {patch.id} in {self.path / self.index}'
        value = patch.properties.get(source.dates)
        if value is None:
            raise ValueError(f'{where} is missing, expected the dates of {self._file(source.path, patch)}')
        return parse_dates(value, where)

    def _choose(self, patches: Sequence[PASTISPatch], names: Sequence[str] | None) -> dict[str, SensorFiles]:
        sources = {source.modality.name: source for source in self.sources}
        held = [name for name, source in sources.items() if len(self._patches_without(source, patches)) < len(patches)]
        if not held:
            first = self._file(self.sources[0].path, patches[0])
            raise FileNotFoundError(f'{self.path} holds images of no modality, expected files such as {first}')
        return {name: sources[name] for name in choose_modalities(names, held, sources, self.path)}

    def _patches_without(self, source: SensorFiles, patches: Sequence[PASTISPatch]) -> list[PASTISPatch]:
        directory = (self.path / source.path).parent
        files = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
        return [patch for patch in patches if self._file(source.path, patch).name not in files]

    def _check_files(self) -> None:
        """Raise an error for missing files, unless they are allowed, and exclude patches without any modality."""
        if self.missing == 'check':
            return
        if self.instances:
            self._refuse_missing_instances()
        seen: set[int] = set()
        for source in self._sources.values():
            lost = self._patches_without(source, self.patches)
            if self.missing == 'error':
                refuse_missing([self._file(source.path, patch) for patch in lost], len(self.patches))
            seen |= {p.id for p in self.patches if self._in_span(p, source)} - {p.id for p in lost}
        flags = [patch.id in seen for patch in self.patches]
        self.patches, self.unseen = keep_seen(self.patches, self.ids, flags, self.modalities, self.path)

    def _refuse_missing_instances(self) -> None:
        lost = [path for patch in self.patches if not (path := self._file(self.parcels, patch)).is_file()]
        if lost:
            raise FileNotFoundError(
                f'{lost[0]} does not exist, expected the parcels of each patch for instances=True (missing for '
                f'{len(lost)} of {len(self.patches)}){self._missing_instances}'
            )

    def _in_span(self, patch: PASTISPatch, source: SensorFiles) -> bool:
        """Return whether a modality of a patch has a date in ``date_range``, or the index has no dates of it."""
        if self._span is None or source.dates is None or patch.properties.get(source.dates) is None:
            return True
        return len(choose_dates(self._days(patch, source), self._span)) > 0

    def _check_dates(self) -> None:
        series = [source for source in self._sources.values() if source.dates is not None]
        if series and not any(self._in_span(patch, source) for patch in self.patches for source in series):
            raise ValueError(f'date_range is {self.date_range}, expected one with a date of {self.path / self.index}')

    def _verify(self, names: Sequence[str] | None) -> Path:
        root = Path(self.root).expanduser()
        sources = [source for source in self.sources if source.modality.name in (names or ())]
        if self.download and 'spot' in (names or ()):
            parcels = (self.parcels,) if self.instances else ()
            obtain_hd(root / 'PASTIS-HD', sources, self.target, self.index, self.checksum, parcels)
        found = self._find(root)
        if found is None:
            archive = root / self.filename
            if not archive.exists() and not self.download:
                raise not_found(self, f'Expected {self.index} there or in a directory PASTIS-HD or PASTIS-R of it.')
            fetch(self.url, archive, self.md5, self.checksum)
            extract_directory(archive, self.directory)
            found = self._find(root)
        if found is None:
            raise RuntimeError(f'Dataset found, but corrupted. {root / self.directory} holds no {self.index}')
        return found

    def _find(self, root: Path) -> Path | None:
        return next((p for p in (root, root / 'PASTIS-HD', root / self.directory) if (p / self.index).is_file()), None)


def _folds(folds: Sequence[int]) -> tuple[int, ...]:
    if isinstance(folds, int) or not folds or any(fold not in (1, 2, 3, 4, 5) for fold in folds):
        raise ValueError(f'folds is {folds!r}, expected some of 1, 2, 3, 4, 5 in a tuple')
    return tuple(dict.fromkeys(folds))
