# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Reading of files: regular files only, JSON without duplicate keys, YAML with a limit on aliases."""

import json
import os
import stat
from pathlib import Path
from typing import Any

import yaml

#: Maximum number of values in a configuration after aliases are expanded.
MAX_EXPANDED_VALUES = 100_000


def refuse_special(path: Path | str, expected: str) -> None:
    """Check that a path is a regular file; reading a named pipe, for example, would block forever."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f'{path} does not exist, expected {expected}') from None
    if not stat.S_ISREG(mode):
        what = 'a directory' if stat.S_ISDIR(mode) else 'not a regular file'
        raise ValueError(f'{path} cannot be read (it is {what}), expected {expected}')


def is_special(path: Path | str) -> bool:
    """Return whether a local path exists and is neither a regular file nor a directory."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def parse_json(text: str | bytes) -> Any:
    """Parse a JSON text; raise ValueError if it is not valid, too deep, or contains a duplicate key."""
    try:
        return json.loads(text if isinstance(text, str) else text.decode(), object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError('nesting exceeds the recursion limit') from None


def load_json(path: Path | str) -> Any:
    """Read a JSON file in UTF-8, see :func:`parse_json`; raise ValueError if it is not a regular file."""
    refuse_special(path, 'a JSON file')
    try:
        return parse_json(Path(path).read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(f'{path} cannot be read as JSON ({error})') from error


def load_config(text: str, path: str) -> object:
    """Parse a YAML configuration; raise ValueError if its aliases expand to too many values."""
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        count = 0 if node is None else _expanded(node, {})
    except RecursionError:
        raise ValueError(f'{path} exceeds the recursion limit, expected a configuration with less nesting') from None
    if count > MAX_EXPANDED_VALUES:
        raise ValueError(f'{path} has more than {MAX_EXPANDED_VALUES} values with expanded aliases, expected fewer')
    return yaml.safe_load(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f'key {twice!r} occurs {keys.count(twice)} times in an object, expected once')
    return values


def _expanded(node: yaml.Node, known: dict[int, float]) -> float:
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = float('inf')  # until its children are counted, so that recursive aliases are infinite
        parts = [part for pair in node.value for part in (pair if isinstance(node, yaml.MappingNode) else (pair,))]
        known[id(node)] = 1 + sum(_expanded(part, known) for part in parts)
    return known[id(node)]
