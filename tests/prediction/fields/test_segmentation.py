# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Fields are the same whatever the blocks, and touching ones stay apart."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter, generate_binary_structure, label
from skimage.morphology import h_maxima
from skimage.segmentation import watershed

from torchgeo_omnisat.prediction import segment_fields
from torchgeo_omnisat.prediction.fields.segmentation import _slices, label_basins


def noise(seed: int, shape: tuple[int, int], smooth: float) -> NDArray[np.float64]:
    values = gaussian_filter(np.random.default_rng(seed).normal(size=shape), smooth)
    return (values - values.min()) / np.ptp(values)


def random_maps(seed: int, shape: tuple[int, int] = (47, 61)) -> tuple[Any, Any]:
    """Maps of fields and gaps of many shapes; with an even seed they have plateaus, with every third no gaps."""
    distance, boundary = noise(seed, shape, 2), 0.5 * noise(seed + 100, shape, 2)
    other = noise(seed + 200, shape, 4) * (1 - boundary) * (seed % 3 > 0)
    if seed % 2 == 0:
        distance, boundary, other = (np.rint(6 * values) / 6 for values in (distance, boundary, other))
    return np.stack([other, 1 - other - boundary, boundary]), distance


def maps_of(ids: NDArray[Any]) -> tuple[Any, Any]:
    """What a perfect model returns for these fields: the outermost pixels of each are its boundary."""
    extent, distance = np.zeros((3, *ids.shape), np.float32), np.zeros(ids.shape, np.float32)
    for number in np.unique(ids[ids > 0]):
        depth = distance_transform_edt(np.pad(ids == number, 1))[1:-1, 1:-1]
        extent[2] += depth == 1
        extent[1] += depth > 1
        distance += depth / depth.max()
    extent[0] = ids == 0
    return extent, distance


def of_levels(levels: NDArray[Any], mask: NDArray[np.bool_], h: float, block: int) -> NDArray[np.int32]:
    labels = np.zeros(levels.shape, np.int32)
    table = label_basins(
        lambda window: (levels[_slices(window)], mask[_slices(window)]),
        lambda window, values: labels.__setitem__(_slices(window), values),
        levels.shape,
        h,
        block=block,
    )
    return table.ids[labels]


def reference(levels: NDArray[Any], mask: NDArray[np.bool_], h: float) -> NDArray[np.int64]:
    """Join pixels over pairs of neighbours, from the highest pair down, unless both sides rise by *h* or more."""
    size = levels.size
    keys = levels.ravel().astype(int) * size - np.arange(size)
    indices = np.arange(size).reshape(levels.shape)
    pairs = np.concatenate(
        [
            np.stack([a.ravel(), b.ravel()], 1)
            for a, b in ((indices[1:], indices[:-1]), (indices[:, 1:], indices[:, :-1]))
        ]
    )
    pairs = pairs[mask.ravel()[pairs].all(1)]
    pairs = pairs[np.lexsort([-keys[pairs].max(1), -keys[pairs].min(1)])]
    parents = list(range(size))

    def root(pixel: int) -> int:
        while parents[pixel] != pixel:
            parents[pixel] = pixel = parents[parents[pixel]]
        return pixel

    for pair in pairs.tolist():
        lower, upper = sorted(map(root, pair), key=keys.__getitem__)  # the root is the highest pixel
        if lower != upper and levels.ravel()[lower] - levels.ravel()[pair].min() < h:
            parents[lower] = upper
    return np.array([root(pixel) + 1 for pixel in range(size)]).reshape(levels.shape) * mask


def are_same(one: NDArray[Any], two: NDArray[Any]) -> bool:
    """Whether two maps divide pixels in the same way, whatever the ids."""
    pairs = np.unique(np.stack([one.ravel(), two.ravel()]), axis=1)
    return pairs.shape[1] == len(np.unique(one)) == len(np.unique(two)) and ((one == 0) == (two == 0)).all()


class TestSegmentFields:
    def test_touching_fields_of_one_class_stay_two(self) -> None:
        ids = np.zeros((40, 60), int)
        ids[4:30, 5:25], ids[4:30, 25:50], ids[30:38, 5:50] = 1, 2, 3
        for block in (100, 25, 7):
            found = segment_fields(*maps_of(ids), block=block)
            assert found.max() == 3
            assert (found != ids).sum() <= 2  # pixels where three fields meet

    @pytest.mark.parametrize('seed', range(6))
    def test_blocks_leave_no_trace(self, seed: int) -> None:
        extent, distance = random_maps(seed)
        whole = segment_fields(extent, distance, h=0.1)
        assert whole.max() > 8
        for block in (7, 16, 33):
            assert np.array_equal(segment_fields(extent, distance, h=0.1, block=block), whole)

    @pytest.mark.parametrize(('h', 'count'), [(0.25, 2), (0.35, 1)])
    def test_two_peaks_are_one_field_below_the_height(self, h: float, count: int) -> None:
        """The lower peak, 0.8, is 0.3 above the saddle, 0.5; both are wide, so smoothing does not change them."""
        profile = np.repeat([1.0, 0.5, 0.8], 9)
        extent = np.zeros((3, 9, len(profile)))
        extent[1] = 1
        assert segment_fields(extent, np.tile(profile, (9, 1)), h=h).max() == count

    def test_ids_are_in_the_order_of_pixels(self) -> None:
        ids = segment_fields(*random_maps(1), h=0.1)
        found, first = np.unique(ids, return_index=True)
        assert found.tolist() == list(range(ids.max() + 1))
        assert (np.diff(first[1:]) > 0).all()
        assert ids.dtype == np.int32

    def test_each_field_is_connected(self) -> None:
        ids = segment_fields(*random_maps(2), h=0.1, block=9)
        assert all(label(ids == number)[1] == 1 for number in range(1, ids.max() + 1))

    def test_a_field_larger_than_many_blocks_is_one(self) -> None:
        ids = np.zeros((50, 50), int)
        ids[1:49, 1:49] = 1
        assert np.array_equal(segment_fields(*maps_of(ids), block=12), ids)

    def test_small_ones_are_removed(self) -> None:
        ids = np.zeros((20, 20), int)
        ids[1:4, 1:4], ids[6:16, 6:16] = 1, 2
        assert np.array_equal(segment_fields(*maps_of(ids), smallest=9), ids)
        assert np.array_equal(segment_fields(*maps_of(ids), smallest=10), ids == 2)

    def test_unobserved_pixels_belong_to_no_field(self) -> None:
        ids = np.ones((12, 30), int)
        extent, distance = maps_of(ids)
        observed = np.ones(ids.shape, bool)
        observed[:, 10] = False
        distance[:, 20] = np.nan
        found = segment_fields(extent, distance, observed)
        assert np.array_equal(found[5], np.repeat([1, 0, 2, 0, 3], [10, 1, 9, 1, 9]))

    def test_of_nothing_there_is_none(self) -> None:
        extent = np.zeros((3, 5, 4))
        extent[0] = 1
        assert not segment_fields(extent, np.zeros((5, 4)), block=2).any()

    @pytest.mark.parametrize(
        ('changes', 'value'),
        [
            ({'extent': np.zeros((2, 4, 4))}, r'\(2, 4, 4\)'),
            ({'observed': np.zeros((3, 4), bool)}, r'\(3, 4\)'),
            ({'h': 0.0}, 'h is 0'),
            ({'block': 0}, 'block is 0'),
            ({'smallest': -1}, 'sizes are .-1'),
        ],
    )
    def test_invalid_arguments(self, changes: dict[str, Any], value: str) -> None:
        arguments: dict[str, Any] = {'extent': np.zeros((3, 4, 4)), 'distance': np.zeros((4, 4))}
        with pytest.raises(ValueError, match=value):
            segment_fields(**arguments | changes)


class TestLabelBasins:
    @pytest.mark.parametrize('seed', range(8))
    def test_they_are_those_of_the_definition(self, seed: int) -> None:
        steps = (3, 10, 100, 10**6)[seed % 4]
        levels = np.rint(steps * noise(seed, (23, 31), 1.2)).astype(int)
        mask = noise(seed + 50, levels.shape, 3) > 0.4
        h = max(1.0, steps * (0.02, 0.2)[seed // 4])
        expected = reference(levels, mask, h)
        for block in (4, 13, 40):
            assert are_same(of_levels(levels, mask, h, block), expected)

    @pytest.mark.filterwarnings('ignore:Setting the shape on a NumPy array:DeprecationWarning')
    def test_they_are_those_of_scikit_image_but_for_single_pixels(self) -> None:
        for seed in range(3):
            levels = noise(seed, (60, 50), 2.5).ravel().argsort().argsort().reshape(60, 50) + 1  # without ties
            mask = noise(seed + 50, levels.shape, 5) > 0.4
            ours, surface = of_levels(levels, mask, 150, 16), np.where(mask, levels, 0)
            seeds, count = label(h_maxima(surface, 150, generate_binary_structure(2, 1)) * mask)
            theirs = watershed(-surface, seeds, mask=mask)
            sizes = np.unique(np.stack([ours.ravel(), theirs.ravel()]), axis=1, return_counts=True)[1]
            assert ours.max() == count
            assert np.sort(sizes)[: len(sizes) - count - 1].sum() <= 0.01 * levels.size
