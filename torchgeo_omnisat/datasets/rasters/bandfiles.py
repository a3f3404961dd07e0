# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Detection of images whose bands are in separate files, by the file names."""

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import shapely
from rasterio.transform import array_bounds

from ..io.headers import Header

#: Names of bands, indices and masks in file names, in the order in which they are stacked.
# fmt: off
_WORDS = (
    'coastal', 'aerosol', 'blue', 'green', 'yellow', 'red', 'rededge', 'nir', 'swir', 'tir', 'pan', 'vv', 'vh',
    'hh', 'hv', 'dem', 'dsm', 'dtm', 'ndsm', 'chm', 'elevation', 'height', 'slope', 'aspect', 'ndvi', 'evi',
    'ndwi', 'ndmi', 'nbr', 'savi', 'lai', 'aot', 'wvp', 'scl', 'qa', 'bqa', 'fmask', 'cld', 'snw', 'udm', 'udm2',
    'cloud', 'clouds', 'mask',
)
# fmt: on
_BAND = re.compile(rf'(?<![a-z])(?:b(?:and)?\d{{1,2}}a?|(?:{"|".join(_WORDS)})\d?)$', re.IGNORECASE)
_SPLIT = re.compile(r'[\\/_\-. ]+')
_RESOLUTION = re.compile(r'\d+(?:cm|m)$', re.IGNORECASE)

#: Minimum intersection over union of the bounds of files of one image.
ALIKE = 0.9
#: Files of each image by band, keyed by the file of its first band.
Scenes = dict[str, dict[str, str]]


def band_files(name: str, headers: Sequence[Header], times: Sequence[Any], skip_alpha: bool) -> Scenes:
    """Group files that are the bands of one image: same date and bounds, names that differ in the band.

    Return the files of each image by band; empty if each file is an image. Raise ValueError if files are bands of an
    image, but their names do not state which.
    """
    if any(len(header.numbers(skip_alpha)) > 1 for header in headers):
        return {}
    groups = _groups(headers, times)
    root = os.path.commonpath([os.path.dirname(header.path) for header in headers])
    split = {header.path: _tokens(os.path.relpath(header.path, root)) for header in headers}
    several = [sorted(paths) for paths in groups if len(paths) > 1]
    places = {place for paths in several for place in _differing([split[path] for path in paths])}
    words = {split[path][place] for paths in several for path in paths for place in places if place < len(split[path])}
    if not any(_BAND.search(word) for word in words) and not _repeated(several, split, places):
        return {}
    if len(places) == 1 and all(map(_BAND.search, words)):
        scenes = [_scene(sorted(paths), split, *places) for paths in groups]
        bands = sorted({band for scene in scenes for band in scene}, key=_order)
        complete = [scene for scene in scenes if len(scene) == len(bands)]
        if len(complete) == len(scenes) and sum(map(len, scenes)) == len(headers):
            return {scene[bands[0]]: {band: scene[band] for band in bands} for scene in scenes}
        partial = next((scene for scene in scenes if len(scene) < len(bands)), None)
        if partial:
            raise ValueError(
                f'{next(iter(partial.values()))} has no matching files of the bands '
                f'{[band for band in bands if band not in partial]} of {name!r}, expected one of each of {bands}'
            )
    raise ValueError(
        f'{several[0][0]} and {os.path.basename(several[0][1])} have the same date and bounds: if they are '
        f'bands of one image, set separate_files: true, all_bands, and a filename_regex with the groups date and band '
        f'for {name!r}; if one is a mask, exclude it by filename_glob; separate_files: false averages them'
    )


def band_of(path: str) -> str | None:
    """Return the band, index or mask that a file name states; None if there is none."""
    tokens = reversed(_tokens(os.path.basename(path)))
    return next((match.group() for match in map(_BAND.search, tokens) if match), None)


def _groups(headers: Sequence[Header], times: Sequence[Any]) -> list[list[str]]:
    """Group files with the same date and nearly the same bounds."""
    moments = defaultdict(list)
    for header, time in zip(headers, times, strict=True):
        moments[time, str(header.crs)].append(header)
    groups = []
    for found in moments.values():
        boxes = [shapely.box(*array_bounds(header.height, header.width, header.transform)) for header in found]
        one, other = shapely.STRtree(boxes).query(boxes, predicate='intersects')
        ground = np.array(boxes)
        shared = shapely.area(shapely.intersection(ground[one], ground[other]))
        same = shared > ALIKE * (shapely.area(ground[one]) + shapely.area(ground[other]) - shared)
        first = np.full(len(found), len(found))
        np.minimum.at(first, other[same], one[same])
        groups += [[found[place].path for place in np.flatnonzero(first == number)] for number in np.unique(first)]
    return groups


def _tokens(path: str) -> list[str]:
    """Return the words of a path without pixel sizes."""
    text = re.sub(r'(?i)(?<![a-z])(b|band)[-_ ](?=\d{1,2}a?(?![\da-z]))', r'\1', os.path.splitext(path)[0])
    return [token for token in _SPLIT.split(text) if token and not _RESOLUTION.match(token)]


def _differing(names: Sequence[Sequence[str]]) -> list[int]:
    """Return the positions at which names differ, including those that only some names have."""
    least = min(map(len, names))
    longer = range(least, max(map(len, names)))
    return [place for place in range(least) if len({name[place] for name in names}) > 1] + list(longer)


def _repeated(several: Sequence[Sequence[str]], split: dict[str, list[str]], places: set[int]) -> bool:
    """Return whether file names differ in the same words on several dates, as for bands."""
    if len(several) < 2 or len(places) != 1:
        return False
    place = next(iter(places))
    words = [{tuple(split[path][place : place + 1]) for path in paths} for paths in several]
    return all(of_day == words[0] for of_day in words)


def _scene(paths: Sequence[str], split: dict[str, list[str]], place: int) -> dict[str, str]:
    found = {}
    for path in paths:
        match = _BAND.search(split[path][place]) if place < len(split[path]) else None
        if match:
            found[match.group()] = path
    return found


def _order(band: str) -> tuple[Any, ...]:
    word, number, rest = re.fullmatch(r'(\D*)(\d*)(\D*)', band).groups()  # type: ignore[union-attr]
    return (_WORDS.index(word.lower()) if word.lower() in _WORDS else -1, word, int(number or 0), rest)
