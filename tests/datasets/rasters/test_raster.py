# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""RasterTimeSeries: days in order, tiles merged, nodata and clouds said, errors that name the file."""

import pickle
import shutil
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
import torch
from pyproj import CRS
from rasterio import Affine
from rasterio.enums import ColorInterp
from torch.utils.data import DataLoader
from torchgeo.datasets import DatasetNotFoundError, stack_samples, unbind_samples
from torchgeo.datasets.splits import roi_split, time_series_split
from torchgeo.samplers import GriddedPatchSampler, RandomPatchSampler, SequentialPeriodSampler

from tests.geo_tree import UTM, X, Y, ramp, write
from torchgeo_omnisat.batch import collate
from torchgeo_omnisat.datasets import RasterTimeSeries, Sentinel1TimeSeries, Sentinel2TimeSeries
from torchgeo_omnisat.datasets.rasters import frames
from torchgeo_omnisat.grid import Grid


def day(text: str) -> int:
    return (date.fromisoformat(text) - date(1970, 1, 1)).days


def window(left: int = 0, top: int = 0, width: int = 8, height: int = 8, step: float = 10) -> tuple[slice, slice]:
    """Columns and rows of 10 m from the upper left corner of everything."""
    x, y = X + 10 * left, Y - 10 * top
    return slice(x, x + 10 * width, step), slice(y - 10 * height, y, step)


@pytest.fixture
def series(tmp_path: Path) -> RasterTimeSeries:
    """Two tiles side by side, 16 px in all, on three days over two years; names in another order than time."""
    for tile, left in (('a', 0), ('b', 8)):
        for number, stamp in enumerate(('20201230', '20210104', '20211101')):
            image = ramp(16, 8, bands=2) + left + 1000 * number
            write(tmp_path / f'{tile}_{stamp}.tif', image, (X + 10 * left, Y), bands=('red', 'nir'), nodata=-1)
    return RasterTimeSeries(tmp_path, name='s2')


def test_days_come_in_order_and_tiles_are_one(series: RasterTimeSeries) -> None:
    sample = series[window(4, 2)]
    assert sample['image_s2'].shape == (3, 2, 8, 8)
    assert sample['dates_s2'].tolist() == [day('2020-12-30'), day('2021-01-04'), day('2021-11-01')]
    assert sample['valid_s2'].tolist() == [True] * 3
    expected = torch.from_numpy(ramp(16, 16, bands=2))[:, 2:10, 4:12]
    for number in range(3):
        torch.testing.assert_close(sample['image_s2'][number], expected + 1000 * number)
    assert series.modalities['s2'].bands == ('red', 'nir')
    assert (series.modalities['s2'].gsd, series.modalities['s2'].temporal) == (10, True)


def test_bounds_and_transform_are_exact(series: RasterTimeSeries) -> None:
    sample = series[window(3, 5)]
    assert sample['bounds'].dtype == sample['transform'].dtype == torch.float64
    assert sample['bounds'][:6].tolist() == [X + 30, X + 110, 10, Y - 130, Y - 50, 10]
    assert sample['transform'].tolist() == [10, 0, X + 30, 0, -10, Y - 50, 0, 0, 1]


def test_a_tile_that_only_touches_the_window_is_left_out(series: RasterTimeSeries, tmp_path: Path) -> None:
    write(tmp_path / 'c_20210601.tif', ramp(16, 8, bands=2), (X - 80, Y), bands=('red', 'nir'))
    series = RasterTimeSeries(tmp_path, name='s2')
    assert len(series[window(0, 0)]['dates_s2']) == 3
    assert len(series[window(-1, 0)]['dates_s2']) == 4


def test_overlapping_tiles_are_averaged_over_what_is_finite(tmp_path: Path) -> None:
    write(tmp_path / 'a_20210101.tif', np.array([[1.0, 2, -1, -1]], dtype=np.float32), nodata=-1)
    write(tmp_path / 'b_20210101.tif', np.array([[3.0, -1, 5, -1]], dtype=np.float32), nodata=-1)
    sample = RasterTimeSeries(tmp_path, name='s')[window(0, 0, 4, 1)]
    torch.testing.assert_close(sample['image_s'][0, 0, 0], torch.tensor([2, 2, 5, torch.nan]), equal_nan=True)
    db = RasterTimeSeries(tmp_path, name='s', decibels=True)[window(0, 0, 4, 1)]
    mean = 10 * np.log10((10**0.1 + 10**0.3) / 2)
    torch.testing.assert_close(db['image_s'][0, 0, 0], torch.tensor([mean, 2, 5, torch.nan]).float(), equal_nan=True)


def test_nodata_is_nan_in_its_band_alone_and_a_date_of_it_is_not_valid(tmp_path: Path) -> None:
    image = ramp(8, 8, bands=2)
    image[0, 0, 0] = -1
    write(tmp_path / 'a_20210101.tif', image, nodata=-1)
    write(tmp_path / 'a_20210201.tif', np.full((2, 8, 8), -1, np.float32), nodata=-1)
    sample = RasterTimeSeries(tmp_path, name='s')[window()]
    assert sample['valid_s'].tolist() == [True, False]
    assert sample['image_s'][0].isnan().nonzero().tolist() == [[0, 0, 0]]
    assert sample['image_s'][1].isnan().all()
    image[0, 0, 1] = 7.5
    write(tmp_path / 'a_20210101.tif', image, nodata=-1)
    told = RasterTimeSeries(tmp_path, name='s', nodata=7.5, cache=False)[window()]  # besides the file's
    assert told['image_s'][0].isnan().nonzero().tolist() == [[0, 0, 0], [0, 0, 1]]
    told = RasterTimeSeries(tmp_path, name='s', replace_nodata=7.5, cache=False)[window()]
    assert told['image_s'][0, 0, 0, :2].tolist() == [-1, pytest.approx(float('nan'), nan_ok=True)]


def test_beyond_a_file_without_nodata_nothing_was_measured(tmp_path: Path) -> None:
    write(tmp_path / 'a_20210101.tif', np.zeros((4, 4), np.uint8))
    image = RasterTimeSeries(tmp_path, name='s')[window(2, 0, 4, 4)]['image_s'][0, 0]
    assert (image[:, :2] == 0).all()
    assert image[:, 2:].isnan().all()


@pytest.mark.parametrize('separate', [False, True])
def test_clouds_are_nan_and_too_many_spoil_the_date(tmp_path: Path, separate: bool) -> None:
    for stamp, share in (('20210101', 2), ('20210201', 4)):
        clouds = np.zeros((8, 8), np.float32)
        clouds[:share] = 9
        image = np.stack([ramp(8, 8)[0], clouds])
        if separate:
            for band, pixels in zip(('B02', 'SCL'), image, strict=True):
                write(tmp_path / f'{stamp}_{band}.tif', pixels)
        else:
            write(tmp_path / f'{stamp}.tif', image, bands=('B02', 'SCL'))
    pattern = {'filename_glob': '*_B02.tif', 'filename_regex': r'(?P<date>\d{8})_(?P<band>B02|SCL)'} if separate else {}
    args = {'all_bands': ('B02', 'SCL'), 'bands': ('B02',), 'separate_files': separate, 'name': 's', **pattern}
    for clouds_are in ({'values': (8, 9)}, {'threshold': 5}):
        sample = RasterTimeSeries(tmp_path, clouds={'band': 'SCL', **clouds_are}, **args)[window()]
        assert sample['valid_s'].tolist() == [True, False]
        assert sample['image_s'].isnan().sum((1, 2, 3)).tolist() == [16, 32]
    lenient = RasterTimeSeries(tmp_path, clouds={'band': 'SCL', 'values': (9,), 'cover': 0.6}, **args)[window()]
    assert lenient['valid_s'].tolist() == [True, True]


def test_clouds_count_where_something_was_measured(tmp_path: Path) -> None:
    image = np.stack([ramp(8, 8)[0], np.zeros((8, 8), np.float32)])
    image[0, 2:] = -1
    image[1, 2:] = 9  # clouds all over, but where the image has something
    write(tmp_path / '20210101.tif', image, bands=('B02', 'SCL'), nodata=-1)
    args = {'all_bands': ('B02', 'SCL'), 'bands': ('B02',), 'name': 's', 'filename_regex': r'(?P<date>\d{8})'}
    series = RasterTimeSeries(tmp_path, clouds={'band': 'SCL', 'values': (9,)}, **args)
    assert series[window()]['valid_s'].tolist() == [True]


def test_classes_of_clouds_are_not_averaged(tmp_path: Path) -> None:
    image = np.stack([ramp(8, 8)[0], np.tile([8.0, 10.0], (8, 4)).astype(np.float32)])  # whose mean is a cloud
    write(tmp_path / '20210101.tif', image, bands=('B02', 'SCL'))
    args = {'all_bands': ('B02', 'SCL'), 'bands': ('B02',), 'name': 's', 'filename_regex': r'(?P<date>\d{8})'}
    series = RasterTimeSeries(tmp_path, clouds={'band': 'SCL', 'values': (9,)}, **args)
    assert series[window(step=20)]['image_s'].isfinite().all()


@pytest.mark.parametrize(('names', 'cloudy'), [(('R', 'alpha', 'SCL'), 9), (('R', 'B', 'clear'), 0)])
def test_clouds_beside_or_in_a_band_that_is_declared_as_alpha(
    tmp_path: Path, names: tuple[str, ...], cloudy: int
) -> None:
    image = np.full((3, 8, 8), 255, np.uint8)
    image[2] = 9 - cloudy
    image[2, :3] = cloudy
    path = write(tmp_path / 'x_20210601.tif', image, bands=names)
    alpha = names.index('alpha') if 'alpha' in names else 2
    with rasterio.open(path, 'r+') as file:
        file.colorinterp = [ColorInterp.alpha if place == alpha else ColorInterp.gray for place in range(3)]
    series = RasterTimeSeries(tmp_path, bands=('R',), clouds={'band': names[2], 'values': (cloudy,)})
    hidden = series[window()]['image_raster'][0, 0].isnan()
    assert hidden[:3].all()
    assert not hidden[3:].any()


def test_a_single_image_has_the_date_of_its_newest_pixels(tmp_path: Path) -> None:
    empty = np.full((8, 8), np.nan, np.float32)
    write(tmp_path / 'x_20200601.tif', ramp(8, 8))
    write(tmp_path / 'x_20210601.tif', empty)
    sample = RasterTimeSeries(tmp_path, temporal=False)[window()]
    assert sample['dates_raster'].tolist() == [day('2020-06-01')]
    write(tmp_path / 'x_20200601.tif', empty)
    assert RasterTimeSeries(tmp_path, temporal=False)[window()]['dates_raster'].tolist() == [day('2021-06-01')]


@pytest.mark.parametrize('clouds', [{}, {'values': (1,), 'threshold': 2}, {'values': (1,), 'cover': 0}])
def test_clouds_that_say_too_little_or_too_much(series: RasterTimeSeries, clouds: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r'(one.*both|a fraction)'):
        RasterTimeSeries(series.paths, clouds={'band': 'nir', **clouds})


def test_single_images_show_the_newest_on_top(tmp_path: Path) -> None:
    new = np.full((4, 4), 7, np.float32)
    new[0] = -1
    write(tmp_path / 'a_20210101.tif', new, nodata=-1)
    write(tmp_path / 'b_20190101.tif', ramp(4, 4), nodata=-1)
    sample = RasterTimeSeries(tmp_path, name='aerial', temporal=False)[window(0, 0, 4, 4)]
    assert sample['image_aerial'].shape == (1, 4, 4)
    assert sample['image_aerial'][0, 0].tolist() == [1, 2, 3, 4]
    assert (sample['image_aerial'][0, 1:] == 7).all()
    assert sample['dates_aerial'].tolist() == [day('2021-01-01')]
    write(tmp_path / 'dem/elevation.tif', ramp(4, 4))
    undated = RasterTimeSeries(tmp_path / 'dem', name='dem', temporal=False)[window(0, 0, 4, 4)]
    assert (undated['dates_dem'].tolist(), undated['valid_dem'].tolist()) == ([0], [True])


def test_pixels_of_other_sizes(tmp_path: Path) -> None:
    write(tmp_path / 'a_20210101.tif', ramp(8, 8))
    series = RasterTimeSeries(tmp_path, name='s')
    coarse = series[window(step=20)]['image_s'][0, 0]
    torch.testing.assert_close(coarse, torch.from_numpy(ramp(8, 8)[0].reshape(4, 2, 4, 2).mean((1, 3))))
    assert series[window(step=0.5)]['image_s'].shape == (1, 1, 160, 160)


@pytest.mark.parametrize('nodata', [None, 101, -9999])
@pytest.mark.parametrize('corner', [(0, 0), (-3, 5), (9, -2), (40, 0)])
def test_copied_pixels_are_those_of_a_warp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nodata: int | None, corner: tuple[int, int]
) -> None:
    path = str(write(tmp_path / 'a_20210101.tif', ramp(12, 16, 2), nodata=nodata))
    grid = Grid(CRS.from_user_input(UTM), Affine(10, 0, X + 10 * corner[0], 0, -10, Y - 10 * corner[1]), 7, 9)
    copied = frames.read_window(path, (2, 1), grid, None, False, True)
    monkeypatch.setattr(frames, '_aligned_window', lambda *_: None)
    np.testing.assert_array_equal(copied, frames.read_window(path, (2, 1), grid, None, False, True))
    assert np.isfinite(copied).any() == (corner != (40, 0))


def test_pixels_half_a_pixel_away_are_not_copied(tmp_path: Path) -> None:
    path = str(write(tmp_path / 'a_20210101.tif', ramp(12, 16)))
    grid = Grid(CRS.from_user_input(UTM), Affine(10, 0, X + 25, 0, -10, Y - 20), 4, 4)
    np.testing.assert_allclose(
        frames.read_window(path, None, grid, None, False, False)[0, :, 0], 203.5 + 100 * np.arange(4)
    )


def test_another_crs_lands_on_the_same_ground(tmp_path: Path) -> None:
    write(tmp_path / 'utm/a_20210101.tif', ramp(60, 60))
    near = RasterTimeSeries(tmp_path / 'utm', name='s')
    # The same field of a plane, sampled on degrees.
    there = near.index.to_crs(4326).total_bounds
    step = 0.0001
    image = RasterTimeSeries(tmp_path / 'utm', name='s', crs='EPSG:4326', res=step)
    sample = image[slice(there[0], there[0] + 80 * step), slice(there[3] - 50 * step, there[3])]
    write(tmp_path / 'deg/a_20210101.tif', sample['image_s'][0].numpy(), (there[0], there[3]), step, 'EPSG:4326')
    again = RasterTimeSeries(tmp_path / 'deg', name='s', crs=near.crs, res=10)
    assert again.modalities['s'].gsd == 10
    back, expected = again[window(10, 10)]['image_s'], near[window(10, 10)]['image_s']
    assert (back - expected).abs().max() < 15  # of 100 a row: a seventh of a pixel, twice interpolated


def test_date_range_and_max_dates(series: RasterTimeSeries) -> None:
    cut = RasterTimeSeries(series.paths, name='s2', date_range=('2020-12-31', '2021-11-01'))
    assert cut[window()]['dates_s2'].tolist() == [day('2021-01-04'), day('2021-11-01')]
    few = RasterTimeSeries(series.paths, name='s2', max_dates=1)
    assert few[window(4, 0)]['dates_s2'].tolist() == [day('2021-01-04')]
    with pytest.raises(ValueError, match=r"date_range.*'s2'.*files.*2020-12-30.*2021-11-01"):
        RasterTimeSeries(series.paths, name='s2', date_range=('2019-01-01', '2019-12-31'))


def test_slices_in_time(series: RasterTimeSeries) -> None:
    x, y = window()
    year = slice(pd.Timestamp('2021-01-01'), pd.Timestamp('2021-12-31'))
    assert len(series[x, y, year]['dates_s2']) == 2
    assert series[x, y, slice(None, None, 2)]['dates_s2'].tolist() == [day('2020-12-30'), day('2021-11-01')]
    with pytest.raises(IndexError, match=r"file.*'s2'"):
        series[x, y, slice(pd.Timestamp('2018-01-01'), pd.Timestamp('2018-12-31'))]
    with pytest.raises(IndexError, match=r"file.*'s2'.*window"):
        series[window(100, 100)]


def test_torchgeos_samplers_splits_and_workers(series: RasterTimeSeries) -> None:
    sampler = RandomPatchSampler(series, size=8, length=4, generator=0)
    loader = DataLoader(
        series, batch_size=2, sampler=sampler, num_workers=2, collate_fn=lambda s: collate(s, series.modalities)
    )
    for batch in loader:
        assert batch['image_s2'].shape == (2, 3, 2, 8, 8)
        assert not batch['image_s2'].isnan().any()
    grid = list(GriddedPatchSampler(series, size=8))
    batch = stack_samples([series[index] for index in grid])
    assert [sample['image_s2'].shape for sample in unbind_samples(batch)] == [(3, 2, 8, 8)] * 4
    periods = SequentialPeriodSampler(series, freq='Y')
    found = [len(series[index]['dates_s2']) for index in GriddedPatchSampler(series, size=16) @ periods]
    assert found == [1, 2]
    west, east = roi_split(series, [series.index.geometry.iloc[0], series.index.geometry.iloc[3]])
    assert [len(part[window(4)]['dates_s2']) for part in (west, east)] == [3, 3]
    with pytest.raises(IndexError):
        west[window(9, 0, 4, 4)]
    t, middle = series.bounds[2], pd.Timestamp('2021-06-01')
    parts = time_series_split(series, [pd.Interval(t.start, middle), pd.Interval(middle, t.stop)])
    assert [len(part[window()]['dates_s2']) for part in parts] == [2, 1]
    again = pickle.loads(pickle.dumps(series))
    torch.testing.assert_close(again[window()], series[window()])


def test_errors_name_what_is_wrong(series: RasterTimeSeries, tmp_path: Path) -> None:
    root = Path(str(series.paths))
    with pytest.raises(DatasetNotFoundError, match=r"files '\*.jp2' whose.*match.*0"):
        RasterTimeSeries(root, filename_glob='*.jp2')
    with pytest.raises(DatasetNotFoundError, match=r"6.*'a_20201230.tif'.*set filename_regex"):
        RasterTimeSeries(root, filename_regex=r'x(?P<date>\d{8})', all_bands=('B1', 'B2'))
    with pytest.raises(ValueError, match=r"bands \['swir'\].*'raster'.*\['red'.*; set all_bands"):
        RasterTimeSeries(root, bands=('swir',))
    with pytest.raises(ValueError, match=r'time series.*dates'):
        RasterTimeSeries(root, filename_regex='.*')
    with pytest.raises(ValueError, match=r"{'date': '20201'}.*'a_20201230.tif'.*date.*date_form"):
        RasterTimeSeries(root, filename_regex=r'a_(?P<date>\d{5})')
    with pytest.raises(ValueError, match=r"filename_regex.*'raster'.*'a_\(\?P<date'.*expression"):
        RasterTimeSeries(root, filename_regex=r'a_(?P<date')
    with pytest.raises(ValueError, match=r'max_dates.*0'):
        RasterTimeSeries(root, max_dates=0)
    (root / 'a_20210104.tif').write_bytes(b'no raster')
    with pytest.raises(ValueError, match=r'a_20210104.tif'):
        RasterTimeSeries(root)
    write(tmp_path / 'other/a_20210101.tif', ramp(4, 4), crs=None)
    with pytest.raises(ValueError, match=r'a_20210101.tif.*georeferenced raster'):
        RasterTimeSeries(tmp_path / 'other')


def test_a_file_that_is_lost_later_is_an_error(series: RasterTimeSeries) -> None:
    Path(series.index.filepath.iloc[0]).unlink()
    with pytest.raises(ValueError, match=r'20201230.tif'):
        series[window()]


@pytest.mark.parametrize('safe', ['folder', 'zip', ''])
def test_sentinel_2_from_products_and_from_band_files(tmp_path: Path, safe: str) -> None:
    for stamp in ('20210105T104629', '20201231T104629'):
        for band, resolution in (('B02', 10), ('B05', 20), ('SCL', 20)):
            folder = tmp_path / f'S2A_{stamp}.SAFE/GRANULE/IMG_DATA/R{resolution}m' if safe else tmp_path
            ending = f'_{resolution}m.tif' if safe else '.tif'
            size = 160 // resolution
            image = np.full((size, size), resolution if band != 'SCL' else 4, np.uint16)
            if band == 'SCL' and stamp.startswith('2020'):
                image[:] = 9
            image[0, 0] = 0
            write(folder / f'T31UFS_{stamp}_{band}{ending}', image, step=resolution)
    for product in tmp_path.glob('*.SAFE') if safe == 'zip' else ():
        shutil.make_archive(str(product), 'zip', tmp_path, product.name)
        if '2020' in product.name:  # the other one is there twice, and read once
            shutil.rmtree(product)
    clouds = {'band': 'SCL', 'values': (8, 9)}
    series = Sentinel2TimeSeries(tmp_path, bands=('B02', 'B05'), clouds=clouds)
    assert len(series) == 2
    sample = series[window(0, 0, 16, 16)]
    assert sample['dates_s2'].tolist() == [day('2020-12-31'), day('2021-01-05')]
    assert sample['valid_s2'].tolist() == [False, True]
    image = sample['image_s2'][1]
    assert image.shape == (2, 16, 16)
    assert image[0, 0, 0].isnan()
    assert (image[0, 2:, 2:] == 10).all()
    assert (image[1, 2:, 2:] == 20).all()
    assert series.modalities['s2'].bands == ('B02', 'B05')


def test_reflectances_of_all_processing_baselines_are_on_one_scale(tmp_path: Path) -> None:
    products = {'20211205': ('N0301', 500), '20220205': ('N0400', 1500), '20200105': ('N0500', 1500)}
    for stamp, (baseline, value) in products.items():
        product = f'S2A_MSIL2A_{stamp}T104629_{baseline}_R051_T31UFS_{stamp}T150000.SAFE'
        for band, step in (('B02', 10), ('B05', 20), ('SCL', 20)):
            image = np.full((160 // step, 160 // step), 9 if band == 'SCL' else value, np.uint16)
            image[0] = 0 if band == 'B02' else image[0]
            folder = tmp_path / product / f'GRANULE/L2A/IMG_DATA/R{step}m'
            write(folder / f'T31UFS_{stamp}T104629_{band}_{step}m.tif', image, step=step)
    clouds = {'band': 'SCL', 'values': (9,)}
    image = Sentinel2TimeSeries(tmp_path, bands=('B02', 'B05'))[window(0, 0, 16, 16)]['image_s2']
    assert image[:, 0, 0].isnan().all()
    assert image[:, :, 2:, 2:].unique().tolist() == [500]
    raw = Sentinel2TimeSeries(tmp_path, bands=('B02', 'B05'), harmonize=False)[window(0, 0, 16, 16)]['image_s2']
    assert raw[:, 0, 5, 5].tolist() == [1500, 500, 1500]
    cloudy = Sentinel2TimeSeries(tmp_path, bands=('B02',), clouds=clouds)[window(0, 0, 16, 16)]
    assert not cloudy['valid_s2'].any()  # the classification is not shifted


def test_sentinel_1_of_the_alaska_satellite_facility(tmp_path: Path) -> None:
    for unit in 'd', 'p':
        for band in 'VV', 'VH':
            name = f'S1A_IW_20210101T055005_DVP_RTC10_G_g{unit}uned_1A2B_{band}.tif'
            write(tmp_path / unit / name, ramp(8, 8) + (band == 'VH'))
    decibels, power = (Sentinel1TimeSeries(tmp_path / unit) for unit in 'dp')
    assert (decibels.decibels, power.decibels) == (True, False)
    sample = decibels[window()]
    torch.testing.assert_close(sample['image_s1'][0, 1], torch.from_numpy(ramp(8, 8)[0] + 1))
    with pytest.raises(ValueError, match=r"scales \['d', 'p'\]"):
        Sentinel1TimeSeries(tmp_path)


def test_real_monthly_series(belgium: Path) -> None:
    series = RasterTimeSeries(belgium / 's2', name='s2')
    assert series.modalities['s2'].bands == ('B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B11', 'B12')
    x, y, _ = series.bounds
    sample = series[x, y]
    assert sample['image_s2'].shape == (19, 9, 50, 48)
    assert day('2021-01-01') not in sample['dates_s2']  # the month without an image
    assert sample['dates_s2'].diff().gt(0).all()
    assert series.crs == UTM


def test_files_without_a_date_of_the_calendar_are_named(tmp_path: Path) -> None:
    for stamp in ('20210601', '20211301'):
        write(tmp_path / f'S2_{stamp}.tif', ramp(4, 4))
    with pytest.warns(UserWarning, match=r'S2_20211301\.tif \(1 in total\)'):
        RasterTimeSeries(tmp_path)
