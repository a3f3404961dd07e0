# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Check that the links in the folder of a dataset do not lead out of it."""

import os
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ...utils.reading import is_special

#: How to read the targets of links anyway.
_HINT = (
    'expected links to places in this folder. If you made the link, allow it: allow_outside=True for a dataset, '
    '--data.allow_outside true on the command line, or allow_outside: true in the settings of rasters or of the mask'
)


def refuse_outside(
    root: Path | str,
    names: Sequence[str] = ('*',),
    allow_outside: bool = False,
    within: Iterable[Path | str] = (),
) -> None:
    """Check that no symbolic link in a folder leads out of it, and that it has only files, folders and links.

    The data of a download could otherwise be any file of the computer. Hidden files and names that match none of
    *names* are ignored. Folders are listed once, and no file is opened. *root* may itself be a link; nothing is checked
    if it is not a local folder. Links may lead to the folders *within*, too.
    """
    if allow_outside or not os.path.isdir(root):
        return
    places: list[str] = []
    folders = [str(root)]
    while folders:
        folder = folders.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith('.'):
                    continue
                if folder == str(root) and not any(fnmatch(entry.name, name) for name in names):
                    continue
                if entry.is_symlink():
                    target = os.path.realpath(entry.path)
                    places = places or [os.path.realpath(place) for place in (root, *within)]
                    if not any(os.path.commonpath([place, target]) == place for place in places):
                        raise ValueError(f'{entry.path} is a link to {target}, outside of {root}, {_HINT}')
                elif entry.is_dir():
                    folders.append(entry.path)
                    continue
                if not entry.is_file(follow_symlinks=False) and is_special(entry.path):
                    raise ValueError(
                        f'{entry.path} cannot be read (it is not a regular file), expected files and folders'
                    )


def refuse_links(paths: os.PathLike[str] | str | Iterable[Any], allow_outside: bool) -> None:
    """Check that no symbolic link in the folders of a dataset leads out of all of them.

    Of files, folders and URLs, only folders are checked: a file that is named may be a link.
    """
    several = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    for path in map(str, several):
        refuse_outside(path, allow_outside=allow_outside, within=map(str, several))
