# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Reading of JSON files; duplicate keys are an error."""

import json
from pathlib import Path
from typing import Any

from .regular import refuse_special


def parse_json(text: str | bytes) -> Any:
    """Parse a JSON text; raise ValueError if it is not valid, too deep, or contains a duplicate key."""
    try:
        return json.loads(text if isinstance(text, str) else text.decode(), object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError('nesting exceeds the recursion limit') from None


def load_json(path: Path | str) -> Any:
    """Read a JSON file in UTF-8, see :func:`parse_json`; raise ValueError if it is no regular file."""
    refuse_special(path, 'a JSON file')
    try:
        return parse_json(Path(path).read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(f'{path} cannot be read as JSON ({error})') from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f'key {twice!r} occurs {keys.count(twice)} times in an object, expected once')
    return values
