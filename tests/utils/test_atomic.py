# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Atomic writing: complete or absent, with the permissions of any other file, and nothing left behind."""

import errno
import os
import stat
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.processes import run
from torchgeo_omnisat.utils import atomic
from torchgeo_omnisat.utils.atomic import (
    atomic_file,
    atomic_folder,
    cache_folder,
    hidden_name,
    naming_errors,
    publish,
    scratch_folder,
)

LONG = 'm' * 240 + '.tif'


@pytest.mark.parametrize('name', ['a.txt', 'a [v1].txt', 'ä', LONG, 'é' * 120, 'x' * 255])
def test_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / 'new' / name
    for text in ('first', 'second'):
        with atomic_file(path) as temporary:
            temporary.write_text(text)
            assert temporary.name == name
            assert path.exists() == (text == 'second')
        assert path.read_text() == text
    assert os.listdir(path.parent) == [name]


@pytest.mark.parametrize('name', ['a', LONG])
def test_folder(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with atomic_folder(path) as temporary:
        (temporary / 'x').mkdir()
        (temporary / 'x' / 'y').write_text('y')
        assert not path.exists()
    assert (path / 'x' / 'y').read_text() == 'y'
    with pytest.raises(OSError, match=rf"'.*{name}'"), atomic_folder(path):
        pass
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize('umask', [0o022, 0o027, 0o077, 0o002])
def test_permissions_are_those_of_the_umask_which_is_never_set(
    tmp_path: Path, umask: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = os.umask(umask)
    monkeypatch.setattr(os, 'umask', lambda mask: pytest.fail('os.umask is set'))
    try:
        with atomic_file(tmp_path / 'file') as path:
            path.write_text('')
        with atomic_folder(tmp_path / 'folder'):
            pass
    finally:
        monkeypatch.undo()
        os.umask(before)
    assert stat.S_IMODE((tmp_path / 'file').stat().st_mode) == 0o666 & ~umask
    assert stat.S_IMODE((tmp_path / 'folder').stat().st_mode) == 0o777 & ~umask


@pytest.mark.parametrize('write', [atomic_file, atomic_folder])
def test_error_leaves_nothing(tmp_path: Path, write: Callable[[Path], AbstractContextManager[Path]]) -> None:
    with pytest.raises(KeyboardInterrupt), write(tmp_path / 'a'):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_error_leaves_the_older_file(tmp_path: Path) -> None:
    path = tmp_path / 'a'
    path.write_text('old')
    with pytest.raises(FileNotFoundError), atomic_file(path) as temporary:  # noqa: PT012
        temporary.write_text('ne')
        Path('missing').read_text()
    assert path.read_text() == 'old'
    assert os.listdir(tmp_path) == ['a']


def test_flushed_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def flush(descriptor: int) -> None:
        calls.append(Path(os.readlink(f'/proc/self/fd/{descriptor}')).name)
        fsync(descriptor)

    def rename(source: Path, target: Path) -> None:
        calls.append('rename')
        replace(source, target)

    monkeypatch.setattr(atomic.os, 'fsync', flush)
    monkeypatch.setattr(atomic.os, 'replace', rename)
    with atomic_file(tmp_path / 'a') as path:
        path.write_text('a')
    assert calls == ['a', 'rename', tmp_path.name]


@pytest.mark.parametrize('code', [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_full_disk_names_the_final_file(tmp_path: Path, code: int) -> None:
    path = tmp_path / 'a'
    with pytest.raises(OSError) as caught, atomic_file(path):  # noqa: PT011
        raise OSError(code, os.strerror(code))
    assert (caught.value.errno, caught.value.filename) == (code, str(path))


def test_full_disk_is_said_where_a_library_hides_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match='some code'), naming_errors(tmp_path / 'a', tmp_path):
        raise RuntimeError('some code of a library')
    monkeypatch.setattr(atomic, '_is_full', lambda folder: True)
    with (
        pytest.raises(OSError, match='No space left on device') as caught,
        naming_errors(tmp_path / 'a', tmp_path),
    ):
        raise RuntimeError('some code of a library')
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_errors_of_other_files_stay(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match='elsewhere'), atomic_file(tmp_path / 'a'):
        (tmp_path / 'elsewhere').read_text()


def test_errors_of_the_temporary_file_name_the_final_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, atomic_file(tmp_path / 'a'):
        pass
    assert caught.value.filename == str(tmp_path / 'a')


@pytest.mark.parametrize('make', [Path.mkdir, os.mkfifo])
def test_what_is_no_file_is_never_replaced(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / 'a')
    with pytest.raises(FileExistsError, match='regular'), atomic_file(tmp_path / 'a'):
        pass


def leave(path: Path, full: bool = True) -> None:
    """Die while writing."""
    with atomic_file(path) as temporary:
        temporary.write_text('half')
        temporary.with_name('scratch').mkdir()
        os.kill(os.getpid(), 9)


@pytest.mark.parametrize('name', ['a.json', LONG])
def test_leftovers_of_a_killed_process_are_removed_by_the_next_writer(tmp_path: Path, name: str) -> None:
    path = tmp_path / 'data' / name
    assert run(tmp_path, leave, path) == -9
    assert not path.exists()
    assert len(list(path.parent.iterdir())) == 1
    with atomic_file(path.with_name('other')) as temporary:
        temporary.write_text('')
    assert len(list(path.parent.iterdir())) == 2  # of another target
    with atomic_file(path) as temporary:
        assert not temporary.with_name('scratch').exists()
        temporary.write_text('whole')
    assert sorted(os.listdir(path.parent)) == sorted([name, 'other'])


def leave_to_worker(path: Path) -> None:
    """Be killed while writing, with a forked worker that stays alive."""
    with atomic_file(path):
        if worker := os.fork():
            (path.parent / 'worker').write_text(str(worker))
            os.kill(os.getpid(), 9)
        os.setsid()  # not to be killed with this process
        time.sleep(60)


def test_worker_inherits_no_lock(tmp_path: Path) -> None:
    path = tmp_path / 'a'
    assert run(tmp_path, leave_to_worker, path) == -9
    with atomic_file(path) as temporary:
        assert temporary.parent.name == '.a.part'
        temporary.write_text('whole')
    os.kill(int((tmp_path / 'worker').read_text()), 9)


def test_all_leftovers_are_removed(tmp_path: Path) -> None:
    for ending in ('.part', '.1.part', '.2.part'):
        (tmp_path / hidden_name('a', ending)).mkdir()
        (tmp_path / hidden_name('a', ending) / 'a').write_text('half')
    with scratch_folder(tmp_path / 'a') as folder:
        assert not (folder / 'a').exists()
    assert not list(tmp_path.iterdir())


def test_a_folder_is_replaced_after_a_kill_during_the_removal_of_an_earlier_one(tmp_path: Path) -> None:
    made, target, left = (tmp_path / name for name in ('work/store', 'store', 'work/store.old'))
    for number, folder in enumerate((left, target, made)):
        folder.mkdir(parents=True)
        (folder / 'chunk').write_text(str(number))
    publish(made, target, replace_folder=True)
    assert (target / 'chunk').read_text() == '2'
    assert not list((tmp_path / 'work').iterdir())


def other_writes(path: Path, exclusive: bool) -> None:
    with scratch_folder(path, exclusive) as folder:
        assert folder.name == '.a.1.part'


@pytest.mark.parametrize('exclusive', [False, True])
def test_a_living_process_keeps_its_folder(tmp_path: Path, exclusive: bool) -> None:
    with scratch_folder(tmp_path / 'a') as folder:
        (folder / 'half').write_text('')
        with scratch_folder(tmp_path / 'a') as other:  # of this process
            assert other != folder
        assert bool(run(tmp_path, other_writes, tmp_path / 'a', exclusive)) == exclusive
        assert (folder / 'half').exists()
        if exclusive:
            with pytest.raises(BlockingIOError, match='process'):
                other_writes(tmp_path / 'a', exclusive)


def test_hidden_names_differ_and_fit() -> None:
    names = ['m' * 255, 'm' * 254 + 'n', 'a', 'é' * 127]
    hidden = [hidden_name(name, '.part') for name in names]
    assert len(set(hidden)) == len(names)
    assert all(len(os.fsencode(name)) <= 255 for name in hidden)
    assert hidden[2] == '.a.part'


def test_a_file_in_the_way_of_the_hidden_folder(tmp_path: Path) -> None:
    (tmp_path / '.a.part').write_text("somebody's")
    with atomic_file(tmp_path / 'a') as path:
        path.write_text('')
    assert (tmp_path / '.a.part').read_text() == "somebody's"
    assert (tmp_path / 'a').exists()


def test_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(atomic.fcntl, 'lockf', refuse)
    (tmp_path / '.a.part').mkdir()  # whose nobody can know
    with atomic_file(tmp_path / 'a') as path:
        path.write_text('a')
    assert sorted(os.listdir(tmp_path)) == ['.a.part', 'a']


def test_cache_of_a_user_without_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ('TORCH_HOME', 'XDG_CACHE_HOME', 'HOME'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr('pwd.getpwuid', lambda uid: {}[uid])
    with pytest.raises(FileNotFoundError, match='expected TORCH_HOME'):
        cache_folder()
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    assert cache_folder() == tmp_path / 'torch' / 'hub'


def test_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, 'fcntl', None)  # Windows
    for text in ('first', 'second'):
        with atomic.atomic_file(tmp_path / 'a.txt') as temporary:
            temporary.write_text(text)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [('a.txt', 'second')]
