# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Sensors: clouds, speckle, lost bands and a gain that is a little off."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Gamma
from torchgeo.datasets.utils import Sample

from ..modality import Modality
from .base import Params, Transform, interval, keep_some, probability

#: Bands of Sentinel-2: from below, clouds are between them and the ground.
_OPTICAL = re.compile(r'B(0?[1-9]|1[0-2]|8A)', re.IGNORECASE)
#: Polarisations of a radar, and ratios of two of them.
_RADAR = re.compile(r'([VH]{2})(?:[-/]([VH]{2}))?')


class RandomClouds(Transform):
    """Some dates of an optical series are hidden by blobs of cloud with soft edges.

    What series that is follows from its bands, those of Sentinel-2. Each date is hit with
    probability *p*, but one valid date always stays clear. NaN stays NaN.

    Args:
        modalities: The modalities of the batch.
        p: Probability of clouds on each valid date.
        cover: Least and greatest part of the tile that is hidden; edges are half transparent.
        brightness: Least and greatest value of a cloud, in the units of the images:
            reflectance x 10000 unless told otherwise.
        told: Whether ``valid`` is made False where there are clouds. If not, the model
            has to find out by itself.
        blobs: Roughly how many blobs there is room for along a side of the tile.
        same_on_batch: Whether all samples share one draw.

    Raises:
        ValueError: If an argument is not as described.
    """

    def __init__(
        self,
        modalities: Mapping[str, Modality] | Iterable[Modality],
        p: float = 0.2,
        cover: tuple[float, float] = (0.2, 0.8),
        brightness: tuple[float, float] = (3000.0, 9000.0),
        told: bool = False,
        blobs: int = 3,
        same_on_batch: bool = False,
    ) -> None:
        super().__init__(modalities, same_on_batch)
        self.p = probability(p)
        self.cover = interval(cover, 'cover', 0.0)
        probability(self.cover[1], 'cover')
        self.brightness = interval(brightness, 'brightness', -math.inf)
        self.told = told
        if blobs < 1:
            raise ValueError(f'blobs is {blobs}, expected at least 1')
        self.blobs = blobs

    def present(self, batch: Mapping[str, Tensor]) -> Iterator[Modality]:
        """The optical series that a batch has the keys of."""
        return (m for m in super().present(batch) if m.temporal and optical(m))

    def draw(self, batch: Mapping[str, Tensor]) -> Params:
        """Of each series: which dates, how bright (B, T), and how far each place is inside a cloud (B, T, n, n)."""
        drawn = {}
        for m in self.present(batch):
            valid = batch[m.valid_key]
            dates, side = valid.shape[1], 8 * self.blobs
            random, tickets, cover, light = self.random(batch, 4, dates).unbind(1)
            noise = self.random(batch, dates, 2 * self.blobs, 2 * self.blobs)
            field = F.interpolate(noise, size=(side, side), mode='bicubic', align_corners=False).flatten(2)
            low, high = self.cover
            rank = ((1 - low - (high - low) * cover) * (side * side - 1)).round().long()
            edge = field.sort(-1).values.gather(-1, rank[..., None])
            drawn[f'{m.name}_dates'] = valid & ~keep_some(valid, self.p, random, tickets)
            drawn[f'{m.name}_light'] = self.brightness[0] + (self.brightness[1] - self.brightness[0]) * light
            drawn[f'{m.name}_inside'] = (field - edge).view(*valid.shape, side, side)
        return drawn

    def replay(self, batch: Mapping[str, Tensor], params: Params) -> Sample:
        """Lay the clouds over the images, from the same coarse field at any resolution."""
        changed = dict(batch)
        for m in self.present(batch):
            dates, light, inside = (params[f'{m.name}_{what}'] for what in ('dates', 'light', 'inside'))
            image = batch[m.image_key]
            smooth = F.interpolate(inside, size=image.shape[-2:], mode='bilinear', align_corners=False)
            veil = (8 * smooth + 0.5).clamp(0, 1) * dates[..., None, None]
            veil = veil[:, :, None].to(image.dtype)
            changed[m.image_key] = torch.lerp(image, light.to(image.dtype)[..., None, None, None], veil)
            if self.told:
                changed[m.valid_key] = batch[m.valid_key] & ~dates
        return changed


class RandomSpeckle(Transform):
    """Backscatter is multiplied by gamma noise of mean 1 and variance 1 / *looks*, in linear power.

    Which bands are backscatter follows from their names, polarisations such as ``VV``; a
    modality with any other band is left as it is.
    ``VV-VH``, the ratio in dB, and ``VV/VH``, that of linear power, follow from the noise
    of the two, so that it stays their ratio.

    Args:
        modalities: The modalities of the batch.
        looks: Number of looks; the fewer, the noisier.
        decibel: Whether images are in dB, else in linear power. They are in physical
            units in both cases, not normalised.
        p: Probability that a sample's series becomes noisier.
        same_on_batch: Whether all samples share one draw.

    Raises:
        ValueError: If *looks* is not positive or *p* no probability.
    """

    def __init__(
        self,
        modalities: Mapping[str, Modality] | Iterable[Modality],
        looks: float = 10.0,
        decibel: bool = True,
        p: float = 1.0,
        same_on_batch: bool = False,
    ) -> None:
        super().__init__(modalities, same_on_batch)
        if not 0 < looks < math.inf:
            raise ValueError(f'looks is {looks}, expected a positive number')
        self.looks = float(looks)
        self.decibel = decibel
        self.p = probability(p)

    def present(self, batch: Mapping[str, Tensor]) -> Iterator[Modality]:
        """The modalities with backscatter that a batch has the keys of."""
        return (m for m in super().present(batch) if _polarisations(m))

    def draw(self, batch: Mapping[str, Tensor]) -> Params:
        """``<name>`` (B, T, P, H, W): the noise of each polarisation in dB."""
        drawn = {}
        for m in self.present(batch):
            image = batch[m.image_key]
            lead = image.shape[:2] if m.temporal else image.shape[:1]
            shape = (1 if self.same_on_batch else lead[0], *lead[1:], len(_polarisations(m)), *image.shape[-2:])
            looks = torch.tensor(self.looks, device=image.device)
            noise = 10 * Gamma(looks, looks, validate_args=False).sample(shape).log10()
            noise = noise.expand(len(image), *shape[1:])
            if self.p < 1:
                chosen = self.random(batch, 1)[:, 0] < self.p
                noise = noise * chosen.view(-1, *[1] * (noise.ndim - 1))
            drawn[m.name] = noise
        return drawn

    def replay(self, batch: Mapping[str, Tensor], params: Params) -> Sample:
        """Multiply by the noise, which in dB is to add it."""
        changed = dict(batch)
        for m in self.present(batch):
            image, noise = batch[m.image_key], params[m.name]
            speckled = image.clone()
            for band, (plus, minus) in _noise_of_bands(m).items():
                gain = noise[..., plus, :, :] if minus is None else noise[..., plus, :, :] - noise[..., minus, :, :]
                gain = gain.to(image.dtype) if self.decibel else (10 ** (gain / 10)).to(image.dtype)
                old = image[..., band, :, :]
                speckled[..., band, :, :] = old + gain if self.decibel else old * gain
            changed[m.image_key] = speckled
        return changed


class RandomBandDropout(Transform):
    """Each image loses some of its bands on all dates, never its last one; what is lost is NaN.

    Args:
        modalities: The modalities of the batch.
        p: Probability of losing each band.
        same_on_batch: Whether all samples share one draw.

    Raises:
        ValueError: If *p* is no probability.
    """

    def __init__(
        self,
        modalities: Mapping[str, Modality] | Iterable[Modality],
        p: float = 0.1,
        same_on_batch: bool = False,
    ) -> None:
        super().__init__(modalities, same_on_batch)
        self.p = probability(p)

    def draw(self, batch: Mapping[str, Tensor]) -> Params:
        """Flags ``<name>`` (B, C) of the bands that stay."""
        drawn = {}
        for m in self.present(batch):
            random, tickets = self.random(batch, 2, len(m.bands)).unbind(1)
            drawn[m.name] = keep_some(torch.ones_like(random, dtype=torch.bool), self.p, random, tickets)
        return drawn

    def replay(self, batch: Mapping[str, Tensor], params: Params) -> Sample:
        """Forget the bands that are lost."""
        changed = dict(batch)
        for m in self.present(batch):
            lost = ~params[m.name][:, None] if m.temporal else ~params[m.name]
            changed[m.image_key] = batch[m.image_key].masked_fill(lost[..., None, None], torch.nan)
        return changed


class RandomJitter(Transform):
    """Each image is multiplied by a gain and shifted, alike on all its dates and bands.

    It is meant for normalised images, of which 0 is the mean and 1 a deviation.

    Args:
        modalities: The modalities of the batch.
        strength: Greatest difference of the gain from 1 and of the shift from 0.
        same_on_batch: Whether all samples share one draw.

    Raises:
        ValueError: If *strength* is not between 0 and 1.
    """

    def __init__(
        self,
        modalities: Mapping[str, Modality] | Iterable[Modality],
        strength: float = 0.05,
        same_on_batch: bool = False,
    ) -> None:
        super().__init__(modalities, same_on_batch)
        if not 0 <= strength <= 1:
            raise ValueError(f'strength is {strength}, expected a number between 0 and 1')
        self.strength = float(strength)

    def draw(self, batch: Mapping[str, Tensor]) -> Params:
        """``<name>`` (B, 2): what to add to a gain of 1, and to the image."""
        return {m.name: (2 * self.random(batch, 2) - 1) * self.strength for m in self.present(batch)}

    def replay(self, batch: Mapping[str, Tensor], params: Params) -> Sample:
        """Change every image."""
        changed = dict(batch)
        for m in self.present(batch):
            image = batch[m.image_key]
            numbers = params[m.name].to(image.dtype).view(-1, 2, *[1] * (image.ndim - 1))
            changed[m.image_key] = torch.addcmul(numbers[:, 1], image, 1 + numbers[:, 0])
        return changed


def optical(modality: Modality) -> bool:
    """Whether all bands are those of Sentinel-2."""
    return all(_OPTICAL.fullmatch(band) for band in modality.bands)


def _parts(band: str) -> tuple[str, str | None] | None:
    """The polarisation that a band is and the one it is divided by; None if it is not from a radar."""
    match = _RADAR.fullmatch(band.upper())
    return (match[1], match[2]) if match else None


def _polarisations(modality: Modality) -> list[str]:
    """Every polarisation that a band is or is made of; none if there is another band."""
    parts = [_parts(band) for band in modality.bands]
    return [] if None in parts else sorted({name for pair in parts if pair for name in pair if name})


def _noise_of_bands(modality: Modality) -> dict[int, tuple[int, int | None]]:
    """Which noise each band has, and which it is divided by."""
    order = _polarisations(modality)
    parts = [pair for band in modality.bands if (pair := _parts(band))]
    return {i: (order.index(over), order.index(under) if under else None) for i, (over, under) in enumerate(parts)}
