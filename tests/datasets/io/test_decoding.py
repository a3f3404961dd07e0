# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Decoding: the same pixels are valid, and have the same values, whichever way they are read."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import rasterio
import torch
from pyproj import CRS
from rasterio import Affine

from tests.geo_tree import UTM, X, Y, ramp, write
from torchgeo_omnisat.datasets import RasterTimeSeries, Sentinel2TimeSeries
from torchgeo_omnisat.datasets.io.decoding import Decoding, as_numbers
from torchgeo_omnisat.datasets.rasters.frames import read_window
from torchgeo_omnisat.datasets.rasters.stac import STACTimeSeries
from torchgeo_omnisat.grid import Grid

WINDOW = slice(X, X + 160, 10), slice(Y - 160, Y, 10)
NEVER = np.float32(-3.4028235e38)


def valid(path: Path, way: str, decoding: Decoding | None = None) -> np.ndarray[Any, Any]:
    """Which pixels ``(C, 16, 16)`` of a file are valid, read in one of several ways."""
    step = {'finer': 5, 'coarser': 20}.get(way, 10)
    crs = CRS.from_user_input('EPSG:25831' if way == 'crs' else UTM)  # another datum, a millimetre away
    grid = Grid(crs, Affine(step, 0, X + (way == 'shifted') * 1e-3, 0, -step, Y), 160 // step, 160 // step)
    found = np.isfinite(
        read_window(str(path), None, grid, decoding or Decoding(), way not in ('same', 'coarser'), False)
    )
    if way == 'finer':
        return found[:, 1::2, 1::2]
    return found.repeat(2, 1).repeat(2, 2) if way == 'coarser' else found


def hole(count: int = 2, apart: bool = False) -> np.ndarray[Any, Any]:
    """Where nothing was measured: a hole, in every band or in the first alone, on the grid of coarser pixels."""
    found = np.zeros((count, 16, 16), dtype=bool)
    found[: 1 if apart else count, 4:8, 6:10] = True
    return found


def masked(path: Path, kind: str) -> np.ndarray[Any, Any]:
    """Write two bands with a hole that is said in one of many ways; return where it is."""
    image, where = ramp(16, 16, 2), hole(2, kind in ('nodata', 'nan', 'infinite', 'beyond'))
    profile: dict[str, Any] = {}
    if kind in ('nodata', 'mask and nodata'):
        image[where], profile = -5, {'nodata': -5}
    number = {'nan': np.nan, 'infinite': -np.inf, 'beyond': NEVER}.get(kind)
    if number is not None:
        image[where] = number
    if kind == 'alpha':
        alpha = np.where(where[:1], 0, 255)
        write(path, np.concatenate([image, alpha]).astype(np.uint16), photometric='MINISBLACK', ALPHA='YES')
        with rasterio.open(path, 'r+') as file:
            file.colorinterp = [*[rasterio.enums.ColorInterp.gray] * 2, rasterio.enums.ColorInterp.alpha]
        return where
    write(path, image, **profile)
    if 'mask' in kind:
        shown = ~where[0]
        if kind == 'mask and nodata':
            shown = np.ones((16, 16), dtype=bool)
            shown[12:] = False
            where[:, 12:] = True
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=kind != 'mask beside'), rasterio.open(path, 'r+') as file:
            file.write_mask(shown.astype(np.uint8) * 255)
    return where


KINDS = ('nodata', 'nan', 'infinite', 'beyond', 'mask', 'mask beside', 'mask and nodata', 'alpha')


@pytest.mark.filterwarnings('ignore:.*infinite')
@pytest.mark.parametrize('way', ['same', 'shifted', 'finer', 'coarser', 'crs'])
@pytest.mark.parametrize('kind', KINDS)
def test_every_way_of_reading_agrees_on_what_is_valid(tmp_path: Path, kind: str, way: str) -> None:
    where = masked(tmp_path / 'a.tif', kind)
    found = valid(tmp_path / 'a.tif', way)[:2]
    assert np.array_equal(found, ~where)


@pytest.mark.parametrize('way', ['same', 'shifted'])
@pytest.mark.parametrize(
    ('added', 'replaced', 'invalid'),
    [
        ((), None, {65535}),
        ((0,), None, {0, 65535}),
        ((0, 9), None, {0, 9, 65535}),
        ((), (0,), {0}),
        ((), (), set()),
        ((9,), (0,), {0, 9}),
        ((-9999,), None, {65535}),
    ],
)
def test_nodata_adds_to_what_a_file_states(
    tmp_path: Path, way: str, added: tuple[float, ...], replaced: tuple[float, ...] | None, invalid: set[int]
) -> None:
    image = np.full((16, 16), 5, np.uint16)
    image[0], image[1], image[2] = 0, 65535, 9
    path = write(tmp_path / 'a.tif', image, nodata=65535)
    found = valid(path, way, Decoding(added, replaced))[0, :, 3]
    assert found.tolist() == [value not in invalid for value in image[:, 3].tolist()]


def test_what_is_no_number_is_refused(tmp_path: Path) -> None:
    write(tmp_path / 'a_20210601.tif', ramp(16, 16))
    assert as_numbers([0, 65535]) == (0, 65535)
    for wrong in ('none', [None], True, {'a': 1}):
        with pytest.raises(ValueError, match=r'nodata'):
            RasterTimeSeries(tmp_path, nodata=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"replace_nodata.*'x'"):
        RasterTimeSeries(tmp_path, replace_nodata='x')


@pytest.mark.parametrize('dtype', ['int32', 'float64'])
def test_nodata_is_compared_as_it_is_stored(tmp_path: Path, dtype: str) -> None:
    image = np.full((16, 16), 2**24, dtype)
    image[0] = 2**24 + 1  # the same number in float32
    write(tmp_path / 'a_20210601.tif', image, nodata=2**24 + 1)
    found = RasterTimeSeries(tmp_path)[WINDOW]['image_raster'][0, 0, :, 0]
    assert found.isnan().tolist() == [True] + [False] * 15


def test_infinite_values_are_said_once(tmp_path: Path) -> None:
    image = ramp(16, 16)
    image[0, 0, :3] = np.inf, -np.inf, 1e30
    for stamp in '20210601', '20210611':
        write(tmp_path / f'a_{stamp}.tif', image)
    with pytest.warns(UserWarning, match=r'a_20210601\.tif.*3 values.*infinite.*1e\+20') as said:
        found = RasterTimeSeries(tmp_path)[WINDOW]['image_raster']
    assert len(said) == 1
    assert found.isnan().sum((1, 2, 3)).tolist() == [3, 3]


@pytest.mark.parametrize('described', [False, True])
def test_near_infrared_that_is_declared_alpha_is_no_mask(tmp_path: Path, described: bool) -> None:
    image = np.full((4, 16, 16), 7, np.uint8)
    image[3, :8] = 0
    image[3, 8:12] = 90
    write(tmp_path / 'a_20210601.tif', image, bands=('r', 'g', 'b', 'nir') if described else ())
    with rasterio.open(tmp_path / 'a_20210601.tif') as file:
        assert file.colorinterp[3] == rasterio.enums.ColorInterp.alpha  # as four bands of bytes are by default
    series = RasterTimeSeries(tmp_path)
    assert len(series.bands) == 4
    assert series[WINDOW]['image_raster'].isfinite().all()
    assert RasterTimeSeries(tmp_path, bands=series.bands[:2])[WINDOW]['image_raster'].isfinite().all()


def test_alpha_is_a_mask_and_no_band(tmp_path: Path) -> None:
    image = np.full((4, 16, 16), 7, np.uint8)
    image[3] = 255
    image[3, 5] = 0
    write(tmp_path / 'a_20210601.tif', np.zeros_like(image))
    write(tmp_path / 'a_20210611.tif', image)
    write(tmp_path / 'a_20210621.tif', image[:3])
    series = RasterTimeSeries(tmp_path)
    assert series.bands == ('B1', 'B2', 'B3')
    sample = series[WINDOW]
    assert sample['valid_raster'].tolist() == [False, True, True]
    assert sample['image_raster'][1, 0].isnan().any(1).nonzero().tolist() == [[5]]
    (tmp_path / 'a_20210621.tif').unlink()
    named = RasterTimeSeries(tmp_path, all_bands=('r', 'g', 'b', 'nir'), cache=False)[WINDOW]
    assert named['image_raster'].isfinite().all()


def scaled(path: Path, value: int, scale: float, offset: float, **profile: Any) -> Path:
    """One band with scale and offset, whose first row is 0."""
    image = np.full((16, 16), value, np.uint16)
    image[0] = 0
    write(path, image, **profile)
    with rasterio.open(path, 'r+') as file:
        file.scales, file.offsets = (scale,), (offset,)
    return path


def test_scale_and_offset_apply_where_they_differ(tmp_path: Path) -> None:
    scaled(tmp_path / 'S2_20210601.tif', 1500, 1e-4, 0, nodata=0)
    scaled(tmp_path / 'S2_20230601.tif', 2500, 1e-4, -0.1, nodata=0)
    with pytest.warns(UserWarning, match=r"scale.*offset.*files.*'s2'.*-0\.1.*no.*unit dn"):
        series = RasterTimeSeries(tmp_path, name='s2', unit='dn')
    image = series[WINDOW]['image_s2']
    assert image[:, 0, 0].isnan().all()
    torch.testing.assert_close(image[:, 0, 1:], torch.full((2, 15, 16), 0.15))
    assert series.modalities['s2'].unit == 'unknown'
    year = slice(pd.Timestamp('2023-01-01'), pd.Timestamp('2023-12-31'))
    alone = series[(*WINDOW, year)]['image_s2']
    torch.testing.assert_close(alone[0, 0, 1:], torch.full((15, 16), 0.15))


def test_scale_and_offset_of_all_files_alike(tmp_path: Path) -> None:
    for stamp in '20210601', '20210611':
        scaled(tmp_path / f'S2_{stamp}.tif', 1500, 1e-4, -0.1, nodata=0)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        series = RasterTimeSeries(tmp_path, unit='dn')
    assert series[WINDOW]['image_raster'][:, 0, 1, 0].tolist() == [1500, 1500]
    assert series.modalities['raster'].unit == 'dn'
    with pytest.warns(UserWarning, match='unit reflectance'):
        series = RasterTimeSeries(tmp_path, unit='reflectance')
    assert series[WINDOW]['image_raster'][:, 0, 1, 0].tolist() == pytest.approx([0.05, 0.05])


def test_scale_of_separate_files(tmp_path: Path) -> None:
    for stamp, offset in ('20210601', 0), ('20230601', -0.1):
        scaled(tmp_path / f'{stamp}_B02.tif', 1500, 1e-4, 0)
        scaled(tmp_path / f'{stamp}_B03.tif', 1500 - round(1e4 * offset), 1e-4, offset)
    pattern = {'filename_glob': '*_B02.tif', 'filename_regex': r'(?P<date>\d{8})_(?P<band>B0\d)'}
    with pytest.warns(UserWarning, match='differ'):
        series = RasterTimeSeries(tmp_path, all_bands=('B02', 'B03'), separate_files=True, **pattern)
    assert series[WINDOW]['image_raster'][:, :, 5, 5].flatten().tolist() == pytest.approx([0.15] * 4)


def items(root: Path, properties: list[dict[str, Any]], assets: list[dict[str, Any]], names: tuple[str, ...]) -> Path:
    """A collection with an item for each of *properties*, and assets that lie in ``NUMBER_ASSET.tif``."""
    features = [
        {
            'type': 'Feature',
            'stac_version': '1.0.0',
            'id': str(number),
            'geometry': None,
            'properties': {'datetime': f'202{number}-06-01T10:00:00Z', **told},
            'links': [],
            'assets': {name: {'href': f'{number}_{name}.tif', **asset} for name in names},
        }
        for number, (told, asset) in enumerate(zip(properties, assets, strict=True))
    ]
    (root / 'items.json').write_text(json.dumps({'type': 'FeatureCollection', 'features': features}))
    return root / 'items.json'


def test_nothing_is_taken_off_what_was_not_measured(tmp_path: Path) -> None:
    pytest.importorskip('pystac')
    for number, value in enumerate((1500, 2500)):
        for name in 'B04', 'SNW':
            scaled(tmp_path / f'{number}_{name}.tif', value, 1, 0)
    told = [{'platform': 'Sentinel-2B', 's2:processing_baseline': text} for text in ('03.00', '05.09')]
    path = items(tmp_path, told, [{}, {}], ('B04', 'SNW'))
    image = STACTimeSeries(path, bands=('B04', 'SNW'))[WINDOW]['image_s2']
    assert image[:, 0, 0].isnan().all()
    assert image[:, 0, 1:].unique().tolist() == [1500]
    assert image[:, 1, 0].unique().tolist() == [0]  # a probability of 0 is one
    raw = STACTimeSeries(path, bands=('B04',), replace_nodata=1)[WINDOW]['image_s2']
    assert raw[:, 0, 0, 0].tolist() == [0, -1000]


def test_nodata_of_items(tmp_path: Path) -> None:
    pytest.importorskip('pystac')
    for number in 0, 1, 2:
        scaled(tmp_path / f'{number}_red.tif', 7, 1, 0)
    assets = [{'raster:bands': [{'nodata': 0}]}, {'bands': [{'nodata': 0}]}, {'nodata': 'nan'}]
    image = STACTimeSeries(items(tmp_path, [{}] * 3, assets, ('red',)), bands=('red',), name='x')[WINDOW]['image_x']
    assert image[:, 0, 0, 0].isnan().tolist() == [True, True, False]


def test_scale_of_items_goes_before_that_of_files(tmp_path: Path) -> None:
    pytest.importorskip('pystac')
    scaled(tmp_path / '0_red.tif', 1500, 1e-4, 0)
    scaled(tmp_path / '1_red.tif', 2500, 1e-4, -0.1)
    assets = [{'raster:bands': [{'scale': 1e-4, 'offset': offset}]} for offset in (0, -0.1)]
    for stated in assets, [{}, {}]:
        with pytest.warns(UserWarning, match='differ'):
            series = STACTimeSeries(items(tmp_path, [{}, {}], stated, ('red',)), bands=('red',), name='x')
        assert series[WINDOW]['image_x'][:, 0, 5, 5].tolist() == pytest.approx([0.15, 0.15])
    sentinel = [{'platform': 'sentinel-2a'}] * 2
    for stated in assets, [{}, {}]:  # of Sentinel-2, numbers stay as they are published
        series = STACTimeSeries(items(tmp_path, sentinel, stated, ('red',)), bands=('red',), name='x')
        assert series[WINDOW]['image_x'][:, 0, 5, 5].tolist() == [1500, 2500 if not stated[0] else 1500]


def test_offset_of_band_files_of_sentinel_2(tmp_path: Path) -> None:
    scaled(tmp_path / 'T31UFS_20210601T104629_B02.tif', 1500, 1e-4, 0)
    scaled(tmp_path / 'T31UFS_20230601T104629_B02.tif', 2500, 1e-4, -0.1)
    product = 'S2A_MSIL2A_20240601T104629_N0509_R051_T31UFS_20240601T150000.SAFE'
    scaled(tmp_path / product / 'T31UFS_20240601T104629_B02.tif', 2500, 1e-4, -0.1)
    image = Sentinel2TimeSeries(tmp_path, bands=('B02',))[WINDOW]['image_s2']
    assert image[:, 0, 5, 5].tolist() == [1500] * 3
    assert image[:, 0, 0].isnan().all()


def test_large_windows_are_warped_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(write(tmp_path / 'a.tif', ramp(64, 48, 2), nodata=405))
    grid = Grid(CRS.from_user_input(UTM), Affine(20, 0, X + 7, 0, -20, Y - 3), 29, 17)
    whole = read_window(path, None, grid, None, False, False)
    monkeypatch.setattr('torchgeo_omnisat.datasets.rasters.frames.LARGEST', 1000)
    np.testing.assert_allclose(read_window(path, None, grid, None, False, False), whole, rtol=1e-6)
