# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Decoding: which pixels of a raster are valid, and their values; the same however the pixels are then resampled."""

import os
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.windows import Window

from .headers import refuse_complex

#: No sensor measures numbers beyond this; files write them for nodata that they do not declare.
GREATEST = 1e20
#: Folders of which it was said that they hold such numbers.
_STRANGE: set[str] = set()


class Decoding(NamedTuple):
    """How stored pixels become values.

    A pixel is valid if the mask of the file shows it (internal, ``.msk`` or alpha), if it is neither the
    nodata of its band nor one that is given, and if it is finite and no greater than 1e20.

    Args:
        nodata: Numbers that are nodata besides what files state.
        replaced: Numbers that are nodata instead of what files state; None to heed that.
        alpha: Whether a band that is declared to be alpha is a mask.
        scaled: Whether scale and offset of the bands apply, after nodata is left out.
        scale: Scale and offset that apply then, of all bands; None for those in the file.
        crs: CRS of a file that states none.
        whole: Whether a file is read as a whole, pixel by pixel, wherever it lies.
    """

    nodata: tuple[float, ...] = ()
    replaced: tuple[float, ...] | None = None
    alpha: bool = True
    scaled: bool = False
    scale: tuple[float, float] | None = None
    crs: Any = None
    whole: bool = False

    def scale_of(self, source: Any, band: int) -> tuple[float, float]:
        """Return scale and offset that apply to a band of an open file."""
        if not self.scaled:
            return 1.0, 0.0
        return self.scale or (float(source.scales[band - 1]), float(source.offsets[band - 1]))

    def numbers(self, stated: float | None) -> tuple[float, ...]:
        """Return the numbers that are nodata in a band.

        Args:
            stated: What its file states; None for nothing.
        """
        own = () if stated is None else (float(stated),)
        return (*(own if self.replaced is None else self.replaced), *self.nodata)


def as_numbers(value: Any, what: str = 'nodata') -> tuple[float, ...]:
    """Return one number or several as a tuple; None is no number.

    Args:
        value: What is given.
        what: The argument, for an error.

    Raises:
        ValueError: If that is something else.
    """
    try:
        several = () if value is None else value if isinstance(value, Sequence) else (value,)
        if isinstance(several, str) or any(isinstance(one, bool) for one in several):
            raise TypeError
        return tuple(map(float, several))
    except (TypeError, ValueError):
        raise ValueError(f'{what} is {value!r}, expected a number such as 0, or a list of numbers') from None


def decode(source: Any, bands: Sequence[int], window: Window, decoding: Decoding) -> NDArray[np.float32]:
    """Read part of an open raster.

    Args:
        source: The raster.
        bands: Numbers of the bands.
        window: The part, within the raster.
        decoding: What is valid, and whether to scale.

    Returns:
        Float32 ``(C, H, W)``, NaN where pixels are not valid.

    Raises:
        ValueError: If pixels are complex.
    """
    refuse_complex([source.dtypes[band - 1] for band in bands], source.name)
    stored = [source.read(band, window=window) for band in bands] if len(set(source.dtypes)) > 1 else None
    stored = source.read(bands, window=window) if stored is None else stored
    image = np.empty((len(bands), int(window.height), int(window.width)), dtype=np.float32)
    for target, pixels, band in zip(image, stored, bands, strict=True):
        scale, offset = decoding.scale_of(source, band)
        valid = _finite(pixels, source, decoding.numbers(source.nodatavals[band - 1]))
        with np.errstate(over='ignore', invalid='ignore'):
            target[:] = pixels if (scale, offset) == (1, 0) else pixels * scale + offset
        target[~valid] = np.nan
    for places, mask in _masks(source, bands, window, decoding):
        for place in places:
            image[place][mask == 0] = np.nan
    return image


def _finite(pixels: NDArray[Any], source: Any, nodata: tuple[float, ...]) -> NDArray[np.bool_]:
    """Return which pixels of a band are measured numbers."""
    valid = np.ones(pixels.shape, dtype=np.bool_)
    for number in nodata:
        valid &= pixels != number
    if pixels.dtype.kind == 'f':
        valid &= ~np.isnan(pixels)
        strange = valid & (np.abs(pixels) > GREATEST)
        if strange.any():
            say_strange(source.name, int(strange.sum()))
            valid &= ~strange
    return valid


def say_strange(path: str, count: int) -> None:
    """Warn, once a folder, of numbers that no sensor measures."""
    folder = os.path.dirname(path)
    if folder not in _STRANGE:
        _STRANGE.add(folder)
        warnings.warn(
            f'{path} holds {count} values that are infinite or beyond {GREATEST:g}: they are invalid, here and in '
            'other files of its folder',
            stacklevel=2,
        )


def _masks(
    source: Any, bands: Sequence[int], window: Window, decoding: Decoding
) -> list[tuple[list[int], NDArray[np.uint8]]]:
    """Return the masks of a raster, each with the places among *bands* that it is for; 0 is invalid."""
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
