# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Attention weights of a model over dates and modalities."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .encoders.series.temporal import TemporalAttention
from .fusion import ModalityAttention
from .omnisat import FeatureMaps, OmniSat


class Attention(NamedTuple):
    """Attention weights of a model, averaged over heads.

    High attention does not prove that a model uses an input: later layers may ignore it.
    Scores without a sensor are better evidence (``torchgeo test`` writes them for every subset).

    Attributes:
        dates: Weights of the dates in each ground patch, ``(B, T, N)`` by time series. They sum
            to one over the dates, or to less if parts of the patch were never observed.
            Invalid dates have weight zero.
        modalities: Weights of the modalities in each ground patch, ``(B, N, M)``, in the order
            of the model's modalities, then that of the location if the model has one. They sum to
            one, or to zero if none observed the patch.
        grid: Rows and columns of the ground grid, N patches in total.
    """

    dates: dict[str, Tensor]
    modalities: Tensor
    grid: tuple[int, int]


@torch.no_grad()
def attention(model: OmniSat, batch: Mapping[str, Tensor]) -> Attention:
    """Run a model on a batch and return its attention weights.

    Args:
        model: OmniSat backbone; of a task, ``task.model.backbone``. Call ``eval()`` first if it
            has dropout.
        batch: Normalised batch.

    Returns:
        Weights of dates and modalities. A time series whose encoder has no
        ``TemporalAttention`` is left out.

    Raises:
        ValueError: If the model fuses without attention, as :class:`.LateFusion` does.
    """
    fusion = next((part for part in model.fusion.modules() if isinstance(part, ModalityAttention)), None)
    if fusion is None:
        raise ValueError(f'model is {type(model).__name__}, which has no attention, expected one such as omnisat_small')
    modality_weights: list[Tensor] = []
    date_weights: dict[str, dict[nn.Module, list[Tensor]]] = {}
    with ExitStack() as hooks:
        handle = fusion.register_forward_hook(
            lambda part, inputs, _: modality_weights.append(part.weigh(*inputs)[1].mean(-1))
        )
        hooks.callback(handle.remove)
        for name, part in _temporal_attentions(model):
            handle = part.register_forward_hook(partial(_store_mean, date_weights, name))
            hooks.callback(handle.remove)
        out = model(batch)
    dates = {}
    for name, of_parts in date_weights.items():
        coarsest = list(of_parts.values())[-1]
        dates[name] = _on_grid(torch.cat(coarsest, -1), out.maps[name], out.grid)
    return Attention(dates, modality_weights[0], out.grid)


def _temporal_attentions(model: OmniSat) -> Iterator[tuple[str, TemporalAttention]]:
    for name, encoder in model.encoders.items():
        for part in encoder.modules():
            if isinstance(part, TemporalAttention):
                yield name, part


def _store_mean(
    weights: dict[str, dict[nn.Module, list[Tensor]]],
    name: str,
    part: nn.Module,
    inputs: Any,
    output: tuple[Tensor, Tensor],
) -> None:
    """Append the weights of the dates, ``(B, T, P)``, averaged over the heads; blocks of pixels come in order."""
    weights.setdefault(name, {}).setdefault(part, []).append(output[1].mean(-1))


def _on_grid(weights: Tensor, found: FeatureMaps, grid: tuple[int, int]) -> Tensor:
    """Average the weights ``(B, T, P)`` of the pixels of a map over the patches of the ground grid."""
    size = next(m.shape[-2:] for m in found.maps if m.shape[-2] * m.shape[-1] == weights.shape[-1])
    return F.adaptive_avg_pool2d(weights.unflatten(-1, size), grid).flatten(-2)
