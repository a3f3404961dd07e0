# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""SAFE products, also in zip archives, and hints for the error of a folder without the expected files."""

import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterable

from torchgeo.datasets.utils import find_files

from ...utils.plurals import counted
from ...utils.reading import is_special

#: Product of Sentinel-2 in a path, and images of Sentinel-1 that are not terrain-corrected, in a product or alone.
SENTINEL2 = re.compile(r'(?:^|/)(S2[A-D][^/]*\.SAFE)/', re.I)
_SLANT_OR_GROUND_RANGE = re.compile(r'(?:^|[/\\])s1[a-d]-\w{2}\d?-(?:grd|slc)-[hv]{2}[^/\\]*\.tiff?$', re.I)
#: What to do with them.
TERRAIN = (
    'its images are neither calibrated nor terrain-corrected: correct them with SNAP or pyroSAR, or take the '
    'terrain-corrected images (RTC) of the Planetary Computer or of the Alaska Satellite Facility'
)
#: Extensions of files that GDAL reads.
RASTERS = ('.tif', '.tiff', '.jp2', '.img', '.vrt', '.nc', '.hdf', '.h5', '.dat', '.bil', '.asc', '.png')
#: Maximum number of files of a folder that are listed.
_MOST = 10_000


def archive_files(archive: str, pattern: str = '*') -> list[str]:
    """Return the files in a zip archive that match a pattern, as paths that GDAL opens without unpacking.

    Raises:
        ValueError: If it is not a regular file, or is named as a Sentinel-2 product, but is not a complete archive.
    """
    if is_special(archive):
        raise ValueError(f'{archive} cannot be read (it is not a regular file), expected a zip archive')
    if zipfile.is_zipfile(archive):
        return find_files(f'/vsizip/{archive}', pattern)
    if SENTINEL2.search(f'/{os.path.basename(archive)}.SAFE/'):
        raise ValueError(f'{archive} is not a complete zip archive, expected a product: download it again')
    return []


def refuse_uncorrected(files: Iterable[str]) -> None:
    """Check that no file is an image of Sentinel-1 in slant or ground range, which has no map projection."""
    if wrong := next(filter(_SLANT_OR_GROUND_RANGE.search, files), None):
        raise ValueError(f'{wrong} is a Sentinel-1 product, and {TERRAIN}')


def describe_others(path: str, pattern: str) -> str:
    """Return a hint on how to read a path without matching files; an empty string if there is none."""
    names = _names(path)
    products = [name for name in names if re.search(r'\.safe|^S[12][A-D]_.*\.zip$', name, re.I)]
    zipped = [name for name in names if name.lower().endswith(('.zip', '.tar', '.tar.gz', '.tgz'))]
    if products and products[0].upper().startswith('S1'):
        return f' {path} holds {products[0]!r}, and {TERRAIN}.'
    if products:
        return f' {path} holds SAFE products such as {products[0]!r}: kind: sentinel2 reads those of Sentinel-2.'
    if zipped:
        return f' {path} holds archives such as {zipped[0]!r}: unpack them first.'
    endings = Counter(os.path.splitext(name)[1] for name in names)
    found = [
        (ending, count)
        for ending, count in endings.most_common()
        if ending.lower() in RASTERS and not pattern.endswith(ending)
    ]
    if found and found[0][0].lower() == '.nc':
        return (
            f' {path} holds {counted(found[0][1], "NetCDF file")}: set kind: netcdf, or reader: netcdf beside another '
            'kind.'
        )
    if found:
        return f' {path} holds {counted(found[0][1], "file")} {"*" + found[0][0]!r}: set filename_glob to that.'
    return ''


def _names(path: str) -> list[str]:
    names = [os.path.basename(os.path.normpath(path))]
    for _, folders, files in os.walk(path):
        names += sorted(folders) + sorted(files)
        if len(names) > _MOST:
            break
    return names
