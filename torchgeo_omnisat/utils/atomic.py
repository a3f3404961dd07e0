# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Atomic writing of files and folders.

Everything is written to a hidden folder beside its target, ``.NAME.part``, flushed to disk and renamed. The process
holds a lock while it writes, which the operating system releases if the process is killed. The next writer of the same
target removes the files of a killed process, but never those of a running one.
"""

import ctypes
import errno
import hashlib
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows, where leftovers stay and folders are not flushed
    fcntl = None

#: Lock file in a hidden folder.
_LOCK = '.omnisat-lock'
#: Maximum length of a file name in bytes.
_NAME_MAX = 255
#: Error numbers of a full disk, an exceeded quota and a file of maximum size.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: Number of bytes to write in a test of whether the disk is full; libraries write less at once.
_PROBE = 2**20

#: Hidden folders of this process: record locks do not exclude threads of the same process. They are used instead of
#: filelock, because forked workers inherit its locks: with it, tests/utils/test_atomic.py::test_worker_inherits_no_lock
#: fails.
_held: set[str] = set()
_guard = threading.Lock()


@contextmanager
def atomic_file(path: Path, parents: bool = True) -> Iterator[Path]:
    """Write a file atomically: yield a path of the same name in a hidden folder.

    An existing file is replaced when the new one is complete, and kept if writing fails, for example because the disk
    is full. The OSError names *path*.
    """
    if path.exists() and not path.is_file():
        raise FileExistsError(errno.EEXIST, 'exists, but is not a regular file', str(path))
    with scratch_folder(path, parents=parents) as folder:
        temporary = folder / path.name
        with naming_errors(path, folder):
            yield temporary
        publish(temporary, path)


@contextmanager
def atomic_folder(path: Path, exclusive: bool = False) -> Iterator[Path]:
    """Write a folder, empty or absent, atomically: yield an empty one of the same name in a hidden folder.

    Raise BlockingIOError if *exclusive* is True and another process is writing it.
    """
    with scratch_folder(path, exclusive) as folder:
        temporary = folder / path.name
        temporary.mkdir()
        with naming_errors(path, folder):
            yield temporary
        publish(temporary, path)


@contextmanager
def scratch_folder(path: Path, exclusive: bool = False, parents: bool = True) -> Iterator[Path]:
    """Create a hidden folder beside a target, and remove it in the end.

    Hidden folders of killed processes for the same target are removed. The OSError names the target. Raise
    BlockingIOError if *exclusive* is True and another process has a hidden folder.
    """
    try:
        if parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        folder, lock = _claim(path, exclusive)
    except OSError as error:
        raise _error_for(error, path) from error
    try:
        yield folder
    finally:
        _release(folder, lock)


def publish(source: Path, target: Path, replace_folder: bool = False) -> None:
    """Flush a file or a folder to disk and rename it; the OSError names *target*.

    An existing file is replaced. An existing folder is an error unless it is empty, or *replace_folder* is True: it is
    moved beside *source* and removed once the new one has its name.
    """
    old = source.with_name(f'{source.name}.old')
    try:
        _flush(source, everything=source.is_dir())
        if replace_folder and source.is_dir() and target.is_dir():
            shutil.rmtree(old, ignore_errors=True)  # of a process that was killed while it removed it
            os.replace(target, old)
        try:
            os.replace(source, target)
        except OSError:
            with suppress(OSError):
                os.replace(old, target)
            raise
        _flush(target.parent)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise _error_for(error, target) from error


@contextmanager
def naming_errors(path: Path, folder: Path) -> Iterator[None]:
    """Replace temporary paths in OSErrors by the final one, and identify a full disk in any error."""
    try:
        yield
    except Exception as error:
        code = error.errno if isinstance(error, OSError) else None
        if isinstance(error, OSError) and (code in _FULL or (code and _lies_in(error.filename, folder))):
            raise _error_for(error, path) from error
        if code is None and _is_full(folder):  # libraries raise other errors
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise


def hidden_name(name: str, ending: str) -> str:
    """Return ``.NAMEENDING``; a name that is too long for the file system is shortened and gets a hash."""
    text = os.fsencode(name)
    room = _NAME_MAX - 1 - len(ending)
    if len(text) > room:
        digest = '~' + hashlib.sha256(text).hexdigest()[:16]
        name = text[: room - len(digest)].decode(errors='ignore') + digest
    return f'.{name}{ending}'


def _claim(path: Path, exclusive: bool) -> tuple[Path, int | None]:
    """Return a locked folder and the descriptor of its lock; remove folders of killed processes."""
    first: tuple[Path, int | None] | None = None
    for number in count():
        folder = path.with_name(hidden_name(path.name, f'.{number}.part' if number else '.part'))
        if first is not None and not folder.exists():
            return first
        taken = _take(folder)
        if taken is None:
            if exclusive:
                if first is not None:
                    _release(*first)
                raise BlockingIOError(errno.EAGAIN, 'another process is writing it', str(path))
        elif first is None:
            first = taken
        else:
            _release(*taken)
    raise AssertionError


def _take(folder: Path) -> tuple[Path, int | None] | None:
    """Lock and empty a hidden folder; return None if it belongs to another writer."""
    name = os.path.abspath(folder)
    with _guard:
        while name not in _held:
            made = True
            try:
                folder.mkdir(0o700)
            except FileExistsError:
                made = False
            try:
                lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | getattr(os, 'O_NOFOLLOW', 0), 0o600)
            except FileNotFoundError:
                continue  # removed by its owner in the meantime
            except OSError:
                if made:
                    raise
                return None  # not a hidden folder
            if fcntl is None:
                os.close(lock)
                if made:
                    _held.add(name)
                return (folder, None) if made else None
            try:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(lock)
                if made and error.errno not in (errno.EAGAIN, errno.EACCES):
                    _held.add(name)
                    return folder, None  # a file system without locks, but this process created the folder
                return None
            with suppress(FileNotFoundError):
                if os.fstat(lock).st_ino == os.stat(folder / _LOCK).st_ino:
                    _held.add(name)
                    _remove_contents(folder)
                    return folder, lock
            os.close(lock)
    return None


def _release(folder: Path, lock: int | None) -> None:
    with _guard:
        _remove_contents(folder)
        with suppress(OSError):
            (folder / _LOCK).unlink(missing_ok=True)
        if lock is not None:
            os.close(lock)
        with suppress(OSError):
            folder.rmdir()
        _held.discard(os.path.abspath(folder))


def _remove_contents(folder: Path) -> None:
    with suppress(OSError):
        for entry in list(os.scandir(folder)):
            if entry.name == _LOCK:
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                os.unlink(entry.path)


def _flush(path: Path, everything: bool = False) -> None:
    """Flush a file, a folder, or its whole file system to disk."""
    if fcntl is None:
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        syncfs = getattr(ctypes.CDLL(None, use_errno=True), 'syncfs', None) if everything else None
        if everything and syncfs is None:
            os.sync()
        elif syncfs is not None:
            if syncfs(descriptor):
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code))
        else:
            os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):  # file systems that cannot flush folders
            raise
    finally:
        os.close(descriptor)


def _is_full(folder: Path) -> bool:
    """Return whether a small file cannot be written because the disk is full."""
    probe = folder / '.omnisat-probe'
    try:
        with probe.open('wb') as file:
            file.write(bytes(_PROBE))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno in _FULL
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    return False


def _lies_in(name: object, folder: Path) -> bool:
    return isinstance(name, str | bytes | os.PathLike) and os.fsdecode(name).startswith(str(folder))


def _error_for(error: OSError, path: Path) -> OSError:
    return OSError(error.errno or errno.EIO, error.strerror or str(error), str(path))


def cache_folder() -> Path:
    """Return the folder of :func:`torch.hub.get_dir`; raise FileNotFoundError without a home directory."""
    import torch

    folder = Path(torch.hub.get_dir())
    if folder.parts[:1] and folder.parts[0].startswith('~'):
        raise FileNotFoundError(
            f'{folder} is unusable without a home directory: expected TORCH_HOME, XDG_CACHE_HOME or HOME to be set'
        )
    return folder
