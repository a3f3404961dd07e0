# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Sensors that see less: fewer dates, clouds, noise, and an image of a part of the tile."""

import math
import zlib
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torchgeo.datasets.utils import Sample

from ..modality import Modality
from .base import Params, Transform, probability


class Degradation(Transform):
    """Each sample sees less, by draws that can be had again.

    Where a batch says which samples it holds, by their places in the dataset in ``index``
    ``(B,)``, each draw is determined by *seed*, place and name of the modality: the same on
    any device, in any batch and order, and a stronger degradation takes what a weaker one
    took. Otherwise draws come from PyTorch's generator.

    Args:
        modalities: The modalities of the batch.
        seed: Seed of the draws of a batch with ``index``.
        same_on_batch: Whether all samples share one draw.

    Raises:
        ValueError: If *seed* is negative.
    """

    def __init__(
        self, modalities: Mapping[str, Modality] | Iterable[Modality], seed: int = 0, same_on_batch: bool = False
    ) -> None:
        super().__init__(modalities, same_on_batch)
        if seed < 0:
            raise ValueError(f'seed is {seed}, expected 0 or more')
        self.seed = seed

    @staticmethod
    @abstractmethod
    def concerns(modality: Modality) -> bool:
        """Whether a modality can be degraded in this way."""

    @abstractmethod
    def draw_one(self, image: Tensor, valid: Tensor, rng: np.random.Generator) -> NDArray[np.generic]:
        """Draw the parameters for one modality of one sample."""

    def present(self, batch: Mapping[str, Tensor]) -> Iterator[Modality]:
        """Yield the affected modalities whose keys are in a batch."""
        return (m for m in super().present(batch) if self.concerns(m))

    def draw(self, batch: Mapping[str, Tensor]) -> Params:
        """``<name>`` (B, ...), what is left to chance for each sample."""
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


class Partial(Degradation):
    """A degradation that leaves or takes a share.

    Args:
        modalities: The modalities of the batch.
        share: How much, from 0 to 1.
        seed: See :class:`.Degradation`.
        same_on_batch: Whether all samples share one draw.

    Raises:
        ValueError: If *share* is not between 0 and 1.
    """

    def __init__(
        self,
        modalities: Mapping[str, Modality] | Iterable[Modality],
        share: float = 0.5,
        seed: int = 0,
        same_on_batch: bool = False,
    ) -> None:
        super().__init__(modalities, seed, same_on_batch)
        self.share = probability(share, 'share')


class FewerDates(Partial):
    """Each series keeps a part of its valid dates, at least one; only ``valid`` changes.

    Args:
        modalities: The modalities of the batch.
        share: Part of the valid dates that is kept, rounded to whole dates.
        seed: See :class:`.Degradation`.
        same_on_batch: Whether all samples share one draw.

    Raises:
        ValueError: If *share* is not between 0 and 1.
    """

    @staticmethod
    def concerns(modality: Modality) -> bool:
        """Series alone."""
        return modality.temporal

    def draw_one(self, image: Tensor, valid: Tensor, rng: np.random.Generator) -> NDArray[np.bool_]:
        """Return flags (T,) of the dates that are kept."""
        kept = valid.cpu().numpy().copy()
        order = rng.permutation(np.flatnonzero(kept))
        kept[order[max(1, round(self.share * len(order))) :]] = False
        return kept

    def replay(self, batch: Mapping[str, Tensor], params: Params) -> Sample:
        """Drop dates; everything but ``valid_*`` is shared with *batch*."""
        return {**batch, **{m.valid_key: batch[m.valid_key] & params[m.name] for m in self.present(batch)}}


class CloudCover(Partial):
    """A part of what an optical series saw is hidden, in blobs, on some days throughout.

    These are the series of ``kind='optical'``. What is hidden is NaN,
    and a date that is hidden throughout is no longer valid: the model is told, as by a mask of
    clouds. For clouds that are not masked see :class:`.RandomClouds`.

    Args:
        modalities: The modalities of the batch.
        share: Part of the pixels of all valid dates of a series that is hidden.
        seed: See :class:`.Degradation`.
        same_on_batch: Whether all samples share one draw.

    Raises:
        ValueError: If *share* is not between 0 and 1.
    """

    @staticmethod
    def concerns(modality: Modality) -> bool:
        """Optical series alone."""
        return modality.temporal and modality.kind == 'optical'

    def draw_one(self, image: Tensor, valid: Tensor, rng: np.random.Generator) -> NDArray[np.bool_]:
        """Return flags (T, H, W) of covered pixels: blobs on the ground, many on some dates and none on others."""
        height, width = image.shape[-2:]
        hidden = np.zeros((len(valid), height, width), dtype=bool)
        there = valid.cpu().numpy()
        days = int(there.sum())
        sky = rng.standard_normal((days, 1, 1), dtype=np.float32)
        blobs = rng.standard_normal((days, height, width), dtype=np.float32)
        count = round(self.share * blobs.size)
        if count:
            blobs = gaussian_filter(blobs, (0, height / 8, width / 8))
            field = 2 * _of_deviation_one(gaussian_filter(sky, (1, 0, 0))) + _of_deviation_one(blobs)
            lowest = np.zeros(field.size, dtype=bool)
            lowest[np.argsort(field, axis=None)[:count]] = True
            hidden[there] = lowest.reshape(field.shape)
        return hidden

    def replay(self, batch: Mapping[str, Tensor], params: Params) -> Sample:
        """Forget what is hidden."""
        changed = dict(batch)
        for m in self.present(batch):
            hidden = params[m.name]
            changed[m.image_key] = batch[m.image_key].masked_fill(hidden[:, :, None], torch.nan)
            changed[m.valid_key] = batch[m.valid_key] & ~hidden.flatten(2).all(-1)
        return changed


class GaussianNoise(Degradation):
    """Gaussian noise on every pixel of every band, for normalised images.

    Args:
        modalities: The modalities of the batch.
        snr: Ratio of signal to noise in dB, where the signal has the deviation of the band, 1
            in normalised images: noise has a deviation of ``10 ** (-snr / 20)``. Infinite for none.
        seed: See :class:`.Degradation`.
        same_on_batch: Whether all samples share one draw.

    Raises:
        ValueError: If *snr* is no number of decibels.
    """

    def __init__(
        self,
        modalities: Mapping[str, Modality] | Iterable[Modality],
        snr: float = 0.0,
        seed: int = 0,
        same_on_batch: bool = False,
    ) -> None:
        super().__init__(modalities, seed, same_on_batch)
        if not snr > -math.inf:
            raise ValueError(f'snr is {snr}, expected a ratio in dB, inf for no noise')
        self.deviation = 10 ** (-snr / 20)

    @staticmethod
    def concerns(modality: Modality) -> bool:
        """Every modality."""
        return True

    def draw_one(self, image: Tensor, valid: Tensor, rng: np.random.Generator) -> NDArray[np.float32]:
        """Noise of deviation 1, of the shape of the image; none on dates that are not valid."""
        there = valid.cpu().numpy()
        frames = there if image.ndim == 4 else there[0]
        noise = np.zeros(tuple(image.shape), dtype=np.float32)
        noise[frames] = rng.standard_normal(noise[frames].shape, dtype=np.float32)
        return noise

    def replay(self, batch: Mapping[str, Tensor], params: Params) -> Sample:
        """Add the noise; NaN stays NaN."""
        images = {
            m.image_key: batch[m.image_key] + self.deviation * params[m.name].to(batch[m.image_key].dtype)
            for m in self.present(batch)
        }
        return {**batch, **images}


class PartialCover(Partial):
    """Each single image covers a part of the tile, on one of its four sides; the rest is NaN.

    Args:
        modalities: The modalities of the batch.
        share: Part of the tile that is covered, rounded to whole rows or columns.
        seed: See :class:`.Degradation`.
        same_on_batch: Whether all samples share one draw.

    Raises:
        ValueError: If *share* is not between 0 and 1.
    """

    @staticmethod
    def concerns(modality: Modality) -> bool:
        """Single images alone."""
        return not modality.temporal

    def draw_one(self, image: Tensor, valid: Tensor, rng: np.random.Generator) -> NDArray[np.bool_]:
        """Return flags (H, W) of the covered pixels."""
        covered = np.zeros(tuple(image.shape[-2:]), dtype=bool)
        quarter_turns = rng.integers(4)
        side = np.rot90(covered, quarter_turns)  # a view, so that the rows below are those of one side
        side[: round(self.share * len(side))] = True
        return covered

    def replay(self, batch: Mapping[str, Tensor], params: Params) -> Sample:
        """Forget what is not covered."""
        images = {
            m.image_key: batch[m.image_key].masked_fill(~params[m.name][:, None], torch.nan)
            for m in self.present(batch)
        }
        return {**batch, **images}


def _of_deviation_one(field: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the field divided by its standard deviation, if it is not zero."""
    scaled: NDArray[np.float32] = field / max(float(field.std()), 1e-12)
    return scaled
