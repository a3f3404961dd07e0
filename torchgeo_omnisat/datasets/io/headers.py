# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Headers: metadata of raster files, read by opening each once, and whether the files of a folder are alike."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from rasterio import Affine
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioError
from rasterio.transform import from_gcps
from rasterio.windows import Window

from .opening import open_raster, sidecars

#: Eight digits that are a day of the calendar.
DAY = (
    r'(?:(?:19|20)\d\d(?:(?:0[13578]|1[02])(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)(?:0[1-9]|[12]\d|30)|'
    r'02(?:0[1-9]|1\d|2[0-8]))|(?:19|20)(?:[02468][048]|[13579][26])0229)'
)
#: A day or a month in the name of a band.
DATE = re.compile(r'(?<!\d)(?:19|20)\d\d[-_]?(?:0[1-9]|1[0-2])(?:[-_]?(?:0[1-9]|[12]\d|3[01]))?(?!\d)')
#: A description that says no more than the position.
_NUMBER = re.compile(r'[Bb]and \d+')
#: Side of the window in which an alpha band is looked at.
_LOOK = 512


class Header(NamedTuple):
    """Metadata of a raster file.

    Args:
        path: The file.
        crs: Its CRS; None if it states none.
        transform: From pixels to the ground.
        width: Its columns.
        height: Its rows.
        dtypes: Type of each band.
        descriptions: Description of each band; None where it is a number alone.
        scales: Scale of each band.
        offsets: Offset of each band.
        colormap: Colours of the first band; empty if there are none.
        alpha: Number of the band that is declared to be alpha; None if none is.
        opaque: Whether the values of that band are those of a mask; None if that is unknown.
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
        """Return the numbers of the bands, with or without alpha."""
        return tuple(i for i in range(1, len(self.dtypes) + 1) if not (skip_alpha and i == self.alpha))

    def named(self, skip_alpha: bool) -> tuple[str, ...] | None:
        """Return the descriptions of the bands; None unless every band has one of its own."""
        names = [self.descriptions[number - 1] for number in self.numbers(skip_alpha)]
        return tuple(map(str, names)) if all(names) and len(set(names)) == len(names) else None


def read_header(path: str, located: bool = True) -> Header:
    """Read the header of a raster.

    Args:
        path: A file or whatever GDAL reads.
        located: Whether a file without a transform is an error; else its transform is the identity.

    Raises:
        ValueError: If that cannot be read, lies nowhere or holds complex pixels.
    """
    try:
        with sidecars(path), open_raster(path) as source:
            crs, transform = (None, Affine.identity()) if not located and _is_nowhere(source) else georeference(source)
            colours = _colormap(source)
            alpha = source.colorinterp.index(ColorInterp.alpha) + 1 if ColorInterp.alpha in source.colorinterp else None
            if alpha is not None and (source.descriptions[alpha - 1] or 'alpha').lower() != 'alpha':
                alpha = None  # a band with another name is no alpha, whatever the writer put there by default
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
    """Return the CRS and the transform of an open file, of its ground control points if it has no transform.

    Raises:
        ValueError: If it has neither.
    """
    if not source.transform.is_identity:
        return stated_crs(source.crs), source.transform
    points, crs = source.gcps
    if not points or crs is None:
        raise ValueError('it states no transform and no ground control points')
    return crs, from_gcps(points)


def _is_nowhere(source: Any) -> bool:
    """Return whether an open file has neither a transform nor ground control points."""
    return bool(source.transform.is_identity and not (source.gcps[0] and source.gcps[1]))


def stated_crs(crs: Any) -> Any:
    """Return a CRS that lies somewhere on the Earth; None for none and for a local one (``LOCAL_CS``)."""
    return crs if crs is not None and (crs.is_projected or crs.is_geographic) else None


def refuse_complex(dtypes: Any, path: Any) -> None:
    """Refuse complex pixels, of which a model would see the real part alone."""
    found = [dtype for dtype in dtypes if str(dtype).startswith('complex')]
    if found:
        raise ValueError(
            f'{path} holds {found[0]} pixels, expected real ones: convert them to amplitude, power or decibels first'
        )


def _descriptions(source: Any) -> tuple[str | None, ...]:
    """Return descriptions without those that a driver makes up: ``Band 1`` of ENVI in some versions of GDAL."""
    return tuple(None if text is None or _NUMBER.fullmatch(text) else text for text in source.descriptions)


def _colormap(source: Any) -> dict[int, Any]:
    try:
        return dict(source.colormap(1))
    except ValueError:
        return {}


def _opaque(source: Any, band: int) -> bool | None:
    """Return whether a band shows nothing but transparent and opaque; None if it is transparent all over.

    Writers declare the fourth of four bands of bytes to be alpha by default, near infrared too.
    """
    dtype = source.dtypes[band - 1]
    if not np.issubdtype(dtype, np.integer):
        return False
    height, width = min(source.height, _LOOK), min(source.width, _LOOK)
    window = Window((source.width - width) // 2, (source.height - height) // 2, width, height)
    values = set(np.unique(source.read(band, window=window)).tolist())
    return None if values == {0} else values <= {0, 255} or values <= {0, int(np.iinfo(dtype).max)}


def band_names(header: Header, skip_alpha: bool) -> tuple[str, ...]:
    """Return the names of the bands of a file, numbers where it has no descriptions."""
    numbers = header.numbers(skip_alpha)
    names = tuple(header.descriptions[number - 1] or f'B{number}' for number in numbers)
    return names if len(set(names)) == len(names) else tuple(f'B{number}' for number in numbers)


def band_numbers(
    header: Header, first: Header, names: tuple[str, ...], wanted: set[str] | None, told: bool, skip_alpha: bool
) -> tuple[int, ...]:
    """Return the numbers of bands in a file, by its descriptions where there are some, else by position.

    Args:
        header: The file.
        first: The first file, which *names* are those of.
        names: Names of the bands.
        wanted: Bands that are read; None for all.
        told: Whether *names* are given, so that they need not be those in the files.
        skip_alpha: Whether an alpha band counts for none.

    Returns:
        A number for each of *names*; 0 for a band that the file lacks and that is not read.

    Raises:
        ValueError: If the file has other bands than the first.
    """
    own, reference = header.named(skip_alpha), first.named(skip_alpha)
    numbers = header.numbers(skip_alpha)
    if own is not None and reference is not None and set(names) <= set(reference):
        if set(own) == set(reference) or (wanted is not None and wanted <= set(own)):
            return tuple(numbers[own.index(name)] if name in own else 0 for name in names)
    elif own is not None and reference is not None and set(own) == set(reference):
        return tuple(numbers[own.index(name)] for name in reference[: len(names)])
    elif len(numbers) == len(first.numbers(skip_alpha)) and (told or not _contradict(header, first)):
        return numbers[: len(names)]
    raise ValueError(
        f'{header.path} has {_list(header, skip_alpha)}, expected {_list(first, skip_alpha)} as in '
        f'{first.path}: filename_glob chooses files, bands chooses bands that all of them describe, and all_bands '
        'names bands by position'
    )


def _contradict(header: Header, first: Header) -> bool:
    """Return whether two files describe bands of one position differently."""
    pairs = zip(header.descriptions, first.descriptions, strict=False)
    return any(one and other and one != other for one, other in pairs)


def _list(header: Header, skip_alpha: bool) -> str:
    numbers = header.numbers(skip_alpha)
    names = [header.descriptions[number - 1] for number in numbers]
    return f'{len(numbers)} bands' + f' {names}' * any(names)


def describe_types(headers: Sequence[Header]) -> str:
    """Return which files store their pixels as another type than the first; empty if none does.

    Integers of one size count as alike, and so do all floats.
    """
    first = headers[0]
    others = [header for header in headers if _storage(header) != _storage(first)]
    if not others:
        return ''
    more = f' and {len(others) - 1} more files' * (len(others) > 1)
    return (
        f'pixels are {first.dtypes[0]} in {first.path}, but {others[0].dtypes[0]} in {others[0].path}{more}: they are '
        'read as they are, so all files must have the same unit'
    )


def _storage(header: Header) -> str | int:
    dtype = np.dtype(header.dtypes[0])
    return 'float' if dtype.kind == 'f' else dtype.itemsize


def refuse_dates(header: Header, names: tuple[str, ...]) -> None:
    """Refuse a file whose bands are dates, which would be one image without any.

    Args:
        header: The file.
        names: Names of its bands.

    Raises:
        ValueError: If bands are named after different dates.
    """
    dates = {found.group() for name in names if (found := DATE.search(name))}
    if len(dates) > 1:
        raise ValueError(
            f'{header.path} has bands of the dates {sorted(dates)[:3]}, expected the bands of one image: '
            'stack: {dates: descriptions} reads all dates from one file; else write a file for each date'
        )
