# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""DEO encoder of Sentinel-2 or RGB images."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torchgeo.models import DEO, DEO_Weights, deo_base
from torchvision.ops import StochasticDepth

from .....modality import Modality
from ...registry import register_encoder
from ..adapter import AdaptedConv2d, BandAdapter, Native, match_bands
from .foundation import Family, FoundationEncoder, Weights

#: Bands of the two stems of DEO, in its order.
BANDS = {'conv_ms': tuple(DEO_Weights.DEO_SWIN.meta['bands']), 'conv_rgb': ('R', 'G', 'B')}
#: Builders of the model by size.
SIZES: dict[str, Callable[[], DEO]] = {'base': deo_base}


class DEOBody(nn.Module):
    """Swin transformer of DEO with one of its stems, and timm's interface."""

    def __init__(self, model: DEO, stem: str) -> None:
        super().__init__()
        source: Any = model.feat_extr
        self.stem_name, self.stem, self.features = stem, getattr(source, stem), source.features
        for module in self.features.modules():
            if isinstance(module, StochasticDepth):
                module.p = 0.0
        width, self.patch = self.stem[0].out_channels, self.stem[0].stride[0]
        self.feature_info = [
            {'num_chs': width * 2**stage, 'reduction': self.patch * 2**stage, 'module': f'features.{2 * stage}'}
            for stage in range((len(self.features) + 1) // 2)
        ]

    def forward_intermediates(
        self, x: Float[Tensor, 's d h w'], indices: Sequence[int], norm: bool = False, intermediates_only: bool = True
    ) -> list[Tensor]:
        """Return the maps ``(S, E, H / stride, W / stride)`` of these stages."""
        x, maps = self.stem(x), []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index % 2 == 0:
                maps.append(x.permute(0, 3, 1, 2))
        return [maps[index] for index in indices]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return the groups of parameters by depth, for ``layer_decay``."""
        return {'stem': r'^stem', 'blocks': r'^features\.(\d+)'}


#: Weights of DEO.
FAMILY = Family(
    'deo',
    {'base': DEO_Weights.DEO_SWIN},
    {'s2': '10: B4 .. B12', 'rgb': 'R G B'},
    lambda size, sensor: DEOBody(SIZES[size](), 'conv_rgb' if sensor == 'rgb' else 'conv_ms'),
)


@register_encoder('deo', temporal=False, per_date=True)
class DEOEncoder(FoundationEncoder):
    """DEO encoder of Sentinel-2 (10 bands) or RGB images, for images of any size.

    "Pretrained Distillation for EO" (arXiv 2602.19863), as implemented in ``torchgeo.models.deo``: a Swin transformer
    with a stem for each kind of image. Modalities of which only R, G and B match have the stem for RGB.

    The scale of R, G and B in the pre-training is not stated, so images are passed as normalised by the statistics of
    the data.

    The size is ``'base'`` (``DEO_Weights.DEO_SWIN``).
    """

    family = FAMILY
    standardised = True

    def build(self, modality: Modality, weights: Weights) -> tuple[Native, DEOBody]:
        """Return the input of one stem of DEO, and the model with this stem."""
        natives = {stem: _native(weights.label, bands) for stem, bands in BANDS.items()}
        matched = {BANDS['conv_ms'][index] for index in match_bands(modality, natives['conv_ms'])[1]}
        stem = 'conv_rgb' if matched == set(BANDS['conv_ms'][:3]) else 'conv_ms'
        return natives[stem], DEOBody(SIZES[weights.size](), stem)

    def rename(self, state: Mapping[str, Tensor], body: DEOBody) -> Mapping[str, Tensor]:
        """Return published tensors under the names of the model."""
        stem = f'{body.stem_name}.'
        return {key.removeprefix('feat_extr.').replace(stem, 'stem.', 1): value for key, value in state.items()}

    def add_bands(self, body: DEOBody, adapter: BandAdapter) -> None:
        """Adapt the first convolution."""
        body.stem[0] = AdaptedConv2d(body.stem[0], adapter)


def _native(label: str, bands: tuple[str, ...]) -> Native:
    count = len(bands)
    return Native(label, bands, (None,) * count, (0.0,) * count, (1.0,) * count, sentinel2=count > 3)
