# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Encoder of single images: any timm backbone as a feature pyramid."""

import math
from abc import ABC, abstractmethod
from typing import Any

import timm
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from timm import layers
from timm.models import is_model_in_modules
from timm.utils.model import freeze_batch_norm_2d
from torch import Tensor, nn
from torchvision import ops

from ...utils.tensors.observed import all_observed, observed
from ...utils.tensors.selection import valid_indices
from .bands import BandConv2d
from .packing import gather_valid, scatter_valid
from .recomputation import RecomputedStages, recomputed_levels


class SingleImageEncoder(nn.Module, ABC):
    """Base class of encoders of single images, which compute valid images only.

    A subclass has ``channels`` and ``strides``, and implements ``encode``.
    """

    def forward(self, image: Float[Tensor, 'b c h w'], valid: Bool[Tensor, ' b']) -> list[Tensor]:
        """Encode images.

        Args:
            image: Normalised bands; NaN is nodata.
            valid: Valid images; the maps of the others are zero.

        Returns:
            Maps of shape ``(B, C_l, H / stride_l, W / stride_l)``, fine to coarse.
        """
        index = valid_indices(valid)
        return [scatter_valid(x, index, valid.shape[0]) for x in self.encode(gather_valid(image, index))]

    @abstractmethod
    def encode(self, image: Float[Tensor, 's c h w']) -> list[Tensor]:
        """Return the maps of S images."""


class ImageEncoder(SingleImageEncoder):
    """Timm backbone whose output for an image does not depend on the other images of the batch.

    Invalid images are not computed. BatchNorm is frozen with pre-trained weights, and replaced
    by GroupNorm otherwise. The first convolution becomes a ``BandConv2d``; if a backbone begins
    with another layer, missing bands are set to 0, their mean.

    Args:
        in_channels: Number of bands.
        backbone: Name of a timm model that supports ``features_only``.
        pretrained: Whether timm loads its weights (a download); the first convolution is
            adapted to *in_channels*.
        checkpointing: Number of finest stages whose features are recomputed in the backward pass.
        **kwargs: Passed to the timm model, for example ``channels`` of a ResNet.

    Raises:
        ValueError: If timm does not know *backbone*, or does not divide it into stages to recompute.
    """

    def __init__(
        self,
        in_channels: int,
        backbone: str = 'resnet18',
        pretrained: bool = False,
        checkpointing: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        if not timm.is_model(backbone):
            near = timm.list_models(f'*{backbone[:6]}*')[:5]
            raise ValueError(
                f'timm has no backbone {backbone!r}, expected a name from timm.list_models() such as {near}'
            )
        if is_model_in_modules(backbone, ['vision_transformer', 'vision_transformer_hybrid']):
            kwargs = {'dynamic_img_size': True, 'dynamic_img_pad': True} | kwargs
        self.backbone: Any = timm.create_model(
            backbone, pretrained=pretrained, features_only=True, in_chans=in_channels, **kwargs
        )
        self.backbone = with_frozen_norm(self.backbone) if pretrained else with_group_norm(self.backbone)
        if levels := recomputed_levels(checkpointing):
            self.backbone = RecomputedStages.of(self.backbone, levels)
        self.takes_missing = _take_missing(self.backbone, in_channels)
        self.channels = tuple(self.backbone.feature_info.channels())
        self.strides = tuple(self.backbone.feature_info.reduction())

    def encode(self, image: Float[Tensor, 's c h w']) -> list[Tensor]:
        """Return the maps of S images."""
        if not self.takes_missing and not all_observed(image):
            image = image.masked_fill(~observed(image), 0)
        image = image.contiguous(memory_format=torch.channels_last)
        maps: list[Tensor] = self.backbone(image)
        return maps


def _take_missing(backbone: nn.Module, bands: int) -> bool:
    """Replace the first convolution by a ``BandConv2d``; return whether the backbone has one."""
    name, conv = next(((n, m) for n, m in backbone.named_modules() if isinstance(m, nn.Conv2d)), ('', None))
    if type(conv) is not nn.Conv2d or conv.in_channels != bands:
        return False
    parent, _, last = name.rpartition('.')
    setattr(backbone.get_submodule(parent), last, BandConv2d.of(conv))
    return True


def _batch_norm(norm: Any, x: Tensor) -> Tensor:
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)


class FrozenBatchNorm2d(ops.FrozenBatchNorm2d):
    """BatchNorm with fixed statistics, scale and offset as one operation; torchvision's is a product and a sum."""

    def forward(self, x: Float[Tensor, 's c h w']) -> Float[Tensor, 's c h w']:
        """Normalise images."""
        return _batch_norm(self, x)


class FrozenBatchNormAct2d(layers.FrozenBatchNormAct2d):
    """BatchNorm with fixed statistics, scale and offset as one operation, followed by timm's activation."""

    def forward(self, x: Float[Tensor, 's c h w']) -> Float[Tensor, 's c h w']:
        """Normalise images and apply the activation."""
        return self.act(self.drop(_batch_norm(self, x)))


def with_frozen_norm(module: nn.Module) -> nn.Module:
    """Freeze the statistics, scale and offset of every BatchNorm below *module*."""
    module = freeze_batch_norm_2d(module)
    for child in module.modules():
        if type(child) is ops.FrozenBatchNorm2d:
            child.__class__ = FrozenBatchNorm2d
        elif type(child) is layers.FrozenBatchNormAct2d:
            child.__class__ = FrozenBatchNormAct2d
    return module


def with_group_norm(module: nn.Module) -> nn.Module:
    """Replace every BatchNorm below *module* by a GroupNorm of at most eight groups."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            norm: Any = nn.GroupNorm(math.gcd(8, child.num_features), child.num_features)
            if child.weight is not None:
                nn.init.constant_(norm.weight, float(child.weight.detach()[0]))
            if isinstance(child, layers.BatchNormAct2d):
                norm = nn.Sequential(norm, child.drop, child.act)
            setattr(module, name, norm)
        else:
            with_group_norm(child)
    return module
