# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Errors of the command line: one line for what a user can get wrong, a traceback for a fault of the code.

``OMNISAT_TRACEBACK=1`` in the environment shows the traceback of every error.
"""

import linecache
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from .console import say

#: Environment variable that asks for tracebacks.
VARIABLE = 'OMNISAT_TRACEBACK'
#: Packages whose ``raise`` statements speak to their users.
_SPEAKING = ('torchgeo_omnisat', 'torchgeo', 'lightning', 'lightning_fabric', 'lightning_utilities', 'jsonargparse')
#: Types of which errors are meant for the user if a ``raise`` statement of these packages gives rise to them.
_REFUSALS = (ValueError, TypeError, RuntimeError, ImportError, NotImplementedError, IndexError)


def describe_error(error: BaseException) -> str | None:
    """Return an error as one line, if a user can cause it; None if it is a fault of the code.

    Files that are missing or unreadable are the user's, wherever that is noticed. Other errors are if this
    package, TorchGeo or Lightning raise them on purpose. Errors of the worker processes of a loader count alike.

    Args:
        error: The error, with its traceback.
    """
    if type(error).__name__ == 'OutOfMemoryError':
        return _line(f'{error}', 'out of memory: ') + ' (a smaller data.batch_size or tile needs less)'
    if 'Error(s) in loading state_dict' in str(error):
        return _line(str(error), 'the checkpoint does not fit the model: ', 400)
    if 'Errors:\n' in str(error) and isinstance(error, ValueError | TypeError):
        return f'{type(error).__name__}: {of_parser(str(error))}'
    frames = _frames(error.__traceback__)
    if _reads_checkpoint(frames) and not isinstance(error, FileNotFoundError):
        reason = _line(str(error) or type(error).__name__, '', 400)
        return f'{_checkpoint_of(error.__traceback__)} cannot be read as a checkpoint: {reason}'
    told = _of_worker(error)
    if told is not None:
        kind, message, deliberate = told
        return f'{kind}: {_line(message)}' if deliberate else None
    spoken = isinstance(error, _REFUSALS) or type(error).__module__.partition('.')[0] in _SPEAKING
    deliberate = bool(frames) and frames[-1][0] in _SPEAKING and frames[-1][2].startswith('raise')
    if isinstance(error, OSError) or (spoken and deliberate) or type(error).__name__ == 'MisconfigurationException':
        return f'{type(error).__name__}: {_line(str(error))}'
    return None


def shorten(error: BaseException, program: str) -> None:
    """Have the interpreter print this error as one line if it ends the program, exit status 1.

    Args:
        error: An error that is about to be raised further. Nothing changes where it is a fault of the code.
        program: What the user called.
    """
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
    """End the program with one line and exit status 1 for what a user can get wrong.

    Args:
        program: What the user called.
    """
    try:
        yield
    except Exception as error:
        message = None if wants_traceback() else describe_error(error)
        if message is None:
            raise
        say(f'{program}: {message}', error=True)
        raise SystemExit(1) from error


def wants_traceback() -> bool:
    """Return whether the user asks for tracebacks."""
    return os.environ.get(VARIABLE, '') not in ('', '0')


def of_parser(message: str) -> str:
    """Return the sentence that counts of the long message with which a parser refuses an argument.

    Args:
        message: What jsonargparse says: for each alternative type of the argument why it does not fit.
    """
    errors = message.partition('Errors:\n')[2].partition('\nGiven value')[0]
    said = [' '.join(error.split()) for error in re.split(r'^\s*- ', errors, flags=re.MULTILINE)]
    kept = [text for text in dict.fromkeys(said) if text and not text.startswith('Expected a <')]
    if not kept:
        return ' '.join(message.split())
    where = re.match(r'\s*(?:Parser key|Validation failed|Problem with|.*?[Kk]ey) "?([\w.]+)"?', message)
    inner = '; '.join(kept)
    return f'{where[1]}: {inner}' if where and where[1] not in inner else inner


def _frames(traceback: TracebackType | None) -> list[tuple[str, str, str]]:
    """Return package, file and line of code of each frame, the innermost last."""
    found = []
    while traceback is not None:
        code, module = traceback.tb_frame.f_code, traceback.tb_frame.f_globals.get('__name__', '')
        text = linecache.getline(code.co_filename, traceback.tb_lineno).strip()
        found.append((str(module).partition('.')[0], code.co_filename, text))
        traceback = traceback.tb_next
    return found


def _reads_checkpoint(frames: list[tuple[str, str, str]]) -> bool:
    return any(file.endswith(os.path.join('torch', 'serialization.py')) for _, file, _ in frames)


def _checkpoint_of(traceback: TracebackType | None) -> str:
    """Return the file that torch was reading."""
    while traceback is not None:
        code, values = traceback.tb_frame.f_code, traceback.tb_frame.f_locals
        if code.co_name == 'load' and code.co_filename.endswith(os.path.join('torch', 'serialization.py')):
            file = values.get('f')
            return str(file if isinstance(file, str | os.PathLike) else getattr(file, 'name', 'a file'))
        traceback = traceback.tb_next
    return 'a file'


def _of_worker(error: BaseException) -> tuple[str, str, bool] | None:
    """Return type and message of an error in a worker process of a loader, and whether a user can cause it."""
    text = str(error)
    if not (text.startswith('Caught ') and 'Original Traceback' in text):
        return None
    lines = text.rstrip().splitlines()
    files = [number for number, line in enumerate(lines) if line.startswith('  File "')]
    last = next((n for n in range(files[-1] + 1, len(lines)) if not lines[n].startswith(' ')), len(lines) - 1)
    kind, _, message = '\n'.join(lines[last:]).partition(': ')
    path, code = lines[files[-1]], lines[files[-1] + 1].strip() if files[-1] + 1 < len(lines) else ''
    parts = re.split(r'[\\/"]', path)
    deliberate = code.startswith('raise') and any(package in parts for package in _SPEAKING)
    return kind.rpartition('.')[-1], message, deliberate or isinstance(error, OSError)


def _line(text: str, start: str = '', most: int = 0) -> str:
    """Return a text in one line, cut after *most* characters."""
    line = start + ' '.join(text.split())
    return line if not most or len(line) <= most else f'{line[:most]}...'
