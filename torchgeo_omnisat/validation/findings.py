# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Problems of a dataset as a whole, from the summary of its tiles."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..datamodules.common.plausibility import implausible
from ..datasets.common.classes import UnknownCodesError
from ..datasets.common.integrity import Problem, below
from ..datasets.geo.parts import unlike_files
from .values import SplitValues, joined

#: Function that yields problems, given the datamodule and the summary of each split.
Finder = Callable[[Any, Mapping[str, SplitValues]], Iterator[Problem]]


def find_implausible_values(datamodule: Any, splits: Mapping[str, SplitValues]) -> Iterator[Problem]:
    """Yield a warning for values that do not fit the unit that a modality states."""
    if not splits:
        return
    every = joined(splits)
    for name, modality in every.modalities.items():
        if every.values[name].pixels:
            for sentence in implausible(modality, every.values[name].summaries()):
                yield Problem('', name, '', 'values', sentence, warning=True)


def find_unlike_files(datamodule: Any, splits: Mapping[str, SplitValues]) -> Iterator[Problem]:
    """Yield raster files whose bands differ from those of the first, also where there is no tile."""
    if splits and hasattr(datamodule, 'labelled'):
        root = Path(datamodule.root)
        for path, (name, reason) in unlike_files(datamodule.labelled).items():
            yield Problem('', name, below(Path(path), root), 'shape', reason)


def find_missing_labels(datamodule: Any, splits: Mapping[str, SplitValues]) -> Iterator[Problem]:
    """Yield unknown codes of all splits together, classes without pixels, and splits without any value."""
    unknown: list[UnknownCodesError] = []
    for split, values in splits.items():
        counts = values.counts
        if getattr(datamodule, 'continuous', False):
            if not values.labelled_tiles:
                sentence = f'no pixel of {split!r} has a value'
                yield Problem('', 'mask', '', 'label', sentence, warning=split != 'train')
            continue
        if getattr(datamodule, 'mask', None) is not None:
            try:
                counts = datamodule.label_counts(split)
            except UnknownCodesError as error:
                unknown.append(error)
                continue
            except (ValueError, OSError):
                continue  # an unreadable file is reported with its tile
        elif not values.counted or (datamodule.published and (values.counted == 'tiles' or counts.labelled)):
            continue  # published splits may lack a rare class, which the table of classes shows
        for sentence in counts.warnings(split, datamodule.ignore_index):
            fails = split == 'train' and not counts.labelled
            yield Problem('', 'mask', '', 'label', sentence, warning=not fails)
    if unknown:
        yield Problem('', 'mask', '', 'label', str(UnknownCodesError.joined(unknown)))


#: All finders; add new ones here.
FINDERS: tuple[Finder, ...] = (find_implausible_values, find_unlike_files, find_missing_labels)
