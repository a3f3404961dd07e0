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


def expand_home(words: Sequence[str]) -> list[str]:
    """Replace ``~`` in arguments such as ``--root=~/data``; shells do it only at the start of a word."""
    parts = [word.partition('=') for word in words]
    return [f'{key}{sign}{os.path.expanduser(value)}' for key, sign, value in parts]


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


def format_duration(seconds: float) -> str:
    """Return a duration in at most two units, such as ``45 s``, ``12 min`` or ``3 h 20 min``."""
    if seconds < 99.5:
        return f'{seconds:.0f} s'
    minutes = round(seconds / 60)
    if minutes < 100:
        return f'{minutes} min'
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f'{hours} h {minutes} min' if minutes else f'{hours} h'
    return f'{hours // 24} d {hours % 24} h'


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


#: Warnings of Lightning that report nothing that a user can act on: start of the message, and module.
NOISE = (
    (r'`isinstance\(treespec, LeafSpec\)` is deprecated', r'lightning\.'),  # of torch, about a line of Lightning
    (r'The dirpath has changed from', r'lightning\.'),  # a checkpoint is tested or resumed in another folder
    (r'Found \d+ module\(s\) in eval mode at the start of training', r'lightning\.'),  # frozen encoders
    # Scores are sums over all devices when they are logged.
    (r'It is recommended to use `self\.log\(.(train|val|test)_(Average|Overall|Classwise)', r'lightning\.'),
    # The interval counts the steps of all epochs, so a loss is logged even if an epoch is shorter.
    (r'The number of training batches \(\d+\) is smaller than the logging interval', r'lightning\.'),
    (
        r'.*(skip_none parameter|`add_instantiator`|`instantiate_classes`|JsonargparseDeprecationWarning)',
        r'lightning\.',
    ),
)


#: Further ones if nothing is trained: the callbacks of the training are not used.
NOISE_OF_TESTS = ((r'Be aware that when using `ckpt_path`, callbacks used to create the checkpoint', r'lightning\.'),)
#: Parts of messages of Lightning's log that are hidden: advertisements, a step that takes no time, a checkpoint that
#: the next line names too, absent devices of a rare kind, and an end of the training as announced.
TIPS = (
    'Tip: For seamless cloud', 'to estimate number of stepping batches', 'Restoring states from the checkpoint path',
    'TPU available: False', 'stopped: `max_',
)  # fmt: skip


def hide_noise(trains: bool) -> None:
    """Hide :data:`NOISE`, and Lightning's tips to install other products, for the rest of the process."""
    for message, module in NOISE if trains else (*NOISE, *NOISE_OF_TESTS):
        warnings.filterwarnings('ignore', f'(?s){message}', module=module)
    for name in ('lightning.pytorch.utilities.rank_zero', 'lightning.fabric.utilities.rank_zero'):
        logger = logging.getLogger(name)
        if _is_no_tip not in logger.filters:
            logger.addFilter(_is_no_tip)


def brief_warnings() -> None:
    """Print warnings as one line without the place in the code, for the rest of the process."""
    warnings.formatwarning = _brief_warning


def _brief_warning(message: Any, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
    if issubclass(category, DeprecationWarning | PendingDeprecationWarning | FutureWarning):
        return f'{filename}:{lineno}: {category.__name__}: {message}\n'
    return f'warning: {printable(" ".join(str(message).split()))}\n'


def _is_no_tip(record: logging.LogRecord) -> bool:
    return not any(tip in str(record.msg) for tip in TIPS)


def use_utf8() -> None:
    """Restart the program in Python's UTF-8 mode if the encoding of file names is ASCII.

    Otherwise Python could not open files with other characters in their names.
    """
    if codecs.lookup(sys.getfilesystemencoding()).name == 'ascii' and os.environ.get('PYTHONUTF8') != '1':
        os.environ['PYTHONUTF8'] = '1'  # also prevents another restart
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
