# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""How many pixels and tiles have each class."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.geo_tree import X, Y, ramp, write
from torchgeo_omnisat.datamodules import MultimodalGeoDataModule
from torchgeo_omnisat.datasets.common import labelcounts
from torchgeo_omnisat.datasets.common.labelcounts import LabelCounts


def make(root: Path, mask: Any = None, **changes: Any) -> MultimodalGeoDataModule:
    args = {'labels': ['a', 'b', 'c'], 'tile_size': 80, 'patch_size': 40, 'label_gsd': 10, **changes}
    rasters = {'s2': {'path': 's2', 'gsd': 10}}
    return MultimodalGeoDataModule(str(root), rasters, mask or {'path': 'labels.tif'}, **args)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """52 x 36 pixels, which no tile of 8 divides."""
    write(tmp_path / 's2/a_20210301.tif', ramp(36, 52, 1))
    labels = np.random.default_rng(0).integers(0, 2, (36, 52)).astype(np.uint8)
    labels[:8, :8] = 2
    labels[20:, 3] = 255
    write(tmp_path / 'labels.tif', labels, nodata=9)
    return tmp_path


def slow(datamodule: MultimodalGeoDataModule, split: str) -> tuple[list[int], list[int], int]:
    """The same by reading every tile."""
    tiles = datamodule.make_dataset(split, every=True)
    masks = [tiles[index]['mask'] for index in range(len(tiles))]
    pixels = [sum(int((mask == k).sum()) for mask in masks) for k in range(3)]
    return pixels, [sum(bool((mask == k).any()) for mask in masks) for k in range(3)], len(masks)


@pytest.mark.parametrize('block', [8, 24, 1024])
@pytest.mark.parametrize('split', ['train', 'val', 'test'])
def test_counts_are_those_of_all_tiles(root: Path, split: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labelcounts, 'BLOCK', block)
    datamodule = make(root, split={'axis': 'x', 'fractions': (0.5, 0.2, 0.3)})
    counts = datamodule.label_counts(split)
    assert (list(counts.pixels.values()), list(counts.tiles.values()), counts.total_tiles) == slow(datamodule, split)
    assert list(counts.pixels) == ['a', 'b', 'c']
    assert datamodule.label_counts(split) is counts


def test_counts_of_the_whole(root: Path) -> None:
    counts = make(root, split={'axis': 'x', 'fractions': (1, 0, 0)}).label_counts('train')
    assert counts.pixels['c'] == 64
    assert counts.tiles == {'a': 34, 'b': 34, 'c': 1}
    assert (counts.ignored, counts.total, counts.labelled) == (16, 36 * 52, 36 * 52 - 16)


def test_no_image_is_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('torchgeo_omnisat.datasets.geo.sources.ImageSource.read', None)
    assert make(root).label_counts('train').pixels['c'] == 64


def test_unknown_codes_of_all_tiles_are_one_error(root: Path) -> None:
    labels = np.ones((36, 52), np.int16)
    labels[3, 3], labels[30, 20], labels[10:12, 10] = 99, -1, 7
    write(root / 'wrong.tif', labels)
    datamodule = make(root, {'path': 'wrong.tif'}, split={'axis': 'x', 'fractions': (1, 0, 0)})
    with pytest.raises(ValueError, match=r'wrong.tif.*codes 7 \(2 pixels\), -1 \(1 pixel\), 99 \(1 pixel\)'):
        datamodule.label_counts('train')
    inside = make(root, {'path': 'wrong.tif'}, split={'train': [X + 320, Y - 360, X + 520, Y]})
    assert inside.label_counts('train').pixels == {'a': 0, 'b': 20 * 36, 'c': 0}


def test_masks_and_labels_of_other_datasets() -> None:
    counts = LabelCounts.none(['a', 'b'])
    counts.add_mask(torch.tensor([[0, 0], [1, 255]]), ['a', 'b'], 255)
    counts.add_mask(torch.tensor([[0, 0], [0, 0]]), ['a', 'b'], 255)
    assert (counts.pixels, counts.tiles, counts.ignored) == ({'a': 6, 'b': 1}, {'a': 2, 'b': 1}, 1)
    with pytest.raises(ValueError, match=r'\[7\]'):
        counts.add_mask(torch.tensor([[7]]), ['a', 'b'], 255)
    tags = LabelCounts.none(['a', 'b'])
    tags.add_label(torch.tensor([1.0, 0.0]), ['a', 'b'])
    assert (tags.pixels, tags.lacking) == ({'a': 1, 'b': 0}, ['b'])


def test_classes_without_a_label_end_the_line() -> None:
    counts = LabelCounts({'a': 3, 'b': 0}, {'a': 1, 'b': 0}, total=5, total_tiles=1)
    assert counts.summary('train') == "Labels of 'train': 3 of 5 pixels (a 3; none of b)"
