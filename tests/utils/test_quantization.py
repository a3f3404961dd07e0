# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from torchgeo_omnisat.utils.tensors.quantization import dequantize, quantize


def test_values_of_the_scheme() -> None:
    codes = quantize([0, 1, -1, 0.25, -0.25, 2, np.nan])
    assert codes.dtype == np.int8
    assert codes.tolist() == [0, 127, -127, 64, -64, 127, -128]
    values = dequantize(np.array([0, 127, -127, 64, -128], np.int8))
    assert values.dtype == np.float32
    np.testing.assert_allclose(values[:4], [0, (127 / 127.5) ** 2, -((127 / 127.5) ** 2), (64 / 127.5) ** 2], rtol=1e-6)
    assert np.isnan(values[4])


def test_every_code_is_reproduced() -> None:
    codes = np.arange(-128, 128).astype(np.int8)
    assert (quantize(dequantize(codes)) == codes).all()
    assert (dequantize(codes.astype(np.int16))[1:] == dequantize(codes)[1:]).all()


def test_cosine_survives() -> None:
    vectors = np.random.default_rng(0).normal(size=(1000, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    stored = dequantize(quantize(vectors))
    stored /= np.linalg.norm(stored, axis=1, keepdims=True)
    assert (vectors * stored).sum(1).min() > 0.999


def test_neighbours_survive() -> None:
    rng = np.random.default_rng(0)
    classes = np.arange(2000) % 5
    vectors = rng.normal(size=(5, 64))[classes] + 3 * rng.normal(size=(2000, 64))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    scores = [
        KNeighborsClassifier(5).fit(x[:1000], classes[:1000]).score(x[1000:], classes[1000:])
        for x in (vectors, dequantize(quantize(vectors)))
    ]
    assert 0.5 < scores[0] < 0.95
    assert abs(scores[1] - scores[0]) <= 0.005


def test_other_codes_are_rejected() -> None:
    with pytest.raises(ValueError, match='200'):
        dequantize(np.array([200]))
    with pytest.raises(ValueError, match=r'0\.5'):
        dequantize(np.array([0.5]))
