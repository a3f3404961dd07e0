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

#: Least and greatest brightness of a cloud, by unit.
_BRIGHTNESS: dict[str, tuple[float, float]] = {'reflectance': (0.3, 0.9), 'dn': (3000.0, 9000.0)}
#: Bands of a radar: polarisations, and ratios of two of them. In dB a difference is a ratio.
_BANDS = {'db': re.compile(r'([VH]{2})(?:[-/]([VH]{2}))?'), 'power': re.compile(r'([VH]{2})(?:/([VH]{2}))?')}


class RandomClouds(Transform):
    """Some dates of an optical series are hidden by blobs of cloud with soft edges.

    These are the series of ``kind='optical'``, in reflectance or digital numbers. Each date is hit
    with probability *p*, but one valid date always stays clear. NaN stays NaN.

    Args:
        modalities: The modalities of the batch.
        p: Probability of clouds on each valid date.
        cover: Least and greatest part of the tile that is hidden; edges are half transparent.
        brightness: Least and greatest value of a cloud, in the unit of the images. By default 0.3 to 0.9 of
            reflectance, and 3000 to 9000 of digital numbers, which are taken for reflectance x
            10000; a series of another or unknown unit then has no clouds.
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
        brightness: tuple[float, float] | None = None,
        told: bool = False,
        blobs: int = 3,
        same_on_batch: bool = False,
    ) -> None:
        super().__init__(modalities, same_on_batch)
        self.p = probability(p)
        self.cover = interval(cover, 'cover', 0.0)
        probability(self.cover[1], 'cover')
        self.brightness = None if brightness is None else interval(brightness, 'brightness', -math.inf)
        self.told = told
        if blobs < 1:
            raise ValueError(f'blobs is {blobs}, expected at least 1')
        self.blobs = blobs

    def present(self, batch: Mapping[str, Tensor]) -> Iterator[Modality]:
        """Yield the optical time series whose keys are in a batch."""
        return (m for m in super().present(batch) if m.temporal and m.kind == 'optical' and self._light(m))

    def _light(self, modality: Modality) -> tuple[float, float] | None:
        """Return the least and greatest brightness in a modality, None if that depends on a unit that is unknown."""
        return self.brightness or _BRIGHTNESS.get(modality.unit)

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
            darkest, brightest = self._light(m) or (0.0, 0.0)
            drawn[f'{m.name}_light'] = darkest + (brightest - darkest) * light
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

    These are the modalities of ``kind='radar'`` whose unit is ``'db'`` or ``'power'``. Their bands are
    called by polarisations such as ``VV``; a band of another name is left as it is. ``VV-VH``, the
    ratio in dB, and ``VV/VH`` follow from the noise of the two, so that they stay their ratio.

    Args:
        modalities: The modalities of the batch.
        looks: Number of looks; the fewer, the noisier.
        decibel: Whether modalities of unknown kind or unit, with bands called by polarisations, are
            in dB, else in linear power; None leaves them as they are. Images are in physical
            units in both cases, not normalised.
        p: Probability that a sample's series becomes noisier.
        same_on_batch: Whether all samples share one draw.

    Raises:
        ValueError: If *looks* is not positive, *p* no probability, or *decibel* contradicts a unit.
    """

    def __init__(
        self,
        modalities: Mapping[str, Modality] | Iterable[Modality],
        looks: float = 10.0,
        decibel: bool | None = None,
        p: float = 1.0,
        same_on_batch: bool = False,
    ) -> None:
        super().__init__(modalities, same_on_batch)
        if not 0 < looks < math.inf:
            raise ValueError(f'looks is {looks}, expected a positive number')
        self.looks = float(looks)
        self.decibel = decibel
        self.p = probability(p)
        for m in self.modalities.values():
            if decibel is not None and m.unit == ('power' if decibel else 'db'):
                raise ValueError(f'decibel is {decibel}, but unit of {m.name!r} is {m.unit!r}, expected decibel=None')

    def present(self, batch: Mapping[str, Tensor]) -> Iterator[Modality]:
        """Yield the modalities with backscatter whose keys are in a batch."""
        return (m for m in super().present(batch) if self._noisy(m))

    def _in_decibels(self, modality: Modality) -> bool | None:
        """Return whether a modality is radar in dB, or in linear power; None if it is neither."""
        known = {'db': True, 'power': False, 'unknown': self.decibel}
        is_radar = modality.kind == 'radar' or (modality.kind is None and self.decibel is not None)
        return known.get(modality.unit) if is_radar else None

    def _noisy(self, modality: Modality) -> dict[int, tuple[str, str | None]]:
        """Return the polarisations of each band with noise: its own, and the one that it is divided by."""
        in_decibels = self._in_decibels(modality)
        return {} if in_decibels is None else polarisations(modality, 'db' if in_decibels else 'power')

    def draw(self, batch: Mapping[str, Tensor]) -> Params:
        """``<name>`` (B, T, P, H, W): the noise of each polarisation in dB."""
        drawn = {}
        for m in self.present(batch):
            image = batch[m.image_key]
            lead = image.shape[:2] if m.temporal else image.shape[:1]
            count = len(_names(self._noisy(m)))
            shape = (1 if self.same_on_batch else lead[0], *lead[1:], count, *image.shape[-2:])
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
            speckled, noisy, in_decibels = image.clone(), self._noisy(m), self._in_decibels(m)
            names = _names(noisy)
            for band, (over, under) in noisy.items():
                gain = noise[..., names.index(over), :, :]
                gain = gain if under is None else gain - noise[..., names.index(under), :, :]
                gain = gain.to(image.dtype) if in_decibels else (10 ** (gain / 10)).to(image.dtype)
                old = image[..., band, :, :]
                speckled[..., band, :, :] = old + gain if in_decibels else old * gain
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
        """Draw flags ``<name>`` (B, C) of the bands that are kept."""
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


def polarisations(modality: Modality, unit: str) -> dict[int, tuple[str, str | None]]:
    """Return the polarisation of each band of a radar, and the one that it is divided by.

    Args:
        modality: A modality that states that it is radar.
        unit: ``'db'`` or ``'power'``.

    Returns:
        The polarisations by number of the band; bands of other names are left out.
    """
    matches = ((index, _BANDS[unit].fullmatch(band.upper())) for index, band in enumerate(modality.bands))
    return {index: (match[1], match[2]) for index, match in matches if match}


def say_unknown(modalities: Iterable[Modality]) -> str:
    """Return a line that says for which modalities nothing is simulated, and why; empty if there is none.

    Args:
        modalities: The modalities of the data.
    """
    lacking = {modality.name: _lack(modality) for modality in modalities}
    told = ', '.join(f'{name} ({lack})' for name, lack in lacking.items() if lack)
    hint = 'state kind and unit, such as `kind: radar, unit: db` or `kind: optical, unit: dn`'
    return f'No speckle or clouds are simulated for {told}: {hint}' if told else ''


def _lack(modality: Modality) -> str:
    """Return which fact a simulation needs and a modality lacks."""
    if modality.kind is None:
        return f'kind{" and unit" * (modality.unit == "unknown")} unknown'
    simulated = modality.kind == 'radar' or (modality.kind == 'optical' and modality.temporal)
    if simulated and modality.unit == 'unknown':
        return 'unit unknown'
    if modality.kind == 'radar' and modality.unit in _BANDS and not polarisations(modality, modality.unit):
        return f'no band of {", ".join(modality.bands)} is called by its polarisation, such as VV'
    return ''


def _names(noisy: Mapping[int, tuple[str, str | None]]) -> list[str]:
    """Return every polarisation that bands are made of, in the order of their noise."""
    return sorted({name for pair in noisy.values() for name in pair if name})
