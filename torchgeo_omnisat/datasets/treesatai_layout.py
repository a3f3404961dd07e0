# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""The layout of TreeSatAI Time-Series: archives, files, bands, genera and splits."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rasterio.transform import Affine
from torchgeo.datasets import TreeSatAI

from ..modality import Modality
from .download import Archive
from .figures import S1_COMPOSITES, S2_COMPOSITES, Composite
from .files import read_json
from .series import S2_BANDS, S2_FACTS

REPOSITORY = 'IGNF/TreeSatAI-Time-Series'
#: Archives by the directory that they unpack to, with the SHA-256 that Hugging Face states of each.
ARCHIVES: dict[str, Archive] = {
    name: Archive(REPOSITORY, f'{name}.zip', name, digest)
    for name, digest in (
        ('labels', 'fb32a4be77c8fbbcd8bd1ad7f47c6fd17d2c0ecfaa6b23e6f4d3c856e54d52a5'),
        ('split', '9d24732c11cb048fd09ed0eabe111e9bbe299b78a4a710e4c9fd7d552244dbcd'),
        ('aerial', '158bfb707406c9ecf27e3df1b3838d9d3e014b4024fd54bd3a6f692d9938c01c'),
        ('sentinel-ts', '06648ae998ec185c39747a06a8957e311e8df854af8a1fa59329b6a2c7db48d7'),
    )
}
LABELS = 'labels/TreeSatBA_v9_60m_multi_labels.json'

#: Side of a plot in metres; the aerial images have two pixels more on every side.
EXTENT, MARGIN = 60.0, 2
#: xmin, ymin, xmax, ymax in metres.
type Bounds = tuple[float, float, float, float]
NOWHERE: Bounds = (float('nan'),) * 4
#: A genus counts where it covers more of the plot than this share.
THRESHOLD = 0.07


@dataclass(frozen=True)
class Series:
    """Where a series lies in a file.

    Args:
        prefix: What its data, masks and products begin with.
        date_field: Which part of a product's name, between underscores, is its date.
        radar: Whether it is linear power, to be read as dB.
    """

    prefix: str
    date_field: int
    radar: bool = False


SERIES = {'s2': Series('sen-2', 2), 's1a': Series('sen-1-asc', 4, True), 's1d': Series('sen-1-des', 4, True)}
#: Every modality with all its bands.
MODALITIES: dict[str, Modality] = {
    's2': Modality('s2', S2_BANDS, 10.0, True, **S2_FACTS),
    's1a': Modality('s1a', ('VV', 'VH'), 10.0, True, 'radar', 'db'),
    's1d': Modality('s1d', ('VV', 'VH'), 10.0, True, 'radar', 'db'),
    'aerial': Modality('aerial', ('NIR', 'G', 'B', 'R'), 0.2, False, 'optical', 'dn'),
}
COMPOSITES: dict[str, tuple[Composite, ...]] = {
    's2': S2_COMPOSITES,
    's1a': S1_COMPOSITES,
    's1d': S1_COMPOSITES,
    'aerial': (
        Composite('true colour', ('R', 'G', 'B'), alike=True),
        Composite('infrared', ('NIR',)),
    ),
}
#: The genera, in the order of the label.
GENERA: tuple[str, ...] = TreeSatAI.classes


def read_labels(path: Path, strict: bool = True) -> dict[str, dict[str, float]]:
    """What share of each plot the genera cover, by the name of the plot.

    Args:
        path: The JSON file.
        strict: Whether to refuse what is no share of a genus.

    Returns:
        Shares from 0 to 1 by genus, by name without ``.tif``.

    Raises:
        ValueError: If the file is not of that form, or names an unknown genus.
    """
    expected = '{"<name>.tif": [["Betula", 0.72], ...]}'
    try:
        plots = {
            name.removesuffix('.tif'): {str(genus): float(share) for genus, share in shares}
            for name, shares in read_json(path, expected).items()
        }
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f'{path} cannot be read ({error}), expected {expected}') from error
    for name in plots if strict else ():
        check_shares(path, plots, name)
    return plots


def check_shares(path: Path, plots: Mapping[str, Mapping[str, float]], name: str) -> None:
    """Refuse a plot whose label is not there, or is no share of a genus.

    Args:
        path: The file that the plots are from, for an error.
        plots: Shares by genus, by name.
        name: Which plot.

    Raises:
        FileNotFoundError: If it has no label.
        ValueError: If its label is wrong.
    """
    expected = f'expected [["<genus>", <share from 0 to 1>], ...] of {list(GENERA)}'
    if name not in plots:
        raise FileNotFoundError(f'{path} has no entry for {name!r}, {expected}')
    wrong = {genus: share for genus, share in plots[name].items() if genus not in GENERA or not 0 <= share <= 1.001}
    if wrong:
        raise ValueError(f'{name!r} in {path} has {wrong}, {expected}')


def listed(root: Path) -> set[str]:
    """Names in the published lists of all splits, without ``.tif``."""
    paths = [*root.glob('*_filenames.lst'), *root.glob('split/*_filenames.lst')]
    return {Path(line.strip()).name.removesuffix('.tif') for path in paths for line in path.read_text().splitlines()}


def read_split(root: Path, split: str) -> list[str]:
    """Names of the plots of a split, from the published lists.

    Where there is no list for validation (the first release, on Zenodo, has none), a tenth of
    the training list is held out: the names whose SHA-256 comes first.

    Args:
        root: The dataset; the lists lie in it or in its directory ``split``.
        split: ``'train'``, ``'val'`` or ``'test'``.

    Returns:
        The names without ``.tif``, in the order of the list.

    Raises:
        FileNotFoundError: If the list is not there.
        ValueError: If it is empty.
    """
    lists = {}
    for kind in ('train', 'val', 'test'):
        places = [root / 'split' / f'{kind}_filenames.lst', root / f'{kind}_filenames.lst']
        found = next((place for place in places if place.is_file()), None)
        if found is not None:
            lines = (Path(line.strip()).name.removesuffix('.tif') for line in found.read_text().splitlines())
            lists[kind] = [line for line in lines if line]
        elif kind == split and not (kind == 'val' and 'train' in lists):
            raise FileNotFoundError(
                f'{places[0]} does not exist, expected the list of files of split {split!r}; '
                'split=None takes everything that is there'
            )
    if 'train' in lists and 'val' not in lists:
        ranked = sorted(lists['train'], key=lambda name: hashlib.sha256(name.encode()).digest())
        lists['val'] = ranked[: max(1, len(ranked) // 10)]
    names = lists[split]
    if split == 'train':
        held_out = set(lists['val'])
        names = [name for name in names if name not in held_out]
    if not names:
        raise ValueError(f'split {split!r} of {root} is empty, expected at least one file in its list')
    return names


def around(transform: Affine, shape: Sequence[int]) -> Bounds:
    """The plot in the middle of an image of so many rows and columns."""
    height, width = shape[-2:]
    x = transform.c + transform.a * width / 2 + transform.b * height / 2
    y = transform.f + transform.d * width / 2 + transform.e * height / 2
    return x - EXTENT / 2, y - EXTENT / 2, x + EXTENT / 2, y + EXTENT / 2


def find_series(directory: Path) -> dict[str, Path]:
    """Files of series by the name of their plot.

    Args:
        directory: Where files ``<name>_<year>.h5`` lie.

    Raises:
        ValueError: If a plot has files of two years.
    """
    found: dict[str, Path] = {}
    for path in sorted(directory.glob('*.h5')):
        match = re.fullmatch(r'(.+)_\d{4}', path.stem)
        name = match[1] if match else path.stem
        if name in found:
            raise ValueError(f'{path} and {found[name]} are of one plot, expected one file a plot')
        found[name] = path
    return found
