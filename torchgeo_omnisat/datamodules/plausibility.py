# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Plausibility of pixel values: do they fit the unit that is stated, and the statistics of a checkpoint."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from ..modality import Modality

#: Values that files use for nodata and that no sensor measures. Values beyond `HUGE` are nodata too.
FILL_VALUES = (-9999.0, -99999.0, -32768.0, -32767.0, 65535.0)
HUGE = 1e20


class BandSummary(NamedTuple):
    """Summary statistics of the valid pixels of a band.

    Attributes:
        minimum: Smallest value; NaN if there is no valid pixel, likewise for the others.
        mean: Mean.
        maximum: Largest value.
        std: Standard deviation.
        valid: Fraction of the pixels that are valid.
    """

    minimum: float
    mean: float
    maximum: float
    std: float
    valid: float = 1.0


class _Range(NamedTuple):
    """Values that a unit allows: all pixels between *low* and *high*, the mean of a band below *typical*."""

    low: float
    high: float
    typical: float


#: Clouds, snow and sun glint reflect more than 1; atmospheric correction can give less than 0.
_RANGES = {
    'reflectance': _Range(-1.0, 10.0, 1.5),
    'dn': _Range(-2000.0, 65534.0, 30000.0),
    'db': _Range(-90.0, 60.0, 25.0),
    'power': _Range(0.0, 1e5, 20.0),
    'metres': _Range(-1000.0, 9000.0, 9000.0),
}


def implausible(modality: Modality, bands: Sequence[BandSummary]) -> list[str]:
    """Return what is implausible for the unit that a modality states.

    Args:
        modality: The modality, with the facts that are known of it.
        bands: Summary of each of its bands, in their order.

    Returns:
        One sentence for each finding, with band, value, expectation and likely cause. Bands of the same
        cause share a sentence. Without a stated unit, only nodata, constant and empty bands are found.

    Raises:
        ValueError: If there is not one summary for each band.
    """
    if len(bands) != len(modality.bands):
        raise ValueError(
            f'there are {len(bands)} summaries, expected one for each of the bands {list(modality.bands)} '
            f'of {modality.name!r}'
        )
    found: dict[str, list[str]] = {}
    measured = [summary for summary in bands if math.isfinite(summary.mean)]
    for name, summary in zip(modality.bands, bands, strict=True):
        if cause := _implausible_band(modality, summary, measured):
            found.setdefault(cause, []).append(f'{name} ({_spoken(summary)})')
    return [f'{modality.name}: {cause}: {", ".join(names)}' for cause, names in found.items()]


def _implausible_band(modality: Modality, band: BandSummary, bands: Sequence[BandSummary]) -> str:
    """Return the likely cause of implausible values of a band; empty if there is none."""
    if not math.isfinite(band.mean):
        return 'no valid pixel'
    for value in (band.minimum, band.maximum):
        if (value in FILL_VALUES and value != band.mean) or abs(value) >= HUGE:
            return f'nodata {value:g} counts as data, state it as nodata'
    if band.minimum == band.maximum:
        level = modality.kind == 'elevation' or modality.unit == 'metres'
        return '' if level else f'constant, every valid pixel is {band.mean:g}'
    if modality.unit == 'unknown':
        return ''
    low, high, typical = _RANGES[modality.unit]
    fits = low <= band.minimum and band.maximum <= high and abs(band.mean) <= typical
    return _UNITS[modality.unit](bands, fits)


def _reflectance(bands: Sequence[BandSummary], fits: bool) -> str:
    """Return what contradicts reflectance from 0 to 1."""
    top, mean = max(band.maximum for band in bands), sum(band.mean for band in bands) / len(bands)
    if fits:
        if 0 < top < 0.002:
            return 'unit is reflectance (0 to 1), but values are below 0.002: divided by 10000 twice?'
        return ''
    if mean > 1.5:
        likely = '8-bit values, divide by 255' if top <= 255 else 'digital numbers (reflectance x 10000)'
        return f'unit is reflectance (0 to 1), values look like {likely}: state unit: dn, or a scale'
    if mean < -1.5:
        return 'unit is reflectance (0 to 1), values look like decibels: state unit: db'
    return 'unit is reflectance (0 to 1), values are outside of it: is nodata stated?'


def _dn(bands: Sequence[BandSummary], fits: bool) -> str:
    """Return what contradicts digital numbers."""
    low, top = min(band.minimum for band in bands), max(band.maximum for band in bands)
    if 0 < top <= 2 and low >= -1:
        return (
            'unit is dn (digital numbers), values look like reflectance (0 to 1): state unit: reflectance, or a scale'
        )
    if fits:
        return ''
    return 'unit is dn (digital numbers, expected 0 to about 20000), values are outside of it: is nodata stated?'


def _db(bands: Sequence[BandSummary], fits: bool) -> str:
    """Return what contradicts backscatter in decibels."""
    low, top = min(band.minimum for band in bands), max(band.maximum for band in bands)
    mean = sum(band.mean for band in bands) / len(bands)
    if low >= 0 and mean < 3:
        return 'unit is db (decibels), values look like linear power: state unit: power'
    if low >= 0 and top > 60:
        return 'unit is db (decibels), values look like amplitude or other digital numbers: state unit: dn'
    if low >= 0 and mean > 3:
        return 'unit is db (decibels, most of the ground is below 0), values are positive: is the sign lost?'
    return '' if fits else 'unit is db (expected -40 to 30), values are outside of it: is nodata stated?'


def _power(bands: Sequence[BandSummary], fits: bool) -> str:
    """Return what contradicts backscatter in linear power."""
    if fits:
        return ''
    if sum(band.mean for band in bands) < 0:
        return 'unit is power (linear, 0 or more), values look like decibels: state unit: db'
    if min(band.minimum for band in bands) < 0:
        return 'unit is power (linear, 0 or more), values are negative: is nodata stated?'
    return 'unit is power (linear, mostly below 1), values look like amplitude or other digital numbers: state unit: dn'


def _metres(bands: Sequence[BandSummary], fits: bool) -> str:
    """Return what contradicts heights in metres."""
    return '' if fits else 'unit is metres (expected -500 to 9000), values are outside of it: is nodata stated?'


_UNITS = {'reflectance': _reflectance, 'dn': _dn, 'db': _db, 'power': _power, 'metres': _metres}


def _spoken(band: BandSummary) -> str:
    if not math.isfinite(band.mean):
        return f'valid fraction {band.valid:g}'
    return f'min {band.minimum:.4g}, mean {band.mean:.4g}, max {band.maximum:.4g}'
