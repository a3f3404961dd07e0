# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Files that lead elsewhere: a file of a dataset reads no other file and no address."""

import json
import re
import zipfile
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
from torchgeo_omnisat.datasets.rasters.stac import STACTimeSeries
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
    with pytest.raises(ValueError, match=re.escape(path.name)):
        read_header(str(path))
    with pytest.raises(ValueError, match=re.escape(path.name)):
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


MASK = VRT.replace('<SRS>', '<Metadata><MDI key="INTERNAL_MASK_FLAGS_1">2</MDI></Metadata><SRS>')


@pytest.mark.parametrize('source', ['{secret}', '/vsicurl/http://127.0.0.1:9/a.tif', '/vsizip/{secret}.zip/a.tif'])
@pytest.mark.parametrize('text', [MASK, WMS], ids=['vrt', 'wms'])
@pytest.mark.parametrize('ending', ['msk', 'MSK'])
@pytest.mark.parametrize('archive', [False, True])
def test_mask_that_is_virtual(tmp_path: Path, secret: Path, ending: str, text: str, source: str, archive: bool) -> None:
    """GDAL opens a mask beside a raster with any driver."""
    path, mask = tmp_path / 'a.tif', tmp_path / f'a.tif.{ending}'
    path.write_bytes(secret.read_bytes())
    mask.write_text(text.format(source.format(secret=secret)))
    if archive:
        with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as file:
            for one in (path, mask):
                file.write(one, one.name)
        with pytest.raises(ValueError, match=rf'a\.tif\.{ending}'):
            read_header(f'/vsizip/{tmp_path}/a.zip/a.tif')
        return
    for read in (read_header, lambda path: read_raster(Path(path), 'an image')):
        with pytest.raises(ValueError, match=rf'a\.tif\.{ending} begins with'):
            read(str(path))


@pytest.mark.parametrize('archive', [False, True])
def test_mask_that_is_a_tiff(tmp_path: Path, archive: bool) -> None:
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False),
        rasterio.open(tmp_path / 'a.tif', 'w', 'GTiff', 4, 4, 1, dtype='uint8') as file,
    ):
        file.write(np.ones((1, 4, 4), np.uint8))
        file.write_mask(np.eye(4, dtype=bool))
    assert (tmp_path / 'a.tif.msk').exists()
    path = str(tmp_path / 'a.tif')
    if archive:
        with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as zipped:
            for one in (tmp_path / 'a.tif', tmp_path / 'a.tif.msk'):
                zipped.write(one, one.name)
        path = f'/vsizip/{tmp_path}/a.zip/a.tif'
    with open_raster(path) as source:
        assert (source.read_masks(1) > 0).sum() == 4


@pytest.mark.parametrize('side', ['a.tif.ovr', 'a.tif.OVR', 'a.tif.aux.xml', 'a.aux', 'a.rrd'])
def test_overviews_are_not_opened(tmp_path: Path, secret: Path, side: str) -> None:
    """GDAL would open them with any driver, or at any path, when they are listed or read."""
    address = '/vsicurl/http://127.0.0.1:9/a.tif'
    proxy = f'<PAMDataset><Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">{address}</MDI></Metadata></PAMDataset>'
    path = tmp_path / 'a.tif'
    path.write_bytes(secret.read_bytes())
    (tmp_path / side).write_text(proxy if side.endswith('xml') else VRT.format(address))
    log = tmp_path / 'log'
    with rasterio.Env(CPL_DEBUG=True, CPL_LOG=str(log)):
        read_header(str(path))
        assert (read_raster(path, 'an image').array == 42).all()
    assert '127.0.0.1' not in (log.read_text() if log.exists() else '')


LINKED = {
    'GDALG': '{{"type": "gdal_streamed_alg", "command_line": "gdal raster convert -i {} -f stream out"}}',
    'MRF': '<MRF_META><CachedSource><Source>{}</Source></CachedSource><Raster><Size x="4" y="4"/></Raster></MRF_META>',
    'MAP': 'OziExplorer Map Data File Version 2.2\nx\n{}\n1 ,Map Code,\n',
    'kerchunk': '{{"version": 1, "refs": {{".zgroup": "{{}}", "a/0": ["{}", 0, 4]}}}}',
    'GTI': '<GDALTileIndexDataset><IndexDataset>{}</IndexDataset></GDALTileIndexDataset>',
}


@pytest.mark.parametrize('kind', LINKED)
@pytest.mark.parametrize('ending', ['dat', 'map', 'json', 'xml', ''])
def test_other_formats_that_refer_to_files(tmp_path: Path, secret: Path, kind: str, ending: str) -> None:
    """GDAL recognizes them by their content, whatever their extension."""
    path = tmp_path / f'image.{ending}'
    path.write_text(LINKED[kind].format(secret))
    with pytest.raises(RasterioError, match='not recognized'):
        open_raster(str(path))


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
    with pytest.raises(ValueError, match=r'series\.h5.*data'), open_series(path) as file:
        dataset_of(file, 'data')[()]


class TestSTAC:
    """Items name files of their folder and addresses; nothing else, unless it is asked for."""

    def write(self, root: Path, href: str, **properties: Any) -> Path:
        data = root / 'data'
        data.mkdir()
        place = {'crs': 'EPSG:32631', 'transform': rasterio.Affine(10, 0, 6e5, 0, -10, 57e5)}
        for path in (data / 'in side.tif', root / 'outside.tif'):
            with rasterio.open(path, 'w', 'GTiff', 4, 4, 1, dtype='uint8', **place) as file:
                file.write(np.full((1, 4, 4), 42, np.uint8))
        item = {
            'type': 'Feature',
            'stac_version': '1.0.0',
            'id': 'scene-7',
            'geometry': None,
            'properties': {'datetime': '2021-06-01T10:00:00Z'} | properties.pop('properties', {}),
            'links': [],
            'assets': {'x': {'href': href.format(root=root, data=data)} | properties},
        }
        (data / 'items.json').write_text(json.dumps({'type': 'FeatureCollection', 'features': [item]}))
        return data / 'items.json'

    @pytest.mark.parametrize(
        'href', ['in side.tif', './a/../in side.tif', '{data}/in side.tif', 'file://{data}/in%20side.tif']
    )
    def test_inside(self, href: str, tmp_path: Path) -> None:
        series = STACTimeSeries(self.write(tmp_path, href), bands=('x',))
        assert (series[series.bounds]['image_s2'] == 42).all()

    @pytest.mark.parametrize(
        'href', ['../outside.tif', '{root}/outside.tif', 'file://{root}/outside.tif', 'file://localhost{root}/outside.tif',
                 'FILE://{data}/../outside.tif', 'file://{data}/%2e%2e/outside.tif']
    )  # fmt: skip
    def test_outside(self, href: str, tmp_path: Path) -> None:
        path = self.write(tmp_path, href)
        with pytest.raises(ValueError, match=r"'scene-7'.*items\.json"):
            STACTimeSeries(path, bands=('x',))
        series = STACTimeSeries(path, bands=('x',), allow_outside=True)
        assert (series[series.bounds]['image_s2'] == 42).all()

    @pytest.mark.parametrize('allow', [False, True])
    @pytest.mark.parametrize(
        'href', ['/vsizip/{root}/a.zip/a.tif', '/vsicurl/http://127.0.0.1:9/a.tif', 'file:///vsimem/a.tif',
                 'file://other/a.tif', 'ftp://127.0.0.1/a.tif', 'gopher://x/a.tif', 'vrt://{root}/outside.tif']
    )  # fmt: skip
    def test_of_no_known_scheme(self, href: str, allow: bool, tmp_path: Path) -> None:
        path = self.write(tmp_path, href)
        with pytest.raises(ValueError, match=r"item 'scene-7' of .*items\.json"):
            STACTimeSeries(path, bands=('x',), allow_outside=allow)

    @pytest.mark.parametrize(
        'change',
        [
            {'properties': {'datetime': '9999-01-01T00:00:00Z'}},
            {'properties': {'datetime': '9999-12-31T23:59:59-12:00'}},
            {'properties': {'datetime': '0001-01-01T00:00:00+12:00'}},
            {'properties': {'datetime': '1600-01-01T00:00:00Z'}},
            {'raster:bands': [{'scale': float('nan'), 'offset': 0}]},
            {'raster:bands': [{'scale': float('inf'), 'offset': 0}]},
            {'raster:bands': [{'scale': 'a', 'offset': 0}]},
            {'raster:bands': [{'nodata': 'a'}]},
            {'raster:bands': 7},
            {'bands': [7]},
            {'eo:bands': [{'center_wavelength': 'a'}]},
        ],
        ids=str,
    )
    def test_item(self, change: dict[str, Any], tmp_path: Path) -> None:
        path = self.write(tmp_path, 'in side.tif', **change)
        with pytest.raises(ValueError, match=r"item 'scene-7' of .*items\.json"):
            STACTimeSeries(path, bands=('x',))
