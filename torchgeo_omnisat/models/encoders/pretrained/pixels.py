# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Base class of the pre-trained encoders of pixel time series."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchvision.models._api import WeightsEnum

from ..registry import Origin
from .cache import EmbeddingCache, content_keys
from .composites import RawImages
from .sources import read_entry, read_file

#: Minimum scale of an embedding, whose values are of the order of one.
_SMALLEST_SCALE = 1e-3


class PixelEncoder(RawImages):
    """Base class of encoders that embed the time series of every pixel separately.

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
    #: Description of the weights; None for weights from elsewhere.
    origin: Origin | None = None

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


def read_weights(
    weights: WeightsEnum | str | Path | Mapping[str, Tensor], known: type[WeightsEnum], licence: str
) -> tuple[Mapping[str, Tensor], Origin]:
    """Return a state dict and its origin, with the number of its tensors.

    Args:
        weights: Entry of TorchGeo or its name, a file, or a state dict.
        known: Entries of the model.
        licence: Licence of the published weights.

    Raises:
        ValueError: If the entry is unknown, or the file cannot be read as tensors.
    """
    if isinstance(weights, Mapping):
        return weights, Origin('a state dict', len(weights), 'a state dict')
    path = Path(str(weights)).expanduser()
    if path.exists():
        state: Mapping[str, Tensor] = read_file(path)
        return state, Origin(path.name, len(state), str(path))  # it may hold other weights than the published ones
    names = [str(entry) for entry in known]
    entry: Any = next((entry for entry in known if str(weights) in (entry.name, str(entry))), None)
    if entry is None:
        raise ValueError(f'weights are {str(weights)!r}, expected a file or one of {names}')
    state = read_entry(entry)
    return state, Origin(str(entry), len(state), entry.url, licence)


def chosen_weights[W: WeightsEnum](
    name: str, label: str, weights: W | str | None, pretrained: bool | None, published: W
) -> W | str | None:
    """Return the weights of a specification, None for random ones.

    Raises:
        ValueError: If neither or both are given.
    """
    if weights is None and pretrained is None:
        raise ValueError(
            f'encoder of {name!r} is {label} without weights, expected weights: {published.name}, or a file, '
            'to load them, or pretrained: false for random weights'
        )
    if weights is not None and pretrained is False:
        raise ValueError(f'encoder of {name!r} has weights {weights!r} and pretrained: false, expected one')
    return (weights or published) if pretrained or weights else None
