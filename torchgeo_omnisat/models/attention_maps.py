# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Listening: which dates and which modalities a model listened to."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .encoders.temporal import TemporalAttention
from .fusion import ModalityAttention
from .omnisat import FeatureMaps, OmniSat


class Attention(NamedTuple):
    """Where the attention of a model went, as means over its heads.

    What a model listens to is a hint at what it uses, no proof: values that are listened to
    can still be ignored further on. A score without a sensor says more
    (``torchgeo test`` writes one for every subset).

    Attributes:
        dates: For each series, the weight of each date in each ground patch, ``(B, T, N)``.
            They add up to one over the dates; to less where parts of the patch were never
            measured. A date that is not valid has zero.
        modalities: The weight of each modality in each ground patch, ``(B, N, M)``, in the
            order of the model's modalities. They add up to one; to zero where none saw it.
        grid: Rows and columns of the ground grid, N in all.
    """

    dates: dict[str, Tensor]
    modalities: Tensor
    grid: tuple[int, int]


@torch.no_grad()
def attention(model: OmniSat, batch: Mapping[str, Tensor]) -> Attention:
    """Run a model on a batch and tell what it listened to.

    Args:
        model: An OmniSat; of a task it is ``task.model.backbone``. Put it into evaluation
            first if it has dropout.
        batch: A batch as the model takes it, that is normalised.

    Returns:
        Weights of dates and of modalities. A series whose encoder has no
        ``TemporalAttention`` is left out.

    Raises:
        ValueError: If the model fuses without attention, as :class:`.LateFusion` does.
    """
    fusion = next((part for part in model.fusion.modules() if isinstance(part, ModalityAttention)), None)
    if fusion is None:
        raise ValueError(f'{type(model).__name__} fuses without attention, expected a model such as omnisat_small')
    listened: list[Tensor] = []
    weighed: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        watch = fusion.register_forward_hook(lambda part, inputs, _: listened.append(part.weigh(*inputs)[1].mean(-1)))
        hooks.callback(watch.remove)
        for name, part in _collapsing(model):
            watch = part.register_forward_hook(partial(_keep, weighed, name))
            hooks.callback(watch.remove)
        out = model(batch)
    dates = {name: _on_grid(weights, out.maps[name], out.grid) for name, weights in weighed.items()}
    return Attention(dates, listened[0], out.grid)


def _collapsing(model: OmniSat) -> Iterator[tuple[str, TemporalAttention]]:
    """What collapses the dates of each series."""
    for name, encoder in model.encoders.items():
        for part in encoder.modules():
            if isinstance(part, TemporalAttention):
                yield name, part


def _keep(weighed: dict[str, Tensor], name: str, part: nn.Module, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
    """Keep the weights of the dates, ``(B, T, P)``, as the mean over the heads."""
    weighed[name] = output[1].mean(-1)


def _on_grid(weights: Tensor, found: FeatureMaps, grid: tuple[int, int]) -> Tensor:
    """Weights ``(B, T, P)`` of the pixels of one of the maps, averaged over the patches of the ground grid."""
    size = next(m.shape[-2:] for m in found.maps if m.shape[-2] * m.shape[-1] == weights.shape[-1])
    return F.adaptive_avg_pool2d(weights.unflatten(-1, size), grid).flatten(-2)
