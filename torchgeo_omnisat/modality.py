# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Description of an image source: bands, GSD, kind, unit and wavelengths."""

import keyword
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Literal, get_args

#: Kind of sensor, or ``'location'``, see :meth:`Modality.location`.
Kind = Literal['optical', 'radar', 'elevation', 'thermal', 'embedding', 'other', 'location']
#: Units of pixels: surface reflectance from 0 to 1, digital numbers (such as reflectance x 10000),
#: radar backscatter in decibels or in linear power, metres.
Unit = Literal['reflectance', 'dn', 'db', 'power', 'metres', 'unknown']

#: Name of the modality without images; see :meth:`Modality.location`.
LOCATION = 'location'

#: Attributes of ``torch.nn.ModuleDict`` and ``ParameterDict``, which hold parts of a model by modality name; tested
#: against torch.
_MODULE_DICT = (
    'add_module apply bfloat16 buffers call_super_init children clear compile copy cpu cuda double dump_patches eval '
    'extra_repr float forward fromkeys get get_buffer get_extra_state get_parameter get_submodule half ipu items keys '
    'load_state_dict modules mtia named_buffers named_children named_modules named_parameters parameters pop popitem '
    'register_backward_hook register_buffer register_forward_hook register_forward_pre_hook '
    'register_full_backward_hook register_full_backward_pre_hook register_load_state_dict_post_hook '
    'register_load_state_dict_pre_hook register_module register_parameter register_state_dict_post_hook '
    'register_state_dict_pre_hook requires_grad_ set_extra_state set_submodule setdefault share_memory state_dict to '
    'to_empty train training type update values xpu zero_grad'
)
#: Names of the parts of a model and of the other keys of a sample.
_PARTS = 'backbone decoder encoder encoders fusion head heads label mask model modalities prediction'
#: Maximum number of bands of a modality.
MOST_BANDS = 10_000
#: Maximum GSD of the labels over that of finer maps of fields.
MOST_FINER = 64
_RESERVED = frozenset(_MODULE_DICT.split()) | frozenset(_PARTS.split())


@dataclass(frozen=True)
class Modality:
    """Description of an image source: its bands, its GSD, and whether it is a time series.

    The keys of a batch are derived from the name (see :mod:`torchgeo_omnisat.batch`). Datasets may
    provide the same sensor with other bands or another GSD, so each dataset declares its modalities.
    Statistics are not part of a modality, because they depend on the data.

    Args:
        name: Short name in lower case, such as ``'s2'``.
        bands: Band names in the order of the channels.
        gsd: Ground sampling distance (GSD) in metres.
        temporal: Whether one sample is a time series.
        kind: Kind of sensor; None if unknown, which disables features that depend on it.
        unit: Unit of the pixels of a sample, before normalisation.
        wavelengths: Central wavelength of each band in nanometres; None if unknown.

    Raises:
        ValueError: If *name* cannot be part of a key or names a part of a model, *bands* is empty or
            has duplicates, *gsd* is not positive, *kind* or *unit* is unknown, or *wavelengths* is not
            one positive number per band.
    """

    name: str
    bands: tuple[str, ...]
    gsd: float
    temporal: bool
    kind: Kind | None = None
    unit: Unit = 'unknown'
    wavelengths: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.bands, str):
            raise ValueError(f'bands of {self.name!r} must be a sequence of names, got {self.bands!r}')
        object.__setattr__(self, 'bands', tuple(self.bands))
        object.__setattr__(self, 'gsd', float(self.gsd))
        if not re.fullmatch('[a-z][a-z0-9_]*', self.name):
            raise ValueError(
                f'modality name {self.name!r} must be a lower-case letter followed by '
                'lower-case letters, digits or underscores'
            )
        if self.name in _RESERVED or keyword.iskeyword(self.name):
            raise ValueError(
                f'modality name {self.name!r} is reserved (for a method of torch.nn.ModuleDict, a part of the model, '
                f"a key of a sample or a Python keyword), expected another such as '{self.name}_1'"
            )
        if not self.bands or len(set(self.bands)) < len(self.bands):
            raise ValueError(f'bands of {self.name!r} must be distinct and at least one, got {self.bands}')
        if len(self.bands) > MOST_BANDS:
            raise ValueError(f'bands of {self.name!r} are {len(self.bands)}, expected at most {MOST_BANDS}')
        if LOCATION in (self.name, self.kind):
            facts = self.name, self.kind, self.bands, self.gsd, self.temporal
            if facts != (LOCATION, LOCATION, ('longitude', 'latitude'), math.inf, False):
                raise ValueError(
                    f'name, kind, bands, gsd and temporal are {facts}, expected Modality.location(), or another name '
                    'and kind for a source of images'
                )
        if self.kind != LOCATION and not (math.isfinite(self.gsd) and self.gsd > 0):
            raise ValueError(f'gsd of {self.name!r} must be a positive number of metres, got {self.gsd}')
        self._check_facts()

    def _check_facts(self) -> None:
        if self.kind is not None and self.kind not in get_args(Kind):
            raise ValueError(f'kind of {self.name!r} is {self.kind!r}, expected one of {list(get_args(Kind))}')
        if self.unit not in get_args(Unit):
            raise ValueError(f'unit of {self.name!r} is {self.unit!r}, expected one of {list(get_args(Unit))}')
        if self.wavelengths is None:
            return
        wavelengths = tuple(float(value) for value in self.wavelengths)
        object.__setattr__(self, 'wavelengths', wavelengths)
        if len(wavelengths) != len(self.bands) or not all(math.isfinite(nm) and nm > 0 for nm in wavelengths):
            raise ValueError(
                f'wavelengths of {self.name!r} are {wavelengths}, expected one positive number of nanometres for each '
                f'of the bands {self.bands}'
            )

    @classmethod
    def location(cls) -> 'Modality':
        """Return the modality of the location of a tile, which has no image.

        A batch has it as ``coordinates``, longitude and latitude in degrees; ``valid_location`` ``(B, 1)`` withholds
        it. A model that is built with it adds one token to those of every ground patch (see :class:`.OmniSat`).
        """
        return cls(LOCATION, ('longitude', 'latitude'), math.inf, temporal=False, kind='location')

    @property
    def image_key(self) -> str:
        """Key of the pixels: ``(B, T, C, H, W)`` if temporal, else ``(B, C, H, W)``."""
        return f'image_{self.name}'

    @property
    def dates_key(self) -> str:
        """Key of the dates: ``(B, T)``, days since 1970-01-01."""
        return f'dates_{self.name}'

    @property
    def valid_key(self) -> str:
        """Key of the flags of images that were acquired and are usable: ``(B, T)``."""
        return f'valid_{self.name}'

    @property
    def keys(self) -> tuple[str, str, str]:
        """The three keys of this modality: image, dates, valid."""
        return self.image_key, self.dates_key, self.valid_key

    def pixels(self, metres: float) -> int:
        """Return the number of pixels along a length on the ground.

        Args:
            metres: Length in metres.

        Raises:
            ValueError: If the length is not a whole number of pixels.
        """
        count = metres / self.gsd
        if not math.isfinite(count) or count < 0.5 or abs(count - round(count)) > 1e-6 * max(1.0, count):
            raise ValueError(f'{metres} m is not a whole number of {self.gsd} m pixels of {self.name!r}')
        return round(count)

    def select(self, bands: Sequence[str]) -> 'Modality':
        """Return this modality with some of its bands, in the given order.

        Raises:
            ValueError: If a band is unknown.
        """
        unknown = [band for band in bands if band not in self.bands]
        if unknown:
            raise ValueError(f'unknown bands {unknown} of {self.name!r}, expected some of {list(self.bands)}')
        wavelengths = self.wavelengths and tuple(self.wavelengths[self.bands.index(band)] for band in bands)
        return replace(self, bands=tuple(bands), wavelengths=wavelengths)

    def agrees(self, other: 'Modality') -> bool:
        """Return whether two modalities can describe the same source.

        Args:
            other: Another modality, such as that of a checkpoint.

        Returns:
            True if name, bands, GSD and ``temporal`` are equal, and kind, unit and wavelengths are equal
            where both are known. Wavelengths may differ by 2 %.
        """
        if (self.name, self.bands, self.gsd, self.temporal) != (other.name, other.bands, other.gsd, other.temporal):
            return False
        units, kinds = {self.unit, other.unit} - {'unknown'}, {self.kind, other.kind} - {None}
        wavelengths = zip(self.wavelengths or (), other.wavelengths or (), strict=False)
        # Catalogues round: 842 nm and 832.8 nm are both B08 of Sentinel-2; 864.7 nm is B8A.
        alike = all(math.isclose(own, its, rel_tol=0.02) for own, its in wavelengths)
        return len(units) < 2 and len(kinds) < 2 and alike

    def joined(self, other: 'Modality') -> 'Modality':
        """Return this modality with its unknown kind, unit and wavelengths taken from *other*."""
        return replace(
            self,
            kind=self.kind or other.kind,
            unit=other.unit if self.unit == 'unknown' else self.unit,
            wavelengths=self.wavelengths or other.wavelengths,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the known fields as plain types, so that checkpoints load with ``weights_only=True``."""
        facts: dict[str, Any] = {'name': self.name, 'bands': list(self.bands), 'gsd': self.gsd}
        facts['temporal'] = self.temporal
        if self.kind is not None:
            facts['kind'] = self.kind
        if self.unit != 'unknown':
            facts['unit'] = self.unit
        if self.wavelengths is not None:
            facts['wavelengths'] = list(self.wavelengths)
        return facts


def as_modalities(
    modalities: Iterable[Modality | Mapping[str, Any]] | Mapping[str, Modality | Mapping[str, Any]],
) -> dict[str, Modality]:
    """Return modalities by name.

    Args:
        modalities: Modalities or their dictionaries (see :meth:`Modality.as_dict`), as a sequence
            or as a mapping by name.

    Raises:
        ValueError: If there are none, two have the same name, or a key of the mapping is not the name.
    """
    keys = list(modalities) if isinstance(modalities, Mapping) else None
    values = modalities.values() if isinstance(modalities, Mapping) else modalities
    found = [m if isinstance(m, Modality) else Modality(**m) for m in values]
    for key, modality in zip(keys or (), found, strict=False):
        if key != modality.name:
            raise ValueError(f'modality {modality.name!r} is under the key {key!r}, expected its name as the key')
    by_name = {m.name: m for m in found}
    if not found or len(by_name) < len(found):
        raise ValueError(f'expected one or more modalities of distinct names, got {[m.name for m in found]}')
    return by_name


#: Subsets to score: ``'all'``, ``'auto'`` (see :func:`subsets`), or a list of names.
Which = Literal['auto', 'all'] | Sequence[str]


def half_up(count: float) -> int:
    """Return the nearest integer; halves, with a tolerance of 1e-6, are rounded up, not to even."""
    return math.floor(count + 0.5 + 1e-6)


def finer_factor(label_gsd: float, gsd: float | None, name: str) -> int:
    """Return the GSD of the labels over that of finer pixels, which is a whole number; 1 if the latter is None.

    Args:
        label_gsd: GSD of the labels in metres.
        gsd: GSD of the finer pixels in metres.
        name: Argument that sets it, for errors.

    Raises:
        ValueError: If it is not a whole number up to :data:`MOST_FINER`.
    """
    ratio = 1.0 if gsd is None else label_gsd / gsd if gsd > 0 else 0.0
    factor = round(ratio) if ratio <= MOST_FINER + 1 else 0
    if not 1 <= factor <= MOST_FINER or abs(ratio - factor) > 1e-6 * factor:
        raise ValueError(
            f'{name} is {gsd} m, expected the GSD of the labels, {label_gsd:g} m, divided by a whole number from 1 '
            f'to {MOST_FINER}'
        )
    return factor


def subsets(names: Iterable[str], which: Which = 'auto') -> list[tuple[str, ...]]:
    """Return non-empty subsets of the modalities, the largest first, each in the order of *names*.

    Args:
        names: Names of the M modalities.
        which: ``'all'`` for all 2^M - 1 subsets. ``'auto'`` is the same for up to five modalities; for
            more it is the full set, the sets without one modality, and the single modalities, 2 M + 1
            in all. Or a list of names such as ``'s1a+s2'``, to which the full set is added.

    Raises:
        ValueError: If *which* is another string, or a subset has no modality or an unknown one.
    """
    names = tuple(names)
    every = (subset for size in range(len(names), 0, -1) for subset in combinations(names, size))
    if which == 'all' or (which == 'auto' and len(names) <= 5):
        return list(every)
    if which == 'auto':
        return [names, *combinations(names, len(names) - 1), *combinations(names, 1)]
    if isinstance(which, str):
        raise ValueError(f"subsets is {which!r}, expected 'auto', 'all' or a list of names such as 's1a+s2'")
    requested = [set(name.split('+')) for name in which]
    if unknown := [name for name, parts in zip(which, requested, strict=True) if not parts <= set(names)]:
        raise ValueError(f'subsets has {unknown}, expected some of {list(names)}, joined as {subset_name(names)!r}')
    chosen = {names, *(tuple(name for name in names if name in parts) for parts in requested)}
    return sorted(chosen, key=lambda subset: (-len(subset), [names.index(name) for name in subset]))


def subset_name(names: Iterable[str]) -> str:
    """Return the name of a subset in logs and tables, such as ``'s1a+s2+spot'``."""
    return '+'.join(sorted(names))
