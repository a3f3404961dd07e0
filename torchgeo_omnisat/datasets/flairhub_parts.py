# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""What the files of a patch of FLAIR-HUB should hold, to be checked."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import RasterioError

from .flairhub_layout import CLOUDS, GSD, MODALITIES, PRODUCTS, Files, Product, palette
from .integrity import Dates, Expected

#: Of every raster.
_CRS = 2154
#: Products that are photographs, stored as bytes.
_BYTES = ('AERIAL_RGBI', 'AERIAL-RLT_PAN')
#: Channels of labels, by what they say, and which of them that is.
_CHANNELS = {'land_cover': (1, 0), 'crop_type': (3, 0), 'crop_type_2': (3, 1), 'crop_type_3': (3, 2)}


def size_of(files: Files) -> tuple[int, int]:
    """Rows and columns of the labels, by the first raster of a patch that can be opened; 0 and 0 if none can."""
    fine = MODALITIES['aerial'].gsd
    sizes = {'mask': fine, CLOUDS: GSD} | {product.name: product.modality.gsd for product in PRODUCTS.values()}
    for name, gsd in sizes.items():
        if name in files:
            with suppress(RasterioError), rasterio.open(files[name]) as source:
                return round(source.height * gsd / fine), round(source.width * gsd / fine)
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
    ground = [round(side * MODALITIES['aerial'].gsd / modality.gsd) for side in size]
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
