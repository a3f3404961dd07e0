# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Fingerprints of files by size and modification time, to detect that derived data are out of date."""

import functools
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from rasterio.errors import RasterioError

from ...utils.plurals import counted
from .opening import open_raster

#: State of a file, which differs after it is changed: inode, size, modification and change time in ns.
State = tuple[int, int, int, int]
#: Name of a file in a fingerprint, size and modification time in ns; None if they are not available.
Stamp = tuple[str, int | None, int | None]

#: Extensions of sidecar files that are appended to the name of a raster.
ADDED = ('.msk', '.aux.xml')
#: Extensions of sidecar files that replace that of a raster or vector file.
REPLACED = ('.tfw', '.hdr', '.dbf')
#: Extensions of the data files that :func:`list_data_files` returns.
DATA = (
    *('.tif', '.tiff', '.jp2', '.img', '.vrt', '.png', '.jpg', '.jpeg', '.npy', '.npz', '.h5', '.hdf5', '.nc', '.mat'),
    *('.pt', '.pth', '.parquet', '.safetensors'),
)
#: Maximum number of data files of a folder that is searched.
MAX_FILES = 100_000

_ARCHIVE = re.compile(r'/vsi(?:zip|tar|gzip|7z|rar)/')


def state_of(file: str | Path | int) -> State | None:
    """Return the state of a file, of the archive that contains it, or of a descriptor, by one ``os.stat``.

    The change time is that which programs cannot set back. None for URLs, buckets and missing files.
    """
    try:
        status = os.stat(_on_disk(file) if isinstance(file, str) and file.startswith('/vsi') else file)
    except (OSError, ValueError):
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def raster_state(path: str) -> tuple[State | None, ...]:
    """Return the states of a raster, of its sidecar files, and of the sources of a virtual raster."""
    state = state_of(path)
    if state is None:
        return (None,)
    return state, *(state_of(path + end) for end in ADDED), *map(state_of, sources_of(path, state))


def vector_state(path: str) -> tuple[State | None, ...]:
    """Return the states of a vector file and of the table of a shapefile."""
    stem, suffix = os.path.splitext(path)
    return (state_of(path), *([state_of(stem + '.dbf')] if suffix.lower() == '.shp' else []))


def sources_of(path: str, state: State | None) -> tuple[str, ...]:
    """Return the sources of a virtual raster, including nested ones; an empty tuple for any other file."""
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
    """Return stamps of files and of their sidecar files, in the order of their names relative to *root*.

    Each folder is listed once, and the status of each file is read once. Of missing or remote ones, only the name is
    used.
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
    """Fingerprint of files by their sizes and modification times.

    Two sets of files have the same fingerprint if their names (relative to the root of the data), sizes and
    times in nanoseconds are equal. The location of the root does not matter: ``cp -a`` and ``rsync -a`` keep
    times. A copy with other times counts as changed, because a rewritten file often has the same size.

    Args:
        count: Number of files.
        bytes: Total size in bytes.
        newest: Latest modification time in ns since 1970.
        digest: SHA-256 of names, sizes and times, and of the names of samples.
    """

    count: int
    bytes: int
    newest: int
    digest: str

    @classmethod
    def of(cls, found: Sequence[Stamp], samples: Sequence[str] = ()) -> Self:
        """Create the fingerprint of files."""
        text = json.dumps([list(samples), found])
        sizes, times = [size or 0 for _, size, _ in found], [time or 0 for *_, time in found]
        return cls(len(found), sum(sizes), max(times, default=0), hashlib.sha256(text.encode()).hexdigest()[:32])


def describe_change(then: Mapping[str, Any], found: Sequence[Stamp]) -> str:
    """Describe how files differ from an earlier fingerprint."""
    newer = [(name, time) for name, _, time in found if time is not None and time > then.get('newest', 0)]
    size = sum(size or 0 for _, size, _ in found)
    if newer:
        share = counted(len(newer), f'of {len(found)} files is', f'of {len(found)} files are')
        return f'{share} newer, such as {max(newer, key=lambda one: one[1])[0]}'
    if then.get('count') != len(found):
        return f'number of files {len(found)}, before {then.get("count")}'
    if then.get('bytes') != size:
        return f'{counted(len(found), "file")} of {size} bytes, before {then.get("bytes")}'
    return f'names or times of {counted(len(found), "file")} differ, as those of a copy do, or there were other samples'


def list_data_files(root: str | Path, most: int = MAX_FILES) -> list[str]:
    """Return all data files below a folder; an empty list if there are too many."""
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
    """Return the sidecar files of files of a folder; an empty set if it cannot be listed."""
    try:
        present = {name for name in os.listdir(folder or '.') if name.lower().endswith((*ADDED, *REPLACED))}
    except OSError:
        return set()
    if not present:
        return present
    own = {name + end for name in names for end in ADDED}
    return present & (own | {os.path.splitext(name)[0] + end for name in names for end in REPLACED})


def _on_disk(path: str) -> str:
    """Return the archive of a file in ``/vsizip/`` or another of GDAL's archive file systems; else the path itself."""
    match = _ARCHIVE.match(path)
    if match is None:
        return path
    inner = path[match.end() :].lstrip('{').replace('}', '')
    parts = inner.split('/')
    candidates = ('/'.join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((one for one in candidates if os.path.isfile(one)), path)
