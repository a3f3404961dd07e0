# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Findings: what is wrong with a dataset as a whole, from the summary of its tiles."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..datamodules.plausibility import implausible
from ..datasets.classes import UnknownCodesError
from ..datasets.geo.parts import unlike_files
from ..datasets.integrity import Problem, below
from .values import SplitValues, joined

#: Given the datamodule and the summary of each split that was read, yields what is found.
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
    """Yield the raster files whose bands are not those of the first, whether or not a tile lies there."""
    if splits and hasattr(datamodule, 'labelled'):
        root = Path(datamodule.root)
        for path, (name, reason) in unlike_files(datamodule.labelled).items():
            yield Problem('', name, below(Path(path), root), 'shape', reason)


def find_missing_labels(datamodule: Any, splits: Mapping[str, SplitValues]) -> Iterator[Problem]:
    """Yield codes that stand for no class, together, and what `fit` says about classes without a pixel."""
    unknown: list[UnknownCodesError] = []
    for split, values in splits.items():
        counts = values.counts
        if getattr(datamodule, 'mask', None) is not None:
            try:
                counts = datamodule.label_counts(split)
            except UnknownCodesError as error:
                unknown.append(error)
                continue
            except (ValueError, OSError):
                continue  # a file that cannot be read, which is reported with its tile
        elif not values.counted or (datamodule.published and (values.counted == 'tiles' or counts.labelled)):
            continue  # published splits may lack a rare class, which the table of classes shows
        for sentence in counts.warnings(split, datamodule.ignore_index):
            fails = split == 'train' and not counts.labelled
            yield Problem('', 'mask', '', 'label', sentence, warning=not fails)
    if unknown:
        yield Problem('', 'mask', '', 'label', str(UnknownCodesError.joined(unknown)))


#: What is looked for; a new finder is added here.
FINDERS: tuple[Finder, ...] = (find_implausible_values, find_unlike_files, find_missing_labels)
