# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Opening of rasters with their sidecar files, by the driver of their extension.

A file with the extension of a GeoTIFF is never opened as a virtual raster, which could read other
files or URLs.
"""

import codecs
import itertools
import mmap
import os
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator

import fiona
import rasterio
from fiona.errors import FionaError, FionaValueError
from rasterio.errors import NotGeoreferencedWarning, RasterioIOError
from rasterio.io import DatasetReader
from rasterio.session import DummySession

from ...utils.reading import is_special, parse_json

#: Remote paths, for which GDAL does not search sidecar files, as that would cost requests.
NETWORK = re.compile(r'https?://|/vsi(?:curl|s3|gs|az|adls|oss|swift|hdfs|webhdfs)')

#: Driver by extension.
DRIVERS = {
    '.tif': ['GTiff'], '.tiff': ['GTiff'], '.png': ['PNG'], '.jpg': ['JPEG'], '.jpeg': ['JPEG'],
    '.jp2': ['JP2OpenJPEG', 'JP2KAK', 'JP2ECW', 'JP2MrSID'], '.img': ['HFA', 'ENVI', 'EHdr'], '.vrt': ['VRT'],
    '.gti': ['GTI'], '.wms': ['WMS'], '.wmts': ['WMTS'], '.wcs': ['WCS'], '.nc': ['netCDF'], '.hdf': ['HDF4', 'HDF5'],
    '.h5': ['HDF5', 'BAG'], '.mrf': ['MRF'],
}  # fmt: skip
#: Drivers of other extensions: those whose pixels are in the file itself. Many others refer to files or URLs, and GDAL
#: recognizes them by their content.
SELF_CONTAINED = [
    'GTiff', 'PNG', 'JPEG', 'JP2OpenJPEG', 'JP2KAK', 'JP2ECW', 'JP2MrSID', 'WEBP', 'GIF', 'BIGGIF', 'BMP', 'PNM',
    'TGA', 'HFA', 'ENVI', 'EHdr', 'GRIB', 'NITF', 'AAIGrid', 'ACE2', 'GRASSASCIIGrid', 'GSAG', 'GSBG', 'GS7BG', 'DTED',
    'SRTMHGT', 'USGSDEM', 'GTX', 'NTv2', 'BT', 'BYN', 'LCP', 'RMF', 'RST', 'RRASTER', 'SAGA', 'PCRaster', 'XYZ', 'ZMap',
    'SIGDEM', 'HF2', 'Leveller', 'Terragen', 'KRO', 'LIBERTIFF',
]  # fmt: skip
#: First bytes of a TIFF file, the format of masks.
TIFF = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')
#: A CRS of GeoJSON, or an escaped letter, which could be in that word; and a CRS that is a name.
_CRS = re.compile(rb'"crs"|\\u00[4-7]', re.IGNORECASE)
_NAMED_CRS = re.compile(rb'"crs"\s*:\s*\{\s*"type"\s*:\s*"name"\s*,\s*"properties"\s*:\s*\{[^{}]*\}\s*\}')
#: Name of a subdataset, which a user may configure.
_SUBDATASET = re.compile(r'[A-Za-z0-9_]+:(?!//)')

#: Magic number of vector files by extension.
MAGIC = {
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
    reads them for local files and archives, and not for remote files. Directories are not listed, so only
    the names of sidecar files that are all lower or all upper case are found.
    """
    value = 'EMPTY_DIR' if NETWORK.search(path) else 'TRUE'
    return rasterio.Env(session=DummySession(), GDAL_DISABLE_READDIR_ON_OPEN=value)


def refuse_other_format(path: str) -> None:
    """Check that a local vector file has the format of its extension, and is not a virtual one."""
    ending = os.path.splitext(path)[1].lower()
    if is_special(path):
        raise ValueError(f'{path} cannot be read (it is not a regular file), expected a vector file')
    if ending == '.vrt' or not os.path.isfile(path):
        return
    with open(path, 'rb') as file:
        start = file.read(4096).removeprefix(codecs.BOM_UTF8).lstrip(b' \t\r\n')
    magic = MAGIC.get(ending, b'')
    if not start.startswith(magic):
        raise ValueError(f'{path} begins with {start[:16]!r}, expected {magic!r} for its extension')
    # GDAL recognizes an OGR VRT under any extension, also in a zip archive.
    if any(b'<OGRVRTDataSource' in text for text in (start, *_members(path))):
        raise ValueError(f'{path} is an OGR VRT, which refers to other files, expected the extension .vrt')
    if any(_is_other_xml(text) or text.startswith(b'{') for text in _members(path)):
        raise ValueError(f'{path} has members that may refer to URLs, expected a shapefile or a GeoPackage in it')
    if start.startswith(b'<') and (ending != '.kml' or _is_other_xml(start)):
        raise ValueError(f'{path} is XML that may refer to URLs, such as GML, expected a GeoPackage or KML')
    if start.startswith(b'{'):
        _refuse_linked_crs(path)


def _is_other_xml(start: bytes) -> bool:
    """Return whether a file is XML other than KML; GDAL reads the schemas that GML names, also at URLs."""
    return start.lstrip(b'\xef\xbb\xbf \t\r\n').startswith(b'<') and (b'<kml' not in start or b'net/gml' in start)


def _refuse_linked_crs(path: str) -> None:
    """Check that no CRS of a GeoJSON file is a link, which GDAL would request."""
    with open(path, 'rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        places = list(itertools.islice(_CRS.finditer(content), 2))
        if not places or (len(places) == 1 and _NAMED_CRS.match(content, places[0].start())):
            return
        text = content[:]
    try:
        stack = [parse_json(text.removeprefix(codecs.BOM_UTF8))]
    except ValueError as error:
        raise ValueError(f'{path} cannot be read ({error}), expected GeoJSON') from error
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            for key, crs in value.items():
                if key.lower() == 'crs' and isinstance(crs, dict) and str(crs.get('type')).lower() in ('link', 'url'):
                    raise ValueError(f'{path} has the crs {str(crs)[:200]}, expected a name such as "EPSG:2154"')
            stack += value.values()
        elif isinstance(value, list):
            stack += value


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
    """Open a raster with its sidecar files; raise RasterioError if it has not the format of its extension."""
    with sidecars(path):
        return open_within(path)


def open_within(path: str) -> rasterio.DatasetReader:
    """Open a raster as :func:`open_raster` does, within the context of :func:`sidecars`."""
    drivers: list[str] | None = DRIVERS.get(os.path.splitext(path)[1].lower(), SELF_CONTAINED)
    if _SUBDATASET.match(path) and not os.path.exists(path):
        drivers = None
    if is_special(path):
        raise RasterioIOError('it is not a regular file')
    _refuse_other_mask(path)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', NotGeoreferencedWarning)  # raised as an error where it matters
        return DatasetReader(path, driver=drivers)  # rasterio.open accepts a single driver only


def _refuse_other_mask(path: str) -> None:
    """Check that an external mask is a TIFF file, because GDAL opens it with any driver."""
    for mask in (f'{path}.msk', f'{path}.MSK'):
        if path.startswith('/vsi'):
            if not NETWORK.search(path) and os.path.basename(mask) in _members_beside(path):
                rasterio.open(mask, driver='GTiff').close()
        elif os.path.exists(mask):
            start = b''
            if os.path.isfile(mask):
                with open(mask, 'rb') as file:
                    start = file.read(4)
            if start not in TIFF:
                raise RasterioIOError(f'its mask {mask} begins with {start!r}, expected a TIFF file')


def _members_beside(path: str) -> list[str]:
    try:
        return list(fiona.listdir(os.path.dirname(path)))
    except (FionaError, FionaValueError):
        return []
