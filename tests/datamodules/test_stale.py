# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Statistics of files that are written anew are measured anew, and those of files that are not are kept."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.chips_tree import LABELS, MASK, RASTERS, write_chips
from tests.conftest import write_pastis
from tests.flair_tree import write_tree
from tests.geo_tree import write
from tests.landscapes.flairhub import FLAIRHUBRecipe, write_flairhub
from tests.landscapes.treesatai import TreeSatAIRecipe, write_treesatai
from torchgeo_omnisat.datamodules import (
    ChipsDataModule,
    FLAIRDataModule,
    FLAIRHUBMultimodalDataModule,
    MultimodalGeoDataModule,
    PASTISMultimodalDataModule,
    TreeSatAITimeSeriesDataModule,
)
from torchgeo_omnisat.datamodules.common import statistics
from torchgeo_omnisat.datamodules.common.statistics import FILENAME, changed, load_statistics, measure


def images(root: Path, scale: float, seed: int = 0) -> None:
    """Two dates and an elevation, of the same number of bytes whatever the scale."""
    rng = np.random.default_rng(seed)
    for day in ('20210601', '20210611'):
        write(root / f's2/a_{day}.tif', (scale * rng.normal(1000, 100, (16, 32))).astype(np.float32))
    if not (root / 'dem').exists():
        write(root / 'dem/dem.tif', rng.normal(100, 9, (16, 32)).astype(np.float32))


def region(root: Path, **changes: Any) -> MultimodalGeoDataModule:
    rasters = {'s2': {'path': 's2', 'gsd': 10}, 'dem': {'path': 'dem', 'gsd': 10, 'temporal': False}}
    told: dict[str, Any] = {'rasters': rasters, 'tile_size': 80, 'label_gsd': 10}
    return MultimodalGeoDataModule(str(root), **told | changes)


def shift(path: Path) -> None:
    """Give a file another modification time."""
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**12))


class TestRasters:
    def test_written_anew(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        images(tmp_path, 1)
        datamodule = region(tmp_path)
        datamodule.setup('fit')
        before = load_statistics(tmp_path)
        images(tmp_path, 1e-4)
        for again in (datamodule, region(tmp_path)):  # in a notebook, and in another process
            caplog.clear()
            with caplog.at_level('INFO'):
                again.setup('fit')
            assert again.mean['s2'].item() == pytest.approx(0.1, rel=0.05)
            assert again.train_dataset is not None
            assert again.train_dataset[0]['image_s2'].mean() < 1
            said = [record.getMessage() for record in caplog.records if FILENAME in record.getMessage()]
            assert len(said) == (again is datamodule)
        images(tmp_path, 1)
        with caplog.at_level('INFO'):
            region(tmp_path).setup('fit')
        (line,) = (record.getMessage() for record in caplog.records if FILENAME in record.getMessage())
        assert 'older than the files of s2: 2 of 2 files are newer, such as s2/a_20210611.tif' in line
        assert load_statistics(tmp_path)['dem'] == before['dem']

    def test_files_on_other_ground_do_not_count(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        images(tmp_path, 1)
        write(tmp_path / 's2/b_20210601.tif', np.ones((16, 32), np.float32), (600320.0, 5700000.0))
        split = {'axis': 'x', 'fractions': [0.4, 0.3, 0.3]}
        region(tmp_path, split=split).setup('fit')
        monkeypatch.setattr('torchgeo_omnisat.datamodules.base.measure', None)
        shift(tmp_path / 's2/b_20210601.tif')
        region(tmp_path, split=split).setup('fit')
        shift(tmp_path / 's2/a_20210601.tif')
        with pytest.raises(TypeError):
            region(tmp_path, split=split).setup('fit')

    @pytest.mark.parametrize('kept', ['moved', 'by hand'])
    def test_a_copy_and_numbers_by_hand_hold(self, tmp_path: Path, kept: str, monkeypatch: pytest.MonkeyPatch) -> None:
        images(tmp_path / 'one', 1)
        region(tmp_path / 'one').setup('fit')
        shutil.copytree(tmp_path / 'one', tmp_path / 'two')  # with the times of the files
        if kept == 'by hand':
            entries: Any = json.loads((tmp_path / 'two' / FILENAME).read_text())
            entries['s2'] = {group: {'mean': [7], 'std': [3]} for group in entries['s2']}
            (tmp_path / 'two' / FILENAME).write_text(json.dumps(entries))
            images(tmp_path / 'two', 1e-4)
        monkeypatch.setattr('torchgeo_omnisat.datamodules.base.measure', None)
        datamodule = region(tmp_path / 'two')
        datamodule.setup('fit')
        assert datamodule.mean['s2'].item() == pytest.approx(7 if kept == 'by hand' else 1000, rel=0.05)

    def test_a_pass_that_was_cut_off(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(statistics, 'EVERY', 0)
        images(tmp_path, 1)
        train = region(tmp_path).make_dataset('train', every=True)
        groups, keep = ['train'] * len(train), tmp_path / 'partial'
        with monkeypatch.context() as patch:
            patch.setattr(type(train), '__getitem__', interrupted(type(train).__getitem__))
            with pytest.raises(KeyboardInterrupt):
                measure(train, train.modalities, groups, keep=keep)
        assert keep.exists()
        images(tmp_path, 1e-4)
        entries = measure(train, train.modalities, groups, keep=keep)
        assert entries['s2']['train']['mean'][0] == pytest.approx(0.1, rel=0.05)

    def test_labels_are_counted_anew(self, tmp_path: Path) -> None:
        images(tmp_path, 1)
        datamodule = region(tmp_path, mask={'path': 'labels.tif'}, labels=['x', 'y'])
        for number in (0, 1):
            write(tmp_path / 'labels.tif', np.full((16, 32), number, np.uint8))
            pixels = datamodule.label_counts('train').pixels
            assert pixels['yx'[number]] == 0
            assert pixels['xy'[number]] > 0


def interrupted(original: Any) -> Any:
    """Stop at the second sample."""

    def getitem(self: Any, index: int) -> Any:
        if index == 1:
            raise KeyboardInterrupt
        return original(self, index)

    return getitem


def pastis(root: Path) -> Any:
    root = write_pastis(root, folds=(1, 1, 2, 4), size=8)
    (root / 'NORM_S2_patch.json').unlink()
    return PASTISMultimodalDataModule(str(root), modalities=('s2', 'spot'))


def flair(root: Path) -> Any:
    return FLAIRDataModule(str(write_tree(root)))


def flairhub(root: Path) -> Any:
    write_flairhub(root / 'hub', FLAIRHUBRecipe(areas=5, dates=4))
    return FLAIRHUBMultimodalDataModule(str(root / 'hub'), modalities=('s2', 's1a'))


def treesatai(root: Path) -> Any:
    write_treesatai(root / 'trees', TreeSatAIRecipe(num_tiles=5, dates=4))
    return TreeSatAITimeSeriesDataModule(str(root / 'trees'), modalities=('s2', 'aerial'))


def chips(root: Path) -> Any:
    write_chips(root, 5, series=('20210601',))
    rasters = RASTERS | {'s1': {'path': 's1', 'gsd': 20, 'temporal': True}}
    return ChipsDataModule(str(root), rasters=rasters, mask=MASK, labels=LABELS)


@pytest.mark.parametrize(
    ('make', 'name', 'other'),
    [
        (pastis, 's2', 'spot'),
        (flair, 's2', 'aerial'),
        (flairhub, 's2', 's1a'),
        (treesatai, 'aerial', 's2'),
        (chips, 's2', 's1'),
    ],
)
def test_every_dataset_tells_its_files(make: Any, name: str, other: str, tmp_path: Path) -> None:
    datamodule = make(tmp_path)
    train = datamodule.make_dataset('train', **datamodule.whole_series())
    groups = datamodule.groups(train)
    entries = measure(train, train.modalities, groups, most=2)
    measured = [0, len(train) - 1]
    files = {key: [Path(path) for path in train.image_files(key, measured)] for key in (name, other)}
    assert all(path.exists() for paths in files.values() for path in paths)
    assert not any(changed(train, entries, key, groups) for key in files)
    shift(files[other][0])
    assert not changed(train, entries, name, groups)
    assert 'newer, such as' in changed(train, entries, other, groups)
    shift(files[name][-1])
    assert changed(train, entries, name, groups)
    if len(train) > 2 and name in ('aerial', 's2') and make is not flair:  # what was not measured does not count
        entries = measure(train, train.modalities, groups, most=2)
        left = [path for path in map(Path, train.image_files(name, [1])) if path not in map(Path, files[name])]
        for path in left:
            shift(path)
        assert left
        assert not changed(train, entries, name, groups)


def test_statistics_that_are_published_are_not_touched(tmp_path: Path) -> None:
    root = write_pastis(tmp_path, folds=(1, 4), size=8)
    datamodule = PASTISMultimodalDataModule(str(root), modalities=('s2',))
    datamodule.setup('fit')
    mean = datamodule.mean['s2'].tolist()
    for path in (root / 'DATA_S2').iterdir():
        shift(path)
    datamodule.setup('fit')
    assert datamodule.mean['s2'].tolist() == mean
    assert not (root / FILENAME).exists()
