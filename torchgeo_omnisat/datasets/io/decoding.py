# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Decoding of raster pixels: validity, nodata, scale and offset."""

import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.windows import Window

from ...utils.plurals import counted
from ...utils.tensors.observed import MAX_RAW
from .headers import refuse_complex

#: Folders for which a warning of such values was issued.
_WARNED_FOLDERS: set[str] = set()


class Decoding(NamedTuple):
    """Nodata, mask, scale and offset for decoding stored pixels.

    A pixel is valid if it is not masked by the file (internal mask, ``.msk`` or alpha), is not a nodata
    value of its band or a given one, and is finite with an absolute value of at most 1e20.

    Args:
        nodata: Nodata values in addition to those that files state.
        replaced: Nodata values instead of those that files state; None to use those of files.
        alpha: Whether a band that is declared as alpha is a mask.
        scaled: Whether to apply scale and offset to valid pixels.
        scale: Scale and offset of all bands; None for those of the file.
        crs: CRS of a file without one.
        whole: Whether to read a file as a whole image, regardless of its georeference.
        convert: Function of stored pixels ``(C, H, W)``, the open file and the window that returns decoded values;
            None for scale and offset.
    """

    nodata: tuple[float, ...] = ()
    replaced: tuple[float, ...] | None = None
    alpha: bool = True
    scaled: bool = False
    scale: tuple[float, float] | None = None
    crs: Any = None
    whole: bool = False
    convert: Callable[[NDArray[Any], Any, Window], NDArray[np.float32]] | None = None

    def scale_of(self, source: Any, band: int) -> tuple[float, float]:
        """Return scale and offset of a band of an open file."""
        if not self.scaled:
            return 1.0, 0.0
        return self.scale or (float(source.scales[band - 1]), float(source.offsets[band - 1]))

    def numbers(self, stated: float | None) -> tuple[float, ...]:
        """Return the nodata values of a band whose file states the value *stated*, or None."""
        own = () if stated is None else (float(stated),)
        return (*(own if self.replaced is None else self.replaced), *self.nodata)


def as_numbers(value: Any, what: str = 'nodata') -> tuple[float, ...]:
    """Convert one or several numbers, or None, to a tuple."""
    try:
        several = () if value is None else value if isinstance(value, Sequence) else (value,)
        if isinstance(several, str) or any(isinstance(one, bool) for one in several):
            raise TypeError
        return tuple(map(float, several))
    except (TypeError, ValueError):
        raise ValueError(f'{what} is {value!r}, expected a number such as 0, or a list of numbers') from None


def decode(source: Any, bands: Sequence[int], window: Window, decoding: Decoding) -> NDArray[np.float32]:
    """Read and decode a window of an open raster as float32 ``(C, H, W)``, NaN where pixels are not valid."""
    refuse_complex([source.dtypes[band - 1] for band in bands], source.name)
    stored = [source.read(band, window=window) for band in bands] if len(set(source.dtypes)) > 1 else None
    stored = source.read(bands, window=window) if stored is None else stored
    image = np.empty((len(bands), int(window.height), int(window.width)), dtype=np.float32)
    values = stored if decoding.convert is None else decoding.convert(np.asarray(stored), source, window)
    for target, pixels, value, band in zip(image, stored, values, bands, strict=True):
        scale, offset = decoding.scale_of(source, band)
        valid = _finite(pixels, source, decoding.numbers(source.nodatavals[band - 1]))
        with np.errstate(over='ignore', invalid='ignore'):
            target[:] = value if (scale, offset) == (1, 0) else value * scale + offset
        target[~valid] = np.nan
    for places, mask in _masks(source, bands, window, decoding):
        for place in places:
            image[place][mask == 0] = np.nan
    return image


def _finite(pixels: NDArray[Any], source: Any, nodata: tuple[float, ...]) -> NDArray[np.bool_]:
    valid = np.ones(pixels.shape, dtype=np.bool_)
    for number in nodata:
        valid &= pixels != number
    if pixels.dtype.kind == 'f':
        valid &= ~np.isnan(pixels)
        huge = valid & (np.abs(pixels) > MAX_RAW)
        if huge.any():
            warn_of_huge_values(source.name, int(huge.sum()))
            valid &= ~huge
    return valid


def warn_of_huge_values(path: str, count: int) -> None:
    """Warn, once per folder, of values beyond :data:`MAX_RAW`."""
    folder = os.path.dirname(path)
    if folder not in _WARNED_FOLDERS:
        _WARNED_FOLDERS.add(folder)
        warnings.warn(
            f'{path} holds {counted(count, "value that is", "values that are")} infinite or beyond {MAX_RAW:g}: '
            'invalid, here and in other files of its folder',
            stacklevel=2,
        )


def _masks(
    source: Any, bands: Sequence[int], window: Window, decoding: Decoding
) -> list[tuple[list[int], NDArray[np.uint8]]]:
    """Return the masks of a raster, each with the positions in *bands* to which it applies; 0 is invalid."""
    found, everywhere = [], list(range(len(bands)))
    flags = [source.mask_flag_enums[band - 1] for band in bands]
    own = [
        place
        for place, flag in enumerate(flags)
        if not {MaskFlags.all_valid, MaskFlags.alpha, MaskFlags.nodata} & set(flag)
    ]
    whole = [place for place in own if MaskFlags.per_dataset in flags[place]]
    if whole:
        found.append((everywhere, source.read_masks(bands[whole[0]], window=window)))
    found += [([place], source.read_masks(bands[place], window=window)) for place in own if place not in whole]
    declared = [place for place, flag in enumerate(flags) if {MaskFlags.per_dataset, MaskFlags.nodata} <= set(flag)]
    if declared and decoding.replaced is None:  # nodata of all bands at once
        found.append((everywhere, source.read_masks(bands[declared[0]], window=window)))
    if decoding.alpha and ColorInterp.alpha in source.colorinterp:
        found.append((everywhere, source.read(source.colorinterp.index(ColorInterp.alpha) + 1, window=window)))
    return found
