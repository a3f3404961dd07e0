# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Opening: the one way in which rasters are opened, so that the files beside them count in every command."""

import re
import warnings

import rasterio
from rasterio.errors import NotGeoreferencedWarning
from rasterio.session import DummySession

#: What GDAL reads over a network, where looking for files beside each one would cost requests.
NETWORK = re.compile(r'https?://|/vsi(?:curl|s3|gs|az|adls|oss|swift|hdfs|webhdfs)')


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


def open_raster(path: str) -> rasterio.DatasetReader:
    """Open a raster with the files beside it.

    Args:
        path: A file or whatever GDAL reads.

    Raises:
        RasterioError: If that cannot be opened.
    """
    with sidecars(path), warnings.catch_warnings():
        warnings.simplefilter('ignore', NotGeoreferencedWarning)  # an error says so where it matters
        return rasterio.open(path)
