# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Tables of pixel time series: wide and long tables give the same samples."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from torchgeo.datasets import DatasetNotFoundError

from torchgeo_omnisat.batch import check, collate
from torchgeo_omnisat.datasets import PixelTable

pytest.importorskip('pyarrow')
SERIES: dict[str, Any] = {
    's2': {'bands': ('B04', 'B08'), 'columns': 'OPTICAL-{band}-ts{step}-*', 'kind': 'optical', 'unit': 'dn'},
    's1': {'bands': ('VV',), 'columns': 'SAR-{band}-ts{step}-20m', 'amplitude': -83, 'kind': 'radar', 'unit': 'db'},
}
SETTINGS: dict[str, Any] = {'label': 'crop', 'start': 'start_date', 'pixel': 'sample_id', 'nodata': 65535}


def table(count: int = 40, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            'sample_id': [f'p{index}' for index in range(count)],
            'lon': 33 + rng.random(count),
            'lat': 2 + rng.random(count),
            'start_date': ['2016-12-01', '2017-01-15'] * (count // 2),
            'crop': ['maize', 'sorghum', 'beans', None] * (count // 4),
        }
    )
    for step in range(3):
        for band, size in (('B04', 10), ('B08', 20)):
            frame[f'OPTICAL-{band}-ts{step}-{size}m'] = rng.integers(1, 4000, count).astype(np.uint16)
        frame[f'SAR-VV-ts{step}-20m'] = rng.integers(1000, 5000, count).astype(np.uint16)
    frame.loc[0, ['OPTICAL-B04-ts1-10m', 'OPTICAL-B08-ts1-20m', 'OPTICAL-B04-ts2-10m']] = 65535
    return frame


@pytest.fixture(scope='module')
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp('tables') / 'points.parquet'
    table().to_parquet(path)
    return path


def test_sample_of_a_wide_table(path: Path) -> None:
    dataset, frame = PixelTable(path, SERIES, **SETTINGS), table()
    assert (len(dataset), dataset.labels) == (40, ['beans', 'maize', 'sorghum'])
    assert dataset.ids[3] == 'p3'
    sample = dataset[0]
    assert sample['image_s2'].shape == (3, 2, 1, 1)
    assert (
        sample['image_s2'][0, :, 0, 0].tolist() == frame.loc[0, ['OPTICAL-B04-ts0-10m', 'OPTICAL-B08-ts0-20m']].tolist()
    )
    assert sample['valid_s2'].tolist() == [True, False, True]
    assert sample['image_s2'][2, 0].isnan().all()
    decibels = 20 * np.log10(frame.loc[0, 'SAR-VV-ts0-20m']) - 83
    assert sample['image_s1'][0, 0, 0, 0].item() == pytest.approx(decibels, abs=1e-4)
    months = [np.datetime64(f'{month}-01').astype(int) for month in ('2016-12', '2017-01', '2017-02')]
    assert sample['dates_s2'].tolist() == months
    assert dataset[1]['dates_s2'][0].item() == months[1]
    assert [dataset[index]['mask'].item() for index in range(4)] == [1, 2, 0, 255]
    assert sample['coordinates'].tolist() == frame.loc[0, ['lon', 'lat']].tolist()
    batch = collate([dataset[index] for index in range(4)], dataset.modalities)
    check(batch, dataset.modalities)
    assert dataset.features(['s2']).shape == (40, 6)


def test_long_table_is_the_same(path: Path, tmp_path: Path) -> None:
    frame, rows = table(), []
    for step in range(3):
        part = frame[['sample_id', 'lon', 'lat', 'crop']].copy()
        months = pd.to_datetime(frame['start_date']).to_numpy().astype('datetime64[M]') + np.timedelta64(step, 'M')
        part['when'] = months.astype('datetime64[D]').astype(str)
        part['B04'], part['B08'] = frame[f'OPTICAL-B04-ts{step}-10m'], frame[f'OPTICAL-B08-ts{step}-20m']
        rows.append(part)
    long = pd.concat(rows).sample(frac=1, random_state=0)
    long = long[~((long.sample_id == 'p7') & (long.when == '2017-02-01'))]
    long.to_parquet(tmp_path / 'long.parquet')
    series = {'s2': {key: value for key, value in SERIES['s2'].items() if key != 'columns'}}
    settings = {'label': 'crop', 'date': 'when', 'pixel': 'sample_id', 'nodata': 65535}
    dataset, wide = PixelTable(tmp_path / 'long.parquet', series, **settings), PixelTable(path, SERIES, **SETTINGS)
    assert sorted(dataset.ids) == sorted(wide.ids)
    for index, name in enumerate(dataset.ids):
        ours, theirs = dataset[index], wide[wide.ids.index(name)]
        kept = slice(None) if name != 'p7' else [0, 2]
        for key in ('image_s2', 'dates_s2', 'valid_s2'):
            expected = theirs[key].numpy()[kept] if name != 'p7' else theirs[key].numpy()[theirs['dates_s2'] != 17198]
            assert np.array_equal(ours[key].numpy(), expected, equal_nan=key == 'image_s2'), (name, key)
        assert ours['mask'].equal(theirs['mask'])
    long.iloc[[*range(5), 0]].to_parquet(tmp_path / 'twice.parquet')
    with pytest.raises(ValueError, match=r'twice.parquet has two rows of pixel .* and date'):
        PixelTable(tmp_path / 'twice.parquet', series, **settings)
    long.iloc[:5].assign(sample_id=['p0', 'p1', None, 'p2', None]).to_parquet(tmp_path / 'nameless.parquet')
    with pytest.raises(ValueError, match=r"'sample_id' of .*nameless.parquet has no pixel in row 3"):
        PixelTable(tmp_path / 'nameless.parquet', series, **settings)


def test_splits_share_no_block(path: Path) -> None:
    parts = [PixelTable(path, SERIES, split=split, block=0.2, **SETTINGS) for split in ('train', 'val', 'test')]
    assert sum(map(len, parts)) == 40
    cells = [{tuple(cell) for cell in np.floor(part.places / 0.2).astype(int)} for part in parts]
    assert sum(map(len, cells)) == len(set.union(*cells))
    assert 16 <= len(parts[0]) <= 30
    assert parts[0].labels == parts[2].labels == ['beans', 'maize', 'sorghum']


def test_split_column_and_classes(tmp_path: Path) -> None:
    frame = table()
    frame['part'] = ['train'] * 30 + ['test'] * 10
    frame.to_parquet(tmp_path / 'a.parquet')
    settings = {**SETTINGS, 'classes': {'maize': 'cereal', 'sorghum': 'cereal'}, 'other': 'rest'}
    dataset = PixelTable(tmp_path / 'a.parquet', SERIES, split='test', split_column='part', **settings)
    assert (dataset.ids[0], dataset.labels) == ('p30', ['cereal', 'rest'])
    with pytest.raises(ValueError, match=r"column 'part' of .*a.parquet has \['test', 'train'\], expected .* 'val'"):
        PixelTable(tmp_path / 'a.parquet', SERIES, split='val', split_column='part', **settings)
    with pytest.raises(ValueError, match=r"'beans' \(10 pixels\)"):
        PixelTable(tmp_path / 'a.parquet', SERIES, **{**SETTINGS, 'classes': {'maize': 'a', 'sorghum': 'b'}})


@pytest.mark.parametrize(
    ('series', 'changes', 'match'),
    [
        ({'s2': {'bands': ['B99'], 'columns': 'OPTICAL-{band}-ts{step}-*'}}, {}, r"no column 'OPTICAL-B99-ts\{step\}"),
        ({'s2': {'bands': ['B04'], 'columns': '*-ts{step}-*'}}, {}, r"columns of 's2' is '\*-ts"),
        (
            {'s2': {'bands': ['B0'], 'columns': 'OPTICAL-{band}*-ts{step}-*'}},
            {},
            r"matches .* for 'B0' .* expected one",
        ),
        ({'s2': {'bands': ['B04']}}, {}, r"columns of 's2' is '\{band\}', expected a pattern"),
        ({'s2': {'columns': '{band}'}}, {}, r"series 's2' has no bands"),
        (SERIES, {'label': 'krop'}, r"has no columns \['krop'\], expected some of \['sample_id'"),
        (SERIES, {'start': None}, r'start is None, date None'),
        (SERIES, {'start': 'crop'}, r"column 'crop' of .* has no dates"),
        ({}, {}, r'series is empty'),
    ],
)
def test_errors_name_column_and_file(path: Path, series: Any, changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        PixelTable(path, series, **{**SETTINGS, **changes})


def test_rows_and_degrees(tmp_path: Path) -> None:
    file = tmp_path / 'a.parquet'
    table().iloc[:0].to_parquet(file)
    with pytest.raises(ValueError, match=r'a\.parquet has no rows'):
        PixelTable(file, SERIES, start='start_date')
    for wrong in (150.0, None):
        table().assign(lat=[50.0] * 39 + [wrong]).to_parquet(file)
        with pytest.raises(ValueError, match=r"(150\.0|nan)\] for pixel '39'.* or coordinates=None"):
            PixelTable(file, SERIES, start='start_date')
    assert 'coordinates' not in PixelTable(file, SERIES, start='start_date', coordinates=None)[0]


@pytest.mark.parametrize(
    ('values', 'labels'), [([10, 2, None, 2], ['2', '10']), (['b', '', ' ', 'a'], ['a', 'b']), (['2', None] * 2, ['2'])]
)
def test_names_of_classes(tmp_path: Path, values: list[Any], labels: list[str]) -> None:
    table().assign(crop=values * 10).to_parquet(tmp_path / 'a.parquet')
    dataset = PixelTable(tmp_path / 'a.parquet', SERIES, **SETTINGS)
    assert dataset.labels == labels
    expected = [labels.index(str(value)) if str(value) in labels else 255 for value in values]
    assert dataset.targets is not None
    assert dataset.targets[:4].tolist() == expected


def test_split_without_pixels(path: Path) -> None:
    with pytest.raises(ValueError, match=r"split 'test' of .* has no pixels: .* of 90 degrees with pixels is 1,"):
        PixelTable(path, SERIES, split='test', block=90, **SETTINGS)


def test_without_a_file_or_pyarrow(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DatasetNotFoundError, match=r'none.parquet'):
        PixelTable(tmp_path / 'none.parquet', SERIES, **SETTINGS)
    (tmp_path / 'text.parquet').write_text('no table')
    with pytest.raises(ValueError, match=r'text.parquet cannot be read'):
        PixelTable(tmp_path / 'text.parquet', SERIES, **SETTINGS)
    monkeypatch.setitem(sys.modules, 'pyarrow', None)
    with pytest.raises(ImportError, match=r'points.parquet requires pyarrow.*torchgeo_omnisat\[parquet\]'):
        PixelTable(path, SERIES, **SETTINGS)
