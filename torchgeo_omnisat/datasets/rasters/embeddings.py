# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Datasets of annual embeddings as one modality."""

import os
import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import PurePath
from typing import Any, ClassVar

from pyproj import CRS
from torchgeo.datasets.utils import Path as PathLike
from torchgeo.datasets.utils import disambiguate_timestamp

from ...utils.plurals import counted
from ...utils.signatures import refuse_unexpected, with_arguments_of
from ..io.decoding import Decoding
from ..io.headers import Header
from .embedding_headers import SCALES, EmbeddingHeader, Scheme, decoding_of_scheme, describe_embedding
from .timeseries import RasterTimeSeries

#: Year in the name of a file or folder.
_YEAR = re.compile(r'(?<![\d.])20[0-9]{2}(?!\d|\.\d)')
#: Arguments of RasterTimeSeries that the products determine.
FIXED = (
    'filename_glob', 'filename_regex', 'date_format', 'separate_files', 'nodata', 'replace_nodata', 'kind', 'unit',
    'wavelengths', 'decibels', 'clouds', 'stack',
)  # fmt: skip


class EmbeddingRasters(RasterTimeSeries):
    """Dataset of embedding rasters of this package: int8 codes, or floats.

    Codes are decoded as sign(q) (q / 127.5)^2, and -128 is NaN. The files end in ``.tif`` or
    ``.tiff``. Their year is in the name of the file, or else of a folder below *paths*; a file without
    one has no date.
    A sample is one image, that of the year that overlaps most with the requested period, with the
    date of its middle. With ``temporal=True``, it is a time series of all years of the period.
    """

    name = 'embeddings'
    temporal = False
    kind = 'embedding'
    filename_glob = '*.tif*'
    filename_regex = '.*'
    tags_scale = False
    #: Schemes of the product.
    schemes: ClassVar[tuple[Scheme, ...]] = ('power', 'float')
    #: Name of the product in errors.
    product: ClassVar[str] = 'embeddings of this package'

    @with_arguments_of(RasterTimeSeries, without=FIXED, is_last=True)
    def __init__(
        self,
        paths: PathLike | Iterable[PathLike] = 'data',
        crs: CRS | None = None,
        res: float | tuple[float, float] | None = None,
        bands: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Initialize the dataset from the headers of its files; no pixel is read.

        Args:
            paths: Directories or files, see :class:`RasterTimeSeries`.
            crs: CRS of the samples; defaults to that of the first file.
            res: Pixel size in units of *crs*.
            bands: Dimensions to read, in this order; None for all.
            **kwargs: Other arguments of :class:`RasterTimeSeries`.

        Raises:
            ValueError: If a file has other pixels than the product, or its scales are missing.
        """
        refuse_unexpected(type(self).__init__, kwargs)
        self.embeddings: dict[str, EmbeddingHeader] = {}
        super().__init__(paths, crs, res, bands, **kwargs)

    @property
    def files(self) -> list[str]:
        """Files of *paths*, and GeoTIFFs of its directories that are not scales."""
        return [path for path in super().files if path.lower().endswith(('.tif', '.tiff')) and not _is_scales(path)]

    def decoding(self, filepath: str, band: str | None) -> Decoding:
        """Return how the pixels of a file are decoded."""
        return decoding_of_scheme(self.embeddings[filepath].scheme, crs=self.assumed_crs)

    def _name_bands(self, headers: Sequence[Header], bands: Sequence[str] | None) -> None:
        for header in headers:
            self.embeddings[header.path] = found = describe_embedding(header)
            count = len(self.all_bands or found.bands)
            if found.scheme not in self.schemes or len(found.bands) != count:
                raise ValueError(
                    f'{header.path} has {counted(len(found.bands), "band")} of '
                    f'{header.dtypes[0]}{" with scales" * (found.scheme == "scaled")}, expected {count} of '
                    f'{self.product}'
                )
        names = self.all_bands or tuple(f'B{number}' for number in self.embeddings[headers[0].path].bands)
        super()._name_bands(headers, bands)
        if bands is None and len(self.bands) != len(names):  # without the band of the sensors
            numbers = self.embeddings[headers[0].path].bands
            super()._name_bands(headers, [self.all_bands[number - 1] for number in numbers])

    def _check_dated(self, pattern: re.Pattern[str]) -> None:
        """Accept any name, because a year may be that of a folder."""

    def _parts_below(self, filepath: PathLike) -> tuple[str, ...]:
        """Return the name of a file, after those of its folders below the paths of the dataset."""
        path = PurePath(filepath)
        paths = [self.paths] if isinstance(self.paths, str | os.PathLike) else self.paths
        below = [path.relative_to(folder).parts for folder in paths if path.is_relative_to(folder)]
        return max(below, key=len, default=()) or (path.name,)

    def _filepath_to_timestamp(self, filepath: PathLike) -> tuple[datetime, datetime]:
        for part in reversed(self._parts_below(filepath)):
            if years := _YEAR.findall(part):
                return disambiguate_timestamp(years[-1], '%Y')
        if self.temporal:
            raise ValueError(f'{filepath} has no year in its name or folders below the path, expected one for a series')
        return self.mint, self.maxt


class AlphaEarthEmbeddings(EmbeddingRasters):
    """Dataset of AlphaEarth Foundations embeddings (Satellite Embedding V1), as published in COGs.

    They are 64 dimensions at 10 m a year, int8 codes of unit vectors, such as
    ``2024/31N/x086q72fv2f9q1x4a-0000000000-0000000000.tiff`` with rows from south to north. Floats,
    as exported from Earth Engine, are read too (arXiv 2507.22291).
    """

    name = 'alphaearth'
    all_bands = tuple(f'A{index:02}' for index in range(64))
    product = 'AlphaEarth: int8 codes or floats'


class TesseraRasters(EmbeddingRasters):
    """Dataset of TESSERA embeddings in GeoTIFFs of ``geotessera``.

    They are 128 dimensions at 10 m a year, such as ``grid_0.15_52.05_2024.tiff``: floats, or int8 codes that are
    multiplied by the scale of the pixel in ``grid_0.15_52.05_2024_scales.tiff`` or ``..._scales.npy``
    (arXiv 2506.20380).
    """

    name = 'tessera'
    all_bands = tuple(str(index) for index in range(128))
    schemes = ('scaled', 'float')
    product = 'TESSERA: floats, or int8 codes with a file of scales'


#: Former name, which is that of a class of TorchGeo.
TesseraEmbeddings = TesseraRasters


def _is_scales(path: str) -> bool:
    return os.path.splitext(path)[0].endswith(os.path.splitext(SCALES[0])[0])
