# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Headers: what files say of their bands, dates and place counts, in every command, and is read in one opening."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from torchgeo.datasets import DatasetNotFoundError

from tests.geo_tree import UTM, X, Y, ramp, write
from torchgeo_omnisat.datasets import RasterTimeSeries, Sentinel2TimeSeries
from torchgeo_omnisat.datasets.io import opening
from torchgeo_omnisat.datasets.rasters.frames import _kept_open

WINDOW = slice(X, X + 80, 10), slice(Y - 80, Y, 10)
VALUES = {'B02': 200, 'B03': 300, 'B04': 400, 'B08': 800}


def bands(path: Path, *names: str, described: bool = True, **profile: Any) -> Path:
    """A file of constant bands."""
    image = np.stack([np.full((8, 8), VALUES.get(name, 1), np.uint16) for name in names])
    return write(path, image, bands=names if described else (), **profile)


def values(series: RasterTimeSeries) -> list[list[float]]:
    """The upper left pixel of every date."""
    found: list[list[float]] = series[WINDOW][f'image_{series.name}'][..., 0, 0].tolist()
    return found


@pytest.mark.parametrize('told', [{}, {'all_bands': ('B02', 'B03', 'B04', 'B08')}, {'all_bands': ('a', 'b', 'c', 'd')}])
def test_bands_in_another_order_are_read_by_name(tmp_path: Path, told: dict[str, Any]) -> None:
    bands(tmp_path / 'a_20210601.tif', 'B02', 'B03', 'B04', 'B08')
    bands(tmp_path / 'a_20210611.tif', 'B08', 'B04', 'B03', 'B02')
    assert values(RasterTimeSeries(tmp_path, **told)) == [[200, 300, 400, 800]] * 2
    some = told['all_bands'][2:4] if told else ('B04', 'B08')
    assert values(RasterTimeSeries(tmp_path, bands=some, **told)) == [[400, 800]] * 2


def test_clouds_in_another_order_are_read_by_name(tmp_path: Path) -> None:
    for stamp, names in (('20210601', ('B02', 'SCL')), ('20210611', ('SCL', 'B02'))):
        bands(tmp_path / f'a_{stamp}.tif', *names)
    series = RasterTimeSeries(tmp_path, bands=('B02',), clouds={'band': 'SCL', 'values': (200,)})
    assert series[WINDOW]['valid_raster'].tolist() == [True, True]
    series = RasterTimeSeries(tmp_path, bands=('B02',), clouds={'band': 'SCL', 'values': (1,)})
    assert series[WINDOW]['valid_raster'].tolist() == [False, False]


def test_names_that_are_given_go_before_places(tmp_path: Path) -> None:
    bands(tmp_path / 'a_20210601.tif', 'B02', 'B03', 'B04', 'B08')
    assert values(RasterTimeSeries(tmp_path, all_bands=('B04', 'B08'))) == [[400, 800]]


@pytest.mark.parametrize(
    ('first', 'second', 'described'),
    [
        (('B02', 'B03', 'B04', 'B08'), ('B02', 'B03', 'B04', 'B08', 'B11'), True),
        (('B02', 'B03', 'B04', 'B08', 'B11'), ('B02', 'B03', 'B04', 'B08'), False),
        (('B02', 'B03'), ('B02', 'B03', 'B04', 'B08'), False),
        (('B02', 'B03'), ('B02', 'B04'), True),
    ],
)
def test_other_bands_than_those_of_the_first_file(
    tmp_path: Path, first: tuple[str, ...], second: tuple[str, ...], described: bool
) -> None:
    bands(tmp_path / '20210601_SR.tif', *first, described=described)
    bands(tmp_path / '20210601_udm2.tif', *second, described=described)
    series = RasterTimeSeries(tmp_path)
    with pytest.raises(ValueError, match=r'udm2\.tif.*\d bands.*SR\.tif'):
        series[WINDOW]


def test_bands_that_all_files_describe_may_be_chosen(tmp_path: Path) -> None:
    bands(tmp_path / 'a_20210601.tif', 'B02', 'B03', 'B04', 'B08')
    bands(tmp_path / 'a_20210611.tif', 'B8A', 'B08', 'B03')
    assert values(RasterTimeSeries(tmp_path, bands=('B03', 'B08'))) == [[300, 800]] * 2
    with pytest.raises(ValueError, match=r'20210611'):
        RasterTimeSeries(tmp_path, bands=('B03', 'B04'))[WINDOW]


def test_descriptions_of_a_kind_of_their_own_are_no_names(tmp_path: Path) -> None:
    bands(tmp_path / 'a_20210601.tif', 'one')
    bands(tmp_path / 'a_20210611.tif', 'two')
    assert values(RasterTimeSeries(tmp_path, all_bands=('index',))) == [[1], [1]]


def test_dates_in_bands_are_no_image(tmp_path: Path) -> None:
    bands(tmp_path / 'year.tif', 'B02_2021-01', 'B03_2021-01', 'B02_2021-02', 'B03_2021-02')
    with pytest.raises(ValueError, match=r"bands.*dates \['2021-01', '2021-02'\]"):
        RasterTimeSeries(tmp_path, temporal=False)
    bands(tmp_path / 'nm.tif', '2010.11 nm', '2020.12 nm')
    assert len(RasterTimeSeries(tmp_path / 'nm.tif', temporal=False).bands) == 2


@pytest.mark.parametrize('dtype', ['complex64', 'complex128', 'complex_int16'])
def test_complex_pixels_are_refused(tmp_path: Path, dtype: str) -> None:
    size = {'count': 1, 'height': 8, 'width': 8, 'transform': rasterio.transform.from_origin(X, Y, 10, 10)}
    with rasterio.open(tmp_path / 'S1_20210615.tif', 'w', driver='GTiff', crs=UTM, dtype=dtype, **size):
        pass
    with pytest.raises(ValueError, match=rf'S1_20210615\.tif.*{dtype} pixels.*amplitude'):
        RasterTimeSeries(tmp_path)


@pytest.mark.parametrize('folder', ['s2 [L2A]', 's2*', 's2?', '[a-z]'])
def test_folders_with_brackets(tmp_path: Path, folder: str) -> None:
    bands(tmp_path / folder / 'deep [er]/a_20210601.tif', 'B02')
    assert values(RasterTimeSeries(tmp_path / folder)) == [[200]]


@pytest.mark.parametrize(
    ('name', 'day'),
    [
        ('parcel_20191234_20210615.tif', '2021-06-15'),
        ('20210229_20210301.tif', '2021-03-01'),
        ('20210431-20200229.tif', '2020-02-29'),
        ('123420210101_20210615.tif', '2021-06-15'),
        ('S2_20210615T104629.tif', '2021-06-15'),
    ],
)
def test_digits_that_are_no_date_are_passed_over(tmp_path: Path, name: str, day: str) -> None:
    bands(tmp_path / name, 'B02')
    found = RasterTimeSeries(tmp_path)[WINDOW]['dates_raster'].numpy().astype('datetime64[D]')
    assert found.astype(str).tolist() == [day]


def test_what_else_a_folder_holds_is_said(tmp_path: Path) -> None:
    (tmp_path / 'a').mkdir()
    (tmp_path / 'a/S2_2021.tar.gz').write_bytes(b'')
    for reader in RasterTimeSeries, Sentinel2TimeSeries:
        with pytest.raises(DatasetNotFoundError, match=r"archives.*'S2_2021.tar.gz': unpack"):
            reader(tmp_path / 'a')
    zipped = tmp_path / 'a/S2A_MSIL2A_20210601T104629_N0300_R051_T31UFS_20210601T120000.zip'
    zipped.write_bytes(b'')
    with pytest.raises(DatasetNotFoundError, match=r"'S2A_.*zip': kind: sentinel2"):
        RasterTimeSeries(tmp_path / 'a')
    with pytest.raises(ValueError, match=r'S2A_.*zip is not a complete zip archive'):
        Sentinel2TimeSeries(tmp_path / 'a')
    (tmp_path / 'd').mkdir()
    (tmp_path / 'd/S1A_IW_GRDH_1SDV_20210612T054147.zip').write_bytes(b'')
    with pytest.raises(DatasetNotFoundError, match=r"'S1A_.*zip', and its images .*RTC"):
        RasterTimeSeries(tmp_path / 'd')
    safe = tmp_path / 'b/S2A_MSIL2A_20210601T104629_N0300_R051_T31UFS_20210601T120000.SAFE'
    bands(safe / 'GRANULE/L2A/IMG_DATA/R10m/T31UFS_20210601T104629_B02_10m.jp2', 'B02')
    for path in tmp_path / 'b', safe:
        with pytest.raises(DatasetNotFoundError, match=r'SAFE.*kind: sentinel2'):
            RasterTimeSeries(path)
    bands(tmp_path / 'c/a_20210601.tiff', 'B02')
    with pytest.raises(DatasetNotFoundError, match=r"1 file '\*\.tiff': set filename_glob"):
        RasterTimeSeries(tmp_path / 'c')


def test_every_file_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for stamp in '20210601', '20210611', '20210621':
        bands(tmp_path / f'a_{stamp}.tif', 'B02', 'B03')
    opened: list[str] = []
    right = opening.DatasetReader
    count = lambda path, *a, **k: opened.append(Path(path).name) or right(path, *a, **k)  # noqa: E731
    monkeypatch.setattr(opening, 'DatasetReader', count)
    series = RasterTimeSeries(tmp_path)
    assert sorted(opened) == [f'a_{stamp}.tif' for stamp in ('20210601', '20210611', '20210621')]
    series[WINDOW]
    series[WINDOW]
    assert len(opened) == 6


@pytest.mark.parametrize('hide', [False, True])
def test_sidecars_count_whatever_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hide: bool
) -> None:
    image = np.full((8, 8), 500, np.uint16)
    image[:4] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False):
        path = write(tmp_path / 'msk/a_20210601.tif', image)
        with rasterio.open(path, 'r+') as file:
            file.write_mask((image > 0).astype(np.uint8) * 255)
    size = {'count': 1, 'height': 8, 'width': 8, 'dtype': 'uint16'}
    (tmp_path / 'hdr').mkdir()
    image.tofile(tmp_path / 'hdr/a_20210601.img')
    (tmp_path / 'hdr/a_20210601.hdr').write_text(
        'ENVI\nsamples = 8\nlines = 8\nbands = 1\nheader offset = 0\ndata type = 12\ninterleave = bsq\n'
        f'byte order = 0\nmap info = {{UTM, 1, 1, {X}, {Y}, 10, 10, 31, North, WGS-84}}\n'
    )
    (tmp_path / 'tfw').mkdir()
    with rasterio.open(tmp_path / 'tfw/a_20210601.tif', 'w', driver='GTiff', crs=UTM, **size) as file:
        file.write(image, 1)
    (tmp_path / 'tfw/a_20210601.tfw').write_text(f'10\n0\n0\n-10\n{X + 5}\n{Y - 5}\n')
    write(tmp_path / 'xml/a_20210601.tif', image)
    (tmp_path / 'xml/a_20210601.tif.aux.xml').write_text(
        '<PAMDataset><PAMRasterBand band="1"><NoDataValue>0</NoDataValue><Description>red</Description>'
        '</PAMRasterBand></PAMDataset>'
    )
    _kept_open.cache_clear()
    if hide:
        monkeypatch.setenv('GDAL_DISABLE_READDIR_ON_OPEN', 'EMPTY_DIR')
    found = {}
    for kind in 'msk', 'hdr', 'tfw', 'xml':
        series = RasterTimeSeries(tmp_path / kind, filename_glob='*.img' if kind == 'hdr' else '*.tif')
        found[kind] = series.bands, int(series[WINDOW]['image_raster'][0, 0, :, 0].isfinite().sum())
    assert found == {'msk': (('B1',), 4), 'hdr': (('B1',), 8), 'tfw': (('B1',), 8), 'xml': (('red',), 4)}


def test_ground_control_points_say_where_a_file_lies(tmp_path: Path) -> None:
    corners = [(0, 0, X, Y), (0, 8, X + 80, Y), (8, 0, X, Y - 80), (8, 8, X + 80, Y - 80)]
    points = [rasterio.control.GroundControlPoint(*corner) for corner in corners]
    size = {'count': 1, 'height': 8, 'width': 8, 'dtype': 'float32'}
    with rasterio.open(tmp_path / 'a_20210601.tif', 'w', driver='GTiff', **size) as file:
        file.write(ramp(8, 8))
        file.gcps = points, rasterio.crs.CRS.from_string(UTM)
    series = RasterTimeSeries(tmp_path)
    assert series.index.total_bounds.tolist() == pytest.approx([X, Y - 80, X + 80, Y])
    assert series[WINDOW]['image_raster'][0, 0].numpy() == pytest.approx(ramp(8, 8)[0])
