# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Base class of the pre-trained encoders of pixel time series."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .cache import EmbeddingCache, content_keys
from .composites import RawImages

#: Minimum scale of an embedding, whose values are of the order of one.
_SMALLEST_SCALE = 1e-3


class PixelEncoder(RawImages, ABC):
    """Base class of encoders that embed the time series of every pixel separately.

    A subclass implements ``embed_images``.

    Embeddings that need no gradient are cached by the content of the pixel.

    Within a region, embeddings differ little compared with their mean, which a decoder learns
    slowly. The first batch in training therefore sets a shift and a scale per channel, as in
    ActNorm (Kingma and Dhariwal, arXiv 1807.03039); they stay fixed and are saved with the model.

    Args:
        bands: Bands of the modality.
        mean: Mean of each band with which images were normalised; None for images in raw units.
        std: Standard deviation, in the same form.
        dim: Width of an embedding.
        standardise: Whether the first batch in training sets the shift and scale of the embeddings.
        cache_size: Maximum number of embeddings in the cache; 0 for no cache.

    Raises:
        ValueError: If the statistics do not fit the bands.
    """

    shift: Tensor
    scale: Tensor
    is_standardised: Tensor

    def __init__(
        self,
        bands: Sequence[str],
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        dim: int,
        standardise: bool,
        cache_size: int,
    ) -> None:
        super().__init__(bands, mean, std)
        self.standardise = standardise
        self.register_buffer('is_standardised', torch.tensor(False))
        self.register_buffer('shift', torch.zeros(dim))
        self.register_buffer('scale', torch.ones(dim))
        self.cache = EmbeddingCache(cache_size)
        self.channels, self.strides = (dim,), (1,)

    def forward(
        self,
        image: Float[Tensor, 'b t c h w'],
        dates: Int[Tensor, 'b t'],
        valid: Bool[Tensor, 'b t'],
        coordinates: Float[Tensor, 'b 2'] | None = None,
    ) -> list[Tensor]:
        """Encode time series.

        Args:
            image: Bands, normalised with *mean* and *std*; NaN is nodata.
            dates: Days since 1970-01-01.
            valid: Valid dates; the others are ignored.
            coordinates: Longitude and latitude of each sample in degrees, NaN where unknown.

        Returns:
            One map of shape ``(B, D, H, W)``, zero where nothing was observed.

        Raises:
            ValueError: If the model cannot encode a series of this length.
        """
        with torch.autocast(image.device.type, enabled=False):
            embedded = self.standardised(self.embed_images(image, dates, valid, coordinates))
        return [rearrange(embedded.to(image.dtype), '(b h w) d -> b d h w', b=len(image), h=image.shape[-2])]

    @abstractmethod
    def embed_images(
        self, image: Tensor, dates: Tensor, valid: Tensor, coordinates: Tensor | None
    ) -> Float[Tensor, 'p d']:
        """Return the embedding of each of the ``B x H x W`` pixels, zero where nothing was observed."""

    @property
    def is_cached(self) -> bool:
        """Whether embeddings are cached in training, so that images should not be augmented."""
        return self.cache.size > 0 and not any(parameter.requires_grad for parameter in self.parameters())

    def standardised(self, embedded: Float[Tensor, 'p d']) -> Float[Tensor, 'p d']:
        """Subtract the shift and divide by the scale, which the first batch in training sets; zero stays zero."""
        seen = embedded.any(1, keepdim=True)
        if self.training and self.standardise and not self.is_standardised and seen.sum() > 1:
            chosen = embedded.detach()[seen.squeeze(1)].float()
            self.shift.copy_(chosen.mean(0))
            self.scale.copy_(chosen.std(0).clamp(min=_SMALLEST_SCALE))
            self.is_standardised.fill_(True)
        return (embedded - self.shift.to(embedded.dtype)) / self.scale.to(embedded.dtype) * seen

    def cached(
        self, parts: Sequence[Tensor], compute: Callable[[Int[Tensor, ' r']], Float[Tensor, 'r d']]
    ) -> Float[Tensor, 'p d']:
        """Return embeddings of pixels, computing only those that are not in the cache.

        Gradients and changed weights are respected: with a gradient nothing is cached, and the cache is cleared if a
        weight changed.
        """
        first = parts[0]
        needs_grad = torch.is_grad_enabled() and (
            any(part.requires_grad for part in parts) or any(p.requires_grad for p in self.parameters())
        )
        if needs_grad or not self.cache.size:
            return compute(torch.arange(len(first), device=first.device))
        self.cache.begin([(p.data_ptr(), p._version, p.dtype) for p in self.parameters()])
        keys = content_keys(parts, b'')
        new = {key: index for index, key in enumerate(keys) if key not in self.cache.slots}
        computed = first.new_zeros(0, self.channels[0])
        if new:
            with torch.no_grad():
                computed = compute(torch.tensor(list(new.values()), device=first.device))
        values = self.cache.update(keys, list(new), computed.cpu().numpy())
        return torch.from_numpy(values).to(first.device)
