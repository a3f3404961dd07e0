# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""CROMA encoder of Sentinel-1 or Sentinel-2 images."""

from collections.abc import Mapping
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torchgeo.models import CROMABase_Weights, CROMALarge_Weights
from torchgeo.models.croma import BaseTransformer, get_2dalibi

from .....modality import Modality
from ...registry import register_encoder
from ..adapter import AdaptedConv2d, BandAdapter, Native, canonical
from .foundation import POLARISATIONS, Family, FoundationEncoder, Weights
from .tokens import TokenBody

#: Bands of the two encoders of CROMA, in its order: 12 bands of Sentinel-2 without the cirrus band
#: (https://github.com/antofuller/CROMA/blob/main/README.md), and VV and VH as in SSL4EO-S12, on which it was trained.
BANDS = {
    'sar': ('VV', 'VH'),
    'optical': ('B1', 'B2', 'B3', 'B4', 'B5', 'B6', 'B7', 'B8', 'B8A', 'B9', 'B11', 'B12'),
}
#: Width and depth of the optical encoder by size; that of radar is half as deep.
SIZES = {'base': (768, 12), 'large': (1024, 24)}
#: Number of heads and patch size of all sizes.
HEADS, PATCH = 16, 8
#: Name of each encoder in the published file.
_PARTS = {'sar': 's1_encoder', 'optical': 's2_encoder'}


class CROMABody(TokenBody):
    """One of the two encoders of CROMA, for images of any size.

    The attention has a bias that is proportional to the distance of two patches (ALiBi), so no position embedding has
    to be resized.

    Args:
        size: Size of the model.
        half: ``'sar'`` or ``'optical'``.
    """

    slopes: Tensor

    def __init__(self, size: str, half: str) -> None:
        width, depth = SIZES[size]
        transformer = BaseTransformer(width, depth if half == 'optical' else depth // 2, HEADS)
        super().__init__(transformer.layers, width, PATCH, transformer.norm_out)
        self.part = half
        self.patch_embed = nn.Conv2d(len(BANDS[half]), width, PATCH, PATCH)
        # The bias of patches at distance 1 is the negative slope of each head.
        self.register_buffer('slopes', -get_2dalibi(HEADS, 4)[0, :, 0, 1], persistent=False)

    def embed(self, x: Float[Tensor, 's d h w']) -> Float[Tensor, 's n e']:
        """Return the tokens of the patches."""
        return rearrange(self.patch_embed(x), 's e h w -> s (h w) e')

    def run_block(self, index: int, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the output of a block."""
        block: Any = self.blocks[index]
        attention, feedforward = block
        tokens = attention(tokens, self._bias(grid, tokens)) + tokens
        output: Tensor = feedforward(tokens) + tokens
        return output

    def _bias(self, grid: tuple[int, int], tokens: Tensor) -> Tensor:
        """Return the bias of the attention (1, heads, N, N)."""
        axes = [torch.arange(size, device=tokens.device, dtype=torch.float32) for size in grid]
        places = torch.cartesian_prod(*axes)
        distance = (places[:, None] - places).square().sum(-1).sqrt()
        return (-self.slopes.float().view(1, -1, 1, 1) * distance).to(tokens.dtype)


#: Weights of CROMA.
FAMILY = Family(
    'croma',
    {'base': CROMABase_Weights.CROMA_VIT, 'large': CROMALarge_Weights.CROMA_VIT},
    {'s2': '12: B1 .. B12', 's1': 'VV VH'},
    lambda size, sensor: CROMABody(size, 'sar' if sensor == 's1' else 'optical'),
)


@register_encoder('croma', temporal=False, per_date=True)
class CROMAEncoder(FoundationEncoder):
    """CROMA encoder of Sentinel-1 (VV, VH) or Sentinel-2 (12 bands) images, for images of any size.

    Fuller et al., "CROMA: Remote Sensing Representations with Contrastive Radar-Optical Masked Autoencoders"
    (arXiv 2311.00566), as implemented in ``torchgeo.models.croma``. The half of the sensor is built alone, without
    the joint encoder.

    CROMA has no units: it takes images in which the mean minus and plus two standard deviations of each band are 0 and
    1, clipped to this range (``normalize`` in its README). This is computed from the statistics of the data.

    Sizes are ``'base'`` (``CROMABase_Weights.CROMA_VIT``) and ``'large'`` (``CROMALarge_Weights.CROMA_VIT``).
    """

    family = FAMILY
    standardised = True

    def build(self, modality: Modality, weights: Weights) -> tuple[Native, CROMABody]:
        """Return the input of one half of CROMA, and this half."""
        half = 'sar' if {canonical(band) for band in modality.bands} & set(POLARISATIONS) else 'optical'
        native = Native(
            f'{weights.label} ({half})',
            BANDS[half],
            (None,) * len(BANDS[half]),
            (-2.0,) * len(BANDS[half]),
            (4.0,) * len(BANDS[half]),
            sentinel2=True,
            standardised=True,
            clip=(0.0, 1.0),
        )
        return native, CROMABody(weights.size, half)

    def rename(self, state: Mapping[str, Tensor], body: CROMABody) -> Mapping[str, Tensor]:
        """Return the tensors of one half under the names of the model."""
        return _rename(state, body.part, len(BANDS[body.part]))

    def add_bands(self, body: CROMABody, adapter: BandAdapter) -> None:
        """Adapt the convolution of the patches."""
        body.patch_embed = AdaptedConv2d(body.patch_embed, adapter)


def _rename(state: Mapping[str, Tensor], half: str, bands: int) -> dict[str, Tensor]:
    prefix = f'{_PARTS[half]}.'
    prefix = prefix if any(key.startswith(prefix) for key in state) else ''
    own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    renamed = {}
    for key, value in own.items():
        if key == 'linear_input.weight' and value.shape[1:].numel() == bands * PATCH**2:
            value = value.view(-1, bands, PATCH, PATCH)
        key = key.replace('linear_input.', 'patch_embed.').replace('transformer.norm_out.', 'norm.')
        renamed[key.replace('transformer.layers.', 'blocks.')] = value
    return renamed
