# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Intensity transforms: clouds, speckle, band dropout and jitter."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Gamma
from torchgeo.datasets.utils import Sample

from ..modality import Modality
from ..utils.checks import check_integer
from ..utils.tensors.observed import finite
from .base import Modalities, Params, Transform, deprecated_argument, interval, keep_some, probability

#: Minimum and maximum brightness of a cloud, by unit.
_BRIGHTNESS: dict[str, tuple[float, float]] = {'reflectance': (0.3, 0.9), 'dn': (3000.0, 9000.0)}
#: Names of radar bands: polarisations and ratios of two of them. In dB a difference is a ratio.
_BANDS = {'db': re.compile(r'([VH]{2})(?:[-/]([VH]{2}))?'), 'power': re.compile(r'([VH]{2})(?:/([VH]{2}))?')}


class RandomClouds(Transform):
    """Add simulated clouds with soft edges to some dates of optical time series.

    It applies to time series of ``kind='optical'`` in reflectance or digital numbers. Each date has
    clouds with probability *p*, but one valid date always remains clear. NaN stays NaN.

    Args:
        modalities: Modalities of the batch.
        p: Probability of clouds on each valid date.
        cover: Minimum and maximum fraction of the tile that is covered; edges are half transparent.
        brightness: Minimum and maximum value of a cloud, in the unit of the images. Defaults to 0.3 to
            0.9 for reflectance and 3000 to 9000 for digital numbers (reflectance x 10000). Time
            series of other or unknown units have no clouds by default.
        mark_invalid: Whether to set ``valid`` to False on dates with clouds, as a cloud mask would.
        blobs: Approximate number of clouds along a side of the tile.
        same_on_batch: Whether all samples share one draw.
        told: Deprecated name of *mark_invalid*.

    Raises:
        ValueError: If an argument is invalid.
    """

    def __init__(
        self,
        modalities: Modalities,
        p: float = 0.2,
        cover: tuple[float, float] = (0.2, 0.8),
        brightness: tuple[float, float] | None = None,
        mark_invalid: bool = False,
        blobs: int = 3,
        same_on_batch: bool = False,
        told: bool | None = None,
    ) -> None:
        super().__init__(modalities, same_on_batch)
        self.p = probability(p)
        self.cover = interval(cover, 'cover', 0.0)
        probability(self.cover[1], 'cover')
        self.brightness = None if brightness is None else interval(brightness, 'brightness', -math.inf)
        self.mark_invalid = deprecated_argument(mark_invalid, 'mark_invalid', told, 'told')
        check_integer(1, blobs=blobs)
        self.blobs = blobs

    def present(self, batch: Mapping[str, Tensor]) -> Iterator[Modality]:
        """Yield the optical time series whose keys are in a batch."""
        return (m for m in super().present(batch) if m.temporal and m.kind == 'optical' and self._brightness(m))

    def _brightness(self, modality: Modality) -> tuple[float, float] | None:
        return self.brightness or _BRIGHTNESS.get(modality.unit)

    def draw(self, batch: Mapping[str, Tensor]) -> Params:
        """Draw ``<name>_dates`` and ``_brightness`` (B, T), and ``_inside`` (B, T, n, n), positive inside clouds."""
        drawn = {}
        for m in self.present(batch):
            valid = batch[m.valid_key]
            dates, side = valid.shape[1], 8 * self.blobs
            random, priority, cover, light = self.random(batch, 4, dates).unbind(1)
            noise = self.random(batch, dates, 2 * self.blobs, 2 * self.blobs)
            field = F.interpolate(noise, size=(side, side), mode='bicubic', align_corners=False).flatten(2)
            low, high = self.cover
            rank = ((1 - low - (high - low) * cover) * (side * side - 1)).round().long()
            edge = field.sort(-1).values.gather(-1, rank[..., None])
            drawn[f'{m.name}_dates'] = valid & ~keep_some(valid, self.p, random, priority)
            darkest, brightest = self._brightness(m) or (0.0, 0.0)
            drawn[f'{m.name}_brightness'] = darkest + (brightest - darkest) * light
            drawn[f'{m.name}_inside'] = (field - edge).view(*valid.shape, side, side)
        return drawn

    def replay(self, batch: Mapping[str, Tensor], params: Params) -> Sample:
        """Blend the clouds with the images, from the same coarse field at any resolution."""
        changed = dict(batch)
        for m in self.present(batch):
            dates, light, inside = (params[f'{m.name}_{what}'] for what in ('dates', 'brightness', 'inside'))
            image = batch[m.image_key]
            smooth = F.interpolate(inside, size=image.shape[-2:], mode='bilinear', align_corners=False)
            veil = (8 * smooth + 0.5).clamp(0, 1) * dates[..., None, None]
            veil = veil[:, :, None].to(image.dtype)
            changed[m.image_key] = torch.lerp(image, light.to(image.dtype)[..., None, None, None], veil)
            if self.mark_invalid:
                changed[m.valid_key] = batch[m.valid_key] & ~dates
        return changed


class RandomSpeckle(Transform):
    """Multiply backscatter in linear power by gamma-distributed speckle of mean 1 and variance 1 / *looks*.

    It applies to modalities of ``kind='radar'`` and unit ``'db'`` or ``'power'``, and to bands named by
    their polarisation, such as ``VV``. Ratios such as ``VV/VH``, in dB ``VV-VH``, get the noise of both
    polarisations, so that they remain their ratio. Other bands do not change.

    Args:
        modalities: Modalities of the batch.
        looks: Number of looks; fewer looks mean more noise.
        decibel: Whether modalities of unknown kind or unit, with bands named by polarisations, are in
            dB or in linear power; None leaves them unchanged. Images must not be normalised.
        p: Probability that a sample gets speckle.
        same_on_batch: Whether all samples share one draw.

    Raises:
        ValueError: If *looks* is not positive, *p* is not in [0, 1], or *decibel* contradicts a unit.
    """

    def __init__(
        self,
        modalities: Modalities,
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
                raise ValueError(f'decibel is {decibel}, expected None for {m.name!r} with unit {m.unit!r}')

    def present(self, batch: Mapping[str, Tensor]) -> Iterator[Modality]:
        """Yield the modalities with backscatter whose keys are in a batch."""
        return (m for m in super().present(batch) if self._noisy(m))

    def _in_decibels(self, modality: Modality) -> bool | None:
        known = {'db': True, 'power': False, 'unknown': self.decibel}
        is_radar = modality.kind == 'radar' or (modality.kind is None and self.decibel is not None)
        return known.get(modality.unit) if is_radar else None

    def _noisy(self, modality: Modality) -> dict[int, tuple[str, str | None]]:
        in_decibels = self._in_decibels(modality)
        return {} if in_decibels is None else polarisations(modality, 'db' if in_decibels else 'power')

    def draw(self, batch: Mapping[str, Tensor]) -> Params:
        """Draw ``<name>`` (B, T, P, H, W), the noise of each polarisation in dB."""
        drawn = {}
        for m in self.present(batch):
            image = batch[m.image_key]
            lead = image.shape[:2] if m.temporal else image.shape[:1]
            count = len(_polarisation_names(self._noisy(m)))
            shape = (1 if self.same_on_batch else lead[0], *lead[1:], count, *image.shape[-2:])
            looks = torch.full((), self.looks, device=image.device)
            noise = 10 * Gamma(looks, looks, validate_args=False).sample(shape).log10()
            noise = noise.expand(len(image), *shape[1:])
            if self.p < 1:
                chosen = self.random(batch, 1)[:, 0] < self.p
                noise = noise * chosen.view(-1, *[1] * (noise.ndim - 1))
            drawn[m.name] = noise
        return drawn

    def replay(self, batch: Mapping[str, Tensor], params: Params) -> Sample:
        """Multiply by the noise, or add it in dB."""
        changed = dict(batch)
        for m in self.present(batch):
            image, noise = batch[m.image_key], params[m.name]
            speckled, noisy, in_decibels = image.clone(), self._noisy(m), self._in_decibels(m)
            names = _polarisation_names(noisy)
            for band, (over, under) in noisy.items():
                gain = noise[..., names.index(over), :, :]
                gain = gain if under is None else gain - noise[..., names.index(under), :, :]
                gain = gain.to(image.dtype) if in_decibels else (10 ** (gain / 10)).to(image.dtype)
                old = image[..., band, :, :]
                speckled[..., band, :, :] = old + gain if in_decibels else old * gain
            changed[m.image_key] = speckled
        return changed


class RandomBandDropout(Transform):
    """Set random bands of each image to NaN on all dates, but never all that have pixels.

    Args:
        modalities: Modalities of the batch.
        p: Probability of dropping each band.
        same_on_batch: Whether all samples share one draw.
    """

    def __init__(self, modalities: Modalities, p: float = 0.1, same_on_batch: bool = False) -> None:
        super().__init__(modalities, same_on_batch)
        self.p = probability(p)

    def present(self, batch: Mapping[str, Tensor]) -> Iterator[Modality]:
        """Yield the modalities of a batch, without embeddings, whose dimensions are never missing alone."""
        return (m for m in super().present(batch) if m.kind != 'embedding')

    def draw(self, batch: Mapping[str, Tensor]) -> Params:
        """Draw flags ``<name>`` (B, C) of the bands that are kept."""
        drawn = {}
        for m in self.present(batch):
            random, priority = self.random(batch, 2, len(m.bands)).unbind(1)
            valid = batch[m.valid_key] if m.temporal else batch[m.valid_key][:, 0]
            there = finite(batch[m.image_key]).flatten(-2).any(-1) & valid[..., None]
            there = there.any(1) if m.temporal else there
            drawn[m.name] = keep_some(there, self.p, random, priority) | ~there
        return drawn

    def replay(self, batch: Mapping[str, Tensor], params: Params) -> Sample:
        """Set the dropped bands to NaN."""

        def change(m: Modality, image: Tensor) -> Tensor:
            lost = ~params[m.name][:, None] if m.temporal else ~params[m.name]
            return image.masked_fill(lost[..., None, None], torch.nan)

        return self.with_images(batch, change)


class RandomJitter(Transform):
    """Multiply each image by a random gain and add a random offset, equal for all dates and bands.

    It is intended for normalised images, with a mean of 0 and a standard deviation of 1.

    Args:
        modalities: Modalities of the batch.
        strength: Maximum difference of the gain from 1 and of the offset from 0.
        same_on_batch: Whether all samples share one draw.
    """

    def __init__(self, modalities: Modalities, strength: float = 0.05, same_on_batch: bool = False) -> None:
        super().__init__(modalities, same_on_batch)
        if not 0 <= strength <= 1:
            raise ValueError(f'strength is {strength}, expected a number between 0 and 1')
        self.strength = float(strength)

    def present(self, batch: Mapping[str, Tensor]) -> Iterator[Modality]:
        """Yield the modalities of a batch, without embeddings, whose dimensions have no common gain."""
        return (m for m in super().present(batch) if m.kind != 'embedding')

    def draw(self, batch: Mapping[str, Tensor]) -> Params:
        """Draw ``<name>`` (B, 2), the gain minus 1 and the offset."""
        return {m.name: (2 * self.random(batch, 2) - 1) * self.strength for m in self.present(batch)}

    def replay(self, batch: Mapping[str, Tensor], params: Params) -> Sample:
        """Apply gain and offset to every image."""

        def change(m: Modality, image: Tensor) -> Tensor:
            numbers = params[m.name].to(image.dtype).view(-1, 2, *[1] * (image.ndim - 1))
            return torch.addcmul(numbers[:, 1], image, 1 + numbers[:, 0])

        return self.with_images(batch, change)


def polarisations(modality: Modality, unit: str) -> dict[int, tuple[str, str | None]]:
    """Return the polarisation of each radar band and that of its denominator.

    Args:
        modality: Modality of radar.
        unit: ``'db'`` or ``'power'``.

    Returns:
        Polarisation and that of the denominator (None if not a ratio) by index of the band,
        without bands of other names.
    """
    matches = ((index, _BANDS[unit].fullmatch(band.upper())) for index, band in enumerate(modality.bands))
    return {index: (match[1], match[2]) for index, match in matches if match}


def describe_not_simulated(modalities: Iterable[Modality]) -> str:
    """Return a message that names modalities without simulated speckle or clouds and the reasons, or ''."""
    lacking = {modality.name: _missing_fact(modality) for modality in modalities}
    reasons = ', '.join(f'{name} ({lack})' for name, lack in lacking.items() if lack)
    hint = 'state kind and unit, such as `kind: radar, unit: db` or `kind: optical, unit: dn`'
    return f'No speckle or clouds are simulated for {reasons}: {hint}' if reasons else ''


def _missing_fact(modality: Modality) -> str:
    if modality.kind is None:
        return f'kind{" and unit" * (modality.unit == "unknown")} unknown'
    simulated = modality.kind == 'radar' or (modality.kind == 'optical' and modality.temporal)
    if simulated and modality.unit == 'unknown':
        return 'unit unknown'
    if modality.kind == 'radar' and modality.unit in _BANDS and not polarisations(modality, modality.unit):
        return f'no band of {", ".join(modality.bands)} is named by its polarisation, such as VV'
    return ''


def _polarisation_names(noisy: Mapping[int, tuple[str, str | None]]) -> list[str]:
    return sorted({name for pair in noisy.values() for name in pair if name})
