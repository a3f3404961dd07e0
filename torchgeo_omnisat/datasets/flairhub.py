# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""FLAIR-HUB: what TorchGeo's loader reads, with dates, clouds, and the keys of a batch."""

import copy
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import fiona
import numpy as np
import torch
from einops import EinopsError
from fiona.errors import FionaError
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from torchgeo.datasets import FLAIRHUB
from torchgeo.datasets.flair import TASKS, AvailableBands
from torchgeo.datasets.utils import Path as PathLike
from torchgeo.datasets.utils import Sample

from ..modality import Modality, half_up
from .arguments import MISSING, check_choice, check_max_dates, choose_modalities, leave_out, not_found, select_bands
from .base import MultimodalDataset, bounds_of, keep_seen, pick, refuse_missing, tensors
from .integrity import Dates, Expected, Part
from .io.decoding import GREATEST
from .io.files import occurring
from .io.opening import open_raster, refuse_other_format, sidecars
from .plotting import S1_COMPOSITES, S2_COMPOSITES, Composite, Palette, plot_sample
from .rasters.frames import decibel_mean
from .series import S2_BANDS, S2_FACTS, SPOT_WAVELENGTHS, choose_clear, finite_mean, merge_days, parse_dates

#: Side of the pixels of Sentinel-1 and -2, in metres: ten are the 102.4 m of a patch.
GSD = 10.24
#: Splits of the table ``GLOBAL_ALL_MTD_SPLIT.gpkg``, TorchGeo's default first.
SPLITS = ('split_1', 'split_2', 'split_3', 'split_4', 'split_5', 'split_flairchallenge', 'split_toy')
#: What the labels may say: land cover, and crops in three depths.
TYPES = tuple(TASKS)
#: The probabilities of snow and clouds, which belong to ``'s2'``.
CLOUDS: AvailableBands = 'SENTINEL2_MSK-SC'


#: Paths of a patch by product, and its name.
type Files = Mapping[str, str | Path]


@dataclass(frozen=True)
class Product:
    """What TorchGeo's loader calls a modality, and where its dates are.

    Args:
        modality: The modality with all its bands.
        name: What the loader is asked for.
        table: The table of its dates; None where no date is taken from one.
    """

    modality: Modality
    name: AvailableBands
    table: str | None = None

    @property
    def radar(self) -> bool:
        """Whether it is Sentinel-1."""
        return self.modality.kind == 'radar'


_RGBI = ('R', 'G', 'B', 'NIR')
#: Every product, in the order of the modalities.
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

#: Of every raster.
_CRS = 2154
#: Products that are photographs, stored as bytes.
_BYTES = ('AERIAL_RGBI', 'AERIAL-RLT_PAN')
#: Channels of labels, by what they say, and which of them that is.
_CHANNELS = {'land_cover': (1, 0), 'crop_type': (3, 0), 'crop_type_2': (3, 1), 'crop_type_3': (3, 2)}


def palette(dataset_type: str) -> Palette:
    """Names and colours of the classes, which are TorchGeo's."""
    names, cmap = TASKS[dataset_type]['classes'], TASKS[dataset_type]['cmap']
    return Palette(names, [to_hex(cmap(index)) for index in range(len(names))])


def ignored(dataset_type: str) -> int | None:
    """Return the class that is ignored in training and metrics: land that is ``'undefined'``."""
    names = TASKS[dataset_type]['classes']
    return names.index('undefined') if 'undefined' in names else None


def label_product(dataset_type: str) -> str:
    """Return the name that the loader gives to the product of the labels."""
    return 'AERIAL_LABEL-COSIA' if dataset_type == 'land_cover' else 'ALL_LABEL-LPIS'


def has_product(root: Path, domain: str, product: str) -> bool:
    """Whether a root has a product of a domain such as ``'D004-2021'``, unpacked or not."""
    if product == PRODUCTS['aerial_rlt'].name:
        domain = f'{domain[:-4]}195X'
    return any((root / f'{domain}_{product}{end}').exists() for end in ('', '.zip'))


def choose_domains(
    root: Path, asked: Sequence[str] | None, known: Mapping[str, Sequence[str]], labels: str, download: bool
) -> dict[str, list[str]]:
    """Return the requested years by domain.

    Args:
        root: Where the dataset is.
        asked: Domains and years, such as ``'D004-2021'``; None for those of which *root* has
            labels, or for all if it has none or may download them.
        known: Years by domain of all there are.
        labels: The product of the labels.
        download: Whether what is lacking is to be downloaded.

    Raises:
        ValueError: If one is unknown.
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
    """Return the first file that is unreadable or a series with an incomplete frame; else the first of all."""
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
    """Return an image or a time series with NaN for nodata; radar stays in linear power.

    Args:
        files: The paths of the patch.
        product: What it is of.
        image: All bands of it, ``(..., C, H, W)``.
        size: Rows and columns of the labels.
        decibels: Whether radar is in dB.

    Raises:
        ValueError: If it does not cover the ground of its labels, or power is below 0.
    """
    path, modality = files[product.name], product.modality
    gsd = MODALITIES['aerial'].gsd
    shape = (len(modality.bands), *(modality.pixels(round(side * gsd, 6)) for side in size))
    if image.shape[-3:] != shape:
        raise ValueError(f'{path} holds {image.shape[-3:]}, expected {shape}: the ground of its labels')
    power = product.radar and not decibels
    if power and (image < 0).any():
        raise ValueError(f'{path} holds numbers below 0, expected power; decibels=True takes them for dB')
    with sidecars(), open_raster(str(path)) as source:
        nodata = source.nodata
    unknown = ~(np.abs(image) <= GREATEST)
    if nodata is not None:
        unknown |= image == nodata
    if power:
        unknown |= image == 0
    elif modality.temporal:
        unknown |= (image == 0).all(1, keepdims=True)
    return np.where(unknown, np.float32(np.nan), image)


def size_of(files: Files) -> tuple[int, int]:
    """Rows and columns of the labels, by the first raster of a patch that can be opened; 0 and 0 if none can."""
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
    """Return the expected content of the files of a modality, the images first.

    Args:
        files: The paths of the patch.
        product: Which modality; None for the labels.
        size: Rows and columns of the labels.
        dataset_type: What the labels say.
        dates: When its images were taken.
    """
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


def dates_of(table: Path, days: Any, fault: Exception | None) -> Dates:
    """Return the dates of an area or a patch in a table. Days need not be in order, and may repeat.

    Args:
        table: The table.
        days: The days of the frames, the day of the image, or None if that is not known.
        fault: What is wrong with the row.
    """
    return Dates(table, partial(_days, days, fault), ordered=False)


def _days(days: Any, fault: Exception | None) -> NDArray[np.int64]:
    """Return the days, or raise an error that names the fault."""
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
    """Return the files of patches that have images and no labels.

    Args:
        root: Where the dataset is.
        patches: Every patch of the split.
        domains: The domains that are asked for, such as ``'D004-2021'``.
        found: The files of the patches with labels.
        labels: The product of the labels.
        products: The products that are asked for.
    """
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
    """Where an image of a patch is."""
    domain, area, place = patch.split('_')
    domain = f'{domain[:-4]}195X' if product == PRODUCTS['aerial_rlt'].name else domain
    return root / f'{domain}_{product}' / area / f'{domain}_{product}_{area}_{place}.tif'


#: Faults of single rows, by area or patch, to be reported later.
type Faults = dict[str, Exception]


def area_of(patch: str) -> str:
    """Domain and area of a patch: ``'D004-2021_AA-S1-32'`` of ``'D004-2021_AA-S1-32_0-0'``."""
    return '_'.join(patch.split('_')[:2])


def key_of(patch: str, modality: Modality) -> str:
    """Return the key of the days of a modality: the area of its time series, or the patch of an image."""
    return area_of(patch) if modality.temporal else patch


def table_of(root: Path, name: str) -> Path:
    """Where the dates of a product are."""
    return root / 'GLOBAL_ALL_MTD' / f'GLOBAL_{name}_MTD_DATES.gpkg'


def read_tables(
    root: Path, names: Iterable[str], patches: Collection[str], tell: bool
) -> tuple[dict[str, Mapping[str, Any]], dict[str, Faults]]:
    """Read the days of modalities, by area or patch.

    Args:
        root: The dataset.
        names: The modalities; those without a table are passed over.
        patches: The patches that are needed.
        tell: Whether to give what is wrong with a table, and not to raise it.

    Returns:
        Days, and what is wrong with those that are lacking, by modality and area or patch.

    Raises:
        FileNotFoundError: If there is no table of a series.
        ValueError: If a table is damaged.
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
    """Read the days of the time series of each area, which all its patches share.

    Args:
        path: The table: a column ``acquisition_dates`` of JSON, ``{"1": "20210114", ...}``, and
            ``patch_id`` or ``zone_id``, which begins with domain and area.
        areas: The areas that are needed.
        faults: Where to put what is wrong with an area; None to raise it.

    Returns:
        Days since 1970-01-01 in the order of the frames, by area.

    Raises:
        FileNotFoundError: If there is no such table.
        ValueError: If it is damaged, or an area is missing in it.
    """
    days: dict[str, NDArray[np.int64]] = {}
    for key, dates in _rows(path, 'acquisition_dates'):
        area = area_of(key)
        if area in areas and area not in days:
            with _noting(faults, area):
                days[area] = parse_dates(dates, f"'acquisition_dates' of {key!r} in {path}")
    for area in sorted(set(areas) - set(days) - set(faults or ())):
        with _noting(faults, area):
            raise ValueError(f'{path} has no row of {area!r}, expected one for each of {len(areas)} areas')
    return days


def read_image_days(path: Path, patches: Collection[str], faults: Faults | None = None) -> dict[str, int]:
    """Read the day of the image of each patch, if it is known.

    Args:
        path: The table: columns ``patch_id`` and ``date``, such as ``20210614``; of a day or
            month ``00`` nothing is known.
        patches: The patches that are needed.
        faults: Where to put what is wrong with a patch; None to raise it.

    Returns:
        Days since 1970-01-01 by patch.

    Raises:
        ValueError: If the table is damaged, or a date is not in the calendar.
    """
    days = {}
    for key, date in _rows(path, 'date') if path.exists() else ():
        stamp = str(date or '').replace('-', '')
        if key in patches and stamp[4:6] not in ('', '00') and stamp[6:8] not in ('', '00'):
            with _noting(faults, key):
                days[key] = int(parse_dates([stamp[:8]], f"'date' of {key!r} in {path}")[0])
    return days


def read_splits(path: Path, column: str) -> dict[str, str]:
    """Which split each patch of any domain is of, ``'train'``, ``'valid'`` or ``'test'``."""
    return {key: str(split) for key, split in _rows(path, column)}


@contextmanager
def _noting(faults: Faults | None, key: str) -> Iterator[None]:
    """Put what is wrong with a row where it is told of, if it is."""
    try:
        yield
    except ValueError as error:
        if faults is None:
            raise
        faults[key] = error


def _rows(path: Path, column: str) -> Iterator[tuple[str, Any]]:
    """Key and content of every row of a table."""
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


class FLAIRHUBMultimodal(FLAIRHUB, MultimodalDataset):
    """FLAIR-HUB as TorchGeo's :class:`~torchgeo.datasets.FLAIRHUB` reads it, and what that leaves out.

    ==========  ==============================================  =======  ========================
    name        bands                                           gsd      units
    ==========  ==============================================  =======  ========================
    aerial      R G B NIR                                       0.2 m    0 to 255
    spot        R G B NIR                                       1.6 m    reflectance x 10000
    dem         DSM DTM                                         0.2 m    metres
    aerial_rlt  PAN, a photograph of the 1950s                  0.4 m    0 to 255, no date
    s2          B02 B03 B04 B05 B06 B07 B08 B8A B11 B12         10.24 m  reflectance x 10000
    s1a         VV, VH, ascending orbit                         10.24 m  power, read as dB
    s1d         VV, VH, descending orbit                        10.24 m  power, read as dB
    ==========  ==============================================  =======  ========================

    A patch is 102.4 m wide. A sample has ``image_<name>``, ``dates_<name>`` and ``valid_<name>``
    of each modality that is there (see :mod:`torchgeo_omnisat.batch`), in raw units with NaN
    where nothing was measured; ``mask`` (H, W) of classes and ``label`` (K,), which of the K
    scored classes occur; and ``bounds`` (9,).

    The classes are TorchGeo's: 19 of land cover, of which the last, undefined, is ignored (clear
    cut, ligneous and mixed, 15 to 17, hardly occur); or 23, 31 or 46 crops and background, none
    ignored. Dates come from the tables of ``GLOBAL_ALL_MTD``. A date of Sentinel-2 is not valid
    if at least *cloud_cover* of its pixels are snow or cloud with a probability of at least
    *cloud_probability* %. Dates are in the order of time, and frames of one day are merged,
    clear ones alone where there are any.

    Source: https://huggingface.co/datasets/IGNF/FLAIR-HUB; licence: Etalab 2.0. If you use this
    dataset in your research, please cite https://doi.org/10.48550/arXiv.2506.07080
    """

    #: GSD of the mask in metres.
    label_gsd = MODALITIES['aerial'].gsd
    layout: ClassVar[str] = 'FLAIR-HUB'
    #: Of the transforms in the files.
    crs = CRS.from_epsg(2154)
    splits: ClassVar[tuple[str, ...]] = ('train', 'val', 'test')
    all_modalities: ClassVar[dict[str, Modality]] = MODALITIES

    def __init__(
        self,
        root: PathLike = 'data',
        split: str = 'train',
        modalities: Sequence[str] | None = None,
        bands: Mapping[str, Sequence[str]] | None = None,
        domains: Sequence[str] | None = None,
        split_column: str = 'split_1',
        dataset_type: str = 'land_cover',
        decibels: bool = False,
        cloud_probability: float = 60,
        cloud_cover: float = 0.5,
        max_dates: int | None = None,
        missing: Literal['error', 'allow', 'check'] = 'error',
        exclude: Collection[str] = (),
        transforms: Callable[[Sample], Sample] | None = None,
        download: bool = False,
        checksum: bool = False,
    ) -> None:
        """Let TorchGeo list the files, and read the tables of dates; no image is opened.

        Args:
            root: Directory that holds ``D004-2021_AERIAL_RGBI`` and so on, or their archives.
            split: ``'train'``, ``'val'`` or ``'test'``.
            modalities: Names of the modalities to read; None for all that the root holds.
            bands: Bands to keep by modality, such as ``{'aerial': ('R', 'G', 'B')}``.
            domains: Domains and years such as ``('D004-2021',)``; None for those that the root
                holds, or, with *download*, for all, 750 GB.
            split_column: Which of the official splits to follow.
            dataset_type: ``'land_cover'``, ``'crop_type'``, ``'crop_type_2'`` or
                ``'crop_type_3'``.
            decibels: Whether Sentinel-1 is stored in dB and not as power.
            cloud_probability: From which probability on, in %, a pixel is snow or cloud.
            cloud_cover: Which share of such pixels makes a date not valid; above 1 for none.
            max_dates: How many days of a series to read, spread evenly over those that are
                valid; None for all.
            missing: What an image is that a patch with labels lacks: an ``'error'``, or, if
                ``'allow'``, a modality absent from that sample; ``'check'`` refuses nothing
                yet, so that :meth:`parts` can be checked. A patch with nothing of *modalities*
                is left out with a warning (:attr:`unseen`).
            exclude: Names of samples to leave out (:attr:`ids`, of any split).
            transforms: What to do with a sample.
            download: Whether to download the archives that are not there.
            checksum: Whether to check the SHA-256 of archives.

        Raises:
            DatasetNotFoundError: If nothing of the split is there and *download* is False.
            FileNotFoundError: If a file is missing.
            ValueError: If an argument or a table is not as described.
        """
        check_choice(
            split=(split, self.splits),
            split_column=(split_column, SPLITS),
            dataset_type=(dataset_type, TYPES),
            missing=(missing, MISSING),
        )
        check_max_dates(max_dates)
        self.path, self.dataset_type = Path(root).expanduser(), cast(Any, dataset_type)
        self.missing, self.max_dates, self.decibels = missing, max_dates, decibels
        self.cloud_probability, self.cloud_cover = cloud_probability, cloud_cover
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
            checksum,
            asked,
            cast(Any, dataset_type),
        )
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
        known = read_splits(splits, SPLITS[0]) if exclude else ()
        self.files, self.excluded = leave_out(self.files, self.ids, exclude, known, self.path)
        self.classes = tuple(palette(dataset_type).labels)
        self.ignore_index = ignored(dataset_type)
        self._check_files()
        self._days, self._undated = read_tables(self.path, self.modalities, self.ids, tell=missing == 'check')

    @property
    def ids(self) -> list[str]:
        """The name of each sample."""
        return [str(files['patch_id']) for files in self.files]

    def __getitem__(self, index: int) -> Sample:
        """One patch.

        Args:
            index: Its place among the patches of the split.

        Returns:
            The sample.

        Raises:
            FileNotFoundError: If one of its files is missing.
            ValueError: If one of its files is not as described.
        """
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

    def plot(  # type: ignore[override]
        self, sample: Sample, show_titles: bool = True, suptitle: str | None = None
    ) -> Figure:
        """Show every modality, some valid dates of the series, the mask and, if there, the prediction.

        Args:
            sample: A sample of this dataset; one with ``prediction`` (H, W) is compared.
            show_titles: Whether to write what is what.
            suptitle: A title for the whole figure.

        Returns:
            The figure.

        Raises:
            RGBBandsMissingError: If no modality has bands that make a picture.
        """
        return plot_sample(sample, self.modalities, COMPOSITES, palette(self.dataset_type), show_titles, suptitle)

    def parts(self, index: int) -> Iterator[Part]:
        """Yield the mask and the modalities of a patch, for checks."""
        files, size = self.files[index], size_of(self.files[index])
        yield Part('mask', expect(files, None, size, self.dataset_type), partial(self._load_mask, files['mask']))
        for name, modality in self.modalities.items():
            product = PRODUCTS[name]
            dates = None
            if product.table is not None:
                table, key = table_of(self.path, product.table), key_of(str(files['patch_id']), modality)
                dates = dates_of(table, self._days[name].get(key), self._undated[name].get(key))
            read = partial(self._read_alone, files, modality, size)
            yield Part(name, expect(files, product, size, self.dataset_type, dates), read, dates, modality)

    def image_files(self, name: str, indices: Iterable[int]) -> list[Path]:
        """Return the files that a modality of some samples is read from, whether they are there or not.

        Args:
            name: The modality.
            indices: Numbers of the samples.
        """
        products = [PRODUCTS[name].name, *([CLOUDS] if name == 's2' else [])]
        rows = [self.files[index] for index in indices]
        return [Path(files[product]) for files in rows for product in products if product in files]

    def _load(self, index: int) -> Sample:
        """Load the existing files of a patch with TorchGeo's loader."""
        files = self.files[index]
        lost = [band for band in self.bands if not Path(files[band]).exists()]
        if lost and self.missing == 'error':
            raise FileNotFoundError(
                f'{files[lost[0]]} does not exist, expected it beside {files["mask"]} '
                "(missing='allow' takes it for never acquired)"
            )
        loader = copy.copy(self)
        loader.bands = [band for band in self.bands if band not in lost]
        try:
            return FLAIRHUB.__getitem__(loader, index)
        except (RasterioError, EinopsError) as error:
            path = damaged(files, ('mask', *loader.bands))
            raise ValueError(f'{path} cannot be read ({error}), expected a raster of FLAIR-HUB') from error

    def _read(self, files: Files, modality: Modality, loaded: Sample, size: Sequence[int]) -> Sample:
        """Return the three tensors of a modality, if it was loaded."""
        product = PRODUCTS[modality.name]
        key = self.modality_key_map[product.name]
        if key not in loaded:
            return {}
        image = measured_of(files, product, loaded[key].numpy(), size, self.decibels)
        return (self._series if modality.temporal else self._image)(files, modality, image, loaded)

    def _read_alone(self, files: Files, modality: Modality, size: Sequence[int]) -> Sample:
        """Read the three tensors of a modality of a patch from which nothing else is loaded."""
        product = PRODUCTS[modality.name]
        bands = [(product.name, len(modality.bands))] + [(CLOUDS, 2)] * (modality.name == 's2')
        loaded: Sample = {}
        for band, count in bands:
            if Path(files[band]).exists():
                load = partial(self._load_time_series, num_bands=count) if modality.temporal else self._load_image
                loaded[self.modality_key_map[band]] = load(files[band])
        return self._read(files, modality, loaded, size)

    def _image(self, files: Files, modality: Modality, image: NDArray[np.float32], loaded: Sample) -> Sample:
        """Return the three tensors of a single image."""
        day = self._days.get(modality.name, {}).get(str(files['patch_id']), 0)
        valid = np.isfinite(image).any(keepdims=True).reshape(1)
        return tensors(modality, pick(modality, MODALITIES[modality.name].bands, image), np.array([day]), valid)

    def _series(self, files: Files, modality: Modality, image: NDArray[np.float32], loaded: Sample) -> Sample:
        """Return the three tensors of a time series, with one frame per day."""
        product = PRODUCTS[modality.name]
        days = self._days[modality.name][area_of(str(files['patch_id']))]
        if len(days) != len(image):
            table = table_of(self.path, str(product.table))
            raise ValueError(f'{files[product.name]} holds {len(image)} dates, expected {len(days)} as in {table}')
        clear = np.ones(len(days), dtype=bool)
        if modality.name == 's2' and self.modality_key_map[CLOUDS] in loaded:
            masks = loaded[self.modality_key_map[CLOUDS]].numpy()
            if masks.shape != (len(days), 2, *image.shape[2:]):
                expected = f'{(len(days), 2, *image.shape[2:])}, snow and cloud'
                raise ValueError(f'{files[CLOUDS]} holds probabilities {masks.shape}, expected {expected}')
            clear = (masks >= self.cloud_probability).any(1).mean((1, 2)) < self.cloud_cover
        frames = choose_clear(days, clear, max_dates=self.max_dates)
        merge = decibel_mean if product.radar and self.decibels else finite_mean
        image, merged = merge_days(image[frames], days[frames], merge)
        if product.radar and not self.decibels:
            image = 10 * np.log10(image)
        valid = np.isin(merged, days[clear]) & np.isfinite(image).any((1, 2, 3))
        return tensors(modality, pick(modality, MODALITIES[modality.name].bands, image), merged, valid)

    def _check_files(self) -> None:
        """Refuse patches without an image, unless that is allowed, and leave out those without any."""
        self.unseen: list[str] = []
        for band in self.bands if self.missing == 'error' else ():
            paths = [Path(files[band]) for files in self.files]
            refuse_missing([path for path in paths if not path.exists()], len(paths))
        if self.missing == 'allow':
            products = [PRODUCTS[name].name for name in self.modalities]
            seen = [any(Path(files[product]).exists() for product in products) for files in self.files]
            self.files, self.unseen = keep_seen(self.files, self.ids, seen, self.modalities, self.path)

    def _verify(self) -> None:
        """TorchGeo's check of every domain, of the modalities that it has if some may be missing."""
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
        """Return the requested modalities; None for those of which any domain has files."""
        domains = [f'{domain}-{year}' for domain, years in self.domain_years.items() for year in years]
        held = [
            name for name, product in PRODUCTS.items() if any(has_product(self.path, d, product.name) for d in domains)
        ]
        return choose_modalities(names, MODALITIES if download or not held else held, MODALITIES, self.path)
