# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""DEO encoder of Sentinel-2 or RGB images."""

from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torchgeo.models import DEO, DEO_Weights, deo_base
from torchvision.ops import StochasticDepth

from ....modality import Modality
from ..registry import register_encoder
from .adapter import AdaptedConv2d, BandAdapter, Native, match_bands
from .backbone import load_body
from .base import AdaptedEncoder, check_arguments
from .foundation import Family, find_weights

#: Bands of the two stems of DEO, in its order.
BANDS = {'conv_ms': tuple(DEO_Weights.DEO_SWIN.meta['bands']), 'conv_rgb': ('R', 'G', 'B')}
#: Builders of the model by size.
SIZES: dict[str, Callable[[], DEO]] = {'base': deo_base}


class DEOBody(nn.Module):
    """Swin transformer of DEO with one of its stems, and timm's interface."""

    def __init__(self, model: DEO, stem: str) -> None:
        super().__init__()
        source: Any = model.feat_extr
        self.stem, self.features = getattr(source, stem), source.features
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


def _body(size: str, sensor: str) -> DEOBody:
    return DEOBody(SIZES[size](), 'conv_rgb' if sensor == 'rgb' else 'conv_ms')


#: Weights of DEO.
FAMILY = Family('deo', {'base': DEO_Weights.DEO_SWIN}, {'s2': '10: B4 .. B12', 'rgb': 'R G B'}, _body)


@register_encoder('deo', temporal=False, per_date=True)
class DEOEncoder(AdaptedEncoder):
    """DEO encoder of Sentinel-2 (10 bands) or RGB images, for images of any size.

    "Pretrained Distillation for EO" (arXiv 2602.19863), as implemented in ``torchgeo.models.deo``: a Swin transformer
    with a stem for each kind of image. Modalities of which only R, G and B match have the stem for RGB.

    The scale of R, G and B in the pre-training is not stated, so images are passed as normalised by the statistics of
    the data.

    Args:
        modality: Modality to encode.
        weights: ``'DEO_Weights.DEO_SWIN'`` or a file.
        pretrained: True for TorchGeo's weights, False for random weights.
        size: ``'base'`` or None.
        units: ``'standardised'`` or None.
        freeze: See ``AdaptedEncoder``, as for the arguments that follow.
        layer_decay: Factor of the learning rate from one layer to the layer before it.
        levels: Indices of the stages whose maps are returned; None for all.
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
        natives = {stem: _native(found.label, bands) for stem, bands in BANDS.items()}
        matched = {BANDS['conv_ms'][index] for index in match_bands(modality, natives['conv_ms'])[1]}
        stem = 'conv_rgb' if matched == set(BANDS['conv_ms'][:3]) else 'conv_ms'
        adapter = BandAdapter(modality, natives[stem], units != 'native')
        body = DEOBody(SIZES[found.size](), stem)
        state = found.read() if load and found.read else {}
        renamed = {key.removeprefix('feat_extr.').replace(f'{stem}.', 'stem.', 1): v for key, v in state.items()}
        tensors = load_body(body, renamed, found.label) if state else 0
        body.stem[0] = AdaptedConv2d(body.stem[0], adapter)
        super().__init__(modality, adapter, body, freeze, layer_decay, levels, chunk)
        self.origin = found.origin(tensors)


def _native(label: str, bands: tuple[str, ...]) -> Native:
    count = len(bands)
    return Native(label, bands, (None,) * count, (0.0,) * count, (1.0,) * count, sentinel2=count > 3)
