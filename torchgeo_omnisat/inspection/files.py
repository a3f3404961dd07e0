# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Files of a folder, and the patterns that select some of them."""

import fnmatch
import os
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

#: Maximum number of files of a folder.
MOST_FILES = 200_000
#: Extensions of rasters.
RASTERS = ('.tif', '.tiff', '.jp2', '.vrt', '.img')
#: Dates in file names: settings of RasterTimeSeries, in the order in which they are tried. The first needs none.
DATES: tuple[dict[str, str], ...] = (
    {},
    {'filename_regex': r'.*?(?<!\d)(?P<date>(?:19|20)\d\d-\d\d-\d\d)(?!\d)', 'date_format': '%Y-%m-%d'},
    {'filename_regex': r'.*?(?<!\d)(?P<date>(?:19|20)\d\d_\d\d_\d\d)(?!\d)', 'date_format': '%Y_%m_%d'},
    {'filename_regex': r'.*?(?<!\d)(?P<date>(?:19|20)\d\d(?:0[1-9]|1[0-2]))(?!\d)', 'date_format': '%Y%m'},
    {'filename_regex': r'.*?(?<!\d)(?P<date>(?:19|20)\d\d-(?:0[1-9]|1[0-2]))(?!\d)', 'date_format': '%Y-%m'},
    {'filename_regex': r'.*?(?<!\d)(?P<date>(?:19|20)\d\d_(?:0[1-9]|1[0-2]))(?!\d)', 'date_format': '%Y_%m'},
    {'filename_regex': r'.*?(?<!\d)(?P<date>(?:19|20)\d\d[0-3]\d\d)(?!\d)', 'date_format': '%Y%j'},
    {'filename_regex': r'.*?(?<!\d)(?P<date>(?:19|20)\d\d)(?!\d)', 'date_format': '%Y'},
)


def list_files(folder: Path) -> list[str]:
    """Return the files of a folder as sorted relative paths with ``/``, without hidden ones.

    Links to folders are followed once.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If it is a file, or has more than :data:`MOST_FILES` files.
    """
    if folder.is_file():
        raise ValueError(f'folder is {str(folder)!r}, a file, expected a folder of rasters; unpack an archive first')
    if not folder.is_dir():
        raise FileNotFoundError(f'folder is {str(folder)!r}, which does not exist, expected a folder of rasters')
    found, seen = list[str](), set[str]()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith('.'))
        below = Path(place).relative_to(folder)
        found += [(below / name).as_posix() for name in names if not name.startswith('.')]
        if len(found) > MOST_FILES:
            raise ValueError(f'{folder} has more than {MOST_FILES} files, expected the folder of one project')
    return sorted(found)


def common_folder(files: Iterable[str]) -> str:
    """Return the deepest folder of all files, ``'.'`` for the top."""
    parents = [PurePosixPath(file).parent.parts for file in files]
    return '/'.join(_common_start(parents)) or '.'


def select(files: Sequence[str], every: Collection[str]) -> dict[str, Any]:
    """Return ``path`` and, if necessary, ``filename_glob`` that select *files* among *every* file of the folder."""
    path = common_folder(files)
    if len(files) == 1:
        return {'path': files[0]}
    names = [PurePosixPath(file).name for file in files]
    ending = PurePosixPath(names[0]).suffix
    prefix = re.sub(r'\d+$', '', _common_start(names))
    suffix = re.sub(r'^\d+', '', _common_start([name[::-1] for name in names])[::-1])
    patterns = [f'*{ending}', f'{prefix}*{ending}', f'*{suffix}', f'{prefix}*{suffix}', _alike(names)]
    folders = sorted({str(PurePosixPath(file).parent) for file in files})
    for chosen in (path, folders) if len(folders) > 1 and len(folders) <= 20 else (path,):
        tops = [chosen] if isinstance(chosen, str) else chosen
        inside = {file for file in every if any(top == '.' or file.startswith(f'{top}/') for top in tops)}
        for pattern in patterns:
            if {file for file in inside if fnmatch.fnmatchcase(PurePosixPath(file).name, pattern)} == set(files):
                return {'path': chosen} | ({} if pattern == '*.tif' else {'filename_glob': pattern})
    return {'path': list(files)}


def _common_start(several: Sequence[Any]) -> Any:
    """Return the longest common start of texts, or of tuples."""
    low, high = min(several), max(several)
    same = next(
        (index for index, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high))
    )
    return low[:same]


def _alike(names: Sequence[str]) -> str:
    """Return a pattern of the numbers and texts between numbers that all names share."""
    tokens = [re.split(r'(\d+)', name) for name in names]
    places = range(min(map(len, tokens)))
    shared = [tokens[0][place] if len({own[place] for own in tokens}) == 1 else '*' for place in places]
    rest = '*' * (len({len(own) for own in tokens}) > 1)
    return re.sub(r'\*+', '*', ''.join(shared) + rest + PurePosixPath(names[0]).suffix * (shared[-1] == '*'))
