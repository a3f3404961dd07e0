# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Small training tiles: equal to those read from files, and drawn at labels."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.geo_tree import write
from torchgeo_omnisat.datamodules import MultimodalGeoDataModule
from torchgeo_omnisat.datasets.geo import small
from torchgeo_omnisat.datasets.geo.small import LabelPlaces, labelled_cells
from torchgeo_omnisat.datasets.geo.tiles import GeoTiles

RASTERS = {
    's2': {'path': 's2', 'gsd': 10, 'nodata': -1},
    'spot': {'path': 'spot', 'gsd': 5, 'temporal': False, 'nodata': -1},
}


@pytest.fixture(scope='module')
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two dates of 24 x 24 pixels, of which the first lacks the west and the second single pixels."""
    folder, rng = tmp_path_factory.mktemp('small'), np.random.default_rng(0)
    for day, lacking in (('20200101', np.s_[:, :, :12]), ('20200201', np.s_[:, ::5, ::3])):
        image = rng.uniform(0, 1, (2, 24, 24)).astype(np.float32)
        image[lacking] = -1
        write(folder / f's2/S2_{day}.tif', image, bands=('B02', 'B03'))
    image = rng.uniform(0, 1, (1, 48, 48)).astype(np.float32)
    image[:, 20:30, 20:30] = -1
    write(folder / 'spot/SPOT.tif', image, step=5.0, bands=('R',))
    mask = np.full((24, 24), 255, np.uint8)
    mask[2:20, 3], mask[5, 7], mask[11, 10] = 0, 1, 2
    write(folder / 'mask/mask.tif', mask, nodata=255)
    return folder


def make(root: Path, **changes: Any) -> MultimodalGeoDataModule:
    settings: dict[str, Any] = {
        'root': str(root),
        'rasters': RASTERS,
        'mask': {'path': 'mask'},
        'labels': ['a', 'b', 'c'],
        'patch_size': 10,
        'tile_size': 40,
        'train_tile_size': 20,
        'length': 300,
        'split': {'fractions': [0.6, 0.2, 0.2]},
    }
    return MultimodalGeoDataModule(**{**settings, **changes})


def same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(value, other[key], equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize('memory', [2**29, 20_000])
def test_windows_of_blocks_are_those_of_the_files(root: Path, memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small, 'MEMORY', memory)
    tiles = make(root).make_dataset('train')
    files = GeoTiles(tiles.dataset, 20.0, 300)
    assert tiles._blocks is not None
    assert files._blocks is None
    for seed in range(40):
        torch.manual_seed(seed)
        cut = tiles[0]
        torch.manual_seed(seed)
        same(cut, files[0])
    kept = tiles._blocks._blocks
    assert sum(small._bytes(block) for block in kept.values()) == tiles._blocks._bytes <= memory
    assert len(kept) > 1


def test_places_are_at_labels(root: Path) -> None:
    counts = {}
    for places in ('anywhere', 'labels'):
        tiles = make(root, train_places=places, train_tile_size=10).make_dataset('train')
        torch.manual_seed(0)
        counts[places] = Counter(int(tiles[index]['mask']) for index in range(300))
    assert counts['anywhere'][255] > 200
    assert set(counts['labels']) == {0, 1, 2}
    assert counts['labels'][0] > 240


def test_larger_tiles_contain_a_label_at_different_places(root: Path) -> None:
    tiles = make(root, train_places='labels').make_dataset('train')
    masks = [tiles[index]['mask'] for index in range(300)]
    assert all((mask != 255).any() for mask in masks)
    places = {tuple((mask == 1).nonzero()[0].tolist()) for mask in masks if (mask == 1).any()}
    assert places == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_labels_of_other_splits_are_not_drawn(root: Path) -> None:
    tiles = make(root, train_places='labels', split={'fractions': [0.25, 0.375, 0.375]}).make_dataset('train')
    assert tiles._labels is not None
    assert set(tiles._labels.cells[:, 1].tolist()) == {3}


def test_without_labels_tiles_are_anywhere() -> None:
    places = LabelPlaces(labelled_cells(torch.full((4, 4), 255), 255, 1), 1)
    assert places.draw(np.random.default_rng(0), lambda row, column: True) is None


def test_cells_of_fine_and_continuous_labels() -> None:
    mask = torch.tensor([[0, 0, 255, 255], [1, 0, 255, 2]])
    assert labelled_cells(mask, 255, 2).tolist() == [[0, 0], [0, 1]]
    values = torch.tensor([[0.5, torch.nan]])
    assert labelled_cells(values, 255, 1).tolist() == [[0, 0]]


@pytest.mark.parametrize(
    ('changes', 'found'),
    [({'train_tile_size': 80}, '80'), ({'train_tile_size': 0}, '0'), ({'train_places': 'class'}, 'class')],
)
def test_invalid_arguments_are_refused(root: Path, changes: dict[str, Any], found: str) -> None:
    with pytest.raises(ValueError, match=found):
        make(root, **changes)
