# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Fingerprint: size and modification time of files, by which whatever was made from them is known to be out of date."""

import functools
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from rasterio.errors import RasterioError

from .opening import open_raster

#: What differs once a file was written to or replaced: inode, size, and times in ns of modification and of change.
State = tuple[int, int, int, int]
#: What a path is called in a fingerprint, its size and its modification time in ns; None where it cannot be asked for.
Stamp = tuple[str, int | None, int | None]

#: Files beside a raster that change what its pixels mean, by the suffix that is added to its name.
ADDED = ('.msk', '.aux.xml')
#: Files beside a raster or a vector file, by the suffix that replaces that of its name.
REPLACED = ('.tfw', '.hdr', '.dbf')
#: Suffixes of the data files that :func:`walk` finds.
DATA = (
    *('.tif', '.tiff', '.jp2', '.img', '.vrt', '.png', '.jpg', '.jpeg', '.npy', '.npz', '.h5', '.hdf5', '.nc', '.mat'),
    *('.pt', '.pth', '.parquet', '.safetensors'),
)
#: A folder with more data files than that is not searched.
MOST = 100_000

_ARCHIVE = re.compile(r'/vsi(?:zip|tar|gzip|7z|rar)/')


def state_of(file: str | Path | int) -> State | None:
    """Return what differs once a file was written to or replaced.

    This is one ``os.stat``.

    Args:
        file: A path, or the descriptor of an open file. Of a file in an archive the archive counts.

    Returns:
        Inode, size, modification time, and the time of change, which no program can set back; None for URLs,
        buckets and files that are not there.
    """
    try:
        status = os.stat(_on_disk(file) if isinstance(file, str) and file.startswith('/vsi') else file)
    except (OSError, ValueError):
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def raster_state(path: str) -> tuple[State | None, ...]:
    """Return the states of all files that a raster is read from.

    Args:
        path: A file or whatever GDAL reads.

    Returns:
        States of the file and of its mask and metadata beside it; of a virtual raster, of its sources too.
    """
    state = state_of(path)
    if state is None:
        return (None,)
    return state, *(state_of(path + end) for end in ADDED), *map(state_of, sources_of(path, state))


def vector_state(path: str) -> tuple[State | None, ...]:
    """Return the states of a vector file and, of a shapefile, of its table."""
    stem, suffix = os.path.splitext(path)
    return (state_of(path), *([state_of(stem + '.dbf')] if suffix.lower() == '.shp' else []))


def sources_of(path: str, state: State | None) -> tuple[str, ...]:
    """Return the files that a virtual raster is made of, nested ones included; nothing for any other file.

    Args:
        path: The file.
        state: Its state: they are found once for each.
    """
    return _sources(path, state) if path.lower().endswith('.vrt') else ()


@functools.lru_cache(maxsize=1024)
def _sources(path: str, state: State | None) -> tuple[str, ...]:
    try:
        with open_raster(path) as source:
            found = [file for file in source.files if file != path]
    except RasterioError:
        return ()
    return (*found, *(inner for file in found for inner in sources_of(file, state_of(file)) if inner not in found))


def stamps(paths: Iterable[str | Path], root: str | Path) -> list[Stamp]:
    """Return size and modification time of files, and of what lies beside rasters.

    Each folder is listed once, and each file asked for its status once.

    Args:
        paths: Files, of which those that are not there or not on a disk count by their names alone.
        root: Directory of the data; files in it are called by their path below it.

    Returns:
        One entry for each file, in the order of their names.
    """
    wanted = {str(path) for path in paths}
    wanted |= {
        source for path in wanted if path.lower().endswith('.vrt') for source in sources_of(path, state_of(path))
    }
    folders: dict[str, list[str]] = {}
    for path in wanted - {''}:
        folder, separator, name = path.rpartition(os.sep)
        folders.setdefault(folder + separator, []).append(name)
    start, found = os.path.join(root, ''), dict[str, Stamp]()
    for folder, names in folders.items():
        for path in (folder + name for name in {*names, *_beside(folder, names)}):
            state = state_of(path)
            called = path.removeprefix(start).replace(os.sep, '/')
            found[called] = (called, None, None) if state is None else (called, *state[1:3])
    return [found[called] for called in sorted(found)]


@dataclass(frozen=True)
class Fingerprint:
    """Size and modification time of files, in a few numbers.

    Two sets of files of the same names (from the root of the data on), sizes and times to the nanosecond have
    the same fingerprint, wherever they lie: ``cp -a`` and ``rsync -a`` keep times. A copy with other times counts
    as changed files, because a file that is written anew has the size of the old one more often than not.

    Args:
        count: Number of files.
        bytes: Their size in all.
        newest: Latest modification time, in ns since 1970.
        digest: SHA-256 of names, sizes and times, and of the names of samples.
    """

    count: int
    bytes: int
    newest: int
    digest: str

    @classmethod
    def of(cls, found: Sequence[Stamp], samples: Sequence[str] = ()) -> Self:
        """Make the fingerprint of files.

        Args:
            found: What :func:`stamps` returned.
            samples: Names of the samples that are read from them.
        """
        text = json.dumps([list(samples), found])
        sizes, times = [size or 0 for _, size, _ in found], [time or 0 for *_, time in found]
        return cls(len(found), sum(sizes), max(times, default=0), hashlib.sha256(text.encode()).hexdigest()[:32])

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for a JSON file."""
        return asdict(self)


def describe_change(then: Mapping[str, Any], found: Sequence[Stamp]) -> str:
    """Return in a few words how files differ from a fingerprint that is not theirs.

    Args:
        then: The fingerprint, as :meth:`Fingerprint.as_dict` gave it.
        found: The files now.
    """
    newer = [(name, time) for name, _, time in found if time is not None and time > then.get('newest', 0)]
    size = sum(size or 0 for _, size, _ in found)
    if newer:
        return f'{len(newer)} of {len(found)} files are newer, such as {max(newer, key=lambda one: one[1])[0]}'
    if then.get('count') != len(found):
        return f'there were {then.get("count")} files, there are {len(found)}'
    if then.get('bytes') != size:
        return f'the {len(found)} files had {then.get("bytes")} bytes, they have {size}'
    return f'names or times of the {len(found)} files differ, as those of a copy do, or they were other samples'


def walk(root: str | Path, most: int = MOST) -> list[str]:
    """Return all data files below a folder; nothing if they are too many.

    Args:
        root: The folder. Hidden files and folders are left out.
        most: How many files there may be.
    """
    found: list[str] = []
    for path in _walk(str(root)):
        found.append(path)
        if len(found) > most:
            return []
    return found


def _walk(folder: str) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            inside = [entry for entry in entries if not entry.name.startswith('.')]
    except OSError:
        return
    for entry in inside:
        if entry.is_dir():
            yield from _walk(entry.path)
        elif entry.name.lower().endswith(DATA):
            yield entry.path


def _beside(folder: str, names: Sequence[str]) -> set[str]:
    """Return what lies beside files of a folder and belongs to them; nothing if it cannot be listed."""
    try:
        held = {name for name in os.listdir(folder or '.') if name.lower().endswith((*ADDED, *REPLACED))}
    except OSError:
        return set()
    if not held:
        return held
    own = {name + end for name in names for end in ADDED}
    return held & (own | {os.path.splitext(name)[0] + end for name in names for end in REPLACED})


def _on_disk(path: str) -> str:
    """Return the archive that holds a file of GDAL's ``/vsizip/`` and the like; any other path as it is."""
    match = _ARCHIVE.match(path)
    if match is None:
        return path
    inner = path[match.end() :].lstrip('{').replace('}', '')
    parts = inner.split('/')
    candidates = ('/'.join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((one for one in candidates if os.path.isfile(one)), path)
