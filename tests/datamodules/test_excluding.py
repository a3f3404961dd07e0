# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Samples with a problem are left out, and it is said of how many."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import write_pastis
from tests.datamodules.test_pastis import Probe, trainer
from tests.datasets.test_base import Plain, PlainDataModule
from tests.geo_tree import ramp, write
from tests.landscapes.flair import FLAIRRecipe, write_flair
from tests.landscapes.treesatai import TreeSatAIRecipe, write_treesatai
from torchgeo_omnisat.commands.check import walk
from torchgeo_omnisat.datamodules import (
    FLAIRDataModule,
    MultimodalDataModule,
    MultimodalGeoDataModule,
    PASTISMultimodalDataModule,
    TreeSatAITimeSeriesDataModule,
)
from torchgeo_omnisat.datasets.common.integrity import Problem, Report


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Ten patches, 10000 to 10009, two a fold: one of training is truncated, one lacks a file, one of test as well."""
    root = write_pastis(tmp_path / 'pastis', size=8)
    (root / 'DATA_S2/S2_10000.npy').write_bytes(b'broken')
    for path in ('DATA_S1A/S1A_10000.npy', 'DATA_S1A/S1A_10001.npy', 'DATA_S2/S2_10009.npy'):
        (root / path).unlink()
    return root


@pytest.fixture
def report(root: Path, tmp_path: Path) -> Path:
    """What `check` says of it."""
    walk(PASTISMultimodalDataModule(str(root))).write(tmp_path / 'check.json')
    return tmp_path / 'check.json'


def write_report(
    path: Path, *samples: str, root: Path | str = '/elsewhere', layout: str = 'PASTIS', warning: bool = False
) -> str:
    problems = [Problem(sample, 's2', 'a.npy', 'missing', 'gone', warning) for sample in samples]
    Report(layout, str(root), {'train': 3}, problems).write(path)
    return str(path)


def ids(datamodule: MultimodalDataModule, split: str) -> list[str]:
    return list(getattr(datamodule, f'{split}_dataset').ids)


class TestExcluding:
    def test_training_goes_on_without_them(
        self, root: Path, report: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
    ) -> None:
        with pytest.raises(FileNotFoundError, match=r'S1A_10000\.npy'):
            PASTISMultimodalDataModule(str(root)).setup('fit')
        datamodule = PASTISMultimodalDataModule(str(root), exclude=str(report), batch_size=4)
        probe = Probe()
        with caplog.at_level(logging.INFO):
            trainer().fit(probe, datamodule)
        assert (ids(datamodule, 'train'), ids(datamodule, 'val')) == (
            ['10002', '10005', '10006', '10007'],
            ['10003', '10008'],
        )
        assert [len(batch['mask']) for batch in probe.batches['train']] == [4]
        assert f"2 of 6 samples of 'train' are excluded by {report}: " in caplog.text
        assert '1 unreadable, missing' in caplog.text
        assert '1 missing' in caplog.text
        assert "0 of 2 samples of 'val' are excluded by" in caplog.text
        assert not [warning for warning in recwarn if 'excluded by' in str(warning.message)]
        entry = json.loads((root / 'STATISTICS.json').read_text())['spot']['Fold_1']
        assert (entry['samples'], entry['of']) == (1, 1)

    def test_a_smaller_test_split_is_a_warning(self, root: Path, report: Path) -> None:
        datamodule = PASTISMultimodalDataModule(str(root), exclude=str(report))
        with pytest.warns(UserWarning, match=rf"1 of 2 .*'test'.*{report}.*1 missing"):
            datamodule.setup('test')
        assert ids(datamodule, 'test') == ['10004']

    def test_other_folds_have_the_same_samples(self, root: Path, report: Path) -> None:
        datamodule = PASTISMultimodalDataModule(str(root), fold=5, exclude=str(report))
        datamodule.setup('fit')
        assert '10009' not in ids(datamodule, 'train')

    def test_warnings_stay(self, pastis: Path, tmp_path: Path) -> None:
        exclude = write_report(tmp_path / 'check.json', '10000', root=pastis, warning=True)
        assert len(PASTISMultimodalDataModule(str(pastis), exclude=exclude).make_dataset('train')) == 6

    @pytest.mark.parametrize(
        ('kind', 'layout'), [(FLAIRDataModule, 'FLAIR'), (TreeSatAITimeSeriesDataModule, 'TreeSatAI')]
    )
    def test_others(self, tmp_path: Path, kind: Any, layout: str) -> None:
        root = tmp_path / 'root'
        if layout == 'FLAIR':
            write_flair(root, FLAIRRecipe(zones=5, tile=256, size=8, dates=2))
        else:
            write_treesatai(root, TreeSatAIRecipe(num_tiles=5, dates=3))
        whole = kind(str(root))
        first, test = (whole.make_dataset(split).ids[0] for split in ('train', 'test'))
        exclude = write_report(tmp_path / 'check.json', first, root=root, layout=layout)
        datamodule = kind(str(root), exclude=exclude)
        datamodule.setup('fit')
        datamodule.setup('test')
        assert first not in ids(datamodule, 'train')
        assert len(ids(datamodule, 'train')) == 2
        assert ids(datamodule, 'test') == [test]
        datamodule = kind(
            str(root), exclude=write_report(tmp_path / 'check.json', f'{first}0', root=root, layout=layout)
        )
        with pytest.raises(ValueError, match=f"exclude.*'{first}0'"):
            datamodule.setup('fit')


class TestErrors:
    @pytest.mark.parametrize(
        ('samples', 'match'),
        [
            (('10000', '77'), r"exclude.*'77'.*metadata\.geojson.*'10000'"),
            (('78', '77'), r"exclude names '77' and 1 more, not known to"),
            (tuple(str(10000 + n) for n in range(10)), r'exclude names every sample of a split \(6\), expected'),
        ],
    )
    def test_samples(self, pastis: Path, tmp_path: Path, samples: tuple[str, ...], match: str) -> None:
        exclude = write_report(tmp_path / 'check.json', *samples, root=pastis)
        with pytest.raises(ValueError, match=match):
            PASTISMultimodalDataModule(str(pastis), exclude=exclude).setup('fit')

    def test_another_dataset(self, pastis: Path, tmp_path: Path) -> None:
        exclude = write_report(tmp_path / 'check.json', '10000', layout='FLAIR')
        with pytest.raises(ValueError, match=r'check\.json.*FLAIR.*/elsewhere.*PASTIS'):
            PASTISMultimodalDataModule(str(pastis), exclude=exclude).setup('fit')

    @pytest.mark.parametrize('positional', [True, False])
    def test_another_root(
        self, pastis: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, positional: bool
    ) -> None:
        monkeypatch.chdir(tmp_path)
        exclude = write_report(tmp_path / 'check.json', '10000', root=tmp_path / 'other')
        datamodule = PASTISMultimodalDataModule(*[str(pastis)] * positional, exclude=exclude)
        ours = pastis if positional else tmp_path / 'data'
        match = rf'{tmp_path}/other.*root.*{ours}.*check --output FILE'
        with pytest.raises(ValueError, match=match):
            datamodule.setup('fit')

    def test_another_root_of_rasters(self, tmp_path: Path) -> None:
        report = write_report(tmp_path / 'check.json', '1_2', root='/elsewhere', layout='Rasters')
        rasters: Any = {'s2': {'path': 's2', 'gsd': 10}}
        datamodule = MultimodalGeoDataModule(str(tmp_path), rasters=rasters, labels=['a'], exclude=report)
        with pytest.raises(ValueError, match=f'/elsewhere.*root.*{tmp_path}'):
            _ = datamodule.report

    def test_a_link_to_the_root_is_the_same_root(self, pastis: Path, tmp_path: Path) -> None:
        (tmp_path / 'link').symlink_to(pastis, target_is_directory=True)
        exclude = write_report(tmp_path / 'check.json', '10000', root=pastis)
        assert (
            '10000' not in PASTISMultimodalDataModule(str(tmp_path / 'link'), exclude=exclude).make_dataset('train').ids
        )

    @pytest.mark.parametrize('text', ['', '[]', '{}', '{"problems": [{}]}', '{"layout": "PASTIS", "problems": 3}'])
    def test_no_report(self, pastis: Path, tmp_path: Path, text: str) -> None:
        (tmp_path / 'check.json').write_text(text)
        with pytest.raises(ValueError, match=r'check\.json.*--output'):
            PASTISMultimodalDataModule(str(pastis), exclude=str(tmp_path / 'check.json')).setup('fit')

    def test_no_file(self, pastis: Path, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r'none\.json'):
            PASTISMultimodalDataModule(str(pastis), exclude=str(tmp_path / 'none.json')).setup('fit')


def test_round_trip(tmp_path: Path) -> None:
    problems = [Problem('a', 's2', 'f', 'nan', 'much'), Problem('b', 'mask', 'g', 'crs', 'none', warning=True)]
    report = Report('PASTIS', '/r', {'train': 2}, problems, {'spot': 1})
    report.write(tmp_path / 'r.json')
    assert Report.read(tmp_path / 'r.json') == report
    assert report.samples_at_fault == {'a': ('nan',)}


def test_tiles_of_rasters(tmp_path: Path) -> None:
    """The ground of a tile with a problem is in no split; other tiles stay where they are."""
    write(tmp_path / 's2/a_20200901.tif', ramp(32, 64, 2), bands=('B04', 'B08'))
    write(tmp_path / 'labels/a.tif', (np.arange(32 * 64).reshape(32, 64) % 3).astype(np.uint8))
    settings: dict[str, Any] = {'rasters': {'s2': {'path': 's2', 'gsd': 10}}, 'mask': {'path': 'labels'}}
    settings |= {'labels': ['a', 'b', 'c'], 'tile_size': 80}
    every = MultimodalGeoDataModule(str(tmp_path), **settings).make_dataset('test').ids
    report = write_report(tmp_path / 'check.json', every[1], root=tmp_path, layout='Rasters')
    datamodule = MultimodalGeoDataModule(str(tmp_path), exclude=report, **settings)
    with pytest.warns(UserWarning, match=f"1 of {len(every)} .*'test'"):
        datamodule.setup('test')
    assert datamodule.test_dataset.ids == [name for name in every if name != every[1]]  # type: ignore[union-attr]
    datamodule = MultimodalGeoDataModule(
        str(tmp_path),
        exclude=write_report(tmp_path / 'check.json', 'no tile', root=tmp_path, layout='Rasters'),
        **settings,
    )
    with pytest.raises(ValueError, match='no tile'):
        datamodule.setup('test')


def test_report_about_another_dataset_is_rejected_wherever_samples_cannot_be_checked(tmp_path: Path) -> None:
    datamodule = PlainDataModule(Plain, root=str(tmp_path), exclude=write_report(tmp_path / 'check.json', '1'))
    with pytest.raises(ValueError, match='Plain'):
        datamodule.setup('fit')
