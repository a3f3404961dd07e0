# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""The layout of FLAIR-HUB that TorchGeo's loader leaves out: modalities, products, classes, and what files hold."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from matplotlib.colors import to_hex
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from torchgeo.datasets.flair import TASKS, AvailableBands

from ..modality import Modality, half_up
from .decoding import GREATEST
from .figures import S1_COMPOSITES, S2_COMPOSITES, Composite, Palette
from .integrity import Dates, Expected
from .opening import open_raster, sidecars
from .series import S2_BANDS, S2_FACTS, SPOT_WAVELENGTHS

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
    """The class that neither trains nor scores: land that is ``'undefined'``."""
    names = TASKS[dataset_type]['classes']
    return names.index('undefined') if 'undefined' in names else None


def label_product(dataset_type: str) -> str:
    """What the loader calls the product of the labels."""
    return 'AERIAL_LABEL-COSIA' if dataset_type == 'land_cover' else 'ALL_LABEL-LPIS'


def holds(root: Path, domain: str, product: str) -> bool:
    """Whether a root has a product of a domain such as ``'D004-2021'``, unpacked or not."""
    if product == PRODUCTS['aerial_rlt'].name:
        domain = f'{domain[:-4]}195X'
    return any((root / f'{domain}_{product}{end}').exists() for end in ('', '.zip'))


def choose_domains(
    root: Path, asked: Sequence[str] | None, known: Mapping[str, Sequence[str]], labels: str, download: bool
) -> dict[str, list[str]]:
    """Years by domain, of what is asked for.

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
    held = [] if download else [domain for domain in every if holds(root, domain, labels)]
    years: dict[str, list[str]] = {}
    for name in asked or held or every:
        domain, year = name.split('-')
        years.setdefault(domain, []).append(year)
    return years


def damaged(files: Files, products: Iterable[str]) -> str | Path:
    """The first file that cannot be read, or is a series of no whole number of frames; else the first of all."""
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
    """An image, or a series, with NaN where nothing was measured; radar that is power still is.

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
    """What the files of a modality should hold, the images first.

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
    """What a table says of an area or a patch. Days need not be in order, and may come twice.

    Args:
        table: The table.
        days: The days of the frames, the day of the image, or None if that is not known.
        fault: What is wrong with the row.
    """
    return Dates(table, partial(_days, days, fault), ordered=False)


def _days(days: Any, fault: Exception | None) -> NDArray[np.int64]:
    """The days, or what is wrong with them."""
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
    """The files of patches that have images and no labels.

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
