# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Checkpoints, and folders in the layout of the Hugging Face hub.

Such a folder contains ``model.safetensors``, the tensors of a backbone, and ``config.json``, the
arguments of its builder. Only local folders are read and written.

These are not ``PyTorchModelHubMixin``: its ``from_pretrained`` allocates any size that a damaged
configuration states (``test_configuration_of_another_model``), and its ``save_pretrained`` leaves an
incomplete file on a full disk (``test_export_on_a_full_disk_is_one_line``).
"""

import json
import math
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.overrides import TorchFunctionMode

from ..modality import as_modalities
from ..models.encoders.registry import class_paths, registered_paths
from ..utils.atomic import atomic_file
from ..utils.reading import load_json, refuse_special
from ..utils.tensors.finite import refuse_weights
from .normalization import KINDS, plain_sources

#: Names of the two files on the hub.
MODEL, CONFIG = 'model.safetensors', 'config.json'
#: Hyper-parameters of a task that a configuration contains.
KEPT = ('backbone', 'backbone_args', 'modalities', 'patch_size', 'label_gsd', 'mean', 'std', 'sources')
#: Prefix of the backbone in the state dict of a task.
PREFIX = 'model.backbone.'
#: Number of values that a model may have in addition to one per byte of its file; half precision has two bytes, and
#: parts such as decoders are built although they are not stored.
_SMALL = 2**24


def read_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors by name, and the hyper-parameters of their model, if there are any, from a file or folder.

    The file is a checkpoint, or a state dict, also as safetensors. Raise ValueError if it cannot be read safely, or
    weights are NaN or infinite.
    """
    path = Path(path).expanduser()
    if (path / MODEL).exists() or (path / CONFIG).exists():
        tensors, config = _read_tensors(path / MODEL), read_config(path)
        refuse_weights(tensors, str(path / MODEL))
        return tensors, config
    if not path.is_file():
        raise FileNotFoundError(f'weights {str(path)!r} is not a file, expected a checkpoint or a folder with {CONFIG}')
    if path.suffix == '.safetensors':
        tensors = _read_tensors(path)
        refuse_weights(tensors, str(path))
        return tensors, {}
    try:
        checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:
        raise ValueError(
            f'{path} cannot be read as a checkpoint of only tensors and plain types, expected one that '
            f'torch.load(weights_only=True) accepts: {_reason(error)}'
        ) from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f'{path} holds a {type(checkpoint).__name__}, expected a dictionary with a state_dict')
    content = checkpoint.get('state_dict', checkpoint)
    hparams = checkpoint.get('hyper_parameters')
    state = content if isinstance(content, dict) else {}
    tensors = {k: v for k, v in state.items() if isinstance(v, Tensor)}
    refuse_weights(tensors, str(path))
    return tensors, hparams if isinstance(hparams, dict) else {}


def read_hyper_parameters(path: str | Path, named: Collection[str] = ()) -> dict[str, Any]:
    """Read the hyper-parameters of a checkpoint, for a parser that imports the classes that they name.

    Return them as Lightning's command line parses them: those of a task with its ``class_path``, without arguments that
    checkpoints do not contain, such as ``weights``, which would read another file. Raise ValueError for a class that is
    neither loaded nor *named* by the user.
    """
    refuse_special(path, 'a checkpoint')
    try:
        try:
            content = torch.load(path, map_location='cpu', weights_only=True, mmap=True)
        except RuntimeError:  # a format that cannot be mapped into memory
            content = torch.load(path, map_location='cpu', weights_only=True)
        kept = dict(content.get('hyper_parameters') or {})
    except Exception as error:
        raise ValueError(
            f'{path} cannot be read as a checkpoint ({_reason(error)}), expected one of a training, with only tensors '
            'and plain types'
        ) from error
    kept.pop('_instantiator', None)
    own = kept.pop('_class_path', None)
    strange = class_paths(kept) - {*named, *registered_paths()}
    if own is not None and own not in named and not _is_task(own):
        strange.add(str(own))
    if strange:
        raise ValueError(
            f'{path} names the classes {sorted(strange)}, which are imported only if you name them too: expected the '
            'same --model and --model.backbone_args as in training'
        )
    ignored = getattr(_loaded(own), 'ignore', ('weights', 'statistics', 'compile'))
    for name in (ignored,) if isinstance(ignored, str) else ignored or ():
        kept.pop(name, None)
    return kept if own is None else {'class_path': own, 'dict_kwargs': kept}


def _is_task(path: Any) -> bool:
    """Return whether an import path is one of this package, or of a loaded task."""
    ours = __name__.partition('.')[0]
    return isinstance(path, str) and (path.startswith(f'{ours}.') or isinstance(_loaded(path), type))


def _loaded(path: Any) -> Any:
    """Return the class of an import path if its module is loaded, else None."""
    module, _, name = path.rpartition('.') if isinstance(path, str) else ('', '', '')
    return getattr(sys.modules.get(module), name, None)


@contextmanager
def limited_size(path: Any) -> Iterator[None]:
    """Raise an error if a model that is built inside is much larger than its file, before it fills the memory.

    Nothing is checked if *path* is a URL or an object in memory.
    """
    files = [Path(path, MODEL).expanduser(), Path(path).expanduser()] if isinstance(path, str | Path) else []
    limit = next((_SMALL + os.path.getsize(file) for file in files if file.is_file()), None)
    count = 0

    def add(value: Any, is_kept: bool = True) -> None:
        nonlocal count
        size = value.numel() if isinstance(value, Tensor) else 0
        count += size if is_kept else 0
        if limit is not None and max(count, size) > limit:
            raise ValueError(
                f'{path} describes a model of more than {limit} numbers, expected at most one per byte of the file'
            )

    def register(module: nn.Module, name: str, value: Any) -> None:
        add(value)

    hooks = [register_module_parameter_registration_hook(register), register_module_buffer_registration_hook(register)]
    try:
        with _Sizes(add):
            yield
    finally:
        for hook in hooks:
            hook.remove()


#: Functions that allocate tensors of any size.
_ALLOCATING = (
    torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.arange, torch.linspace, torch.eye,
)  # fmt: skip


class _Sizes(TorchFunctionMode):
    """Calls a function on tensors that are cloned, such as parameters of copied layers, which are not registered.

    It is also called for each new tensor before memory is allocated, with a tensor on the meta device.
    """

    def __init__(self, call: Callable[..., None]) -> None:
        super().__init__()
        self.call = call

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.clone:
            self.call(args[0])
        elif func in _ALLOCATING and not {'out', 'generator'} & set(kwargs or {}):
            self.call(func(*args, **{**(kwargs or {}), 'device': 'meta', 'pin_memory': False}), is_kept=False)
        return func(*args, **(kwargs or {}))


def secure_checkpoints(strategy: Any) -> None:
    """Make a trainer write checkpoints atomically, and unpickle only tensors and plain types.

    Without ``weights_only``, Lightning runs the code in a checkpoint that it downloads from a URL. It copies
    checkpoints from the temporary folder, and leaves an incomplete file if it is killed meanwhile. Checkpoint plugins
    of the user still write their own files.
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
            f'{path} cannot be read as a checkpoint ({_reason(error)}), expected one of a training, with only tensors '
            'and plain types'
        ) from error
    if not isinstance(content, dict) or not {'state_dict', 'pytorch-lightning_version'} <= set(content):
        raise ValueError(
            f'{path} is not a checkpoint of a training, expected one with a state_dict; load weights with '
            f'--model.weights {path}'
        )
    return content


def read_config(folder: Path) -> dict[str, Any]:
    """Read and validate the configuration of the backbone in a folder."""
    path = folder / CONFIG
    expected = f'expected what export_hub writes: {", ".join(KEPT)}'
    if not path.is_file():
        raise FileNotFoundError(f'{path} does not exist, {expected}')
    try:
        config = load_json(path)
        modalities = [modality.as_dict() for modality in as_modalities(config['modalities']).values()]
        arguments = config['backbone_args'] or {}
        # With a colon or a slash in the name, timm would download a model.
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
    for kind in KINDS:
        for name, numbers in (entry[kind] or {}).items():
            strange = [x for x in numbers if not math.isfinite(x) or (kind == 'std' and x < 0)]
            if strange or (kind == 'std' and not any(numbers)):
                expected = 'finite numbers' if kind == 'mean' else 'finite numbers, none negative and not all 0'
                raise ValueError(f'{kind} of {name!r}{label} is {numbers}, expected {expected}')


def write_hub(folder: Path, backbone: nn.Module, config: Mapping[str, Any]) -> None:
    """Write the folder of a backbone, in which files are replaced atomically."""
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
    if not path.is_file():
        raise FileNotFoundError(f'{path} does not exist, expected the tensors of a model')
    try:
        return load_file(path)
    except (SafetensorError, ValueError, OSError, RuntimeError, KeyError) as error:
        raise ValueError(
            f'{path} is not a safetensors file, expected what export_hub writes: {_reason(error)}'
        ) from error


def _reason(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
