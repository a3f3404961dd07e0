# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Encoder of images by a pre-trained 2-D backbone of timm or torchvision."""

from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torchvision
from timm.layers import DropPath
from timm.models import is_model_in_modules
from torch import Tensor, nn

from .....modality import Modality
from .....utils.plurals import counted
from .....utils.signatures import with_arguments_of
from ...image import with_frozen_norm
from ...registry import Origin
from ..adapter import AdaptedConv2d, BandAdapter
from ..sources import find_source
from .base import AdaptedEncoder, check_arguments

#: Swin transformers of torchvision, as in TorchGeo's weights.
TORCHVISION = ('swin_t', 'swin_s', 'swin_v2_t', 'swin_v2_s', 'swin_v2_b')
#: Modules of timm whose models take images of any size only on request.
_SIZED = ['vision_transformer', 'vision_transformer_hybrid', 'eva', 'swin_transformer', 'swin_transformer_v2']
#: Beginnings of names of parameters after the last feature map.
_HEADS = ('head', 'fc', 'norm', 'fc_norm', 'classifier')


class PretrainedEncoder(AdaptedEncoder):
    """Pre-trained 2-D backbone of timm or torchvision, whose bands and units are adapted to a modality.

    The first convolution is sliced for bands that the modality lacks, and gets a second, zero-initialised
    convolution for bands that the weights lack. BatchNorm is frozen and stochastic depth is off.
    """

    @with_arguments_of(AdaptedEncoder, without=('adapter', 'body', 'pads'), is_last=True)
    def __init__(
        self,
        modality: Modality,
        name: str,
        weights: Any = None,
        pretrained: bool = False,
        bands: Sequence[str] | None = None,
        units: str | None = None,
        *,
        load: bool = True,
        chunk: int = 64,
        **kwargs: Any,
    ) -> None:
        """Initialize the encoder.

        Args:
            modality: Modality to encode.
            name: Name of a timm model, or ``'swin_v2_t'``, ``'swin_v2_b'`` etc. of torchvision.
            weights: Entry of TorchGeo's weights or its name, a file, or a folder of the Hugging Face hub.
            pretrained: Whether to use the weights of timm.
            bands: Bands of a file, in the order of its channels; None if they are those of the modality.
            units: ``'standardised'`` passes images as normalised by the statistics of the data, ``'native'`` in the
                unit of the weights. None for ``'native'`` with TorchGeo's weights and ``'standardised'`` otherwise.
            load: Whether to load the weights; False if a checkpoint has them.
            chunk: Maximum number of images that are computed at once.
            **kwargs: Arguments of ``AdaptedEncoder``.

        Raises:
            ValueError: If the weights are unknown or do not fit, or bands or units cannot be matched.
            FileNotFoundError: If a file of weights does not exist.
        """
        check_arguments(modality, units, chunk=chunk, **kwargs)
        source = find_source(name, modality.name, modality.bands, weights, pretrained, bands, load)
        standardised = source.standardised if units is None else units == 'standardised'
        adapter = BandAdapter(modality, source.native, standardised)
        body = make_body(name, len(source.native.bands), source.image_size)
        tensors = load_body(body, source.read(), source.native.label) if load else 0
        pads = _adapt(body, adapter, len(source.native.bands))
        super().__init__(modality, adapter, with_frozen_norm(body), pads, chunk=chunk, **kwargs)
        self.origin = Origin(f'{name}: {source.native.label}', tensors, source.address, source.licence)


class SwinMaps(nn.Module):
    """Swin transformer of torchvision that returns the maps of its stages, with timm's interface."""

    def __init__(self, name: str, in_channels: int) -> None:
        super().__init__()
        model = getattr(torchvision.models, name)(weights=None)
        conv = model.features[0][0]
        model.features[0][0] = nn.Conv2d(in_channels, conv.out_channels, conv.kernel_size, conv.stride)
        for module in model.modules():
            if isinstance(module, torchvision.ops.StochasticDepth):
                module.p = 0.0
        self.features = model.features
        width = conv.out_channels
        self.feature_info = [
            {'num_chs': width * 2**stage, 'reduction': 4 * 2**stage, 'module': f'features.{2 * stage + 1}'}
            for stage in range(4)
        ]

    def forward_intermediates(
        self, x: Tensor, indices: Sequence[int], norm: bool = False, intermediates_only: bool = True
    ) -> list[Tensor]:
        """Return the maps ``(S, C, H, W)`` of these stages."""
        maps = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index % 2:
                maps.append(x.permute(0, 3, 1, 2))
        return [maps[index] for index in indices]


def make_body(name: str, in_channels: int, image_size: int | None = None) -> nn.Module:
    """Build a backbone with random weights, without its classifier.

    Args:
        name: Name of a timm model, or one of torchvision's Swin transformers.
        in_channels: Number of channels.
        image_size: Size of the images that the position embedding of a ViT was trained for.

    Raises:
        ValueError: If it is unknown or has no feature maps.
    """
    if name in TORCHVISION:
        return SwinMaps(name, in_channels)
    if not timm.is_model(name):
        near = timm.list_models(f'*{name[:6]}*')[:5]
        raise ValueError(f'timm has no backbone {name!r}, expected a name from timm.list_models() such as {near}')
    sized: dict[str, Any] = {'dynamic_img_size': True} if is_model_in_modules(name, _SIZED) else {}
    if image_size is not None:
        sized['img_size'] = image_size
    body: nn.Module = timm.create_model(name, pretrained=False, in_chans=in_channels, num_classes=0, **sized)
    if not hasattr(body, 'forward_intermediates') or not hasattr(body, 'feature_info'):
        raise ValueError(f'{name!r} of timm returns no feature maps, expected a backbone with forward_intermediates')
    for module in body.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0
    return body


def load_body(body: nn.Module, state: Mapping[str, Tensor], label: str) -> int:
    """Load a state dict into a backbone and return the number of tensors.

    Args:
        body: Backbone.
        state: Tensors, under a common prefix such as ``backbone.`` or none. Those of a classifier are ignored.
        label: Name of the weights in errors.

    Raises:
        ValueError: If tensors of the backbone are missing or have another shape.
    """
    own = body.state_dict()
    prefixes = sorted({k.removesuffix(n) for k in state for n in list(own)[:1] + list(own)[-1:] if k.endswith(n)})
    shares = [{k.removeprefix(p): v for k, v in state.items() if k.startswith(p)} for p in prefixes or ['']]
    found = max(shares, key=lambda share: len(share.keys() & own.keys()))
    missing = [key for key in own if key not in found and not key.startswith(_HEADS)]
    other = [
        f'{key} {tuple(found[key].shape)} instead of {tuple(value.shape)}'
        for key, value in own.items()
        if key in found and found[key].shape != value.shape
    ]
    if missing or other:
        raise ValueError(
            f'{label} does not fit {type(body).__name__}: missing are {len(missing)} of {len(own)} tensors '
            f'{missing[:5]}, of another shape {len(other)} {other[:5]}; expected the weights of this backbone'
        )
    body.load_state_dict({key: value for key, value in found.items() if key in own}, strict=False)
    if any(key.startswith('norm.') for key in own.keys() - found.keys()):
        body.norm = nn.Identity()  # never trained
    return len(own.keys() & found.keys())


def _adapt(body: nn.Module, adapter: BandAdapter, count: int) -> bool:
    """Replace the first convolution; return whether images have to be padded to a multiple of the stride."""
    name, conv = next(((n, m) for n, m in body.named_modules() if isinstance(m, nn.Conv2d)), ('', None))
    if conv is None or conv.in_channels != count or conv.groups != 1:
        raise ValueError(
            f'{type(body).__name__} does not begin with a convolution of {counted(count, "band")}, expected a backbone '
            'that does'
        )
    parent, _, last = name.rpartition('.')
    setattr(body.get_submodule(parent), last, AdaptedConv2d(conv, adapter))
    return conv.padding in ((0, 0), 'valid')
