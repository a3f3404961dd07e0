# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Series: dates as days, the choice among them, and frames of one day made one."""

import ast
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchgeo.datasets import Sentinel2

from ..utils.jsonfile import parse_json

#: Seconds in a day.
DAY = 86400
#: Bands of Sentinel-2 at 10 and 20 m, which every dataset here has in this order.
S2_BANDS = ('B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B8A', 'B11', 'B12')
#: Central wavelengths of Sentinel-2A (ESA) in nanometres, by band; TorchGeo has them in micrometres.
S2_WAVELENGTHS: dict[str, float] = {band: round(1000 * micro, 1) for band, micro in Sentinel2.wavelengths.items()}
#: Facts of a modality with the bands :data:`S2_BANDS`, whose reflectance is stored x 10000.
S2_FACTS: dict[str, Any] = {
    'kind': 'optical',
    'unit': 'dn',
    'wavelengths': tuple(S2_WAVELENGTHS[band] for band in S2_BANDS),
}
#: Central wavelengths of SPOT 6 and 7 (Airbus) in nanometres: red, green, blue, near infrared.
SPOT_WAVELENGTHS = (660.0, 560.0, 485.0, 825.0)
#: Makes the frames of one day, ``(F, C, H, W)``, one image, ``(C, H, W)``.
Merge = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def parse_dates(value: Any, where: str) -> NDArray[np.int64]:
    """Days since 1970-01-01, one a frame, from dates written as ``20180924``.

    Args:
        value: The dates as a list, as a mapping from the number of the frame (``{'0':
            20180924}``), or as either of these in a string, with JSON's quotes or Python's.
        where: What to call them in an error.

    Returns:
        The days in the order of the frames, which need not be that of time.

    Raises:
        ValueError: If that is not what *value* is, or a date is not in the calendar.
    """
    expected = f"expected dates such as {{'0': 20180924, '1': 20180929}} in {where}"
    try:
        if isinstance(value, str):
            value = _literal(value)
        if isinstance(value, Mapping):
            value = [value[frame] for frame in sorted(value, key=int)]
        stamps = np.array([int(stamp) for stamp in value], dtype=np.int64)
    except (TypeError, ValueError, SyntaxError, OverflowError):
        raise ValueError(f'{expected}, got {_short(value)}') from None
    year, month, day = stamps // 10000, stamps // 100 % 100, stamps % 100
    months = ((year - 1970) * 12 + month - 1).astype('datetime64[M]')
    days = months.astype('datetime64[D]') + (day - 1)
    wrong = (year < 1970) | (year > 2262) | (month < 1) | (month > 12) | (days.astype('datetime64[M]') != months)
    if wrong.any():
        raise ValueError(f'{expected}, got {stamps[wrong].tolist()}')
    return days.astype(np.int64)


def parse_day(value: str, where: str) -> int:
    """Days since 1970-01-01 of one date in ISO form, such as ``'2019-07-01'``."""
    try:
        return int(np.datetime64(value, 'D').astype(np.int64))
    except (TypeError, ValueError):
        raise ValueError(f"{where} holds {value!r}, expected a date such as '2019-07-01'") from None


def choose_dates(
    days: NDArray[np.int64], span: tuple[int, int] | None = None, max_dates: int | None = None
) -> NDArray[np.int64]:
    """Frames to be read, in the order of time.

    Args:
        days: The day of each frame.
        span: First and last day to keep; both belong to it.
        max_dates: How many days to keep, spread evenly over those that remain. All
            frames of a chosen day are read.

    Returns:
        Indices into *days*, possibly none.
    """
    kept = np.unique(days)
    if span is not None:
        kept = kept[(kept >= span[0]) & (kept <= span[1])]
    if max_dates is not None and len(kept) > max_dates:
        kept = kept[((np.arange(max_dates) + 0.5) * len(kept) / max_dates).astype(np.int64)]
    frames = np.flatnonzero(np.isin(days, kept))
    return frames[np.argsort(days[frames], kind='stable')]


def choose_clear(
    days: NDArray[np.int64],
    clear: NDArray[np.bool_],
    span: tuple[int, int] | None = None,
    max_dates: int | None = None,
) -> NDArray[np.int64]:
    """Frames to be read of a series with clouds, in the order of time.

    Args:
        days: The day of each frame.
        clear: Which frames are not under clouds. Others are never read of a day that has a
            clear one, nor at all if *max_dates* is given and anything is clear.
        span: First and last day to keep; both belong to it.
        max_dates: How many days to keep.

    Returns:
        Indices into *days*, possibly none.
    """
    wanted = clear if max_dates is not None and clear.any() else clear | ~np.isin(days, days[clear])
    frames = np.flatnonzero(wanted)
    return frames[choose_dates(days[frames], span, max_dates)]


def merge_days(
    image: NDArray[np.float32], days: NDArray[np.int64], merge: Merge
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """One frame a day.

    Args:
        image: Frames of shape ``(T, C, H, W)``; NaN where nothing was measured.
        days: The day of each frame, in the order of time.
        merge: What makes the frames of one day one image, each pixel by itself.

    Returns:
        The image and the days, both as they were if no day repeats itself.
    """
    if (days[1:] > days[:-1]).all():  # most series have one frame a day
        return image, days
    unique, first, counts = np.unique(days, return_index=True, return_counts=True)
    merged = image[first]
    for count in np.unique(counts[counts > 1]).tolist():
        # Days of as many frames are merged at once, their images one below the other.
        places = np.flatnonzero(counts == count)
        frames = image[first[places] + np.arange(count)[:, None]].swapaxes(1, 2)
        joined = merge(frames.reshape(*frames.shape[:2], -1, frames.shape[-1]))
        merged[places] = joined.reshape(frames.shape[1:]).swapaxes(0, 1)
    return merged, unique


def finite_mean(frames: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean over the frames ``(F, C, H, W)`` of what is finite; NaN where nothing is."""
    finite = np.isfinite(frames)
    with np.errstate(invalid='ignore'):
        return (np.where(finite, frames, 0).sum(0, dtype=np.float64) / finite.sum(0)).astype(np.float32)


def backscatter_mean(frames: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean in linear power of frames ``(F, 3, H, W)`` whose bands are VV, VH and VV-VH in dB.

    A mean of dB would be one of logarithms, which speckle pulls down. The third band is
    a ratio of powers: it follows from the other two and is taken from their means.
    """
    polarisations = 10 * np.log10(finite_mean(np.power(10, frames[:, :2] / 10, dtype=np.float32)))
    return np.concatenate([polarisations, polarisations[:1] - polarisations[1:]])


def when(dates: Iterable[Tensor]) -> tuple[float, float]:
    """Begin of the first and end of the last day, in seconds since 1970-01-01; NaN if there is none.

    Args:
        dates: Days since 1970-01-01 of several modalities, ``(T,)`` each; 0 is no date.
    """
    days = torch.cat([*dates, torch.zeros(1, dtype=torch.int64)])
    days = days[days != 0]
    if len(days) == 0:
        return float('nan'), float('nan')
    return float(days.min()) * DAY, (float(days.max()) + 1) * DAY


def _literal(text: str) -> Any:
    """Parse a string as JSON, else as a Python literal."""
    try:
        return parse_json(text)
    except json.JSONDecodeError:
        return ast.literal_eval(text)


def _short(value: Any) -> str:
    """Return the beginning of a value, for an error."""
    text = repr(value)
    return text if len(text) <= 80 else f'{text[:77]}...'
