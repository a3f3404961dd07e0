# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Weights of the encoders of time series: entries of TorchGeo, files and state dicts."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torchvision.models._api import WeightsEnum

from ...registry import Origin
from ..freezing import FreezableEncoder
from ..sources import read_entry, read_file


def read_weights(
    weights: WeightsEnum | str | Path | Mapping[str, Tensor], known: type[WeightsEnum], licence: str
) -> tuple[Mapping[str, Tensor], Origin]:
    """Return a state dict and its origin, with the number of its tensors.

    Args:
        weights: Entry of TorchGeo or its name, a file, or a state dict.
        known: Entries of the model.
        licence: Licence of the published weights.

    Raises:
        ValueError: If the entry is unknown, or the file cannot be read as tensors.
    """
    if isinstance(weights, Mapping):
        return weights, Origin('a state dict', len(weights), 'a state dict')
    path = Path(str(weights)).expanduser()
    if path.exists():
        state: Mapping[str, Tensor] = read_file(path)
        return state, Origin(path.name, len(state), str(path))  # it may hold other weights than the published ones
    names = [str(entry) for entry in known]
    entry: Any = next((entry for entry in known if str(weights) in (entry.name, str(entry))), None)
    if entry is None:
        raise ValueError(f'weights are {str(weights)!r}, expected a file or one of {names}')
    state = read_entry(entry)
    return state, Origin(str(entry), len(state), entry.url, licence)


def chosen_weights[W: WeightsEnum](
    name: str, label: str, weights: W | str | None, pretrained: bool | None, published: W
) -> W | str | None:
    """Return the weights of a specification, None for random ones.

    Raises:
        ValueError: If neither or both are given.
    """
    if weights is None and pretrained is None:
        raise ValueError(
            f'encoder of {name!r} is {label} without weights, expected weights: {published.name}, or a file, '
            'to load them, or pretrained: false for random weights'
        )
    if weights is not None and pretrained is False:
        raise ValueError(f'encoder of {name!r} has weights {weights!r} and pretrained: false, expected one')
    return (weights or published) if pretrained or weights else None


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], origin: Origin, label: str) -> Origin:
    """Load all tensors of a model, and return their origin.

    Raises:
        ValueError: If the tensors are not those of the model.
    """
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ValueError(f'{origin.source} does not fit {label}: {error}') from error
    return origin._replace(tensors=len(state))


def build_pretrained[E: FreezableEncoder, W: WeightsEnum](
    build: Callable[[W | str | None], E],
    name: str,
    label: str,
    weights: W | str | None,
    pretrained: bool | None,
    load: bool,
    published: W,
    licence: str,
) -> E:
    """Build an encoder with the weights of a specification.

    Args:
        build: Function that builds the encoder with weights, or without them.
        name: Name of the modality in errors.
        label: Name of the encoder.
        weights: Entry of TorchGeo or its name, or a file.
        pretrained: True for the published weights, False for random weights.
        load: Whether to load the weights; False if a checkpoint provides them.
        published: Entry of the published weights.
        licence: Their licence.

    Raises:
        ValueError: If neither weights nor *pretrained* are given, or both.
    """
    chosen = chosen_weights(name, label, weights, pretrained, published)
    encoder = build(chosen if load else None)
    if chosen is not None and not load:
        encoder.origin = Origin(str(chosen), 0, 'the checkpoint', licence)
    return encoder
