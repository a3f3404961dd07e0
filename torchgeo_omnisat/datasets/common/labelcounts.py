# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Numbers of pixels and tiles of each class in a split."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import shapely
import torch
from numpy.typing import NDArray
from rasterio.features import geometry_mask
from torch import Tensor
from tqdm import tqdm

from ...utils.plurals import counted
from ..geo.join import pixels
from ..geo.tiles import GeoTiles
from .classes import NO_LABEL, UNKNOWN
from .integrity import SAMPLE

#: Approximate side in pixels of the blocks of labels that are read at once.
BLOCK = 1024
#: Maximum number of distinct unknown codes to collect.
LISTED = 10_000


@dataclass
class LabelCounts:
    """Label counts of a split.

    Args:
        pixels: Number of labelled pixels by class; for labels of whole tiles, of tiles.
        tiles: Number of tiles with at least one such pixel, by class.
        total: Number of pixels in the footprint of the split.
        total_tiles: Number of tiles that were read.
        of: Number of all tiles if only some were read, else 0.
        ignored: Number of pixels with the value of *ignore_index*.
        ambiguous: Number of pixels with polygons or points of different classes.
        shapes: Type of these: ``'points'``, which then have no label, or ``'polygons'``.
        nodata: Files whose nodata value is also a class: path, nodata value, and class.
    """

    pixels: dict[str, int]
    tiles: dict[str, int]
    total: int = 0
    total_tiles: int = 0
    of: int = 0
    ignored: int = 0
    ambiguous: int = 0
    shapes: str = ''
    nodata: list[tuple[str, float, str]] = field(default_factory=list)

    @classmethod
    def none(cls, labels: Sequence[str], ignore_index: int | None = None) -> 'LabelCounts':
        """Return counts of zero, for all classes but the ignored one."""
        names = [name for number, name in enumerate(labels) if number != ignore_index]
        return cls(dict.fromkeys(names, 0), dict.fromkeys(names, 0))

    @property
    def labelled(self) -> int:
        """Number of labelled pixels of all classes."""
        return sum(self.pixels.values())

    @property
    def unit(self) -> str:
        """Unit of the counts: ``'pixel'``, or ``'tile'`` for labels of whole tiles."""
        return 'tile' if self.total == self.total_tiles else 'pixel'

    @property
    def lacking(self) -> list[str]:
        """Classes without a labelled pixel."""
        return [name for name, count in self.pixels.items() if not count]

    def summary(self, split: str) -> str:
        """Return one line with the labelled pixels of a split, in total and by class."""
        each = ', '.join(f'{name} {count}' for name, count in self.pixels.items() if count)
        each += f'; none of {", ".join(self.lacking)}' * bool(self.lacking)
        read = f', {self.total_tiles} of {counted(self.of, "tile")} read' if self.of else ''
        what = f'{self.labelled} of {self.total} pixels ' if self.unit == 'pixel' else 'tiles with each class '
        return f'Labels of {split!r}{read}: {what}({each})'

    def warnings(self, split: str, ignore_index: int | None = None) -> list[str]:
        """Return a warning for each problem of the labels of a split; in training, every class needs some."""
        said = []
        because = [
            f'{counted(self.ignored, "pixel is", "pixels are")} {ignore_index}, which is ignore_index and no label: if '
            'it is a class, classes in the mask maps it to its name'
        ] * bool(self.ignored)
        because += [
            f'nodata of {path} is {nodata:g}, the number of class {name!r}: its pixels have no label'
            for path, nodata, name in self.nodata[:3]
        ]
        if not self.labelled:
            read = f' in the {self.total_tiles} of {self.of} tiles that were read' if self.of else ''
            said.append('; '.join([f'{split!r} has no labelled {self.unit}{read}, so no loss and no score', *because]))
        elif self.lacking and split == 'train' and not self.of:
            said.append('; '.join([f'no {self.unit} of {split!r} has the label {self.lacking}', *because]))
        elif self.nodata and split == 'train':
            said += because[-1:]
        if self.ambiguous:
            pixels = counted(self.ambiguous, 'pixel')
            said.append(
                f'no label for {pixels} of {split!r} with points of different classes'
                if self.shapes == 'points'
                else f'{pixels} of {split!r} in polygons of different classes: the last polygon in the file counts'
            )
        return said

    def add_mask(self, mask: Tensor, labels: Sequence[str], ignore_index: int | None) -> None:
        """Count the mask ``(H, W)`` of one tile; raise ValueError if a label is not a class."""
        values, counts = mask.unique(return_counts=True)
        found = dict(zip(values.tolist(), counts.tolist(), strict=True))
        self.ignored += found.pop(ignore_index, 0)
        self.total += mask.numel()
        self.total_tiles += 1
        if strange := [value for value in found if not 0 <= value < len(labels)]:
            raise ValueError(f'mask holds {strange}, expected classes 0 to {len(labels) - 1} or {ignore_index}')
        for value, count in found.items():
            self.pixels[labels[value]] += count
            self.tiles[labels[value]] += 1

    def add_label(self, label: Tensor, names: Sequence[str]) -> None:
        """Count the labels ``(K,)`` of one tile; a class occurs if its value is above 0.5."""
        self.total += 1
        self.total_tiles += 1
        for name, value in zip(names, label.tolist(), strict=True):
            self.pixels[name] += value > 0.5
            self.tiles[name] += value > 0.5


def evenly_spaced(count: int, most: int | None = None) -> Sequence[int]:
    """Return at most *most* evenly spaced indices of *count*; None for all."""
    if most is None or most >= count:
        return range(count)
    chosen: list[int] = np.linspace(0, count - 1, most).round().astype(int).tolist()
    return chosen


def count_tiles(
    dataset: Any,
    labels: Sequence[str],
    label_names: Sequence[str],
    ignore_index: int | None,
    split: str,
    most: int | None = None,
    target: str | None = None,
) -> LabelCounts:
    """Count the labels of a dataset of tiles with ``mask`` or ``label``, one tile in memory at a time.

    Only the labels of a tile are read if the dataset has ``parts``, else the whole sample; at *most* so many tiles,
    evenly spread. *target* is ``'mask'`` or ``'label'``; by default the mask if a sample has one. Raise ValueError with
    all labels of masks that are not classes, and the first tile.
    """
    counts, size = LabelCounts.none(labels, ignore_index), len(dataset)
    chosen = evenly_spaced(size, most)
    counts.of = size if len(chosen) < size else 0
    strange, tiles = Counter[int](), list[int]()
    for index in tqdm(chosen, desc=f'Labels of {split}', disable=None, leave=False):
        sample = label_of(dataset, index, (target,) if target else ('mask', 'label'))
        if 'mask' in sample:
            mask = torch.as_tensor(sample['mask'])
            values, pixels = mask.unique(return_counts=True)
            found = dict(zip(values.tolist(), pixels.tolist(), strict=True))
            wrong = {v: n for v, n in found.items() if v != ignore_index and not 0 <= v < len(labels)}
            strange.update(wrong)
            tiles += [index] * bool(wrong)
            if not wrong:
                counts.add_mask(mask, labels, ignore_index)
        elif 'label' in sample:
            counts.add_label(sample['label'], label_names)
    if strange:
        listed = ', '.join(f'{value} ({counted(number, "pixel")})' for value, number in strange.most_common(20))
        read = f'the {len(chosen)} of {size} tiles that were read' if counts.of else counted(size, 'tile')
        names = getattr(dataset, 'ids', [str(index) for index in range(size)])
        also = '' if ignore_index is None else f' or {ignore_index} for no label'
        raise ValueError(
            f'masks of {split!r} have the labels {listed} in {len(tiles)} of {read}, first in tile {names[tiles[0]]}: '
            f'expected classes 0 to {len(labels) - 1}{also}'
        )
    return counts


def label_of(dataset: Any, index: int, wanted: Sequence[str]) -> dict[str, Any]:
    """Return the labels of a tile under the first available key of *wanted*, without reading images if possible."""
    if hasattr(dataset, 'parts'):
        for part in dataset.parts(index):
            if part.name in (SAMPLE, *wanted):
                return {} if part.absent else {part.name: part.read()}
        return {}
    sample = dataset[index]
    return {key: sample[key] for key in wanted[:1] if key in sample} or {k: sample[k] for k in wanted if k in sample}


def count_labels(tiles: GeoTiles, labels: Sequence[str]) -> LabelCounts:
    """Count the labels of adjacent tiles; images are not read.

    Files are read in blocks, so memory use does not depend on the extent. Raise the error of all codes without a class.
    """
    join = tiles.dataset
    source, ignored = join.labels, join.ignore_index
    counts = LabelCounts.none(labels, ignored)
    assert source is not None
    counts.shapes = 'points' if source.sparse else 'polygons'
    counts.nodata = [
        (path, nodata, labels[number])
        for path, (nodata, number) in source.nodata_classes(tiles.area).items()
        if number != ignored
    ]
    _, _, period = join._disambiguate_slice(slice(None))
    side, span = round(tiles.size / join.label_gsd), (period.start, period.stop)
    unknown, files = Counter[float](), dict[str, None]()
    blocks = list(_blocks(tiles, max(1, BLOCK // side)))
    for row, column, members in tqdm(blocks, desc=f'Labels of {tiles.split}', disable=None, leave=False):
        height, width = members.shape
        window = tiles.grid.box(row, column, height * tiles.across, width * tiles.across)
        grid = pixels(join.crs, window, join.label_gsd)
        ground = tiles.area.intersection(shapely.box(*window))
        inside = geometry_mask([ground], (grid.height, grid.width), grid.transform, invert=True)
        if ground.area >= shapely.box(*window).area * (1 - 1e-12):
            inside[:] = True
        inside &= np.kron(members, np.ones((side, side), bool))
        codes = source.codes(grid, span)
        counts.ambiguous += int((source.ambiguous(grid, span) & inside).sum())
        numbers = np.where(inside, source.classes.pixels(codes), NO_LABEL)
        counts.ignored += int(((codes == ignored) & inside & ((numbers == NO_LABEL) | (numbers == ignored))).sum())
        counts.total += int(inside.sum())
        strange = (numbers == UNKNOWN) | (
            (numbers != NO_LABEL) & (numbers != ignored) & ((numbers < 0) | (numbers >= len(labels)))
        )
        if strange.any():
            if len(unknown) < LISTED:
                unknown.update(codes[strange].tolist())
            files |= dict.fromkeys(source.paths(grid, span))
            continue
        _add(counts, numbers, side, labels, ignored)
        counts.total_tiles += int(members.sum())
    if unknown:
        raise source.classes.unknown(unknown, list(files))
    return counts


def _blocks(tiles: GeoTiles, many: int) -> Iterator[tuple[int, int, NDArray[np.bool_]]]:
    places = tiles.places // tiles.across
    if not len(places):
        return
    height, width = places.max(0) + 1
    there = np.zeros((height, width), bool)
    there[tuple(places.T)] = True
    for row in range(0, height, many):
        for column in range(0, width, many):
            members = there[row : row + many, column : column + many]
            if members.any():
                yield row * tiles.across, column * tiles.across, members


def _add(counts: LabelCounts, numbers: NDArray[np.int64], side: int, labels: Sequence[str], ignored: Any) -> None:
    rows, columns = numbers.shape[0] // side, numbers.shape[1] // side
    tile = np.kron(np.arange(rows * columns).reshape(rows, columns), np.ones((side, side), np.int64))
    known = (numbers != NO_LABEL) & (numbers != ignored)
    size = len(labels)
    table = np.bincount(tile[known] * size + numbers[known], minlength=rows * columns * size).reshape(-1, size)
    for name, pixel, some in zip(labels, table.sum(0).tolist(), (table > 0).sum(0).tolist(), strict=True):
        if name in counts.pixels:
            counts.pixels[name] += pixel
            counts.tiles[name] += some
