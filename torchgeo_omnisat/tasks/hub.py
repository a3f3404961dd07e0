# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Hub: a trained backbone as a folder that can be shared, and back."""

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor

from ..modality import as_modalities
from ..models import OmniSat
from ..models.encoders.registry import checkpoint_encoders
from .backbone import make_backbone
from .base import OmniSatTask
from .checkpoints import CONFIG, KEPT, PREFIX, read_config, read_weights, write_hub


def export_hub(source: OmniSatTask | str | Path, folder: str | Path) -> None:
    """Write the backbone of a task in the layout of the Hugging Face hub: config.json and model.safetensors.

    The folder can be given as ``weights`` to any task, and to :func:`load_hub`. Decoder,
    optimiser and losses stay behind.

    Args:
        source: A task, or a checkpoint of one.
        folder: Where to write.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If it is no checkpoint of one of our tasks, or cannot be read safely.
    """
    if isinstance(source, OmniSatTask):
        state, told = source.state_dict(), dict(source.hparams)
    else:
        state, told = read_weights(source)
    config = {key: told.get(key) for key in KEPT}
    tensors = {key.removeprefix(PREFIX): value for key, value in state.items() if key.startswith(PREFIX)}
    if not tensors or config['modalities'] is None:
        raise ValueError(
            f'{source} has no backbone with its hyper-parameters, expected a checkpoint of one of our tasks'
        )
    write_hub(Path(folder), _build(config, tensors, source if isinstance(source, OmniSatTask) else str(source)), config)


def load_hub(folder: str | Path) -> OmniSat:
    """Load the backbone in a folder of :func:`export_hub`, in evaluation mode.

    It takes images that were normalised by ``mean`` and ``std`` of its configuration.

    Args:
        folder: The folder.

    Raises:
        FileNotFoundError: If one of the two files is missing.
        ValueError: If a file is damaged, or they do not fit each other.
    """
    config = read_config(Path(folder))
    return _build(config, read_weights(folder)[0], str(folder)).eval()


def _build(config: Mapping[str, Any], tensors: Mapping[str, Tensor], source: OmniSatTask | str) -> OmniSat:
    """Build the backbone of a configuration and load all of its tensors."""
    try:
        modalities, arguments = as_modalities(config['modalities']), config['backbone_args'] or {}
        _check_size(arguments, tensors)
        sizes = config['patch_size'], config['label_gsd']
        with checkpoint_encoders(source) if isinstance(source, str) else nullcontext():
            backbone = make_backbone(config['backbone'], modalities, *sizes, arguments)
        backbone.load_state_dict(tensors)
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        first = ' '.join(str(error).split())[:300]
        source = source if isinstance(source, str) else type(source).__name__
        raise ValueError(f'{source} holds no backbone that {CONFIG} describes: {first}') from error
    return backbone


def _check_size(arguments: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Refuse a configuration of a much larger model than the tensors are of, before memory is allocated."""
    sizes = {name: arguments.get(name, 1) for name in ('embed_dim', 'depth')}
    stored = sum(tensor.numel() for tensor in tensors.values())
    if all(isinstance(value, int) for value in sizes.values()) and sizes['depth'] * sizes['embed_dim'] ** 2 > stored:
        raise ValueError(f'{sizes} is a larger model than that of the {stored} stored numbers')
