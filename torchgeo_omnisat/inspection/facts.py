# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Kind and unit of a sensor as far as band names, file names and pixel values show them.

Nothing else in this package derives facts from names. Here they are proposals for a configuration, each with the
evidence in a comment, so that the user can correct them.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import MaskFlags

from ..datasets.io.opening import open_raster
from ..modality import Kind, Unit

#: Sensors by words in names of files and folders, lower case.
SENSORS = {
    's2': r'(?<![a-z0-9])(?:s2[abc]?|sentinel[-_ ]?2[abc]?)(?![a-z0-9])',
    's1': r'(?<![a-z0-9])(?:s1[abcd]?|sentinel[-_ ]?1[abcd]?|grd|rtc)(?![a-z0-9])',
    'landsat': r'(?<![a-z0-9])(?:l[ct]0?[5789]|landsat[-_ ]?[5789]?|hls)(?![a-z0-9])',
    'planet': r'planet(?:scope)?|psscene|analyticms|ps4band|(?<![a-z0-9])ps(?![a-z0-9])',
    'dem': r'(?<![a-z0-9])(?:n?ds?em|dem|dsm|dtm|ndsm|srtm|elevation|altitude)(?![a-z])',
    'spot': r'(?<![a-z0-9])spot[67]?(?![a-z0-9])',
    'aerial': r'(?<![a-z0-9])(?:aerial|ortho(?:photo|s)?|naip|rgbi?|dop\d*|uav|drone)(?![a-z0-9])',
}
#: Kind of these sensors.
KINDS: dict[str, Kind] = {
    's2': 'optical', 's1': 'radar', 'landsat': 'optical', 'planet': 'optical', 'dem': 'elevation', 'spot': 'optical',
    'aerial': 'optical',
}  # fmt: skip
_OPTICAL = re.compile(r'(?:coastal_?|dark_?)?blue|green(?:_?i+)?|red(?:_?edge)?\d?|nir\d*|swir\d*|yellow|rgb|pan', re.I)
_NUMBERED = re.compile(r'(?:SR_)?B(?:and)?_?0?(?:[1-9]|1[0-2]|8A)', re.I)
_POLARISATIONS = {'VV', 'VH', 'HH', 'HV'}
#: Band names of PlanetScope by number of bands, in the order of its files.
PLANET = {
    4: ('blue', 'green', 'red', 'nir'),
    8: ('coastal_blue', 'blue', 'green_i', 'green', 'yellow', 'red', 'rededge', 'nir'),
}
#: Maximum side in pixels of the samples of values, and number of files.
_SIDE, _FILES = 256, 3


class Values(NamedTuple):
    """Summary of sampled pixel values.

    Attributes:
        low: 1 % quantile.
        middle: Median.
        high: 99 % quantile.
        whole: Whether pixels are integers.
        zero: Fraction of pixels that are 0 in all bands and are not nodata.
    """

    low: float
    middle: float
    high: float
    whole: bool
    zero: float

    def __str__(self) -> str:
        return f'{"integer" if self.whole else "float"} values from {self.low:.4g} to {self.high:.4g} (1 % to 99 %)'


def sample_values(paths: Sequence[str]) -> Values | None:
    """Read a sample of the pixels of up to three files; None if none is valid."""
    values, zeros, whole, count = list[NDArray[np.float64]](), 0, True, 0
    chosen = sorted({len(paths) // 2, 0, len(paths) - 1})[:_FILES]
    for path in (paths[index] for index in chosen):
        with open_raster(path) as source:
            shape = source.count, min(source.height, _SIDE), min(source.width, _SIDE)
            image = source.read(out_shape=shape, masked=True)
            whole &= np.issubdtype(image.dtype, np.integer)
        valid = ~np.ma.getmaskarray(image) & np.isfinite(image.filled(0).astype(np.float64))
        zeros += int(((image.filled(1) == 0).all(0)).sum())
        count += shape[1] * shape[2]
        values.append(image.data[valid].astype(np.float64))
    known = np.concatenate(values)
    if not len(known):
        return None
    low, middle, high = np.quantile(known, (0.01, 0.5, 0.99)).tolist()
    return Values(low, middle, high, bool(whole), zeros / count)


def sensor_of(text: str) -> str:
    """Return the sensor that a file or folder name states; an empty string if none."""
    return next((name for name, pattern in SENSORS.items() if re.search(pattern, text.lower())), '')


def kind_of(sensor: str, bands: Sequence[str]) -> tuple[Kind | None, str]:
    """Return the kind of a sensor and the evidence for it."""
    names = {band.upper() for band in bands}
    if names & _POLARISATIONS:
        return 'radar', f'bands {", ".join(bands[:3])}'
    if len([band for band in bands if _OPTICAL.fullmatch(band)]) * 2 > len(bands):
        return 'optical', f'bands {", ".join(bands[:3])}'
    if sensor:
        return KINDS[sensor], f'file or folder names contain {sensor}'
    if len(bands) > 2 and all(_NUMBERED.fullmatch(band) for band in bands) and not _is_default(bands):
        return 'optical', f'bands {", ".join(bands[:3])}'
    return None, ''


def unit_of(kind: Kind | None, values: Values | None) -> tuple[Unit, str]:
    """Return the unit of pixels and the evidence for it."""
    if kind is None or values is None:
        return 'unknown', ''
    unit: Unit = 'unknown'
    if kind == 'radar':
        unit = 'dn' if values.whole else 'db' if values.middle < 0 else 'power' if values.middle < 1 else 'unknown'
    elif kind == 'optical':
        unit = 'dn' if values.whole or values.high > 10 else 'reflectance' if values.high <= 2 else 'unknown'
    elif kind == 'elevation':
        unit = 'metres' if values.low >= -500 and values.high <= 9000 else 'unknown'
    return unit, str(values)


def states_nodata(path: str) -> bool:
    """Return whether a file has a nodata value or a mask."""
    with open_raster(path) as source:
        return any(flag is not MaskFlags.all_valid for flags in source.mask_flag_enums for flag in flags)


def _is_default(bands: Sequence[str]) -> bool:
    """Return whether bands have the names of bands without a description."""
    return list(bands) == [f'B{number}' for number in range(1, len(bands) + 1)]
