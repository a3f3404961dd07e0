# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Labels in a folder: the file, the column of the class and the classes."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_bool_dtype, is_float_dtype, is_integer_dtype

from ..datasets.geo.polygons import DEGREES, METRIC, TABLES, VECTORS, read_geometries
from ..datasets.io.opening import open_raster
from ..utils.plurals import counted
from ..utils.tensors.observed import MAX_RAW
from .facts import sensor_of
from .files import RASTERS, select
from .sensors import Ask

#: Words in the names of label files and folders.
_LABELS = re.compile(
    r'(?<![a-z])(?:labels?|annotations?|ground_?truth|gt|reference|targets?|class(?:es)?|crops?|crop_?types?|'
    r'land_?(?:cover|use)|lulc|worldcover|corine|clc|parcels?|fields?|lpis|rpg|samples?|training|masks?)(?![a-z])',
    re.I,
)
#: Words in the names of vector files that are areas, not labels.
_AREAS = re.compile(r'(?<![a-z])(?:aoi|area|areas|boundary|extent|grid|tiles?|splits?|regions?)(?![a-z])', re.I)
#: Columns of classes by name, the likeliest first, and columns that are never classes.
_COLUMNS = (
    r'(?:class|label)(?:_?name)?', r'crop(?:_?(?:type|name|class))?', r'land_?(?:cover|use)', r'species|genus|habitat',
    r'.*(?:class|label|crop|cover|cult|species|type|categor).*', r'.*(?:code|name|kind).*',
)  # fmt: skip
_NO_COLUMN = re.compile(
    r'(?:.*_)?(?:id|fid|gid|uid|objectid|area|ha|perimeter|length|shape_.*|x|y|z|lon|lat|longitude|latitude|easting|'
    r'northing|date|year|split|fold|index)(?:_.*)?',
    re.I,
)
#: Classes of ESA WorldCover by code.
WORLDCOVER = {
    10: 'tree cover', 20: 'shrubland', 30: 'grassland', 40: 'cropland', 50: 'built-up', 60: 'bare or sparse vegetation',
    70: 'snow and ice', 80: 'permanent water', 90: 'herbaceous wetland', 95: 'mangroves', 100: 'moss and lichen',
}  # fmt: skip
#: Maximum number of classes that are listed; others are one class.
MOST_CLASSES = 40
#: Maximum side in pixels at which label rasters are sampled, number of their files, and of their codes.
_SIDE, _FILES, _CODES = 4096, 20, 100
#: Largest code that is stored as a float; larger floats have no fractions.
_LARGEST = 2**24
IGNORED = 255


@dataclass
class Labels:
    """Settings of the labels.

    Attributes:
        mask: Argument ``mask`` of the datamodule.
        names: Argument ``labels``; None if it follows from ``classes`` of *mask*.
        counts: Number of polygons, points or sampled pixels by class.
        what: What is counted.
        notes: Comments by setting.
        files: Files of the labels, relative to the folder.
        sparse: Whether labels are points.
    """

    mask: dict[str, Any]
    names: list[str] | None
    counts: dict[str, int]
    what: str
    notes: dict[str, str] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    sparse: bool = False

    @property
    def classes(self) -> list[str]:
        """Names of the classes."""
        return list(self.counts) if self.names is None else self.names


def find_labels(
    root: Path, files: Sequence[str], rasters: Sequence[str], given: str | None, column: str | None, ask: Ask
) -> tuple[Labels | None, list[str]]:
    """Return the labels of a folder, and notes; None if there are none.

    Args:
        root: Folder.
        files: Files in it, relative to it.
        rasters: Rasters of one band of integers.
        given: File or folder of labels, relative to *root*; None to look for it.
        column: Column of the class; None to look for it.
        ask: Asks the user to choose.

    Raises:
        ValueError: If *given* or *column* does not exist, or there is no class.
    """
    if given is not None:
        path = given.rstrip('/')
        members = [file for file in files if file == path or file.startswith(f'{path}/')]
        if not members:
            raise ValueError(f'labels are {given!r}, expected a file or folder in {root}')
        vectors = [file for file in members if file.lower().endswith((*VECTORS, *TABLES))]
        if vectors and not any(file.lower().endswith(RASTERS) for file in members):
            return _of_vectors(root, path if path not in members else vectors[0], vectors, column, ask), []
        found = _of_rasters(root, [file for file in members if file.lower().endswith(RASTERS)], files)
        if found is None:
            raise ValueError(
                f'labels are {given!r}, which has fractions, more than {_CODES} values or none, expected classes; for '
                'continuous labels, set continuous: true of the mask by hand'
            )
        return found, []
    vectors = [file for file in files if may_be_labels(root, file)]
    candidates = {file: [file] for file in vectors}
    for file in rasters:
        place = PurePosixPath(file)
        folder = next((str(parent) for parent in place.parents if _LABELS.search(parent.name)), None)
        if folder or _LABELS.search(place.stem):
            candidates.setdefault(folder or file, []).append(file)
    ranked = sorted(candidates, key=lambda name: (_AREAS.search(name) is not None, _LABELS.search(name) is None, name))
    notes = []
    if len(ranked) > 1:
        chosen = ask('Which file has the labels?', ranked)
        ranked = [chosen, *(name for name in ranked if name != chosen)] if chosen else ranked
    for name in ranked:
        members = candidates[name]
        try:
            found = (
                _of_vectors(root, name, members, column, ask) if name in vectors else _of_rasters(root, members, files)
            )
        except (ValueError, OSError) as error:
            if column is not None:
                raise
            notes.append(f'{name} cannot be read as labels: {" ".join(str(error).split())}')
            continue
        if found is None:
            notes.append(f'{name} has more than {_CODES} values or none, so it is not read as classes')
            continue
        others = [other for other in ranked if other != name]
        if others:
            found.notes['path'] = f'other candidates: {", ".join(others[:3])}'
        return found, notes
    return None, notes


def find_float_labels(root: Path, files: Sequence[str], rasters: Sequence[str]) -> Labels | None:
    """Return the first raster of floats that is named like labels and has codes; None if there is none.

    Args:
        root: Folder.
        files: Files in it, relative to it.
        rasters: Rasters of one band of floats.
    """
    stems = {file: PurePosixPath(file).stem for file in rasters}
    named = (file for file, stem in stems.items() if _LABELS.search(stem) and not sensor_of(stem))
    return next((found for file in named if (found := _of_rasters(root, [file], files)) is not None), None)


def may_be_labels(root: Path, file: str) -> bool:
    """Return whether a file is a vector file, or a CSV file with columns of coordinates."""
    ending = PurePosixPath(file).suffix.lower()
    if ending == '.csv':
        try:
            with open(root / file, encoding='utf-8-sig', errors='replace') as table:
                names = {word.strip(' "\'\n').lower() for word in re.split('[,;\t]', table.readline(4096))}
        except OSError:
            return False
        return any(set(pair) <= names for pair in (*DEGREES, *METRIC))
    return ending in VECTORS


def _of_vectors(root: Path, path: str, members: Sequence[str], column: str | None, ask: Ask) -> Labels:
    frames = [read_geometries(str(root / member), column) for member in members]
    frame = pd.concat(frames)
    sparse = set(frame.geom_type) <= {'Point', 'MultiPoint'}
    what = 'points' if sparse else 'polygons'
    notes = dict[str, str]()
    if column is None:
        columns = _class_columns(frame)
        if len(columns) > 1:
            chosen = ask(f'Which column of {path} is the class?', columns)
            columns = [chosen, *(name for name in columns if name != chosen)] if chosen else columns
            notes['column'] = f'other candidates: {", ".join(columns[1:4])}'
        column = columns[0] if columns else None
        if column is not None:
            frame = pd.concat([read_geometries(str(root / member), column) for member in members])
    if column is None:
        if sparse:
            raise ValueError(f'{path} has points, but no column of classes, expected one')
        names = ['background', PurePosixPath(path).stem]
        notes['path'] = 'no column of classes: polygons are the second class, everything else is the first'
        return Labels({'path': path}, names, dict(zip(names, (0, len(frame)), strict=True)), what, notes, [*members])
    values = frame[column].dropna()
    if is_float_dtype(values) and (fractions := values[values != values.round()]).any():
        raise ValueError(f'column {column!r} of {path} has the value {fractions.iloc[0]}, expected classes')
    counts = _ordered(values.tolist())
    mask: dict[str, Any] = {'path': path, 'column': column}
    if not sparse:
        notes['outside'] = '# outside: NAME would make everything outside of the polygons a class'
    return _named(mask, counts, what, notes, [*members], sparse)


def _class_columns(frame: Any) -> list[str]:
    """Return the columns that may be classes, the likeliest first."""
    found = []
    for place, name in enumerate(frame.columns.drop(frame.geometry.name)):
        values = frame[name].dropna()
        distinct = values.nunique()
        if _NO_COLUMN.fullmatch(str(name)) or not 2 <= distinct <= 300 or (distinct == len(values) and distinct > 10):
            continue
        whole = is_integer_dtype(values) or is_bool_dtype(values)
        whole |= bool(is_float_dtype(values) and (values == values.round()).all())
        text = not whole and values.map(lambda value: isinstance(value, str)).all()
        if whole or text:
            rank = next((i for i, p in enumerate(_COLUMNS) if re.fullmatch(p, str(name), re.I)), len(_COLUMNS))
            found.append(((rank, not text, place), str(name)))
    return [name for _, name in sorted(found)]


def _ordered(values: Sequence[Any]) -> dict[Any, int]:
    """Count values, in the order of numbers or letters."""
    counts = Counter(value.strip() if isinstance(value, str) else value for value in values)
    if all(not isinstance(value, str) for value in counts):
        return {int(value): counts[value] for value in sorted(counts)}
    return {str(value): counts[value] for value in sorted(counts, key=str)}


def _named(
    mask: dict[str, Any],
    counts: Mapping[Any, int],
    what: str,
    notes: dict[str, str],
    files: list[str],
    sparse: bool = False,
    names: Mapping[Any, str] | None = None,
) -> Labels:
    """Return labels of names or codes; more than :data:`MOST_CLASSES` become the most frequent ones and others."""
    if len(counts) < 2:
        raise ValueError(f'{mask["path"]} has the classes {list(counts)}, expected at least two')
    kept = sorted(counts, key=lambda code: -counts[code])[: MOST_CLASSES if len(counts) > MOST_CLASSES else None]
    listed = [code for code in counts if code in kept]
    are_names = all(isinstance(code, str) and not re.fullmatch(r'[+-]?\d+(?:\.0*)?', code) for code in counts)
    if are_names and len(listed) == len(counts):
        return Labels(
            mask, [str(code) for code in listed], {str(c): counts[c] for c in listed}, what, notes, files, sparse
        )
    name = {code: (names or {}).get(code) or (str(code) if are_names else f'class {code}') for code in listed}
    mask['classes'] = {code: name[code] for code in listed}
    found = {name[code]: counts[code] for code in listed}
    if len(listed) < len(counts):
        mask['other'] = 'other classes'
        found['other classes'] = sum(counts[code] for code in counts if code not in listed)
        notes['other'] = (
            f'{counted(len(counts) - len(listed), "class")} with less than {min(counts[c] for c in listed)} {what}'
        )
    elif not are_names and names is None:
        notes['classes'] = 'FILL IN the names of the codes, if you like'
    return Labels(mask, None, found, what, notes, files, sparse)


def _of_rasters(root: Path, files: Sequence[str], every: Sequence[str]) -> Labels | None:
    """Return the labels of rasters of codes; None if they have fractions, too many values or none."""
    counts, bands = Counter[int](), 1
    for file in files[:_FILES]:
        with open_raster(str(root / file)) as source:
            bands = max(bands, source.count)
            shape = min(source.height, _SIDE), min(source.width, _SIDE)
            image = source.read(1, out_shape=shape, masked=True)
        pixels = image.compressed()
        if np.issubdtype(pixels.dtype, np.floating):
            pixels = pixels[np.abs(pixels) <= MAX_RAW]  # NaN is nodata
            if not np.array_equal(pixels, np.round(pixels)) or (np.abs(pixels) > _LARGEST).any():
                return None
        values, numbers = np.unique(pixels, return_counts=True)
        if len(values) > _CODES:
            return None
        counts.update(dict(zip(values.astype(int).tolist(), numbers.tolist(), strict=True)))
    counts.pop(IGNORED, None)
    without = sorted(code for code in counts if code < 0)
    for code in without:
        del counts[code]
    if len(counts) < 2 or len(counts) > _CODES:
        return None
    chosen = select(files, every)
    mask: dict[str, Any] = {**chosen}
    worldcover = set(counts) - {0} <= set(WORLDCOVER) and len(set(counts) & set(WORLDCOVER)) > 1 and max(counts) > 9
    facts = [f'{", ".join(map(str, without))} means no label here'] if without else []
    without += [0] if worldcover and counts.pop(0, 0) else []
    if 0 in counts and not worldcover:
        facts.append('0 is a class here: write 0: null in classes if it means no label')
    notes = {'path': '; '.join(facts)} if facts else {}
    ordered = {code: counts[code] for code in sorted(counts)}
    labels = _named(mask, ordered, 'pixels', notes, [*files], names=WORLDCOVER if worldcover else None)
    if without:
        labels.mask['classes'] = {**dict.fromkeys(without), **labels.mask['classes']}
    return labels


def described(labels: Labels) -> str:
    """Describe labels in a line."""
    listed = ', '.join(f'{name} ({count})' for name, count in list(labels.counts.items())[:8])
    more = f' and {len(labels.counts) - 8} more' * (len(labels.counts) > 8)
    column = f', column {labels.mask["column"]}' if 'column' in labels.mask else ''
    path = labels.mask['path']
    return f'{path if isinstance(path, str) else path[0]}{column}: {labels.what} of {listed}{more}'
