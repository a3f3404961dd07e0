# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""What `check` says of values, dates and labels is what the files hold."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.geo_tree import ramp, write
from torchgeo_omnisat.datamodules import MultimodalGeoDataModule, SyntheticLandscapesDataModule
from torchgeo_omnisat.datasets.common.integrity import Report
from torchgeo_omnisat.validation import table, walk
from torchgeo_omnisat.validation.tables import WIDTH, align, band_table, class_table, modality_table, write_csv


@pytest.fixture(scope='module')
def region(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two dates of Sentinel-2, one of which is half nodata, radar of the western half, and labels with gaps."""
    root = tmp_path_factory.mktemp('region')
    first, second = ramp(16, 16, 2), ramp(16, 16, 2, start=2)
    second[:, :, :8] = -9999
    write(root / 's2/a_20210301.tif', first, bands=('B04', 'B08'), nodata=-9999)
    write(root / 's2/a_20210401.tif', second, bands=('B04', 'B08'), nodata=-9999)
    write(root / 's1/a_20210405.tif', -ramp(16, 8) / 100)
    labels = np.repeat(np.array([[0, 1, 1, 255]], np.uint8), 4, axis=1).repeat(16, axis=0)
    write(root / 'labels/crops.tif', labels, nodata=255)
    return root


def datamodule(root: Path, **changes: Any) -> MultimodalGeoDataModule:
    told: dict[str, Any] = {
        'rasters': {'s2': {'path': 's2', 'kind': 'optical', 'unit': 'dn'}, 's1': {'path': 's1', 'decibels': True}},
        'mask': {'path': 'labels'},
        'labels': ['field', 'forest'],
        'split': {'axis': 'x', 'fractions': [0.5, 0, 0.5]},
        'tile_size': 80.0,
    }
    return MultimodalGeoDataModule(str(root), **told | changes)


def rows(report: Report, kind: str, *keys: str) -> dict[Any, Any]:
    return {tuple(row[key] for key in keys): row for row in report.statistics[kind]}


@pytest.fixture(scope='module')
def report(region: Path) -> Report:
    return walk(datamodule(region))


class TestRegion:
    def test_bands(self, report: Report) -> None:
        values = np.concatenate([ramp(16, 16).ravel(), ramp(16, 16, start=2)[..., 8:].ravel()])
        band = rows(report, 'bands', 'modality', 'band')['s2', 'B04']
        assert (band['minimum'], band['maximum'], band['unit']) == (values.min(), values.max(), 'dn')
        assert band['mean'] == pytest.approx(values.mean())
        assert band['std'] == pytest.approx(values.std())
        # Of 2 dates x 256 pixels, 128 are nodata.
        assert band['valid'] == pytest.approx(0.75)

    def test_modalities(self, report: Report) -> None:
        found = rows(report, 'modalities', 'modality')
        s2, s1 = found['s2',], found['s1',]
        assert (s2['tiles'], s2['of'], s2['dates'], s2['dates_per_tile']) == (4, 4, 2, 1.5)
        assert (s2['first'], s2['last']) == ('2021-03-01', '2021-04-01')
        assert (s1['tiles'], s1['of'], s1['kind'], s1['unit']) == (2, 4, 'radar', 'db')

    def test_classes(self, report: Report) -> None:
        found = rows(report, 'classes', 'split', 'class')
        assert [found['train', name]['pixels'] for name in ('field', 'forest')] == [64, 64]
        assert [found['test', name]['pixels'] for name in ('field', 'forest')] == [0, 64]
        assert found['train', 'field']['share'] == pytest.approx(0.5)
        assert [found['test', name]['tiles'] for name in ('field', 'forest')] == [0, 2]
        assert rows(report, 'splits', 'split')['test',]['labelled'] == 64

    def test_labels_beyond_the_ground_of_a_split_are_not_counted(self, region: Path) -> None:
        fractions = {'axis': 'x', 'fractions': [0.25, 0, 0.75]}
        found = rows(walk(datamodule(region, split=fractions)), 'classes', 'split', 'class')
        assert [found['train', name]['pixels'] for name in ('field', 'forest')] == [64, 0]

    def test_values_that_contradict_the_unit_are_a_warning(self, region: Path) -> None:
        rasters = {'s2': {'path': 's2', 'kind': 'optical', 'unit': 'reflectance'}}
        report = walk(datamodule(region, rasters=rasters))
        (problem,) = report.problems
        assert (problem.kind, problem.part, problem.warning) == ('values', 's2', True)
        assert 'reflectance' in problem.reason
        assert 'B04' in problem.reason

    def test_tables(self, report: Report) -> None:
        assert 's1        radar    db    10 m  2 of 4 (50 %)      1           1  2021-04-05' in modality_table(report)
        assert band_table(report).splitlines()[2].split()[:4] == ['s2', 'B04', 'dn', '1']
        assert class_table(report).splitlines()[-1].split() == ['forest', '2', '64', '50', '%', '2', '64', '100', '%']

    def test_files(self, report: Report, tmp_path: Path) -> None:
        report.write(tmp_path / 'a.json')
        assert Report.read(tmp_path / 'a.json') == report
        write_csv(report, tmp_path / 'a.csv')
        lines = (tmp_path / 'a.csv').read_text().splitlines()
        assert lines[0] == 'table,split,modality,item,quantity,value'
        assert 'bands,,s2,B04,minimum,1.0' in lines
        assert 'classes,train,,field,pixels,64' in lines


def test_the_report_does_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    told: dict[str, Any] = {'num_tiles': 10, 'size': 8, 'dates': (3, 4)}
    datamodule = SyntheticLandscapesDataModule(str(tmp_path), **told)
    assert walk(datamodule, num_workers=0) == walk(datamodule, num_workers=2)


def test_reports_of_older_and_newer_versions_are_read(tmp_path: Path) -> None:
    path = tmp_path / 'a.json'
    path.write_text('{"layout": "PASTIS", "root": "/r", "samples": {"train": 2}, "problems": [], "absent": {}}')
    assert Report.read(path) == Report('PASTIS', '/r', {'train': 2}, [])
    path.write_text('{"layout": "PASTIS", "root": "/r", "samples": {}, "problems": [], "colour": "green"}')
    assert Report.read(path) == Report('PASTIS', '/r', {}, [])


def test_tables_fit_the_terminal() -> None:
    splits = [
        {'split': split, 'counted': 'pixels', 'tiles': 9999, 'labelled_tiles': 9999, 'labelled': 10**9, 'of': 10**10}
        for split in ('train', 'val', 'test')
    ]
    classes = [
        {'split': split, 'class': name, 'tiles': 9999, 'pixels': 123456789, 'share': 0.123}
        for split in ('train', 'val', 'test')
        for name in ('fruits, vegetables, flowers', 'corn')
    ]
    text = table(Report('PASTIS', '/', {'train': 9999}, [], {}, {'splits': splits, 'classes': classes}))
    assert max(map(len, text.splitlines())) <= WIDTH
    assert '123M' in text


def test_columns_are_aligned() -> None:
    assert align([('a', 'b'), ('long', '1')], '<>').splitlines() == ['a     b', 'long  1']
