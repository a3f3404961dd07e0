# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Stitching: tiles together are what one pass over the whole area is, without seams."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from torchgeo_omnisat.batch import collate
from torchgeo_omnisat.prediction import Stitcher, Strip, Tiling, Window
from torchgeo_omnisat.tasks import OmniSatSegmentation

from .areas import MODALITIES, TOLD, PlaneTiles, field

Array = NDArray[np.float32]
Model = Callable[[Window], Array]


def by_pixel(window: Window) -> Array:
    """Three probabilities that depend on the pixel alone."""
    rows = np.arange(window.row, window.row + window.height)
    columns = np.arange(window.column, window.column + window.width)
    scores = np.exp([field(rows, columns, phase) for phase in (0.0, 1.0, 2.0)])
    return (scores / scores.sum(0)).astype(np.float32)


def by_tile(window: Window) -> Array:
    """Probabilities that are constant in a tile and differ from those of all others."""
    draw = np.random.default_rng(abs(hash(tuple(window[:2])))).random(3)
    return np.broadcast_to((draw / draw.sum())[:, None, None], (3, *window[2:])).astype(np.float32)


def stitch(tiling: Tiling, model: Model, strips: list[Strip] | None = None) -> tuple[Array, NDArray[np.uint16]]:
    stitcher = Stitcher(tiling, 3)
    probabilities = np.full((3, tiling.height, tiling.width), np.nan, np.float32)
    seen = np.zeros((tiling.height, tiling.width), np.uint16)
    for strip, wanted in tiling.passes(strips or tiling.strips()):
        stitcher.begin(strip)
        for window in tiling.tiles(strip):
            stitcher.add(window, model(window), np.full(window[2:], 1 + window.column % 2, np.uint16))
        if wanted:
            row, column, height, width = tiling.extent(strip)
            target = np.s_[row : row + height, column : column + width]
            probabilities[(slice(None), *target)], seen[target] = stitcher.finish()
    return probabilities, seen


def jumps(probabilities: Array, tiling: Tiling) -> tuple[float, float]:
    """The largest difference between neighbouring pixels across borders of tiles, and elsewhere."""
    at, elsewhere = 0.0, 0.0
    for axis, starts in ((1, tiling.rows), (2, tiling.columns)):
        steps = np.abs(np.diff(probabilities, axis=axis)).max((0, 3 - axis))
        edges = {edge for start in starts for edge in (start, start + tiling.size)}
        borders = np.isin(np.arange(1, probabilities.shape[axis]), list(edges))
        at, elsewhere = max(at, steps[borders].max()), max(elsewhere, steps[~borders].max())
    return float(at), float(elsewhere)


@pytest.mark.parametrize('overlap', [0, 0.25, 0.5, 0.75])
@pytest.mark.parametrize('band', [None, 1])
@pytest.mark.parametrize('size', [(100, 150), (33, 20), (64, 64)])
def test_stitched_is_one_pass(overlap: float, band: int | None, size: tuple[int, int]) -> None:
    tiling = Tiling(*size, 32, overlap, patch=4, band=band)
    stitched, _ = stitch(tiling, by_pixel)
    np.testing.assert_allclose(stitched, by_pixel(Window(0, 0, *size)), atol=1e-5)


@pytest.mark.parametrize('overlap', [0, 0.25, 0.5, 0.75])
def test_strips_do_not_depend_on_the_run(overlap: float) -> None:
    tiling = Tiling(90, 140, 16, overlap, patch=4, band=70)
    assert len(tiling.bands) > 1
    whole, seen = stitch(tiling, by_tile)
    for strips in (tiling.strips()[5:9], tiling.strips()[1::2], tiling.strips()[-1:]):
        part, bits = stitch(tiling, by_tile, strips)
        there = np.isfinite(part)
        assert there.any()
        assert np.array_equal(part[there], whole[there])
        assert np.array_equal(bits[there[0]], seen[there[0]])


def test_only_open_rows_are_held() -> None:
    tiling = Tiling(10_000, 20_000, 64, 0.25, 4, band=2000)
    stitcher = Stitcher(tiling, 3)
    for strip in tiling.strips()[:3]:
        stitcher.begin(strip)
        for window in tiling.tiles(strip):
            stitcher.add(window, np.zeros((3, 64, 64), np.float32), np.zeros((64, 64), np.uint16))
        assert stitcher.total.nbytes + stitcher.weight.nbytes + stitcher.seen.nbytes < 64 * 2000 * (3 * 4 + 4 + 2) + 1
    assert [part.shape[-1] for part in stitcher.finish()] == [tiling.bands[0][1]] * 2


def test_bits_of_all_tiles_are_joined() -> None:
    _, seen = stitch(Tiling(16, 28, 16, 4), by_pixel)
    assert seen[0].tolist() == [1] * 28
    _, seen = stitch(Tiling(16, 29, 16, 3), by_pixel)
    assert seen[0].tolist() == [1] * 13 + [3] * 3 + [2] * 13


class TestSeams:
    @pytest.mark.parametrize('overlap', [0.25, 0.5])
    def test_tiles_that_disagree_blend(self, overlap: float) -> None:
        for side, factor in ((128, 0.5), (120, 1.0)):  # the last tiles overlap more
            tiling = Tiling(side, side, 32, overlap, patch=4)
            at, elsewhere = jumps(stitch(tiling, by_tile)[0], tiling)
            assert at <= factor * elsewhere
        without = Tiling(128, 128, 32, 0, patch=4)
        at, elsewhere = jumps(stitch(without, by_tile)[0], without)
        assert at > elsewhere

    @pytest.mark.parametrize('overlap', [0.25, 0.5])
    def test_a_real_model_has_none(self, overlap: float) -> None:
        torch.manual_seed(0)
        task = OmniSatSegmentation(**TOLD).eval()
        tiles = PlaneTiles(('s2', 'dem'))

        def model(window: Window) -> Array:
            with torch.inference_mode():
                return task(collate([tiles[window]], MODALITIES)).softmax(1)[0].numpy()  # type: ignore[no-any-return]

        tiling = Tiling(96, 96, 32, overlap, patch=4)
        at, elsewhere = jumps(stitch(tiling, model)[0], tiling)
        assert at <= elsewhere
