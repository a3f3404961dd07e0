# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Stacks: GeoTIFFs whose bands are dates, in either order or as described, are series."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.geo_tree import X, Y, ramp, write
from torchgeo_omnisat.datamodules import MultimodalGeoDataModule
from torchgeo_omnisat.datasets import RasterTimeSeries

WINDOW = slice(X, X + 80), slice(Y - 80, Y)
DATES = [20210601, 20210301, '2021-09']
IN_ORDER = ['2021-03-01', '2021-06-01', '2021-09-01']


def dates(sample: Any) -> list[str]:
    found: list[str] = sample['dates_raster'].numpy().astype('datetime64[D]').astype(str).tolist()
    return found


def values(sample: Any) -> list[list[float]]:
    """Which band of the file each date and band is, from 0."""
    found: list[list[float]] = ((sample['image_raster'][..., 0, 0] - 1) / 10000).tolist()
    return found


@pytest.mark.parametrize(
    ('order', 'expected'), [('date-band', [[2, 3], [0, 1], [4, 5]]), ('band-date', [[1, 4], [0, 3], [2, 5]])]
)
def test_dates_in_either_order(tmp_path: Path, order: str, expected: Any) -> None:
    write(tmp_path / 'stack.tif', ramp(16, 16, 6))
    stack = {'dates': DATES, 'order': order}
    series = RasterTimeSeries(tmp_path, stack=stack, all_bands=['B04', 'B08'])
    sample = series[WINDOW]
    assert dates(sample) == IN_ORDER
    assert values(sample) == expected
    assert series.modalities['raster'].bands == ('B04', 'B08')
    torch.testing.assert_close(sample['image_raster'][1, 0], torch.from_numpy(ramp(8, 8)[0]))
    one = RasterTimeSeries(tmp_path, stack=stack, bands=['B2'], max_dates=1)[WINDOW]
    assert dates(one) == IN_ORDER[1:2]
    assert values(one) == [expected[1][1:]]
    warped = series[X : X + 160 : 20, Y - 160 : Y : 20]['image_raster']
    torch.testing.assert_close(warped[1, 0, 0, 0], torch.tensor(ramp(2, 2).mean()))


def test_dates_of_descriptions(tmp_path: Path) -> None:
    texts = ['20210601_B04', '20210601_B08', '2021-03-01 B08', '2021-03-01 B04', '20210901T104629_B04']
    write(tmp_path / 'a.tif', ramp(16, 16, 5), bands=texts)
    with pytest.raises(ValueError, match=r'a.tif.*bands.*dates.*stack: \{dates: descriptions\}'):
        RasterTimeSeries(tmp_path, temporal=False)
    sample = RasterTimeSeries(tmp_path, stack={'dates': 'descriptions'})[WINDOW]
    assert dates(sample) == IN_ORDER
    found = values(sample)
    assert found[:2] == [[3, 2], [0, 1]]
    assert found[2][0] == 4
    assert np.isnan(found[2][1])
    assert sample['valid_raster'].all()


def test_one_band_a_date_and_more_files(tmp_path: Path) -> None:
    write(tmp_path / 'a.tif', ramp(16, 16, 3), bands=['ndvi_2021-01', 'ndvi_2021-02', 'ndvi_2021-03'])
    write(tmp_path / 'b.tif', ramp(16, 16, 2), (X + 160, Y), bands=['ndvi_2021-03', 'ndvi_2021-02'])
    series = RasterTimeSeries(tmp_path, stack={})
    assert series.bands == ('ndvi',)
    sample = series[X + 120 : X + 200, Y - 80 : Y]
    assert dates(sample) == ['2021-01-01', '2021-02-01', '2021-03-01']
    assert ((sample['image_raster'][:, 0, 0, 4] - 1) / 10000).tolist()[1:] == [1, 0]
    write(tmp_path / 'c.tif', ramp(16, 16, 2), (X + 320, Y), bands=['evi_2021-03', 'evi_2021-02'])
    with pytest.raises(ValueError, match=r"c.tif.*bands \['ndvi'\].*date.*a.tif"):
        RasterTimeSeries(tmp_path, stack={})


def test_clouds_and_nodata_of_a_stack(tmp_path: Path) -> None:
    image = np.ones((4, 16, 16), np.uint8)
    image[1], image[2, 0] = 9, 0
    write(tmp_path / 'a.tif', image, nodata=0)
    stack, clouds = {'dates': [20210101, 20210201]}, {'band': 'SCL', 'values': [9]}
    series = RasterTimeSeries(tmp_path, all_bands=['B04', 'SCL'], bands=['B04'], stack=stack, clouds=clouds)
    sample = series[WINDOW]
    assert sample['valid_raster'].tolist() == [False, True]
    assert sample['image_raster'][1, 0, 0].isnan().all()
    assert sample['image_raster'][1, 0, 1:].eq(1).all()


@pytest.mark.parametrize(
    ('stack', 'match'),
    [
        ({'dates': [20210101, 20210201]}, r'a.tif has 3 bands, expected the 2 dates of stack'),
        ({'dates': []}, r'dates of stack is \[\], expected a list'),
        ({'dates': [20211301]}, r"dates of stack have '20211301', expected dates"),
        ({'order': 'time'}, r"order of stack is 'time', expected one of \['date-band', 'band-date'\]"),
        ({'days': [1]}, r"stack.*\{'days': \[1\]\}.*dates, order"),
        ({}, r"band 1 of .*a.tif is described as '', expected a date .* give dates of stack"),
    ],
)
def test_what_is_no_stack_is_refused(tmp_path: Path, stack: Any, match: str) -> None:
    write(tmp_path / 'a.tif', ramp(16, 16, 3))
    with pytest.raises(ValueError, match=match):
        RasterTimeSeries(tmp_path, stack=stack)


def test_stacks_among_the_rasters_of_a_region(tmp_path: Path) -> None:
    write(tmp_path / 's2/a.tif', ramp(16, 16, 4))
    settings = {'path': 's2', 'gsd': 10, 'stack': {'dates': [20210101, 20210201], 'order': 'band-date'}}
    datamodule = MultimodalGeoDataModule(str(tmp_path), {'s2': settings}, tile_size=80)
    assert datamodule.make_dataset('train', every=True)[0]['image_s2'].shape == (2, 2, 8, 8)
    assert datamodule.contents().splitlines()[1].split()[1:5] == ['1', '2', '2021-01-01', '2021-02-01']


def test_stack_that_contradicts_its_files(tmp_path: Path) -> None:
    write(tmp_path / 'a.tif', ramp(16, 16, 2), bands=('B04_20210601', 'B04_20210301'))
    with pytest.raises(ValueError, match=r"band 1.*a.tif.*'B04_20210601'.*2021-03-01"):
        RasterTimeSeries(tmp_path, stack={'dates': [20210301, 20210601]})
    RasterTimeSeries(tmp_path, stack={'dates': [20210601, 20210301]})
    write(tmp_path / 'a.tif', ramp(16, 16, 4), bands=('B04', 'B04', 'B08', 'B08'))
    with pytest.raises(ValueError, match=r"order.*stack.*'date-band'.*\['B04', 'B08'\].* 'band-date'"):
        RasterTimeSeries(tmp_path, stack={'dates': [20210301, 20210601]})
    with pytest.raises(ValueError, match=r"dates.*stack.*\['2021-06-01'\].*once"):
        RasterTimeSeries(tmp_path, stack={'dates': ['2021-06', 20210601]})


def test_stack_of_more_bands_than_the_first(tmp_path: Path) -> None:
    write(tmp_path / 'a.tif', ramp(16, 16, 4))
    write(tmp_path / 'b.tif', ramp(16, 16, 6), (X + 160, Y))
    with pytest.raises(ValueError, match=r'b.tif.*3 bands.*date.*stack.*2.*a.tif'):
        RasterTimeSeries(tmp_path, stack={'dates': DATES[:2]})


def test_unknown_argument_of_clouds(tmp_path: Path) -> None:
    write(tmp_path / 'a_20210601.tif', ramp(16, 16, 2), bands=('B04', 'SCL'))
    with pytest.raises(ValueError, match=r"clouds.*\{'band': 'SCL', 'classes': \[8\]\}.*band.*values"):
        RasterTimeSeries(tmp_path, clouds={'band': 'SCL', 'classes': [8]})


def test_dates_without_a_year_are_of_the_year_in_the_file_name(tmp_path: Path) -> None:
    for number, year in enumerate((2020, 2021)):
        write(tmp_path / f'S2_{year}.tif', ramp(16, 16, 4, start=1 + 40000 * number))
    year = {'filename_regex': r'.*?(?P<date>\d{4})', 'date_format': '%Y'}
    stack = {'dates': ['03-01', '06-15'], 'bands': ['B04', 'B08']}
    series = RasterTimeSeries(tmp_path, stack=stack, **year)  # type: ignore[arg-type]
    sample = series[WINDOW]
    assert dates(sample) == ['2020-03-01', '2020-06-15', '2021-03-01', '2021-06-15']
    assert values(sample) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert series.modalities['raster'].bands == ('B04', 'B08')
    with pytest.raises(ValueError, match=r'no year.*S2_2020.tif'):
        RasterTimeSeries(tmp_path, stack=stack)
    with pytest.raises(ValueError, match='only one'):
        RasterTimeSeries(tmp_path, stack=stack, all_bands=['a', 'b'], **year)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'13-01'"):
        RasterTimeSeries(tmp_path, stack={'dates': ['13-01']}, **year)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='distinct'):
        RasterTimeSeries(tmp_path, stack={**stack, 'bands': ['a', 'a']}, **year)  # type: ignore[arg-type]
