# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Metadata of raster files, and comparison of the files of a folder."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from rasterio import Affine
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioError
from rasterio.transform import from_gcps
from rasterio.windows import Window

from ...utils.plurals import counted
from .opening import open_raster, sidecars

#: Eight digits of a valid date.
DAY_PATTERN = (
    r'(?:(?:19|20)\d\d(?:(?:0[13578]|1[02])(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)(?:0[1-9]|[12]\d|30)|'
    r'02(?:0[1-9]|1\d|2[0-8]))|(?:19|20)(?:[02468][048]|[13579][26])0229)'
)
#: Date or month in the name of a band.
DATE = re.compile(r'(?<!\d)(?:19|20)\d\d[-_]?(?:0[1-9]|1[0-2])(?:[-_]?(?:0[1-9]|[12]\d|3[01]))?(?!\d)')
#: Description that only contains the band index.
_NUMBER = re.compile(r'[Bb]and \d+')
#: Side in pixels of the window in which the values of an alpha band are checked.
_ALPHA_WINDOW = 512


class Header(NamedTuple):
    """Metadata of a raster file.

    Args:
        path: Path of the file.
        crs: CRS; None if the file states none.
        transform: Affine transform from pixels to coordinates.
        width: Width in pixels.
        height: Height in pixels.
        dtypes: Data type of each band.
        descriptions: Description of each band; None if it only contains the band index.
        scales: Scale of each band.
        offsets: Offset of each band.
        colormap: Colormap of the first band; empty if there is none.
        alpha: Index of the band that is declared as alpha; None if there is none.
        opaque: Whether the values of that band are those of a mask; None if unknown.
    """

    path: str
    crs: Any
    transform: Affine
    width: int
    height: int
    dtypes: tuple[str, ...]
    descriptions: tuple[str | None, ...]
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    colormap: dict[int, Any]
    alpha: int | None
    opaque: bool | None

    def numbers(self, skip_alpha: bool) -> tuple[int, ...]:
        """Return the indices of the bands, with or without alpha."""
        return tuple(i for i in range(1, len(self.dtypes) + 1) if not (skip_alpha and i == self.alpha))

    def named(self, skip_alpha: bool) -> tuple[str, ...] | None:
        """Return the descriptions of the bands; None unless every band has a unique one."""
        names = [self.descriptions[number - 1] for number in self.numbers(skip_alpha)]
        return tuple(map(str, names)) if all(names) and len(set(names)) == len(names) else None


def read_header(path: str, located: bool = True) -> Header:
    """Read the header of a raster; without georeference, it is an error or, if not *located*, the identity."""
    try:
        with sidecars(path), open_raster(path) as source:
            crs, transform = (None, Affine.identity()) if not located and _is_nowhere(source) else georeference(source)
            colours = _colormap(source)
            alpha = source.colorinterp.index(ColorInterp.alpha) + 1 if ColorInterp.alpha in source.colorinterp else None
            if alpha is not None and (source.descriptions[alpha - 1] or 'alpha').lower() != 'alpha':
                alpha = None  # a band with another name is not alpha, which some writers declare by default
            header = Header(
                path,
                crs,
                transform,
                source.width,
                source.height,
                source.dtypes,
                _descriptions(source),
                source.scales,
                source.offsets,
                colours,
                alpha,
                None if alpha is None else _opaque(source, alpha),
            )
    except (RasterioError, ValueError) as error:
        raise ValueError(f'{path} cannot be read ({error}), expected a georeferenced raster') from error
    refuse_complex(header.dtypes, path)
    return header


def georeference(source: Any) -> tuple[Any, Affine]:
    """Return the CRS and the transform of an open file, from ground control points if it has no transform."""
    if not source.transform.is_identity:
        return stated_crs(source.crs), source.transform
    points, crs = source.gcps
    if not points or crs is None:
        raise ValueError('it states no transform and no ground control points')
    return crs, from_gcps(points)


def _is_nowhere(source: Any) -> bool:
    return bool(source.transform.is_identity and not (source.gcps[0] and source.gcps[1]))


def stated_crs(crs: Any) -> Any:
    """Return a geographic or projected CRS; None for a missing or a local one (``LOCAL_CS``)."""
    return crs if crs is not None and (crs.is_projected or crs.is_geographic) else None


def refuse_complex(dtypes: Any, path: Any) -> None:
    """Raise ValueError for complex pixels, of which only the real part would be read."""
    found = [dtype for dtype in dtypes if str(dtype).startswith('complex')]
    if found:
        raise ValueError(f'{path} holds {found[0]} pixels, expected real ones: convert them to amplitude, power or dB')


def _descriptions(source: Any) -> tuple[str | None, ...]:
    """Return descriptions without defaults of drivers, such as ``Band 1`` of ENVI in some versions of GDAL."""
    return tuple(None if text is None or _NUMBER.fullmatch(text) else text for text in source.descriptions)


def _colormap(source: Any) -> dict[int, Any]:
    try:
        return dict(source.colormap(1))
    except ValueError:
        return {}


def _opaque(source: Any, band: int) -> bool | None:
    """Return whether a band only has transparent and opaque pixels; None if all are transparent.

    Writers declare the fourth of four uint8 bands as alpha by default, even if it is near infrared.
    """
    dtype = source.dtypes[band - 1]
    if not np.issubdtype(dtype, np.integer):
        return False
    height, width = min(source.height, _ALPHA_WINDOW), min(source.width, _ALPHA_WINDOW)
    window = Window((source.width - width) // 2, (source.height - height) // 2, width, height)
    values = set(np.unique(source.read(band, window=window)).tolist())
    return None if values == {0} else values <= {0, 255} or values <= {0, int(np.iinfo(dtype).max)}


def band_names(header: Header, skip_alpha: bool) -> tuple[str, ...]:
    """Return the names of the bands of a file: descriptions, or ``B1``, ``B2``, ... if there are none."""
    numbers = header.numbers(skip_alpha)
    names = tuple(header.descriptions[number - 1] or f'B{number}' for number in numbers)
    return names if len(set(names)) == len(names) else tuple(f'B{number}' for number in numbers)


def band_numbers(
    header: Header, first: Header, names: tuple[str, ...], wanted: set[str] | None, configured: bool, skip_alpha: bool
) -> tuple[int, ...]:
    """Return the index of each of *names* in a file, from 1 on; 0 for a missing band that is not *wanted*.

    Bands are found by their descriptions if there are any, else by position. *names* are those of the *first* file; if
    they are *configured*, they may differ from the descriptions. Raise ValueError if the file has other bands.
    """
    own, reference = header.named(skip_alpha), first.named(skip_alpha)
    numbers = header.numbers(skip_alpha)
    if own is not None and reference is not None and set(names) <= set(reference):
        if set(own) == set(reference) or (wanted is not None and wanted <= set(own)):
            return tuple(numbers[own.index(name)] if name in own else 0 for name in names)
    elif own is not None and reference is not None and set(own) == set(reference):
        return tuple(numbers[own.index(name)] for name in reference[: len(names)])
    elif len(numbers) == len(first.numbers(skip_alpha)) and (configured or not _contradict(header, first)):
        return numbers[: len(names)]
    raise ValueError(
        f'{header.path} has {_list(header, skip_alpha)}, expected {_list(first, skip_alpha)} as in '
        f'{first.path}: filename_glob chooses files, bands chooses bands that all of them describe, and all_bands '
        'names bands by position'
    )


def _contradict(header: Header, first: Header) -> bool:
    pairs = zip(header.descriptions, first.descriptions, strict=False)
    return any(one and other and one != other for one, other in pairs)


def _list(header: Header, skip_alpha: bool) -> str:
    numbers = header.numbers(skip_alpha)
    names = [header.descriptions[number - 1] for number in numbers]
    return counted(len(numbers), 'band') + f' {names}' * any(names)


def describe_types(headers: Sequence[Header]) -> str:
    """Describe the files whose data type differs from that of the first; an empty string if none does.

    Integers of the same size count as equal, and so do all floats.
    """
    first = headers[0]
    others = [header for header in headers if _storage(header) != _storage(first)]
    if not others:
        return ''
    more = f' and {counted(len(others) - 1, "more file")}' * (len(others) > 1)
    return (
        f'pixels are {first.dtypes[0]} in {first.path}, but {others[0].dtypes[0]} in {others[0].path}{more}: they are '
        'read unchanged, so all files must have the same unit'
    )


def _storage(header: Header) -> str | int:
    dtype = np.dtype(header.dtypes[0])
    return 'float' if dtype.kind == 'f' else dtype.itemsize


def refuse_dates(header: Header, names: tuple[str, ...]) -> None:
    """Check that the bands of a file are not dates, which would be read as one image."""
    dates = {found.group() for name in names if (found := DATE.search(name))}
    if len(dates) > 1:
        raise ValueError(
            f'{header.path} has bands of the dates {sorted(dates)[:3]}, expected the bands of one image: '
            'stack: {dates: descriptions} reads all dates from one file; else write a file for each date'
        )
