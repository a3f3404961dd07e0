# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Commented YAML of a configuration."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

#: Maximum length of a line, and of a value that is written on one line.
_WIDTH = 118


def render(config: Mapping[str, Any], notes: Mapping[str, str], head: Sequence[str]) -> str:
    """Return a configuration as YAML.

    Args:
        config: Configuration.
        notes: Comments by path of the setting, with dots; those that begin with ``#`` have a line of their own.
        head: Lines of the comment at the top.
    """
    lines = [f'# {line}'.rstrip() for line in head]
    return '\n'.join([*lines, *_mapping(config, notes, '', 0)]) + '\n'


def _mapping(config: Mapping[Any, Any], notes: Mapping[str, str], path: str, indent: int) -> list[str]:
    lines = []
    for key, value in config.items():
        here = f'{path}.{key}'.lstrip('.')
        lines += _entry(f'{" " * indent}{_flow(key)}:', value, notes, here, indent)
    for here, note in notes.items():
        if note.startswith('#') and here.rpartition('.')[0] == path:
            lines.append(f'{" " * indent}{note}')
    return lines


def _entry(start: str, value: Any, notes: Mapping[str, str], path: str, indent: int) -> list[str]:
    note = '' if notes.get(path, '').startswith('#') else notes.get(path, '')
    inside = any(other.startswith(f'{path}.') for other in notes)
    line = f'{start} {_flow(value)}'
    if not _is_block(value) or (len(line) <= _WIDTH and not inside and not _has_classes(value)):
        return _commented(line, note, indent)
    lines = _commented(start, note, indent)
    if isinstance(value, Mapping):
        return [*lines, *_mapping(value, notes, path, indent + 2)]
    for number, item in enumerate(value):
        own = notes.get(f'{path}.{number}', notes.get(f'{path}.{item}', '') if isinstance(item, str) else '')
        flow = f'{" " * (indent + 2)}- {_flow(item)}'
        if isinstance(item, Mapping) and (len(flow) > _WIDTH or _has_classes(item)):
            block = _mapping(item, notes, f'{path}.{number}', indent + 4)
            lines += [f'{" " * (indent + 2)}- {block[0].lstrip()}', *block[1:]]
        else:
            lines += _commented(flow, own, indent + 2)
    return lines


def _is_block(value: Any) -> bool:
    return isinstance(value, Mapping | list) and bool(value)


def _has_classes(value: Any) -> bool:
    """Return whether a value is the configuration of a class, or a list of such, which has lines of its own."""
    if isinstance(value, list):
        return any(map(_has_classes, value))
    return isinstance(value, Mapping) and 'init_args' in value


def _commented(line: str, note: str, indent: int) -> list[str]:
    if not note:
        return [line]
    note = ' '.join(note.split())
    if len(line) + len(note) + 4 <= _WIDTH:
        return [f'{line}  # {note}']
    return [*_wrapped(note, indent), line]


def _wrapped(note: str, indent: int) -> list[str]:
    lines, start = [''], f'{" " * indent}# '
    for word in note.split():
        if len(start) + len(lines[-1]) + len(word) + 1 > _WIDTH and lines[-1]:
            lines.append('')
        lines[-1] = f'{lines[-1]} {word}'.lstrip()
    return [start + line for line in lines]


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10**9, allow_unicode=True, sort_keys=False)
    return text.removesuffix('\n').removesuffix('\n...').strip()
