# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Modality: what an image source is."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any


@dataclass(frozen=True)
class Modality:
    """One image source: its bands, the ground a pixel covers, and whether it repeats.

    Every key of a batch is built from here (see :mod:`torchgeo_omnisat.batch`). The
    same sensor may come with other bands or pixels elsewhere, so a modality belongs to
    the dataset that declares it. Its statistics do not: they belong to the data that
    they were measured on.

    Args:
        name: Short name in lower case, such as ``'s2'``.
        bands: Band names in the order of the channels.
        gsd: Ground sampling distance, in metres a pixel.
        temporal: Whether one sample is a series of dates.

    Raises:
        ValueError: If *name* cannot be part of a key, *bands* is empty or repeats
            itself, or *gsd* is not a positive length.
    """

    name: str
    bands: tuple[str, ...]
    gsd: float
    temporal: bool

    def __post_init__(self) -> None:
        """Refuse what could not become a key or a size."""
        if isinstance(self.bands, str):
            raise ValueError(f'bands of {self.name!r} must be a sequence of names, got {self.bands!r}')
        object.__setattr__(self, 'bands', tuple(self.bands))
        object.__setattr__(self, 'gsd', float(self.gsd))
        if not re.fullmatch('[a-z][a-z0-9_]*', self.name):
            raise ValueError(
                f'modality name {self.name!r} must be a lower-case letter followed by '
                'lower-case letters, digits or underscores'
            )
        if not self.bands or len(set(self.bands)) < len(self.bands):
            raise ValueError(f'bands of {self.name!r} must be distinct and at least one, got {self.bands}')
        if not (math.isfinite(self.gsd) and self.gsd > 0):
            raise ValueError(f'gsd of {self.name!r} must be a positive number of metres, got {self.gsd}')

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
        """Key of the flags that say which images were acquired and are usable: ``(B, T)``."""
        return f'valid_{self.name}'

    @property
    def keys(self) -> tuple[str, str, str]:
        """The three keys of this modality: image, dates, valid."""
        return self.image_key, self.dates_key, self.valid_key

    def pixels(self, metres: float) -> int:
        """Number of pixels along a length on the ground.

        Args:
            metres: The length.

        Returns:
            The whole number of pixels that cover it.

        Raises:
            ValueError: If that is not a whole number of pixels.
        """
        count = metres / self.gsd
        if not math.isfinite(count) or count < 0.5 or abs(count - round(count)) > 1e-6 * max(1.0, count):
            raise ValueError(f'{metres} m is not a whole number of {self.gsd} m pixels of {self.name!r}')
        return round(count)

    def select(self, bands: Sequence[str]) -> 'Modality':
        """This modality with some of its bands, in the order that is asked for.

        Args:
            bands: Names of the bands to keep.

        Returns:
            A new modality.

        Raises:
            ValueError: If a band is unknown.
        """
        unknown = [band for band in bands if band not in self.bands]
        if unknown:
            raise ValueError(f'unknown bands {unknown} of {self.name!r}, expected some of {list(self.bands)}')
        return replace(self, bands=tuple(bands))

    def as_dict(self) -> dict[str, Any]:
        """Plain types alone, so that a checkpoint with a modality loads safely."""
        return {'name': self.name, 'bands': list(self.bands), 'gsd': self.gsd, 'temporal': self.temporal}


def as_modalities(
    modalities: Iterable[Modality | Mapping[str, Any]] | Mapping[str, Modality | Mapping[str, Any]],
) -> dict[str, Modality]:
    """Modalities by name, from objects or from their plain dictionaries.

    Args:
        modalities: Modalities, or what :meth:`Modality.as_dict` made of them. A mapping
            by name is accepted too.

    Returns:
        The modalities under their names, in the order given.

    Raises:
        ValueError: If two share a name, or there is none.
    """
    if isinstance(modalities, Mapping):
        modalities = modalities.values()
    found = [m if isinstance(m, Modality) else Modality(**m) for m in modalities]
    by_name = {m.name: m for m in found}
    if not found or len(by_name) < len(found):
        raise ValueError(f'expected one or more modalities of distinct names, got {[m.name for m in found]}')
    return by_name


def subsets(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Every subset of the modalities that is not empty, the largest first.

    Args:
        names: M names.

    Returns:
        The 2^M - 1 subsets, each in the order of *names*.
    """
    names = tuple(names)
    return [subset for size in range(len(names), 0, -1) for subset in combinations(names, size)]


def subset_name(names: Iterable[str]) -> str:
    """The name of a subset in logs and tables, such as ``'s1a+s2+spot'``."""
    return '+'.join(sorted(names))
