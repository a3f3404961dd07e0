# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Measuring: a datamodule that knows the mean and deviation of what it gives."""

from collections import Counter
from collections.abc import Collection, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from ..modality import Modality
from .excluding import ExcludingDataModule
from .statistics import (
    FILENAME,
    Bands,
    Entries,
    as_bands,
    changed,
    holds,
    load_statistics,
    measure,
    partial_of,
    save_statistics,
)


class MeasuringDataModule(ExcludingDataModule):
    """A datamodule that makes datasets of any split, and knows the statistics of the training split.

    They are what ``python -m torchgeo_omnisat stats`` measured, else what is published, else
    what is measured now over the valid dates and finite pixels of training samples, and kept
    beside the data (:mod:`torchgeo_omnisat.datamodules.statistics`).
    """

    dataset_class: Any
    #: What the dataset is made with.
    kwargs: dict[str, Any]
    num_workers: int
    #: At most so many training samples, spread evenly, are measured unasked; None for all.
    max_measured: int | None = 1000

    def selection(self, split: str) -> dict[str, Any]:
        """Arguments that ask the dataset for ``'train'``, ``'val'`` or ``'test'``."""
        return {'split': split}

    def make_dataset(self, split: str, **changes: Any) -> Any:
        """The dataset of ``'train'``, ``'val'`` or ``'test'``.

        Args:
            split: Which split.
            **changes: Arguments of the dataset that are to differ from the datamodule's.
        """
        return self.dataset_class(**{**self.kwargs, **self.selection(split), **self.exclusion(), **changes})

    def whole_series(self, names: Sequence[str] | None = None) -> dict[str, Any]:
        """Changes that make a dataset of all bands and dates, of some modalities or of those in use."""
        whole = {'bands': None, 'max_dates': None, 'date_range': None}
        chosen = {} if names is None else {'modalities': tuple(names)}
        return chosen | {name: value for name, value in whole.items() if name in self.kwargs}

    def official(self, dataset: Any, modality: Modality) -> Bands | None:
        """Published mean and deviation of all bands of a modality; None if there is none."""
        return None

    def groups(self, dataset: Any) -> list[str]:
        """The group of each sample: each is measured by itself, and their statistics are averaged."""
        return [dataset.split] * len(dataset)

    def measured_dataset(self, dataset: Any, names: Sequence[str]) -> Any:
        """What statistics of some modalities are measured on: the training split, all bands and dates."""
        return self.make_dataset('train', **self.whole_series(names))

    def measure(self) -> tuple[Any, Entries, Path | None]:
        """Measure every training sample in one pass, and keep what comes out for all that follow.

        A pass that was cut off is continued.

        Returns:
            The training split, mean and deviation of all its bands by modality and group, and
            the file that keeps them, None if none could be written.
        """
        train = self.make_dataset('train', **self.whole_series())
        about: dict[str, Any] = {
            'ids': train.ids,
            **{name: value for name, value in self.kwargs.items() if name != 'root'},
        }
        keep = partial_of(train.path)
        entries = measure(train, train.modalities, self.groups(train), None, self.num_workers, keep, about)
        return train, entries, save_statistics(train.path, entries)

    def statistics(self, dataset: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Mean and deviation of the training split, for every band of *dataset*.

        Args:
            dataset: Any split, which says where the files are and what bands are in use.

        Returns:
            Mean and standard deviation by modality.

        Raises:
            ValueError: If a file is not as described, or there is nothing to measure.
        """
        every, entries = dataset.all_modalities, load_statistics(dataset.path)
        numbers = {name: self.official(dataset, every[name]) for name in dataset.modalities}
        asked = [name for name, official in numbers.items() if official is None or name in entries]
        if asked:
            # Of one modality alone, samples that lack it would be left out.
            whole = getattr(dataset, 'missing', None) == 'allow'
            train = self.measured_dataset(dataset, list(dataset.modalities) if whole else asked)
            numbers |= self._measured(train, entries, [name for name in asked if numbers[name] is None])
        mean, std = {}, {}
        for name, modality in dataset.modalities.items():
            channels = [every[name].bands.index(band) for band in modality.bands]
            mean[name], std[name] = (number[channels].float() for number in numbers[name] or ())
        return mean, std

    def _measured(self, train: Any, entries: Entries, needed: Collection[str]) -> dict[str, Bands]:
        """Statistics of what was measured on a dataset; what is needed and was not is measured now."""
        groups = self.groups(train)
        sizes = Counter(groups)
        held = [name for name, m in train.modalities.items() if holds(entries, name, sizes, len(m.bands))]
        other = [name for name in train.modalities if name in entries and name not in held]
        stale = {name: how for name in held if (how := changed(train, entries, name, groups))}
        held = [name for name in held if name not in stale]
        for then, names in (
            ('they are measured anew', [name for name in other if name in needed]),
            ('what is published is taken', [name for name in other if name not in needed]),
        ):
            if names:
                rank_zero_info(
                    f'{FILENAME} of {train.path} knows {", ".join(names)} of other samples or settings than these '
                    f'{len(groups)} samples: {then}'
                )
        for name, how in stale.items():
            rank_zero_info(
                f'{FILENAME} of {train.path} is older than the files of {name}: {how}; '
                + ('they are measured anew' if name in needed else 'what is published is taken')
            )
        if lacking := [name for name in needed if name not in held]:
            if getattr(train, 'missing', None) == 'allow':
                part = copy(train)
                part.modalities = {name: train.modalities[name] for name in lacking}
            else:
                part = self.measured_dataset(train, lacking)
            measured = measure(part, part.modalities, groups, self.max_measured)
            save_statistics(train.path, measured)
            entries, held = {**entries, **measured}, [*held, *lacking]
        numbers = {}
        for name in held:
            bands = [as_bands(entries[name][group]) for group in sizes if entries[name][group]['mean']]
            if not bands:
                raise no_valid_pixel(name, len(groups), train.path)
            mean, std = torch.stack([torch.stack(group) for group in bands]).mean(0)
            numbers[name] = (mean, std)
        return numbers


def no_valid_pixel(name: str, samples: int, path: Path) -> ValueError:
    """Return the error of a modality that cannot be measured.

    Args:
        name: The modality.
        samples: How many training samples there are.
        path: Directory of the data.
    """
    return ValueError(
        f'{name!r} has not one valid image with a finite pixel in the {samples} training samples of {path}, expected '
        'some to measure its mean and standard deviation; leave it out of modalities'
    )
