# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Errors of the command line: one line for errors of the user, a traceback for bugs.

The environment variable ``OMNISAT_TRACEBACK=1`` shows the traceback of every error.
"""

import errno
import inspect
import linecache
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from traceback import walk_tb
from types import TracebackType
from typing import Any

from .console import say

#: Environment variable that enables tracebacks.
VARIABLE = 'OMNISAT_TRACEBACK'
#: Packages whose ``raise`` statements are addressed to users.
_PACKAGES = ('torchgeo_omnisat', 'torchgeo', 'lightning', 'lightning_fabric', 'lightning_utilities', 'jsonargparse')
#: Types of errors that are addressed to users if one of these packages raises them.
_TYPES = (ValueError, TypeError, RuntimeError, ImportError, IndexError)
#: What to do about errors of the operating system, by number, and of Lightning, by a pattern of the message.
_ADVICE_BY_NUMBER = {
    errno.EROFS: 'the disk is read-only, choose a path on another one',
    errno.EACCES: 'permission denied, choose another path or change the permissions of the file',
    errno.EPERM: 'permission denied, choose another path or change the permissions of the file',
    errno.ENOSPC: 'the disk is full, free some space and run the command again',
}
_ADVICE = {
    r'No supported gpu backend|Accelerator` can not run on your system': 'this machine has no such device, or torch '
    'has no support for it; use --trainer.accelerator auto or cpu',
    r'Checkpoint file not found': 'the last lines of fit print the path of the checkpoint',
    r'You requested gpu.*But your machine only has': 'choose fewer with --trainer.devices',
    r'metric `?val_\S+ which is not available|monitor.*val_.*could not find the monitored key': 'the validation split '
    'has no labelled pixel; enlarge val in data.split, or remove this callback',
}


def describe_error(error: BaseException) -> str | None:
    """Return an error of the user as one line, or None for a bug.

    Errors of the user are missing or unreadable files, and errors that this package, TorchGeo, Lightning or
    jsonargparse raise explicitly, also in the worker processes of a dataloader.
    """
    if type(error).__name__ == 'OutOfMemoryError':
        return _one_line(f'{error}', 'out of memory: ') + ': decrease data.batch_size or the size of tiles'
    if 'Error(s) in loading state_dict' in str(error):
        return _one_line(str(error), 'the checkpoint does not fit the model: ', 400)
    if 'Errors:\n' in str(error) and isinstance(error, ValueError | TypeError):
        return f'{type(error).__name__}: {of_parser(str(error))}'
    frames = _frames(error.__traceback__)
    if _reads_checkpoint(frames) and not isinstance(error, FileNotFoundError):
        reason = _one_line(str(error) or type(error).__name__, '', 400)
        return f'{_checkpoint_of(error.__traceback__)} cannot be read as a checkpoint: {reason}'
    in_worker = _parse_worker_error(error)
    if in_worker is not None:
        kind, message, deliberate = in_worker
        return f'{kind}: {_one_line(message)}' if deliberate else None
    is_refusal = isinstance(error, _TYPES) or type(error).__module__.partition('.')[0] in _PACKAGES
    deliberate = bool(frames) and frames[-1][0] in _PACKAGES and frames[-1][2].startswith('raise')
    if isinstance(error, OSError) or (is_refusal and deliberate) or type(error).__name__ == 'MisconfigurationException':
        message, todo = _one_line(str(error)), advice(error)
        return f'{type(error).__name__}: {message.rstrip("!. ") if todo else message}{todo}'
    return None


def advice(error: BaseException) -> str:
    """Return what to do about an error of another package or the operating system, an empty string if unknown."""
    if isinstance(error, OSError) and error.errno in _ADVICE_BY_NUMBER:
        return f': {_ADVICE_BY_NUMBER[error.errno]}'
    return next((f': {text}' for pattern, text in _ADVICE.items() if re.search(pattern, str(error))), '')


def shorten(error: BaseException, program: str) -> None:
    """Print an error of the user as one line instead of a traceback if it ends the program."""
    message = None if wants_traceback() else describe_error(error)
    if message is None:
        return
    shown = sys.excepthook

    def hook(kind: type[BaseException], raised: BaseException, traceback: TracebackType | None) -> Any:
        if raised is error:
            say(f'{program}: {message}', error=True)
        else:
            shown(kind, raised, traceback)

    sys.excepthook = hook


@contextmanager
def one_line(program: str) -> Iterator[None]:
    """Print an error of the user as one line and exit with status 1."""
    try:
        yield
    except Exception as error:
        message = None if wants_traceback() else describe_error(error)
        if message is None:
            raise
        say(f'{program}: {message}', error=True)
        raise SystemExit(1) from error


def wants_traceback() -> bool:
    """Return whether :data:`VARIABLE` is set."""
    return os.environ.get(VARIABLE, '') not in ('', '0')


def of_parser(message: str) -> str:
    """Return the relevant sentence of an error message of jsonargparse, which has one for each alternative type."""
    if unknown := re.search(r"class_path '([\w.]+)':? ?.*?Option '([\w.]+)' is not accepted", message, re.DOTALL):
        return _unknown_option(*unknown.groups())
    errors = message.partition('Errors:\n')[2].partition('\nGiven value')[0]
    reasons = [' '.join(error.split()) for error in re.split(r'^\s*- ', errors, flags=re.MULTILINE)]
    kept = [text for text in dict.fromkeys(reasons) if text and not text.startswith('Expected a <')]
    if not kept:
        return ' '.join(message.split())
    where = re.match(r'\s*(?:Parser key|Validation failed|Problem with|.*?[Kk]ey) "?([\w.]+)"?', message)
    inner = '; '.join(kept)
    return f'{where[1]}: {inner}' if where and where[1] not in inner else inner


def _unknown_option(path: str, option: str) -> str:
    """Return the error of an argument that a class does not have, with the most similar one that it has."""
    module, _, name = path.rpartition('.')
    found = getattr(sys.modules.get(module), name, None)
    names = [*inspect.signature(found).parameters] if found is not None else []
    near = get_close_matches(option, names, 1)
    hint = f', did you mean {near[0]!r}?' if near else f', expected some of {names}' if names else ''
    return f'{name} has no argument {option!r}{hint}'


def _frames(traceback: TracebackType | None) -> list[tuple[str, str, str]]:
    """Return package, file and source line of each frame, the innermost last."""
    found = []
    for frame, number in walk_tb(traceback):
        file, module = frame.f_code.co_filename, str(frame.f_globals.get('__name__', ''))
        found.append((module.partition('.')[0], file, linecache.getline(file, number).strip()))
    return found


def _reads_checkpoint(frames: list[tuple[str, str, str]]) -> bool:
    return any(file.endswith(os.path.join('torch', 'serialization.py')) for _, file, _ in frames)


def _checkpoint_of(traceback: TracebackType | None) -> str:
    """Return the path of the file that ``torch.load`` was reading."""
    for frame, _ in walk_tb(traceback):
        code, file = frame.f_code, frame.f_locals.get('f')
        if code.co_name == 'load' and code.co_filename.endswith(os.path.join('torch', 'serialization.py')):
            return str(file if isinstance(file, str | os.PathLike) else getattr(file, 'name', 'a file'))
    return 'a file'


def _parse_worker_error(error: BaseException) -> tuple[str, str, bool] | None:
    text = str(error)
    if not (text.startswith('Caught ') and 'Original Traceback' in text):
        return None
    lines = text.rstrip().splitlines()
    files = [number for number, line in enumerate(lines) if line.startswith('  File "')]
    last = next((n for n in range(files[-1] + 1, len(lines)) if not lines[n].startswith(' ')), len(lines) - 1)
    kind, _, message = '\n'.join(lines[last:]).partition(': ')
    path, code = lines[files[-1]], lines[files[-1] + 1].strip() if files[-1] + 1 < len(lines) else ''
    parts = re.split(r'[\\/"]', path)
    deliberate = code.startswith('raise') and any(package in parts for package in _PACKAGES)
    return kind.rpartition('.')[-1], message, deliberate or isinstance(error, OSError)


def _one_line(text: str, start: str = '', most: int = 0) -> str:
    line = start + ' '.join(text.split())
    return line if not most or len(line) <= most else f'{line[:most]}...'
