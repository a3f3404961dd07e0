# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Files of weights: checkpoints, and folders in the layout of the Hugging Face hub.

Such a folder holds ``model.safetensors``, the tensors of a backbone, and ``config.json``,
what it is to be built with. It is read and written where it lies; nothing is downloaded.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..modality import as_modalities
from ..utils.atomic import atomic_file
from ..utils.finite import refuse_weights
from ..utils.jsonfile import load_json
from .normalization import KINDS, plain_sources

#: Names of the two files, as the hub has them.
MODEL, CONFIG = 'model.safetensors', 'config.json'
#: What a configuration keeps of a task's hyper-parameters.
KEPT = ('backbone', 'backbone_args', 'modalities', 'patch_size', 'label_gsd', 'mean', 'std', 'sources')
#: Where a task has its backbone.
PREFIX = 'model.backbone.'


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by name, and the hyper-parameters of their model.

    Args:
        path: A checkpoint, a file with a state dict, also as safetensors, or a folder.

    Returns:
        The tensors, and the hyper-parameters; none if the file has none.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read safely, or weights are NaN or infinite.
    """
    path = Path(path)
    if (path / MODEL).exists() or (path / CONFIG).exists():
        tensors, config = _read_tensors(path / MODEL), read_config(path)
        refuse_weights(tensors, str(path / MODEL))
        return tensors, config
    if not path.is_file():
        raise FileNotFoundError(f'weights {str(path)!r} is no file, expected a checkpoint or a folder with {CONFIG}')
    if path.suffix == '.safetensors':
        tensors = _read_tensors(path)
        refuse_weights(tensors, str(path))
        return tensors, {}
    try:
        checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:
        raise ValueError(
            f'{path} cannot be read as a checkpoint of tensors and plain types alone, expected one that '
            f'torch.load(weights_only=True) accepts: {_reason(error)}'
        ) from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f'{path} holds a {type(checkpoint).__name__}, expected a dictionary with a state_dict')
    content = checkpoint.get('state_dict', checkpoint)
    told = checkpoint.get('hyper_parameters')
    state = content if isinstance(content, dict) else {}
    tensors = {k: v for k, v in state.items() if isinstance(v, Tensor)}
    refuse_weights(tensors, str(path))
    return tensors, told if isinstance(told, dict) else {}


def secure_checkpoints(strategy: Any) -> None:
    """Have a trainer write complete checkpoints, and unpickle nothing but tensors and plain types.

    Lightning would run any code of a checkpoint that is downloaded from an address, unless asked not to by
    ``weights_only``. It copies a checkpoint from the folder for temporary files, and leaves half of one if it is
    killed meanwhile. Plugins of the user that write checkpoints are left alone.

    Args:
        strategy: The trainer's strategy; its checkpoint plugin is changed in place.
    """
    plugin = strategy.checkpoint_io
    if 'load_checkpoint' not in vars(plugin):
        vars(plugin)['load_checkpoint'] = partial(_tensors_alone, plugin.load_checkpoint)
    if type(plugin) is TorchCheckpointIO and 'save_checkpoint' not in vars(plugin):
        vars(plugin)['save_checkpoint'] = partial(_save_whole, plugin.save_checkpoint)


def _save_whole(
    save: Callable[..., None], checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
) -> None:
    if '://' in str(path) or storage_options is not None:
        save(checkpoint, path, storage_options)
        return
    with atomic_file(Path(path)) as temporary:
        torch.save(checkpoint, temporary)


def _tensors_alone(
    load: Callable[..., Any], path: Any, *args: Any, weights_only: bool | None = None, **kwargs: Any
) -> Any:
    try:
        content = load(path, *args, weights_only=True if weights_only is None else weights_only, **kwargs)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(
            f'{path} cannot be read as a checkpoint ({_reason(error)}), expected one that a training wrote, of tensors '
            'and plain types alone'
        ) from error
    if not isinstance(content, dict) or not {'state_dict', 'pytorch-lightning_version'} <= set(content):
        raise ValueError(
            f'{path} is no checkpoint of a training, expected one with a state_dict; weights alone are loaded by '
            f'--model.weights {path}'
        )
    return content


def read_config(folder: Path) -> dict[str, Any]:
    """Read and check the configuration of the backbone in a folder.

    Raises:
        FileNotFoundError: If the folder has no configuration.
        ValueError: If it is damaged, or not of one of our models.
    """
    path = folder / CONFIG
    expected = f'expected what export_hub writes: {", ".join(KEPT)}'
    if not path.is_file():
        raise FileNotFoundError(f'{path} does not exist, {expected}')
    try:
        config = load_json(path)
        modalities = [modality.as_dict() for modality in as_modalities(config['modalities']).values()]
        arguments = config['backbone_args'] or {}
        # A name with a colon or a slash would make timm ask the network.
        encoders = dict(arguments.get('encoders') or {}).values()
        names = [str(e.get('name') or e.get('class_path')) if isinstance(e, dict) else str(e) for e in encoders]
        numbers = {
            k: {name: [float(x) for x in v] for name, v in config[k].items()} if config[k] else None for k in KINDS
        }
        sources = plain_sources(config['sources']) if config.get('sources') else None
        _check_statistics('', numbers)
        for name, entry in (sources or {}).items():
            _check_statistics(f' of the source {name!r}', entry)
        for name in ('patch_size', 'label_gsd'):
            if config[name] is not None and not 0 < float(config[name]) < math.inf:
                raise ValueError(f'{name} is {config[name]!r}, expected a finite number of metres')
        if not isinstance(config['backbone'], str) or not all(re.fullmatch('[A-Za-z0-9_.]+', name) for name in names):
            raise ValueError(f'backbone {config["backbone"]!r} with encoders {names}')
        kept = {key: config[key] for key in KEPT if key != 'sources'}
        return {**kept, **numbers, 'sources': sources, 'modalities': modalities, 'backbone_args': arguments}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f'{path} cannot be used ({_reason(error)}), {expected}') from error


def _check_statistics(label: str, entry: Mapping[str, Any]) -> None:
    """Refuse statistics that no image can be normalised with."""
    for kind in KINDS:
        for name, numbers in (entry[kind] or {}).items():
            strange = [x for x in numbers if not math.isfinite(x) or (kind == 'std' and x < 0)]
            if strange or (kind == 'std' and not any(numbers)):
                expected = 'finite numbers' if kind == 'mean' else 'finite numbers, none negative and not all 0'
                raise ValueError(f'{kind} of {name!r}{label} is {numbers}, expected {expected}')


def write_hub(folder: Path, backbone: nn.Module, config: Mapping[str, Any]) -> None:
    """Write a folder; each of its files is there whole or not at all.

    Args:
        folder: The folder; it is made, and files of these names in it are replaced.
        backbone: What the tensors are taken from.
        config: What it is to be built with, in plain types.

    Raises:
        OSError: If a file cannot be written, for example because the disk is full.
    """
    tensors = {key: value.detach().cpu().clone().contiguous() for key, value in backbone.state_dict().items()}
    with atomic_file(folder / MODEL) as path:
        try:
            save_file(tensors, path, metadata={'format': 'pt'})
        except SafetensorError as error:  # also for a full disk or an exceeded quota
            raise OSError(f'{folder / MODEL} cannot be written: {_reason(error)}') from error
    with atomic_file(folder / CONFIG) as path:
        text = json.dumps({'library_name': 'torchgeo_omnisat', 'model_type': 'omnisat', **config}, indent=2)
        path.write_text(text + '\n', encoding='utf-8')


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file."""
    if not path.is_file():
        raise FileNotFoundError(f'{path} does not exist, expected the tensors of a model')
    try:
        return load_file(path)
    except (SafetensorError, ValueError, OSError, RuntimeError, KeyError) as error:
        raise ValueError(
            f'{path} cannot be read as safetensors, expected what export_hub writes: {_reason(error)}'
        ) from error


def _reason(error: Exception) -> str:
    """Return the first line of an error, or its type if it has none."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
