# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Embedding rasters: quantised codes of AlphaEarth, TESSERA and this package, and plain floats."""

import functools
import os
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.windows import Window
from torchgeo.datasets import (
    CopernicusEmbed,
    EmbeddedSeamlessData,
    GoogleSatelliteEmbedding,
    PrestoEmbeddings,
    TesseraEmbeddings,
)

from ...utils.plurals import counted
from ...utils.tensors.quantization import NODATA, dequantize
from ..io.decoding import Decoding
from ..io.headers import Header, read_header
from ..io.opening import open_raster

#: Description of the band of the sensors that observed a pixel, which is not a dimension.
SENSORS = 'sensors'
#: Description of a band that is a dimension, in maps of this package and of AlphaEarth; others are not, then.
DIMENSION = re.compile('A[0-9]{2,}')
#: Endings of the file with the scale of each pixel of a TESSERA file, instead of its extension.
SCALES = ('_scales.tif', '_scales.tiff', '_scales.npy')
#: Rasters of embeddings of TorchGeo. Their pixels are codes or floats of this module; only EmbeddedSeamlessData has
#: codes that it decodes itself.
TORCHGEO = (CopernicusEmbed, EmbeddedSeamlessData, GoogleSatelliteEmbedding, PrestoEmbeddings, TesseraEmbeddings)
#: Power: sign(q) (q / 127.5)^2. Scaled: q times the scale of the pixel. Float: stored values.
Scheme = Literal['power', 'scaled', 'float']


class EmbeddingHeader(NamedTuple):
    """Metadata of an embedding raster.

    Args:
        header: Metadata of the file.
        scheme: How stored values become embeddings.
        bands: Indices of the bands that are dimensions, from 1.
        sensors: Index of the band with the sensors that observed a pixel; None if there is none.
        scales: File with the scale of each pixel; None unless *scheme* is ``'scaled'``.
    """

    header: Header
    scheme: Scheme
    bands: tuple[int, ...]
    sensors: int | None
    scales: str | None

    @property
    def decoding(self) -> Decoding:
        """Decoding of the bands."""
        return decoding_of_scheme(self.scheme)


def read_embedding_header(path: str) -> EmbeddingHeader:
    """Read the metadata of an embedding raster.

    Raises:
        ValueError: If the file has a single band, neither int8 nor float pixels, or TESSERA codes without scales.
    """
    return describe_embedding(read_header(path))


def describe_embedding(header: Header) -> EmbeddingHeader:
    """Return the metadata of an embedding raster with a header; the errors are those of its reading."""
    path = header.path
    named = {str(text).lower(): number for number, text in enumerate(header.descriptions, 1)}
    sensors = named.get(SENSORS)
    bands = tuple(number for number in header.numbers(skip_alpha=False) if number != sensors)
    dimensions = tuple(number for number in bands if DIMENSION.fullmatch(str(header.descriptions[number - 1])))
    bands = dimensions if len(dimensions) > 1 else bands
    kinds = {header.dtypes[number - 1] for number in bands}
    if len(bands) < 2 or len(kinds) != 1 or not (kinds == {'int8'} or np.dtype(min(kinds)).kind == 'f'):
        raise ValueError(
            f'{path} has {counted(len(bands), "band")} of {", ".join(sorted(kinds))}, expected an embedding: int8 '
            'codes or floats in at least 2 bands'
        )
    scales = scales_file(path)
    scheme: Scheme = 'float' if kinds != {'int8'} else 'power' if scales is None else 'scaled'
    if scheme == 'power' and os.path.basename(path).startswith('grid_'):
        raise ValueError(
            f'{path} has int8 codes and the name of a TESSERA file, expected the scales of its pixels beside it, in '
            f'{os.path.basename(os.path.splitext(path)[0])}{SCALES[0]} or {SCALES[-1]}'
        )
    return EmbeddingHeader(header, scheme, bands, sensors, scales if scheme == 'scaled' else None)


def scales_file(path: str) -> str | None:
    """Return the file with the scale of each pixel of a TESSERA file; None if there is none."""
    stem = os.path.splitext(path)[0]
    return next((stem + ending for ending in SCALES if os.path.isfile(stem + ending)), None)


def is_embedding(dataset: object) -> bool:
    """Return whether a dataset is one of TorchGeo's rasters of embeddings."""
    return isinstance(dataset, TORCHGEO)


@functools.lru_cache(maxsize=1024)
def decoding_of_file(path: str) -> Decoding:
    """Return how the pixels of an embedding raster are decoded, from its header."""
    return read_embedding_header(path).decoding


def decoding_of_scheme(scheme: Scheme, **settings: Any) -> Decoding:
    """Return how the pixels of an embedding raster are decoded; *settings* are other fields of the decoding."""
    if scheme == 'float':
        return Decoding(alpha=False, **settings)
    convert = _convert_power if scheme == 'power' else _convert_scaled
    return Decoding((float(NODATA),), alpha=False, convert=convert, **settings)


def _convert_power(stored: NDArray[Any], source: Any, window: Window) -> NDArray[np.float32]:
    return dequantize(stored)


def _convert_scaled(stored: NDArray[Any], source: Any, window: Window) -> NDArray[np.float32]:
    path = scales_file(source.name)
    if path is None:
        raise ValueError(f'its scales are missing, expected a file with one of the endings {list(SCALES)}')
    rows, columns = (
        slice(int(start), int(start + length))
        for start, length in ((window.row_off, window.height), (window.col_off, window.width))
    )
    if path.endswith('.npy'):
        every = np.load(path, mmap_mode='r', allow_pickle=False)
        scales, shape = every[rows, columns], every.shape
    else:
        with open_raster(path) as file:
            scales, shape = file.read(1, window=window), (file.height, file.width)
            if _is_flipped(file.transform) != _is_flipped(source.transform):
                raise ValueError(f'rows of {path} are in another order, expected those of the embeddings')
    if shape != (source.height, source.width):
        raise ValueError(f'{path} has {shape} pixels, expected {(source.height, source.width)}')
    with np.errstate(invalid='ignore'):
        return stored * np.where(scales > 0, scales, np.nan).astype(np.float32)


def _is_flipped(transform: Affine) -> bool:
    return bool(transform.e > 0)


def dimension_names(headers: Sequence[EmbeddingHeader]) -> tuple[str, ...]:
    """Return the names of the dimensions: the descriptions of the bands, or ``A00``, ``A01``, ..."""
    first = headers[0]
    names = [first.header.descriptions[number - 1] for number in first.bands]
    unique = all(names) and len(set(names)) == len(names)
    return tuple(map(str, names)) if unique else tuple(f'A{index:02}' for index in range(len(names)))
