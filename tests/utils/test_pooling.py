# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Pooling of flags."""

import pytest
import torch
import torch.nn.functional as F

from torchgeo_omnisat.utils.tensors.pooling import any_pool


@pytest.mark.parametrize('size', [(12, 18), (4, 6), (5, 7), (1, 1), (13, 40)])
def test_any_pool_is_maximum_pooling_of_flags(size: tuple[int, int]) -> None:
    seen = torch.rand(3, 1, 12, 18, generator=torch.Generator().manual_seed(0)) > 0.95
    expected = F.adaptive_max_pool2d(seen.float(), size) > 0
    assert expected.any()
    assert torch.equal(any_pool(seen, size), expected)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.equal(any_pool(seen, size), expected)
    finally:
        torch.use_deterministic_algorithms(False)
