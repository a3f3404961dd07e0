# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Splits of chips by fractions of spatial groups, by folders, or by lists of names."""

import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ...utils.checks import check_integer
from ...utils.plurals import counted
from ...utils.reading import load_json, refuse_special
from ..common.arguments import SPLITS
from ..io.files import read_csv
from .files import centres

#: Maximum fraction of the smaller of two chips that may be shared without counting as an overlap.
OVERLAP = 0.01


def split_chips(
    names: Mapping[str, Sequence[str]], shapes: NDArray[np.object_], split: Mapping[str, Any], root: Path
) -> dict[str, list[str]]:
    """Assign chips to splits.

    Args:
        names: Names of the files of each chip, by id.
        shapes: Footprint of each chip in longitude and latitude; empty if it is not georeferenced.
        split: ``{'fractions': [0.6, 0.2, 0.2], 'seed': 0, 'block': 5000}`` assigns groups of chips at random.
            A group has the chips with centres in one square block, of a side in metres. With the regular
            expression *group_by*, it has the chips with the same match in their ids. Chips that overlap are
            always in one group. Or ``{'folders': ['train', 'val', 'test']}``, names of parent folders of the
            files; or ``{'files': ['train.txt', 'val.txt', 'test.txt']}``, lists with one name per line; or
            ``{'file': 'split.csv', 'column': 'split'}``, a table with names in the first column, or JSON with a
            list of names for each split. None instead of a folder or list is an empty split.
        root: Directory to which the paths of lists are relative.

    Returns:
        Ids of each split, in the order of *names*. Chips in no folder or list are in no split.

    Raises:
        ValueError: If *split* is invalid, a name is unknown or in two splits, or there are too few groups.
    """
    if 'fractions' in split and split.keys() <= {'fractions', 'seed', 'block', 'group_by'}:
        return _by_fractions(list(names), shapes, **split)
    if split.keys() == {'folders'} and len(split['folders']) == len(SPLITS):
        parts = _by_folders(list(names), split['folders'])
    elif split.keys() == {'files'} and len(split['files']) == len(SPLITS):
        files = {part: path for part, path in zip(SPLITS, split['files'], strict=True) if path is not None}
        lists = {part: _lines(root / Path(path).expanduser()) for part, path in files.items()}
        parts = _by_names(lists, names, str(dict(split)))
    elif 'file' in split and split.keys() <= {'file', 'column'}:
        table = _read_table(root / Path(split['file']).expanduser(), split.get('column', 'split'))
        parts = _by_names(table, names, split['file'])
    else:
        raise ValueError(
            f"split is {dict(split)!r}, expected {{'fractions': [0.6, 0.2, 0.2]}}, {{'folders': [train, val, test]}}, "
            "{'files': [train.txt, val.txt, test.txt]} or {'file': a table or JSON file}"
        )
    _warn_of_overlaps(parts, list(names), shapes)
    return parts


def _by_fractions(
    ids: Sequence[str],
    shapes: NDArray[np.object_],
    fractions: Sequence[float],
    seed: int = 0,
    block: float = 5000.0,
    group_by: str | None = None,
) -> dict[str, list[str]]:
    """Assign groups of chips in random order, each to the split that lacks most of its fraction."""
    if len(fractions) != len(SPLITS) or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6 or block <= 0:
        raise ValueError(f'split has fractions {fractions} and block {block}, expected three of sum 1, and metres')
    check_integer(0, seed=seed)
    groups = _groups(ids, shapes, block, group_by)
    sizes = np.bincount(groups)
    if len(sizes) < sum(fraction > 0 for fraction in fractions):
        raise ValueError(
            f'split {list(fractions)} of {counted(len(ids), "chip")} has {counted(len(sizes), "group")} of chips that '
            f'are near each other, expected one at least for each split: set a smaller block than {block:g} m, '
            'group_by, or lists'
        )
    order = np.random.default_rng(seed).permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind='stable')]
    wanted = np.array(fractions) * len(ids)
    assigned, counts = np.zeros(len(sizes), int), np.zeros(len(SPLITS))
    for place, group in enumerate(order):
        empty = (counts == 0) & (wanted > 0)
        lack = wanted - counts
        if len(order) - place <= empty.sum():  # the last groups are for splits that have none yet
            lack = np.where(empty, lack, -np.inf)
        assigned[group] = int(lack.argmax())
        counts[assigned[group]] += sizes[group]
    return {
        part: [name for name, group in zip(ids, groups, strict=True) if assigned[group] == number]
        for number, part in enumerate(SPLITS)
    }


def _groups(
    ids: Sequence[str], shapes: NDArray[np.object_], block: float, group_by: str | None
) -> NDArray[np.integer[Any]]:
    located = ~shapely.is_empty(shapes)
    if group_by is not None:
        keys: list[Any] = [_key(group_by, name) for name in ids]
    else:
        keys = [('', name) for name in ids]
        places = np.floor(centres(shapes[located]) / block).astype(int)
        for index, place in zip(np.flatnonzero(located).tolist(), places.tolist(), strict=True):
            keys[index] = tuple(place)
        if not located.all():
            warnings.warn(
                f'{int((~located).sum())} of {counted(len(ids), "chip")} without a georeference, such as '
                f'{ids[int((~located).argmax())]!r}: each is assigned independently, so neighbours may be in '
                'different splits; group_by of split keeps chips whose ids share some text in one split',
                stacklevel=4,
            )
    _, numbers = np.unique([repr(key) for key in keys], return_inverse=True)
    one, other = _overlapping(shapes)
    links = np.concatenate([np.stack([numbers[one], numbers[other]]), np.stack([numbers, numbers])], axis=1)
    count = numbers.max() + 1
    _, joined = connected_components(coo_array((np.ones(links.shape[1]), links), shape=(count, count)), directed=False)
    found: NDArray[np.integer[Any]] = joined[numbers]
    return found


def _key(group_by: str, name: str) -> str:
    match = re.search(group_by, name)
    if match is None:
        raise ValueError(f'group_by of split is {group_by!r}, expected to find it in the id of every chip, as {name!r}')
    return match[match.lastindex or 0]


def _overlapping(shapes: NDArray[np.object_]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    one, other = shapely.STRtree(shapes).query(shapes, predicate='intersects')
    one, other = one[one < other], other[one < other]
    shared = shapely.area(shapely.intersection(shapes[one], shapes[other]))
    much = shared > OVERLAP * np.minimum(shapely.area(shapes[one]), shapely.area(shapes[other]))
    return one[much], other[much]


def _warn_of_overlaps(parts: Mapping[str, Sequence[str]], ids: Sequence[str], shapes: NDArray[np.object_]) -> None:
    where = {name: part for part, names in parts.items() for name in names}
    pairs = [(ids[a], ids[b]) for a, b in zip(*_overlapping(shapes), strict=True)]
    leaks = [(a, b) for a, b in pairs if a in where and b in where and where[a] != where[b]]
    if leaks:
        a, b = leaks[0]
        warnings.warn(
            f'{counted(len(leaks), "pair")} of chips in different splits overlap on the ground, such as {a!r} in '
            f'{where[a]!r} and {b!r} in {where[b]!r}: scores will be too high',
            stacklevel=4,
        )


def _by_folders(ids: Sequence[str], folders: Sequence[str | None]) -> dict[str, list[str]]:
    parents = {name: set(name.split('/')[:-1]) for name in ids}
    parts = {
        part: [name for name in ids if folder is not None and folder in parents[name]]
        for part, folder in zip(SPLITS, folders, strict=True)
    }
    known = sorted(set().union(*parents.values()))
    if lost := [f for f, part in zip(folders, parts.values(), strict=True) if f is not None and not part]:
        raise ValueError(f'split has the folders {lost}, where no chip is, expected some of {known}, or null for none')
    _check_duplicates(parts, 'the folders')
    return parts


def _by_names(
    lists: Mapping[str, Sequence[str]], names: Mapping[str, Sequence[str]], where: str
) -> dict[str, list[str]]:
    known: dict[str, set[str]] = {}
    for chip, files in names.items():
        for name in {chip, chip.rpartition('/')[2], *files, *(re.sub(r'\.\w+$', '', file) for file in files)}:
            known.setdefault(name, set()).add(chip)
    unknown = [name for part in lists.values() for name in part if len(known.get(name, ())) != 1]
    if unknown:
        why = 'names several chips' if unknown[0] in known else 'names no chip'
        raise ValueError(
            f'{unknown[0]!r} in {where} {why}, as do {len(unknown) - 1} more, expected ids such as '
            f'{next(iter(names))!r}'
        )
    chosen = {part: {chip for name in lists.get(part, ()) for chip in known[name]} for part in SPLITS}
    parts = {part: [chip for chip in names if chip in chosen[part]] for part in SPLITS}
    _check_duplicates(parts, where)
    return parts


def _check_duplicates(parts: Mapping[str, Sequence[str]], where: str) -> None:
    counts = Counter(name for names in parts.values() for name in names)
    if twice := [name for name, count in counts.items() if count > 1]:
        both = [part for part, names in parts.items() if twice[0] in names]
        raise ValueError(f'{twice[0]!r} and {len(twice) - 1} more are in {both} of {where}, expected one split each')


def _lines(path: Path) -> list[str]:
    try:
        refuse_special(path, 'names of chips')
        return [line.strip() for line in path.read_text(encoding='utf-8').splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise ValueError(f'{path} cannot be read ({error}), expected the name of a chip in each line') from None


def _read_table(path: Path, column: str) -> dict[str, list[str]]:
    try:
        if path.suffix.lower() == '.json':
            content = load_json(path)
            lists = {part: list(map(str, names)) for part, names in content.items() if part in SPLITS}
        else:
            refuse_special(path, 'a table')
            table = read_csv(path, dtype=str, keep_default_na=False)
            lists = {part: table.loc[table[column] == part].iloc[:, 0].tolist() for part in SPLITS}
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(
            f'{path} cannot be read ({type(error).__name__}: {error}), expected a table with names and a column '
            f'{column!r}, or JSON with a list of names for each of {SPLITS}'
        ) from None
    if not any(lists.values()):
        raise ValueError(f'{path} has no name for any split, expected some of {SPLITS} in {column!r}')
    return lists
