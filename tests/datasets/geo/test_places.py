# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""TilePlaces and GeoTiles: tiles drawn from pieces of the ground, however far apart or thin they are."""

import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import torch

from tests.geo_tree import UTM, write
from torchgeo_omnisat.datamodules import MultimodalGeoDataModule
from torchgeo_omnisat.datasets.geo.tiles import NoRoomError, TilePlaces, largest_tile, tiles_over
from torchgeo_omnisat.grid import Grid

#: An area of an L, a disc, a strip that fills a hundredth of its box, and two sites far apart.
SHAPES = {
    'l': shapely.Polygon([(0, 0), (900, 0), (900, 300), (300, 300), (300, 900), (0, 900)]),
    'disc': shapely.Point(500, 500).buffer(400),
    'strip': shapely.LineString([(0, 0), (6000, 6000)]).buffer(160),
    'sites': shapely.union_all([shapely.box(0, 0, 640, 640), shapely.box(900000, 900000, 900320, 900320)]),
}


def drawn(ground: Any, across: int, count: int) -> tuple[TilePlaces, Counter[tuple[int, int]]]:
    places = TilePlaces(ground, Grid.over(UTM, ground.bounds, 10), across)
    rng = np.random.default_rng(0)
    return places, Counter(place for _ in range(count) if (place := places.draw(rng)) is not None)


@pytest.mark.parametrize('name', ['l', 'disc', 'strip'])
def test_every_place_is_drawn_and_no_other(name: str) -> None:
    ground = SHAPES[name]
    places, counts = drawn(ground, 16, 6000)
    grid = places.grid
    boxes = {
        (row, column): shapely.box(*grid.box(row, column, 16, 16))
        for row in range(grid.height)
        for column in range(grid.width)
        if name != 'strip' or abs(grid.height - row - 16 - column) < 40
    }
    inside = shapely.contains(places.ground, [*boxes.values()])
    fitting = {place for place, fits in zip(boxes, inside, strict=True) if fits}
    assert set(counts) <= fitting
    assert sum(counts.values()) == 6000
    last = {grid.height - 16, grid.width - 16}
    inner = [counts[place] for place in fitting if min(place) > 0 and not last & {*place}]
    assert np.var(inner) < 1.5 * np.mean(inner), 'uniform but for the border of the rectangle'


def test_sites_are_drawn_by_their_area_whatever_lies_between() -> None:
    places, counts = drawn(SHAPES['sites'], 16, 4000)
    far = sum(count for (row, _), count in counts.items() if row < 100)
    assert sum(counts.values()) == 4000
    assert far / 4000 == pytest.approx(0.2, abs=0.03)  # a quarter of the other's area
    assert len(places._leaves[0]) == 2  # type: ignore[index]


def test_a_piece_too_small_for_a_tile_is_not_drawn() -> None:
    ground = shapely.union_all([shapely.box(0, 0, 160, 160), shapely.box(5000, 0, 5150, 160)])
    _, counts = drawn(ground, 16, 50)
    assert counts == {(0, 0): 50}


def test_draws_of_one_piece_are_what_they_were() -> None:
    ground, across = SHAPES['disc'], 16
    places, _ = drawn(ground, across, 1)
    rng, reference, grid = np.random.default_rng(3), np.random.default_rng(3), places.grid
    rooms = [grid.height - across, grid.width - across]

    def by_rejection() -> tuple[int, ...]:
        while True:
            row, column = (min(max(int(reference.integers(-8, room + 9)), 0), room) for room in rooms)
            if places.ground.contains(shapely.box(*grid.box(row, column, across, across))):
                return row, column

    assert [places.draw(rng) for _ in range(50)] == [by_rejection() for _ in range(50)]


def test_tiles_side_by_side_are_those_of_a_plain_loop() -> None:
    for ground in (SHAPES['l'], SHAPES['disc'], shapely.union_all([SHAPES['l'], shapely.box(2000, 1500, 2300, 1700)])):
        grid = Grid.over(UTM, ground.bounds, 10)
        starts = [(row, column) for row in range(0, grid.height, 16) for column in range(0, grid.width, 16)]
        reached = [start for start in starts if shapely.box(*grid.box(*start, 16, 16)).intersection(ground).area > 1e-4]
        assert tiles_over(ground, grid, 16).tolist() == [[*start] for start in reached]


def test_tiles_side_by_side_look_at_little_between_sites(monkeypatch: pytest.MonkeyPatch) -> None:
    looked, intersects = [], shapely.intersects
    monkeypatch.setattr(shapely, 'intersects', lambda one, boxes: looked.append(len(boxes)) or intersects(one, boxes))
    ground = SHAPES['sites']
    found = tiles_over(ground, Grid.over(UTM, ground.bounds, 10), 16)
    assert 20 <= len(found) <= 40
    assert sum(looked) < 1000, 'of 31 million in the box'


@pytest.fixture(scope='module')
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two labelled sites of 640 m, 60 km apart."""
    root = tmp_path_factory.mktemp('sites')
    for number, origin in enumerate(((600000.0, 5600000.0), (642000.0, 5643000.0))):
        write(root / f's2/S2_20210601_{number}.tif', np.full((1, 64, 64), 1000, np.uint16), origin)
        write(root / f'labels/{number}.tif', (np.indices((64, 64))[1] % 2).astype(np.uint8), origin)
    return root


def make(root: Path, **changes: Any) -> MultimodalGeoDataModule:
    told = {'rasters': {'s2': {'path': 's2', 'gsd': 10}}, 'mask': {'path': 'labels'}, 'labels': ['a', 'b']}
    boxes = [[600000, 5599360, 600640, 5600000], [642000, 5642360, 642640, 5643000]]
    return MultimodalGeoDataModule(str(root), **{**told, 'split': {'train': boxes}, 'tile_size': 320, **changes})


def test_training_sees_both_sites_and_nothing_beyond_them(root: Path) -> None:
    tiles = make(root, length=60).make_dataset('train')
    west = 0
    for index in range(60):
        torch.manual_seed(index)
        sample = tiles[index]
        assert (sample['mask'] != 255).all()
        west += int(sample['bounds'][0] < 620000)
    assert 15 < west < 45
    assert sum(int((t['mask'] != 255).sum()) for t in make(root).make_dataset('train', every=True)) == 2 * 64 * 64


def test_no_room_names_the_largest_tile_that_fits(root: Path) -> None:
    with pytest.raises(NoRoomError) as caught:
        make(root, tile_size=680).make_dataset('train')
    assert (caught.value.split, caught.value.size, caught.value.largest) == ('train', 680, 640)
    assert '640' in str(caught.value)
    make(root, tile_size=640).make_dataset('train')
    datamodule = make(root, split={'train': [600000, 5599700, 600200, 5599820]})
    assert largest_tile(datamodule.labelled.clip(datamodule.grounds['train'])) == 120
    narrow = make(root, split={'train': [600000, 5599700, 600200, 5599730]})
    with pytest.raises(NoRoomError, match='tile') as caught:
        narrow.make_dataset('train')
    assert caught.value.largest == 0


def test_ground_is_prepared_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = make(root).make_dataset('train')
    calls: list[str] = []
    for name in ('prepare', 'buffer'):
        monkeypatch.setattr(shapely, name, lambda *args, name=name, **kwargs: calls.append(name))
    monkeypatch.setattr(
        shapely.geometry.base.BaseGeometry, 'buffer', lambda *args, **kwargs: calls.append('buffer'), raising=True
    )
    for index in range(4):
        tiles[index]
    assert not calls


def test_tiles_can_be_sent_to_another_process(root: Path) -> None:
    tiles = make(root).make_dataset('train')
    again = pickle.loads(pickle.dumps(tiles))
    assert shapely.is_prepared(again._room.ground)
    torch.manual_seed(1)
    one = tiles[0]
    torch.manual_seed(1)
    assert torch.equal(one['bounds'], again[0]['bounds'])
