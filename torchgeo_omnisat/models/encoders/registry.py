# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Registry of encoders, and specifications of encoders in plain types."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from typing import Any, NamedTuple, TypeVar

from torch import nn
from torchvision.models._api import WeightsEnum
from yaml import YAMLError

from ..._moved import old_names
from ...modality import Modality
from ...utils.plurals import counted
from ...utils.reading import load_config

#: Encoder as a name, weights, a specification (see :func:`register_encoder`), a module, or a class or function that
#: takes the number of bands or, if its first parameter is called ``modality``, the modality.
type Encoder = str | WeightsEnum | Mapping[str, Any] | nn.Module | Callable[..., nn.Module]
#: Class or function that builds an encoder.
Builder = TypeVar('Builder', bound=Callable[..., nn.Module])


class Registered(NamedTuple):
    """Entry of the registry.

    Attributes:
        build: Class or function that builds the encoder.
        temporal: Whether it encodes time series (True), single images (False) or both (None).
        sizes: Parameters that take the values of the model: ``widths``, ``image_widths``, ``dim``, ``checkpointing``.
        per_date: Whether an encoder of single images encodes each date of a time series.
    """

    build: Callable[..., nn.Module]
    temporal: bool | None
    sizes: tuple[str, ...]
    per_date: bool = False


#: Registered encoders by name.
ENCODERS: dict[str, Registered] = {}
#: Arguments of timm that name files to read.
_FILES = ('checkpoint_path', 'pretrained_cfg', 'pretrained_cfg_overlay', 'cache_dir')
#: Name of a checkpoint if encoders are built as it describes them, else None.
_checkpoint: ContextVar[str | None] = ContextVar('checkpoint', default=None)


def register_encoder(
    name: str, temporal: bool | None = None, sizes: tuple[str, ...] = (), per_date: bool = False
) -> Callable[[Builder], Builder]:
    """Register an encoder under a name, which ``encoders={'s2': name}`` of :class:`.OmniSat` builds.

    The decorated class or function is called with the number of bands, or with the modality if its first parameter is
    called ``modality``. The encoder has ``channels`` and ``strides`` of its feature maps, fine to coarse, and maps
    ``(image, dates, valid)``, or ``(image, valid)`` for a single image, to a list of maps. NaN is nodata. An encoder of
    time series with the attribute ``takes_coordinates`` set to True also takes ``coordinates``, longitude and latitude
    ``(B, 2)`` in degrees, NaN where unknown; batches without them omit the argument.

    Keyword arguments come from the specification: ``{'name': name, 'depth': 3}`` passes ``depth=3``. An encoder with
    pre-trained weights also has a parameter ``load``, which is False when a checkpoint provides all weights, and an
    attribute ``origin`` (``Origin``).

    Args:
        name: Name of the encoder; a registered name is replaced.
        temporal: Whether it encodes time series (True), single images (False) or both (None).
        sizes: Parameters that take the values of the model: ``widths``, ``image_widths``, ``dim``, ``checkpointing``.
        per_date: Whether an encoder of single images encodes each date of a time series, followed by temporal
            attention (``PerDate``). It then has a method ``encode``, which maps valid images to a list of maps.

    Returns:
        Decorator of a class or function.
    """

    def register(build: Builder) -> Builder:
        ENCODERS[name] = Registered(build, temporal, tuple(sizes), per_date)
        return build

    return register


class Origin(NamedTuple):
    """Source of the weights of an encoder.

    Attributes:
        weights: Name of the weights.
        tensors: Number of tensors that were loaded; 0 if a checkpoint provides them.
        source: File or address.
        licence: Licence of the weights; None if unknown.
    """

    weights: str
    tensors: int
    source: str
    licence: str | None = None

    def __str__(self) -> str:
        """Return the description that ``fit`` prints."""
        if not self.tensors:
            return f'weights of the checkpoint ({self.weights} before)'
        return (
            f'{counted(self.tensors, "tensor")} of {self.weights} from {self.source}, licence: '
            f'{self.licence or "unknown"}'
        )


@contextmanager
def checkpoint_encoders(source: str) -> Iterator[None]:
    """Build encoders inside this context as a checkpoint describes them.

    The specification is untrusted, so it imports no class and reads no file: ``class_path`` must name a
    class that is registered in this process, and pre-trained weights are not loaded, because the checkpoint has them.
    """
    token = _checkpoint.set(source)
    try:
        yield
    finally:
        _checkpoint.reset(token)


def builds_checkpoint() -> bool:
    """Return whether encoders are built as a checkpoint describes them."""
    return _checkpoint.get() is not None


def as_specification(name: str, encoder: Encoder) -> Encoder:
    """Return a specification with the keys that apply; modules and functions are returned unchanged.

    Args:
        name: Name of the modality in errors.
        encoder: See :data:`Encoder`.

    Raises:
        ValueError: If a specification is malformed, or names a class that a checkpoint may not import.
    """
    if isinstance(encoder, WeightsEnum):
        encoder = {'weights': encoder}
    if not isinstance(encoder, Mapping):
        return encoder
    spec: dict[str, Any] = dict(encoder)
    source = _checkpoint.get()
    allowed = {'class_path', 'init_args'}
    if 'class_path' in spec:
        if extra := sorted(set(map(str, spec)) - allowed):
            raise ValueError(f'encoder of {name!r} has {extra} beside class_path, expected init_args alone')
        if not isinstance(spec['class_path'], str) or not isinstance(spec.get('init_args') or {}, Mapping):
            raise ValueError(f'encoder of {name!r} is {spec}, expected a class_path and init_args by name')
        refuse_import(name, spec['class_path'])
        return spec if source is None else without_loading(spec)
    if not {'name', 'weights'} & set(spec):
        raise ValueError(f'encoder of {name!r} is {spec}, expected a name, weights or a class_path')
    if source is not None:
        spec = without_loading(spec)
    return spec


def refuse_import(name: str, path: str) -> None:
    """Raise an error if a checkpoint names a class that is not registered."""
    source = _checkpoint.get()
    if source is not None and path not in registered_paths():
        raise ValueError(
            f'{source} names the class {path!r} as encoder of {name!r}, which is imported only if you name it too: '
            'expected the same backbone_args in your call, command line or configuration, or the class registered by '
            'register_encoder'
        )


def registered_paths() -> set[str]:
    """Return the import paths of the registered encoders, old and new."""
    return {path for entry in ENCODERS.values() for path in _import_paths(entry.build)}


def _import_paths(build: Callable[..., Any]) -> list[str]:
    return [f'{module}.{build.__qualname__}' for module in (build.__module__, *old_names(build.__module__))]


def import_path(build: Callable[..., Any]) -> str:
    """Return the path under which a class or function can be imported."""
    return f'{build.__module__}.{build.__qualname__}'


def without_loading(encoder: Any) -> Any:
    """Return a specification that builds the same encoder without loading its pre-trained weights.

    Args:
        encoder: Specification. Others, and those of a class that is not registered, are returned unchanged.
    """
    if not isinstance(encoder, Mapping):
        return encoder
    if 'class_path' in encoder:
        given: Any = encoder.get('init_args')
        known = isinstance(given, Mapping) and encoder['class_path'] in registered_paths()
        return {**encoder, 'init_args': without_loading(given)} if known else encoder
    kept = {key: without_loading(value) for key, value in encoder.items() if key not in _FILES}
    return {**kept, 'load': False} if kept.get('weights') is not None or kept.get('pretrained') else kept


def plain_encoders(arguments: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the arguments of a model whose weights are loaded, in plain types for a checkpoint.

    Classes become ``class_path``, weights their name. Encoders with pre-trained weights get ``load: False``, so that
    the checkpoint is read without them.

    Args:
        arguments: Arguments of a builder, such as ``{'encoders': {'s2': 'ltae'}}``.
    """
    if not arguments or not isinstance(arguments.get('encoders'), Mapping):
        return dict(arguments) if arguments is not None else None
    encoders = {name: without_loading(_plain(encoder)) for name, encoder in arguments['encoders'].items()}
    return {**arguments, 'encoders': encoders}


def _plain(encoder: Any) -> Any:
    if isinstance(encoder, WeightsEnum):
        return {'weights': str(encoder)}
    if isinstance(encoder, Mapping):
        return {key: str(value) if isinstance(value, WeightsEnum) else value for key, value in encoder.items()}
    if callable(encoder) and not isinstance(encoder, nn.Module) and hasattr(encoder, '__qualname__'):
        names = (name for name, entry in ENCODERS.items() if entry.build is encoder)
        return next(names, None) or {'class_path': import_path(encoder)}
    return encoder


def class_paths(value: Any) -> set[str]:
    """Return every ``class_path`` in hyper-parameters of plain types, also in strings that jsonargparse would parse.

    Raises:
        ValueError: If a string expands to too many values.
    """
    if isinstance(value, str) and ':' in value:
        try:
            value = load_config(value, f'hyper-parameter {value[:40]!r}')
        except YAMLError:
            return set()
    if isinstance(value, Mapping):
        own = {value['class_path']} if isinstance(value.get('class_path'), str) else set()
        return own.union(*map(class_paths, value.values()))
    several = isinstance(value, list | tuple | set | frozenset)
    return set().union(*map(class_paths, value)) if several else set()


def import_class(name: str, path: str) -> Callable[..., nn.Module]:
    """Import the class or function of a ``class_path``.

    Args:
        name: Name of the modality in errors.
        path: Path such as ``'package.module.Class'``.

    Raises:
        ValueError: If it does not exist or cannot be called.
    """
    for entry in ENCODERS.values():
        if path in _import_paths(entry.build):
            return entry.build
    module, _, attribute = path.rpartition('.')
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f'class_path {path!r} of the encoder of {name!r} cannot be imported ({error}), expected '
            "'package.module.Class' of an installed package or of a file in the current folder"
        ) from error
    if not callable(found):
        raise ValueError(f'class_path {path!r} of the encoder of {name!r} is not a class, expected a torch.nn.Module')
    build: Callable[..., nn.Module] = found
    return build


def call_builder(modality: Modality, build: Callable[..., nn.Module], arguments: Mapping[str, Any]) -> nn.Module:
    """Call a builder with the modality, or the number of its bands, and validate the encoder.

    Raises:
        ValueError: If the arguments do not fit, or the result is not an encoder.
    """
    label = getattr(build, '__qualname__', repr(build))
    try:
        parameters = inspect.signature(build).parameters
    except (TypeError, ValueError):
        parameters = {}  # type: ignore[assignment]
    own = next(iter(parameters), None)
    first = modality if own == 'modality' else len(modality.bands)
    arguments = {key: value for key, value in arguments.items() if key != own or value is not None}  # of jsonargparse
    if parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        if 'load' not in parameters:
            arguments = {key: value for key, value in arguments.items() if key != 'load'}
        if unknown := sorted(set(arguments) - set(parameters)):
            raise ValueError(
                f'{label}, the encoder of {modality.name!r}, has no arguments {unknown}, expected some of '
                f'{list(parameters)[1:]}'
            )
    encoder = build(first, **arguments)
    return check_encoder(modality.name, encoder)


def check_encoder(name: str, encoder: Any) -> nn.Module:
    """Return an encoder; raise ``ValueError`` if it is not a module with ``channels`` and ``strides``."""
    sizes = [getattr(encoder, attribute, None) for attribute in ('channels', 'strides')]
    if not isinstance(encoder, nn.Module) or not all(isinstance(size, tuple | list) and size for size in sizes):
        raise ValueError(
            f'encoder of {name!r} is a {type(encoder).__name__} with channels {sizes[0]} and strides {sizes[1]}, '
            'expected a torch.nn.Module with one of each for every feature map'
        )
    return encoder
