# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Console output, in which control characters of names and files are escaped, and silence of Lightning."""

import codecs
import logging
import os
import sys
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

#: Unicode categories of control characters and other characters that a terminal cannot display.
_HIDDEN = {'Cc', 'Cf', 'Cs', 'Zl', 'Zp'}


def printable(text: str, kept: str = '') -> str:
    """Replace control characters, such as terminal escape sequences, by backslash escapes."""
    if text.isascii() and text.isprintable():
        return text
    return ''.join(
        c.encode('unicode_escape').decode() if unicodedata.category(c) in _HIDDEN and c not in kept else c for c in text
    )


def abbreviate(text: str, most: int = 60) -> str:
    """Truncate a text to *most* printable characters, including ``...`` if it is longer."""
    text = printable(text)
    return text if len(text) <= most else f'{text[: most - 3]}...'


def say(*parts: object, error: bool = False, end: str = '\n') -> None:
    """Print objects with escaped control characters, in the encoding of the terminal, or as an *error* to stderr."""
    stream = sys.stderr if error else sys.stdout
    text = printable(' '.join(map(str, parts)), kept='\n\t')
    encoding = getattr(stream, 'encoding', None) or 'utf-8'
    print(text.encode(encoding, 'backslashreplace').decode(encoding), file=stream, end=end, flush=True)


def align(cells: Sequence[Sequence[str]], sides: str = '', title: str = '') -> str:
    """Return rows of cells, the first a header, as columns aligned by *sides*, ``<`` or ``>``, below a title."""
    sides = sides or '<' * len(cells[0])
    widths = [max(len(row[column]) for row in cells) for column in range(len(sides))]
    lines = [
        '  '.join(f'{cell:{side}{width}}' for cell, side, width in zip(row, sides, widths, strict=True)).rstrip()
        for row in cells
    ]
    return '\n'.join([title, *lines] if title else lines)


def table_cell(text: object) -> str:
    """Escape a text for a cell of a Markdown table, as a single line."""
    escaped = str(text).replace('\\', '\\\\').replace('|', '\\|').replace('`', '\\`').replace('<', '&lt;')
    return printable(' '.join(escaped.split()))


@contextmanager
def quiet(every_warning: bool = False, level: int = logging.ERROR) -> Iterator[None]:
    """Silence Lightning's loggers below *level* and its warnings, or all warnings; the progress bar stays."""
    loggers: list[Any] = [logging.getLogger(name) for name in ('lightning.pytorch', 'lightning.fabric')]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(level)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', module='' if every_warning else 'lightning')
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def use_utf8() -> None:
    """Restart the program in Python's UTF-8 mode if the encoding of file names is ASCII.

    Otherwise Python could not open files with other characters in their names.
    """
    if codecs.lookup(sys.getfilesystemencoding()).name == 'ascii' and os.environ.get('PYTHONUTF8') != '1':
        os.environ['PYTHONUTF8'] = '1'  # also prevents another restart
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
