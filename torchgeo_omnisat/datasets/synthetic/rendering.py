# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Simulated images of a synthetic landscape for each sensor.

Days are counted from 2018-09-01. The tables at the top have all parameters of the appearance of covers.
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.special import expit

from .landscape import GSD, VERSIONS, Array, Difficulty, Indices, Landscape, smooth_noise

#: Reflectance x 10000 of B02 B03 B04 B05 B06 B07 B08 B8A B11 B12.
SPECTRA = {
    'wet soil': (550, 800, 1050, 1300, 1500, 1650, 1800, 1900, 2500, 2100),
    'dry soil': (950, 1350, 1850, 2200, 2450, 2650, 2800, 2950, 3700, 3200),
    'leaf': (250, 600, 300, 950, 3100, 4100, 4400, 4550, 1900, 900),
    'straw': (650, 1050, 1450, 1900, 2300, 2550, 2800, 3000, 3300, 2300),
    'flower': (500, 1300, 1250, 1700, 3000, 3700, 4000, 4150, 2200, 1200),
    'trees': (200, 420, 230, 650, 1900, 2450, 2650, 2750, 1250, 550),
    'stone': (1300, 1400, 1500, 1600, 1700, 1800, 1850, 1900, 2100, 1950),
    'cloud': (5200, 5100, 5000, 5200, 5400, 5500, 5600, 5600, 4200, 3400),
}

#: Indices of the bands of Sentinel-2 with a GSD of 20 m.
COARSE = (3, 4, 5, 7, 8, 9)


@dataclass(frozen=True)
class Season:
    """Phenology of a cover, a double logistic curve above the green fraction in winter.

    Args:
        winter: Green fraction of the ground in winter, from the day *sown* on.
        peak: Green fraction at the peak of the season.
        sown: Day of emergence.
        rise: Day of fastest growth.
        fall: Day of fastest senescence.
        harvest: Day on which the straw is removed.
        mown: Days between cuts, 0 for none.
        flower: Fraction of yellow flowers in April.
        green: Spectrum of the green fraction.
        bare: Spectra of the wet and the dry ground.
    """

    winter: float
    peak: float
    sown: float
    rise: float
    fall: float
    harvest: float
    mown: float = 0
    flower: float = 0
    green: str = 'leaf'
    bare: tuple[str, str] = ('wet soil', 'dry soil')


SEASONS = {
    'winter': Season(0.30, 0.92, 85, 205, 296, 322),
    'early winter': Season(0.42, 0.92, 72, 190, 272, 300),
    'flowering': Season(0.65, 0.92, 30, 195, 282, 310, flower=0.8),
    'summer': Season(0.02, 0.92, 250, 278, 385, 400),
    'grass': Season(0.55, 0.85, -60, 205, 400, 600),
    'mown': Season(0.38, 0.90, -60, 212, 410, 600, mown=48),
    'verge': Season(0.50, 0.75, -60, 210, 390, 600),
    'woods': Season(0.45, 0.95, -60, 232, 412, 600, green='trees'),
    'built': Season(0.12, 0.18, -60, 210, 400, 600, bare=('stone', 'stone')),
    'road': Season(0.02, 0.05, -60, 210, 400, 600, bare=('stone', 'stone')),
}


@dataclass(frozen=True)
class Backscatter:
    """Backscatter of a cover in dB, with the contribution of growing plants.

    Args:
        level: VV and VH without plants.
        plants: VV and VH that plants add.
        begin: First day with plants.
        end: Last day with plants.
        late: VV and VH added in the last 70 days before *end*.
    """

    level: tuple[float, float]
    plants: tuple[float, float] = (0, 0)
    begin: float = 0
    end: float = 400
    late: tuple[float, float] = (0, 0)


BACKSCATTER = {
    'cereal': Backscatter((-10.0, -17.0), (-4.5, -2.5), 200, 305),
    'tall cereal': Backscatter((-10.0, -17.0), (-4.5, -2.5), 200, 305, late=(-0.8, 1.6)),
    'pods': Backscatter((-10.0, -17.0), (-1.5, 1.5), 190, 305, late=(1.0, 2.5)),
    'leaves': Backscatter((-10.0, -17.0), (1.0, 3.0), 275, 395),
    'stalks': Backscatter((-10.0, -17.0), (0.0, 4.2), 275, 395),
    'sward': Backscatter((-11.5, -17.8), (-0.5, 0.8), 205, 395),
    'woods': Backscatter((-9.0, -14.5), (0.0, 0.5), 230, 410),
    'built': Backscatter((-4.5, -11.5)),
    'road': Backscatter((-13.0, -21.0)),
}


@dataclass(frozen=True)
class Texture:
    """Texture of a cover at a resolution of one metre in July.

    Args:
        colour: Red, green and blue, from 0 to 255.
        pattern: ``'blobs'``, ``'rows'``, ``'grid'``, ``'lines'`` or ``'blocks'``.
        spacing: Minimum and maximum distance between repetitions in metres.
        contrast: Standard deviation of the brightness, which ranges from 0 to 255.
    """

    colour: tuple[float, float, float]
    pattern: str
    spacing: tuple[float, float]
    contrast: float


TEXTURES = {
    'tramlines': Texture((118, 112, 84), 'lines', (16, 26), 6),
    'drilled': Texture((92, 104, 74), 'blobs', (2, 2), 7),
    'ridges': Texture((92, 104, 74), 'rows', (5, 8), 15),
    'mottled': Texture((96, 110, 76), 'blobs', (2, 2), 7),
    'trees': Texture((96, 110, 76), 'grid', (7, 10), 18),
    'canopy': Texture((58, 74, 58), 'blobs', (2, 2), 15),
    'roofs': Texture((128, 118, 110), 'blocks', (14, 22), 30),
    'asphalt': Texture((132, 130, 126), 'blobs', (2, 2), 4),
}


def render_s2(
    rng: np.random.Generator,
    land: Landscape,
    days: Indices,
    clouds: bool = True,
    difficulty: Difficulty = VERSIONS[1],
) -> Array:
    """Simulate Sentinel-2 as mixtures of green, straw and soil, with *clouds*, shadows and noise.

    *days* (T,) are since 2018-09-01. Return reflectance x 10000, (T, 10, S / 10, S / 10).
    """
    pixel, parcel, fraction = land.fragments()
    side = len(land.parcels) // GSD
    local = smooth_noise(rng, (3, side, side), 1.0).reshape(3, -1)[:, pixel]
    reflectance = _reflectance(land, parcel, local, days)
    clean = np.zeros((side * side, len(days), 10))
    np.add.at(clean, pixel, reflectance * fraction[:, None, None])
    image = np.moveaxis(clean.reshape(side, side, len(days), 10), (0, 1), (2, 3))
    if difficulty.blur:
        image = gaussian_filter(image, (0, 0, difficulty.blur, difficulty.blur), mode='nearest')
    image *= 1 + 0.04 * rng.standard_normal((len(days), 1, side, side))
    image += rng.normal(0, 40, (len(days), 10, 1, 1)) + rng.normal(0, 90, image.shape)
    if clouds:
        image = _add_haze(rng, _add_clouds(rng, image), difficulty.haze)
    if difficulty.coarse:
        blocks = image[:, COARSE].reshape(len(days), len(COARSE), side // 2, 2, side // 2, 2)
        image[:, COARSE] = blocks.mean((3, 5)).repeat(2, axis=2).repeat(2, axis=3)
    return image


def render_s1(rng: np.random.Generator, land: Landscape, days: Indices, look: float, looks: int = 3) -> Array:
    """Simulate a Sentinel-1 time series as backscatter of each cover with gamma-distributed speckle of *looks*.

    Rows across the line of sight *look* in radians are brighter, so the two orbits differ for a parcel. Each orbit also
    has an independent error per parcel. Return VV, VH and VV - VH in dB, (T, 3, S / 10, S / 10).
    """
    pixel, parcel, fraction = land.fragments()
    side, count = len(land.parcels) // GSD, len(land.covers)
    facing = 1.2 * np.cos(2 * (land.azimuth - look)) + rng.normal(0, 0.6, count)
    rain = rng.normal(0, 0.8, (len(days), 1))
    mean = _backscatter(land, days) + facing[:, None, None] * (1, 0.6) + rng.normal(0, 0.3, (count, 1, 2)) + rain
    local = 0.6 * smooth_noise(rng, (side, side), 1.0).reshape(-1)[pixel]
    power = np.zeros((side * side, len(days), 2))
    np.add.at(power, pixel, 10 ** ((mean[parcel] + local[:, None, None]) / 10) * fraction[:, None, None])
    power *= rng.gamma(looks, 1 / looks, power.shape)
    decibel = 10 * np.log10(power)
    decibel = np.concatenate((decibel, decibel[..., :1] - decibel[..., 1:]), axis=-1)
    return np.moveaxis(decibel.reshape(side, side, len(days), 3), (0, 1), (2, 3))


def render_spot(rng: np.random.Generator, land: Landscape) -> Array:
    """Simulate a SPOT image (3, S, S) of rows, trees, tramlines and mottling at a resolution of one metre."""
    textures = [TEXTURES[cover.spot] for cover in land.covers]
    count, parcels = len(textures), land.parcels
    bright = 14 * (land.soil - 0.5) - 4 * land.vigour + rng.normal(0, 7, count)
    tint = rng.normal(0, 5, (count, 3)) + land.vigour[:, None] * (-2, 2, -1)
    colour = np.array([texture.colour for texture in textures]) + bright[:, None] + tint
    low, high = np.array([texture.spacing for texture in textures]).T
    spacing = rng.uniform(low, high)
    contrast = np.array([texture.contrast for texture in textures]) * rng.uniform(0.7, 1.3, count)
    row, column = np.indices(parcels.shape)
    sine, cosine = np.sin(land.azimuth)[parcels], np.cos(land.azimuth)[parcels]
    phase = rng.uniform(0, 1, (2, count))
    wobble = 0.08 * smooth_noise(rng, parcels.shape, 6)
    across = (row * cosine - column * sine) / spacing[parcels] + phase[0][parcels] + wobble
    along = (row * sine + column * cosine) / spacing[parcels] + phase[1][parcels] + wobble
    patterns = np.array(list(_PATTERNS))
    kind = np.searchsorted(patterns, [texture.pattern for texture in textures])[parcels]
    blobs = smooth_noise(rng, parcels.shape, 1.2)
    pattern = np.choose(kind, [_PATTERNS[name](across, along, blobs) for name in patterns])
    shade = contrast[parcels] * (pattern + 0.25 * smooth_noise(rng, parcels.shape, 8))
    return np.clip(np.moveaxis(colour[parcels], -1, 0) + shade + rng.normal(0, 3.5, (3, *parcels.shape)), 0, 255)


def _rows(across: Array, along: Array, blobs: Array) -> Array:
    return 1.2 * np.sin(2 * np.pi * across) + 0.5 * blobs


def _grid(across: Array, along: Array, blobs: Array) -> Array:
    return 1.7 * (0.5 - np.cos(2 * np.pi * across) * np.cos(2 * np.pi * along)).clip(-1, 0.5) + 0.5 * blobs


def _lines(across: Array, along: Array, blobs: Array) -> Array:
    return 0.9 * blobs - 2.5 * (np.abs(across % 1 - 0.5) < 0.04)


def _blocks(across: Array, along: Array, blobs: Array) -> Array:
    return np.where((across % 1 < 0.55) & (along % 1 < 0.6), 1.0, -0.6) + 0.2 * blobs


def _blobs(across: Array, along: Array, blobs: Array) -> Array:
    return blobs


#: Patterns by name, in alphabetical order for ``np.searchsorted``.
_PATTERNS = {'blobs': _blobs, 'blocks': _blocks, 'grid': _grid, 'lines': _lines, 'rows': _rows}


def _reflectance(land: Landscape, parcel: Indices, local: Array, days: Indices) -> Array:
    """Return the reflectance (F, T, 10) of F fragments; *local* varies season, vigour and soil within a parcel."""
    seasons = [SEASONS[cover.s2] for cover in land.covers]
    facts = np.array([(s.winter, s.peak, s.sown, s.rise, s.fall, s.harvest, s.mown, s.flower) for s in seasons])
    winter, peak, sown, rise, fall, harvest, mown, flower = (fact[:, None] for fact in facts[parcel].T)
    day = days - (land.delay[parcel] + 7 * local[0])[:, None]
    vigour = 1 + (0.07 * land.vigour[parcel] + 0.10 * local[1])[:, None]
    ripe = expit((day - fall) / 6)
    green = (winter * expit((day - sown) / 9) + (peak - winter) * expit((day - rise) / 11)) * (1 - ripe)
    since = np.mod(day - rise - 45, np.where(mown > 0, mown, 1))
    cut = (mown > 0) & (day > rise + 45) & (day < fall)
    green = np.clip(green * vigour * np.where(cut, 1 - 0.75 * np.exp(-since / 16), 1), 0, 1)
    straw = 0.8 * peak * ripe * (1 - 0.6 * expit((day - harvest) / 3)) * (1 - green)
    flowers = flower * np.exp(-(((day - 232) / 14) ** 2))
    plants, wet, dry = (
        np.array([SPECTRA[name] for name in names])[parcel, None]
        for names in zip(*((s.green, *s.bare) for s in seasons), strict=True)
    )
    plants = plants + flowers[..., None] * (np.array(SPECTRA['flower']) - plants)
    bare = wet + np.clip(land.soil[parcel] + 0.2 * local[2], 0, 1)[:, None, None] * (dry - wet)
    return (
        green[..., None] * plants
        + straw[..., None] * np.array(SPECTRA['straw'])
        + (1 - green - straw)[..., None] * bare
    )


def _backscatter(land: Landscape, days: Indices) -> Array:
    """Return the expected VV and VH (N, T, 2) of each parcel in dB."""
    words = [BACKSCATTER[cover.s1] for cover in land.covers]
    level, plants, late = (np.array([getattr(w, name) for w in words])[:, None] for name in ('level', 'plants', 'late'))
    begin, end = (np.array([[getattr(w, name)] for w in words]) for name in ('begin', 'end'))
    day = days - land.delay[:, None]
    gone = 1 - expit((day - end) / 6)
    standing, ripening = (expit((day - begin) / 8) * gone)[..., None], (expit((day - end + 70) / 6) * gone)[..., None]
    return level + standing * (plants + 0.3 * land.vigour[:, None, None]) + ripening * late


def _add_clouds(rng: np.random.Generator, image: Array) -> Array:
    count, _, side, _ = image.shape
    cover = np.where(rng.random(count) < 0.35, rng.uniform(0.1, 0.7, count), 0)
    cover = np.where(rng.random(count) < 0.12, 1.0, cover)
    field = smooth_noise(rng, (count, side, side), 4)
    level = np.array([np.quantile(f, 1 - c) if c < 1 else f.min() - 2 for f, c in zip(field, cover, strict=True)])
    cloud = np.clip((field - level[:, None, None]) / 0.5, 0, 1) * 0.95
    shadow = np.roll(cloud, (3, 2), axis=(1, 2)) * (1 - cloud)
    bright = np.array(SPECTRA['cloud'])[:, None, None] * rng.uniform(0.7, 1.2, (count, 1, 1, 1)) + 300 * smooth_noise(
        rng, (count, 1, side, side), 2
    )
    image = image * (1 - 0.55 * shadow[:, None])
    return image + cloud[:, None] * (bright - image)


def _add_haze(rng: np.random.Generator, image: Array, probability: float) -> Array:
    """Add thin clouds, as they remain after cloud masking, to some dates."""
    if not probability:
        return image
    count, _, side, _ = image.shape
    opacity = rng.uniform(0.1, 0.5, (count, 1, 1, 1)) * (rng.random((count, 1, 1, 1)) < probability)
    cover = expit(2 * smooth_noise(rng, (count, 1, side, side), 6))
    bright = np.array(SPECTRA['cloud'])[:, None, None]
    return image + opacity * cover * (bright - image)
