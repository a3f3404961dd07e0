# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

import math
from itertools import permutations

import pytest
import torch
from pyproj import Geod
from torch import Tensor

from torchgeo_omnisat.losses import too_close, too_close_places


def test_places_closer_than_a_distance_in_any_crs() -> None:
    places = torch.tensor(
        [[179.9, 0], [-179.9, 0], [0, 89.9], [90, 89.9], [torch.nan, 0], [0.0, 0]], dtype=torch.float64
    )
    geod, number = Geod(ellps='WGS84'), len(places)
    for within in (15e3, 25e3, 12e6):
        close = too_close_places(places, within)
        for i, j in permutations(range(number), 2):
            distance = geod.inv(*places[i].tolist(), *places[j].tolist())[2]
            assert bool(close[i, j]) == (distance < within), (i, j, distance)
        assert not close.diagonal().any()
    with pytest.raises(ValueError, match='within is -1'):
        too_close_places(places, -1.0)


def test_too_close() -> None:
    nan = math.nan
    boxes = torch.tensor([[0, 0, 10, 10], [9, 9, 19, 19], [10, 0, 20, 10], [100, 0, 110, 10], [nan] * 4])
    overlap = {(0, 1), (1, 2)}
    for within, pairs in ((0.0, overlap), (11.0, overlap | {(0, 2)}), (91.0, overlap | {(0, 2), (2, 3)})):
        close = too_close(boxes, within)
        assert {(i, j) for i, j in close.nonzero().tolist() if i < j} == pairs
        assert (close == close.T).all()
        torch.testing.assert_close(too_close(_nine(boxes), within), close)
    points = torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 4.0]])
    assert too_close(points, 5.1).sum() == 6
    assert too_close(points, 5.0).sum() == 2
    with pytest.raises(ValueError, match=r'bounds.*\(3, 3\).*\(B, 2\), \(B, 4\).*\(B, 9\)'):
        too_close(torch.zeros(3, 3))
    with pytest.raises(ValueError, match=r'within is -1\.0'):
        too_close(points, -1.0)


def _nine(boxes: Tensor) -> Tensor:
    """TorchGeo's order: xmin, xmax, xres, ymin, ymax, yres, and the time."""
    xmin, ymin, xmax, ymax = boxes.unbind(-1)
    one = torch.ones_like(xmin)
    return torch.stack([xmin, xmax, one, ymin, ymax, one, one, one, one], -1)
