# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Sentinel-1 and Sentinel-2 time series, from products or band files."""

import os
import re
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pyproj import CRS
from torchgeo.datasets import Sentinel1, Sentinel2
from torchgeo.datasets.utils import Path as PathLike

from ...modality import Unit
from ...utils.signatures import refuse_unexpected, with_arguments_of
from ..common.series import S2_WAVELENGTHS
from ..io.headers import Header
from .products import SENTINEL2, archive_files
from .timeseries import RasterTimeSeries, matching

#: Processing baseline in the name of a Sentinel-2 product; the first that adds an offset to reflectances,
#: that offset (ESA, Sentinel-2 products specification, RADIO_ADD_OFFSET), and the value for unknown.
BASELINE = re.compile(r'S2[A-D]_MSIL[12][AC]_\d{8}T\d{6}_N(\d{4})_')
FIRST_SHIFTED, SHIFT, UNKNOWN_BASELINE = 400, 1000, 9999


#: Arguments of RasterTimeSeries that the file names of Sentinel products determine.
FIXED = (
    'name', 'temporal', 'all_bands', 'filename_glob', 'filename_regex', 'date_format', 'separate_files', 'nodata',
    'replace_nodata', 'kind', 'unit', 'wavelengths', 'decibels', 'stack',
)  # fmt: skip


class Sentinel2TimeSeries(RasterTimeSeries, Sentinel2):
    """Dataset of Sentinel-2 time series, from files named as for TorchGeo's ``Sentinel2``.

    It reads the files of SAFE products in any subdirectory of *paths*, such as
    ``R10m/T31UFS_20200801T104629_B02_10m.jp2``, also of products in zip archives, which are not
    unpacked; a product that is there twice is read once. It also reads band files in one directory, such as
    ``T31UFS_20200801T104629_B02.tif``. Bands of 20 m are interpolated to *res*. The tiles of one date
    are merged. The scene classification can be used as cloud mask:
    ``clouds={'band': 'SCL', 'values': (3, 8, 9, 10)}``.

    Since processing baseline 04.00 (products from 2022-01-25 on, and reprocessed older ones), ESA adds
    1000 to every reflectance. The baseline is in the name of the product, such as
    ``S2A_MSIL2A_20220201T105251_N0400_R051_T31UFS_...``. 1000 is subtracted from 0400 on, so that all
    dates have the same scale. Band files outside of such a folder are only corrected by the scale and
    offset that they state. 0 is nodata.
    """

    name = 's2'
    kind = 'optical'
    unit = 'dn'
    nodata = 0
    filename_glob = Sentinel2.filename_glob
    filename_regex = Sentinel2.filename_regex.replace(r'B[018][\dA]', r'B[018][\dA]|SCL')
    resolutions: ClassVar[dict[str, str]] = Sentinel2.resolutions | {'SCL': '20m'}

    @with_arguments_of(RasterTimeSeries, without=FIXED, is_last=True)
    def __init__(
        self,
        paths: PathLike | Iterable[PathLike] = 'data',
        crs: CRS | None = None,
        res: float | tuple[float, float] | None = 10,
        bands: Sequence[str] = ('B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B8A', 'B11', 'B12'),
        *,
        harmonize: bool = True,
        **kwargs: Any,
    ) -> None:
        """Initialize the dataset from the headers of the files of the first band.

        Args:
            paths: Directories or files, see :class:`RasterTimeSeries`.
            crs: CRS of the samples; defaults to that of the first file.
            res: Pixel size in units of *crs*.
            bands: Bands to read, in this order.
            harmonize: Whether to subtract the 1000 that ESA adds since baseline 04.00.
            **kwargs: Other arguments of :class:`RasterTimeSeries`.
        """
        refuse_unexpected(Sentinel2TimeSeries.__init__, kwargs)
        self.harmonize = harmonize
        self.filename_glob = self.filename_glob.format(bands[0])
        self.filename_regex = self.filename_regex.format(self.resolutions.get(bands[0], '10m'))
        super().__init__(paths, crs, res, tuple(bands), wavelengths=S2_WAVELENGTHS, **kwargs)

    @property
    def files(self) -> list[str]:
        """Files of *paths*, of its directories, and of products in zip archives there."""
        paths = [self.paths] if isinstance(self.paths, str | os.PathLike) else self.paths
        files = [file for file in super().files if not file.lower().endswith('.zip')]
        archives = [str(path) for path in paths if str(path).lower().endswith('.zip') and os.path.isfile(path)]
        archives += [file for path in paths if os.path.isdir(path) for file in matching(path, '*.[zZ][iI][pP]')]
        places = {found[1]: '' for file in files if (found := SENTINEL2.search(file))}  # of each product
        for archive in archives:
            for file in archive_files(archive, self.filename_glob):
                product = SENTINEL2.search(file)
                if product and places.setdefault(product[1], archive) == archive:
                    files.append(file)
        return sorted(files)

    def offsets(self, filepath: str) -> NDArray[np.float32]:
        """Return the offset to add to each band of a scene, ``(C, 1, 1)``."""
        baselines = BASELINE.findall(filepath)
        added = shift(baselines[-1]) if baselines else -self.tag_offsets.get(filepath, 0)
        offsets = [-added if band.startswith('B') and self.harmonize else 0 for band in self.bands]
        return np.array(offsets, np.float32)[:, None, None]

    def _scale(self, headers: Sequence[Header]) -> None:
        self.scaled, self.tag_offsets = False, stated_offsets(headers)

    def _update_filepath(self, band: str, filepath: str) -> str:
        directory, filename = os.path.split(filepath)
        match = re.match(self.filename_regex, filename, re.VERBOSE)
        assert match is not None
        start, end = match.span('band')
        if match['resolution'] is None:
            return os.path.join(directory, filename[:start] + band + filename[end:])
        resolution = self.resolutions[band]
        if os.path.basename(directory) == f'R{match["resolution"]}':
            directory = os.path.join(os.path.dirname(directory), f'R{resolution}')
        return os.path.join(directory, f'{filename[:start]}{band}_{resolution}{filename[match.end("resolution") :]}')


def shift(baseline: str) -> int:
    """Return the offset that a processing baseline of Sentinel-2, such as ``'0400'``, adds to reflectances."""
    return SHIFT if baseline.isdigit() and FIRST_SHIFTED <= int(baseline) < UNKNOWN_BASELINE else 0


def stated_offsets(headers: Sequence[Header]) -> dict[str, float]:
    """Return the offset in digital numbers that each file states, by path."""
    return {
        header.path: float(round(header.offsets[0] / header.scales[0]))
        for header in headers
        if header.offsets[0] and header.scales[0]
    }


class Sentinel1TimeSeries(RasterTimeSeries, Sentinel1):
    """Dataset of Sentinel-1 time series, from terrain-corrected files named as for TorchGeo's ``Sentinel1``.

    It reads the products of the Alaska Satellite Facility, with one file per polarisation:
    ``S1A_IW_20210101T055005_DVP_RTC10_G_gduned_1A2B_VV.tif``. The file name states decibels (``d``),
    power (``p``) or amplitude (``a``), which must be the same for all files.
    """

    name = 's1'
    kind = 'radar'
    filename_glob = Sentinel1.filename_glob
    filename_regex = Sentinel1.filename_regex

    @with_arguments_of(RasterTimeSeries, without=(*FIXED, 'clouds'), is_last=True)
    def __init__(
        self,
        paths: PathLike | Iterable[PathLike] = 'data',
        crs: CRS | None = None,
        res: float | tuple[float, float] = 10,
        bands: Sequence[str] = ('VV', 'VH'),
        **kwargs: Any,
    ) -> None:
        """Initialize the dataset from the headers of the files of the first polarisation.

        Args:
            paths: Directories or files, see :class:`RasterTimeSeries`.
            crs: CRS of the samples; defaults to that of the first file.
            res: Pixel size in units of *crs*.
            bands: Polarisations to read, in this order.
            **kwargs: Other arguments of :class:`RasterTimeSeries`.

        Raises:
            ValueError: If files are in different scales, or *bands* of different transmitted polarisations.
        """
        refuse_unexpected(Sentinel1TimeSeries.__init__, kwargs)
        if len({band[:1] for band in bands}) != 1:
            raise ValueError(f'bands of {self.name!r} are {tuple(bands)}, expected one transmitted polarisation')
        self.filename_glob = self.filename_glob.format(bands[0])
        super().__init__(paths, crs, res, tuple(bands), **kwargs)
        names = (re.match(self.filename_regex, os.path.basename(path), re.VERBOSE) for path in self.index.filepath)
        scales = {match['scale'] for match in names if match}
        if len(scales) > 1:
            raise ValueError(f'files of {paths!r} are in the scales {sorted(scales)}, expected one of d, p and a')
        units: dict[str, Unit] = {'d': 'db', 'p': 'power', 'a': 'dn'}
        self.unit = units[scales.pop()]
        self.decibels = self.unit == 'db'
