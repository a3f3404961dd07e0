# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Atomic writing of files and folders, which are complete or absent.

Everything is written to a hidden folder beside its target, ``.NAME.part``, flushed to the disk and renamed. The writing
process holds a lock, which ends with the process. The next writer of the same target therefore removes the leftovers of
a killed process, and never the files of a running one.
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

#: File in a hidden folder that its owner has locked.
_LOCK = '.omnisat-lock'
#: Longest file name, in bytes, and of a hidden name.
_NAME_MAX = 255
#: What the operating system says of a disk, quota or file that can grow no further.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: Bytes that are written to see whether a disk is full: more than a library writes at once.
_PROBE = 2**20

#: Locks of this process: record locks do not exclude its own threads.
_held: set[str] = set()
_guard = threading.Lock()


@contextmanager
def atomic_file(path: Path, parents: bool = True) -> Iterator[Path]:
    """Write a file completely or not at all.

    Args:
        path: The file. An older one is replaced once the new one is complete; if writing fails, it stays.
        parents: Whether to make its folder.

    Yields:
        The path to write to, of the same name in a hidden folder.

    Raises:
        OSError: If it cannot be written, with *path* as its file: the disk is full, for example.
    """
    if path.exists() and not path.is_file():
        raise FileExistsError(errno.EEXIST, 'exists and is no regular file', str(path))
    with scratch_folder(path, parents=parents) as folder:
        temporary = folder / path.name
        with naming_errors(path, folder):
            yield temporary
        publish(temporary, path)


@contextmanager
def atomic_folder(path: Path, exclusive: bool = False) -> Iterator[Path]:
    """Write a folder completely or not at all.

    Args:
        path: The folder; it must be empty or absent.
        exclusive: Whether to refuse if another process is writing it.

    Yields:
        The empty folder to write to, of the same name in a hidden folder.

    Raises:
        OSError: If it cannot be written, or *path* holds files in the end.
        BlockingIOError: If it is *exclusive* and another process is writing it.
    """
    with scratch_folder(path, exclusive) as folder:
        temporary = folder / path.name
        temporary.mkdir()
        with naming_errors(path, folder):
            yield temporary
        publish(temporary, path)


@contextmanager
def scratch_folder(path: Path, exclusive: bool = False, parents: bool = True) -> Iterator[Path]:
    """Make a hidden folder on the file system of a target, and remove it in the end.

    Folders that killed processes left for the same target are removed.

    Args:
        path: The target, whose folder the hidden one lies in.
        exclusive: Whether to refuse if another process has one for this target.
        parents: Whether to make the folder of the target.

    Yields:
        The folder, which is empty but for a lock.

    Raises:
        OSError: If it cannot be made, with *path* as its file.
        BlockingIOError: If it is *exclusive* and another process has one.
    """
    try:
        if parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        folder, lock = _claim(path, exclusive)
    except OSError as error:
        raise _of(error, path) from error
    try:
        yield folder
    finally:
        _release(folder, lock)


def publish(source: Path, target: Path) -> None:
    """Flush a file or a folder to the disk and give it its name.

    Args:
        source: What was written, on the file system of *target*.
        target: The name.

    Raises:
        OSError: If that fails, with *target* as its file.
    """
    try:
        _flush(source, everything=source.is_dir())
        os.replace(source, target)
        _flush(target.parent)
    except OSError as error:
        raise _of(error, target) from error


@contextmanager
def naming_errors(path: Path, folder: Path) -> Iterator[None]:
    """Have errors name the file that is to be rather than a temporary one, and say if the disk is full.

    Args:
        path: The file that is to be.
        folder: Where temporary files lie.

    Raises:
        OSError: With *path* as its file. Other errors are raised as they are, unless the disk is full.
    """
    try:
        yield
    except Exception as error:
        code = error.errno if isinstance(error, OSError) else None
        if isinstance(error, OSError) and (code in _FULL or (code and _lies_in(error.filename, folder))):
            raise _of(error, path) from error
        if code is None and _is_full(folder):  # libraries hide the reason
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise


def hidden_name(name: str, ending: str) -> str:
    """Return ``.NAMEENDING``, shortened to what file systems accept, different for different names.

    Args:
        name: A file name.
        ending: What follows it, ASCII.
    """
    text = os.fsencode(name)
    room = _NAME_MAX - 1 - len(ending)
    if len(text) > room:
        digest = '~' + hashlib.sha256(text).hexdigest()[:16]
        name = text[: room - len(digest)].decode(errors='ignore') + digest
    return f'.{name}{ending}'


def _claim(path: Path, exclusive: bool) -> tuple[Path, int | None]:
    """Return a folder of our own and the descriptor of its lock, and remove abandoned ones of the same target."""
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
                raise BlockingIOError(errno.EAGAIN, 'is being written by another process', str(path))
        elif first is None:
            first = taken
        else:
            _release(*taken)
    raise AssertionError


def _take(folder: Path) -> tuple[Path, int | None] | None:
    """Lock and empty a hidden folder; None if it is somebody's."""
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
                continue  # its owner has just removed it
            except OSError:
                if made:
                    raise
                return None  # no folder of ours
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
                    return folder, None  # a file system without locks: it is ours, as we made it
                return None
            with suppress(FileNotFoundError):
                if os.fstat(lock).st_ino == os.stat(folder / _LOCK).st_ino:
                    _held.add(name)
                    _empty(folder)
                    return folder, lock
            os.close(lock)
    return None


def _release(folder: Path, lock: int | None) -> None:
    """Remove a hidden folder of our own."""
    with _guard:
        _empty(folder)
        with suppress(OSError):
            (folder / _LOCK).unlink(missing_ok=True)
        if lock is not None:
            os.close(lock)
        with suppress(OSError):
            folder.rmdir()
        _held.discard(os.path.abspath(folder))


def _empty(folder: Path) -> None:
    with suppress(OSError):
        for entry in list(os.scandir(folder)):
            if entry.name == _LOCK:
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                os.unlink(entry.path)


def _flush(path: Path, everything: bool = False) -> None:
    """Wait until a file or a folder, or the whole file system it lies in, is on the disk."""
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
    """Return whether a small file cannot be written for want of space."""
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


def _of(error: OSError, path: Path) -> OSError:
    """Return the error of another file; Python chooses its class by the number."""
    return OSError(error.errno or errno.EIO, error.strerror or str(error), str(path))
