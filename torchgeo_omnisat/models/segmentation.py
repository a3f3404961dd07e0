# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""U-Net decoder from fused tokens to the pixels of the labels, with feature maps as skips."""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoderBlock
from torch import Tensor, nn

from ..modality import half_up
from .omnisat import FeatureMaps, OmniSat, OmniSatOutput

#: Adam changes a weight by about the learning rate per step, so a last layer of few channels
#: trains slowly; its output is multiplied by this factor (Yang et al., arXiv 2203.03466).
LOGIT_SCALE = 10.0


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
        total = like.new_zeros(len(like), self.width, *size)
        count = like.new_zeros(len(like), 1, *size)
        for name, index in self.levels.items():
            if name in maps:
                seen = F.adaptive_max_pool2d(maps[name].seen.to(like.dtype), size)
                total = total + seen * resize(self.proj[name](maps[name].maps[index]), size)
                count = count + seen
        return self.norm(total / count.clamp(min=1))


class OmniSatSegmenter(nn.Module):
    """OmniSat backbone with a U-Net decoder, which returns logits for every pixel of the labels.

    Args:
        backbone: Backbone that encodes and fuses the modalities.
        num_classes: Number of classes K.
        label_gsd: GSD of the labels in metres.
        width: Channels at the label's resolution; they double with every level, up to the
            width of the tokens.
    """

    def __init__(self, backbone: OmniSat, num_classes: int, label_gsd: float = 10.0, width: int = 32) -> None:
        super().__init__()
        self.backbone = backbone
        self.label_gsd = float(label_gsd)
        self.decoder = Decoder(backbone, num_classes, self.label_gsd, width)
        self.decoder.to(memory_format=torch.channels_last)

    def forward(self, batch: Mapping[str, Tensor]) -> Float[Tensor, 'b k h w']:
        """Return the logits of a batch; see :meth:`OmniSat.forward`."""
        return self.decode(self.backbone(batch))

    def decode(self, out: OmniSatOutput) -> Float[Tensor, 'b k h w']:
        """Return the logits from the output of the backbone."""
        rows, columns = (max(1, half_up(side / self.label_gsd)) for side in out.extent)
        return self.decoder(out, (rows, columns))


class Decoder(nn.Module):
    """U-Net decoder of segmentation-models-pytorch blocks, from the ground grid to the labels.

    Args:
        backbone: Backbone whose tokens and maps are decoded.
        num_classes: Number of classes K.
        label_gsd: GSD of the labels in metres.
        width: Channels of the last block.
    """

    def __init__(self, backbone: OmniSat, num_classes: int, label_gsd: float, width: int) -> None:
        super().__init__()
        depth = max(0, round(math.log2(backbone.patch_size / label_gsd)))
        widths = [backbone.embed_dim] + [min(backbone.embed_dim, width * 2**level) for level in reversed(range(depth))]
        self.skips, self.blocks = nn.ModuleList(), nn.ModuleList()
        for level, (i, o) in enumerate(pairwise(widths)):
            skip = MeanSkip(_maps_near(backbone, label_gsd * 2 ** (depth - 1 - level)), o)
            self.skips.append(skip)
            self.blocks.append(_block(i, o if skip.levels else 0, o))
        self.head = nn.Conv2d(widths[-1], num_classes, 1)
        nn.init.normal_(self.head.weight, std=1 / (LOGIT_SCALE * math.sqrt(widths[-1])))
        nn.init.zeros_(self.bias)

    @property
    def bias(self) -> Tensor:
        """Bias of the last layer."""
        assert self.head.bias is not None
        return self.head.bias

    def forward(self, out: OmniSatOutput, size: tuple[int, int]) -> Float[Tensor, 'b k h w']:
        """Return logits of the given size."""
        rows, columns = out.grid
        x = rearrange(out.fused, 'b (h w) d -> b d h w', h=rows, w=columns)
        for level, (skip, block) in enumerate(zip(self.skips, self.blocks, strict=True)):
            scale = 2 ** (len(self.blocks) - 1 - level)
            height, width = math.ceil(size[0] / scale), math.ceil(size[1] / scale)
            x = block(x, height, width, skip(out.maps, x, (height, width)) if skip.levels else None)
        with torch.autocast(x.device.type, enabled=False):  # bfloat16 would leave ties between classes
            wide = torch.promote_types(self.head.weight.dtype, torch.float32)
            logits = F.conv2d(x.to(wide), self.head.weight.to(wide), self.bias.to(wide))
        return resize(LOGIT_SCALE * logits, size)


def resize(x: Float[Tensor, 'b c h w'], size: tuple[int, int]) -> Float[Tensor, 'b c i j']:
    """Average a map that is finer than *size*, or interpolate one that is coarser."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    if x.shape[-2] >= size[0] and x.shape[-1] >= size[1]:
        return F.adaptive_avg_pool2d(x, size)
    return F.interpolate(x, size, mode='bilinear', align_corners=False)


def _maps_near(backbone: OmniSat, gsd: float) -> dict[str, tuple[int, int]]:
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
