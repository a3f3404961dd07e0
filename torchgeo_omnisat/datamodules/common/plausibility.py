# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Plausibility of pixel values, given the stated unit and the statistics of a checkpoint."""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ...modality import Modality, as_modalities
from ...utils.tensors.observed import MAX_RAW
from ...utils.tensors.quantization import SCALE

#: Common nodata values, which are not valid measurements. Values beyond `MAX_RAW` are nodata too.
FILL_VALUES = (-9999.0, -99999.0, -32768.0, -32767.0, 65535.0)


#: Fraction of zeros in every band of an optical or radar image above which 0 may be an undeclared nodata value.
MOST_ZEROS = 0.02


class BandSummary(NamedTuple):
    """Summary of the valid pixels of a band, a fraction *valid* of all; NaN if there are none.

    A fraction *zero* of the valid pixels is 0.
    """

    minimum: float
    mean: float
    maximum: float
    std: float
    valid: float = 1.0
    zero: float = 0.0


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
    """Return a sentence for each finding of values that contradict the unit of a modality.

    It has bands, values, expectation and likely cause. Without a unit, only nodata, constant and empty bands are found.
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
            found.setdefault(cause, []).append(f'{name} ({_summary_text(summary)})')
    return [f'{modality.name}: {cause}: {", ".join(names)}' for cause, names in found.items()]


def implausible_statistics(modality: Modality, mean: Sequence[float], std: Sequence[float]) -> list[str]:
    """Find means and standard deviations that contradict the unit of a modality, if it is known."""
    if modality.unit == 'unknown':
        return []
    bands = [BandSummary(m, m, math.nextafter(m, math.inf), s) for m, s in zip(mean, std, strict=True)]
    return implausible(modality, bands)


def _implausible_band(modality: Modality, band: BandSummary, bands: Sequence[BandSummary]) -> str:
    """Return the likely cause of implausible values of a band; empty if there is none."""
    if not math.isfinite(band.mean):
        return 'no valid pixel'
    for value in (band.minimum, band.maximum):
        if (value in FILL_VALUES and value != band.mean) or abs(value) >= MAX_RAW:
            return f'nodata {value:g} counts as data, state it as nodata'
    if band.minimum == band.maximum:
        level = modality.kind == 'elevation' or modality.unit == 'metres'
        return '' if level else f'constant, every valid pixel is {band.mean:g}'
    if modality.kind in ('optical', 'radar') and (zero := min(each.zero for each in bands)) > MOST_ZEROS:
        return f'at least {zero:.0%} of the pixels of each band are 0: if this means no data, state nodata: 0'
    if modality.kind == 'embedding' and _are_codes(band):
        return 'values look like int8 codes, read them with kind: alphaearth, tessera or embeddings'
    if modality.unit == 'unknown':
        return ''
    low, high, typical = _RANGES[modality.unit]
    fits = low <= band.minimum and band.maximum <= high and abs(band.mean) <= typical
    return _UNITS[modality.unit](bands, fits)


def _are_codes(band: BandSummary) -> bool:
    whole = float(band.minimum).is_integer() and float(band.maximum).is_integer()
    return whole and band.minimum >= -128 and band.maximum <= 127 and band.maximum - band.minimum > 32


def _reflectance(bands: Sequence[BandSummary], fits: bool) -> str:
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
    low, top = min(band.minimum for band in bands), max(band.maximum for band in bands)
    if 0 < top <= 2 and low >= -1:
        return 'unit is dn (digital numbers), values look like reflectance: state unit: reflectance, or a scale'
    if fits:
        return ''
    return 'unit is dn (digital numbers, expected 0 to about 20000), values are outside of it: is nodata stated?'


def _db(bands: Sequence[BandSummary], fits: bool) -> str:
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
    if fits:
        return ''
    if sum(band.mean for band in bands) < 0:
        return 'unit is power (linear, 0 or more), values look like decibels: state unit: db'
    if min(band.minimum for band in bands) < 0:
        return 'unit is power (linear, 0 or more), values are negative: is nodata stated?'
    return 'unit is power (linear, mostly below 1), values look like amplitude or other digital numbers: state unit: dn'


def _metres(bands: Sequence[BandSummary], fits: bool) -> str:
    return '' if fits else 'unit is metres (expected -500 to 9000), values are outside of it: is nodata stated?'


_UNITS = {'reflectance': _reflectance, 'dn': _dn, 'db': _db, 'power': _power, 'metres': _metres}


def _summary_text(band: BandSummary) -> str:
    if not math.isfinite(band.mean):
        return f'valid fraction {band.valid:g}'
    return f'min {band.minimum:.4g}, mean {band.mean:.4g}, max {band.maximum:.4g}'


Values = NDArray[np.float64]


class _Cause(NamedTuple):
    """Hypothesis about values, how to convert them back, and the additional cost of an unusual cause."""

    text: str
    undo: Callable[[Values], Values]
    prior: float = 0.0


#: Cost (:meth:`_Comparison._costs`) above which the pixels are unlikely as they are.
_REJECT = 2.0
_GAINS = {
    1e4: 'reflectance (0 to 1) where the checkpoint has digital numbers (x 10000): divided by 10000',
    1e-4: 'digital numbers (x 10000) where the checkpoint has reflectance (0 to 1): multiplied by 10000',
    255.0: 'values from 0 to 1 where the checkpoint has 8-bit values (0 to 255): divided by 255',
    1 / 255: '8-bit values (0 to 255) where the checkpoint has values from 0 to 1: multiplied by 255',
    100.0: 'values divided by 100, such as per cent where the checkpoint has reflectance x 10000',
    0.01: 'values multiplied by 100, such as reflectance x 10000 where the checkpoint has per cent',
}


def compare(
    modality: Modality, pixels: ArrayLike, mean: ArrayLike, std: ArrayLike, tiles: int = 1, dates: int = 1
) -> list[str]:
    """Compare pixels with the statistics of a checkpoint, and return a sentence for each likely cause.

    Only mean and standard deviation of each band are known, and values of other regions, seasons and clouds differ
    much. Therefore a distance alone is not a finding. A cause is named if the pixels are unlikely, but likely after
    undoing the cause, in all bands together or clearly in one.

    *pixels* are ``(N, C)`` in raw units, NaN for nodata, from a number of *tiles* and *dates*.
    """
    values = np.array(pixels, dtype=np.float64).reshape(-1, len(modality.bands))
    values[~np.isfinite(values)] = np.nan
    numbers = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    return _Comparison(modality, values, *numbers, tiles, dates).findings()


class _Comparison:
    """Comparison of the pixels of a modality with the statistics of a checkpoint."""

    def __init__(self, modality: Modality, pixels: Values, mean: Values, std: Values, tiles: int, dates: int) -> None:
        self.modality, self.pixels, self.mean, self.tiles, self.dates = modality, pixels, mean, tiles, dates
        self.varies = std > 1e-6 * np.maximum(1e-3, np.abs(mean))
        self.std = np.where(self.varies, std, 1.0)
        #: One band of unknown kind may be a height, which differs from place to place as no other value does.
        self.height = modality.kind == 'elevation' or (modality.kind is None and len(modality.bands) == 1)

    def findings(self) -> list[str]:
        """Return a sentence for each finding."""
        every = range(len(self.mean))
        if (np.isnan(self.pixels) | (self.pixels == 0)).all():
            zero = bool((self.pixels == 0).any()) and not self.height
            return [self._finding(every, 'every pixel is 0')] if zero else []
        found = self._zeros() + self._nodata()
        observed = self._observed()
        self.bands = np.flatnonzero(observed)
        if not self.bands.size:
            return found
        self.center, self.spread = _moments(self.pixels)
        steps: Sequence[Callable[[], list[str]]]
        steps = (self._bytes, self._constant, self._sign, self._unit, self._offset, self._order)
        if self.modality.kind == 'embedding':  # dimensions have no physical unit, sign or order
            steps = (self._constant, self._unit)
        return found + next((finding for step in steps if (finding := step())), [])

    def _observed(self) -> NDArray[np.bool_]:
        return self.varies & (np.isfinite(self.pixels).sum(0) >= 16)

    def _zeros(self) -> list[str]:
        known = np.isfinite(self.pixels).any(1)
        zero = known & (np.nan_to_num(self.pixels) == 0).all(1)
        share = zero.sum() / max(1, known.sum())
        far = np.abs(self.mean / self.std).max() > 3
        if self.height or share < 0.02 or not (far or len(self.mean) > 1):
            return []
        self.pixels[zero] = np.nan
        return [
            self._finding(range(len(self.mean)), f'{share:.1%} of the pixels are 0 in all bands, nodata counts as data')
        ]

    def _nodata(self) -> list[str]:
        found = []
        for value in FILL_VALUES:
            far = np.abs(value - self.mean) > 5 * self.std
            share = (self.pixels == value).sum(0) / np.maximum(1, np.isfinite(self.pixels).sum(0))
            bands = np.flatnonzero(far & (share > 2e-3))
            if bands.size:
                found.append(
                    self._finding(bands, f'{share.max():.1%} of the pixels are {value:g}, nodata counts as data')
                )
                self.pixels[self.pixels == value] = np.nan
        bands = np.flatnonzero((np.abs(self.pixels) >= MAX_RAW).any(0) & (np.abs(self.mean) < MAX_RAW / 1e3))
        if bands.size:
            value = np.nanmax(np.abs(self.pixels))
            found.append(self._finding(bands, f'pixels are as large as {value:g}, nodata counts as data'))
            self.pixels[np.abs(self.pixels) >= MAX_RAW] = np.nan
        return found

    def _constant(self) -> list[str]:
        if self.height and self.tiles < 4:
            return []
        with _quiet():
            low, high = np.nanmin(self.pixels, 0), np.nanmax(self.pixels, 0)
        bands = [band for band in self.bands if low[band] == high[band]]
        return [self._finding([band], f'constant band, every pixel is {low[band]:g}') for band in bands]

    def _unit(self) -> list[str]:
        causes = self._causes()
        here = self._costs(self.pixels)
        there = np.array([self._costs(cause.undo(self.pixels)) + cause.prior for cause in causes])
        whole, now = np.median(there, 1), float(np.median(here))
        best = int(np.argmin(whole))
        if _explains(now, whole[best]) and (here > there[best]).mean() > 0.7:
            return [self._finding(self.bands, f'looks like {causes[best].text}', True)]
        found: dict[str, list[int]] = {}
        for index, band in enumerate(self.bands):
            best = int(np.argmin(there[:, index]))
            if here[index] > 2 * _REJECT and there[best, index] < 1 and _explains(here[index], there[best, index]):
                found.setdefault(causes[best].text, []).append(int(band))
        return [self._finding(bands, f'looks like {text}', True) for text, bands in found.items()]

    def _sign(self) -> list[str]:
        with _quiet():
            opposite = np.nanmean(np.sign(self.pixels) == -np.sign(self.mean), axis=0)
        mirrored = np.abs(-self.center - self.mean) < 0.5 * np.abs(self.center - self.mean)
        far = np.abs(self.mean) > (3 if self.height else 0.3) * self.std
        bands = [band for band in self.bands if opposite[band] > 0.9 and mirrored[band] and far[band]]
        if not bands:
            return []
        # The difference of two bands changes its sign if they changed places.
        every, self.bands = self.bands, np.setdiff1d(self.bands, bands)
        swapped = self._order()
        self.bands = every
        return swapped or [self._finding(bands, 'looks like values of the opposite sign', True)]

    def _causes(self) -> list[_Cause]:
        """Return the hypotheses that make sense for the kind of the modality."""
        kind, mean, std = self.modality.kind, self.mean, self.std
        if kind == 'embedding':
            return [
                _Cause('int8 codes where the checkpoint has embeddings', lambda x: np.sign(x) * (x / SCALE) ** 2),
                _Cause('embeddings where the checkpoint has int8 codes', _to_codes),
            ]
        causes = []
        for gain, text in _GAINS.items():
            # With a gain of 255, one side is in 8 bit.
            bits = mean if gain > 1 else self.center
            odd = gain in (255.0, 1 / 255) and not (bits[self.bands] < 256).all()
            if not self.height or gain in (1e4, 1e-4):
                prior = 0.5 if gain in (100.0, 0.01) else 0.3 * odd
                causes.append(_Cause(text, lambda x, gain=gain: x * gain, prior))  # type: ignore[misc]
        with _quiet():
            negative = np.median(np.nanmean(self.pixels[:, self.bands] < 0, axis=0))
        if not self.height and 0.1 < negative < 0.9:
            causes.append(_Cause('values that are normalised already', lambda x: x * std + mean))
        if kind in ('radar', None) and not self.height:
            causes += [
                _Cause('linear power where the checkpoint has decibels', lambda x: 10 * _log10(x)),
                _Cause('amplitude where the checkpoint has decibels', lambda x: 20 * _log10(x)),
                _Cause(
                    'amplitude (digital numbers) where the checkpoint has decibels', lambda x: 20 * _log10(x) - 83, 0.2
                ),
                _Cause('decibels where the checkpoint has linear power', lambda x: 10 ** (np.minimum(x, 200) / 10)),
                _Cause('decibels where the checkpoint has amplitude', lambda x: 10 ** (np.minimum(x, 200) / 20)),
            ]
        if kind in ('thermal', None):
            ours, theirs = ((np.abs(part[self.bands]) < 100).all() for part in (self.center, mean))
            if ours and not theirs:
                causes.append(_Cause('degrees Celsius where the checkpoint has kelvin', lambda x: x + 273.15))
            if theirs and not ours:
                causes.append(_Cause('kelvin where the checkpoint has degrees Celsius', lambda x: x - 273.15))
        return causes

    def _costs(self, pixels: Values) -> Values:
        """Return how unlikely the pixels of each band are: of its mean, as of a Cauchy distribution, and its spread."""
        center, spread = _moments(pixels)
        distance = (center - self.mean) / self.std
        with np.errstate(divide='ignore', invalid='ignore'):
            ratio = np.log(spread / self.std)
        costs = np.log1p(distance**2) + np.where(ratio > 0, ratio, -0.5 * ratio)
        return np.nan_to_num(costs, nan=99.0, posinf=99.0)[self.bands]

    def _bytes(self) -> list[str]:
        if self.modality.kind in ('radar', 'thermal', 'elevation') or self.height:
            return []
        values = self.pixels[:, self.bands]
        values = values[np.isfinite(values)]
        expected, typical = np.median(self.mean[self.bands]), np.median(self.center[self.bands])
        whole = values.min() >= 0 and 50 < values.max() <= 255 and bool((values == np.round(values)).all())
        if not whole or expected < 350 or typical > 0.5 * expected:
            return []
        full = (values == 255).mean()
        if full > 0.2:
            return [self._finding(self.bands, f'saturated, {full:.0%} of the pixels are clipped at 255 (8 bit)', True)]
        return [self._finding(self.bands, 'looks like 8-bit values (0 to 255) where the checkpoint has more', True)]

    def _offset(self) -> list[str]:
        """Find the offset of 1000 that Sentinel-2 products have since baseline 04.00.

        Clouds and snow raise some bands; the offset raises the darkest pixels of all of them alike.
        """
        mean = self.mean[self.bands]
        # Haze on one date can raise a few bands alike.
        enough = len(mean) >= 8 or (len(mean) >= 3 and self.dates >= 3)
        if self.modality.kind != 'optical' or not enough or not 200 < np.median(mean) < 20000:
            return []
        shift, dark = self.center[self.bands] - mean, mean.min() < 1500
        if self.modality.wavelengths is not None:
            dark = np.asarray(self.modality.wavelengths)[self.bands].min() < 600
        with _quiet():
            floor = np.nanpercentile(self.pixels[:, self.bands], 1, axis=0).min()
        for sign, text in ((1, 'has an offset of +1000'), (-1, 'lacks an offset of 1000')):
            left = np.abs(sign * shift - 1000)
            possible = (dark and 900 < floor < 1500) if sign > 0 else floor < -300
            if possible and np.median(left) < 250 and left.max() < 600 and left.mean() < 0.4 * np.abs(shift).mean():
                cause = f'{text} (Sentinel-2 products have one since baseline 04.00) unlike the checkpoint'
                return [self._finding(self.bands, cause, True)]
        return []

    def _order(self) -> list[str]:
        """Find two swapped bands, or bands in reverse order.

        Brightness varies between regions equally in all bands, so contrasts between bands are compared. The result
        must be as in training, or snow and water would look like other orders.
        """
        count = len(self.bands)
        if self.height or count < 2:
            return []
        orders = [list(range(count))[::-1]]
        for first, second in combinations(range(count), 2):
            order = list(range(count))
            order[first], order[second] = second, first
            orders.append(order)
        fits = [(self._misfit(order), order) for order in orders]
        misfit, order = min(fits, key=lambda fit: fit[0])
        if not misfit < math.inf:
            return []
        moved = [band for index, band in enumerate(self.bands) if order[index] != index]
        radar = 'polarisations' if self.modality.kind == 'radar' else 'bands'
        if len(moved) == 2:
            return [self._finding(moved, f'{radar} look swapped', True)]
        return [self._finding(self.bands, f'{radar} look swapped, in reverse order', True)]

    def _misfit(self, order: list[int]) -> float:
        """Return the distance from training of the bands in another order; infinite if that explains nothing."""
        center, mean, std = (part[self.bands] for part in (self.center, self.mean, self.std))
        moved = np.array([index != place for index, place in enumerate(order)])
        expected, deviation = mean[order], std[order]
        distance = np.abs(center - expected) / deviation
        ours, theirs, now = (part[moved] - part[moved].mean() for part in (center, expected, mean))
        with np.errstate(divide='ignore'):
            ratio = np.abs(np.log(self.spread[self.bands] / deviation))
        strong = np.std(now) > (0.5 if moved.sum() == 2 else 0.35) * deviation[moved].mean()
        # Where contrasts are weak, mean and standard deviation of each band decide if they are equal.
        apart = (np.abs(center - mean) / self.std[self.bands])[moved].mean()
        enough = len(center) > 2 or self.modality.kind == 'radar'
        if enough and apart > 0.5 and distance.max() < 0.2 and ratio.max() < 0.25:
            return float(distance.mean())
        if not strong or distance.max() > 0.6 or distance.mean() > 0.3 or np.median(ratio) > 1:
            return math.inf
        slope = (ours @ theirs) / (theirs @ theirs)
        if not 0.5 < slope < 2 or _fraction(ours, theirs) < 0.9 or _fraction(ours, now) > 0.4:
            return math.inf
        return float(distance.mean())

    def _finding(self, bands: Iterable[int | np.integer], cause: str, numbers: bool = False) -> str:
        bands = [int(band) for band in bands]
        names = ', '.join(self.modality.bands[band] for band in bands)
        text = f'{self.modality.name}: {"bands" if len(bands) > 1 else "band"} {names}: {cause}'
        if numbers:
            first = bands[0]
            text += f' ({self.modality.bands[first]} has mean {self.center[first]:.4g} and standard deviation '
            text += f'{self.spread[first]:.4g}, expected {self.mean[first]:.4g} and {self.std[first]:.4g})'
        return text


def _explains(now: float, then: float) -> bool:
    """Return whether a cause lowers the cost enough, so that it is far more likely than the pixels as they are."""
    return now > _REJECT and now - then > 2 and (then < 1 or (then < 2.2 and now - then > 3))


def _fraction(ours: Values, theirs: Values) -> float:
    product = max(0.0, float(ours @ theirs))
    return product**2 / max(1e-300, float((ours @ ours) * (theirs @ theirs)))


def _moments(pixels: Values) -> tuple[Values, Values]:
    """Return mean and standard deviation of each band without its extreme percentiles."""
    with _quiet():
        low, high = np.nanpercentile(pixels, (1, 99), axis=0)
        kept = np.clip(pixels, low, high)
        return np.nanmean(kept, 0), np.nanstd(kept, 0)


def _to_codes(values: Values) -> Values:
    return np.sign(values) * np.sqrt(np.abs(values)) * SCALE


def _log10(values: Values) -> Values:
    with np.errstate(divide='ignore', invalid='ignore'):
        return np.where(values > 0, np.log10(values), np.nan)


class _quiet(warnings.catch_warnings):
    """Context without NumPy's warnings about bands that have no pixel."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter('ignore', RuntimeWarning)


#: Handling of implausible tiles.
GuardMode = Literal['warn', 'error', 'off']
#: Number of tiles of each modality to compare, of tiles after which the comparison does not wait for more, and of
#: pixels per tile.
TILES, LIMIT, PIXELS = 16, 64, 2048


class Guard:
    """Comparison of the first tiles of at most *total* batches with the statistics of a model, by modality."""

    def __init__(
        self,
        modalities: Mapping[str, Modality],
        mean: Mapping[str, Any],
        std: Mapping[str, Any],
        mode: GuardMode,
        total: float = float('inf'),
    ) -> None:
        self.modalities = {name: m for name, m in modalities.items() if name in mean and name in std}
        self.mean, self.std, self.mode, self.total = mean, std, mode, total
        self.seen = self.batches = 0
        self.tiles = dict.fromkeys(self.modalities, 0)
        self.pixels: dict[str, list[Tensor]] = {name: [] for name in self.modalities}
        self.dates: dict[str, set[int]] = {name: set() for name in self.modalities}
        self.done = not self.modalities
        self._generator = torch.Generator().manual_seed(0)

    def look(self, batch: Mapping[str, Tensor]) -> None:
        """Add a batch in raw units, and conclude if there are enough tiles."""
        if self.done:
            return
        self.batches += 1
        self.seen += max((len(batch[m.image_key]) for m in self.modalities.values() if m.image_key in batch), default=0)
        for name, modality in self.modalities.items():
            if modality.image_key in batch and self.tiles[name] < TILES:
                self._add(name, *(batch[key] for key in modality.keys))
        if min(self.tiles.values()) >= TILES or self.seen >= LIMIT or self.batches >= self.total:
            self.conclude()

    def conclude(self) -> None:
        """Compare the observed values; raise ValueError if they are implausible and the mode is ``'error'``."""
        if self.done:
            return
        self.done = True
        found: list[str] = []
        for name, modality in self.modalities.items():
            if self.pixels[name]:
                pixels = torch.cat(self.pixels[name]).numpy()
                counts = self.tiles[name], len(self.dates[name])
                found += compare(modality, pixels, self.mean[name], self.std[name], *counts)
        self.pixels.clear()
        if not found:
            return
        text = 'the first tiles do not match the training data of the model: ' + '; '.join(found)
        advice = 'correct the files or their settings (unit, scale, nodata, order of bands)'
        if self.mode == 'error':
            raise ValueError(f'{text}. Expected the units and bands of the checkpoint: {advice}, or use guard: warn')
        warnings.warn(f'{text}. Results are wrong if so: {advice}; guard: off disables this warning', stacklevel=2)

    def _add(self, name: str, image: Tensor, dates: Tensor, valid: Tensor) -> None:
        if not self.modalities[name].temporal:
            image = image.unsqueeze(1)
        for tile, days, flags in zip(image, dates, valid, strict=True):
            frames = tile[flags]
            if self.tiles[name] >= TILES or not len(frames):
                continue
            count = frames.shape[0] * frames.shape[2] * frames.shape[3]
            some = torch.randint(count, (min(PIXELS, count),), generator=self._generator).to(frames.device)
            pixels = frames.detach().movedim(1, -1).reshape(count, -1)[some].cpu().double()
            if pixels.isfinite().any():
                self.tiles[name] += 1
                self.pixels[name].append(pixels)
                self.dates[name] |= set(days[flags].tolist())


def make_guard(
    trainer: Any,
    modalities: Mapping[str, Modality],
    measured: Mapping[str, Any],
    named: Mapping[str, str],
    mode: GuardMode,
) -> Guard:
    """Return the guard of a run; it compares nothing if the model has no statistics.

    *measured* is the argument of :meth:`.OmniSatTask.statistics_of` with the names of the datamodule, and *named* are
    their names in the model, where they differ.
    """
    task = getattr(trainer.lightning_module, 'task', trainer.lightning_module)  # the robustness test has one
    hparams: Any = getattr(task, 'hparams', {})
    ours = {name: named.get(name, name) for name in modalities}
    statistics: Mapping[str, Any] = {kind: hparams.get(kind) or {} for kind in ('mean', 'std')}
    if hasattr(task, 'statistics_of'):
        plain = {
            kind: measured[kind] and {ours[name]: [float(x) for x in v] for name, v in measured[kind].items()}
            for kind in ('mean', 'std')
        }
        statistics = task.statistics_of({**measured, **plain}, list(ours.values()))[1]
    mean, std = ({n: statistics[kind][o] for n, o in ours.items() if o in statistics[kind]} for kind in ('mean', 'std'))
    stored = as_modalities(hparams['modalities']) if hparams.get('modalities') else {}
    known = {name: _with_facts(modality, stored.get(ours[name])) for name, modality in modalities.items()}
    counts = {'validate': 'num_val_batches', 'test': 'num_test_batches', 'predict': 'num_predict_batches'}
    total = sum(getattr(trainer, counts[trainer.state.fn])) or float('inf')
    return Guard(known, mean, std, mode, total)


def _with_facts(modality: Modality, stored: Modality | None) -> Modality:
    if stored is None or stored.bands != modality.bands:
        return modality
    kind, wavelengths = modality.kind or stored.kind, modality.wavelengths or stored.wavelengths
    return replace(modality, kind=kind, wavelengths=wavelengths)
