# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Download of public datasets from the Hugging Face hub or from URLs.

Files are downloaded to a hidden folder, and renamed after their digest is verified.
"""

import hashlib
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

from filelock import FileLock
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.hf_api import RepoSibling
from torchgeo.datasets.utils import check_integrity, download_url
from tqdm.contrib.concurrent import thread_map

from ...utils.atomic import publish, scratch_folder
from .files import extract_directory

#: URL of the Hugging Face hub; None for ``HF_ENDPOINT`` or the default of huggingface_hub.
ENDPOINT: str | None = None

#: Digest algorithm by the length of the digest.
_ALGORITHMS = {32: 'md5', 64: 'sha256'}
#: Number of files that are downloaded in parallel.
_THREADS = 8
#: Timeout for a list of files in seconds.
_TIMEOUT = 60.0
#: Folder of incomplete files from the hub.
_PARTS = '.download'
_CORRUPTED = 'Dataset found, but corrupted.'


@dataclass(frozen=True)
class Archive:
    """Published archive.

    Args:
        source: URL, or the dataset on Hugging Face with the archive, such as
            ``'IGNF/TreeSatAI-Time-Series'``.
        filename: File name on disk, and on Hugging Face.
        holds: Directory or file in the archive, or a pattern such as ``*.json``.
        digest: MD5 or SHA-256 if published, else None.
    """

    source: str
    filename: str
    holds: str
    digest: str | None = None


def obtain(archive: Archive, root: Path, download: bool = False, checksum: bool = False) -> bool:
    """Return whether the content of an archive is in *root*; *download* and unpack it if necessary.

    Downloads are always verified, an existing archive if *checksum*. Raise RuntimeError if it is damaged, and
    ConnectionError if it cannot be downloaded.
    """
    if any(root.glob(archive.holds)):
        return True
    path = root / archive.filename
    if not path.exists() and not download:
        return False
    if path.exists() and not checksum:
        pass
    elif '://' in archive.source:
        fetch(archive.source, path, archive.digest, checksum)
    else:
        pinned = {} if archive.digest is None else {archive.filename: archive.digest}
        download_files(archive.source, [archive.filename], root, checksum, pinned)
    extract_directory(path, archive.holds)
    return True


def fetch(url: str, path: Path, digest: str | None = None, checksum: bool = False) -> None:
    """Download a file with :func:`torchgeo.datasets.utils.download_url`, unless it exists.

    If several processes request the file, one downloads it and the others wait. *digest* is an MD5 (32 digits) or
    SHA-256 (64 digits); without it, a ``.zip`` must at least be a valid archive. *checksum* verifies an existing file,
    too.
    """
    expected: dict[str, Any] = {} if digest is None else {_ALGORITHMS[len(digest)]: digest}
    with _lock(path.parent):
        if path.exists():
            if checksum and not check_integrity(path, **expected):
                raise RuntimeError(f'{_CORRUPTED} {path} has not the {" ".join(*expected.items())}')
            return
        with scratch_folder(path) as folder:
            try:
                download_url(url, folder, path.name, **expected)
            except (OSError, ValueError, HTTPException) as error:
                raise ConnectionError(f'{url} cannot be downloaded ({error}), expected a file') from error
            except RuntimeError as error:
                digests = f', expected the {" ".join(*expected.items())}' * bool(expected)
                raise RuntimeError(f'Download corrupted: {url} ({error}){digests}') from error
            if path.suffix == '.zip' and not zipfile.is_zipfile(folder / path.name):
                raise RuntimeError(f'Download corrupted: {url} gave no zip archive')
            publish(folder / path.name, path)


def download_files(
    repository: str,
    patterns: Sequence[str],
    root: Path,
    checksum: bool = False,
    digests: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Download the files of a dataset on Hugging Face that match *patterns* and are missing in *root*.

    Each file is compared with the digest that the hub lists for it, and that with *digests*; existing ones if
    *checksum*. An interrupted download is continued by the next call.
    """
    revision, listed = _list(repository)
    for name, digest in digests.items():
        if listed.get(name, digest) != digest:
            raise RuntimeError(f'Download corrupted: {repository} lists {name} as {listed[name]}, expected {digest}')
    with _lock(root):
        for pattern in patterns:
            chosen = [name for name in listed if fnmatchcase(name, pattern)]
            if not chosen:
                raise ConnectionError(f'{repository} on Hugging Face has no file {pattern}, expected at least one')
            job = partial(_obtain_file, repository, revision, listed, root, checksum)
            thread_map(job, chosen, max_workers=_THREADS, desc=pattern, unit=' files', disable=None, leave=False)
        shutil.rmtree(root / _PARTS, ignore_errors=True)


def _obtain_file(
    repository: str, revision: str | None, listed: Mapping[str, str], root: Path, checksum: bool, name: str
) -> None:
    path = root / name
    if path.exists():
        if checksum and not _matches(path, listed[name]):
            raise RuntimeError(f'{_CORRUPTED} {path} has not the digest {listed[name]} of {repository}')
        return
    place: Any = {'repo_type': 'dataset', 'revision': revision, 'local_dir': root / _PARTS, 'endpoint': ENDPOINT}
    try:
        part = Path(hf_hub_download(repository, name, **place))
    except Exception as error:  # errors of huggingface_hub differ between versions
        raise ConnectionError(f'{name} of {repository} cannot be downloaded ({error})') from error
    if not _matches(part, listed[name]):
        part.unlink()
        raise RuntimeError(f'Download corrupted: {name} of {repository} has not the digest {listed[name]}')
    path.parent.mkdir(parents=True, exist_ok=True)
    publish(part, path)


def _list(repository: str) -> tuple[str | None, dict[str, str]]:
    try:
        info = HfApi(endpoint=ENDPOINT).dataset_info(repository, files_metadata=True, timeout=_TIMEOUT)
        return info.sha, {file.rfilename: _digest(file) for file in info.siblings or ()}
    except Exception as error:
        raise ConnectionError(
            f'The files of {repository} on Hugging Face cannot be listed ({type(error).__name__}: {error}), '
            'expected names inside the dataset with their digests'
        ) from error


def _digest(file: RepoSibling) -> str:
    """Return the SHA-256 of a large file, or the git blob id of a small one."""
    parts = PurePosixPath(file.rfilename).parts
    if not parts or parts[0] == '/' or '..' in parts:
        raise ValueError(f'name {file.rfilename!r}')
    digest = file.lfs['sha256'] if file.lfs else file.blob_id
    if not isinstance(digest, str) or not re.fullmatch(r'[0-9a-f]{40}|[0-9a-f]{64}', digest):
        raise ValueError(f'digest {digest!r} of {file.rfilename}')
    return digest


def _matches(path: Path, digest: str) -> bool:
    """Return whether a file has a SHA-256 or git blob id (SHA-1 of size and content)."""
    header = f'blob {path.stat().st_size}\0'.encode()
    made: Any = hashlib.sha256 if len(digest) == 64 else partial(hashlib.sha1, header, usedforsecurity=False)
    with path.open('rb') as stream:
        return hashlib.file_digest(stream, made).hexdigest() == digest


@contextmanager
def _lock(root: Path) -> Iterator[None]:
    """Lock a directory, so that one process at a time downloads into it."""
    root.mkdir(parents=True, exist_ok=True)
    lock = root / '.download.lock'
    with FileLock(lock):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
