# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Sentinel-1 and Sentinel-2 as series, from products and from plain band files."""

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pyproj import CRS
from torchgeo.datasets import Sentinel1, Sentinel2
from torchgeo.datasets.utils import Path as PathLike
from torchgeo.datasets.utils import Sample

from ...modality import Unit
from ..io.headers import Header
from ..series import S2_WAVELENGTHS
from .frames import Clouds
from .timeseries import RasterTimeSeries

#: Processing baseline in the name of a Sentinel-2 product; the first that shifts reflectances, by
#: how much (ESA, Sentinel-2 products specification, RADIO_ADD_OFFSET), and what stands for none.
BASELINE = re.compile(r'S2[A-D]_MSIL[12][AC]_\d{8}T\d{6}_N(\d{4})_')
FIRST_SHIFTED, SHIFT, UNKNOWN_BASELINE = 400, 1000, 9999


class Sentinel2TimeSeries(RasterTimeSeries, Sentinel2):
    """Sentinel-2 as a series, from files named like TorchGeo's ``Sentinel2`` has them.

    These are the files of a SAFE product, ``R10m/T31UFS_20200801T104629_B02_10m.jp2`` and
    so on, wherever below *paths* they lie, or band files of such names in one directory,
    ``T31UFS_20200801T104629_B02.tif``. Bands of 20 m are interpolated to *res*. The tiles
    of one day are merged. The scene classification can tell of clouds:
    ``clouds={'band': 'SCL', 'values': (3, 8, 9, 10)}``.

    Since processing baseline 04.00 (products from 2022-01-25 on, and older ones that were
    processed again) ESA adds 1000 to every reflectance. The baseline is in the name of the
    product, ``S2A_MSIL2A_20220201T105251_N0400_R051_T31UFS_...``: where it is 0400 or above, 1000
    is taken off again, so that all dates are on one scale. Band files outside of such a folder
    stay as they are, unless they state scale and offset. 0 is nodata, and stays so.
    """

    name = 's2'
    kind = 'optical'
    unit = 'dn'
    nodata = 0
    filename_glob = Sentinel2.filename_glob
    filename_regex = Sentinel2.filename_regex.replace(r'B[018][\dA]', r'B[018][\dA]|SCL')
    resolutions: ClassVar[dict[str, str]] = Sentinel2.resolutions | {'SCL': '20m'}

    def __init__(
        self,
        paths: PathLike | Iterable[PathLike] = 'data',
        crs: CRS | None = None,
        res: float | tuple[float, float] | None = 10,
        bands: Sequence[str] = ('B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B8A', 'B11', 'B12'),
        transforms: Callable[[Sample], Sample] | None = None,
        cache: bool = True,
        *,
        date_range: tuple[str, str] | None = None,
        max_dates: int | None = None,
        clouds: Clouds | Mapping[str, Any] | None = None,
        harmonize: bool = True,
    ) -> None:
        """Index the files of the first band.

        Args:
            paths: See :class:`RasterTimeSeries`, as for all that follow but the last.
            crs: CRS of the samples.
            res: Side of a pixel.
            bands: Bands to read.
            transforms: What to do with a sample.
            cache: Whether to keep files open.
            date_range: First and last day to take.
            max_dates: How many days to read.
            clouds: Which band tells of clouds, and how.
            harmonize: Whether to take off the 1000 that is added since baseline 04.00.
        """
        self.harmonize = harmonize
        self.filename_glob = self.filename_glob.format(bands[0])
        self.filename_regex = self.filename_regex.format(self.resolutions.get(bands[0], '10m'))
        super().__init__(
            paths,
            crs,
            res,
            tuple(bands),
            transforms,
            cache,
            wavelengths=S2_WAVELENGTHS,
            date_range=date_range,
            max_dates=max_dates,
            clouds=clouds,
        )

    def offsets(self, filepath: str) -> NDArray[np.float32]:
        """What is to be added to each band of a scene, ``(C, 1, 1)``."""
        found = BASELINE.findall(filepath)
        added = shift(found[-1]) if found else -self.tag_offsets.get(filepath, 0)
        offsets = [-added if band.startswith('B') and self.harmonize else 0 for band in self.bands]
        return np.array(offsets, np.float32)[:, None, None]

    def _scale(self, headers: Sequence[Header]) -> None:
        """Keep digital numbers, and what the files say is to be added to them."""
        self.scaled, self.tag_offsets = False, stated_offsets(headers)

    def _update_filepath(self, band: str, filepath: str) -> str:
        """The file of another band of a scene, in its own folder if the product has folders by resolution."""
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
    """What a processing baseline of Sentinel-2 adds to reflectances.

    Args:
        baseline: As in the name of a product, ``'0400'``.
    """
    return SHIFT if baseline.isdigit() and FIRST_SHIFTED <= int(baseline) < UNKNOWN_BASELINE else 0


def stated_offsets(headers: Sequence[Header]) -> dict[str, float]:
    """Return what files state is to be added to their digital numbers, by path.

    Args:
        headers: Headers of files of the first band.
    """
    return {
        header.path: float(round(header.offsets[0] / header.scales[0]))
        for header in headers
        if header.offsets[0] and header.scales[0]
    }


class Sentinel1TimeSeries(RasterTimeSeries, Sentinel1):
    """Sentinel-1 as a series, from terrain-corrected files named like TorchGeo's ``Sentinel1`` has them.

    These are the products of the Alaska Satellite Facility, a file a polarisation:
    ``S1A_IW_20210101T055005_DVP_RTC10_G_gduned_1A2B_VV.tif``. Whether they hold decibels (``d``),
    power (``p``) or amplitude (``a``) is in their names, and must be the same in all.
    """

    name = 's1'
    kind = 'radar'
    filename_glob = Sentinel1.filename_glob
    filename_regex = Sentinel1.filename_regex

    def __init__(
        self,
        paths: PathLike | Iterable[PathLike] = 'data',
        crs: CRS | None = None,
        res: float | tuple[float, float] = 10,
        bands: Sequence[str] = ('VV', 'VH'),
        transforms: Callable[[Sample], Sample] | None = None,
        cache: bool = True,
        *,
        date_range: tuple[str, str] | None = None,
        max_dates: int | None = None,
    ) -> None:
        """Index the files of the first polarisation; see :class:`RasterTimeSeries`.

        Raises:
            ValueError: If power, amplitude and decibels are mixed.
        """
        if len({band[:1] for band in bands}) != 1:
            raise ValueError(
                f'bands of {self.name!r} are {tuple(bands)}, expected those of one transmitted polarisation'
            )
        self.filename_glob = self.filename_glob.format(bands[0])
        super().__init__(paths, crs, res, tuple(bands), transforms, cache, date_range=date_range, max_dates=max_dates)
        names = (re.match(self.filename_regex, os.path.basename(path), re.VERBOSE) for path in self.index.filepath)
        scales = {match['scale'] for match in names if match}
        if len(scales) > 1:
            raise ValueError(f'files of {paths!r} are in the scales {sorted(scales)}, expected one of d, p and a')
        units: dict[str, Unit] = {'d': 'db', 'p': 'power', 'a': 'dn'}
        self.unit = units[scales.pop()]
        self.decibels = self.unit == 'db'
