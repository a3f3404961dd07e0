# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Subsets in training: what a model that has encoded all modalities would have made of some."""

import torch.nn.functional as F
from torch import Tensor

from ..models import OmniSat
from ..models.omnisat import OmniSatOutput


def hide(backbone: OmniSat, out: OmniSatOutput, kept: Tensor) -> OmniSatOutput:
    """What would have come out had each sample lacked some modalities; nothing is encoded again.

    :meth:`.OmniSat.restrict` is the same for all samples of a batch. Value and gradient are
    those of a second pass over the batch with ``valid`` False where a modality is not kept.

    Args:
        backbone: The model.
        out: What it made of a batch.
        kept: Which modalities each sample keeps, ``(B, M)`` bool in the order of the model.
    """
    flags = dict(zip(backbone.modalities, kept.unbind(1), strict=True))
    maps = {
        name: found._replace(seen=found.seen & flags[name][:, None, None, None]) for name, found in out.maps.items()
    }
    tokens = {name: token * flags[name][:, None, None] for name, token in out.tokens.items()}
    seen = backbone.seen(maps, out.grid)
    return out._replace(tokens=tokens, fused=backbone.fuse(tokens, seen, out.grid), available=seen.any(1), maps=maps)


def divergence(student: Tensor, teacher: Tensor, counted: Tensor) -> Tensor:
    """Kullback-Leibler divergence of classes, averaged over pixels; no gradient goes to the teacher.

    Knowledge distillation (Hinton, Vinyals and Dean, arXiv 1503.02531) at temperature one.

    Args:
        student: Logits ``(B, K, H, W)``.
        teacher: Logits, likewise.
        counted: Which pixels count, ``(B, H, W)`` bool.
    """
    wanted = teacher.detach().float().log_softmax(1)
    of_pixels = F.kl_div(student.float().log_softmax(1), wanted, log_target=True, reduction='none').sum(1)
    return (of_pixels * counted).sum() / counted.sum().clamp(min=1)
