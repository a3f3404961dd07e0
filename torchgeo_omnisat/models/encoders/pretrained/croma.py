# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""CROMA encoder of Sentinel-1 or Sentinel-2 images."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torchgeo.models import CROMABase_Weights, CROMALarge_Weights
from torchgeo.models.croma import BaseTransformer, get_2dalibi

from ....modality import Modality
from ..registry import register_encoder
from .adapter import AdaptedConv2d, BandAdapter, Native, canonical
from .backbone import load_body
from .base import AdaptedEncoder, check_arguments
from .foundation import POLARISATIONS, Family, find_weights
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


def _body(size: str, sensor: str) -> TokenBody:
    half = 'sar' if sensor == 's1' else 'optical'
    width, depth = SIZES[size]
    return CROMABody(len(BANDS[half]), width, depth if half == 'optical' else depth // 2)


class CROMABody(TokenBody):
    """One of the two encoders of CROMA, for images of any size.

    The attention has a bias that is proportional to the distance of two patches (ALiBi), so no position embedding has
    to be resized.
    """

    slopes: Tensor

    def __init__(self, bands: int, width: int, depth: int) -> None:
        transformer = BaseTransformer(width, depth, HEADS)
        super().__init__(transformer.layers, width, PATCH, transformer.norm_out)
        self.patch_embed = nn.Conv2d(bands, width, PATCH, PATCH)
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
    _body,
)


@register_encoder('croma', temporal=False, per_date=True)
class CROMAEncoder(AdaptedEncoder):
    """CROMA encoder of Sentinel-1 (VV, VH) or Sentinel-2 (12 bands) images, for images of any size.

    Fuller et al., "CROMA: Remote Sensing Representations with Contrastive Radar-Optical Masked Autoencoders"
    (arXiv 2311.00566), as implemented in ``torchgeo.models.croma``. The half of the sensor is built alone, without
    the joint encoder.

    CROMA has no units: it takes images in which the mean minus and plus two standard deviations of each band are 0 and
    1, clipped to this range (``normalize`` in its README). This is computed from the statistics of the data.

    Args:
        modality: Modality to encode.
        weights: ``'CROMABase_Weights.CROMA_VIT'``, ``'CROMALarge_Weights.CROMA_VIT'``, or a file.
        pretrained: True for TorchGeo's weights of *size*, False for random weights.
        size: ``'base'`` or ``'large'``; None for that of the weights.
        units: ``'standardised'`` or None.
        freeze: See ``AdaptedEncoder``, as for the arguments that follow.
        layer_decay: Factor of the learning rate from one layer to the layer before it.
        levels: Indices of the blocks whose tokens are returned; None for the middle and the last.
        chunk: Maximum number of images that are computed at once.
        load: Whether to load the weights; False if a checkpoint has them.

    Raises:
        ValueError: If the weights are unknown or do not fit, or no band matches.
        FileNotFoundError: If a file of weights does not exist.
    """

    def __init__(
        self,
        modality: Modality,
        weights: Any = None,
        pretrained: bool | None = None,
        size: str | None = None,
        units: str | None = None,
        freeze: bool | str = False,
        layer_decay: float = 1.0,
        levels: Sequence[int] | None = None,
        chunk: int = 16,
        load: bool = True,
    ) -> None:
        check_arguments(modality, units, freeze, layer_decay, chunk)
        found = find_weights(modality, FAMILY, size, weights, pretrained, load)
        half = 'sar' if {canonical(band) for band in modality.bands} & set(POLARISATIONS) else 'optical'
        bands = BANDS[half]
        native = Native(
            f'{found.label} ({half})',
            bands,
            (None,) * len(bands),
            (-2.0,) * len(bands),
            (4.0,) * len(bands),
            sentinel2=True,
            standardised=True,
            clip=(0.0, 1.0),
        )
        adapter = BandAdapter(modality, native, units != 'native')
        width, depth = SIZES[found.size]
        body = CROMABody(len(bands), width, depth if half == 'optical' else depth // 2)
        tensors = load_body(body, _rename(found.read(), half, len(bands)), native.label) if load and found.read else 0
        body.patch_embed = AdaptedConv2d(body.patch_embed, adapter)
        super().__init__(modality, adapter, body, freeze, layer_decay, levels, chunk)
        self.origin = found.origin(tensors)


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
