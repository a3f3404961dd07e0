# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Help texts of the command line: plain text, without the mark-up of docstrings."""

import re
from typing import Any

from jsonargparse import DefaultHelpFormatter

#: A role of reStructuredText, such as :class:`~package.module.Class` or :func:`title <target>`.
_ROLE = re.compile(r':(?:py:)?[a-z]+:`([~.!]?)([^`<]*?)(?:\s*<[^`>]*>)?`')


def plain(text: str) -> str:
    """Return text without the mark-up of reStructuredText and without representations of Python objects."""
    text = _ROLE.sub(lambda role: role[2].rpartition('.')[-1] if role[1] == '~' else role[2], text)
    text = re.sub(r'``([^`]*)``', r'\1', text)
    text = re.sub(r"<(?:class|function|module) '?([\w.]+)'?(?: at 0x[0-9a-f]+)?[^>]*>", r'\1', text)
    text = re.sub(r'\s*\(default: null\)', '', text)
    return re.sub(r'(?<![\w*])\*(\w+)\*(?![\w*])', r'\1', text)


class PlainHelpFormatter(DefaultHelpFormatter):
    """Formatter of help texts that removes mark-up before lines are wrapped."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        lines: list[str] = super()._split_lines(plain(text), width)
        return lines

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return super()._fill_text(plain(text), width, indent)

    def start_section(self, heading: Any) -> None:
        """Begin a group of arguments, of which the heading may be the summary of a docstring."""
        super().start_section(heading if heading is None else plain(heading))
