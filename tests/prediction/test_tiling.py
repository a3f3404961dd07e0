# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Tiling: tiles cover an area and hold whole patches, strips part it, whoever makes them."""

from itertools import pairwise

import numpy as np
import pytest

from torchgeo_omnisat.prediction import Strip, Tiling, patch_pixels
from torchgeo_omnisat.prediction.tiling import share

AREAS = [(32, 32), (7, 5), (100, 37), (64, 129), (50, 24)]
OVERLAPS = [0.0, 0.25, 0.5, 0.8, 6]


def tilings() -> list[Tiling]:
    return [
        Tiling(*area, 16, overlap, patch=4, band=band) for area in AREAS for overlap in OVERLAPS for band in (None, 1)
    ]


@pytest.mark.parametrize('tiling', tilings(), ids=str)
class TestTiles:
    def test_every_pixel_is_covered_by_whole_patches(self, tiling: Tiling) -> None:
        for starts, length in ((tiling.rows, tiling.height), (tiling.columns, tiling.width)):
            assert starts[0] == 0
            assert not any(start % tiling.patch for start in starts)
            assert all(0 < b - a <= tiling.stride for a, b in pairwise(starts))
            assert length <= starts[-1] + tiling.size
            assert len(starts) == 1 or starts[-1] + tiling.size < length + tiling.patch

    def test_finer_tiles_cover_the_same_ground(self, tiling: Tiling) -> None:
        finer = tiling.finer(5)
        assert finer.strips() == tiling.strips()
        assert list(finer.passes(finer.strips())) == list(tiling.passes(tiling.strips()))
        for strip in tiling.strips():
            assert finer.extent(strip) == tuple(5 * number for number in tiling.extent(strip))
            assert finer.tiles(strip) == [tuple(5 * number for number in tile) for tile in tiling.tiles(strip)]

    def test_strips_part_the_area(self, tiling: Tiling) -> None:
        count = np.zeros((tiling.height, tiling.width), int)
        for strip in tiling.strips():
            row, column, height, width = tiling.extent(strip)
            assert height > 0
            assert width > 0
            count[row : row + height, column : column + width] += 1
        assert (count == 1).all()

    def test_passes_bring_every_tile_that_touches_a_strip(self, tiling: Tiling) -> None:
        whole = {(row, column) for row in tiling.rows for column in tiling.columns}
        for strip in tiling.strips():
            top, left, height, width = tiling.extent(strip)
            touching = {
                (row, column)
                for row, column in whole
                if row < top + height
                and row + tiling.size > top
                and column < left + width
                and column + tiling.size > left
            }
            brought = [window for made, _ in tiling.passes([strip]) for window in tiling.tiles(made)]
            assert {window[:2] for window in brought} == touching
            assert len(brought) == len(touching)
            assert [made for made, wanted in tiling.passes([strip]) if wanted] == [strip]

    def test_passes_of_all_strips_repeat_none(self, tiling: Tiling) -> None:
        assert list(tiling.passes(tiling.strips())) == [(strip, True) for strip in tiling.strips()]


@pytest.mark.parametrize('overlap', [0.0, 0.25, 0.5])
def test_weights_of_neighbours_add_up_to_one(overlap: float) -> None:
    tiling = Tiling(64, 64, 16, overlap)
    total = np.zeros((64, 64))
    for row in tiling.rows:
        for column in tiling.columns:
            total[row : row + 16, column : column + 16] += tiling.weights
    np.testing.assert_allclose(total[16:-16, 16:-16], 1, atol=1e-6)
    assert total.min() > 0


def test_overlap_in_pixels_is_that_of_a_fraction() -> None:
    assert Tiling(99, 99, 16, 4) == Tiling(99, 99, 16, 4.0)
    assert Tiling(99, 99, 16, 4).rows == Tiling(99, 99, 16, 0.25).rows
    assert Tiling(99, 99, 16, 3, patch=4).stride == 12


def test_bands_are_not_much_wider_than_asked() -> None:
    tiling = Tiling(16, 100_000, 64, 0.25, 4, band=1000)
    widths = [right - left for left, right in tiling.bands]
    assert max(widths) <= 1000
    assert len(tiling.bands) == 105
    assert sum(widths) == 100_000


@pytest.mark.parametrize(('count', 'processes'), [(10, 3), (2, 5), (1, 1), (7, 7)])
def test_processes_share_everything(count: int, processes: int) -> None:
    strips = [Strip(0, row) for row in range(count)]
    shares = [share(strips, rank, processes) for rank in range(processes)]
    assert all(shares)
    assert {strip for part in shares for strip in part} == set(strips)
    if count >= processes:
        assert sum(map(len, shares)) == count


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ((0, 5, 16), 'area has 0 x 5 pixels'),
        ((9, 9, 18, 0.25, 4), 'size of tiles is 18 pixels.* 4$'),
        ((9, 9, 16, -0.1), 'overlap is -0.1'),
        ((9, 9, 16, 13, 4), 'overlap is 13, .*12 pixels'),
    ],
)
def test_what_is_no_tiling_is_refused(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tiling(*arguments)


@pytest.mark.parametrize(
    ('patch', 'gsd', 'pixels'), [(40, 10, 4), (10.24, 0.2, 256), (10, 10, 1), (5, 10, 1), (7.3, 3.14159, 1)]
)
def test_patch_pixels(patch: float, gsd: float, pixels: int) -> None:
    assert patch_pixels(patch, gsd) == pixels
