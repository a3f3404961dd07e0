# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Similarity of embeddings to those of given places, and change between two embedding maps."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyproj import Transformer

from ..tiling import Window
from .reader import EmbeddingMap, Vectors, describe_difference


def cosine(vectors: Vectors, others: Vectors) -> NDArray[np.float32]:
    """Return the cosine of vectors ``(D, ...)`` and others of a shape that broadcasts; NaN where one is NaN or 0."""
    with np.errstate(invalid='ignore', divide='ignore'):
        product = (vectors * others).sum(0) / np.sqrt((vectors**2).sum(0) * (others**2).sum(0))
    return np.where(np.isfinite(product), np.clip(product, -1, 1), np.nan).astype(np.float32)


def reference_vector(embeddings: EmbeddingMap, places: Sequence[tuple[float, float]]) -> NDArray[np.float32]:
    """Return the mean direction ``(D,)`` of the vectors at places.

    Args:
        embeddings: Map.
        places: Longitude and latitude of each place in degrees.

    Raises:
        ValueError: If a place is not a longitude and latitude, or is outside of the map or on nodata.
    """
    for east, north in places:
        if not (abs(east) <= 180 and abs(north) <= 90):
            raise ValueError(
                f'a place is at longitude {east:g}, latitude {north:g}, expected degrees from -180 to 180 and -90 to 90'
            )
    transformer = Transformer.from_crs('EPSG:4326', embeddings.grid.crs, always_xy=True)
    lon, lat = np.asarray(places, np.float64).T
    vectors = embeddings.vectors(*embeddings.pixels(*transformer.transform(lon, lat)))
    lengths = np.linalg.norm(vectors, axis=1)
    for place, length in zip(places, lengths, strict=True):
        if not length > 0:
            back = Transformer.from_crs(embeddings.grid.crs, 'EPSG:4326', always_xy=True)
            west, south, east, north = back.transform_bounds(*embeddings.grid.bounds)
            raise ValueError(
                f'there is no embedding at longitude {place[0]:g}, latitude {place[1]:g}, expected a place on the map, '
                f'which extends from {west:.5f}, {south:.5f} to {east:.5f}, {north:.5f}'
            )
    mean: NDArray[np.float32] = (vectors / lengths[:, None]).mean(0)
    return mean


def similarity(embeddings: EmbeddingMap, reference: NDArray[np.float32]) -> Iterator[tuple[Window, Vectors]]:
    """Yield the windows of a map and the cosine ``(H, W)`` of their vectors and a reference ``(D,)``."""
    for window in embeddings.blocks():
        yield window, cosine(embeddings.read(window), reference[:, None, None])


def change(before: EmbeddingMap, after: EmbeddingMap) -> Iterator[tuple[Window, Vectors]]:
    """Yield the windows of two maps and the change ``(H, W)``, 1 - cosine: 0 for equal directions, 2 for opposite.

    Raises:
        ValueError: If the maps differ in dimensions, CRS, pixel grid or extent.
    """
    pair: tuple[Any, ...] = (before.paths[0], after.paths[0])
    if len(before) != len(after):
        raise ValueError(f'{pair[1]} has {len(after)} dimensions, expected {len(before)} as in {pair[0]}')
    if difference := describe_difference(before.grid, after.grid):
        raise ValueError(f'{pair[1]} has {difference} as in {pair[0]}')
    if before.grid.bounds != after.grid.bounds:
        raise ValueError(f'{pair[1]} extends over {after.grid.bounds}, expected {before.grid.bounds} as {pair[0]}')
    for window in before.blocks():
        yield window, 1 - cosine(before.read(window), after.read(window))
