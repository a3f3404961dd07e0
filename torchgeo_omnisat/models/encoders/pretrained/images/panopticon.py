# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Panopticon encoder of images with any bands."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torchgeo.models import Panopticon_Weights, panopticon_vitb14
from torchgeo.models.panopticon import Panopticon

from .....modality import Modality
from .....utils.signatures import with_arguments_of
from .....utils.tensors.devices import constant
from ...registry import register_encoder
from ..adapter import Native
from .foundation import POLARISATIONS, Family, FoundationEncoder, Weights, band_wavelengths, spectral_native
from .tokens import TokenBody, prepend_class_token

#: Size of the images that the position embedding of the published file is for.
IMAGE_SIZE = 518
#: Builders of the model by size, with the position embedding of the published file.
SIZES: dict[str, Callable[[], Panopticon]] = {'base': partial(panopticon_vitb14, img_size=IMAGE_SIZE)}
#: Identifiers of radar bands are negative: four polarisations of an unknown orbit, of ascending and of descending
#: orbits (``sar_embs`` of ``torchgeo.models.panopticon``).
ORBITS = (None, 'ascending', 'descending')


class PanopticonBody(TokenBody):
    """Vision transformer of Panopticon, for images of any size.

    A band that is missing in all pixels of a patch is masked in the attention over bands.

    Args:
        model: Panopticon.
        channels: Identifier of each band: wavelength in nanometres, or a negative number for radar.
    """

    def __init__(self, model: Panopticon, channels: Sequence[float]) -> None:
        vit: Any = model.model
        super().__init__(nn.ModuleList(vit.blocks), vit.embed_dim, vit.patch_embed.patch_size[0], vit.norm)
        self.channels = tuple(channels)
        self.patch_embed = vit.patch_embed
        self.cls_token, self.pos_embed = vit.cls_token, vit.pos_embed

    def embed(self, x: Float[Tensor, 's d h w']) -> Float[Tensor, 's n e']:
        """Return the class token and the tokens of the patches."""
        attend: Any = self.patch_embed.chnfus
        count = len(self.channels)
        bands, rows, columns = self.patch_embed.conv3d(x[:, :count])
        # The model changes the identifiers in place, so that each call needs its own.
        embedding = attend.chnemb(constant([self.channels], x.device, torch.float32))
        bands = rearrange(bands + embedding[:, :, None].to(bands.dtype), 's c n e -> (s n) c e')
        query = attend.query.expand(len(bands), -1, -1)
        fused = attend.xattn(query, bands, bands, key_padding_mask=self._missing(x))
        tokens = self.patch_embed.proj(rearrange(fused, '(s n) 1 e -> s n e', s=len(x)))
        tokens = tokens if self.terms is None else self.terms(x, tokens)
        return prepend_class_token(tokens, self.cls_token, self.pos_embed, (rows, columns))

    def _missing(self, x: Tensor) -> Tensor | None:
        """Return the flags ``(S N, C)`` of bands that are missing in all pixels of a patch; None without flags."""
        terms = self.terms
        if terms is None or x.shape[1] == terms.known + terms.rest:
            return None
        flags = x[:, terms.known + terms.rest :].index_select(1, constant(terms.indices, x.device))
        whole = rearrange(-F.max_pool2d(-flags, self.patch), 's c h w -> (s h w) c') > 0
        return whole & ~whole.all(1, keepdim=True)


#: Weights of Panopticon.
FAMILY = Family(
    'panopticon',
    {'base': Panopticon_Weights.VIT_BASE14},
    dict.fromkeys(('s2', 's1', 'rgb', 'landsat'), 'by wavelength'),
    lambda size, sensor: PanopticonBody(SIZES[size](), (-1.0,)),
)


@register_encoder('panopticon', temporal=False, per_date=True)
class PanopticonEncoder(FoundationEncoder):
    """Panopticon encoder of images whose bands are described by their wavelengths, for images of any size.

    Waldmann et al., "Panopticon: Advancing Any-Sensor Foundation Models for Earth Observation" (arXiv 2503.10845), as
    implemented in ``torchgeo.models.panopticon``. Optical and thermal bands are described by ``wavelengths`` of the
    modality; VV, VH, HH and HV by polarisation and orbit.

    Panopticon has no units: images are normalised by the mean and standard deviation of each band ("standard normal
    normalization" in its README), which are those of the data.

    The size is ``'base'`` (``Panopticon_Weights.VIT_BASE14``).
    """

    family = FAMILY
    standardised = True

    @with_arguments_of(FoundationEncoder, is_last=True)
    def __init__(
        self, modality: Modality, weights: Any = None, *, orbit: str | None = None, chunk: int = 8, **kwargs: Any
    ) -> None:
        """Initialize the encoder.

        Args:
            modality: Modality to encode.
            weights: ``'Panopticon_Weights.VIT_BASE14'`` or a file.
            orbit: ``'ascending'`` or ``'descending'`` for radar; None if unknown or both.
            chunk: Maximum number of images that are computed at once. The attention over bands takes memory.
            **kwargs: Arguments of ``FoundationEncoder``.

        Raises:
            ValueError: If *orbit* is unknown, or as for ``FoundationEncoder``.
        """
        if orbit not in ORBITS:
            raise ValueError(f'orbit is {orbit!r} for {modality.name!r}, expected one of {list(ORBITS)}')
        self.orbit = orbit
        super().__init__(modality, weights, chunk=chunk, **kwargs)

    def build(self, modality: Modality, weights: Weights) -> tuple[Native, PanopticonBody]:
        """Return the input of Panopticon, and the model for these wavelengths."""
        known = band_wavelengths(modality, weights.label)
        first = -1 - len(POLARISATIONS) * ORBITS.index(self.orbit)
        channels = [
            float(first - POLARISATIONS.index(value)) if isinstance(value, str) else value for value in known.values()
        ]
        native = spectral_native(modality, weights.label, known, {})
        return native, PanopticonBody(SIZES[weights.size](), channels)
