# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Findings: warnings about a whole dataset, from the summary of its tiles."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..datamodules.plausibility import implausible
from ..datasets.integrity import Problem
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


#: What is looked for; a new finder is added here.
WARNINGS: tuple[Finder, ...] = (find_implausible_values,)
