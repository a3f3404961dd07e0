# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Hub: the loose files of a dataset on Hugging Face, each checked against what the hub states of it."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.error import URLError
from urllib.parse import quote, urljoin
from urllib.request import Request, urlopen

from tqdm import tqdm

from .download import TIMEOUT, fetch

#: Where the hub is.
ENDPOINT = 'https://huggingface.co'


@dataclass(frozen=True)
class Entry:
    """A file of a repository.

    Args:
        path: Where it is in there.
        digest: The SHA-256 of a large file, else what git calls it.
    """

    path: str
    digest: str


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
