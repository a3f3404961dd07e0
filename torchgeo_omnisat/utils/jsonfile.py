# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""JSON files: the one way in which they are read; objects with a key twice are refused."""

import json
from pathlib import Path
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """Return what a JSON text holds.

    Args:
        text: The text, UTF-8 if it is bytes.

    Raises:
        ValueError: If the text is not valid JSON, is nested too deeply, or contains a duplicate key.
    """
    try:
        return json.loads(text if isinstance(text, str) else text.decode(), object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError('it is nested too deeply: maximum recursion depth exceeded') from None


def load_json(path: Path | str) -> Any:
    """Return what a JSON file holds, see :func:`parse_json`.

    Args:
        path: The file, in UTF-8.

    Raises:
        OSError: If it cannot be read.
        ValueError: If the file is not valid JSON, is nested too deeply, or contains a duplicate key.
    """
    try:
        return parse_json(Path(path).read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(f'{path} cannot be read as JSON ({error})') from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object, all of whose keys differ."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f'key {twice!r} occurs {keys.count(twice)} times in an object, expected once')
    return found
