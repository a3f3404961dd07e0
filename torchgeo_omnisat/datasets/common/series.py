# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Acquisition dates of time series: parsing, selection, and daily composites."""

import ast
import json
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torchgeo.datasets import Sentinel2

from ...utils.reading import parse_json

#: Seconds in a day.
DAY = 86400
_EPOCH = date(1970, 1, 1).toordinal()
#: Bands of Sentinel-2 at 10 and 20 m, in the order of all datasets.
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
#: Function from the frames of one day, ``(F, C, H, W)``, to a composite, ``(C, H, W)``.
Merge = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def parse_dates(value: Any, where: str) -> NDArray[np.int64]:
    """Parse dates such as ``20180924`` to days since 1970-01-01, in the order of the frames.

    *value* is a list, a mapping from the index of the frame (``{'0': 20180924}``), or a string of either, in JSON or
    Python; *where* is its name in errors.
    """
    expected = f"expected dates such as {{'0': 20180924, '1': 20180929}} in {where}"
    try:
        if isinstance(value, str):
            value = _literal(value)
        if isinstance(value, Mapping):
            value = [value[frame] for frame in sorted(value, key=int)]
        stamps = np.array([int(stamp) for stamp in value], dtype=np.int64)
    except (TypeError, ValueError, SyntaxError, OverflowError):
        raise ValueError(f'{expected}, got {_truncated_repr(value)}') from None
    year, month, day = stamps // 10000, stamps // 100 % 100, stamps % 100
    months = ((year - 1970) * 12 + month - 1).astype('datetime64[M]')
    days = months.astype('datetime64[D]') + (day - 1)
    wrong = (year < 1970) | (year > 2262) | (month < 1) | (month > 12) | (days.astype('datetime64[M]') != months)
    if wrong.any():
        raise ValueError(f'{expected}, got {stamps[wrong].tolist()}')
    return days.astype(np.int64)


def parse_day(value: Any, where: str) -> int:
    """Return the days since 1970-01-01 of a date, such as ``'2019-07-01'`` or ``20190701``; a time is that of UTC."""
    try:
        day = value if isinstance(value, date) else datetime.fromisoformat(str(value).strip())
        if isinstance(day, datetime):
            day = (day if day.tzinfo is None else day.astimezone(UTC)).date()
        return day.toordinal() - _EPOCH
    except (ValueError, OverflowError):
        raise ValueError(f"{where} holds {value!r}, expected a date such as '2019-07-01'") from None


def choose_dates(
    days: NDArray[np.int64], span: tuple[int, int] | None = None, max_dates: int | None = None
) -> NDArray[np.int64]:
    """Return the indices of the frames to read, in the order of time; possibly empty.

    At most *max_dates* days of the period *span* are evenly spread over the available ones. All frames of a selected
    day are read.
    """
    kept = np.unique(days)
    if span is not None:
        kept = kept[(kept >= span[0]) & (kept <= span[1])]
    if max_dates is not None and len(kept) > max_dates:
        kept = kept[((np.arange(max_dates) + 0.5) * len(kept) / max_dates).astype(np.int64)]
    frames = np.flatnonzero(np.isin(days, kept))
    return frames[np.argsort(days[frames], kind='stable')]


def choose_clear(
    days: NDArray[np.int64], clear: NDArray[np.bool_], span: tuple[int, int] | None = None, max_dates: int | None = None
) -> NDArray[np.int64]:
    """Return the indices of the frames to read of a time series with clouds, in the order of time.

    Cloudy frames of a day with a clear one are never selected. If *max_dates* is given and any frame is clear, no
    cloudy frame is.
    """
    wanted = clear if max_dates is not None and clear.any() else clear | ~np.isin(days, days[clear])
    frames = np.flatnonzero(wanted)
    return frames[choose_dates(days[frames], span, max_dates)]


def merge_days(
    image: NDArray[np.float32], days: NDArray[np.int64], merge: Merge
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Merge the frames ``(T, C, H, W)`` of each day, in the order of time, into daily composites and their days."""
    if (days[1:] > days[:-1]).all():  # most series have one frame per day
        return image, days
    unique, first, counts = np.unique(days, return_index=True, return_counts=True)
    merged = image[first]
    for count in np.unique(counts[counts > 1]).tolist():
        # Days with the same number of frames are merged in one call, with their images stacked vertically.
        places = np.flatnonzero(counts == count)
        frames = image[first[places] + np.arange(count)[:, None]].swapaxes(1, 2)
        joined = merge(frames.reshape(*frames.shape[:2], -1, frames.shape[-1]))
        merged[places] = joined.reshape(frames.shape[1:]).swapaxes(0, 1)
    return merged, unique


def finite_mean(frames: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mean of the finite values over the frames ``(F, C, H, W)``; NaN where there are none."""
    finite = np.isfinite(frames)
    with np.errstate(invalid='ignore'):
        return (np.where(finite, frames, 0).sum(0, dtype=np.float64) / finite.sum(0)).astype(np.float32)


def decibel_mean(frames: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mean of the finite pixels of frames ``(F, C, H, W)`` in decibels, computed in linear power."""
    return 10 * np.log10(finite_mean(np.power(10, frames / 10, dtype=np.float32)))


def backscatter_mean(frames: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mean in linear power of frames ``(F, 3, H, W)`` with the bands VV, VH and VV-VH in dB.

    The mean of values in dB is biased low by speckle. The third band, the ratio of powers, is
    computed from the means of the other two.
    """
    polarisations = decibel_mean(frames[:, :2])
    return np.concatenate([polarisations, polarisations[:1] - polarisations[1:]])


def when(dates: Iterable[Tensor]) -> tuple[float, float]:
    """Return start of the first and end of the last day in seconds since 1970-01-01; NaN without known days."""
    days = np.concatenate([*map(np.asarray, dates), np.zeros(1, dtype=np.int64)])
    days = days[days != 0]
    if len(days) == 0:
        return float('nan'), float('nan')
    return float(days.min()) * DAY, (float(days.max()) + 1) * DAY


def _literal(text: str) -> Any:
    try:
        return parse_json(text)
    except json.JSONDecodeError:
        return ast.literal_eval(text)


def _truncated_repr(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f'{text[:77]}...'
