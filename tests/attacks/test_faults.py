# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Full disks, killed processes, removed folders and power cuts: outputs are complete or absent, and reruns end."""

import os
import re
import resource
import shutil
import signal
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.plugins import TorchCheckpointIO

from tests.attacks.test_code import DESCRIPTION
from tests.prediction.areas import PlaneDataModule
from tests.prediction.test_resume import AREA, killed
from tests.prediction.test_writer import predict, read
from torchgeo_omnisat.commands import check
from torchgeo_omnisat.commands.shard import write as write_shards
from torchgeo_omnisat.datamodules.common.statistics import places_of, save_statistics
from torchgeo_omnisat.datasets import ShardedDataset
from torchgeo_omnisat.datasets.common.integrity import Problem, Report
from torchgeo_omnisat.datasets.io.files import extract_directory
from torchgeo_omnisat.datasets.synthetic.writing import Recipe, write_landscapes
from torchgeo_omnisat.prediction import writer
from torchgeo_omnisat.prediction.tiling import Strip
from torchgeo_omnisat.prediction.writer import WorkFolder
from torchgeo_omnisat.tasks.checkpoints import secure_checkpoints, write_hub
from torchgeo_omnisat.utils import atomic
from torchgeo_omnisat.utils.atomic import atomic_file, scratch_folder
from torchgeo_omnisat.utils.cli.errors import describe_error

pytestmark = pytest.mark.filterwarnings('ignore:.*does not have many workers', 'ignore:.*fork')
ENTRIES: Any = {'s2': {str(k): {'mean': [0.5] * 99, 'std': [1.5] * 99, 'samples': 3, 'of': 3} for k in range(9)}}
BYTES = np.random.default_rng(0).integers(0, 255, (3, 64, 64), np.uint8)


def checkpoint(folder: Path) -> None:
    plugin = TorchCheckpointIO()
    secure_checkpoints(SimpleNamespace(checkpoint_io=plugin))
    plugin.save_checkpoint({'state_dict': {'a': torch.zeros(4000)}}, str(folder / 'last.ckpt'))


def strip(folder: Path) -> None:
    work = WorkFolder(folder / 'map.tif', {})
    work.open(claim=True)
    try:
        work.save(Strip(0, 0), BYTES)
    finally:
        work.close()


def archive(folder: Path) -> None:
    if not (folder / 'a.zip').exists():
        with zipfile.ZipFile(folder / 'a.zip', 'w') as file:
            file.writestr('data/x.bin', BYTES.tobytes())
    extract_directory(folder / 'a.zip', 'data')


#: What is written, by the name of the file or folder that is to be.
WRITES: dict[str, Callable[[Path], Any]] = {
    'STATISTICS.json': lambda folder: save_statistics(folder, ENTRIES),
    'hub/model.safetensors': lambda folder: write_hub(folder / 'hub', torch.nn.Linear(64, 64), {}),
    'last.ckpt': checkpoint,
    'landscapes': lambda folder: write_landscapes(folder / 'landscapes', Recipe(2, 0, 16, (2, 2))),
    '.map.tif.44136fa355b3678a/0000-000000.npz': strip,
    'data': archive,
}


@contextmanager
def small_files(most: int) -> Iterator[None]:
    """Have the system refuse to write files beyond so many bytes, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def hidden(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob('.*.part')]


@pytest.mark.parametrize('name', WRITES)
def test_full_disk(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    if name == 'data':
        archive(tmp_path)
        (tmp_path / 'data' / 'x.bin').unlink()
        (tmp_path / 'data').rmdir()
    with small_files(2000):
        if name == 'STATISTICS.json':
            with pytest.warns(UserWarning, match='statistics'):
                WRITES[name](tmp_path)
        else:
            with pytest.raises((OSError, RuntimeError), match=r'File too large|No space left on device') as caught:
                WRITES[name](tmp_path)
            assert name.removesuffix('.ckpt') in str(caught.value)
            assert '.part' not in str(caught.value)
    assert not (tmp_path / name).exists()
    assert not hidden(tmp_path)
    WRITES[name](tmp_path)
    assert (tmp_path / name).exists()


@pytest.mark.parametrize('name', ['report.json', 'report.csv'])
def test_full_disk_while_check_writes_its_report(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = Report('data', '', {'train': 1}, [Problem('a', 's2', 'a.npy', 'unreadable', 'x' * 4000)])
    parsed = defaultdict(lambda: None, output=tmp_path / name)
    arguments = type('Arguments', (), {'__getattr__': lambda _, key: parsed[key]})()
    monkeypatch.setattr(check, 'parse_data', lambda *_: (arguments, SimpleNamespace()))
    monkeypatch.setattr(check, 'check_data', lambda *_: report)
    with small_files(2000), pytest.raises(SystemExit) as caught:
        check.main([])
    said = capsys.readouterr()
    assert caught.value.code == 1
    assert re.search(rf'File too large.*{name}', said.err)
    assert 'Written' not in said.out
    assert not list(tmp_path.iterdir())
    assert check.main([]) == 1
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize('moment', ['replace', 'fsync', 'close'])
@pytest.mark.parametrize('name', WRITES)
def test_killed(tmp_path: Path, name: str, moment: str) -> None:
    def die() -> None:
        if moment == 'close':
            atomic._release = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
        elif moment == 'fsync':
            atomic._flush = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
        else:
            atomic.os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
        WRITES[name](tmp_path)

    killed(die)
    assert hidden(tmp_path)
    if moment != 'close' and not name.startswith('.map'):
        assert not (tmp_path / name).exists()
    if moment == 'close' and name == 'landscapes':
        return  # complete: nothing is written a second time
    if moment == 'close' and name == 'data':
        with pytest.raises(RuntimeError, match=r'\bdata\b'):
            WRITES[name](tmp_path)
    else:
        WRITES[name](tmp_path)
    assert (tmp_path / name).exists()
    assert not hidden(tmp_path)


@pytest.fixture
def splits(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A datamodule with one sample per split."""
    monkeypatch.setattr('torchgeo_omnisat.commands.shard.describe_samples', lambda datamodule: DESCRIPTION)
    datasets = {f'{split}_dataset': [{'mask': torch.ones(8, 8).long()}] for split in ('train', 'val', 'test')}
    return SimpleNamespace(prepare_data=lambda: None, setup=lambda stage: None, num_workers=0, **datasets)


def test_two_shards_of_one_output(tmp_path: Path, splits: SimpleNamespace) -> None:
    with (
        scratch_folder(tmp_path / 'out'),
        pytest.raises(ValueError, match='which another process is writing'),
    ):
        write_shards(splits, tmp_path / 'out', 1)


@pytest.mark.parametrize('split', ['train', 'val', 'test'])
@pytest.mark.parametrize('empty', [None, []], ids=str)
def test_shards_of_an_empty_split(tmp_path: Path, splits: SimpleNamespace, split: str, empty: Any) -> None:
    setattr(splits, f'{split}_dataset', empty)
    with pytest.raises(ValueError, match=rf"splits \['{split}'\] of SimpleNamespace are empty"):
        write_shards(splits, tmp_path / 'out', 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('damage', ['end', 'header', 'offsets'])
def test_damaged_sample_of_shards(tmp_path: Path, splits: SimpleNamespace, damage: str) -> None:
    write_shards(splits, tmp_path / 'out', 1)
    assert ShardedDataset(str(tmp_path / 'out'))[0]['mask'].sum() == 64
    (file,) = (tmp_path / 'out/train').glob('*.bin')
    content = file.read_bytes()
    file.write_bytes(
        {
            'end': content[:-32],
            'header': content.replace(b'"mask"', b'"ma\xffk"'),
            'offsets': content[:4] + b'\xff' * 8 + content[12:],
        }[damage]
    )
    where = rf'{file} has .* bytes' if damage == 'end' else rf"sample 0 of 'train' in {tmp_path / 'out'} cannot be read"
    with pytest.raises(ValueError, match=where):
        ShardedDataset(str(tmp_path / 'out'))[0]


@pytest.fixture(scope='module')
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that stopped before its strips became a map, and in ``whole`` that of a complete run."""
    folder = tmp_path_factory.mktemp('stopped')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, 'write_map', lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            predict(folder, PlaneDataModule(**AREA))
    predict(folder / 'whole', PlaneDataModule(**AREA))
    return folder


@pytest.mark.parametrize('damage', [b'', b'half', 'truncated', 'flipped', 'other', 'empty array'])
def test_damaged_strip_is_made_anew(tmp_path: Path, stopped: Path, damage: bytes | str) -> None:
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    first = min(tmp_path.glob('.map.tif.*/*.npz'))
    content = first.read_bytes()
    middle = len(content) // 2
    if damage == 'truncated':
        first.write_bytes(content[:middle])
    elif damage == 'flipped':
        first.write_bytes(content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :])
    elif damage == 'other':
        np.savez(first, other=np.zeros(3))
    elif damage == 'empty array':
        np.savez(first, bands=np.zeros((0, 0, 0), np.uint8))
    else:
        first.write_bytes(damage)  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match=r'\b1\b'):
        output = predict(tmp_path, PlaneDataModule(**AREA))
    assert np.array_equal(read(output), read(stopped / 'whole' / 'map.tif'))
    assert not list(tmp_path.glob('.map*'))


@pytest.mark.parametrize('moment', ['strip', 'end'])
def test_removed_work_folder_ends_the_run(tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = 0
    save = WorkFolder.save

    def remove(self: WorkFolder, *args: Any) -> None:
        nonlocal saved
        saved += 1
        if moment == 'strip' and saved == 2:
            shutil.rmtree(self.path)
        save(self, *args)
        if moment == 'end' and saved == 4:
            shutil.rmtree(self.path)

    with monkeypatch.context() as patch:
        patch.setattr(WorkFolder, 'save', remove)
        with pytest.raises(RuntimeError, match='was removed'):
            predict(tmp_path, PlaneDataModule(**AREA))
    assert not (tmp_path / 'map.tif').exists()
    assert predict(tmp_path, PlaneDataModule(**AREA)).exists()


def test_a_rank_that_is_gone_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, '_POLL_SECONDS', 0.01)
    work = WorkFolder(tmp_path / 'map.tif', {})
    work.open(claim=True)
    other = WorkFolder(tmp_path / 'map.tif', {})
    other.open(claim=False, rank=1)
    assert work.is_alive(1)
    other.close()
    assert not work.is_alive(1)
    made = writer.GeoTIFFWriter(str(tmp_path / 'map.tif'))
    made._work, made._shares = work, [[], [Strip(0, 0)]]
    made._tiling = SimpleNamespace(strips=lambda: [Strip(0, 0)])  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match=r'ranks \[1\] ended'):
        made._await()
    work.close()


def test_full_disk_while_the_map_is_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError('sqlite3_exec failed')

    with monkeypatch.context() as patch:
        patch.setattr(writer, 'write_map', full)
        patch.setattr(atomic, '_is_full', lambda folder: True)
        with pytest.raises(OSError, match=r"No space left on device: '.*[^.]map\.tif'"):
            predict(tmp_path, PlaneDataModule(**AREA))
    assert not list(tmp_path.glob('map*'))
    assert predict(tmp_path, PlaneDataModule(**AREA)).exists()
    assert [path.name for path in tmp_path.iterdir()] == ['map.tif']


@pytest.mark.parametrize('full', [True, False], ids=['disk', 'quota'])
def test_export_on_a_full_disk_is_one_line(tmp_path: Path, full: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, '_is_full', lambda folder: full)
    with (
        small_files(2000),
        pytest.raises(OSError, match='No space left on device' if full else 'model.safetensors') as caught,
    ):
        write_hub(tmp_path / 'hub', torch.nn.Linear(64, 64), {})
    line = describe_error(caught.value)
    assert line is not None
    assert '\n' not in line
    assert 'model.safetensors' in line or 'hub' in line


def test_map_with_a_long_name(tmp_path: Path) -> None:
    name = 'm' * 240 + '.tif'
    work, other = WorkFolder(tmp_path / name, {'a': 1}), WorkFolder(tmp_path / name, {'a': 2})
    for one in (work, other):
        one.open(claim=True)
        one.save(Strip(0, 0), BYTES)
        one.close()
    assert work.others() == [other.path]
    with atomic_file(tmp_path / name) as path:
        path.write_text('')


def test_statistics_of_a_user_without_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ('TORCH_HOME', 'XDG_CACHE_HOME', 'HOME'):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr('pwd.getpwuid', lambda uid: {}[uid])
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'data').write_text('no folder, so that nothing can be kept')
    assert len(places_of(tmp_path / 'data')) == 1
    with pytest.warns(UserWarning, match='set TORCH_HOME'):
        assert save_statistics(tmp_path / 'data', ENTRIES) is None
    assert os.listdir(tmp_path) == ['data']
