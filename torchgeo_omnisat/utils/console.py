# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Console: text from files and names, printed without the control characters in it."""

import codecs
import os
import sys
import unicodedata

#: Categories of characters that change how a terminal shows other text, or that no terminal can show.
_HIDDEN = {'Cc', 'Cf', 'Cs', 'Zl', 'Zp'}


def printable(text: str, kept: str = '') -> str:
    """Return a text with backslash escapes instead of control characters, such as the escapes of terminals.

    Args:
        text: The text.
        kept: Control characters that stay.
    """
    if text.isascii() and text.isprintable():
        return text
    return ''.join(
        c.encode('unicode_escape').decode() if unicodedata.category(c) in _HIDDEN and c not in kept else c for c in text
    )


def abbreviate(text: str, most: int = 60) -> str:
    """Return a printable text of at most *most* characters, which ends in ``...`` if it was longer."""
    text = printable(text)
    return text if len(text) <= most else f'{text[: most - 3]}...'


def say(*parts: object, error: bool = False, end: str = '\n') -> None:
    """Print a text line by line, without other control characters, whatever the encoding of the terminal.

    Args:
        *parts: What to print, with spaces between.
        error: Whether to print to stderr.
        end: What to print at the end.
    """
    stream = sys.stderr if error else sys.stdout
    text = printable(' '.join(map(str, parts)), kept='\n\t')
    encoding = getattr(stream, 'encoding', None) or 'utf-8'
    print(text.encode(encoding, 'backslashreplace').decode(encoding), file=stream, end=end, flush=True)


def table_cell(text: object) -> str:
    """Return a text as a cell of a Markdown table: in one line, with ``|`` and mark-up escaped.

    Args:
        text: A name.
    """
    escaped = str(text).replace('\\', '\\\\').replace('|', '\\|').replace('`', '\\`').replace('<', '&lt;')
    return printable(' '.join(escaped.split()))


def use_utf8() -> None:
    """Start this program again in Python's UTF-8 mode where its locale knows ASCII alone.

    Python could otherwise not name files whose names have other characters.
    """
    if codecs.lookup(sys.getfilesystemencoding()).name == 'ascii' and os.environ.get('PYTHONUTF8') != '1':
        os.environ['PYTHONUTF8'] = '1'  # which also keeps this from being done again
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
