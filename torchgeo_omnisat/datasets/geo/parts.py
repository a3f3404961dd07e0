# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Expected files of a join, for the whole dataset and for each tile."""

from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torchgeo.datasets.utils import GeoSlice

from ...modality import Modality
from ...utils.cli.console import align
from ..common.integrity import Expected, Part
from ..io.fingerprint import State, state_of
from ..rasters.frames import days_of, is_remote, opened, scene_files
from ..rasters.georeference import crs_code
from .join import MultimodalGeoDataset, pixels


def parts(join: MultimodalGeoDataset, index: GeoSlice) -> Iterator[Part]:
    """Yield the files of each modality and of the labels that intersect a window, and how to read them.

    A modality may cover any fraction of a window, so its valid fraction is not checked.
    """
    x, y, t = join._disambiguate_slice(index)
    window, span = join.snap(x, y), (t.start, t.stop)
    for name, source in join.sources.items():
        grid = pixels(join.crs, window, source.modality.gsd)
        rows = source.rows(grid, span, prefer=not source.modality.temporal)
        yield Part(name, expected_files(source.dataset, rows), partial(source.read, grid, span), absent=rows.empty)
    if join.labels is not None:
        grid = pixels(join.crs, window, join.label_gsd)
        rows = join.labels.rows(grid, span, prefer=True)
        read = partial(join.labels.read, grid, span, join.ignore_index, strict=False)  # codes are checked by split
        yield Part('mask', expected_files(join.labels.dataset, rows), read, fault='label', absent=rows.empty)


def unlike_files(join: MultimodalGeoDataset) -> dict[str, tuple[str, str]]:
    """Return modality and error of the files whose bands differ from those of its first file, by path.

    Headers were read when the files were indexed, so no file is opened.
    """
    sources = {**join.sources, **({} if join.labels is None else {'mask': join.labels})}
    return {
        path: (name, source.dataset.unlike[path])
        for name, source in sources.items()
        for path in source.index.get('filepath', ())
        if path in getattr(source.dataset, 'unlike', ())
    }


def contents(join: MultimodalGeoDataset) -> str:
    """Return a table of the files, acquisition dates, GSD, CRS and bands of each modality."""
    rows = [(source.modality, source.index, crs_code(join.given[name].crs)) for name, source in join.sources.items()]
    return file_table(rows)


def file_table(sources: Sequence[tuple[Modality, Any, str]]) -> str:
    """Return a table of files, one row per modality."""
    rows = [('modality', 'files', 'days', 'from', 'to', 'm/pixel', 'CRS', 'bands')]
    for modality, index, crs in sources:
        days = np.unique(days_of(index)[days_of(index) > 0])
        first, last = ([str(pd.Timestamp(day, unit='D').date()) for day in days[[0, -1]]]) if len(days) else ('-', '-')
        gsd, bands = f'{modality.gsd:g}', ' '.join(modality.bands)
        files = index.filepath.nunique() if 'frame' in index else len(index)
        rows.append((modality.name, str(files), str(len(days)), first, last, gsd, crs, bands))
    return align(rows)


def expected_files(dataset: Any, rows: Any) -> tuple[Expected, ...]:
    """Return the local files of index rows. A file of all bands is expected to have as many as the first file."""
    scenes = [path for path in dict.fromkeys(rows.get('filepath', [])) if path and not is_remote(path)]
    together = not getattr(dataset, 'separate_files', True) and 'frame' not in dataset.index
    shape = (_bands_of(dataset.index.filepath.min()), None, None) if together and scenes else None
    unlike = getattr(dataset, 'unlike', scenes)  # other files have the requested bands, and possibly more, e.g. alpha
    return tuple(
        Expected(Path(path), shape if path in unlike else None)
        for scene in scenes
        for path in scene_files(dataset, scene)
    )


def _bands_of(path: str) -> int:
    return _bands(path, state_of(path))


@lru_cache(maxsize=1024)
def _bands(path: str, state: State | None) -> int:
    with opened(path) as source:
        return int(source.count)
