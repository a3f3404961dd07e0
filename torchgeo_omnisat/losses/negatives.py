# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Tiles that are too close on the ground to be negatives of each other."""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..modality import LOCATION, subset_name
from ..utils import distributed as processes
from ..utils.tensors.coordinates import EARTH_RADIUS, unit_vectors
from ..utils.tensors.devices import wide

#: Default distance in metres below which tiles are not negatives of each other in pairs with the location.
LOCATION_DISTANCE = 100_000.0


def check_distances(within: float | Mapping[str, float] | None) -> None:
    """Raise ValueError if *exclude_within*, or one of its distances, is negative, infinite or not a number."""
    expected = 'expected distances in metres, finite and at least 0'
    if not isinstance(within, Mapping):
        if within is not None and not 0 <= float(within) < math.inf:
            raise ValueError(f'exclude_within is {within}, {expected}')
    elif wrong := {name: value for name, value in within.items() if not 0 <= float(value) < math.inf}:
        raise ValueError(f'exclude_within has {wrong}, {expected}')


class NegativeDistances:
    """Distances on the ground below which tiles are not negatives of each other, by pair of modalities.

    Args:
        within: Distance in metres of all pairs of modalities with images, or distances by pair or by modality.
        names: Modalities to compare, also the location.

    Raises:
        ValueError: If *within* has an unknown name or a negative distance.
    """

    def __init__(self, within: float | Mapping[str, float], names: Sequence[str]) -> None:
        self.within, self.pairs = within, list(combinations(names, 2))
        check_distances(within)
        known = [*names, *map(subset_name, self.pairs)]
        if isinstance(within, Mapping) and (unknown := [name for name in within if name not in known]):
            raise ValueError(f'exclude_within has {unknown}, expected some of {known}')

    def of(self, *pair: str) -> float:
        """Return the distance of a pair of modalities in metres."""
        default = LOCATION_DISTANCE if LOCATION in pair else 0.0
        if not isinstance(self.within, Mapping):
            return default if LOCATION in pair else float(self.within)
        if (name := subset_name(pair)) in self.within:
            return float(self.within[name])
        return max((float(self.within[name]) for name in pair if name in self.within), default=default)

    def exclude(self, bounds: Float[Tensor, 'b c'], counts: Sequence[int]) -> Bool[Tensor, 'b g']:
        """Return which tiles are not negatives in any pair of modalities with images, see :func:`too_close`."""
        within = self.within
        if isinstance(within, Mapping):
            within = max((self.of(*pair) for pair in self.pairs if LOCATION not in pair), default=0.0)
        return too_close(bounds, within, counts)

    def exclude_by_pair(
        self, bounds: Float[Tensor, 'b c'], places: Float[Tensor, 'b 2'], counts: Sequence[int], device: torch.device
    ) -> Bool[Tensor, 'p b g']:
        """Return on *device* which tiles are not negatives in each pair of modalities.

        *bounds* and *counts* are as in :func:`too_close`, and *places* are coordinates in degrees.
        """
        found: dict[tuple[bool, float], Tensor] = {}
        keys = [(LOCATION in pair, self.of(*pair)) for pair in self.pairs]
        for located, within in dict.fromkeys(keys):
            flags = too_close(bounds, 0.0 if located else within, counts).to(device, non_blocking=True)
            if located:
                flags = flags | too_close_places(places, within, counts).to(device, non_blocking=True)
            found[located, within] = flags
        return torch.stack([found[key] for key in keys])


def too_close(
    bounds: Float[Tensor, 'b c'], within: float = 0.0, counts: Sequence[int] | None = None
) -> Bool[Tensor, 'b g']:
    """Return which tiles of all ranks overlap or are too close to be negatives.

    Args:
        bounds: Positions of B tiles in metres, in one CRS: centroids (x, y), boxes (xmin, ymin, xmax,
            ymax), or the bounds of TorchGeo (xmin, xmax, xres, ymin, ymax, yres, tmin, tmax, tres). A
            tile with NaN is not close to any other.
        within: Minimum distance of centroids in metres; boxes that overlap are always too close.
        counts: Number of tiles of each rank, if known.

    Returns:
        Flags ``(B, G)`` for each of the G tiles of all ranks, in the order of ranks; False for the
        tile itself.

    Raises:
        ValueError: If *bounds* has another number of columns, or *within* is negative.
    """
    columns = {2: [0, 1, 0, 1], 4: [0, 1, 2, 3], 9: [0, 3, 1, 4]}
    if bounds.ndim != 2 or bounds.shape[-1] not in columns:
        raise ValueError(f'bounds is {tuple(bounds.shape)}, expected (B, 2), (B, 4) or (B, 9): centroids or boxes')
    if not within >= 0:
        raise ValueError(f'within is {within}, expected a distance in metres, at least 0')
    boxes = torch.stack([bounds[:, column] for column in columns[bounds.shape[-1]]], 1).to(wide(bounds.device))
    parts = processes.gather(boxes, counts)
    low, high = torch.cat(parts).unflatten(-1, (2, 2)).unbind(1)
    own = torch.arange(len(low), device=boxes.device)[processes.own_rows([len(part) for part in parts])]
    overlap = ((low[own].unsqueeze(1) < high) & (low < high[own].unsqueeze(1))).all(-1)
    centre = (low + high) / 2
    near = (centre[own].unsqueeze(1) - centre).norm(dim=-1) < within
    return (overlap | near) & (own.unsqueeze(1) != torch.arange(len(low), device=own.device))


def too_close_places(
    coordinates: Float[Tensor, 'b 2'], within: float, counts: Sequence[int] | None = None
) -> Bool[Tensor, 'b g']:
    """Return which tiles of all ranks are closer than a distance on the ground, whatever their CRS.

    Args:
        coordinates: Longitude and latitude of B tiles in degrees. A tile with NaN is not close to any other.
        within: Minimum distance along a great circle in metres.
        counts: Number of tiles of each rank, if known.

    Returns:
        Flags ``(B, G)`` as those of :func:`too_close`.

    Raises:
        ValueError: If *within* is negative.
    """
    if not within >= 0:
        raise ValueError(f'within is {within}, expected a distance in metres, at least 0')
    parts = processes.gather(unit_vectors(coordinates), counts)
    vectors = torch.cat(parts)
    own = torch.arange(len(vectors), device=vectors.device)[processes.own_rows([len(part) for part in parts])]
    chord = (vectors[own].unsqueeze(1) - vectors).norm(dim=-1)
    near = 2 * 1000 * EARTH_RADIUS * (chord / 2).clamp(max=1).asin() < within
    return near & (own.unsqueeze(1) != torch.arange(len(vectors), device=own.device))
