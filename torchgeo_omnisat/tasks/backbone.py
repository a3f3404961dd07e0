# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Backbones of tasks: built by name, initialised with weights, exported to a folder."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from .. import models
from ..modality import LOCATION, Modality, as_modalities
from ..models.encoders.bands import add_missing
from ..models.encoders.registry import checkpoint_encoders, registered_paths
from ..models.encoders.weights import load_encoder
from ..models.late_fusion import taken
from ..utils.checks import check_choice
from .checkpoints import CONFIG, KEPT, PREFIX, limited_size, read_checkpoint, read_config, write_hub
from .normalization import KINDS, Inherited, Sources, Statistics

#: Modules of a backbone that hold one part for each modality.
_BY_MODALITY = ('encoders', 'heads', 'embeddings')
#: Arguments that may exceed the limit of a size: coordinates may be negative, and a cache grows as it is filled.
_NO_SIZES = ('latlon', 'cache_size')
#: Backbones by name: every size of OmniSat, and the baselines.
BACKBONES = (*(name for name in models.__all__ if name.startswith('omnisat_')), *models.LATE_FUSION)


def modalities_of(backbone: str, known: Mapping[str, Modality], arguments: Mapping[str, Any]) -> dict[str, Modality]:
    """Return the available modalities that a backbone uses; see ``torchgeo_omnisat.models.late_fusion.taken``."""
    return taken(backbone, known, arguments.get('series'))


def make_backbone(
    backbone: str,
    known: Mapping[str, Modality],
    patch_size: float,
    label_gsd: float | None,
    arguments: Mapping[str, Any],
) -> models.OmniSat:
    """Build a backbone, and log the modalities that it does not use.

    Args:
        backbone: One of :data:`BACKBONES`.
        known: Available modalities.
        patch_size: Side of a ground patch in metres, for OmniSat.
        label_gsd: GSD of the labels in metres, the patch size of a baseline; None for *patch_size*.
        arguments: Further arguments of the builder; ``series`` selects the time series of ``'utae'``.

    Raises:
        ValueError: If *backbone* is unknown, or it can use none of the modalities.
    """
    check_choice(backbone=(backbone, BACKBONES))
    refuse_sizes(arguments)
    modalities = modalities_of(backbone, known, arguments)
    if left := [name for name in known if name not in modalities]:
        rank_zero_info(f'{backbone} uses {", ".join(modalities)}; not used: {", ".join(left)}')
    try:
        if backbone not in models.LATE_FUSION:
            return getattr(models, backbone)(modalities, **{'patch_size': patch_size, **arguments})
        given = {name: value for name, value in arguments.items() if (backbone, name) != ('utae', 'series')}
        return models.late_fusion(modalities, **{'patch_size': label_gsd or patch_size, **given})
    except (TypeError, AssertionError, AttributeError, LookupError) as error:
        if not arguments:
            raise
        raise ValueError(
            f'backbone_args is {dict(arguments)!r}, which {backbone} rejects ({error or type(error).__name__}), '
            'expected arguments of its builder in torchgeo_omnisat.models'
        ) from error


def refuse_sizes(arguments: Any, name: str = 'backbone_args') -> None:
    """Reject implausible sizes of a model before memory is allocated.

    Args:
        arguments: Arguments of a builder, in plain types.
        name: Name in the error.
    """
    if isinstance(arguments, Mapping):
        if 'class_path' in arguments and arguments['class_path'] not in registered_paths():
            return
        for key, value in arguments.items():
            if key not in _NO_SIZES:
                refuse_sizes(value, f'{name}.{key}')
    elif isinstance(arguments, list | tuple):
        for value in arguments:
            refuse_sizes(value, name)
    elif isinstance(arguments, int | float) and not 0 <= arguments <= models.omnisat.LARGEST_WIDTH:
        raise ValueError(f'{name} is {arguments}, expected a number from 0 to {models.omnisat.LARGEST_WIDTH}')


def load_weights(backbone: models.OmniSat, weights: str, modalities: Mapping[str, Modality]) -> Inherited:
    """Initialise a backbone, and log which parts were loaded, new and ignored.

    Args:
        backbone: Backbone; its weights are modified.
        weights: File or folder for :func:`.load_backbone`, or the name of published weights such
            as ``'UTAE_Weights.PASTIS_FOLD1'``, which are loaded into the encoder of the time series with
            their bands.
        modalities: Modalities of *backbone*.

    Returns:
        Statistics that the loaded modalities were trained with; empty if they are unknown.

    Raises:
        ValueError: If no part matches.
    """
    if weights not in map(str, models.UTAE_Weights.__members__.values()):
        report = load_backbone(backbone, weights, modalities)
        return Inherited(report.statistics, report.sources)
    bands = models.UTAE_Weights.verify(weights).meta['bands']
    name = next((m.name for m in modalities.values() if m.temporal and list(m.bands) == bands), None)
    if name is None:
        raise ValueError(f'{weights} is for a series of the bands {bands}, expected one among {list(modalities)}')
    loaded = load_encoder(backbone.encoders[name], weights)
    summary = '; '.join(f'{kind}: {", ".join(names) or "nothing"}' for kind, names in loaded.items())
    rank_zero_info(f'{weights} for the encoder of {name}: {summary}')
    return Inherited()


class Handover(NamedTuple):
    """Report of :func:`load_backbone`.

    Attributes:
        loaded: Names of the parts that were loaded.
        new: Names of the parts that were missing or did not fit.
        ignored: Names of the parts that the backbone does not use, with the reason.
        statistics: Mean and standard deviation that the loaded modalities were trained with.
        sources: Statistics by source, if they were trained on a mixture.
    """

    loaded: list[str]
    new: list[str]
    ignored: list[str]
    statistics: Statistics
    sources: Sources


def load_backbone(backbone: nn.Module, path: str | Path, modalities: Mapping[str, Modality]) -> Handover:
    """Load a checkpoint into a backbone part by part, and log which parts were loaded, new and ignored.

    A backbone has one part per modality (encoder, head, embedding) and one per shared
    module. A part is loaded only if the names and shapes of all its tensors and the bands of its
    modality match. A modality that the checkpoint lacks is new; it does not change the output for
    samples without it.

    Args:
        backbone: Backbone; its weights are modified.
        path: Checkpoint of a task, state dict (PyTorch or safetensors), or folder of
            :func:`.export_hub`. Only tensors and plain types are read.
        modalities: Modalities of *backbone*.

    Raises:
        FileNotFoundError: If *path* does not exist.
        ValueError: If it cannot be read safely, no part fits, or a modality had another unit.
    """
    state, hparams = read_checkpoint(path)
    own = backbone.state_dict()
    found, expected = _parts(add_missing(_strip(state, own), own), modalities), _parts(own, modalities)
    saved = hparams.get('modalities') or ()
    known = {m['name']: m for m in (saved.values() if isinstance(saved, Mapping) else saved)}
    bands = {name: list(m['bands']) for name, m in known.items()}
    _check_units({name: m.get('unit', 'unknown') for name, m in known.items()}, modalities, path)
    reasons = {}
    for part in (part for part in expected if part in found):
        reasons[part] = _difference(expected[part], found[part])
        wanted = list(modalities[part].bands) if part in modalities else None
        if not reasons[part] and wanted is not None and bands.get(part, wanted) != wanted:
            reasons[part] = f'bands {bands[part]} instead of {wanted}'
    loaded = [part for part, reason in reasons.items() if not reason]
    new = [part for part in expected if part not in loaded]
    ignored = [f'{part} ({reasons[part]})' if part in reasons else part for part in found if part not in loaded]
    named = {'loaded': loaded, 'new': new, 'ignored': ignored}
    summary = '; '.join(f'{kind}: {", ".join(names) or "nothing"}' for kind, names in named.items())
    if not loaded:
        hint = f', which was trained with backbone={hparams["backbone"]!r}' if 'backbone' in hparams else ''
        raise ValueError(f'no part of {path} fits the backbone, expected some of {list(expected)} ({summary}){hint}')
    backbone.load_state_dict({key: value for part in loaded for key, value in found[part].items()}, strict=False)
    rank_zero_info(f'Weights from {path}: {summary}')
    statistics = _loaded_statistics(hparams, loaded)
    sources = {
        source: {'data': entry.get('data') or '', **_loaded_statistics(entry, loaded)}
        for source, entry in (hparams.get('sources') or {}).items()
    }
    return Handover(loaded, new, ignored, statistics, {s: entry for s, entry in sources.items() if entry['mean']})


def _encoders(task: Any) -> Iterator[tuple[str, nn.Module]]:
    backbone = getattr(getattr(task, 'model', None), 'backbone', None)
    yield from getattr(backbone, 'encoders', nn.ModuleDict()).items()
    if (location := getattr(backbone, 'location', None)) is not None:
        yield LOCATION, location.encoder


def learning_rates(task: Any) -> dict[nn.Parameter, float]:
    """Return the factors of the learning rate of parameters whose encoders have a layer decay."""
    rates: dict[nn.Parameter, float] = {}
    for _, encoder in _encoders(task):
        for module in encoder.modules():
            if callable(own := getattr(module, 'learning_rates', None)):
                rates |= own()
    return rates


def describe_encoders(task: Any) -> str:
    """Return which weights the encoder of each modality has."""
    said = []
    for name, encoder in _encoders(task):
        origins = [str(module.origin) for module in encoder.modules() if getattr(module, 'origin', None) is not None]
        said.append(f'{name}: {"; ".join(origins) or "random weights"}')
    return '; '.join(said)


def export_hub(source: LightningModule | str | Path, folder: str | Path) -> None:
    """Write the backbone of a task in the layout of the Hugging Face hub: config.json and model.safetensors.

    Any task accepts the folder as ``weights``, and :func:`load_hub` loads it. Decoder,
    optimiser and losses are not included.

    Args:
        source: Task, or checkpoint of a task.
        folder: Output folder.

    Raises:
        FileNotFoundError: If *source* does not exist.
        ValueError: If it is not a checkpoint of one of our tasks, or cannot be read safely.
    """
    if isinstance(source, LightningModule):
        state, hparams = source.state_dict(), dict(source.hparams)
    else:
        state, hparams = read_checkpoint(source)
    config = {key: hparams.get(key) for key in KEPT}
    tensors = {key.removeprefix(PREFIX): value for key, value in state.items() if key.startswith(PREFIX)}
    if not tensors or config['modalities'] is None:
        raise ValueError(f'{source} has no backbone with hyper-parameters, expected a checkpoint of one of our tasks')
    source = source if isinstance(source, LightningModule) else str(source)
    write_hub(Path(folder).expanduser(), _build(config, tensors, source), config)


def load_hub(folder: str | Path) -> models.OmniSat:
    """Load the backbone in a folder of :func:`export_hub`, in evaluation mode.

    Its inputs are images normalised with ``mean`` and ``std`` of the configuration.

    Raises:
        FileNotFoundError: If one of the two files is missing.
        ValueError: If a file is damaged, or the files do not match.
    """
    config = read_config(Path(folder).expanduser())
    return _build(config, read_checkpoint(folder)[0], str(folder)).eval()


def _build(config: Mapping[str, Any], tensors: Mapping[str, Tensor], source: LightningModule | str) -> models.OmniSat:
    try:
        modalities, arguments = as_modalities(config['modalities']), config['backbone_args'] or {}
        _check_size(arguments, tensors)
        sizes = config['patch_size'], config['label_gsd']
        with checkpoint_encoders(source) if isinstance(source, str) else nullcontext(), limited_size(source):
            backbone = make_backbone(config['backbone'], modalities, *sizes, arguments)
        backbone.load_state_dict(tensors)
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        first = ' '.join(str(error).split())[:300]
        source = source if isinstance(source, str) else type(source).__name__
        raise ValueError(f'{source} holds no backbone that {CONFIG} describes: {first}') from error
    return backbone


def _check_size(arguments: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Reject a configuration of a much larger model than that of the tensors, before memory is allocated."""
    sizes = {name: arguments.get(name, 1) for name in ('embed_dim', 'depth')}
    stored = sum(tensor.numel() for tensor in tensors.values())
    if all(isinstance(value, int) for value in sizes.values()) and sizes['depth'] * sizes['embed_dim'] ** 2 > stored:
        raise ValueError(f'{sizes} is a larger model than that of the {stored} stored numbers')


def _loaded_statistics(hparams: Mapping[str, Any], loaded: list[str]) -> Statistics:
    return {
        kind: {name: list(numbers) for name, numbers in (hparams.get(kind) or {}).items() if name in loaded}
        for kind in KINDS
    }


def _strip(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of the backbone, without the prefix under which most names match."""
    prefixes = sorted({key.removesuffix(name) for key in state for name in own if key.endswith(name)}) or ['']
    shares = [{k.removeprefix(p): v for k, v in state.items() if k.startswith(p)} for p in prefixes]
    return max(shares, key=lambda share: len(share.keys() & own.keys()))


def _parts(state: Mapping[str, Tensor], modalities: Mapping[str, Modality]) -> dict[str, dict[str, Tensor]]:
    names = {key.split('.')[1] for key in state if key.startswith('encoders.')} | {*modalities, LOCATION}
    parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, value in state.items():
        path = key.split('.')
        own = (step for holder, step in pairwise(path) if holder in _BY_MODALITY and step in names)
        parts[next(own, path[0])][key] = value
    return dict(parts)


def _check_units(trained: Mapping[str, str], modalities: Mapping[str, Modality], path: str | Path) -> None:
    for name, unit in trained.items():
        own = modalities[name].unit if name in modalities else 'unknown'
        if 'unknown' not in (unit, own) and unit != own:
            raise ValueError(
                f'{path} was trained on {name!r} with the unit {unit!r}, but that of the data is {own!r}, expected the '
                f'same; convert the data, or rename the modality'
            )


def _difference(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    for key in sorted(expected.keys() | found.keys()):
        here, there = (tuple(state[key].shape) if key in state else 'missing' for state in (expected, found))
        if here != there:
            return f'{key} is {there} instead of {here}'
    return ''
