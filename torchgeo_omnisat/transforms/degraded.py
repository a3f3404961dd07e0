# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Degradations of sensors: fewer dates, cloud cover, noise and partial coverage."""

import math
import zlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torchgeo.datasets.utils import Sample

from ..modality import Modality
from ..utils.checks import check_integer
from ..utils.tensors.observed import finite
from .base import Modalities, Params, Transform, deprecated_argument, probability


class Degradation(Transform):
    """Base class of degradations with reproducible random parameters.

    If a batch has ``index`` ``(B,)``, the indices of its samples in the dataset, each draw is
    determined by *seed*, index and name of the modality. It is then the same on any device and
    in any batch, and a stronger degradation includes the weaker ones. Otherwise seeds are drawn
    from PyTorch's global generator.

    Args:
        modalities: Modalities of the batch.
        seed: Seed for batches with ``index``.
        same_on_batch: Whether all samples share one draw.
    """

    def __init__(self, modalities: Modalities, seed: int = 0, same_on_batch: bool = False) -> None:
        super().__init__(modalities, same_on_batch)
        check_integer(0, seed=seed)
        self.seed = seed

    @staticmethod
    @abstractmethod
    def concerns(modality: Modality) -> bool:
        """Return whether the degradation applies to a modality."""

    @abstractmethod
    def draw_one(self, image: Tensor, valid: Tensor, rng: np.random.Generator) -> NDArray[np.generic]:
        """Draw the parameters for one modality of one sample."""

    def present(self, batch: Mapping[str, Tensor]) -> Iterator[Modality]:
        """Yield the affected modalities whose keys are in a batch."""
        return (m for m in super().present(batch) if self.concerns(m))

    def draw(self, batch: Mapping[str, Tensor]) -> Params:
        """Draw ``<name>`` (B, ...), the parameters of each sample."""
        count = len(next(iter(batch.values())))
        keys = batch['index'].tolist() if 'index' in batch else torch.randint(2**62, (count,)).tolist()
        keys = keys[:1] * count if self.same_on_batch else keys
        drawn = {}
        for m in self.present(batch):
            image, valid = batch[m.image_key], batch[m.valid_key]
            name = zlib.crc32(m.name.encode())
            rows = [
                self.draw_one(image[i], valid[i], np.random.default_rng([self.seed, key, name]))
                for i, key in enumerate(keys)
            ]
            drawn[m.name] = torch.from_numpy(np.stack(rows)).to(image.device)
        return drawn


class FractionalDegradation(Degradation):
    """Base class of degradations of a given fraction.

    Args:
        modalities: Modalities of the batch.
        fraction: Fraction, from 0 to 1.
        seed: See :class:`.Degradation`.
        same_on_batch: Whether all samples share one draw.
        share: Deprecated name of *fraction*.
    """

    def __init__(
        self,
        modalities: Modalities,
        fraction: float = 0.5,
        seed: int = 0,
        same_on_batch: bool = False,
        share: float | None = None,
    ) -> None:
        super().__init__(modalities, seed, same_on_batch)
        self.fraction = probability(deprecated_argument(fraction, 'fraction', share, 'share'), 'fraction')


class FewerDates(FractionalDegradation):
    """Keep a fraction of the valid dates of each time series, at least one; only ``valid`` changes.

    Args:
        fraction: Fraction of the valid dates to keep, rounded to whole dates.
        **kwargs: See :class:`.Degradation`.
    """

    @staticmethod
    def concerns(modality: Modality) -> bool:
        """Return True for time series."""
        return modality.temporal

    def draw_one(self, image: Tensor, valid: Tensor, rng: np.random.Generator) -> NDArray[np.bool_]:
        """Return flags (T,) of the dates that are kept."""
        kept = valid.cpu().numpy().copy()
        order = rng.permutation(np.flatnonzero(kept))
        kept[order[max(1, round(self.fraction * len(order))) :]] = False
        return kept

    def replay(self, batch: Mapping[str, Tensor], params: Params) -> Sample:
        """Drop dates; all tensors but ``valid_*`` are shared with *batch*."""
        return {**batch, **{m.valid_key: batch[m.valid_key] & params[m.name] for m in self.present(batch)}}


class CloudCover(FractionalDegradation):
    """Mask simulated clouds in optical time series, some dates of which are covered completely.

    It applies to time series of ``kind='optical'``. Covered pixels are NaN, and dates that are
    covered completely are not valid, as with a cloud mask. For clouds without a mask see
    :class:`.RandomClouds`.

    Args:
        fraction: Fraction of the pixels of all valid dates that is covered.
        **kwargs: See :class:`.Degradation`.
    """

    @staticmethod
    def concerns(modality: Modality) -> bool:
        """Return True for optical time series."""
        return modality.temporal and modality.kind == 'optical'

    def draw_one(self, image: Tensor, valid: Tensor, rng: np.random.Generator) -> NDArray[np.bool_]:
        """Return flags (T, H, W) of covered pixels: blobs on the ground, many on some dates and none on others."""
        height, width = image.shape[-2:]
        hidden = np.zeros((len(valid), height, width), dtype=bool)
        there = valid.cpu().numpy()
        days = int(there.sum())
        sky = rng.standard_normal((days, 1, 1), dtype=np.float32)
        blobs = rng.standard_normal((days, height, width), dtype=np.float32)
        count = round(self.fraction * blobs.size)
        if count:
            blobs = gaussian_filter(blobs, (0, height / 8, width / 8))
            field = 2 * _scale_to_unit_std(gaussian_filter(sky, (1, 0, 0))) + _scale_to_unit_std(blobs)
            lowest = np.zeros(field.size, dtype=bool)
            lowest[np.argsort(field, axis=None)[:count]] = True
            hidden[there] = lowest.reshape(field.shape)
        return hidden

    def replay(self, batch: Mapping[str, Tensor], params: Params) -> Sample:
        """Set covered pixels to NaN."""
        changed = dict(batch)
        for m in self.present(batch):
            hidden = params[m.name]
            changed[m.image_key] = batch[m.image_key].masked_fill(hidden[:, :, None], torch.nan)
            changed[m.valid_key] = batch[m.valid_key] & ~hidden.flatten(2).all(-1)
        return changed


class GaussianNoise(Degradation):
    """Add Gaussian noise to every pixel and band of normalised images.

    Args:
        modalities: Modalities of the batch.
        snr: Signal-to-noise ratio in dB for a signal with a standard deviation of 1, as in normalised
            images; that of the noise is ``10 ** (-snr / 20)``. Infinity for no noise.
        seed: See :class:`.Degradation`.
        same_on_batch: Whether all samples share one draw.

    Raises:
        ValueError: If *snr* is NaN or negative infinity.
    """

    def __init__(self, modalities: Modalities, snr: float = 0.0, seed: int = 0, same_on_batch: bool = False) -> None:
        super().__init__(modalities, seed, same_on_batch)
        if not snr > -math.inf:
            raise ValueError(f'snr is {snr}, expected a ratio in dB or inf')
        self.std = 10 ** (-snr / 20)

    @staticmethod
    def concerns(modality: Modality) -> bool:
        """Return True for every modality."""
        return True

    def draw_one(self, image: Tensor, valid: Tensor, rng: np.random.Generator) -> NDArray[np.float32]:
        """Return noise of standard deviation 1, of the shape of the image; 0 on dates that are not valid."""
        there = valid.cpu().numpy()
        frames = there if image.ndim == 4 else there[0]
        noise = np.zeros(tuple(image.shape), dtype=np.float32)
        noise[frames] = rng.standard_normal(noise[frames].shape, dtype=np.float32)
        return noise

    def replay(self, batch: Mapping[str, Tensor], params: Params) -> Sample:
        """Add the noise; NaN stays NaN."""
        return self.with_images(batch, lambda m, image: image + self.std * params[m.name].to(image.dtype))


class PartialCover(FractionalDegradation):
    """Restrict single images to a part of the tile along one of its four sides; the rest is NaN.

    An image without a remaining pixel is not valid.

    Args:
        fraction: Fraction of the tile that is covered, rounded to whole rows or columns.
        **kwargs: See :class:`.Degradation`.
    """

    @staticmethod
    def concerns(modality: Modality) -> bool:
        """Return True for single images."""
        return not modality.temporal

    def draw_one(self, image: Tensor, valid: Tensor, rng: np.random.Generator) -> NDArray[np.bool_]:
        """Return flags (H, W) of the covered pixels."""
        covered = np.zeros(tuple(image.shape[-2:]), dtype=bool)
        quarter_turns = rng.integers(4)
        side = np.rot90(covered, quarter_turns)  # a view, so that the rows below are those of one side
        side[: round(self.fraction * len(side))] = True
        return covered

    def replay(self, batch: Mapping[str, Tensor], params: Params) -> Sample:
        """Set pixels that are not covered to NaN."""
        changed = self.with_images(batch, lambda m, image: image.masked_fill(~params[m.name][:, None], torch.nan))
        for m in self.present(batch):
            changed[m.valid_key] = batch[m.valid_key] & finite(changed[m.image_key]).flatten(1).any(1, keepdim=True)
        return changed


def _scale_to_unit_std(field: NDArray[np.float32]) -> NDArray[np.float32]:
    scaled: NDArray[np.float32] = field / max(float(field.std()), 1e-12)
    return scaled
