# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Hyper-parameters in plain types, taken from a datamodule where a task has none."""

from collections.abc import Collection, Mapping
from typing import Any, get_args, get_type_hints

from ...modality import LOCATION, Modality, as_modalities
from ..normalization import KINDS, plain_sources, plain_statistics


def taken_from(datamodule: Any, task: Any) -> dict[str, Any]:
    """Return the hyper-parameters that a task lacks from the attributes of a datamodule.

    Args:
        datamodule: Datamodule, or None.
        task: Task with ``hparams``, ``required`` and ``optional``.

    Raises:
        ValueError: If a required one is missing.
    """
    unset = [name for name in (*task.required, *task.optional) if task.hparams[name] is None]
    found = {name: getattr(datamodule, name, None) for name in unset}
    missing = [name for name in task.required if name in found and found[name] is None]
    if missing:
        who = 'there is no datamodule' if datamodule is None else f'{type(datamodule).__name__} does not have them'
        raise ValueError(
            f'{type(task).__name__} has no {missing} and {who}: expected these arguments, or a datamodule '
            f'with the attributes {[*task.required, *task.optional, "mean", "std"]}, '
            'such as those of torchgeo_omnisat.datamodules'
        )
    return {name: plain_value(type(task), name, value) for name, value in found.items()}


def check_modalities(who: str, theirs: Mapping[str, Modality], ours: Mapping[str, Modality]) -> None:
    """Validate that the modalities of a datamodule, called *who*, are those of a model.

    Raises:
        ValueError: If the model lacks one of them, or was built for one with other facts.
    """
    for name, modality in theirs.items():
        if name not in ours:
            raise ValueError(
                f'{who} has {name!r}, but the model was built for only {list(ours)}: rename it, or leave it out'
                f' with modalities: [{", ".join(sorted({*ours} & {*theirs}))}]'
            )
        if not ours[name].agrees(modality):
            changes = [
                f'{fact} {getattr(modality, fact)} instead of {getattr(ours[name], fact)}'
                for fact in ('bands', 'gsd', 'temporal', 'kind', 'unit', 'wavelengths')
                if getattr(modality, fact) != getattr(ours[name], fact)
            ]
            raise ValueError(f'{name!r} of {who} has {"; ".join(changes)}, for which the model was built')


def location_as_encoder(modalities: Any, arguments: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return hyper-parameters with the location among the encoders, so that *modalities* are those with images."""
    images = [entry for entry in modalities or () if entry['name'] != LOCATION]
    if len(images) == len(modalities or ()):
        return {}
    encoders = {LOCATION: 'scaled', **((arguments or {}).get('encoders') or {})}
    return {'modalities': images, 'backbone_args': {**(arguments or {}), 'encoders': encoders}}


def plain_value(task: type, name: str, value: Any) -> Any:
    """Convert a hyper-parameter of a type of task to plain types, so that a checkpoint loads safely."""
    if value is None:
        return None
    if name == 'modalities':
        return [modality.as_dict() for modality in as_modalities(value).values()]
    if name in KINDS:
        return plain_statistics(name, value)
    if name == 'sources':
        return plain_sources(value)
    hints = (get_type_hints(vars(cls)['__init__']) for cls in task.__mro__ if '__init__' in vars(cls))
    return as_plain(value, next((found[name] for found in hints if name in found), None))


def as_plain(value: Any, hint: Any = None) -> Any:
    """Convert a hyper-parameter, of the type *hint* if known, to plain types."""
    if value is None:
        return None
    for kind in (int, float, str):
        if kind in (hint, *get_args(hint)):
            return kind(value)
    if any(get_args(option) == (str,) for option in (hint, *get_args(hint))):
        return [str(item) for item in value]
    if hasattr(value, 'tolist'):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: as_plain(item) for key, item in value.items()}
    if isinstance(value, Collection) and not isinstance(value, str):
        return [as_plain(item) for item in value]
    return value
