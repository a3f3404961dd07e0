# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Landscape: made-up farmland, drawn from a seed at one metre a pixel.

What the ground is, before any sensor looks at it (:mod:`torchgeo_omnisat.datasets.synthetic.rendering`).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

#: Metres a pixel of Sentinel-2, Sentinel-1 and the labels.
GSD = 10
#: The class of everything that is no crop, and of parcels that are not told.
BACKGROUND, VOID = 0, 19


@dataclass(frozen=True)
class Cover:
    """What grows or stands on a parcel, in the words of each sensor.

    Two covers that share a word look alike to that sensor: their images are drawn from
    one distribution, so nothing but the other sensors tells them apart.

    Args:
        s2: A season of :data:`~torchgeo_omnisat.datasets.synthetic.rendering.SEASONS`.
        s1: A backscatter of :data:`~torchgeo_omnisat.datasets.synthetic.rendering.BACKSCATTER`.
        spot: A texture of :data:`~torchgeo_omnisat.datasets.synthetic.rendering.TEXTURES`.
    """

    s2: str
    s1: str
    spot: str


#: The ten crops, under their PASTIS class. In each group of three, one is told from the
#: first by one sensor alone, the other by another: no sensor suffices, and no pair does.
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

ROAD = Cover('road', 'road', 'asphalt')
VERGE = Cover('verge', 'sward', 'mottled')
WOODS = Cover('woods', 'woods', 'canopy')
BUILT = Cover('built', 'built', 'roofs')


@dataclass(frozen=True)
class Landscape:
    """One square of farmland: a map of parcels, and what each of the N parcels is.

    Args:
        parcels: (S, S) index of the parcel of each square metre.
        covers: N covers; parcel 0 is the roads and parcel 1 the verges.
        label: (N,) PASTIS class, 0 for background and 19 for void.
        azimuth: (N,) direction of the rows, in radians; SPOT and S1 both see it.
        delay: (N,) days by which the season is late.
        vigour: (N,) how well it grows, about 0 with deviation 1; every sensor sees it.
        soil: (N,) from dark and wet (0) to bright and dry (1).
    """

    parcels: Indices
    covers: tuple[Cover, ...]
    label: Indices
    azimuth: Array
    delay: Array
    vigour: Array
    soil: Array

    def fragments(self) -> tuple[Indices, Indices, Array]:
        """The parts of parcels that each 10 m pixel holds.

        Returns:
            Pixel, parcel and share of the pixel's area of each part, sorted by pixel.
        """
        side = len(self.parcels) // GSD
        pixel = np.arange(side * side).reshape(side, side).repeat(GSD, 0).repeat(GSD, 1)
        key, count = np.unique(pixel * len(self.covers) + self.parcels, return_counts=True)
        return key // len(self.covers), key % len(self.covers), count / GSD**2

    def ids(self) -> Indices:
        """(S / 10, S / 10) the parcel that holds most of each 10 m pixel."""
        pixel, parcel, share = self.fragments()
        last = np.r_[np.flatnonzero(np.diff(pixel)), len(pixel) - 1]
        side = len(self.parcels) // GSD
        return parcel[np.lexsort((share, pixel))[last]].reshape(side, side)


def draw_landscape(rng: np.random.Generator, size: int) -> Landscape:
    """Farmland of *size* by *size* pixels of 10 m.

    Args:
        rng: Where the draws come from.
        size: Pixels a side.

    Returns:
        The landscape.
    """
    block, road, angle = _blocks(rng, size * GSD)
    plots = _strips(rng, block, angle)
    area = np.bincount(plots.ravel())
    cut = np.unique(np.r_[plots[0], plots[-1], plots[:, 0], plots[:, -1]])
    is_cut = np.isin(np.arange(len(area)), cut)
    first = np.unique(plots.ravel(), return_index=True)[1]
    covers, label = _sow(rng, block.ravel()[first], len(angle))
    corner = (area < 1000) & ~is_cut
    label[is_cut & (area < 3000) & (label > 0) & (rng.random(len(area)) < 0.6)] = VOID
    parcels = np.where(corner[plots] | _edge(plots), 1, plots + 2)
    parcels[road] = 0
    count = len(area) + 2
    return Landscape(
        parcels=parcels,
        covers=(ROAD, VERGE, *covers),
        label=np.r_[0, 0, label],
        azimuth=np.r_[0.0, 0.0, angle[block.ravel()[first]]],
        delay=rng.normal(0, 4, count),
        vigour=rng.normal(0, 1, count),
        soil=rng.uniform(0, 1, count),
    )


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> Array:
    """Noise of mean 0 and deviation 1, correlated over *sigma* pixels of the last two axes."""
    noise = gaussian_filter(rng.standard_normal(shape), (0,) * (len(shape) - 2) + (sigma, sigma), mode='wrap')
    # White noise through a Gaussian of this width keeps 1 / (4 pi sigma^2) of its variance.
    return noise * max(1.0, np.sqrt(4 * np.pi) * sigma)


def _blocks(rng: np.random.Generator, extent: int, spacing: int = 190) -> tuple[Indices, NDArray[np.bool_], Array]:
    """Blocks of fields between roads: the block of each metre, where roads are, each block's direction."""
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


def _strips(rng: np.random.Generator, block: Indices, angle: Array) -> Indices:
    """Every block cut into strips along its direction, every strip into parcels, numbered from 0."""
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


def _sow(rng: np.random.Generator, block: Indices, blocks: int) -> tuple[list[Cover], Indices]:
    """A cover and a class for each plot; crops come in shuffled rounds, so that none is rare."""
    wild = rng.random(blocks)[block] + (rng.random(len(block)) < 0.05)
    rounds = [rng.permutation(list(CROPS)) for _ in range(len(block) // len(CROPS) + 1)]
    label = np.concatenate(rounds)[: len(block)]
    kind = rng.random(blocks)[block] < 0.5
    label[wild > 0.92] = BACKGROUND
    covers = [
        CROPS[crop] if crop else (WOODS if is_woods else BUILT) for crop, is_woods in zip(label, kind, strict=True)
    ]
    return covers, label


def _edge(plots: Indices) -> NDArray[np.bool_]:
    """The two metres along every border between plots."""
    edge = np.zeros(plots.shape, dtype=bool)
    for axis in (0, 1):
        change = np.diff(plots, axis=axis) != 0
        lead = np.moveaxis(edge, axis, 0)
        lead[1:] |= np.moveaxis(change, axis, 0)
        lead[:-1] |= np.moveaxis(change, axis, 0)
    return edge
