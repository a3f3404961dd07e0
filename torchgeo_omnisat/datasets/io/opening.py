# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Opening: the one way in which rasters are opened.

The files beside a raster count in every command, and its ending says which driver opens it, so
that what is called a GeoTIFF cannot be a virtual raster that reads other files or addresses.
"""

import codecs
import os
import re
import warnings

import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioIOError
from rasterio.session import DummySession

#: What GDAL reads over a network, where looking for files beside each one would cost requests.
NETWORK = re.compile(r'https?://|/vsi(?:curl|s3|gs|az|adls|oss|swift|hdfs|webhdfs)')

#: Driver that has to open a file of some ending.
DRIVERS = {'.tif': 'GTiff', '.tiff': 'GTiff', '.png': 'PNG', '.jpg': 'JPEG', '.jpeg': 'JPEG'}
#: Drivers of files that lead to other files or addresses, and the ending that such a file has to have.
LEADING = {
    'VRT': '.vrt', 'GTI': '.gti', 'WMS': '.wms', 'WMTS': '.wmts', 'WCS': '.wcs', 'STACTA': '.json', 'STACIT': '.json',
}  # fmt: skip

#: Beginning of vector files of some ending.
VECTORS = {
    '.gpkg': b'SQLite format 3\0',
    '.shp': b'\0\0\x27\x0a',
    '.fgb': b'fgb',
    '.geojson': b'{',
    '.json': b'{',
}


def sidecars(path: str = '') -> rasterio.Env:
    """Return a context in which GDAL heeds masks and headers beside a file.

    TorchGeo's command line sets ``GDAL_DISABLE_READDIR_ON_OPEN=EMPTY_DIR``, which hides ``.msk``,
    ``.aux.xml``, ``.tfw`` and ``.hdr`` from ``fit`` alone. Whatever the environment says, they are
    heeded on a disk and in archives, and not looked for over a network.

    Args:
        path: The file that is opened.
    """
    value = 'EMPTY_DIR' if NETWORK.search(path) else 'FALSE'
    return rasterio.Env(session=DummySession(), GDAL_DISABLE_READDIR_ON_OPEN=value)


def refuse_other_format(path: str) -> None:
    """Refuse a vector file that is of another format than its ending says, such as a virtual one.

    Args:
        path: The file; one that is not on a disk is left to the driver.

    Raises:
        ValueError: If it does not begin as files of its ending do.
    """
    magic = VECTORS.get(os.path.splitext(path)[1].lower())
    if magic is None or not os.path.isfile(path):
        return
    with open(path, 'rb') as file:
        start = file.read(64).removeprefix(codecs.BOM_UTF8).lstrip(b' \t\r\n')
    if not start.startswith(magic):
        raise ValueError(f'{path} begins with {start[:16]!r}, expected {magic!r}, as files of its ending do')


def open_raster(path: str) -> rasterio.DatasetReader:
    """Open a raster with the files beside it.

    Args:
        path: A file or whatever GDAL reads.

    Raises:
        RasterioError: If that cannot be opened, or is of another format than its ending says.
    """
    ending = os.path.splitext(path)[1].lower()
    with sidecars(path), warnings.catch_warnings():
        warnings.simplefilter('ignore', NotGeoreferencedWarning)  # an error says so where it matters
        source = rasterio.open(path, driver=DRIVERS.get(ending))
    if LEADING.get(source.driver, ending) != ending:
        source.close()
        raise RasterioIOError(f'it is a {source.driver}, which leads to other files, expected {LEADING[source.driver]}')
    return source
