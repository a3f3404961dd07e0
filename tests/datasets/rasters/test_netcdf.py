# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""NetCDFTimeSeries: the values, dates and places that files state by the CF conventions, and errors that name both."""

import builtins
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from pyproj import CRS
from torch.utils.data import DataLoader
from torchgeo.datasets import DatasetNotFoundError

from tests.conftest import SHARED
from tests.geo_tree import UTM, X, Y, ramp, write
from torchgeo_omnisat.__main__ import main
from torchgeo_omnisat.datamodules import MultimodalGeoDataModule
from torchgeo_omnisat.datasets import NetCDFTimeSeries, RasterTimeSeries
from torchgeo_omnisat.datasets.geo.config import image_dataset, label_dataset
from torchgeo_omnisat.datasets.rasters.cf import open_cube

xr = pytest.importorskip('xarray')
pytest.importorskip('h5netcdf')
WINDOW = slice(X, X + 80), slice(Y - 80, Y)
DAYS = ('2021-06-01', '2021-03-01', '2021-09-01')
REAL = SHARED / 'worldcereal-tiles'
PAGE = Path(__file__).parents[3] / 'docs/howto/rasters.md'


def cube(
    path: Path,
    bands: dict[str, Any] | None = None,
    days: tuple[str, ...] | None = DAYS,
    origin: tuple[float, float] = (X, Y),
    crs: str | None = UTM,
    encoding: dict[str, Any] | None = None,
    attrs: dict[str, Any] | None = None,
    ascending: bool = False,
    names: tuple[str, str, str] = ('time', 'y', 'x'),
    **written: Any,
) -> Path:
    """Write variables (T, H, W), or (H, W) without days, of 10 m; the first date is 1000 above the ramp, and so on."""
    steps = np.arange(1, len(days or '1') + 1)[:, None, None]
    image = (ramp(16, 16) + 1000 * steps).astype(np.float32)
    bands = bands or {'B04': image if days else image[0], 'B08': (image if days else image[0]) + 0.5}
    height, width = next(iter(bands.values())).shape[-2:]
    time, y, x = names
    coords: dict[str, Any] = {
        x: origin[0] + 10 * np.arange(width) + 5,
        y: origin[1] - 10 * np.arange(height) - 5,
    }
    if days:
        coords[time] = np.array(days, 'datetime64[ns]')
    dims = names if days else names[1:]
    data = xr.Dataset({name: (dims, values, attrs or {}) for name, values in bands.items()}, coords)
    if ascending:
        data = data.isel({y: slice(None, None, -1)})
    if crs is not None:
        data['spatial_ref'] = ((), 0, {'crs_wkt': CRS.from_user_input(crs).to_wkt()})
        for name in bands:
            data[name].attrs['grid_mapping'] = 'spatial_ref'
    path.parent.mkdir(parents=True, exist_ok=True)
    data.to_netcdf(path, engine=written.pop('engine', 'h5netcdf'), encoding=encoding, **written)
    return path


def dates(sample: Any, name: str = 'raster') -> list[str]:
    found: list[str] = sample[f'dates_{name}'].numpy().astype('datetime64[D]').astype(str).tolist()
    return found


@pytest.mark.parametrize('ascending', [False, True])
@pytest.mark.parametrize('names', [('time', 'y', 'x'), ('timestamp', 'northing', 'easting')])
def test_dates_and_pixels(tmp_path: Path, ascending: bool, names: Any) -> None:
    cube(tmp_path / 'a.nc', ascending=ascending, names=names)
    series = NetCDFTimeSeries(tmp_path)
    assert series.bands == ('B04', 'B08')
    assert series.temporal
    sample = series[X + 20 : X + 100, Y - 110 : Y - 30]
    assert dates(sample) == sorted(DAYS)
    expected = torch.from_numpy(ramp(16, 16))[:, 3:11, 2:10]
    for place, number in enumerate((2, 1, 3)):  # in the order of time, not of the file
        torch.testing.assert_close(sample['image_raster'][place], torch.cat([expected, expected + 0.5]) + 1000 * number)
    assert sample['valid_raster'].all()


def test_columns_from_east_to_west(tmp_path: Path) -> None:
    path = cube(tmp_path / 'a.nc')
    with xr.open_dataset(path, engine='h5netcdf') as file:
        file.isel(x=slice(None, None, -1)).transpose('x', 'time', 'y').to_netcdf(tmp_path / 'b.nc', engine='h5netcdf')
    one, other = (NetCDFTimeSeries(tmp_path / name)[WINDOW] for name in ('a.nc', 'b.nc'))
    torch.testing.assert_close(one['image_raster'], other['image_raster'])


def test_beyond_a_file_is_nan(tmp_path: Path) -> None:
    cube(tmp_path / 'a.nc')
    image = NetCDFTimeSeries(tmp_path)[X - 40 : X + 40, Y - 80 : Y]['image_raster'][0]
    assert image[..., :4].isnan().all()
    assert image[..., 4:].isfinite().all()


@pytest.mark.parametrize(('step', 'crs'), [(20.0, UTM), (7.0, UTM), (10.0, 'EPSG:32632')])
def test_other_pixels_are_those_of_a_raster(tmp_path: Path, step: float, crs: str) -> None:
    cube(tmp_path / 'a.nc', ascending=True)
    write(tmp_path / 'raster_20210601.tif', ramp(16, 16))
    series = NetCDFTimeSeries(tmp_path, crs=CRS(crs), bands=['B04'])
    raster = RasterTimeSeries(tmp_path, crs=CRS(crs))
    left, _, _, top = raster.index.total_bounds
    window = slice(left + 3, left + 3 + 8 * step, step), slice(top - 8 * step, top, step)
    warped, expected = (one[window]['image_raster'] for one in (series, raster))
    torch.testing.assert_close(warped[1, 0] - 1000, expected[0, 0], equal_nan=True, rtol=0, atol=0.01)
    assert expected.isfinite().any()


def test_fill_values_scale_and_valid_range(tmp_path: Path) -> None:
    stored = np.arange(3 * 16 * 16).reshape(3, 16, 16).astype(np.int16) + 1
    stored[0, 0, 0], stored[0, 0, 1], stored[1] = -99, 700, 0
    attrs: dict[str, Any] = {'_FillValue': np.int16(0), 'missing_value': np.int16(-99)}
    attrs |= {'valid_range': np.array([1, 600], np.int16), 'scale_factor': 0.5, 'add_offset': -1.0}
    cube(tmp_path / 'a.nc', {'B04': stored}, attrs=attrs)
    expected = stored * 0.5 - 1
    expected[(stored < 1) | (stored > 600)] = np.nan
    sample = NetCDFTimeSeries(tmp_path, unit='reflectance')[X : X + 160, Y - 160 : Y]
    np.testing.assert_array_equal(sample['image_raster'][:, 0], expected[[1, 0, 2]])
    assert sample['valid_raster'].tolist() == [False, True, True]
    raw = NetCDFTimeSeries(tmp_path, unit='dn', nodata=5)[X : X + 160, Y - 160 : Y]['image_raster'][:, 0]
    kept = np.where(np.isnan(expected) | (stored == 5), np.nan, stored)
    np.testing.assert_array_equal(raw, kept[[1, 0, 2]])
    other = NetCDFTimeSeries(tmp_path, unit='dn', replace_nodata=5)[X : X + 160, Y - 160 : Y]['valid_raster']
    assert other.tolist() == [False, True, True]  # the valid range still counts


@pytest.mark.parametrize(
    ('number', 'is_fill'),
    [
        (np.int16(-32767), True),
        (np.uint16(65535), True),
        (np.int32(-2147483647), True),
        (np.uint32(4294967295), True),
        (np.int64(-9223372036854775806), True),
        (np.int16(-32768), False),
        (np.uint8(255), False),
    ],
)
def test_pixels_that_were_never_written(tmp_path: Path, number: Any, is_fill: bool) -> None:
    stored = np.full((1, 16, 16), number)
    stored[0, 0, 0] = 7
    cube(tmp_path / 'a.nc', {'B04': stored}, DAYS[:1])
    image = NetCDFTimeSeries(tmp_path)[X : X + 160, Y - 160 : Y]['image_raster'][0, 0]
    assert image[0, 0] == 7
    assert int(image.isnan().sum()) == 255 * is_fill


def test_a_stated_fill_value_replaces_that_of_the_library(tmp_path: Path) -> None:
    stored = np.full((1, 16, 16), -32767, np.int16)
    cube(tmp_path / 'a.nc', {'B04': stored}, DAYS[:1], attrs={'_FillValue': np.int16(0)})
    assert NetCDFTimeSeries(tmp_path)[X : X + 160, Y - 160 : Y]['image_raster'].eq(-32767).all()


def test_unsigned_numbers_and_a_float_range(tmp_path: Path) -> None:
    stored = np.arange(-128, 128, dtype=np.int16).astype(np.int8).reshape(1, 16, 16)
    attrs = {'_Unsigned': 'true', '_FillValue': np.int8(-1), 'scale_factor': 2.0, 'valid_max': 400.0}
    cube(tmp_path / 'a.nc', {'B04': stored}, DAYS[:1], attrs=attrs)
    image = NetCDFTimeSeries(tmp_path)[X : X + 160, Y - 160 : Y]['image_raster'][0, 0].numpy()
    expected = stored[0].view(np.uint8) * 2.0
    expected[expected > 400] = np.nan
    np.testing.assert_array_equal(image, expected)
    assert np.isnan(image).any()


def test_files_are_a_mosaic_of_places(tmp_path: Path) -> None:
    cube(tmp_path / 'a.nc')
    cube(tmp_path / 'deep/b.nc', days=DAYS[:1], origin=(X + 160, Y))
    series = NetCDFTimeSeries(tmp_path)
    assert len(series.index) == 4
    sample = series[X + 120 : X + 200, Y - 80 : Y]
    assert dates(sample) == sorted(DAYS)
    finite = sample['image_raster'].isfinite().any(1)
    assert finite[1].all()
    assert finite[0, :, :4].all()
    assert not finite[0, :, 4:].any()
    assert dates(series[X + 200 : X + 280, Y - 80 : Y]) == [DAYS[0]]


def test_frames_of_one_day_are_merged(tmp_path: Path) -> None:
    cube(tmp_path / 'a.nc', days=('2021-06-01T10:00', '2021-06-01T11:00', '2021-06-02'))
    sample = NetCDFTimeSeries(tmp_path, bands=['B04'])[WINDOW]
    assert dates(sample) == ['2021-06-01', '2021-06-02']
    torch.testing.assert_close(sample['image_raster'][0, 0], torch.from_numpy(ramp(8, 8)[0]) + 1500)


def test_dates_are_chosen_and_clouds_left_out(tmp_path: Path) -> None:
    days = tuple(f'2021-{month:02d}-01' for month in range(1, 13))
    values = np.arange(12, dtype=np.float32)[:, None, None] * np.ones((1, 16, 16), np.float32)
    classes = np.where(values == 3, 9, 4).astype(np.uint8)
    classes[5, 0] = 9
    for chunks in ((1, 16, 16), (5, 8, 8), None):
        sizes = {name: {'chunksizes': chunks, 'zlib': bool(chunks)} for name in ('B04', 'SCL')} if chunks else None
        root = cube(tmp_path / f'{chunks}/a.nc', {'B04': values, 'SCL': classes}, days, encoding=sizes).parent
        arguments: dict[str, Any] = {'bands': ['B04'], 'clouds': {'band': 'SCL', 'values': [9]}}
        sample = NetCDFTimeSeries(root, **arguments)[WINDOW]
        assert sample['valid_raster'].tolist() == [number != 3 for number in range(12)]
        assert sample['image_raster'][5, 0, 0].isnan().all()
        assert sample['image_raster'][5, 0, 1:].eq(5).all()
        few = NetCDFTimeSeries(root, bands=['B04'], max_dates=3)[WINDOW]
        assert few['image_raster'][:, 0, 0, 0].tolist() == [2, 6, 10]
        part = NetCDFTimeSeries(root, bands=['B04'], date_range=('2021-11-01', '2021-12-31'))[WINDOW]
        assert part['image_raster'][:, 0, 0, 0].tolist() == [10, 11]


def test_dates_of_files_without_a_coordinate(tmp_path: Path) -> None:
    cube(tmp_path / 'dem.nc', days=None)
    single = NetCDFTimeSeries(tmp_path)
    assert not single.temporal
    assert single[WINDOW]['image_raster'].shape == (2, 8, 8)
    with pytest.raises(ValueError, match=r'dem.nc.*time coordinate.*temporal: false'):
        NetCDFTimeSeries(tmp_path, temporal=True)
    dated = (tmp_path / 'dem.nc').rename(tmp_path / 's2_20210615.nc')
    assert dates(NetCDFTimeSeries(dated, temporal=True)[WINDOW]) == ['2021-06-15']


def test_coordinate_of_dates_by_name(tmp_path: Path) -> None:
    path = cube(tmp_path / 'a.nc')
    for values in (np.array([20210601, 20210301, 20210901]), np.array(DAYS)):
        with xr.open_dataset(path, engine='h5netcdf') as file:
            changed = file.load().drop_vars('time').rename(time='step').assign_coords(when=('step', values))
        other = tmp_path / f'{values.dtype.kind}.nc'
        changed.to_netcdf(other, engine='h5netcdf')
        with pytest.raises(ValueError, match=r".nc.*dimension 'step'.*3.*coordinate.*time"):
            NetCDFTimeSeries(other)
        assert dates(NetCDFTimeSeries(other, time='when')[WINDOW]) == sorted(DAYS)
    with pytest.raises(ValueError, match=r"time.*'never'.*coordinate.*.nc"):
        NetCDFTimeSeries(other, time='never')


def test_calendars(tmp_path: Path) -> None:
    path = cube(tmp_path / 'a.nc', encoding={'time': {'units': 'hours since 2021-01-01', 'calendar': 'standard'}})
    assert dates(NetCDFTimeSeries(path)[WINDOW]) == sorted(DAYS)
    with xr.open_dataset(path, engine='h5netcdf', decode_times=False) as file:
        changed = file.load()
    changed.time.attrs['calendar'] = '360_day'
    changed.to_netcdf(tmp_path / 'b.nc', engine='h5netcdf')
    with pytest.raises(ValueError, match=r"'time'.*b.nc.*dates.*'360_day'.* standard calendar"):
        NetCDFTimeSeries(tmp_path / 'b.nc')


def test_crs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a.nc.*CRS.*crs: 'EPSG:32631'"):
        NetCDFTimeSeries(cube(tmp_path / 'a.nc', crs=None))
    told = NetCDFTimeSeries(tmp_path / 'a.nc', crs=CRS(UTM))
    assert told[WINDOW]['image_raster'].isfinite().all()
    stated = cube(tmp_path / 'b.nc', crs=None, attrs={'epsg': 32631})
    assert NetCDFTimeSeries(stated).crs == UTM
    with xr.open_dataset(stated, engine='h5netcdf') as file:
        changed = file.load()
    degrees = {'x': 3 + np.arange(16) / 10, 'y': 50 - np.arange(16) / 10}
    changed = changed.assign_coords(degrees).rename(x='lon', y='lat')
    for band in changed.data_vars.values():
        del band.attrs['epsg']
    changed.lon.attrs['units'], changed.lat.attrs['units'] = 'degrees_east', 'degrees_north'
    changed.to_netcdf(tmp_path / 'c.nc', engine='h5netcdf')
    assert NetCDFTimeSeries(tmp_path / 'c.nc').crs == 'EPSG:4326'
    degrees_east = {'units': 'degrees_east'}
    for first, name in ((357.0, 'd.nc'), (179.0, 'e.nc')):  # the first lies west of Greenwich as a whole
        lon = ('lon', first + np.arange(16) / 10, degrees_east)
        changed.assign_coords(lon=lon).to_netcdf(tmp_path / name, engine='h5netcdf')
    assert NetCDFTimeSeries(tmp_path / 'd.nc').index.total_bounds[0] == pytest.approx(-3.05)
    with pytest.raises(ValueError, match=r'e.nc.*longitudes.*178.95.*180.55.*-180.*180'):
        NetCDFTimeSeries(tmp_path / 'e.nc')


@pytest.mark.parametrize(('crs', 'side'), [(UTM, 1000.0), ('EPSG:2229', 3937 / 1.2)])
def test_coordinates_in_kilometres(tmp_path: Path, crs: str, side: float) -> None:
    """GSD and place are those of the CRS, in metres or US survey feet."""
    path = cube(tmp_path / 'km.nc', crs=crs)
    with open_cube(str(path)) as file:
        data = file.load().assign_coords({dim: (dim, file[dim].values / 1000, {'units': 'km'}) for dim in 'xy'})
    data.to_netcdf(path, engine='h5netcdf')
    series = NetCDFTimeSeries(path)
    assert series.gsd == pytest.approx(10)
    assert series.bounds[0].start == pytest.approx(X * side / 1000)
    assert series.bounds[1].stop == pytest.approx(Y * side / 1000)


def test_longitudes_above_180_in_a_given_crs(tmp_path: Path) -> None:
    path = cube(tmp_path / 'a.nc', crs=None, days=None)
    with open_cube(str(path)) as file:
        data = file.load().assign_coords(x=350.5 + np.arange(16), y=15.5 - np.arange(16))
    data.isel(x=slice(10)).to_netcdf(path, engine='h5netcdf')
    assert NetCDFTimeSeries(path, crs='EPSG:4326').bounds[0].start == pytest.approx(-10)


def test_years_out_of_range_are_named(tmp_path: Path) -> None:
    pytest.importorskip('cftime')  # without it, xarray does not decode them, and its error is passed on
    path = cube(tmp_path / 'a.nc')
    with open_cube(str(path)) as file:
        data = file.load().assign_coords(time=('time', [1, 2, 3], {'units': 'days since 3000-01-01'}))
    data.to_netcdf(path, engine='h5netcdf')
    with pytest.raises(ValueError, match=re.escape(f"'time' of {path} has the date 3000-01-02")):
        NetCDFTimeSeries(path)


def test_distant_zones_are_refused(tmp_path: Path) -> None:
    cube(tmp_path / 'a.nc')
    cube(tmp_path / 'b.nc', crs='EPSG:32650')
    with pytest.raises(ValueError, match=r'b.nc.*EPSG:32650.*CRS.*samples'):
        NetCDFTimeSeries(tmp_path)


def test_variables_that_are_missing_name_both(tmp_path: Path) -> None:
    cube(tmp_path / 'a.nc')
    cube(tmp_path / 'b.nc', {'B04': np.ones((3, 16, 16), np.float32)}, origin=(X + 160, Y))
    with pytest.raises(ValueError, match=r"b.nc.*variable 'B08'.*a.nc.*\['B04', 'B08'\]"):
        NetCDFTimeSeries(tmp_path)
    assert NetCDFTimeSeries(tmp_path, bands=['B04']).bands == ('B04',)
    with pytest.raises(ValueError, match=r"a.nc.*variable 'B11'.*\['B04', 'B08'\]"):
        NetCDFTimeSeries(tmp_path, variable='B11')
    with pytest.raises(ValueError, match=r'variable.*bands'):
        NetCDFTimeSeries(tmp_path, variable='B04', bands=['B04'])


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / 'a.nc'
    path.write_bytes(b'no such thing')
    with pytest.raises(ValueError, match=r'a.nc.*NetCDF file'):
        NetCDFTimeSeries(path)
    irregular = cube(path)
    with xr.open_dataset(irregular, engine='h5netcdf') as file:
        changed = file.load()
    changed.assign_coords(x=np.where(changed.x > X + 80, changed.x + 3, changed.x)).to_netcdf(path, engine='h5netcdf')
    with pytest.raises(ValueError, match=r"'x'.*a.nc.*steps.*grid"):
        NetCDFTimeSeries(path)
    cube(path, {'B04': np.full((3, 16, 16), b'a')})
    with pytest.raises(ValueError, match=r'a.nc.*variables.*dimensions.*pixels'):
        NetCDFTimeSeries(path)


def test_scales_that_differ_contradict_digital_numbers(tmp_path: Path) -> None:
    stored = np.ones((3, 16, 16), np.int16)
    cube(tmp_path / 'a.nc', {'B04': stored}, attrs={'scale_factor': 0.1})
    cube(tmp_path / 'b.nc', {'B04': stored}, attrs={'scale_factor': 0.2}, origin=(X + 160, Y))
    with pytest.raises(ValueError, match=r"unit.*'raster'.*'dn'.*a.nc.*b.nc.*scale_factor"):
        NetCDFTimeSeries(tmp_path, unit='dn')
    image = NetCDFTimeSeries(tmp_path)[X + 80 : X + 240, Y - 80 : Y]['image_raster'][0, 0, 0]
    assert image.tolist() == pytest.approx([0.1] * 8 + [0.2] * 8)


def test_netcdf_3(tmp_path: Path) -> None:
    path = cube(tmp_path / 'a.nc', engine='scipy')
    assert path.read_bytes()[:3] == b'CDF'
    assert dates(NetCDFTimeSeries(path)[WINDOW]) == sorted(DAYS)


def test_only_the_window_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import h5netcdf

    cube(tmp_path / 'a.nc')
    read = []
    original = h5netcdf.Variable.__getitem__

    def spy(self: Any, key: Any) -> Any:
        found = original(self, key)
        if self.name.endswith('B04'):
            read.append(np.shape(found))
        return found

    series = NetCDFTimeSeries(tmp_path, bands=['B04'], date_range=('2021-05-01', '2021-07-01'))
    monkeypatch.setattr(h5netcdf.Variable, '__getitem__', spy)
    _ = series[X + 20 : X + 60, Y - 40 : Y - 10]
    assert read == [(1, 3, 4)]


def test_a_file_written_anew_is_read_anew(tmp_path: Path) -> None:
    path = cube(tmp_path / 'a.nc')
    series = NetCDFTimeSeries(path, bands=['B04'])
    before = series[WINDOW]['image_raster']
    path.unlink()
    cube(path, {'B04': np.zeros((3, 16, 16), np.float32)})
    assert before.min() > 0
    assert series[WINDOW]['image_raster'].eq(0).all()


class Windows(torch.utils.data.Dataset[Any]):
    """A few windows of a series."""

    def __init__(self, series: NetCDFTimeSeries) -> None:
        self.series = series

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        return self.series[X + 40 * index : X + 40 * index + 40, Y - 80 : Y]['image_raster']


def test_workers_read_the_same(tmp_path: Path) -> None:
    cube(tmp_path / 'a.nc', encoding={'B04': {'chunksizes': (2, 8, 8), 'zlib': True}})
    windows = Windows(NetCDFTimeSeries(tmp_path))
    expected = [windows[index] for index in range(4)]  # the file is open when workers are forked
    for found, own in zip(DataLoader(windows, batch_size=None, num_workers=2), expected, strict=True):
        torch.testing.assert_close(found, own)


def test_without_xarray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = cube(tmp_path / 'a.nc')
    original = builtins.__import__

    def fail(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == 'h5netcdf':
            raise ImportError('No module named h5netcdf')
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, '__import__', fail)
    with pytest.raises(ImportError, match=r'pip install torchgeo-omnisat\[netcdf\]'):
        open_cube(str(path))


def test_settings(tmp_path: Path) -> None:
    cube(tmp_path / 'tiles/a.nc')
    for settings in ({'kind': 'netcdf'}, {'reader': 'netcdf', 'kind': 'optical', 'unit': 'reflectance'}):
        dataset: Any = image_dataset('s2', {'path': 'tiles', 'gsd': 10, **settings}, tmp_path)
        assert dataset.modalities['s2'].bands == ('B04', 'B08')
        assert dataset.modalities['s2'].kind == ('optical' if 'reader' in settings else None)
    with pytest.raises(ValueError, match=r"kind.*mask.*'stac'.*\['raster', 'netcdf'\]"):
        label_dataset({'path': 'tiles', 'kind': 'stac'}, tmp_path)
    with pytest.raises(DatasetNotFoundError, match='kind: netcdf'):
        image_dataset('s2', {'path': 'tiles'}, tmp_path)


def make(root: Path, **changes: Any) -> MultimodalGeoDataModule:
    """A datamodule over two places with two variables of labels."""
    codes = np.where(np.arange(256).reshape(16, 16) % 16 < 8, 11, 13).astype(np.uint16)
    codes[0] = 0
    for number, name in enumerate('ab' if not (root / 'tiles').exists() else ''):
        origin = (X + 160 * number, Y)
        cube(root / f'tiles/s2_{name}.nc', origin=origin)
        labels = {'LC': codes, 'CT': codes}
        cube(root / f'tiles/labels_{name}.nc', labels, None, origin, attrs={'_FillValue': np.uint16(0)})
    mask = {'path': 'tiles', 'kind': 'netcdf', 'filename_glob': 'labels*.nc', 'classes': {11: 'crop', 13: 'grass'}}
    rasters = {'s2': {'path': 'tiles', 'kind': 'netcdf', 'filename_glob': 's2*.nc', 'gsd': 10}}
    return MultimodalGeoDataModule(str(root), rasters, mask | changes, tile_size=80, batch_size=2)


def test_labels_are_a_variable(tmp_path: Path) -> None:
    datamodule = make(tmp_path, variable='LC')
    assert datamodule.labels == ['crop', 'grass']
    sample = datamodule.make_dataset('train', every=True)[0]
    assert sample['mask'][0].eq(255).all()
    assert sample['mask'][1:].eq(0).all()
    assert sample['image_s2'].shape == (3, 2, 8, 8)
    assert re.search(r's2 +2 +3 +2021-03-01 +2021-09-01 +10 +EPSG:32631 +B04 B08', datamodule.contents())
    with pytest.raises(ValueError, match=r"labels_a.nc.*variables \['LC', 'CT'\].*variable: LC"):
        _ = make(tmp_path).labelled
    with pytest.raises(ValueError, match='11'):
        _ = make(tmp_path, variable='CT', classes={13: 'grass', 12: 'x'}).label_counts('train')


def fragment() -> dict[str, Any]:
    """The settings of the page."""
    blocks = re.findall(r'^```yaml\n(.*?)^```$', PAGE.read_text(), re.M | re.S)
    (found,) = (yaml.safe_load(block) for block in blocks if 'netcdf' in block)
    return dict(found)


@pytest.mark.skipif(not REAL.is_dir(), reason='WorldCereal tiles are not here')
def test_worldcereal_tiles(tmp_path: Path) -> None:
    import h5py

    (tmp_path / 'tiles').symlink_to(REAL)
    datamodule = MultimodalGeoDataModule(str(tmp_path), tile_size=160, **fragment())
    sample = datamodule.labelled[slice(501360, 501520), slice(5629520, 5629680)]
    folder = REAL / '00002806639B424A'
    (path,) = folder.glob('S2_L2A_10m_*.nc')
    with h5py.File(path) as file:
        stored = np.stack([file[band][:, :16, :16] for band in ('B02', 'B03', 'B04', 'B08')], 1)
        assert len(sample['dates_s2']) == len(file['timestamp']) == 118
        assert dates(sample, 's2')[0] == '2017-08-04'
    expected = np.where(stored == 0, np.nan, stored * 1e-4).astype(np.float32)
    np.testing.assert_allclose(sample['image_s2'], expected, rtol=1e-6)
    (path,) = folder.glob('S1_*.nc')
    with h5py.File(path) as file:
        np.testing.assert_allclose(sample['image_s1'][:, 0], file['VV'][:, :8, :8] * 1e-4, rtol=1e-6)
    (path,) = folder.glob('OUTPUT_POLY*.nc')
    with h5py.File(path) as file:
        codes = file['LC'][:16, :16]
    classes = np.select([codes == 11, codes == 13], [0, 1], 2)
    np.testing.assert_array_equal(sample['mask'], classes)


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason='WorldCereal tiles are not here')
def test_worldcereal_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / 'tiles').symlink_to(REAL)
    data = {'root': str(tmp_path), 'tile_size': 320, 'batch_size': 2, 'num_workers': 0, **fragment()}
    for settings in data['rasters'].values():
        settings['max_dates'] = 3
    trainer = {'max_steps': 2, 'accelerator': 'cpu', 'logger': False, 'default_root_dir': str(tmp_path)}
    config = {
        'model': {'class_path': 'omnisat', 'init_args': {'backbone': 'omnisat_tiny'}},
        'data': {'class_path': 'MultimodalGeoDataModule', 'init_args': data},
        'trainer': {**trainer, 'enable_progress_bar': False, 'enable_model_summary': False},
    }
    (tmp_path / 'run.yaml').write_text(yaml.safe_dump(config))
    main(['check', '--config', str(tmp_path / 'run.yaml')])
    assert 'Problems: none' in capsys.readouterr().out
    main(['stats', '--config', str(tmp_path / 'run.yaml')])
    assert 'B08' in capsys.readouterr().out
    main(['fit', '--config', str(tmp_path / 'run.yaml')])
    assert list(tmp_path.rglob('*.ckpt'))


def test_numbers_that_are_no_dates(tmp_path: Path) -> None:
    days = np.array([1, 2, 3], np.int32)
    data = xr.open_dataset(cube(tmp_path / 'a.nc'), decode_cf=False).load()
    data.assign_coords(time=('time', days)).to_netcdf(tmp_path / 'b.nc', engine='h5netcdf')
    with pytest.raises(ValueError, match=r"'time'.*b.nc.*dates \('1'.*date.*20210615"):
        NetCDFTimeSeries(tmp_path / 'b.nc', time='time')
    data.isel(time=slice(0)).to_netcdf(tmp_path / 'c.nc', engine='h5netcdf')
    with pytest.raises(ValueError, match=r"'time'.*c.nc.*date"):
        NetCDFTimeSeries(tmp_path / 'c.nc')


def test_file_that_is_replaced_by_one_of_equal_size_and_time(tmp_path: Path) -> None:
    path = cube(tmp_path / 'a.nc')
    series = NetCDFTimeSeries(path)
    before, status = series[WINDOW]['image_raster'], path.stat()
    image = np.full((3, 16, 16), 5, np.float32)
    cube(tmp_path / 'new/a.nc', {'B04': image, 'B08': image}).replace(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    assert (before != 5).all()
    assert (series[WINDOW]['image_raster'] == 5).all()


def test_units_of_files(tmp_path: Path) -> None:
    cube(tmp_path / 'a.nc', attrs={'units': 'K'})
    cube(tmp_path / 'b.nc', attrs={'units': 'degC'}, origin=(X + 160, Y))
    with pytest.warns(UserWarning, match=r"'B0.'.*'raster'.*units 'K'.*a.nc.*'degC'.*b.nc"):
        NetCDFTimeSeries(tmp_path)
    cube(tmp_path / 'c.nc', attrs={'units': 'dB'})
    with pytest.warns(UserWarning, match=r"units 'dB'.*unit.*'raster'.*'power'"):
        NetCDFTimeSeries(tmp_path / 'c.nc', kind='radar', unit='power')


def test_types_of_files(tmp_path: Path) -> None:
    cube(tmp_path / 'a.nc')
    image = np.full((3, 16, 16), 4000, np.int16)
    cube(tmp_path / 'b.nc', {'B04': image, 'B08': image}, origin=(X + 160, Y))
    with pytest.warns(UserWarning, match=r'pixels.*float32.*a.nc.*int16.*b.nc'):
        NetCDFTimeSeries(tmp_path)
