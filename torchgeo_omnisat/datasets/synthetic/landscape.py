# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Synthetic farmland at a resolution of one metre.

:mod:`torchgeo_omnisat.datasets.synthetic.rendering` simulates the images of each sensor.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

#: GSD of Sentinel-2, Sentinel-1 and the labels in metres.
GSD = 10
#: Class of everything that is not a crop, and of parcels without a label.
BACKGROUND, VOID = 0, 19


@dataclass(frozen=True)
class Cover:
    """Land cover of a parcel, with its appearance for each sensor.

    Images of two covers with the same appearance have the same distribution, so only other
    sensors distinguish them.

    Args:
        s2: Key of :data:`~torchgeo_omnisat.datasets.synthetic.rendering.SEASONS`.
        s1: Key of :data:`~torchgeo_omnisat.datasets.synthetic.rendering.BACKSCATTER`.
        spot: Key of :data:`~torchgeo_omnisat.datasets.synthetic.rendering.TEXTURES`.
    """

    s2: str
    s1: str
    spot: str


#: The ten crops by PASTIS class. In each group of three, the second and the third each differ from the
#: first for one sensor only: neither a single sensor nor a pair distinguishes all crops.
CROPS = {
    2: Cover('winter', 'cereal', 'tramlines'),  # soft winter wheat
    4: Cover('early winter', 'cereal', 'tramlines'),  # winter barley: S2
    10: Cover('winter', 'tall cereal', 'tramlines'),  # winter triticale: S1
    9: Cover('summer', 'leaves', 'drilled'),  # beet
    3: Cover('summer', 'stalks', 'drilled'),  # corn: S1
    13: Cover('summer', 'leaves', 'ridges'),  # potatoes: SPOT
    1: Cover('grass', 'sward', 'mottled'),  # meadow
    16: Cover('grass', 'sward', 'trees'),  # orchard on grass: SPOT
    14: Cover('mown', 'sward', 'mottled'),  # leguminous fodder: S2
    5: Cover('flowering', 'pods', 'tramlines'),  # winter rapeseed
}

#: Relative frequency of each crop in version 2; in version 1 all are equally frequent.
FREQUENCIES = {2: 8, 4: 3, 10: 1, 9: 3, 3: 8, 13: 1, 1: 8, 16: 1, 14: 2, 5: 4}

ROAD = Cover('road', 'road', 'asphalt')
VERGE = Cover('verge', 'sward', 'mottled')
WOODS = Cover('woods', 'woods', 'canopy')
BUILT = Cover('built', 'built', 'roofs')


@dataclass(frozen=True)
class Difficulty:
    """Properties of real images and regions that a version of the landscapes simulates.

    Args:
        frequencies: Relative frequency of each crop; None for equal ones.
        delay: Mean delay of the season in days in the fifth fold, a region of its own.
        shift: Largest displacement of a sensor along each axis in metres.
        blur: Standard deviation of the point spread function of Sentinel-2 in pixels, which mixes adjacent parcels.
        haze: Probability that thin clouds remain on a date of Sentinel-2.
        coarse: Whether bands of Sentinel-2 with a GSD of 20 m are averages over 2 x 2 pixels.
    """

    frequencies: Mapping[int, float] | None = None
    delay: float = 0
    shift: int = 0
    blur: float = 0
    haze: float = 0
    coarse: bool = False


#: Difficulty of each version of the landscapes.
VERSIONS = {
    1: Difficulty(),
    2: Difficulty(frequencies=FREQUENCIES, delay=14, shift=5, blur=0.6, haze=0.3, coarse=True),
}


@dataclass(frozen=True)
class Landscape:
    """Square of farmland with N parcels.

    Args:
        parcels: Parcel index (S, S) of each square metre.
        covers: N covers; parcel 0 is the roads and parcel 1 the verges.
        label: PASTIS class (N,), 0 for background and 19 for void.
        azimuth: Direction (N,) of the rows in radians, which affects SPOT and Sentinel-1.
        delay: Delay (N,) of the season in days.
        vigour: Vigour (N,) of the plants, with mean 0 and standard deviation 1, which affects all sensors.
        soil: Soil (N,) from dark and wet (0) to bright and dry (1).
    """

    parcels: Indices
    covers: tuple[Cover, ...]
    label: Indices
    azimuth: Array
    delay: Array
    vigour: Array
    soil: Array

    def fragments(self) -> tuple[Indices, Indices, Array]:
        """Return pixel, parcel and fraction of each intersection of parcels and pixels, sorted by pixel."""
        side = len(self.parcels) // GSD
        pixel = np.arange(side * side).reshape(side, side).repeat(GSD, 0).repeat(GSD, 1)
        key, count = np.unique(pixel * len(self.covers) + self.parcels, return_counts=True)
        return key // len(self.covers), key % len(self.covers), count / GSD**2

    def ids(self) -> Indices:
        """Return the parcel (S / 10, S / 10) with the largest fraction of each 10 m pixel."""
        pixel, parcel, fraction = self.fragments()
        last = np.r_[np.flatnonzero(np.diff(pixel)), len(pixel) - 1]
        side = len(self.parcels) // GSD
        return parcel[np.lexsort((fraction, pixel))[last]].reshape(side, side)

    def shifted(self, rng: np.random.Generator, limit: int) -> 'Landscape':
        """Return the landscape as a sensor observes it that is displaced by up to *limit* metres along each axis."""
        down, right = rng.integers(-limit, limit + 1, 2)
        indices = np.arange(len(self.parcels))
        rows, columns = ((indices + step).clip(0, len(indices) - 1) for step in (down, right))
        return replace(self, parcels=self.parcels[rows][:, columns])


def draw_landscape(
    rng: np.random.Generator, size: int, frequencies: Mapping[int, float] | None = None, delay: float = 0
) -> Landscape:
    """Draw a landscape of *size* x *size* pixels of 10 m.

    Args:
        rng: Source of random numbers.
        size: Side in pixels.
        frequencies: Relative frequency of each crop; None for equal ones.
        delay: Mean delay of the season in days.
    """
    block, road, angle = _draw_blocks(rng, size * GSD)
    plots = _draw_parcels(rng, block, angle)
    area = np.bincount(plots.ravel())
    cut = np.unique(np.r_[plots[0], plots[-1], plots[:, 0], plots[:, -1]])
    is_cut = np.isin(np.arange(len(area)), cut)
    first = np.unique(plots.ravel(), return_index=True)[1]
    covers, label = _draw_covers(rng, block.ravel()[first], len(angle), frequencies)
    corner = (area < 1000) & ~is_cut
    label[is_cut & (area < 3000) & (label > 0) & (rng.random(len(area)) < 0.6)] = VOID
    parcels = np.where(corner[plots] | _borders(plots), 1, plots + 2)
    parcels[road] = 0
    count = len(area) + 2
    return Landscape(
        parcels=parcels,
        covers=(ROAD, VERGE, *covers),
        label=np.r_[0, 0, label],
        azimuth=np.r_[0.0, 0.0, angle[block.ravel()[first]]],
        delay=rng.normal(delay, 4, count),
        vigour=rng.normal(0, 1, count),
        soil=rng.uniform(0, 1, count),
    )


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> Array:
    """Draw noise with mean 0 and standard deviation 1, correlated over *sigma* pixels of the last two axes."""
    noise = gaussian_filter(rng.standard_normal(shape), (0,) * (len(shape) - 2) + (sigma, sigma), mode='wrap')
    # A Gaussian filter of this width reduces the variance of white noise to 1 / (4 pi sigma^2).
    return noise * max(1.0, np.sqrt(4 * np.pi) * sigma)


def _draw_blocks(rng: np.random.Generator, extent: int, spacing: int = 190) -> tuple[Indices, NDArray[np.bool_], Array]:
    """Draw blocks of fields: the block of each square metre, a mask of roads, and the direction of each block."""
    ticks = np.arange(-spacing, extent + 2 * spacing, spacing) + rng.uniform(-spacing / 2, spacing / 2)
    sites = np.stack(np.meshgrid(ticks, ticks, indexing='ij'), -1).reshape(-1, 2)
    sites += rng.uniform(-0.35, 0.35, sites.shape) * spacing
    bend = [10 * smooth_noise(rng, (extent // 4, extent // 4), 12).repeat(4, 0).repeat(4, 1) for _ in range(2)]
    bend = [gaussian_filter(b, 4) for b in bend]
    row, column = np.mgrid[:extent, :extent] + np.stack(bend)
    near, block = np.full((2, extent, extent), np.inf), np.zeros((extent, extent), dtype=np.int64)
    for index, (y, x) in enumerate(sites):
        distance = np.hypot(row - y, column - x)
        block[distance < near[0]] = index
        near[1] = np.minimum(near[1], np.maximum(distance, near[0]))
        near[0] = np.minimum(near[0], distance)
    return block, near[1] - near[0] < 7, rng.uniform(0, np.pi, len(sites))


def _draw_parcels(rng: np.random.Generator, block: Indices, angle: Array) -> Indices:
    plots = np.zeros_like(block)
    for index in np.unique(block):
        row, column = np.nonzero(block == index)
        sine, cosine = np.sin(angle[index]), np.cos(angle[index])
        across, along = row * cosine - column * sine, row * sine + column * cosine
        widths = np.cumsum(rng.uniform(45, 95, 16)) + across.min() - rng.uniform(0, 45)
        strip = np.searchsorted(widths, across)
        cuts = np.cumsum(rng.uniform(70, 170, (len(widths) + 1, 16)), axis=1)
        cuts += along.min() - rng.uniform(0, 120, (len(cuts), 1))
        place = (along[:, None] >= cuts[strip]).sum(1)
        plots[row, column] = (index * len(cuts) + strip) * 17 + place
    return np.unique(plots, return_inverse=True)[1].reshape(block.shape)


def _draw_covers(
    rng: np.random.Generator, block: Indices, blocks: int, frequencies: Mapping[int, float] | None
) -> tuple[list[Cover], Indices]:
    wild = rng.random(blocks)[block] + (rng.random(len(block)) < 0.05)
    if frequencies is None:
        rounds = [rng.permutation(list(CROPS)) for _ in range(len(block) // len(CROPS) + 1)]
        label = np.concatenate(rounds)[: len(block)]
    else:
        weights = np.array(list(frequencies.values()))
        label = rng.choice(list(frequencies), len(block), p=weights / weights.sum())
    kind = rng.random(blocks)[block] < 0.5
    label[wild > 0.92] = BACKGROUND
    covers = [
        CROPS[crop] if crop else (WOODS if is_woods else BUILT) for crop, is_woods in zip(label, kind, strict=True)
    ]
    return covers, label


def _borders(plots: Indices) -> NDArray[np.bool_]:
    edge = np.zeros(plots.shape, dtype=bool)
    for axis in (0, 1):
        change = np.diff(plots, axis=axis) != 0
        lead = np.moveaxis(edge, axis, 0)
        lead[1:] |= np.moveaxis(change, axis, 0)
        lead[:-1] |= np.moveaxis(change, axis, 0)
    return edge
