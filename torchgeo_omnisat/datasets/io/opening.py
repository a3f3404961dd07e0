# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Opening of rasters with their sidecar files, by the driver of their extension.

A file with the extension of a GeoTIFF is never opened as a virtual raster, which could read other
files or URLs.
"""

import codecs
import os
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator

import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioIOError
from rasterio.session import DummySession

#: Remote paths, for which GDAL does not search sidecar files, as that would cost requests.
NETWORK = re.compile(r'https?://|/vsi(?:curl|s3|gs|az|adls|oss|swift|hdfs|webhdfs)')

#: Driver by extension.
DRIVERS = {'.tif': 'GTiff', '.tiff': 'GTiff', '.png': 'PNG', '.jpg': 'JPEG', '.jpeg': 'JPEG'}
#: Required extension of files that refer to other files or URLs, by driver.
LEADING = {
    'VRT': '.vrt', 'GTI': '.gti', 'WMS': '.wms', 'WMTS': '.wmts', 'WCS': '.wcs', 'STACTA': '.json', 'STACIT': '.json',
}  # fmt: skip

#: Magic number of vector files by extension.
VECTORS = {
    '.gpkg': b'SQLite format 3\0',
    '.shp': b'\0\0\x27\x0a',
    '.fgb': b'fgb',
    '.geojson': b'{',
    '.json': b'{',
}


def sidecars(path: str = '') -> rasterio.Env:
    """Return a context in which GDAL reads the sidecar files of a raster, such as masks and headers.

    TorchGeo's command line sets ``GDAL_DISABLE_READDIR_ON_OPEN=EMPTY_DIR``, which hides ``.msk``,
    ``.aux.xml``, ``.tfw`` and ``.hdr`` in ``fit`` only. Regardless of the environment, this context
    reads them for local files and archives, and not for remote files.

    Args:
        path: Path of the raster.
    """
    value = 'EMPTY_DIR' if NETWORK.search(path) else 'FALSE'
    return rasterio.Env(session=DummySession(), GDAL_DISABLE_READDIR_ON_OPEN=value)


def refuse_other_format(path: str) -> None:
    """Check that a vector file has the format of its extension, and is not a virtual one.

    Args:
        path: Path of the file; a remote one is not checked.

    Raises:
        ValueError: If it does not begin with the magic number of its extension.
    """
    ending = os.path.splitext(path)[1].lower()
    if ending == '.vrt' or not os.path.isfile(path):
        return
    with open(path, 'rb') as file:
        start = file.read(4096).removeprefix(codecs.BOM_UTF8).lstrip(b' \t\r\n')
    magic = VECTORS.get(ending, b'')
    if not start.startswith(magic):
        raise ValueError(f'{path} begins with {start[:16]!r}, expected {magic!r} for its extension')
    # GDAL recognizes an OGR VRT under any extension, also in a zip archive.
    if any(b'<OGRVRTDataSource' in text for text in (start, *_members(path))):
        raise ValueError(f'{path} is an OGR VRT, which refers to other files, expected the extension .vrt')


def _members(path: str) -> Iterator[bytes]:
    """Yield the first bytes of each file of a zip archive; nothing for other files."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as member:
                    yield member.read(4096)
    except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError) as error:
        raise ValueError(f'{path} cannot be read ({error}), expected a zip archive') from error


def open_raster(path: str) -> rasterio.DatasetReader:
    """Open a raster with its sidecar files.

    Args:
        path: File, or a path that GDAL opens.

    Raises:
        RasterioError: If it cannot be opened, or has another format than that of its extension.
    """
    with sidecars(path):
        return open_within(path)


def open_within(path: str) -> rasterio.DatasetReader:
    """Open a raster as :func:`open_raster` does, within the context of :func:`sidecars`."""
    ending = os.path.splitext(path)[1].lower()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', NotGeoreferencedWarning)  # raised as an error where it matters
        source = rasterio.open(path, driver=DRIVERS.get(ending))
    if LEADING.get(source.driver, ending) != ending:
        source.close()
        raise RasterioIOError(
            f'it is a {source.driver}, which refers to other files, expected {LEADING[source.driver]}'
        )
    return source
