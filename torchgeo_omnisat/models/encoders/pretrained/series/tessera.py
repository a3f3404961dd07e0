# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""TESSERA encoders of Sentinel-1 and Sentinel-2 pixel time series."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchgeo.models import Tessera_Weights
from torchgeo.models.tessera import TransformerEncoder
from torchvision.transforms.v2 import Normalize

from .....modality import Modality
from .....utils.tensors.observed import observed
from ...registry import Origin, register_encoder
from .bands import check_units, complete_groups
from .pixels import PixelEncoder
from .weights import build_pretrained, load_strictly, read_weights

#: Entry of TorchGeo by sensor.
ENTRIES = {'s2': Tessera_Weights.TESSERA_SENTINEL2_ENCODER, 's1': Tessera_Weights.TESSERA_SENTINEL1_ENCODER}
#: Bands in the order of the channels, by sensor; the last channel of an entry is the day of the year.
BANDS = {sensor: tuple(entry.meta['bands'][:-1]) for sensor, entry in ENTRIES.items()}
#: Units of a modality that can be converted, by sensor.
UNITS = {'s2': ('dn', 'reflectance'), 's1': ('db', 'power')}
#: Licence of the weights (README of https://github.com/ucam-eo/tessera).
LICENCE = 'cc0-1.0'
#: Maximum of the 16-bit integers that Sentinel-1 is stored as.
_LARGEST = 32767.0


class TesseraEncoder(PixelEncoder):
    """TESSERA, a pre-trained transformer of pixel time series of Sentinel-1 or Sentinel-2.

    Feng et al., "TESSERA: Temporal Embeddings of Surface Spectra for Earth Representation and
    Analysis" (arXiv 2506.20380), as implemented in ``torchgeo.models.tessera``. The output is one
    map of 512 channels at the resolution of the images.

    TESSERA has no mask: it takes a fixed number of dates on which all bands were observed. For
    training, they are drawn at random. Here they are spaced evenly over the ordered observed dates
    of the pixel; a pixel with fewer dates repeats them, as the original does. So the embedding does
    not depend on padding, the order of dates or other pixels. Only the day of the year is encoded:
    select the dates of one year.

    Sentinel-1 is converted to the integers of the original, ``200 (20 log10 x + 50)`` where x is
    backscatter in linear power. (The factor is 20, not 10. The mean of the published statistics then
    is -11.3 dB in VV and -17.5 dB in VH.)

    Args:
        bands: Bands of the modality in any order; those of Sentinel-2 or Sentinel-1 must be complete.
            Others are not used, with a warning.
        unit: Unit of the raw images, as in :class:`.Modality`.
        mean: Mean of each band with which images were normalised; None for images in raw units.
        std: Standard deviation, in the same form.
        weights: Entry of ``torchgeo.models.Tessera_Weights`` or its name, a file, or a state dict, of one
            encoder or of the whole model. None for random weights, for example to load a checkpoint.
        freeze: Whether the weights are excluded from training; dropout is disabled then.
        dates: Number of dates per pixel; TESSERA was trained with 40.
        standardise: Whether the first batch in training sets the shift and scale of the embeddings.
        chunk: Maximum number of pixels that are computed at once.
        cache_size: Maximum number of embeddings in the cache, of about 2.3 kB each; 0 for no cache.
        latent_dim: Quarter of the width.
        num_heads: Number of attention heads.
        depth: Number of layers.
        hidden_dim: Hidden width of a layer.

    Raises:
        ValueError: If the bands of neither or both sensors are complete, the unit cannot be converted, the
            statistics do not fit the bands, or the weights do not fit the model.
    """

    factor: Tensor
    native_mean: Tensor
    native_std: Tensor

    def __init__(
        self,
        bands: Sequence[str],
        unit: str,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        weights: Tessera_Weights | str | Path | Mapping[str, Tensor] | None = None,
        freeze: bool = True,
        dates: int = 40,
        standardise: bool = True,
        chunk: int = 256,
        cache_size: int = 2**16,
        latent_dim: int = 128,
        num_heads: int = 8,
        depth: int = 8,
        hidden_dim: int = 4096,
    ) -> None:
        sensor, used = _match(bands)
        check_units('TESSERA', bands, unit, dict.fromkeys(used, UNITS[sensor]))
        if dates < 1:
            raise ValueError(f'dates is {dates}, expected at least 1')
        super().__init__(bands, mean, std, 4 * latent_dim, standardise, cache_size)
        self.sensor, self.unit, self.dates, self.chunk = sensor, unit, dates, chunk
        #: Index of the band by channel of TESSERA.
        self.used = used
        transform: Any = next(step for step in ENTRIES[sensor].transforms.modules() if isinstance(step, Normalize))
        self.register_buffer('native_mean', torch.tensor(transform.mean[:-1]), persistent=False)
        self.register_buffer('native_std', torch.tensor(transform.std[:-1]), persistent=False)
        self.encoder = TransformerEncoder(len(used), latent_dim, num_heads, depth, hidden_dim)
        if weights is not None:
            self.origin = _load(self.encoder, sensor, weights)
        if freeze:
            self.freeze_modules('encoder')

    def embed_images(
        self, image: Tensor, dates: Tensor, valid: Tensor, coordinates: Tensor | None
    ) -> Float[Tensor, 'p d']:
        """Return the embedding of each pixel, one sample at a time, to bound memory."""
        days = day_of_year(dates).to(image.device)
        order = dates.masked_fill(~valid, torch.iinfo(dates.dtype).max).argsort(dim=1, stable=True)
        return torch.cat([self._embed_sample(*parts) for parts in zip(image, days, valid, order, strict=True)])

    def _embed_sample(self, image: Tensor, days: Tensor, valid: Tensor, order: Tensor) -> Tensor:
        kept = order[: max(1, int(valid.sum()))]
        frames = image[kept][:, self.used]
        usable = (observed(frames).all(1) & valid[kept].view(-1, 1, 1)).flatten(1).T
        pixels = rearrange(frames, 't c h w -> (h w) t c')
        out = image.new_zeros(len(pixels), self.channels[0], dtype=torch.promote_types(image.dtype, torch.float32))
        seen = usable.any(1).nonzero().squeeze(1)
        parts = []
        for rows in seen.split(self.chunk):
            places = spaced_evenly(usable[rows], self.dates)
            values = pixels[rows].gather(1, places.unsqueeze(-1).expand(-1, -1, pixels.shape[-1])).float()
            x = torch.cat([self._convert(values), days[kept][places].unsqueeze(-1)], -1)
            parts.append(self.cached([x], lambda index, x=x: self._encode(x[index]).float()))  # type: ignore[misc]
        return out.index_copy(0, seen, torch.cat(parts).to(out.dtype)) if parts else out

    def _encode(self, x: Tensor) -> Tensor:
        encoded: Tensor = self.encoder(x.to(next(self.encoder.parameters()).dtype))
        return encoded

    def _convert(self, values: Float[Tensor, 'p t c']) -> Float[Tensor, 'p t c']:
        """Convert normalised values to the normalised values of TESSERA."""
        raw = values * self.std[self.used] + self.mean[self.used]
        if self.unit == 'reflectance':
            raw = raw * 1e4
        elif self.sensor == 's1':
            decibels = 10 * raw.clamp(min=1e-10).log10() if self.unit == 'power' else raw
            raw = (200 * (2 * decibels + 50)).clamp(0, _LARGEST)
        return (raw - self.native_mean) / self.native_std


@register_encoder('tessera', temporal=True)
def tessera_encoder(
    modality: Modality,
    weights: Tessera_Weights | str | None = None,
    pretrained: bool | None = None,
    load: bool = True,
    **kwargs: Any,
) -> TesseraEncoder:
    """Build the TESSERA encoder of a modality; see ``build_pretrained``.

    Other arguments are those of ``TesseraEncoder``. Without *mean* and *std*, images are in raw units, unless
    ``set_statistics`` is called.
    """
    sensor: Literal['s1', 's2'] = _match(modality.bands)[0]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of unused bands, given above
        return build_pretrained(
            lambda chosen: TesseraEncoder(modality.bands, modality.unit, weights=chosen, **kwargs),
            *(modality.name, 'tessera', weights, pretrained, load, ENTRIES[sensor], LICENCE),
        )


def spaced_evenly(usable: Bool[Tensor, 'p t'], count: int) -> Int[Tensor, 'p k']:
    """Return the indices of *count* usable dates of each pixel, evenly spaced and repeated if there are fewer.

    With n usable dates, index i is that of the usable date ``floor(n (i + 1/2) / count)``.

    Args:
        usable: Usable dates in their order, at least one for each pixel.
        count: Number of indices.
    """
    ranked = (~usable).to(torch.uint8).argsort(dim=1, stable=True)  # the usable ones first
    steps = 2 * torch.arange(count, device=usable.device) + 1
    return ranked.gather(1, usable.sum(1, keepdim=True) * steps // (2 * count))


def day_of_year(dates: Int[Tensor, 'b t']) -> Float[Tensor, 'b t']:
    """Return the day of the year of each date, 1 to 366."""
    days = dates.cpu().numpy().astype('datetime64[D]')
    number = (days - days.astype('datetime64[Y]').astype('datetime64[D]')).astype(np.int64) + 1
    return torch.from_numpy(number.astype(np.float32))


def _match(bands: Sequence[str]) -> tuple[Literal['s1', 's2'], list[int]]:
    """Return the sensor, and the index of the band by channel of TESSERA."""
    found = complete_groups('TESSERA', bands, BANDS)
    if len(found) != 1:
        raise ValueError(f'bands are {list(bands)}, expected those of one sensor, each with its own encoder')
    sensor, used = next(iter(found.items()))
    return ('s1' if sensor == 's1' else 's2'), used


def _load(
    model: TransformerEncoder, sensor: str, weights: Tessera_Weights | str | Path | Mapping[str, Tensor]
) -> Origin:
    state, origin = read_weights(weights, Tessera_Weights, LICENCE)
    prefix = f'{sensor}_backbone.'
    part = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)} or dict(state)
    return load_strictly(model, part, origin, f'the encoder of {sensor} of TESSERA')
