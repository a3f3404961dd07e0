# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Hints for the error of a folder without the expected files."""

import os
from collections import Counter

#: Extensions of files that GDAL reads.
RASTERS = ('.tif', '.tiff', '.jp2', '.img', '.vrt', '.nc', '.hdf', '.h5', '.dat', '.bil', '.asc', '.png')
#: Maximum number of files of a folder that are listed.
_MOST = 10_000


def describe_others(path: str, pattern: str) -> str:
    """Return a hint on how to read a path without matching files; an empty string if there is none."""
    names = _names(path)
    products = [name for name in names if '.safe' in name.lower()]
    zipped = [name for name in names if name.lower().endswith(('.zip', '.tar', '.tar.gz', '.tgz'))]
    if zipped:
        kind = ', then set kind: sentinel2 (or kind: sentinel1)' * any(name.startswith('S') for name in zipped)
        return f' {path} holds archives such as {zipped[0]!r}: unpack them first{kind}.'
    if products:
        return f' {path} holds SAFE products such as {products[0]!r}: kind: sentinel2 reads those of Sentinel-2.'
    endings = Counter(os.path.splitext(name)[1] for name in names)
    found = [
        (ending, count)
        for ending, count in endings.most_common()
        if ending.lower() in RASTERS and not pattern.endswith(ending)
    ]
    if found and found[0][0].lower() == '.nc':
        return f' {path} holds {found[0][1]} NetCDF files: set kind: netcdf, or reader: netcdf beside another kind.'
    if found:
        return f' {path} holds {found[0][1]} files {"*" + found[0][0]!r}: set filename_glob to that.'
    return ''


def _names(path: str) -> list[str]:
    names = [os.path.basename(os.path.normpath(path))]
    for _, folders, files in os.walk(path):
        names += sorted(folders) + sorted(files)
        if len(names) > _MOST:
            break
    return names
