# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Sources of pre-trained weights: entries of TorchGeo, timm tags, files and hub folders."""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from filelock import FileLock
from safetensors.torch import load_file
from timm.models import is_model_pretrained
from torch import Tensor, nn
from torchvision.models._api import WeightsEnum

from ....utils.atomic import cache_folder
from .adapter import Native

#: Names of the file of tensors in a folder of the Hugging Face hub.
HUB_FILES = ('model.safetensors', 'pytorch_model.bin')
#: Licence of the weights of a repository, which TorchGeo's entries name but do not state.
LICENCES = {
    'https://github.com/zhu-xlab/SSL4EO-S12': 'cc-by-4.0',  # README.md: "The dataset and pretrained model weights"
    'https://github.com/zhu-xlab/Copernicus-FM': 'cc-by-4.0',  # Copernicus-FM/README.md: "The model weights"
    'https://github.com/zhu-xlab/DOFA': 'cc-by-4.0',  # card of https://huggingface.co/torchgeo/dofa
    'https://github.com/zhu-xlab/DeCUR': 'apache-2.0',  # README.md: "This project"
    'https://github.com/DarthReca/closp': 'apache-2.0',  # README.md: "This project"
    'https://github.com/allenai/satlas': 'odc-by',  # SatlasPretrain.md: "The models are released under"
    'https://github.com/allenai/satlaspretrain_models': 'odc-by',  # the same page, which names this repository
    'https://github.com/antofuller/CROMA': 'mit',  # card of https://huggingface.co/torchgeo/croma
    'https://github.com/ServiceNow/seasonal-contrast': 'apache-2.0',  # card of torchgeo/resnet50_sentinel2_rgb_seco
    'https://github.com/facebookresearch/Mask2Former/': 'cc-by-nc-4.0',  # MODEL_ZOO.md: "All models available"
    'https://github.com/zhu-xlab/softcon': 'cc-by-4.0',  # docs/api/weights/sar.csv of TorchGeo
    'https://github.com/zhu-xlab/FGMAE': 'cc-by-4.0',  # card of https://huggingface.co/wangyi111/FGMAE
    'https://github.com/sustainlab-group/geography-aware-ssl': 'cc-by-4.0',  # card of torchgeo/resnet50_fmow_rgb_gassl
    'https://github.com/Panopticon-FM/panopticon': 'apache-2.0',  # docs/api/weights/agnostic.csv of TorchGeo
    'https://github.com/PlekhanovaElena/ssl4eco': 'mit',  # LICENSE of the repository, for its software
    'https://github.com/torchgeo/torchgeo': 'cc0-1.0',  # card of https://huggingface.co/torchgeo/ssl4eo_landsat
}
#: Name of an entry of TorchGeo, with or without that of its class.
_ENTRY = re.compile(r'(\w+\.)?[A-Z0-9_]+')
_S1 = {'VV', 'VH', 'HH', 'HV'}


class Source(NamedTuple):
    """Pre-trained weights of a backbone.

    Attributes:
        name: Name of the backbone.
        native: Bands and units.
        standardised: Whether images are passed as normalised by the statistics of the data.
        address: File or URL.
        licence: Licence, or where it is stated.
        read: Function that returns the state dict; it may download.
        image_size: Size of the images of a ViT, None for the default.
    """

    name: str
    native: Native
    standardised: bool
    address: str
    licence: str | None
    read: Callable[[], Mapping[str, Tensor]]
    image_size: int | None = None


def find_entry(name: str | None, weights: Any) -> WeightsEnum | None:
    """Return the entry of TorchGeo with this name, None if there is none.

    Args:
        name: Name of the model, None for any.
        weights: Entry, its name such as ``'SENTINEL2_ALL_MOCO'``, or with that of its class.

    Raises:
        ValueError: If the model has other weights.
    """
    from torchgeo.models import get_model_weights, get_weight

    if isinstance(weights, WeightsEnum):
        return weights
    text = str(weights)
    try:
        if '.' in text:
            return get_weight(text)
        entries = get_model_weights(name) if name else ()
    except (ValueError, KeyError):
        return None
    return next((entry for entry in entries if entry.name == text), None)


def model_of(entry: WeightsEnum) -> str:
    """Return the name of the model that an entry of TorchGeo belongs to."""
    from torchgeo.models import get_model_weights, list_models

    for name in list_models():
        try:
            if get_model_weights(name) is type(entry):
                return name
        except KeyError:
            continue
    return str(entry.meta.get('model'))


def find_source(
    name: str,
    modality_name: str,
    modality_bands: Sequence[str],
    weights: Any,
    pretrained: bool,
    bands: Sequence[str] | None,
    load: bool = True,
) -> Source:
    """Return the source of the weights of a specification, without reading or downloading it.

    Args:
        name: Name of the backbone.
        modality_name: Name of the modality in errors.
        modality_bands: Its bands, those of a file whose bands are not given.
        weights: See :func:`find_entry`; or a file, or a folder of the Hugging Face hub.
        pretrained: Whether to use the weights of timm.
        bands: Bands of a file in the order of its channels.
        load: Whether the weights will be read; False if a checkpoint has them.

    Raises:
        ValueError: If there are no such weights.
    """
    if weights is None:
        return _timm(name, modality_name, pretrained)
    if (entry := find_entry(name, weights)) is not None:
        return entry_source(name, entry)
    path = find_file(modality_name, weights, entries_of(name), load)
    chosen = tuple(bands or modality_bands)
    native = Native(str(path), chosen, (None,) * len(chosen), (0.0,) * len(chosen), (1.0,) * len(chosen), True)
    return Source(name, native, True, str(path), None, lambda: read_file(path))


def find_file(modality_name: str, weights: Any, entries: Sequence[str], load: bool) -> Path:
    """Return the path of weights that are not an entry of TorchGeo.

    Args:
        modality_name: Name of the modality in errors.
        weights: File, or folder of the Hugging Face hub; ``~`` is the home folder.
        entries: Entries of TorchGeo in errors.
        load: Whether it will be read. If not, it may have been moved since the checkpoint was written.

    Raises:
        ValueError: If it is neither.
    """
    path = Path(str(weights)).expanduser()
    known = path.exists() or path.suffix in ('.pt', '.pth', '.safetensors', '.ckpt', '.bin')
    if not known and (load or _ENTRY.fullmatch(str(path))):
        raise ValueError(
            f'weights {str(weights)!r} of the encoder of {modality_name!r} are unknown, expected a file, a folder of '
            f'the Hugging Face hub or one of {list(entries) or "none: TorchGeo has no weights of this model"}'
        )
    return path


def entries_of(name: str) -> list[str]:
    """Return the names of TorchGeo's weights of a model."""
    from torchgeo.models import get_model_weights

    try:
        return [entry.name for entry in get_model_weights(name)]
    except KeyError:
        return []


def _timm(name: str, modality: str, pretrained: bool) -> Source:
    if not (pretrained and timm.is_model(name) and is_model_pretrained(name)):
        tags = timm.list_pretrained(f'{name.partition(".")[0]}.*')[:8] or 'a name from timm.list_pretrained()'
        raise ValueError(f'encoder {name!r} of {modality!r} has no pre-trained weights in timm, expected {tags}')
    config = timm.get_pretrained_cfg(name)
    assert config is not None
    count = config.input_size[0]
    bands = ('R', 'G', 'B') if count == 3 else tuple(str(i) for i in range(count))
    shift, scale = (tuple(255.0 * v for v in values) for values in (config.mean, config.std))
    native = Native(f'{name} of timm', bands, ('8 bit',) * count, shift, scale)
    address = config.url if isinstance(config.url, str) and config.url else f'https://huggingface.co/{config.hf_hub_id}'
    licence = config.license or 'not stated by timm'
    return Source(name, native, True, address, licence, lambda: _read_timm(name, address))


def _read_timm(name: str, address: str) -> dict[str, Tensor]:
    with _download(f'{name} of timm', address):
        return timm.create_model(name, pretrained=True).state_dict()


def entry_source(name: str, entry: WeightsEnum) -> Source:
    """Return the source of an entry of TorchGeo.

    Raises:
        ValueError: If it states no bands.
    """
    meta = entry.meta
    bands = tuple(meta.get('bands') or (('R', 'G', 'B') if meta.get('in_chans') == 3 else ()))
    if not bands:
        raise ValueError(f'{entry} states no bands, expected weights of a convolutional or transformer backbone')
    shift, scale = normalisation(entry.transforms, len(bands))
    native = Native(str(entry), bands, _units(entry, bands), shift, scale, entry.name.startswith('SENTINEL2'))
    licence = licence_of(entry)
    return Source(name, native, False, entry.url, licence, lambda: read_entry(entry), meta.get('img_size'))


def licence_of(entry: WeightsEnum) -> str | None:
    """Return the licence of an entry of TorchGeo, or the repository that states it; None if there is neither."""
    meta = entry.meta
    licence: str | None = meta.get('license') or LICENCES.get(meta.get('repo', ''))
    return licence or (f'see {meta["repo"]}' if 'repo' in meta else None)


def read_entry(entry: WeightsEnum) -> Mapping[str, Tensor]:
    """Return the state dict of an entry of TorchGeo, which is downloaded once.

    Raises:
        OSError: If it cannot be downloaded.
    """
    with _download(str(entry), entry.url):
        state: Mapping[str, Any] = entry.get_state_dict(progress=True, check_hash=True, weights_only=True)
    return flatten_state(state)


@contextmanager
def _download(label: str, address: str) -> Iterator[None]:
    """Let one process at a time download, and name the weights in the error of a failed download."""
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / '.download.lock') if os.access(folder, os.W_OK) else nullcontext():
        try:
            yield
        except OSError as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise OSError(
                f'weights {label} cannot be downloaded from {address}: {reason}; expected a connection, '
                'or weights: FILE with a file that was downloaded elsewhere'
            ) from error


def _units(entry: WeightsEnum, bands: Sequence[str]) -> tuple[str | None, ...]:
    """Return the unit of each band before the transforms of an entry.

    SSL4EO-S12 has digital numbers of level 1C and decibels (https://github.com/zhu-xlab/SSL4EO-S12). Satlas has
    true-colour images and digital numbers (https://github.com/allenai/satlas/blob/main/Normalization.md), which does
    not state the unit of Sentinel-1. fMoW and NAIP have 8 bits.
    """
    dataset, radar = str(entry.meta.get('dataset')), set(bands) <= _S1
    if dataset == 'SSL4EO-S12':
        return ('db' if radar else 'dn',) * len(bands)
    if dataset in ('SSL4Eco Dataset', 'CrisisLandMark') and not radar:
        return ('dn',) * len(bands)
    if dataset == 'SatlasPretrain' and entry.name.startswith('SENTINEL2'):
        return tuple('tci' if band in ('B02', 'B03', 'B04') else 'dn to 8160' for band in bands)
    eight = dataset == 'fMoW Dataset' or entry.name.startswith('NAIP')
    return ('8 bit' if eight else None,) * len(bands)


def normalisation(transforms: Any, count: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the shift and scale of the ``Normalize`` transforms of an entry; resizing and cropping are ignored."""
    shift, scale = torch.zeros(count, dtype=torch.float64), torch.ones(count, dtype=torch.float64)
    for step in _steps(transforms):
        mean, std = (getattr(step, key, None) for key in ('mean', 'std'))
        if mean is None or std is None:
            continue
        mean, std = (torch.as_tensor(value, dtype=torch.float64) for value in (mean, std))
        shift, scale = shift + mean * scale, scale * std
    return tuple(shift.tolist()), tuple(scale.tolist())


def _steps(transforms: Any) -> Iterator[Any]:
    if isinstance(transforms, nn.Sequential):
        for step in transforms:
            yield from _steps(step)
    elif isinstance(transforms, nn.Module):
        yield transforms


def read_file(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file or of a folder of the Hugging Face hub.

    Args:
        path: File of tensors and plain types (``.pt``, ``.pth``, ``.safetensors``), or folder.

    Raises:
        ValueError: If it cannot be read safely, or holds no tensors.
        FileNotFoundError: If it does not exist.
    """
    if path.is_dir():
        path = next((path / name for name in HUB_FILES if (path / name).is_file()), path / HUB_FILES[0])
    if not path.is_file():
        raise FileNotFoundError(f'weights {str(path)!r} do not exist, expected a file of tensors')
    try:
        content: Any = (
            load_file(path)
            if path.suffix == '.safetensors'
            else torch.load(path, map_location='cpu', weights_only=True)
        )
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f'{path} cannot be read as only tensors and plain types: {reason}') from error
    for key in ('state_dict', 'model', 'teacher'):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    state = flatten_state(content) if isinstance(content, dict) else {}
    if not state:
        raise ValueError(f'{path} holds no tensors, expected a state dict')
    return state


def flatten_state(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a state dict, or of state dicts by name under names such as ``encoder.weight``."""
    state = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if state:
        return state
    parts = {name: part for name, part in content.items() if isinstance(part, Mapping)}
    return {f'{name}.{key}': v for name, part in parts.items() for key, v in part.items() if isinstance(v, Tensor)}
