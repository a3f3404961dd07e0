# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Classification of embedding maps from a few labelled points or polygons."""

import csv
import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.features import rasterize
from sklearn.dummy import DummyClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from ...datasets.geo.polygons import read_geometries
from ...grid import metres
from ...utils.checks import check_choice, check_integer
from ...utils.plurals import counted
from ..raster import MapBands
from ..tiling import Window
from .reader import EmbeddingMap, Vectors

#: Classifiers by name.
Classifier = Literal['knn', 'logistic', 'mlp']
CLASSIFIERS = ('knn', 'logistic', 'mlp')
#: Maximum number of folds of the cross-validation.
FOLDS = 5
#: Number of blocks along the longer side of the labelled extent, by default.
BLOCKS = 5
#: Columns of identifiers, which are not classes.
_IDS = ('fid', 'id', 'ogc_fid', 'objectid', 'index')
#: Most classes of a map.
_MOST = 254

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class LabelledPixels:
    """Pixels of a map with a class.

    Args:
        labels: Names of the classes.
        rows: Row of each pixel, ``(N,)``.
        columns: Column of each pixel, ``(N,)``.
        classes: Index of the class of each pixel, ``(N,)``.
        places: Coordinates ``(N, 2)`` of the point or of the centre of the polygon, in the CRS of the map.
        unused: Sentences with the numbers of labels that are not used, and why.
    """

    labels: tuple[str, ...]
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    classes: Labels
    places: NDArray[np.float64]
    unused: tuple[str, ...] = ()

    def select(self, chosen: NDArray[Any]) -> 'LabelledPixels':
        """Return some of the pixels."""
        return replace(
            self,
            rows=self.rows[chosen],
            columns=self.columns[chosen],
            classes=self.classes[chosen],
            places=self.places[chosen],
        )


def read_labels(
    path: str | Path,
    embeddings: EmbeddingMap,
    column: str | None = None,
    layer: str | int | None = None,
    max_pixels: int = 1000,
    seed: int = 0,
) -> LabelledPixels:
    """Read the pixels that are labelled by the points or polygons of a vector file.

    Geometries are reprojected to the CRS of the map. Those without a class, null or blank, are not used, and neither
    are pixels with different classes.

    Args:
        path: Vector file, or table of points with ``lon`` and ``lat``.
        embeddings: Map.
        column: Column of the class; defaults to the only one.
        layer: Layer of the file; defaults to the first.
        max_pixels: Maximum number of pixels of a polygon, drawn at random.
        seed: Seed of the draw.

    Raises:
        ValueError: If there are several columns, fewer than two classes, no label within the map, or only pixels with
            different classes.
    """
    check_integer(1, max_pixels=max_pixels)
    check_integer(0, seed=seed)
    frame = read_geometries(str(path), column, layer)
    column = column or _only_column(path, frame)
    without_geometry, without_class = frame.attrs['without_geometry'], frame[column].isna()
    total = len(frame) + without_geometry
    frame = frame[~without_class].to_crs(embeddings.grid.crs)
    values = frame[column]
    if not pd.api.types.is_numeric_dtype(values):
        values = values.astype(str).str.strip()
    elif not np.isfinite(values).all():
        raise ValueError(f'column {column!r} of {path} has infinite values, expected classes')
    elif (values == values.round()).all():
        values = values.astype(np.int64)
    known = sorted(values.unique().tolist())
    if not 2 <= len(known) <= _MOST:
        raise ValueError(
            f'column {column!r} of {path} has {counted(len(known), "class")} {known[:3]}, expected from 2 to {_MOST}'
        )
    numbers = values.map({value: index for index, value in enumerate(known)}).to_numpy(np.int64)
    shapes = frame.geometry.force_2d().to_numpy()
    owner, rows, columns = _pixels_of(shapes, embeddings, max_pixels, np.random.default_rng(seed))
    if not len(owner):
        raise ValueError(
            f'{path} extends from {_corners(frame.total_bounds)}, expected labels within the map, which extends from '
            f'{_corners(embeddings.grid.bounds)} ({embeddings.grid.crs.to_string()})'
        )
    points = shapely.centroid(shapes)
    places = np.stack([shapely.get_x(points), shapely.get_y(points)], 1)[owner]
    pixels = LabelledPixels(tuple(map(str, known)), rows, columns, numbers[owner], places)
    chosen, conflicts = _unambiguous(pixels)
    if not len(chosen):
        raise ValueError(f'every labelled pixel of {path} has labels of different classes, expected one class each')
    kind = 'points' if not shapely.get_dimensions(shapes).any() else 'geometries'
    outside = len(shapes) - len(np.unique(owner))
    counts = {
        f'{without_geometry} of {counted(total, "row")} without a geometry': without_geometry,
        f'{int(without_class.sum())} of {total} {kind} without a class': without_class.sum(),
        f'{outside} of {len(shapes)} {kind} outside of the map': outside,
        f'{conflicts} of {conflicts + len(chosen)} labelled pixels with labels of different classes': conflicts,
    }
    return replace(pixels.select(chosen), unused=tuple(text for text, count in counts.items() if count))


def default_block(pixels: LabelledPixels, embeddings: EmbeddingMap) -> float:
    """Return the side of spatial blocks in metres: a fifth of the longer side of the extent of the labels."""
    extent = float(np.ptp(pixels.places, axis=0).max())
    side = metres(embeddings.grid.crs, extent) / BLOCKS
    return max(float(f'{side:.2g}'), embeddings.gsd)


def spatial_blocks(pixels: LabelledPixels, embeddings: EmbeddingMap, block: float) -> NDArray[np.int64]:
    """Return the index ``(N,)`` of the square block, *block* metres wide, that contains the place of each pixel."""
    side = block / metres(embeddings.grid.crs, 1.0)
    cells = np.floor((pixels.places - np.asarray(embeddings.grid.corner)) / side).astype(np.int64)
    return np.unique(cells, axis=0, return_inverse=True)[1].ravel()


def build_classifier(name: Classifier, count: int, seed: int = 0) -> Any:
    """Create a classifier of vectors.

    Args:
        name: ``'knn'`` (5 neighbours by cosine, weighted by distance), ``'logistic'`` or ``'mlp'`` (one hidden layer).
        count: Number of training vectors.
        seed: Seed of the MLP.
    """
    check_choice(classifier=(name, CLASSIFIERS))
    if name == 'knn':
        # On unit vectors, the Euclidean distance orders neighbours as the cosine does.
        return make_pipeline(Normalizer(), KNeighborsClassifier(min(5, count), weights='distance'))
    if name == 'logistic':
        return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    mlp = MLPClassifier((64,), alpha=0.1, learning_rate_init=3e-3, max_iter=200, random_state=seed)
    return make_pipeline(StandardScaler(), mlp)


def fit_classifier(name: Classifier, vectors: Vectors, classes: Labels, seed: int = 0) -> Any:
    """Fit a classifier; with a single class, one that always returns it."""
    if len(np.unique(classes)) < 2:
        return DummyClassifier(strategy='most_frequent').fit(vectors, classes)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', ConvergenceWarning)
        return build_classifier(name, len(vectors), seed).fit(vectors, classes)


def predict_probabilities(model: Any, vectors: Vectors, count: int) -> NDArray[np.float32]:
    """Return the probabilities ``(N, K)`` of *count* classes; 0 for classes that the model has not seen."""
    found = np.zeros((len(vectors), count), np.float32)
    if len(vectors):
        found[:, model.classes_] = model.predict_proba(vectors)
    return found


@dataclass(frozen=True)
class Validation:
    """Result of a cross-validation by spatial blocks.

    Args:
        labels: Names of the classes.
        confusion: Pixels by true (row) and predicted class, ``(K, K)``.
        block: Side of the blocks in metres.
        blocks: Number of blocks with labels.
        folds: Number of folds.
    """

    labels: tuple[str, ...]
    confusion: NDArray[np.int64]
    block: float
    blocks: int
    folds: int

    @property
    def scores(self) -> dict[str, float]:
        """Overall accuracy, and F1 score and IoU averaged over the classes that have pixels."""
        occurs = self.confusion.sum(1) > 0
        f1, iou = (score[occurs] for score in self._by_class()[2:])
        accuracy = float(np.trace(self.confusion) / max(1, int(self.confusion.sum())))
        return {'accuracy': accuracy, 'macro_f1': float(f1.mean()), 'mean_iou': float(iou.mean())}

    def rows(self) -> list[dict[str, Any]]:
        """Return the scores of each class."""
        parts = zip(self.labels, self.confusion.sum(1).tolist(), *(x.tolist() for x in self._by_class()), strict=True)
        names = ('class', 'pixels', 'precision', 'recall', 'f1', 'iou')
        return [dict(zip(names, row, strict=True)) for row in parts]

    def _by_class(self) -> tuple[NDArray[np.float64], ...]:
        confusion = self.confusion.astype(np.float64)
        right, truth, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
        with np.errstate(invalid='ignore', divide='ignore'):
            parts = (
                right / predicted,
                right / truth,
                2 * right / (truth + predicted),
                right / (truth + predicted - right),
            )
        return tuple(np.nan_to_num(part) for part in parts)


def cross_validate(
    name: Classifier,
    vectors: Vectors,
    classes: Labels,
    blocks: NDArray[np.int64],
    labels: Sequence[str],
    block: float,
    seed: int = 0,
) -> Validation:
    """Score a classifier on blocks that it was not trained on.

    Args:
        name: Classifier.
        vectors: Vectors ``(N, D)``.
        classes: Class indices ``(N,)``.
        blocks: Index of the block of each vector ``(N,)``, of :func:`spatial_blocks`.
        labels: Names of the classes.
        block: Side of the blocks in metres.
        seed: Seed of the folds and of the MLP.

    Raises:
        ValueError: If all vectors lie in one block, or no class has two.
    """
    number = len(np.unique(blocks))
    if number < 2:
        raise ValueError(
            f'all {len(classes)} labelled pixels lie in one block of {block:g} m, expected at least 2 blocks with '
            'labels: decrease --block, or add labels'
        )
    most = int(np.bincount(classes).max())
    if most < 2:
        raise ValueError(
            f'every class has one labelled pixel ({len(classes)} in all), expected a class with at least 2'
        )
    folds = min(FOLDS, number, most)  # scikit-learn requires a class with a pixel for each fold
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    confusion = np.zeros((len(labels), len(labels)), np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)  # a class may have fewer pixels than there are folds
        splits = list(splitter.split(vectors, classes, blocks))
    for train, test in splits:
        if not len(train) or not len(test):
            continue
        model = fit_classifier(name, vectors[train], classes[train], seed)
        predicted = predict_probabilities(model, vectors[test], len(labels)).argmax(1)
        np.add.at(confusion, (classes[test], predicted), 1)
    return Validation(tuple(labels), confusion, block, number, folds)


def write_validation(validation: Validation, table: Path, summary: Path, settings: dict[str, Any]) -> None:
    """Write the scores of each class as CSV, and all scores, the confusion matrix and settings as JSON."""
    rows = validation.rows()
    with table.open('w', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator='\n')
        writer.writeheader()
        writer.writerows({key: round(x, 4) if isinstance(x, float) else x for key, x in row.items()} for row in rows)
    content = {
        'scores': validation.scores,
        'cross_validation': {'block': validation.block, 'blocks': validation.blocks, 'folds': validation.folds},
        'classes': rows,
        'confusion': validation.confusion.tolist(),
        'settings': settings,
    }
    summary.write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')


def classify_map(
    model: Any, embeddings: EmbeddingMap, bands: MapBands
) -> Iterator[tuple[Window, NDArray[np.unsignedinteger]]]:
    """Yield the windows of a map and their bands; nodata where there is no vector."""
    count = len(bands.labels)
    for window in embeddings.blocks():
        vectors = embeddings.read(window)
        observed = np.isfinite(vectors[0])
        probabilities = np.zeros((count, window.height, window.width), np.float32)
        probabilities[:, observed] = predict_probabilities(model, vectors[:, observed].T, count).T
        yield window, bands.encode(probabilities, embeddings.read_sensors(window, vectors))


def _only_column(path: str | Path, frame: gpd.GeoDataFrame) -> str:
    columns = [str(column) for column in frame.columns.drop(frame.geometry.name)]
    coordinates = {'lon', 'lat', 'longitude', 'latitude', 'long', 'lng', 'x', 'y'}
    if str(path).lower().endswith(('.csv', '.parquet')):
        columns = [column for column in columns if column.strip().lower() not in coordinates]
    chosen = columns if len(columns) == 1 else [column for column in columns if column.lower() not in _IDS]
    if len(chosen) != 1:
        raise ValueError(f'{path} has the columns {columns}, expected --column with that of the class')
    return chosen[0]


def _pixels_of(
    shapes: Any, embeddings: EmbeddingMap, most: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return geometry, row and column of all labelled pixels within the map."""
    found = []
    height, width = embeddings.grid.height, embeddings.grid.width
    for index, shape in enumerate(shapes):
        if shapely.get_dimensions(shape) == 0:
            x, y = shapely.get_coordinates(shape).T
            rows, columns = embeddings.pixels(x, y)
        else:
            rows, columns = _covered(shape, embeddings)
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        rows, columns = rows[inside], columns[inside]
        if len(rows) > most:
            chosen = np.sort(rng.permutation(len(rows))[:most])
            rows, columns = rows[chosen], columns[chosen]
        found.append((np.full(len(rows), index), rows, columns))
    owner, rows, columns = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return owner, rows, columns


def _covered(shape: Any, embeddings: EmbeddingMap) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return rows and columns of the pixels whose centre is in a polygon; the pixel of its centre if there is none."""
    grid = embeddings.grid
    part = shapely.intersection(shape, shapely.box(*grid.bounds))
    nothing = np.zeros(0, np.int64)
    if shapely.is_empty(part):
        return nothing, nothing
    xmin, ymin, xmax, ymax = shapely.bounds(part)
    (top, bottom), (left, right) = embeddings.pixels(np.array([xmin, xmax]), np.array([ymax, ymin]))
    size = min(bottom + 1, grid.height) - max(top, 0), min(right + 1, grid.width) - max(left, 0)
    top, left = max(top, 0), max(left, 0)
    if min(size) < 1:
        return nothing, nothing
    corner = grid.transform @ Affine.translation(left, top)
    rows, columns = np.nonzero(rasterize([(part, 1)], size, transform=corner, dtype=np.uint8))
    if not len(rows):
        point = shapely.point_on_surface(part)
        return embeddings.pixels(np.array([point.x]), np.array([point.y]))
    return rows + top, columns + left


def _unambiguous(pixels: LabelledPixels) -> tuple[NDArray[np.int64], int]:
    """Return the first label of each pixel without labels of different classes, and the number of other pixels."""
    keys = np.stack([pixels.rows, pixels.columns], 1)
    _, first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    lowest, highest = np.full(len(first), np.iinfo(np.int64).max), np.full(len(first), -1)
    np.minimum.at(lowest, inverse.ravel(), pixels.classes)
    np.maximum.at(highest, inverse.ravel(), pixels.classes)
    return np.sort(first[lowest == highest]), int((lowest != highest).sum())


def _corners(bounds: Any) -> str:
    xmin, ymin, xmax, ymax = (float(value) for value in bounds)
    return f'{xmin:.10g}, {ymin:.10g} to {xmax:.10g}, {ymax:.10g}'
