# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Bandfiles: bands of one image in files of their own are stacked or refused, never averaged."""

import pickle
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.geo_tree import X, Y, write
from torchgeo_omnisat.datasets import RasterTimeSeries

WINDOW = slice(X, X + 80, 10), slice(Y - 80, Y, 10)


def files(root: Path, names: Sequence[str], size: int = 8) -> None:
    """A file of one band for each name, whose value is its place among them."""
    for value, name in enumerate(names):
        write(root / name, np.full((size, size), value, np.uint16), step=80 / size)


@pytest.mark.filterwarnings('ignore:files of .* hold one band')
@pytest.mark.parametrize(
    ('names', 'bands', 'values'),
    [
        (['S2_20210201_B02.tif', 'S2_20210201_B03.tif', 'S2_20210201_B8A.tif'], 'B02 B03 B8A', [0, 1, 2]),
        (['T31_20210201T104629_B11_20m.tif', 'T31_20210201T104629_B2_10m.tif'], 'B2 B11', [1, 0]),
        (['B03/20210201.tif', 'B02/20210201.tif'], 'B02 B03', [1, 0]),
        (['S1_20210201_VV.tif', 'S1_20210201_VH.tif'], 'VV VH', [0, 1]),
        (['20210201_nir.tif', '20210201_red.tif', '20210201_blue.tif'], 'blue red nir', [2, 1, 0]),
        (['20210201_band_1.tif', '20210201_band_2.tif', '20210201_band_10.tif'], 'band1 band2 band10', [0, 1, 2]),
        (['B02-20210201-x.tif', 'B03-20210201-x.tif'], 'B02 B03', [0, 1]),
        (['20210201B02.tif', '20210201B03.tif'], 'B02 B03', [0, 1]),
    ],
)
def test_bands_are_stacked(tmp_path: Path, names: list[str], bands: str, values: list[int]) -> None:
    files(tmp_path, names)
    regex = {'filename_regex': r'(?:.*/)?(?P<date>\d{8})'} if names[0].startswith('20210201B') else {}
    series = pickle.loads(pickle.dumps(RasterTimeSeries(tmp_path, name='s2', **regex)))
    assert series.modalities['s2'].bands == tuple(bands.split())
    sample = series[WINDOW]
    assert sample['image_s2'][:, :, 3, 3].tolist() == [values]
    assert len(sample['dates_s2']) == 1


def test_several_days_and_tiles_are_stacked(tmp_path: Path) -> None:
    for day, stamp in enumerate(('20210201', '20210211')):
        for tile in range(2):
            for number, band in enumerate(('B02', 'B03')):
                image = np.full((8, 4), 100 * day + 10 * tile + number, np.uint16)
                write(tmp_path / f't{tile}_{stamp}_{band}.tif', image, (X + 40 * tile, Y))
    with pytest.warns(UserWarning, match=r"files.*'s2'.*band.*B02, B03"):
        series = RasterTimeSeries(tmp_path, name='s2')
    assert len(series) == 4
    image = series[WINDOW]['image_s2']
    assert image[:, :, 0, [0, 4]].tolist() == [[[0, 10], [1, 11]], [[100, 110], [101, 111]]]
    with pytest.warns(UserWarning, match='stacked'):
        one = RasterTimeSeries(tmp_path, name='s2', bands=('B03',))[WINDOW]['image_s2']
    assert one[:, 0, 0, 0].tolist() == [1, 101]


def test_coarser_bands_of_the_same_ground_are_stacked(tmp_path: Path) -> None:
    files(tmp_path, ['20210201_B02_10m.tif'])
    files(tmp_path, ['20210201_B05_20m.tif'], 4)
    with pytest.warns(UserWarning, match='B02, B05'):
        assert RasterTimeSeries(tmp_path)[WINDOW]['image_raster'].shape == (1, 2, 8, 8)


@pytest.mark.parametrize(
    'names',
    [
        ['20210201_SR.tif', '20210201_udm2.tif'],
        ['20210201.tif', '20210201_mask.tif'],
        ['20210201_SR.tif', '20210201_SR_scl.tif'],
        ['a_20210201_one.tif', 'a_20210201_two.tif', 'a_20210211_one.tif', 'a_20210211_two.tif'],
        ['a_20210201_1.tif', 'a_20210201_2.tif', 'a_20210211_1.tif', 'a_20210211_2.tif'],
    ],
)
def test_what_may_be_bands_is_refused(tmp_path: Path, names: list[str]) -> None:
    files(tmp_path, names)
    with pytest.raises(ValueError, match=r'date.*bounds.*separate_files.*all_bands.*filename_regex'):
        RasterTimeSeries(tmp_path)
    assert RasterTimeSeries(tmp_path, separate_files=False)[WINDOW]['image_raster'][0, 0, 0, 0] == 0.5


def test_a_band_that_is_missing_is_named(tmp_path: Path) -> None:
    files(tmp_path, ['20210201_B02.tif', '20210201_B03.tif', '20210211_B02.tif'])
    with pytest.raises(ValueError, match=r"20210211_B02\.tif.*files.*bands \['B03'\]"):
        RasterTimeSeries(tmp_path)


@pytest.mark.parametrize(
    'names', [['a_20210201.tif', 'b_20210201.tif'], ['S1_20210201_asc.tif', 'S1_20210201_dsc.tif']]
)
def test_images_of_one_day_are_averaged(tmp_path: Path, names: list[str]) -> None:
    files(tmp_path, names)
    with pytest.warns(UserWarning, match=r'2 files'):
        series = RasterTimeSeries(tmp_path)
    assert series[WINDOW]['image_raster'][:, :, 0, 0].tolist() == [[0.5]]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        RasterTimeSeries(tmp_path, separate_files=False)


def test_given_bands_are_those_in_names(tmp_path: Path) -> None:
    files(tmp_path, ['20210201_B02.tif', '20210201_B03.tif'])
    with pytest.raises(ValueError, match=r"all_bands.*'raster'.*\('red',\).*\('B02', 'B03'\)"):
        RasterTimeSeries(tmp_path, all_bands=('red',))
    with pytest.warns(UserWarning, match='stacked: B03'):
        assert RasterTimeSeries(tmp_path, all_bands=('B03',))[WINDOW]['image_raster'][:, :, 0, 0].tolist() == [[1]]
