# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""FLAIR-HUB: TorchGeo's dataset with dates, cloud masks and the keys of multimodal samples."""

import copy
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import fiona
import numpy as np
import torch
from einops import EinopsError
from fiona.errors import FionaError
from matplotlib.colors import to_hex
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from torchgeo.datasets import FLAIRHUB
from torchgeo.datasets.flair import TASKS, AvailableBands
from torchgeo.datasets.utils import Path as PathLike
from torchgeo.datasets.utils import Sample

from ..modality import Modality, half_up
from ..utils.checks import check_choice
from ..utils.plurals import counted
from ..utils.signatures import refuse_unexpected, with_arguments_of
from ..utils.tensors.observed import MAX_RAW
from .base import MultimodalDataset, PublishedDataset, bounds_of, keep_seen, pick, refuse_missing, tensors
from .common.arguments import SPLITS, choose_modalities, leave_out, not_found, select_bands
from .common.integrity import Dates, Expected, Part
from .common.plotting import S1_COMPOSITES, S2_COMPOSITES, Composite, Palette
from .common.series import (
    S2_BANDS,
    S2_FACTS,
    SPOT_WAVELENGTHS,
    choose_clear,
    decibel_mean,
    finite_mean,
    merge_days,
    parse_dates,
)
from .io.files import occurring
from .io.links import refuse_outside
from .io.opening import open_raster, refuse_other_format, sidecars

#: GSD of Sentinel-1 and -2 in metres, so that ten pixels cover the 102.4 m of a patch.
GSD = 10.24
#: Columns of the table ``GLOBAL_ALL_MTD_SPLIT.gpkg``, TorchGeo's default first.
SPLIT_COLUMNS = ('split_1', 'split_2', 'split_3', 'split_4', 'split_5', 'split_flairchallenge', 'split_toy')
#: Types of labels: land cover, and crops in three levels of detail.
TYPES = tuple(TASKS)
#: Product with the probabilities of snow and clouds for ``'s2'``.
CLOUDS: AvailableBands = 'SENTINEL2_MSK-SC'


#: Paths of the files of a patch by product, and its name as ``patch_id``.
type Files = Mapping[str, str | Path]


@dataclass(frozen=True)
class Product:
    """TorchGeo's name of a modality, and the table of its dates.

    Args:
        modality: Modality with all its bands.
        name: Name in TorchGeo.
        table: Name of the table of dates; None if there is none.
    """

    modality: Modality
    name: AvailableBands
    table: str | None = None

    @property
    def radar(self) -> bool:
        """Whether it is Sentinel-1."""
        return self.modality.kind == 'radar'


_RGBI = ('R', 'G', 'B', 'NIR')
#: Products by modality.
PRODUCTS: dict[str, Product] = {
    product.modality.name: product
    for product in (
        Product(Modality('aerial', _RGBI, 0.2, False, 'optical', 'dn'), 'AERIAL_RGBI', 'AERIAL'),
        Product(Modality('spot', _RGBI, 1.6, False, 'optical', 'dn', SPOT_WAVELENGTHS), 'SPOT_RGBI', 'SPOT'),
        Product(Modality('dem', ('DSM', 'DTM'), 0.2, False, 'elevation', 'metres'), 'DEM_ELEV'),
        Product(Modality('aerial_rlt', ('PAN',), 0.4, False, 'optical', 'dn'), 'AERIAL-RLT_PAN'),
        Product(Modality('s2', S2_BANDS, GSD, True, **S2_FACTS), 'SENTINEL2_TS', 'SENTINEL2'),
        Product(Modality('s1a', ('VV', 'VH'), GSD, True, 'radar', 'db'), 'SENTINEL1-ASC_TS', 'SENTINEL1-ASC'),
        Product(Modality('s1d', ('VV', 'VH'), GSD, True, 'radar', 'db'), 'SENTINEL1-DESC_TS', 'SENTINEL1-DESC'),
    )
}
MODALITIES: dict[str, Modality] = {name: product.modality for name, product in PRODUCTS.items()}

_COLOURS = (Composite('true colour', ('R', 'G', 'B'), alike=True), Composite('colour infrared', ('NIR', 'R', 'G')))
COMPOSITES: dict[str, tuple[Composite, ...]] = {
    'aerial': (*_COLOURS, *(Composite(band, (band,)) for band in _RGBI)),
    'spot': (*_COLOURS, *(Composite(band, (band,)) for band in _RGBI)),
    'dem': (Composite('surface', ('DSM',)), Composite('terrain', ('DTM',))),
    'aerial_rlt': (Composite('panchromatic', ('PAN',)),),
    's2': S2_COMPOSITES,
    's1a': S1_COMPOSITES,
    's1d': S1_COMPOSITES,
}

#: EPSG code of every raster.
_CRS = 2154
#: Products stored as uint8.
_BYTES = ('AERIAL_RGBI', 'AERIAL-RLT_PAN')
#: Number of channels of the label file and index of the channel, by type of labels.
_CHANNELS = {'land_cover': (1, 0), 'crop_type': (3, 0), 'crop_type_2': (3, 1), 'crop_type_3': (3, 2)}


def palette(dataset_type: str) -> Palette:
    """Return TorchGeo's names and colours of the classes."""
    names, cmap = TASKS[dataset_type]['classes'], TASKS[dataset_type]['cmap']
    return Palette(names, [to_hex(cmap(index)) for index in range(len(names))])


def ignored(dataset_type: str) -> int | None:
    """Return the class that is ignored in training and metrics, ``'undefined'``; None if there is none."""
    names = TASKS[dataset_type]['classes']
    return names.index('undefined') if 'undefined' in names else None


def label_product(dataset_type: str) -> str:
    """Return TorchGeo's name of the product with the labels."""
    return 'AERIAL_LABEL-COSIA' if dataset_type == 'land_cover' else 'ALL_LABEL-LPIS'


def has_product(root: Path, domain: str, product: str) -> bool:
    """Return whether a root has a product of a domain such as ``'D004-2021'``, extracted or as an archive."""
    if product == PRODUCTS['aerial_rlt'].name:
        domain = f'{domain[:-4]}195X'
    return any((root / f'{domain}_{product}{end}').exists() for end in ('', '.zip'))


def choose_domains(
    root: Path, asked: Sequence[str] | None, known: Mapping[str, Sequence[str]], labels: str, download: bool
) -> dict[str, list[str]]:
    """Return the requested years by domain, of all *known* ones.

    *asked* are domains and years, such as ``'D004-2021'``. It defaults to those with labels in *root*, or to all if
    there are none or *download* is True.
    """
    every = [f'{domain}-{year}' for domain, years in known.items() for year in years]
    if asked is not None and (isinstance(asked, str) or not asked or not set(asked) <= set(every)):
        raise ValueError(f"domains is {asked!r}, expected some of FLAIR-HUB's, such as {tuple(every[:2])}")
    held = [] if download else [domain for domain in every if has_product(root, domain, labels)]
    years: dict[str, list[str]] = {}
    for name in asked or held or every:
        domain, year = name.split('-')
        years.setdefault(domain, []).append(year)
    return years


def damaged(files: Files, products: Iterable[str]) -> str | Path:
    """Return the first file that is unreadable or a time series with an incomplete frame, else the first file."""
    bands = {product.name: len(product.modality.bands) for product in PRODUCTS.values() if product.modality.temporal}
    paths = {files[product]: bands.get(cast(Any, product), 2 if product == CLOUDS else 1) for product in products}
    for path, count in paths.items():
        try:
            with open_raster(str(path)) as source:
                if len(source.read()) % count:
                    return path
        except RasterioError:
            return path
    return next(iter(paths))


def measured_of(
    files: Files, product: Product, image: NDArray[np.float32], size: Sequence[int], decibels: bool
) -> NDArray[np.float32]:
    """Return an image ``(..., C, H, W)`` with NaN for nodata; radar stays in linear power, unless in *decibels*.

    Raise ValueError if it does not cover the extent of the labels of *size* pixels, or power is negative.
    """
    path, modality = files[product.name], product.modality
    gsd = MODALITIES['aerial'].gsd
    shape = (len(modality.bands), *(modality.pixels(round(side * gsd, 6)) for side in size))
    if image.shape[-3:] != shape:
        raise ValueError(f'{path} holds {image.shape[-3:]}, expected {shape}: the extent of its labels')
    power = product.radar and not decibels
    if power and (image < 0).any():
        raise ValueError(f'{path} holds numbers below 0, expected power; decibels=True takes them for dB')
    with sidecars(), open_raster(str(path)) as source:
        nodata = source.nodata
    unknown = ~(np.abs(image) <= MAX_RAW)
    if nodata is not None:
        unknown |= image == nodata
    if power:
        unknown |= image == 0
    elif modality.temporal:
        unknown |= (image == 0).all(1, keepdims=True)
    return np.where(unknown, np.float32(np.nan), image)


def size_of(files: Files) -> tuple[int, int]:
    """Return the size of the labels from the first raster of a patch that can be opened; 0 and 0 if none can."""
    fine = MODALITIES['aerial'].gsd
    sizes = {'mask': fine, CLOUDS: GSD} | {product.name: product.modality.gsd for product in PRODUCTS.values()}
    for name, gsd in sizes.items():
        if name in files:
            with suppress(RasterioError), open_raster(str(files[name])) as source:
                return half_up(source.height * gsd / fine), half_up(source.width * gsd / fine)
    return 0, 0


def expect(
    files: Files, product: Product | None, size: Sequence[int], dataset_type: str, dates: Dates | None = None
) -> tuple[Expected, ...]:
    """Return the expected content of the files of a product, or of the labels (None), the images first."""
    if product is None:
        channels, channel = _CHANNELS[dataset_type]
        classes = (0, len(palette(dataset_type).labels) - 1)
        shape = (channels, *size)
        path = Path(files['mask'])
        return (Expected(path, shape, 'integer', classes=classes, channel=channel, crs=_CRS, crs_unused=True),)
    modality = product.modality
    ground = [half_up(side * MODALITIES['aerial'].gsd / modality.gsd) for side in size]
    bands = [(product.name, len(modality.bands))] + [(CLOUDS, 2)] * (modality.name == 's2')
    series = modality.temporal
    images = [
        Expected(
            Path(files[name]),
            (*(None,) * series, count, *ground),
            'uint8' if name in _BYTES else 'number',
            series=series,
            optional=True,
            crs=_CRS,
        )
        for name, count in bands
    ]
    return (*images, *([Expected(dates.path)] if series and dates is not None else []))


def _days(days: Any, fault: Exception | None) -> NDArray[np.int64]:
    if fault is not None:
        raise fault
    return np.atleast_1d(np.asarray(0 if days is None else days, dtype=np.int64))


def lacking_labels(
    root: Path,
    patches: Iterable[str],
    domains: Collection[str],
    found: Sequence[Mapping[str, str | Path]],
    labels: str,
    products: Sequence[str],
) -> list[dict[str, str | Path]]:
    """Return the files of *patches* of *domains* that have images of *products* and no labels."""
    known = {str(files['patch_id']) for files in found}
    lacking = []
    for patch in patches:
        if patch in known or patch.partition('_')[0] not in domains:
            continue
        files: dict[str, str | Path] = {'mask': _path(root, patch, labels), 'patch_id': patch}
        files |= {product: _path(root, patch, product) for product in products}
        if any(Path(files[product]).exists() for product in products):
            lacking.append(files)
    return lacking


def _path(root: Path, patch: str, product: str) -> Path:
    domain, area, place = patch.split('_')
    domain = f'{domain[:-4]}195X' if product == PRODUCTS['aerial_rlt'].name else domain
    return root / f'{domain}_{product}' / area / f'{domain}_{product}_{area}_{place}.tif'


#: Errors of single rows, by area or patch, which are reported later.
type Faults = dict[str, Exception]


def area_of(patch: str) -> str:
    """Return domain and area of a patch: ``'D004-2021_AA-S1-32'`` for ``'D004-2021_AA-S1-32_0-0'``."""
    return '_'.join(patch.split('_')[:2])


def key_of(patch: str, modality: Modality) -> str:
    """Return the key of the days of a modality: the area of its time series, or the patch of an image."""
    return area_of(patch) if modality.temporal else patch


def table_of(root: Path, name: str) -> Path:
    """Return the path of the table with the dates of a product."""
    return root / 'GLOBAL_ALL_MTD' / f'GLOBAL_{name}_MTD_DATES.gpkg'


def read_tables(
    root: Path, names: Iterable[str], patches: Collection[str], tell: bool
) -> tuple[dict[str, Mapping[str, Any]], dict[str, Faults]]:
    """Read the days of modalities that have a table, by modality and area or patch.

    With *tell*, errors of those that cannot be read are returned instead of raised, in the same form.
    """
    days: dict[str, Mapping[str, Any]] = {}
    undated: dict[str, Faults] = {}
    for name in names:
        product = PRODUCTS[name]
        if product.table is None:
            continue
        table, keys = table_of(root, product.table), {key_of(patch, product.modality) for patch in patches}
        read = read_series_days if product.modality.temporal else read_image_days
        undated[name] = {}
        try:
            days[name] = read(table, keys, undated[name] if tell else None)
        except (OSError, ValueError) as error:
            if not tell:
                raise
            days[name], undated[name] = {}, dict.fromkeys(keys, error)
    return days, undated


def read_series_days(path: Path, areas: Collection[str], faults: Faults | None = None) -> dict[str, NDArray[np.int64]]:
    """Read the days of the time series of each area, which all its patches share, in the order of frames.

    The table has a column ``acquisition_dates`` of JSON, ``{"1": "20210114", ...}``, and a column ``patch_id`` or
    ``zone_id``, which begins with domain and area. Errors of areas are added to *faults*, or raised if it is None.
    """
    days: dict[str, NDArray[np.int64]] = {}
    for key, dates in _rows(path, 'acquisition_dates'):
        area = area_of(key)
        if area in areas and area not in days:
            with _collect_errors(faults, area):
                days[area] = parse_dates(dates, f"'acquisition_dates' of {key!r} in {path}")
    for area in sorted(set(areas) - set(days) - set(faults or ())):
        with _collect_errors(faults, area):
            raise ValueError(f'{path} has no row of {area!r}, expected one for each of {len(areas)} areas')
    return days


def read_image_days(path: Path, patches: Collection[str], faults: Faults | None = None) -> dict[str, int]:
    """Read the day of the image of each patch, if it is known; a missing table knows none.

    The table has the columns ``patch_id`` and ``date``, such as ``20210614``; day or month ``00`` is unknown. Errors of
    patches are added to *faults*, or raised if it is None.
    """
    days = {}
    for key, date in _rows(path, 'date') if path.exists() else ():
        stamp = str(date or '').replace('-', '')
        if key in patches and stamp[4:6] not in ('', '00') and stamp[6:8] not in ('', '00'):
            with _collect_errors(faults, key):
                days[key] = int(parse_dates([stamp[:8]], f"'date' of {key!r} in {path}")[0])
    return days


def read_splits(path: Path, column: str) -> dict[str, str]:
    """Read the split of each patch of all domains, ``'train'``, ``'valid'`` or ``'test'``."""
    return {key: str(split) for key, split in _rows(path, column)}


@contextmanager
def _collect_errors(faults: Faults | None, key: str) -> Iterator[None]:
    """Add a ValueError to *faults*; raise it if that is None."""
    try:
        yield
    except ValueError as error:
        if faults is None:
            raise
        faults[key] = error


def _rows(path: Path, column: str) -> Iterator[tuple[str, Any]]:
    expected = f"expected a GeoPackage with the columns 'patch_id' or 'zone_id', and {column!r}"
    if not path.exists():
        raise FileNotFoundError(f'{path} does not exist, {expected}')
    try:
        refuse_other_format(str(path))
        with fiona.open(path, ignore_geometry=True) as rows:
            for row in rows:
                properties: Mapping[str, Any] = row.properties
                key = properties['patch_id'] if 'patch_id' in properties else properties['zone_id']
                yield str(key), properties[column]
    except (FionaError, OSError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f'{path} cannot be read ({type(error).__name__}: {error}), {expected}') from error


class FLAIRHUBMultimodal(FLAIRHUB, PublishedDataset):
    """FLAIR-HUB dataset: TorchGeo's :class:`~torchgeo.datasets.FLAIRHUB` with dates and cloud masks.

    ==========  ==============================================  =======  ========================
    name        bands                                           GSD      units
    ==========  ==============================================  =======  ========================
    aerial      R G B NIR                                       0.2 m    0 to 255
    spot        R G B NIR                                       1.6 m    reflectance x 10000
    dem         DSM DTM                                         0.2 m    metres
    aerial_rlt  PAN, a photograph of the 1950s                  0.4 m    0 to 255, no date
    s2          B02 B03 B04 B05 B06 B07 B08 B8A B11 B12         10.24 m  reflectance x 10000
    s1a         VV, VH, ascending orbit                         10.24 m  power, read as dB
    s1d         VV, VH, descending orbit                        10.24 m  power, read as dB
    ==========  ==============================================  =======  ========================

    A patch covers 102.4 x 102.4 m. A sample has ``image_<name>``, ``dates_<name>`` and
    ``valid_<name>`` of each available modality (see :mod:`torchgeo_omnisat.batch`), in raw units
    with NaN for nodata; ``mask`` (H, W) of classes; ``label`` (K,), which of the K scored classes
    occur; and ``bounds`` (9,).

    The classes are those of TorchGeo: 19 of land cover, of which the last, undefined, is ignored
    (clear cut, ligneous and mixed, 15 to 17, are rare); or 23, 31 or 46 crops and background, none
    of which is ignored. Dates come from the tables of ``GLOBAL_ALL_MTD`` and are sorted. A date of
    Sentinel-2 is not valid if at least a fraction *cloud_cover* of its pixels are snow or cloud
    with a probability of at least *cloud_probability* %. Frames of one day are merged, from clear
    ones only if there are any.

    Source: https://huggingface.co/datasets/IGNF/FLAIR-HUB; licence: Etalab 2.0. If you use this
    dataset in your research, please cite https://doi.org/10.48550/arXiv.2506.07080
    """

    #: GSD of the mask in metres.
    label_gsd = MODALITIES['aerial'].gsd
    layout: ClassVar[str] = 'FLAIR-HUB'
    #: CRS of the transforms in the files.
    crs = CRS.from_epsg(2154)
    splits: ClassVar[tuple[str, ...]] = SPLITS
    all_modalities: ClassVar[dict[str, Modality]] = MODALITIES
    composites = COMPOSITES

    @with_arguments_of(PublishedDataset, without=('date_range',), is_last=True)
    def __init__(
        self,
        root: PathLike = 'data',
        split: str = 'train',
        modalities: Sequence[str] | None = None,
        bands: Mapping[str, Sequence[str]] | None = None,
        domains: Sequence[str] | None = None,
        *,
        split_column: str = 'split_1',
        dataset_type: str = 'land_cover',
        decibels: bool = False,
        exclude: Collection[str] = (),
        transforms: Callable[[Sample], Sample] | None = None,
        **kwargs: Any,
    ) -> None:
        """List the files with TorchGeo, and read the tables of dates; no image is opened.

        Args:
            root: Directory with ``D004-2021_AERIAL_RGBI`` etc., or their archives.
            split: ``'train'``, ``'val'`` or ``'test'``.
            modalities: Names of the modalities to read; None for all that are in *root*.
            bands: Bands to keep by modality, such as ``{'aerial': ('R', 'G', 'B')}``.
            domains: Domains and years such as ``('D004-2021',)``; None for those in *root*, or, with
                *download*, for all (750 GB).
            split_column: Official split, a column of the table of splits.
            dataset_type: ``'land_cover'``, ``'crop_type'``, ``'crop_type_2'`` or ``'crop_type_3'``.
            decibels: Whether Sentinel-1 is stored in dB instead of linear power.
            exclude: Names of samples to exclude (:attr:`ids`, of any split).
            transforms: Transform applied to each sample.
            **kwargs: Arguments of all published datasets.

        Raises:
            DatasetNotFoundError: If the split is not found and *download* is False.
            FileNotFoundError: If a file is missing.
            ValueError: If an argument or a table is invalid.
        """
        refuse_unexpected(FLAIRHUBMultimodal.__init__, kwargs)
        check_choice(
            split=(split, self.splits), split_column=(split_column, SPLIT_COLUMNS), dataset_type=(dataset_type, TYPES)
        )
        PublishedDataset.__init__(self, root, **kwargs)
        self.dataset_type, self.decibels = cast(Any, dataset_type), decibels
        download, missing = self.download, self.missing
        self.domain_years = choose_domains(  # type: ignore[misc]
            self.path, domains, self.domain_years, label_product(dataset_type), download
        )
        names = self._choose(modalities, download)
        self.modalities = select_bands({name: MODALITIES[name] for name in names}, bands)
        asked = [PRODUCTS[name].name for name in names] + [CLOUDS] * ('s2' in names)
        self._prepare = transforms
        super().__init__(
            self.path,
            cast(Any, split),
            cast(Any, split_column),
            None,
            download,
            self.checksum,
            asked,
            cast(Any, dataset_type),
        )
        refuse_outside(self.path, ('D[0-9]*', 'GLOBAL_*', '*.csv', '*.json'), self.allow_outside)
        chosen = {f'{domain}-{year}' for domain, years in self.domain_years.items() for year in years}
        found = [files for files in self.files if str(files['patch_id']).partition('_')[0] in chosen]
        splits = self._ensure_splits_available()
        if missing == 'check':
            named = {'val': 'valid'}.get(split, split)
            ours = [patch for patch, held in read_splits(splits, split_column).items() if held == named]
            found += lacking_labels(self.path, ours, chosen, found, label_product(dataset_type), self.bands)
        self.files = sorted(found, key=lambda files: str(files['patch_id']))
        if not self.files:
            expected = f'expected one of the domains {sorted(chosen)[:5]} in {splits.name}'
            raise not_found(self, f'Split {split!r} of {split_column!r} has no patch in {self.path}, {expected}.')
        known = read_splits(splits, SPLIT_COLUMNS[0]) if exclude else ()
        self.files, self.excluded = leave_out(self.files, self.ids, exclude, known, self.path)
        self.palette = palette(dataset_type)
        self.classes = tuple(self.palette.labels)
        self.ignore_index = ignored(dataset_type)
        self._check_files()
        self._days, self._undated = read_tables(self.path, self.modalities, self.ids, tell=missing == 'check')

    @property
    def ids(self) -> list[str]:
        """Name of each sample."""
        return [str(files['patch_id']) for files in self.files]

    def __getitem__(self, index: int) -> Sample:
        """Return the sample of a patch."""
        files = self.files[index]
        loaded = self._load(index)
        mask = loaded['mask']
        if mask.min() < 0 or mask.max() >= len(self.classes):
            found = f'{int(mask.min())} to {int(mask.max())}'
            raise ValueError(f'{files["mask"]} holds classes {found}, expected 0 to {len(self.classes) - 1}')
        sample: Sample = {}
        for modality in self.modalities.values():
            sample |= self._read(files, modality, loaded, mask.shape)
        sample['mask'] = mask
        sample['label'] = torch.from_numpy(
            occurring(mask.numpy(), len(self.classes) if self.ignore_index is None else self.ignore_index)
        )
        with open_raster(str(files['mask'])) as source:
            extent = (np.nan,) * 4 if source.transform.is_identity else source.bounds
        sample['bounds'] = bounds_of(extent, self.label_gsd, sample)
        return sample if self._prepare is None else self._prepare(sample)

    plot = MultimodalDataset.plot  # type: ignore[assignment]

    def parts(self, index: int) -> Iterator[Part]:
        """Yield the mask and the modalities of a patch, for checks."""
        files, size = self.files[index], size_of(self.files[index])
        yield Part('mask', expect(files, None, size, self.dataset_type), partial(self._load_mask, files['mask']))
        for name, modality in self.modalities.items():
            product = PRODUCTS[name]
            dates = None
            if product.table is not None:
                table, key = table_of(self.path, product.table), key_of(str(files['patch_id']), modality)
                read_days = partial(_days, self._days[name].get(key), self._undated[name].get(key))
                dates = Dates(table, read_days, ordered=False)
            read = partial(self._read_alone, files, modality, size)
            yield Part(name, expect(files, product, size, self.dataset_type, dates), read, dates, modality)

    def image_files(self, name: str, indices: Iterable[int]) -> list[Path]:
        """Return the files of a modality and some samples, including files that do not exist."""
        products = [PRODUCTS[name].name, *([CLOUDS] if name == 's2' else [])]
        rows = [self.files[index] for index in indices]
        return [Path(files[product]) for files in rows for product in products if product in files]

    def _load(self, index: int) -> Sample:
        files = self.files[index]
        lost = [band for band in self.bands if not Path(files[band]).exists()]
        if lost and self.missing == 'error':
            raise FileNotFoundError(
                f'{files[lost[0]]} does not exist, expected it beside {files["mask"]} '
                "(missing='allow' treats it as not acquired)"
            )
        loader = copy.copy(self)
        loader.bands = [band for band in self.bands if band not in lost]
        try:
            return FLAIRHUB.__getitem__(loader, index)
        except (RasterioError, EinopsError) as error:
            path = damaged(files, ('mask', *loader.bands))
            raise ValueError(f'{path} cannot be read ({error}), expected a raster of FLAIR-HUB') from error

    def _read(self, files: Files, modality: Modality, loaded: Sample, size: Sequence[int]) -> Sample:
        product = PRODUCTS[modality.name]
        key = self.modality_key_map[product.name]
        if key not in loaded:
            return {}
        image = measured_of(files, product, loaded[key].numpy(), size, self.decibels)
        return (self._series if modality.temporal else self._image)(files, modality, image, loaded)

    def _read_alone(self, files: Files, modality: Modality, size: Sequence[int]) -> Sample:
        """Read image, dates and valid of a modality of a patch from which nothing else is loaded."""
        product = PRODUCTS[modality.name]
        bands = [(product.name, len(modality.bands))] + [(CLOUDS, 2)] * (modality.name == 's2')
        loaded: Sample = {}
        for band, count in bands:
            if Path(files[band]).exists():
                load = partial(self._load_time_series, num_bands=count) if modality.temporal else self._load_image
                loaded[self.modality_key_map[band]] = load(files[band])
        return self._read(files, modality, loaded, size)

    def _image(self, files: Files, modality: Modality, image: NDArray[np.float32], loaded: Sample) -> Sample:
        day = self._days.get(modality.name, {}).get(str(files['patch_id']), 0)
        valid = np.isfinite(image).any(keepdims=True).reshape(1)
        return tensors(modality, pick(modality, MODALITIES[modality.name].bands, image), np.array([day]), valid)

    def _series(self, files: Files, modality: Modality, image: NDArray[np.float32], loaded: Sample) -> Sample:
        product = PRODUCTS[modality.name]
        days = self._days[modality.name][area_of(str(files['patch_id']))]
        if len(days) != len(image):
            table = table_of(self.path, str(product.table))
            raise ValueError(
                f'{files[product.name]} holds {counted(len(image), "date")}, expected {len(days)} as in {table}'
            )
        clear = np.ones(len(days), dtype=bool)
        if modality.name == 's2' and self.modality_key_map[CLOUDS] in loaded:
            masks = loaded[self.modality_key_map[CLOUDS]].numpy()
            if masks.shape != (len(days), 2, *image.shape[2:]):
                expected = f'{(len(days), 2, *image.shape[2:])}, snow and cloud'
                raise ValueError(f'{files[CLOUDS]} holds probabilities {masks.shape}, expected {expected}')
            visible = (masks < self.cloud_probability).all(1)  # False where it is NaN
            clear = (~visible).mean((1, 2)) < self.cloud_cover
        frames = choose_clear(days, clear, max_dates=self.max_dates)
        merge = decibel_mean if product.radar and self.decibels else finite_mean
        image, merged = merge_days(image[frames], days[frames], merge)
        if product.radar and not self.decibels:
            image = 10 * np.log10(image)
        valid = np.isin(merged, days[clear]) & np.isfinite(image).any((1, 2, 3))
        return tensors(modality, pick(modality, MODALITIES[modality.name].bands, image), merged, valid)

    def _check_files(self) -> None:
        """Raise an error for missing images, unless they are allowed, and exclude patches without any modality."""
        for band in self.bands if self.missing == 'error' else ():
            paths = [Path(files[band]) for files in self.files]
            refuse_missing([path for path in paths if not path.exists()], len(paths))
        if self.missing == 'allow':
            products = [PRODUCTS[name].name for name in self.modalities]
            seen = [any(Path(files[product]).exists() for product in products) for files in self.files]
            self.files, self.unseen = keep_seen(self.files, self.ids, seen, self.modalities, self.path)

    def _verify(self) -> None:
        bands, years = self.bands, self.domain_years
        try:
            for domain, year in ((domain, year) for domain, held in years.items() for year in held):
                self.domain_years = {domain: [year]}  # type: ignore[misc]
                strict = self.missing == 'error' or self.download
                self.bands = [band for band in bands if strict or has_product(self.path, f'{domain}-{year}', band)]
                super()._verify()
        finally:
            self.bands, self.domain_years = bands, years  # type: ignore[misc]

    def _choose(self, names: Sequence[str] | None, download: bool) -> list[str]:
        domains = [f'{domain}-{year}' for domain, years in self.domain_years.items() for year in years]
        held = [
            name for name, product in PRODUCTS.items() if any(has_product(self.path, d, product.name) for d in domains)
        ]
        return choose_modalities(names, MODALITIES if download or not held else held, MODALITIES, self.path)
