# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Presto encoder of Sentinel-1 and Sentinel-2 pixel time series."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torchgeo.models import Presto_Weights, presto
from torchgeo.models.presto import BANDS_GROUPS_IDX, NUM_DYNAMIC_WORLD_CLASSES

from .....modality import Modality
from .....utils.tensors.devices import constant, wide
from ...registry import Origin, register_encoder
from .bands import check_units, complete_groups
from .composites import OPTICAL, RADAR, monthly_composites
from .pixels import PixelEncoder
from .weights import build_pretrained, load_strictly, read_weights

#: Channels of Presto, in its order: ``NORMED_BANDS`` in ``presto/dataops/pipelines/s1_s2_era5_srtm.py`` of
#: https://github.com/nasaharvest/presto (MIT License; Tseng et al., arXiv 2304.14065).
CHANNELS = (
    ('VV', 'VH', 'B2', 'B3', 'B4', 'B5', 'B6', 'B7', 'B8', 'B8A', 'B11', 'B12')
    + ('temperature_2m', 'total_precipitation', 'elevation', 'slope')
    + ('NDVI',)
)
#: Channels that are read from images; the others are masked, or NDVI, which is computed.
READ = CHANNELS[:12]
#: Units of a modality that can be converted, by sensor. In the same file, Presto divides digital numbers of
#: Sentinel-2 by 10,000, and adds 25 to decibels of Sentinel-1 (Earth Engine's GRD product) and divides by 25.
UNITS = {'S1': RADAR, 'S2': OPTICAL}
#: Index of the band group of each channel.
_GROUPS = [
    next(index for index, group in enumerate(BANDS_GROUPS_IDX.values()) if channel in group)
    for channel in range(len(CHANNELS))
]
#: Licence of the weights (README of the same repository).
LICENCE = 'MIT'
_SRTM = list(BANDS_GROUPS_IDX).index('SRTM')


class PrestoEncoder(PixelEncoder):
    """Presto, a pre-trained transformer of pixel time series of Sentinel-1, Sentinel-2 or both.

    Tseng et al., "Lightweight, Pre-trained Transformers for Remote Sensing Timeseries" (arXiv
    2304.14065), as implemented in ``torchgeo.models.presto``. The embedding of a pixel is the norm
    of the mean of its tokens, as in the published evaluation. The output is one map at the
    resolution of the images.

    Presto takes one composite per calendar month. Several dates of a month are combined per pixel:
    the median of optical bands, the mean of backscatter in linear power. The sequence begins in the
    month of the first observed date of the sample. Months without observation keep their position and
    are masked, as are band groups with a missing band. NDVI is computed from B8 and B4.
    Meteorology, elevation and land cover are masked. The location of each sample is that of
    ``coordinates`` of the batch; the token of an unknown location is removed.

    Presto cannot compute pixels with different numbers of masked tokens together, so pixels are
    grouped by that number. Embeddings that need no gradient are cached by the content of the pixel,
    and standardised by the first batch in training (``PixelEncoder``).

    Args:
        bands: Bands of the modality in any order, such as ``B04``, ``B4``, ``b8a`` or ``VV``. Bands that
            Presto lacks and incomplete band groups are not used, with a warning.
        unit: Unit of the raw images, as in :class:`.Modality`, or one for each band.
        mean: Mean of each band with which images were normalised; None for images in raw units.
        std: Standard deviation, in the same form.
        weights: Entry of ``torchgeo.models.Presto_Weights`` or its name, a file, or a state dict. None
            for random weights, for example to load a checkpoint.
        freeze: Whether the weights of Presto are excluded from training.
        latlon: Latitude and longitude of all images in degrees, instead of ``coordinates`` of the batch.
        ndvi: Whether NDVI is used.
        months: Number of months to embed, from the first observed one; None for all. Presto was pre-trained with 12.
        standardise: Whether the first batch in training sets the shift and scale of the embeddings.
        chunk: Maximum number of pixels that are computed at once.
        cache_size: Maximum number of embeddings in the cache, of about 0.8 kB each; 0 for no cache.
        **kwargs: Arguments of ``torchgeo.models.presto``, such as ``encoder_depth``.

    Raises:
        ValueError: If no band group of Presto is complete, a unit cannot be converted, the statistics do not fit
            the bands, or the weights do not fit the model.
    """

    uses_coordinates: Tensor
    #: ``OmniSat`` passes ``coordinates`` of the batch.
    takes_coordinates = True

    def __init__(
        self,
        bands: Sequence[str],
        unit: str | Sequence[str],
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        weights: Presto_Weights | str | Path | Mapping[str, Tensor] | None = None,
        freeze: bool = True,
        latlon: Sequence[float] | None = None,
        ndvi: bool = True,
        months: int | None = None,
        standardise: bool = True,
        chunk: int = 512,
        cache_size: int = 2**18,
        **kwargs: Any,
    ) -> None:
        freeze = kwargs.pop('frozen', freeze)  # its name in earlier checkpoints and configurations
        used = _match(bands)
        sensors = {index: 'S1' if CHANNELS[channel] in ('VV', 'VH') else 'S2' for index, channel in used.items()}
        units = check_units('Presto', bands, unit, {index: UNITS[sensor] for index, sensor in sensors.items()})
        model: Any = presto(None, **kwargs)
        super().__init__(bands, mean, std, model.encoder.embedding_size, standardise, cache_size)
        if months is not None and months < 1:
            raise ValueError(f'months is {months}, expected at least 1, or None for all months')
        self.ndvi, self.months, self.chunk = ndvi, months, chunk
        #: Channel of Presto by index of the band.
        self.used = used
        self.units = units
        self.latlon = None if latlon is None else _check_place(latlon)
        if weights is not None:
            self.origin = _load(model, weights)
        self.encoder: Any = model.encoder
        # Pooling precedes the norm, but TorchGeo's encoder would apply the norm to every token.
        self.norm: nn.LayerNorm = self.encoder.norm
        self.encoder.norm = nn.Identity()
        self.encoder.blocks[0].register_forward_pre_hook(self._drop_location)
        if freeze:
            self.freeze_modules('encoder', 'norm')
        self._located = True
        # Checkpoints written before batches had coordinates lack this buffer; they were trained without the location.
        self.register_buffer('uses_coordinates', torch.tensor(True))
        self.register_load_state_dict_pre_hook(_without_coordinates)

    def embed_images(
        self, image: Tensor, dates: Tensor, valid: Tensor, coordinates: Tensor | None
    ) -> Float[Tensor, 'p d']:
        """Return the embedding of each pixel."""
        x, month = self.composites(image, dates, valid)
        pixels = x.shape[-2] * x.shape[-1]
        months, places = month.repeat_interleave(pixels), None
        if coordinates is not None and self.uses_coordinates:
            places = coordinates.flip(-1).repeat_interleave(pixels, 0)
        return self.embed(rearrange(x, 'b t c h w -> (b h w) t c'), months, places)

    def composites(
        self, image: Float[Tensor, 'b t c h w'], dates: Int[Tensor, 'b t'], valid: Bool[Tensor, 'b t']
    ) -> tuple[Float[Tensor, 'b m 17 h w'], Int[Tensor, ' b']]:
        """Return monthly composites in the channels and scales of Presto, and the first month (0 to 11).

        Channels without observation are NaN. The arguments are those of :meth:`forward`.
        """
        bands = list(self.used)
        units, longest = [self.units[band] for band in bands], self.encoder.max_sequence_length
        found, first = monthly_composites(self, image, dates, valid, bands, units, longest, 'Presto', self.months)
        radar = constant([unit in RADAR for unit in units], image.device).view(-1, 1, 1)
        x = found.new_full((*found.shape[:2], len(CHANNELS), *found.shape[-2:]), torch.nan)
        x[:, :, list(self.used.values())] = torch.where(radar, (found + 25) / 25, found)
        if self.ndvi:
            near, red = x[:, :, CHANNELS.index('B8')], x[:, :, CHANNELS.index('B4')]
            total = near + red
            index = torch.where(total > 0, (near - red) / total, 0)
            x[:, :, CHANNELS.index('NDVI')] = index.masked_fill(total.isnan(), torch.nan)
        return x, first % 12

    def embed(
        self, x: Float[Tensor, 'p t 17'], month: Int[Tensor, ' p'], place: Float[Tensor, 'p 2'] | None = None
    ) -> Float[Tensor, 'p d']:
        """Embed pixels.

        Args:
            x: Monthly values in the channels and scales of Presto; NaN is missing.
            month: First month of each pixel, 0 to 11.
            place: Latitude and longitude of each pixel in degrees, NaN where unknown; ignored if ``latlon`` is set.

        Returns:
            Embeddings, zero for pixels without a complete band group.
        """
        known = torch.stack([x[..., list(c)].isfinite().all(-1) for c in BANDS_GROUPS_IDX.values()], dim=-1)
        known[:, 1:, _SRTM] = False  # one token for all months
        seen = known.flatten(1).any(1).nonzero().squeeze(1)
        out = x.new_zeros(len(x), self.channels[0])
        if not len(seen):
            return out
        known = known[seen]
        x = x[seen].masked_fill(~known[..., _GROUPS], 0)
        if self.latlon is not None or place is None:
            place = x.new_tensor(self.latlon or (torch.nan, torch.nan), dtype=wide(x.device)).expand(len(seen), 2)
        else:
            place = place[seen]
        parts = [x, known, month[seen].unsqueeze(1), place.to(x).nan_to_num(torch.inf)]
        # The number of months is that of the longest series of the batch, which must not change the keys.
        later = (0, 0, 0, self.encoder.max_sequence_length - x.shape[1])
        content = [F.pad(x, later), F.pad(known, later), *parts[2:]]
        return out.index_copy(0, seen, self.cached(content, lambda rows: self._embed(*(part[rows] for part in parts))))

    def _embed(self, x: Tensor, known: Tensor, month: Tensor, place: Tensor) -> Tensor:
        """Return embeddings of pixels, in groups of the same number of tokens."""
        dtype = self.norm.weight.dtype
        steps = torch.arange(x.shape[1], device=x.device)
        located = place.isfinite().all(1)
        tokens = 2 * known.flatten(1).sum(1) + located
        order, parts = [], []
        for number in tokens.unique():
            self._located = bool(number % 2)
            for rows in (tokens == number).nonzero().squeeze(1).split(self.chunk):
                months = (month[rows] + steps) % 12
                degrees = place[rows].to(dtype) if self._located else x.new_zeros(len(rows), 2, dtype=dtype)
                cover = torch.full_like(months, NUM_DYNAMIC_WORLD_CLASSES)
                mask = (~known[rows])[..., _GROUPS].to(dtype)
                encoded, _, _ = self.encoder(x[rows].to(dtype), cover, degrees, mask, months)
                order.append(rows)
                parts.append(self.norm(encoded.mean(1)).to(x.dtype))
        computed = torch.cat(parts)
        return torch.empty_like(computed).index_copy(0, torch.cat(order), computed)

    def _drop_location(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Remove the token of the location, which is the first, if the location is unknown."""
        return inputs if self._located else (inputs[0][:, 1:], *inputs[1:])


@register_encoder('presto', temporal=True)
def presto_encoder(
    modality: Modality,
    weights: Presto_Weights | str | None = None,
    pretrained: bool | None = None,
    load: bool = True,
    **kwargs: Any,
) -> PrestoEncoder:
    """Build the Presto encoder of a modality; see ``build_pretrained``.

    Other arguments are those of ``PrestoEncoder``. Without *mean* and *std*, images are in raw units, unless
    ``set_statistics`` is called.
    """
    return build_pretrained(
        lambda chosen: PrestoEncoder(modality.bands, modality.unit, weights=chosen, **kwargs),
        *(modality.name, 'presto', weights, pretrained, load, Presto_Weights.PRESTO, LICENCE),
    )


def _match(bands: Sequence[str]) -> dict[int, int]:
    """Return the channel of Presto by index of the band, for bands of complete groups."""
    groups = {tuple(group): [CHANNELS[channel] for channel in group] for group in BANDS_GROUPS_IDX.values()}
    read = {group: names for group, names in groups.items() if set(names) <= set(READ)}
    found = complete_groups('Presto', bands, read)
    return {index: channel for group, places in found.items() for index, channel in zip(places, group, strict=True)}


def _without_coordinates(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    if any(key.startswith(prefix) for key in state):
        state.setdefault(f'{prefix}uses_coordinates', torch.tensor(False))


def _check_place(latlon: Sequence[float]) -> tuple[float, float]:
    if len(latlon) != 2 or not (abs(latlon[0]) <= 90 and abs(latlon[1]) <= 180):
        raise ValueError(f'latlon is {latlon}, expected latitude (-90 to 90) and longitude (-180 to 180) in degrees')
    return float(latlon[0]), float(latlon[1])


def _load(model: nn.Module, weights: Presto_Weights | str | Path | Mapping[str, Tensor]) -> Origin:
    state, origin = read_weights(weights, Presto_Weights, LICENCE)
    origin = load_strictly(model, state, origin, 'Presto')
    return origin._replace(tensors=sum(key.startswith('encoder.') for key in model.state_dict()))
