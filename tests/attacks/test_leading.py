# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Files that lead elsewhere: a file of a dataset reads no other file and no address."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import rasterio
from rasterio.errors import RasterioError

from torchgeo_omnisat.datasets.io.files import read_raster
from torchgeo_omnisat.datasets.io.headers import read_header
from torchgeo_omnisat.datasets.io.opening import open_raster
from torchgeo_omnisat.datasets.treesatai import dataset_of, open_series

VRT = """<VRTDataset rasterXSize="4" rasterYSize="4"><SRS>EPSG:32631</SRS>
<GeoTransform>600000, 10, 0, 5700000, 0, -10</GeoTransform><VRTRasterBand dataType="Byte" band="1"><SimpleSource>
<SourceFilename relativeToVRT="0">{}</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>
</VRTDataset>"""
WMS = """<GDAL_WMS><Service name="TMS"><ServerUrl>http://127.0.0.1:9/${{z}}/${{x}}/${{y}}.png</ServerUrl></Service>
<DataWindow><UpperLeftX>0</UpperLeftX><UpperLeftY>1</UpperLeftY><LowerRightX>1</LowerRightX><LowerRightY>0</LowerRightY>
<SizeX>4</SizeX><SizeY>4</SizeY></DataWindow></GDAL_WMS>{}"""


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    place = {'crs': 'EPSG:32631', 'transform': rasterio.Affine(10, 0, 6e5, 0, -10, 57e5)}
    with rasterio.open(tmp_path / 'secret.tif', 'w', 'GTiff', 4, 4, 1, dtype='uint8', **place) as file:
        file.write(np.full((1, 4, 4), 42, np.uint8))
    return tmp_path / 'secret.tif'


@pytest.mark.parametrize('source', ['{secret}', '/vsicurl/http://127.0.0.1:9/a.tif', 'http://127.0.0.1:9/a.tif'])
@pytest.mark.parametrize('ending', ['tif', 'tiff', 'TIF', 'png', 'jpg', 'jp2', 'img', 'dat', ''])
def test_virtual_raster_of_another_ending(tmp_path: Path, secret: Path, ending: str, source: str) -> None:
    path = tmp_path / f'image.{ending}'
    path.write_text(VRT.format(source.format(secret=secret)))
    with pytest.raises(RasterioError):
        open_raster(str(path))
    with pytest.raises(ValueError, match=r'image\.\w* cannot be read'):
        read_header(str(path))
    with pytest.raises(ValueError, match=r'image\.\w* cannot be read'):
        read_raster(path, 'an image')


@pytest.mark.parametrize('ending', ['tif', 'png', 'xml', ''])
def test_map_service(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f'image.{ending}'
    path.write_text(WMS.format(''))
    with pytest.raises(ValueError, match='cannot be read'):
        read_raster(path, 'an image')


def test_virtual_raster_by_its_own_ending(tmp_path: Path, secret: Path) -> None:
    """A virtual raster that is called .vrt is read."""
    (tmp_path / 'mosaic.vrt').write_text(VRT.format(secret))
    with open_raster(str(tmp_path / 'mosaic.vrt')) as source:
        assert (source.read() == 42).all()


@pytest.fixture
def other(tmp_path: Path) -> Path:
    with h5py.File(tmp_path / 'other.h5', 'w') as file:
        file['data'] = np.full((2, 2), 777.0)
    np.full(4, 777.0).tofile(tmp_path / 'other.bin')
    return tmp_path / 'other.h5'


def external_link(file: h5py.File, other: Path) -> None:
    file['data'] = h5py.ExternalLink(str(other), 'data')


def external_storage(file: h5py.File, other: Path) -> None:
    file.create_dataset('data', (2, 2), 'f8', external=[(str(other.with_suffix('.bin')), 0, 32)])


def virtual_dataset(file: h5py.File, other: Path) -> None:
    layout = h5py.VirtualLayout((2, 2), 'f8')
    layout[:] = h5py.VirtualSource(str(other), 'data', (2, 2))
    file.create_virtual_dataset('data', layout)


def soft_link_to_itself(file: h5py.File, other: Path) -> None:
    file['data'] = h5py.SoftLink('/data')


def soft_link(file: h5py.File, other: Path) -> None:
    file['elsewhere'] = h5py.ExternalLink(str(other), 'data')
    file['data'] = h5py.SoftLink('/elsewhere')


def group(file: h5py.File, other: Path) -> None:
    file.create_group('data')


def named_type(file: h5py.File, other: Path) -> None:
    file['data'] = np.dtype('f8')


def nothing(file: h5py.File, other: Path) -> None:
    pass


@pytest.mark.parametrize(
    'write',
    [
        external_link,
        external_storage,
        virtual_dataset,
        soft_link_to_itself,
        soft_link,
        group,
        named_type,
        nothing,
    ],
)
def test_hdf5(tmp_path: Path, other: Path, write: Any) -> None:
    path = tmp_path / 'series.h5'
    with h5py.File(path, 'w') as file:
        write(file, other)
    with pytest.raises(ValueError, match=r'series\.h5 cannot be read .*data'), open_series(path) as file:
        dataset_of(file, 'data')[()]
