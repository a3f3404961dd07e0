# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""U-Net decoder from fused tokens to the pixels of the labels, with feature maps as skips."""

import functools
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoderBlock
from torch import Tensor, nn

from ..modality import finer_factor, half_up
from ..utils.tensors.pooling import any_pool, average_pool
from .omnisat import FeatureMaps, OmniSat, OmniSatOutput, check_size

#: Adam changes a weight by about the learning rate per step, so a last layer of few channels
#: trains slowly; its output is multiplied by this factor (Yang et al., arXiv 2203.03466).
LOGIT_SCALE = 10.0
#: Minimum number of channels of the features that are finer than the labels.
FINEST_WIDTH = 16


class MeanSkip(nn.Module):
    """Skip connection of one level: mean over the modalities that observed a pixel.

    It is normalised, so its scale does not depend on which modalities are available.
    """

    def __init__(self, levels: Mapping[str, tuple[int, int]], width: int) -> None:
        super().__init__()
        self.levels = {name: index for name, (index, _) in levels.items()}
        self.proj = nn.ModuleDict({name: nn.Conv2d(channels, width, 1) for name, (_, channels) in levels.items()})
        self.norm = nn.GroupNorm(math.gcd(8, width), width)
        self.width = width

    def forward(self, maps: Mapping[str, FeatureMaps], like: Tensor, size: tuple[int, int]) -> Float[Tensor, 'b c h w']:
        """Project, resize, average and normalise the maps."""
        total = like.new_zeros(like.shape[0], self.width, *size).to(memory_format=torch.channels_last)  # as the maps
        count = like.new_zeros(like.shape[0], 1, *size)
        for name, index in self.levels.items():
            if name in maps:
                seen = any_pool(maps[name].seen, size).to(like.dtype)
                total = total + seen * _project(self.proj[name], maps[name].maps[index], size)
                count = count + seen
        return self.norm(total / count.clamp(min=1))


class Expert(nn.Module):
    """Segmentation head of a single modality, from its feature maps to logits at the resolution of the labels.

    Args:
        channels: Channels of the maps.
        num_classes: Number of classes K.
        width: Channels of the hidden layers.
        scale: Factor of the initial logits.
        dropout: Probability of dropping each of the last channels in training.
    """

    def __init__(
        self, channels: Sequence[int], num_classes: int, width: int, scale: float = 1.0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.proj = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.norm = nn.GroupNorm(math.gcd(8, width), width)
        self.convs = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(math.gcd(8, width), width), nn.ReLU(inplace=True)
            )
            for _ in range(2)
        )
        self.dropout = nn.Dropout2d(dropout)
        self.head = _logit_layer(width, num_classes, scale)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Float[Tensor, 'b k h w']:
        """Return logits of the given size."""
        projected = (_project(proj, found, size) for proj, found in zip(self.proj, maps, strict=True))
        x = F.relu(self.norm(functools.reduce(Tensor.add_, projected)), inplace=True)
        for conv in self.convs:
            x = x + conv(x)
        return _logits(self.head, self.dropout(x))


class FieldMaps(NamedTuple):
    """Maps of the boundaries of fields.

    Attributes:
        extent: Logits of other, interior and boundary, ``(B, 3, H, W)``; on request finer than the labels.
        distance: Distance to the edge of the field relative to the maximum of the field, 0 to 1, ``(B, H, W)``.
    """

    extent: Tensor
    distance: Tensor


class FieldHead(nn.Module):
    """Head that predicts :class:`FieldMaps` from the last features of the decoder.

    With *factor*, more blocks of the decoder follow, each of which about halves the GSD and takes the feature maps of
    that GSD along. Without such maps in a sample, the boundaries are those of the coarser ones.

    Args:
        backbone: Backbone whose maps are decoded.
        width: Channels of the features.
        label_gsd: GSD of the labels in metres.
        factor: GSD of the labels over that of the maps, a whole number.
    """

    def __init__(self, backbone: OmniSat, width: int, label_gsd: float, factor: int = 1) -> None:
        super().__init__()
        self.factor = factor
        scales = [2**level for level in reversed(range(round(math.log2(factor))))]
        widths = [width] + [max(min(width, FINEST_WIDTH), width >> level) for level in range(1, len(scales) + 1)]
        self.skips, self.blocks = nn.ModuleList(), nn.ModuleList()
        for scale, (i, o) in zip(scales, pairwise(widths), strict=True):
            skip = MeanSkip(maps_near(backbone, label_gsd / factor * scale), o)
            self.skips.append(skip)
            self.blocks.append(_block(i, o if skip.levels else 0, o))
        width = widths[-1]
        self.conv = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(math.gcd(8, width), width), nn.ReLU(inplace=True)
        )
        self.head = _logit_layer(width, 4)

    def forward(
        self, features: Float[Tensor, 'b c h w'], found: Mapping[str, FeatureMaps], size: tuple[int, int]
    ) -> FieldMaps:
        """Return maps from features and feature maps; their size is *size*, that of the labels, times the factor."""
        rows, columns = (self.factor * side for side in size)
        features = _upsample(features, self.blocks, self.skips, found, (rows, columns))
        maps = resize(_logits(self.head, features + self.conv(features)), (rows, columns))
        return FieldMaps(maps[:, :3], maps[:, 3].sigmoid())


class OmniSatSegmenter(nn.Module):
    """OmniSat backbone with a U-Net decoder, which returns logits for every pixel of the labels.

    With *experts*, each modality also has a small head on its own feature maps. The logits of the heads of the
    available modalities are added to those of the decoder, as in a product of experts (Hinton, "Training Products of
    Experts by Minimizing Contrastive Divergence", Neural Computation 2002): if the sensors are independent given the
    class, their log-likelihoods add up. A modality adds nothing where it observed no pixel.

    Args:
        backbone: Backbone that encodes and fuses the modalities.
        num_classes: Number of classes K.
        label_gsd: GSD of the labels in metres.
        width: Channels at the label's resolution; they double with every level, up to the
            width of the tokens.
        experts: Whether each modality has a head.
        instances: Whether the decoder has a second head for :class:`FieldMaps`; see :meth:`decode_fields`.
        field_gsd: GSD of these maps in metres, which divides *label_gsd*; None for *label_gsd*.
        dropout: Probability of dropping each of the last channels of the decoder and of each expert in training.

    Raises:
        ValueError: If *num_classes*, *label_gsd*, *width* or *dropout* is implausible, or *field_gsd* does not divide
            *label_gsd* or there is no head.
    """

    def __init__(
        self,
        backbone: OmniSat,
        num_classes: int,
        label_gsd: float = 10.0,
        width: int = 32,
        experts: bool = False,
        instances: bool = False,
        field_gsd: float | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.label_gsd = float(label_gsd)
        check_size('num_classes', num_classes)
        check_size('width', width)
        if not 0 <= dropout < 1:
            raise ValueError(f'dropout is {dropout}, expected a probability below 1')
        if not 0 < self.label_gsd < math.inf:
            raise ValueError(f'label_gsd is {label_gsd}, expected a finite number of metres')
        self.decoder = Decoder(backbone, num_classes, self.label_gsd, width, dropout)
        encoders: dict[str, Any] = dict(backbone.encoders.items()) if experts else {}
        scale = 1 / (1 + len(encoders))  # the initial sum is about as large as the logits of the decoder alone
        self.experts = nn.ModuleDict(
            {name: Expert(encoder.channels, num_classes, width, scale, dropout) for name, encoder in encoders.items()}
        )
        factor = finer_factor(self.label_gsd, field_gsd, 'field_gsd')
        if factor > 1 and not instances:
            raise ValueError(f'field_gsd is {field_gsd} m without a head for fields, expected instances=True')
        self.fields = FieldHead(backbone, self.decoder.width, self.label_gsd, factor) if instances else None
        self.decoder.to(memory_format=torch.channels_last)
        self.experts.to(memory_format=torch.channels_last)

    def forward(self, batch: Mapping[str, Tensor]) -> Float[Tensor, 'b k h w']:
        """Return the logits of a batch; see :meth:`OmniSat.forward`."""
        return self.decode(self.backbone(batch))

    def decode(
        self, out: OmniSatOutput, opinions: Mapping[str, Float[Tensor, 'b k h w']] | None = None
    ) -> Float[Tensor, 'b k h w']:
        """Return the logits from the output of the backbone.

        Args:
            out: Output of the backbone.
            opinions: Output of :meth:`expert_logits` for the same feature maps, if it was already computed.
        """
        return self._with_experts(self.decoder(out, self._size(out)), out, opinions)

    def decode_fields(
        self, out: OmniSatOutput, opinions: Mapping[str, Float[Tensor, 'b k h w']] | None = None
    ) -> tuple[Float[Tensor, 'b k h w'], FieldMaps]:
        """Return the logits of :meth:`decode`, and the boundaries of fields from the same features.

        Args:
            out: Output of the backbone.
            opinions: See :meth:`decode`.

        Raises:
            ValueError: If the model was built without *instances*.
        """
        if self.fields is None:
            raise ValueError('the model has no head for fields, expected instances=True when it is built')
        size = self._size(out)
        features = self.decoder.features(out, size)
        logits = self._with_experts(self.decoder.logits(features, size), out, opinions)
        return logits, self.fields(features, out.maps, size)

    def _with_experts(
        self, logits: Tensor, out: OmniSatOutput, opinions: Mapping[str, Tensor] | None
    ) -> Float[Tensor, 'b k h w']:
        """Add the logits of the experts where their modality observed a pixel."""
        size = self._size(out)
        for name, own in (self.expert_logits(out) if opinions is None else opinions).items():
            if name in out.maps:
                logits = logits + own * any_pool(out.maps[name].seen, size).to(own.dtype)
        return logits

    def expert_logits(self, out: OmniSatOutput) -> dict[str, Float[Tensor, 'b k h w']]:
        """Return the logits of the head of each modality, for all pixels; empty without *experts*."""
        return {
            name: expert(out.maps[name].maps, self._size(out))
            for name, expert in self.experts.items()
            if name in out.maps
        }

    def _size(self, out: OmniSatOutput) -> tuple[int, int]:
        rows, columns = (max(1, half_up(side / self.label_gsd)) for side in out.extent)
        return rows, columns


class Decoder(nn.Module):
    """U-Net decoder of segmentation-models-pytorch blocks, from the ground grid to the labels.

    Args:
        backbone: Backbone whose tokens and maps are decoded.
        num_classes: Number of classes K.
        label_gsd: GSD of the labels in metres.
        width: Channels of the last block.
        dropout: Probability of dropping each of these channels in training.
    """

    def __init__(self, backbone: OmniSat, num_classes: int, label_gsd: float, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        depth = max(0, round(math.log2(backbone.patch_size / label_gsd)))
        widths = [backbone.embed_dim] + [min(backbone.embed_dim, width * 2**level) for level in reversed(range(depth))]
        self.skips, self.blocks = nn.ModuleList(), nn.ModuleList()
        for level, (i, o) in enumerate(pairwise(widths)):
            skip = MeanSkip(maps_near(backbone, label_gsd * 2 ** (depth - 1 - level)), o)
            self.skips.append(skip)
            self.blocks.append(_block(i, o if skip.levels else 0, o))
        self.width = widths[-1]
        self.dropout = nn.Dropout2d(dropout)
        self.head = _logit_layer(self.width, num_classes)

    def forward(self, out: OmniSatOutput, size: tuple[int, int]) -> Float[Tensor, 'b k h w']:
        """Return logits of the given size."""
        return self.logits(self.features(out, size), size)

    def features(self, out: OmniSatOutput, size: tuple[int, int]) -> Float[Tensor, 'b c h w']:
        """Return the last features, of about the given size."""
        rows, columns = out.grid
        x = rearrange(out.fused, 'b (h w) d -> b d h w', h=rows, w=columns)
        return _upsample(x, self.blocks, self.skips, out.maps, size)

    def logits(self, features: Float[Tensor, 'b c i j'], size: tuple[int, int]) -> Float[Tensor, 'b k h w']:
        """Return logits of the given size from the last features."""
        return resize(_logits(self.head, self.dropout(features)), size)


def _upsample(
    x: Tensor, blocks: nn.ModuleList, skips: nn.ModuleList, found: Mapping[str, FeatureMaps], size: tuple[int, int]
) -> Tensor:
    """Return the features of the last block, of the given size; the previous blocks each have half of the next."""
    for level, (skip, block) in enumerate(zip(skips, blocks, strict=True)):
        scale = 2 ** (len(blocks) - 1 - level)
        height, width = math.ceil(size[0] / scale), math.ceil(size[1] / scale)
        x = block(x, height, width, skip(found, x, (height, width)) if skip.levels else None)
    return x


def resize(x: Float[Tensor, 'b c h w'], size: tuple[int, int]) -> Float[Tensor, 'b c i j']:
    """Average a map that is finer than *size*, or interpolate one that is coarser."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    if x.shape[-2] >= size[0] and x.shape[-1] >= size[1]:
        return average_pool(x, size)
    return F.interpolate(x, size, mode='bilinear', align_corners=False)


def _project(proj: nn.Module, found: Float[Tensor, 'b c h w'], size: tuple[int, int]) -> Float[Tensor, 'b d i j']:
    """Project and resize a map; both are linear, so the map is projected at the coarser of the two resolutions."""
    if found.shape[-2] * found.shape[-1] > size[0] * size[1]:
        projected: Tensor = proj(resize(found, size))
        return projected
    return resize(proj(found), size)


def _logit_layer(width: int, num_classes: int, scale: float = 1.0) -> nn.Conv2d:
    layer = nn.Conv2d(width, num_classes, 1)
    nn.init.normal_(layer.weight, std=scale / (LOGIT_SCALE * math.sqrt(width)))
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def _logits(layer: nn.Conv2d, x: Float[Tensor, 'b c h w']) -> Float[Tensor, 'b k h w']:
    assert layer.bias is not None
    with torch.autocast(x.device.type, enabled=False):  # bfloat16 would leave ties between classes
        wide = torch.promote_types(layer.weight.dtype, torch.float32)
        return LOGIT_SCALE * F.conv2d(x.to(wide), layer.weight.to(wide), layer.bias.to(wide))


def maps_near(backbone: OmniSat, gsd: float) -> dict[str, tuple[int, int]]:
    """Return the index and channels of each modality's map with the GSD nearest to *gsd*, unless much coarser."""
    found = {}
    encoder: Any
    for name, encoder in backbone.encoders.items():
        ratios = [backbone.modalities[name].gsd * stride / gsd for stride in encoder.strides]
        index = min(range(len(ratios)), key=lambda i: abs(math.log2(ratios[i])))
        if ratios[index] <= 1.5:
            found[name] = (index, encoder.channels[index])
    return found


def _block(in_channels: int, skip_channels: int, out_channels: int) -> UnetDecoderBlock:
    block = UnetDecoderBlock(
        in_channels, skip_channels, out_channels, use_norm='identity', interpolation_mode='bilinear'
    )
    for conv in (block.conv1, block.conv2):
        conv[1] = nn.GroupNorm(math.gcd(8, out_channels), out_channels)
    return block
