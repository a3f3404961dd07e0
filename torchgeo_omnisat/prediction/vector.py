# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Vectorisation of maps: parcels, connected pixels of one class, as polygons."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fiona
import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.features import shapes, sieve
from rasterio.windows import Window as RasterWindow
from scipy.ndimage import label
from shapely.affinity import affine_transform
from shapely.geometry import mapping, shape
from shapely.ops import unary_union

from .fields.segmentation import hectares
from .raster import probability_bands

#: Side of the blocks in which a map is read, in pixels.
READ_BLOCK = 1024

Labels = NDArray[np.int32]


@dataclass
class Piece:
    """Part of a parcel in one block; a node of a union-find forest.

    Attributes:
        code: Index of the class.
        geometry: Outline in pixel coordinates of the map; integers, so outlines of adjacent blocks match exactly.
        pixels: Number of pixels.
        confidence: Sum of the probabilities of the class over the pixels that have one.
        known: Number of pixels with a probability of the class.
        parent: Another piece of the same parcel; None for the root.
        parts: All pieces of the parcel, in the root.
    """

    code: int
    geometry: Any
    pixels: int
    confidence: float
    known: int
    parent: 'Piece | None' = None
    parts: list['Piece'] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.parts = [self]

    def root(self) -> 'Piece':
        """Return the piece that represents the parcel."""
        piece = self
        while piece.parent is not None:
            piece = piece.parent
        return piece

    def join(self, other: 'Piece') -> None:
        """Merge two parcels."""
        ours, theirs = self.root(), other.root()
        if ours is not theirs:
            ours, theirs = (ours, theirs) if len(ours.parts) >= len(theirs.parts) else (theirs, ours)
            theirs.parent = ours
            ours.parts += theirs.parts
            theirs.parts = []


def write_parcels(
    path: Path,
    package: Path,
    labels: Sequence[str],
    smallest: float = 0.1,
    layer: str = 'parcels',
    block: int = READ_BLOCK,
) -> int:
    """Write every parcel of a map as a polygon with class, mean probability and area.

    The map is read in blocks, and a parcel is written once it is complete. Memory holds a row of blocks and
    the incomplete parcels, which is much less than the map unless one parcel extends through all of it.

    Parcels smaller than *smallest* are merged into their largest neighbour (GDAL's sieve filter, 4-connected).
    At the border of a block, one may be split among two neighbours. A pixel is nodata if its class or all of
    its probabilities are; it belongs to no parcel.

    Args:
        path: Output of :func:`.write_map`.
        package: GeoPackage to write; it is not written atomically.
        labels: Names of the classes.
        smallest: Minimum area of a parcel in hectares.
        layer: Name of the layer.
        block: Side of the blocks in pixels.

    Returns:
        Number of parcels. The attribute ``probability`` is the mean of the stored probability of the class over
        the parcel, without nodata; null if there is none.

    Raises:
        ValueError: If the CRS of the map is not projected.
    """
    with rasterio.open(path) as file:
        hectare = hectares(file)
        least = math.ceil(smallest / hectare - 1e-9)
        schema = {
            'geometry': 'Polygon',
            'properties': {'class': 'int', 'name': 'str', 'probability': 'float', 'area_ha': 'float'},
        }
        count, (a, b, x, d, e, y) = 0, file.transform[:6]
        with fiona.open(package, 'w', driver='GPKG', schema=schema, crs_wkt=file.crs.to_wkt(), layer=layer) as sink:
            for piece in _parcels(file, least, block):
                pixels = sum(part.pixels for part in piece.parts)
                confidence, known = (
                    sum(getattr(part, name) for part in piece.parts) for name in ('confidence', 'known')
                )
                outline = unary_union([part.geometry for part in piece.parts])
                count += 1
                sink.write(
                    {
                        'geometry': mapping(affine_transform(outline, (a, b, d, e, x, y))),
                        'properties': {
                            'class': piece.code,
                            'name': labels[piece.code],
                            'probability': round(confidence / known, 4) if known else None,
                            'area_ha': round(pixels * hectare, 6),
                        },
                    }
                )
    return count


def _parcels(file: Any, least: int, block: int) -> Iterator[Piece]:
    """Yield the root of each parcel once it is complete."""
    open_: dict[int, Piece] = {}
    above: list[Piece | None] = [None] * file.width
    for top in range(0, file.height, block):
        below: list[Piece | None] = []
        before: list[Piece | None] = []
        for left in range(0, file.width, block):
            ids, pieces = _pieces(file, top, left, block, least)
            edges = [[pieces.get(number) for number in edge] for edge in (ids[0], ids[:, 0], ids[:, -1], ids[-1])]
            for these, those in ((edges[0], above[left : left + block]), (edges[1], before)):
                for this, that in zip(these, those, strict=False):
                    if this is not None and that is not None and this.code == that.code:
                        this.join(that)
            below += edges[3]
            before = edges[2]
            open_ |= {id(piece): piece for piece in pieces.values()}
        above = below
        reached = {id(piece.root()) for piece in above if piece is not None}
        for root in [piece for piece in open_.values() if piece.parent is None and id(piece) not in reached]:
            yield root
            for part in root.parts:
                del open_[id(part)]
    yield from (piece for piece in open_.values() if piece.parent is None)


def _pieces(file: Any, top: int, left: int, block: int, least: int) -> tuple[Labels, dict[int, Piece]]:
    """Label the connected pixels of a block from 1, and return the attributes of each label."""
    halo = min(least, block)
    up, side = max(0, top - halo), max(0, left - halo)
    height, width = min(block, file.height - top), min(block, file.width - left)
    around = RasterWindow(
        side, up, min(left + width + halo, file.width) - side, min(top + height + halo, file.height) - up
    )
    classes = file.read(1, window=around)
    inside = _observed(file, around)
    if least > 1:
        classes = sieve(classes, least, mask=inside, connectivity=4)
    core = np.s_[top - up : top - up + height, left - side : left - side + width]
    classes, inside = classes[core], inside[core]
    ids = np.zeros(classes.shape, np.int32)
    codes: list[int] = []
    for code in np.unique(classes[inside]):
        numbered, found = label((classes == code) & inside)
        ids[numbered > 0] = numbered[numbered > 0] + len(codes)
        codes += [int(code)] * found
    pixels = np.bincount(ids.ravel(), minlength=len(codes) + 1)
    confidence = _confidence(file, classes, inside, top, left).ravel()
    finite = np.isfinite(confidence)
    known = np.bincount(ids.ravel(), finite, len(codes) + 1)
    sums = np.bincount(ids.ravel(), np.where(finite, confidence, 0), len(codes) + 1)
    corner = Affine.translation(left, top)
    outlines = {int(number): shape(outline) for outline, number in shapes(ids, ids > 0, 4, corner)}
    return ids, {
        number: Piece(codes[number - 1], outline, int(pixels[number]), float(sums[number]), int(known[number]))
        for number, outline in outlines.items()
    }


def _observed(file: Any, window: RasterWindow) -> NDArray[np.bool_]:
    inside = file.read_masks(1, window=window) > 0
    unknown = inside.copy()
    bands = probability_bands(file)
    for band in bands:
        if not unknown.any():
            break
        unknown &= file.read_masks(band, window=window) == 0
    return inside & ~unknown if bands else inside


def _confidence(
    file: Any, classes: NDArray[Any], inside: NDArray[np.bool_], top: int, left: int
) -> NDArray[np.float64]:
    if not probability_bands(file):
        return np.full(classes.shape, np.nan)
    window = RasterWindow(left, top, classes.shape[1], classes.shape[0])
    result = np.full(classes.shape, np.nan)
    for code in np.unique(classes[inside]):
        band = int(code) + 3
        chosen = (classes == code) & inside & (file.read_masks(band, window=window) > 0)
        result[chosen] = file.read(band, window=window)[chosen] * file.scales[band - 1]
    return result
