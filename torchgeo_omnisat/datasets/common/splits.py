# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Splits of a dataset by files that list the ids of its tiles."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from ...utils.reading import load_json, refuse_special
from ..io.files import read_csv
from .arguments import SPLITS

#: Columns with the id of a tile, in order of preference.
ID_COLUMNS = ('image', 'id', 'ID_PATCH')
#: Other names of a split.
ALIASES = {'validation': 'val', 'valid': 'val', 'training': 'train', 'testing': 'test'}


def read_splits(path: Path | str) -> dict[str, list[str]]:
    """Read the ids of ``'train'``, ``'val'`` and ``'test'``.

    Args:
        path: One of

            - a directory with ``train.csv``, ``val.csv`` and ``test.csv``, each with the ids in a column ``image``, as
              for MAESTRO, ``id`` or ``ID_PATCH``; or the path of these files with ``{}`` for the split, such as
              ``DIR/{}_fold_1.csv``;
            - a CSV or GeoJSON file with the columns ``id`` (or ``image``, ``ID_PATCH``) and ``split``.

    Returns:
        Ids of each split in the order of the files; a split may be empty.

    Raises:
        ValueError: If a file or column is missing, a split is unknown, or an id is in two splits or twice in one.
    """
    files = split_files(path)
    if len(files) > 1:
        parts = {split: _ids(_read_table(file), file) for split, file in zip(SPLITS, files, strict=True)}
    else:
        (file,) = files
        table = _read_table(file)
        if 'split' not in table:
            raise ValueError(f"{file} has the columns {list(table)}, expected 'split' and the id of each tile")
        ids, names = _ids(table, file), [ALIASES.get(str(name), str(name)) for name in table['split']]
        if unknown := sorted(set(names) - set(SPLITS)):
            raise ValueError(f'{file} has the split {unknown[0]!r}, expected one of {SPLITS}')
        parts = {split: [tile for tile, name in zip(ids, names, strict=True) if name == split] for split in SPLITS}
    counts = Counter(tile for tiles in parts.values() for tile in tiles)
    if twice := [tile for tile, count in counts.items() if count > 1]:
        where = [split for split, tiles in parts.items() if twice[0] in tiles]
        raise ValueError(f'{path} has the tile {twice[0]!r} {counts[twice[0]]} times, in {where}, expected it once')
    return parts


def split_files(path: Path | str) -> list[Path]:
    """Return the files of :func:`read_splits`: one, or those of ``'train'``, ``'val'`` and ``'test'``."""
    folder = Path(path).expanduser()
    if not folder.is_dir() and '{}' not in folder.name:
        return [folder]
    pattern = str(folder / '{}.csv') if folder.is_dir() else str(folder)
    return [Path(pattern.format(split)) for split in SPLITS]


def _read_table(path: Path) -> pd.DataFrame:
    expected = 'expected a table with the id of each tile'
    refuse_special(path, 'a table with the id of each tile')
    try:
        if path.suffix.lower() in ('.json', '.geojson'):
            features = load_json(path)['features']
            return pd.DataFrame([_properties(feature) for feature in features], dtype=str)
        return read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{path} cannot be read ({type(error).__name__}: {error}), {expected}') from None


def _properties(feature: Mapping[str, object]) -> dict[str, object]:
    properties = feature['properties']
    if not isinstance(properties, Mapping):
        raise TypeError(f'properties of a feature are {properties!r}')
    return {key: feature[key] for key in ('id',) if key in feature} | dict(properties)


def _ids(table: pd.DataFrame, path: Path) -> list[str]:
    column = next((name for name in ID_COLUMNS if name in table), None)
    if column is None:
        raise ValueError(f'{path} has the columns {list(table)}, expected the id of each tile in one of {ID_COLUMNS}')
    return [str(value).strip() for value in table[column]]
