# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Quantization of embeddings to int8, as in the files of AlphaEarth."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: Stored value of pixels without an embedding.
NODATA = -128
#: Stored value is sign(x) * sqrt(abs(x)) * SCALE.
SCALE = 127.5
#: Scheme and formula, as stated in the tags of files.
SCHEME = 'square root, int8'
FORMULA = 'sign(q) * (q / 127.5)**2; -128 is nodata'


def quantize(x: ArrayLike) -> NDArray[np.int8]:
    """Quantize values from -1 to 1, with the square root scheme of AlphaEarth.

    The square root keeps more digits of small values, which most components of a unit vector are.

    Args:
        x: Values of any shape. Those beyond -1 and 1 are clipped.

    Returns:
        int8 codes from -127 to 127: ``sign(x) * sqrt(abs(x)) * 127.5``, rounded. NaN becomes -128.
    """
    values = np.asarray(x, np.float32)
    scaled = np.rint(np.sign(values) * np.sqrt(np.abs(values)) * np.float32(SCALE)).clip(-127, 127)
    return np.where(np.isnan(scaled), NODATA, scaled).astype(np.int8)


def dequantize(q: ArrayLike) -> NDArray[np.float32]:
    """Return the values of int8 codes: ``sign(q) * (q / 127.5)**2``, NaN for -128.

    Args:
        q: Codes of any shape, as :func:`quantize` or AlphaEarth store them.

    Raises:
        ValueError: If a code is not an integer from -128 to 127.
    """
    codes = np.asarray(q)
    if codes.dtype != np.int8 and not ((codes >= -128) & (codes <= 127) & (codes == np.rint(codes))).all():
        raise ValueError(f'codes have values from {codes.min()} to {codes.max()}, expected integers from -128 to 127')
    scaled = codes.astype(np.float32) / np.float32(SCALE)
    values: NDArray[np.float32] = np.sign(scaled) * scaled**2
    return np.where(codes == NODATA, np.float32(np.nan), values)
