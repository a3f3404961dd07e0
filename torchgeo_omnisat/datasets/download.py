# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Download: large files over lines that break, resumed, checked, and named when they are whole.

The loose files of a dataset on Hugging Face are each checked against what the hub states of it.
"""

import hashlib
import json
import os
import re
import shutil
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from http.client import HTTPException, IncompleteRead
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urljoin
from urllib.request import Request, urlopen

from filelock import FileLock
from tqdm import tqdm

from .files import extract_directory

#: Seconds without a byte after which a line is taken for broken.
TIMEOUT = 60.0
#: Seconds to wait after the first failure; doubled after each further one.
BACKOFF = 1.0
#: Where the Hugging Face hub is.
ENDPOINT = 'https://huggingface.co'

_CHUNK = 2**16
#: Digests by their length.
_KINDS = {32: 'MD5', 40: "git's SHA-1", 64: 'SHA-256'}


@dataclass(frozen=True)
class Archive:
    """A published archive and what is known of it.

    Args:
        url: Where it is.
        filename: What it is called on disk.
        holds: The directory or file that it unpacks to; a pattern such as ``*.json`` where
            only that is known.
        digest: Its MD5 or SHA-256, if that is published.
    """

    url: str
    filename: str
    holds: str
    digest: str | None = None


@dataclass(frozen=True)
class Entry:
    """A file of a repository.

    Args:
        path: Where it is in there.
        digest: The SHA-256 of a large file, else what git calls it.
    """

    path: str
    digest: str


def obtain(archive: Archive, root: Path, download: bool = False, checksum: bool = False) -> bool:
    """See that what an archive holds lies below *root*; unpack or download it if need be.

    Args:
        archive: The archive.
        root: Where it, and what it holds, belong.
        download: Whether to download it if it is not there.
        checksum: Whether to compare its digest before it is unpacked.

    Returns:
        Whether it is there now; False if nothing is and *download* is False.

    Raises:
        RuntimeError: If the archive is damaged.
        ConnectionError: If it cannot be downloaded.
    """
    if any(root.glob(archive.holds)):
        return True
    path, digest = root / archive.filename, archive.digest if checksum else None
    if not path.exists() and not download:
        return False
    fetch(archive.url, path, digest)
    extract_directory(path, archive.holds)
    return True


def fetch(url: str, path: Path, digest: str | None = None, attempts: int = 6) -> Path:
    """Download a file; what came before the line broke is kept and continued from.

    Bytes are collected in ``.<name>.part`` beside *path*, which takes its name once it is
    complete and checked. A later call, even of another process, continues there by an HTTP
    range, provided that the server still has the same file (size, and ETag or date); else
    it starts over. Of several processes one downloads, the others wait.

    Args:
        url: Where it is.
        path: What to call it. If it is there, nothing is downloaded.
        digest: What it should have: an MD5 (32 digits), a SHA-256 (64) or what git calls a file (40);
            None does not check.
        attempts: How often in a row to fail without a byte before giving up.

    Returns:
        *path*.

    Raises:
        ConnectionError: If the server refuses or cannot be reached. What came is kept.
        RuntimeError: If the file has not the digest. What came is deleted; a file that was
            there before is not.
        OSError: If the disk has no room for it.
    """
    part, lock = (path.with_name(f'.{path.name}.{end}') for end in ('part', 'lock'))
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            if not path.exists():
                _complete(url, part, attempts)
                if digest is not None and (found := _digest(part, digest)) != digest:
                    size, kind = part.stat().st_size, _KINDS[len(digest)]
                    _forget(part)
                    said = f'{url} gave {size} bytes of {kind} {found}, expected {digest}'
                    raise RuntimeError(f'Download corrupted: {said}')
                os.replace(part, path)
                _forget(part)
        lock.unlink(missing_ok=True)
    elif digest is not None and (found := _digest(path, digest)) != digest:
        kind = _KINDS[len(digest)]
        raise RuntimeError(f'Dataset found, but corrupted. {path} has not the {kind} {digest} but {found}')
    return path


def _complete(url: str, part: Path, attempts: int) -> None:
    """Ask for what is missing until nothing is."""
    failures = 0
    while True:
        before = _size(part)
        try:
            if _continue(url, part):
                return
            reason = 'the connection was closed early'
        except HTTPError as error:
            if error.code == 416 and before:  # longer than what the server has
                _forget(part)
            elif error.code < 500 and error.code not in (408, 429):
                raise ConnectionError(f'{url} gave {error.code} {error.reason}, expected a file') from None
            reason = f'{error.code} {error.reason}'
        except (URLError, HTTPException, TimeoutError, ConnectionError, ssl.SSLError) as error:
            reason = str(getattr(error, 'reason', None) or error or type(error).__name__)
        failures = 0 if _size(part) > before else failures + 1
        if failures >= attempts:
            raise ConnectionError(
                f'{url} cannot be downloaded ({reason}) after {failures} attempts without a byte, expected a file; '
                f'{_size(part)} bytes are kept in {part}, from where the next download continues'
            )
        time.sleep(BACKOFF * 2**failures if failures else 0)


def _continue(url: str, part: Path) -> bool:
    """One request for what is missing; whether nothing is missing after it."""
    have, known = _size(part), _known(part)
    headers = {'User-Agent': 'torchgeo_omnisat', 'Accept-Encoding': 'identity'}
    if have and known.get('url') == url:
        if have == known['total']:
            return True  # cut off before it was named
        headers['Range'] = f'bytes={have}-'
        if known['tag']:
            headers['If-Range'] = known['tag']
    with urlopen(Request(url, headers=headers), timeout=TIMEOUT) as response:
        start, total = _span(response, have)
        if start and (start != have or total != known.get('total')):
            _forget(part)  # another file by now
            return False
        etag = response.headers.get('ETag') or ''
        tag = etag if etag.startswith('"') else response.headers.get('Last-Modified', '')
        _remember(part, {'url': url, 'tag': tag, 'total': total})
        if total is not None and (free := shutil.disk_usage(part.parent).free) < total - start:
            raise OSError(f'{part.parent} has {free} bytes left, expected room for {total - start} more of {url}')
        with part.open('ab' if start else 'wb') as file, _bar(part, start, total) as bar:
            for chunk in _chunks(response):
                file.write(chunk)
                bar.update(len(chunk))
    return total is None or _size(part) == total


def _span(response: Any, have: int) -> tuple[int, int | None]:
    """The first byte that a response holds, and the number of bytes of the whole file, if known."""
    if response.status == 206:
        match = re.fullmatch(r'bytes (\d+)-\d+/(\d+|\*)', response.headers.get('Content-Range', ''))
        if match is None:
            return have, None
        return int(match[1]), None if match[2] == '*' else int(match[2])
    length = response.headers.get('Content-Length')
    return 0, None if length is None else int(length)


def _chunks(response: Any) -> Iterator[bytes]:
    """What arrives, to the last byte before a break."""
    try:
        while chunk := response.read(_CHUNK):
            yield chunk
    except IncompleteRead as error:
        yield error.partial
        raise


@contextmanager
def _bar(part: Path, start: int, total: int | None) -> Iterator[Any]:
    """A progress bar where someone looks at it."""
    name = part.name[1 : -len('.part')]
    with tqdm(total=total, initial=start, desc=name, unit='B', unit_scale=True, disable=None, leave=False) as bar:
        yield bar


def _size(part: Path) -> int:
    """Bytes that are there."""
    return part.stat().st_size if part.exists() else 0


def _notes(part: Path) -> Path:
    """Where it is kept what a part is a part of."""
    return part.with_name(f'{part.name}.json')


def _known(part: Path) -> dict[str, Any]:
    """What a part is a part of; nothing if that is not known."""
    try:
        notes = json.loads(_notes(part).read_text())
        return {key: notes[key] for key in ('url', 'tag', 'total')}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _remember(part: Path, notes: dict[str, Any]) -> None:
    """Keep what a part is a part of."""
    temporary = part.with_name(f'{part.name}.tmp')
    temporary.write_text(json.dumps(notes))
    os.replace(temporary, _notes(part))


def _forget(part: Path) -> None:
    """Delete a part and what is known of it."""
    for path in (part, _notes(part)):
        path.unlink(missing_ok=True)


def _digest(path: Path, like: str) -> str:
    """The digest of a file, of the kind of another."""
    kinds: dict[int, Callable[[], Any]] = {
        32: lambda: hashlib.md5(usedforsecurity=False),
        # What git calls a file is the SHA-1 of its size and its content.
        40: lambda: hashlib.sha1(f'blob {path.stat().st_size}\0'.encode(), usedforsecurity=False),
        64: hashlib.sha256,
    }
    with path.open('rb') as file:
        return hashlib.file_digest(file, kinds[len(like)]).hexdigest()


def obtain_files(repository: str, patterns: Sequence[str], root: Path, checksum: bool = False) -> None:
    """Download the files of a dataset that are not there, one after the other.

    A download that was cut off is continued by the next call (:func:`~.download.fetch`). What is
    downloaded is always compared with the digest that the hub states.

    Args:
        repository: Such as ``'IGNF/PASTIS-HD'``.
        patterns: Which files, such as ``'DATA_S2/*.npy'``, in the order in which to get them.
        root: Where they belong.
        checksum: Whether to check files that are there already, too.

    Raises:
        RuntimeError: If a file is damaged.
        ConnectionError: If the hub cannot be reached, or has no such file.
    """
    for pattern in patterns:
        folder = str(PurePosixPath(pattern).parent)
        entries = [e for e in list_folder(repository, folder) if fnmatchcase(e.path, pattern)]
        if not entries:
            raise ConnectionError(f'{ENDPOINT}/datasets/{repository} has no file {pattern}, expected one at least')
        for entry in tqdm(entries, desc=pattern, unit=' files', disable=None, leave=False):
            path = root / entry.path
            digest = entry.digest if checksum or not path.exists() else None
            fetch(f'{ENDPOINT}/datasets/{repository}/resolve/main/{quote(entry.path)}', path, digest)


def list_folder(repository: str, folder: str) -> Iterator[Entry]:
    """The files of one folder of a dataset, page after page.

    Args:
        repository: Such as ``'IGNF/PASTIS-HD'``.
        folder: Such as ``'DATA_S2'``; ``'.'`` for the repository itself.

    Raises:
        ConnectionError: If the hub cannot be reached, or says something else.
    """
    url: str | None = f'{ENDPOINT}/api/datasets/{repository}/tree/main/{quote("" if folder == "." else folder)}'
    while url:
        content, link = _page(url)
        for entry in content:
            if entry['type'] == 'file':
                yield Entry(entry['path'], entry['lfs']['oid'] if entry.get('lfs') else entry['oid'])
        following = re.search(r'<([^>]+)>;\s*rel="next"', link)
        url = urljoin(url, following[1]) if following else None


def _page(url: str) -> tuple[list[dict[str, Any]], str]:
    """One page of a list, and what it says of the next."""
    expected = 'expected a list of files with their digests'
    try:
        with urlopen(Request(url, headers={'User-Agent': 'torchgeo_omnisat'}), timeout=TIMEOUT) as response:
            content, link = json.load(response), response.headers.get('Link', '')
    except (URLError, OSError, ValueError) as error:
        raise ConnectionError(f'{url} cannot be read ({error}), {expected}') from error
    if not (isinstance(content, list) and all({'type', 'path', 'oid'} <= set(entry) for entry in content)):
        raise ConnectionError(f'{url} gave {str(content)[:80]}, {expected}')
    return content, link
