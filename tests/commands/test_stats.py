# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Statistics by command: of all training samples, found by whoever trains on the same root."""

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.conftest import SHARED
from tests.geo_tree import ramp, write
from tests.processes import run
from torchgeo_omnisat.__main__ import main
from torchgeo_omnisat.datamodules import (
    MultimodalGeoDataModule,
    PASTISMultimodalDataModule,
    SyntheticLandscapesDataModule,
)
from torchgeo_omnisat.datamodules.common import statistics
from torchgeo_omnisat.datamodules.common.statistics import FILENAME
from torchgeo_omnisat.datasets import PASTISMultimodal, SyntheticLandscapes

WORDS = ['stats', '--data=SyntheticLandscapesDataModule', '--data.num_tiles=10', '--data.size=8', '--data.dates=[2,4]']


def die(root: Path) -> None:
    """Measure until the fifth tile, which kills the process."""
    read = SyntheticLandscapes.__getitem__

    def getitem(self: SyntheticLandscapes, index: int) -> object:
        if index == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, index)

    statistics.EVERY = 0
    SyntheticLandscapes.__getitem__ = getitem  # type: ignore[assignment, method-assign]
    main([*WORDS, f'--data.root={root}'])


def make(root: Path, fold: int = 1) -> SyntheticLandscapesDataModule:
    return SyntheticLandscapesDataModule(str(root), fold=fold, num_tiles=10, size=8, dates=(2, 4))


def test_training_reads_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / 'landscapes'
    published = make(root)
    published.setup('fit')
    (root / FILENAME).unlink(missing_ok=True)
    assert main([*WORDS, f'--data.root={root}', '--data.bands={s2: [B04]}', '--data.max_dates=1']) == 0
    out = capsys.readouterr().out
    assert f'Written to {root / FILENAME}' in out
    entries = json.loads((root / FILENAME).read_text())
    assert {name: len(groups['Fold_2']['mean']) for name, groups in entries.items()} == {
        's2': 10, 's1a': 3, 's1d': 3, 'spot': 3,
    }  # fmt: skip
    images = [np.load(path).astype(float) for path in sorted((root / 'DATA_S2').iterdir())[1::5]]
    pixels = np.concatenate([np.moveaxis(image, 1, 0).reshape(10, -1) for image in images], axis=1)
    assert entries['s2']['Fold_2']['mean'] == pytest.approx(pixels.mean(1).tolist())
    assert entries['s2']['Fold_2']['std'] == pytest.approx(pixels.std(1).tolist())
    entries['s2']['Fold_2']['mean'][2] += 300
    (root / FILENAME).write_text(json.dumps(entries))
    measured = make(root)
    measured.setup('fit')
    difference = measured.mean['s2'] - published.mean['s2']
    assert difference[2].item() == pytest.approx(100, abs=0.1)
    assert difference[0].item() == pytest.approx(0, abs=0.1)
    # Other folds were not measured, so what is published holds there.
    other = make(root, fold=2)
    other.setup('fit')
    norm = json.loads((root / 'NORM_S2_patch.json').read_text())
    expected = np.mean([norm[f'Fold_{fold}']['mean'] for fold in (2, 3, 4)], axis=0)
    assert other.mean['s2'].tolist() == pytest.approx(expected.tolist())


def test_of_rasters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / 's2/a_20210301.tif', ramp(8, 8), bands=('B04',))
    arguments = {'root': str(tmp_path), 'rasters': {'s2': {'path': 's2', 'gsd': 10}}, 'tile_size': 40}
    config = {'data': {'class_path': 'MultimodalGeoDataModule', 'init_args': arguments}}
    (tmp_path / 'stats.yaml').write_text(yaml.safe_dump(config))
    assert main(['stats', '--config', str(tmp_path / 'stats.yaml')]) == 0
    assert f'prediction on {tmp_path} read' in capsys.readouterr().out
    (kept,) = json.loads((tmp_path / FILENAME).read_text())['s2']
    datamodule = MultimodalGeoDataModule(**arguments)
    assert datamodule.groups([None]) == [kept]


def test_configuration_file(tmp_path: Path) -> None:
    arguments = {'root': str(tmp_path / 'root'), 'num_tiles': 5, 'size': 8, 'dates': [2, 2], 'modalities': ['s1a']}
    config = {
        'seed_everything': 0,
        'trainer': {'max_epochs': 1},
        'model': {'class_path': 'omnisat', 'init_args': {'backbone': 'omnisat_tiny'}},
        'data': {'class_path': 'SyntheticLandscapesDataModule', 'init_args': arguments},
    }
    (tmp_path / 'fit.yaml').write_text(yaml.safe_dump(config))
    assert main(['stats', '--config', str(tmp_path / 'fit.yaml')]) == 0
    assert list(json.loads((tmp_path / 'root' / FILENAME).read_text())) == ['s1a']


def test_an_argument_that_the_datamodule_refuses_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(['stats', '--data=MultimodalGeoDataModule', '--data.rasters={s2: {path: s2}}', '--data.modalities=[s3]'])
    assert error.value.code == 1
    expected = "stats: ValueError: modalities is ('s3',), expected some of the rasters ['s2']\n"
    assert capsys.readouterr().err == f'python -m torchgeo_omnisat {expected}'


def test_default_data_are_said_to_be_made_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(['stats', '--data.num_tiles=5', '--data.size=8', '--data.modalities=[s1a]']) == 0
    assert 'Data: synthetic landscapes' in capsys.readouterr().err
    assert (tmp_path / 'data/synthetic' / FILENAME).exists()


def test_killed_and_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed, whole = (tmp_path / name for name in ('killed', 'whole'))
    assert run(tmp_path, die, killed) == -signal.SIGKILL
    assert not (killed / FILENAME).exists()
    (partial,) = killed.glob('.STATISTICS*')
    assert json.loads(partial.read_text())['done'] == 4
    asked: list[int] = []
    read = PASTISMultimodal.__getitem__

    def getitem(self: PASTISMultimodal, index: int) -> object:
        asked.append(index)
        return read(self, index)

    monkeypatch.setattr(PASTISMultimodal, '__getitem__', getitem)
    shutil.copytree(killed, whole, ignore=shutil.ignore_patterns('.STATISTICS*'))  # files of the same times
    for root in (killed, whole):
        assert main([*WORDS, f'--data.root={root}']) == 0
    assert asked == [4, 5, *range(6)]
    assert (killed / FILENAME).read_text() == (whole / FILENAME).read_text()
    assert not list(killed.glob('.STATISTICS*'))


@pytest.mark.skipif(not SHARED.exists(), reason='no real data beside the checkout')
def test_real_patches(tmp_path: Path) -> None:
    root = Path(shutil.copytree(SHARED / 'pastis-r-mini', tmp_path / 'pastis'))
    root.chmod(0o755)
    _, entries, _ = PASTISMultimodalDataModule(str(root), modalities=('s1d',)).measure()
    image = np.load(root / 'DATA_S1D/S1D_20275.npy').astype(float)
    (fold,) = [p.fold for p in PASTISMultimodal(root).patches if p.id == 20275]
    assert entries['s1d'][f'Fold_{fold}']['mean'] == pytest.approx(image.mean((0, 2, 3)).tolist())
