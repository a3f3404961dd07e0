# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Splits of a ground: by fractions along an axis, by boxes, or by a vector file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import shapely

from ..datasets import MultimodalGeoDataset
from ..datasets.georeference import bendable
from ..datasets.geotiles import disjoint
from ..datasets.opening import refuse_other_format

#: The splits, in the order of fractions.
SPLITS = ('train', 'val', 'test')


def split_ground(dataset: MultimodalGeoDataset, split: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """The ground of each split.

    Args:
        dataset: The whole.
        split: ``{'axis': 'x', 'fractions': (0.6, 0.2, 0.2)}``, from west to east, or ``'y'``,
            from south to north; or a box (xmin, ymin, xmax, ymax), or several, for each of
            ``'train'``, ``'val'`` and ``'test'``; or ``{'file': 'regions.gpkg'}`` with a column
            ``split`` (or *column*) that says which one a polygon is in.
        root: Where the file is relative to.

    Returns:
        Geometries in the CRS of *dataset*, empty where a split has none.

    Raises:
        ValueError: If that is not what *split* is, or splits overlap.
    """
    if 'fractions' in split and split.keys() <= {'fractions', 'axis'}:
        parts = _by_fractions(dataset, **split)
    elif 'file' in split and split.keys() <= {'file', 'column'}:
        parts = _by_file(dataset, root, **split)
    elif split and set(split) <= set(SPLITS):
        parts = {name: _boxes(name, split[name]) for name in split}
    else:
        raise ValueError(
            f"split is {dict(split)!r}, expected {{'axis': 'x', 'fractions': [0.6, 0.2, 0.2]}}, boxes for {SPLITS}, or "
            "{'file': a vector file with polygons}"
        )
    grounds = {name: dataset.area.intersection(parts.get(name, shapely.Polygon())) for name in SPLITS}
    grounds = {name: ground if ground.area else shapely.Polygon() for name, ground in grounds.items()}  # no bare lines
    disjoint([(name, ground) for name, ground in grounds.items() if not ground.is_empty])
    return grounds


def _by_fractions(dataset: MultimodalGeoDataset, fractions: Sequence[float], axis: str = 'x') -> dict[str, Any]:
    """Strips across an axis, whose edges lie where pixels of all modalities meet."""
    if axis not in ('x', 'y') or len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"split has axis {axis!r}, fractions {fractions}, expected 'x' or 'y' and three that make 1")
    xmin, ymin, xmax, ymax = dataset.area.bounds
    (low, high), origin = ((xmin, xmax), dataset.corner[0]) if axis == 'x' else ((ymin, ymax), dataset.corner[1])
    edges = low + np.cumsum([0.0, *fractions]) * (high - low)
    inner = origin + dataset.lattice * np.floor((edges[1:-1] - origin) / dataset.lattice + 0.5)
    edges = np.array([low, *inner.clip(low, high), high])
    if axis == 'x':
        return {name: shapely.box(edges[i], ymin, edges[i + 1], ymax) for i, name in enumerate(SPLITS)}
    return {name: shapely.box(xmin, edges[i], xmax, edges[i + 1]) for i, name in enumerate(SPLITS)}


def _by_file(dataset: MultimodalGeoDataset, root: Path, file: str, column: str = 'split') -> dict[str, Any]:
    """Polygons of a vector file."""
    path = root / file
    frame = read_polygons(path, dataset.crs)
    if column not in frame or not set(frame[column]) & set(SPLITS):
        raise ValueError(f'{path} has the columns {list(frame.columns)}, expected {column!r} with some of {SPLITS}')
    return {name: frame.geometry[frame[column] == name].union_all() for name in SPLITS}


def read_polygons(path: Path, crs: Any) -> gpd.GeoDataFrame:
    """The polygons of a vector file in a CRS.

    Raises:
        ValueError: If the file cannot be read.
    """
    try:
        refuse_other_format(str(path))
        frame = gpd.read_file(path).to_crs(crs)
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f'{path} cannot be read ({error}), expected a vector file with polygons') from error
    # Outlines that cross themselves cannot be joined.
    return frame.set_geometry(shapely.make_valid(frame.geometry.array, method='structure', keep_collapsed=False))


def read_area(told: Sequence[float] | str | Mapping[str, Any], crs: Any, root: Path) -> Any:
    """Ground that was asked for, as one geometry.

    Args:
        told: A box in *crs*; a vector file; or ``bounds`` and the ``crs`` that they are in.
        crs: CRS of the result.
        root: Where the file is relative to.

    Raises:
        ValueError: If that is none of these, or has no ground.
    """
    if isinstance(told, str):
        ground = read_polygons(root / told, crs).union_all()
        if not ground.area:
            raise ValueError(f'{root / told} has no polygons, expected the ground to predict')
        return ground
    settings = dict(told) if isinstance(told, Mapping) else {'bounds': told, 'crs': crs}
    bounds = settings.get('bounds')
    if settings.keys() != {'bounds', 'crs'} or bounds is None or len(bounds) != 4 or not _ascending(bounds):
        raise ValueError(
            f'predict_area is {told}, expected xmin, ymin, xmax, ymax, a vector file, or these bounds and their crs'
        )
    return gpd.GeoSeries([bendable(shapely.box(*bounds))], crs=settings['crs']).to_crs(crs).iloc[0]


def _ascending(bounds: Sequence[float]) -> bool:
    """Whether a box has an inside."""
    return bounds[0] < bounds[2] and bounds[1] < bounds[3]


def _boxes(name: str, boxes: Any) -> Any:
    """One box or several as one geometry."""
    boxes = boxes or []
    several = [boxes] if boxes and not isinstance(boxes[0], Sequence) else boxes
    if any(len(box) != 4 or not _ascending(box) for box in several):
        raise ValueError(f'split has {boxes} for {name!r}, expected xmin, ymin, xmax, ymax, or several of them')
    return shapely.union_all([shapely.box(*box) for box in several])
