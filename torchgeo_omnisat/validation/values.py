# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Summary of the pixels, acquisition dates and labels of tiles, with one tile in memory at a time."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torchgeo.datasets.utils import Sample

from ..datamodules.common.plausibility import BandSummary
from ..datamodules.common.statistics import Moments
from ..datasets.common.labelcounts import LabelCounts
from ..modality import Modality


class ModalityValues:
    """Running summary of one modality: valid pixels by band, acquisition dates and coverage."""

    def __init__(self, bands: int) -> None:
        self.moments = Moments(bands)
        self.low: NDArray[np.float64] = np.full(bands, np.inf)
        self.high: NDArray[np.float64] = np.full(bands, -np.inf)
        #: Valid pixels of each band that are 0.
        self.zeros: NDArray[np.int64] = np.zeros(bands, np.int64)
        #: Pixels of one band on all dates, valid or not.
        self.pixels = 0
        #: Number of valid dates of each tile that has the modality.
        self.dates: list[int] = []
        #: Acquisition dates of all tiles in days since 1970-01-01.
        self.days: set[int] = set()

    def add(self, sample: Sample, modality: Modality) -> None:
        """Add the images of a tile, if it has any."""
        if modality.image_key not in sample:
            return
        image, valid = sample[modality.image_key], sample[modality.valid_key]
        frames = image.reshape(-1, *image.shape[-3:])
        self.pixels += len(frames) * image.shape[-2] * image.shape[-1]
        if not valid.any():
            return
        self.dates.append(int(valid.sum()))
        self._add_frames(frames[valid])
        self.days |= set(sample[modality.dates_key][valid].tolist()) - {0}

    def add_mask(self, mask: Tensor) -> None:
        """Add a mask ``(H, W)`` of continuous values, NaN where they are unknown, as the only band."""
        self.pixels += mask.numel()
        self._add_frames(mask[None, None].float())

    def _add_frames(self, frames: Tensor) -> None:
        self.moments.add(frames)
        values = frames.movedim(1, 0).flatten(1).numpy()
        finite = np.isfinite(values)
        self.low = np.minimum(self.low, np.min(values, 1, where=finite, initial=np.inf))
        self.high = np.maximum(self.high, np.max(values, 1, where=finite, initial=-np.inf))
        self.zeros += (values == 0).sum(1)

    def merge(self, other: 'ModalityValues') -> None:
        """Add another summary."""
        self.moments.merge(other.moments)
        self.low, self.high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        self.zeros += other.zeros
        self.pixels += other.pixels
        self.dates += other.dates
        self.days |= other.days

    def summaries(self) -> list[BandSummary]:
        """Return a summary of each band; NaN where it has no valid pixel."""
        count = self.moments.count
        found = []
        for band, pixels in enumerate(count.tolist()):
            low, high = float(self.low[band]), float(self.high[band])
            mean, std = float(self.moments.mean[band]), math.sqrt(self.moments.squares[band] / max(1, pixels))
            numbers = (low, mean, high, std) if pixels else (math.nan,) * 4
            zero = float(self.zeros[band]) / max(1, pixels)
            found.append(BandSummary(*numbers, valid=pixels / max(1, self.pixels), zero=zero))
        return found


@dataclass
class SplitValues:
    """Summary of the tiles of a split.

    Args:
        modalities: The modalities, by name.
        labels: Names of the classes.
        ignore_index: Label to ignore.
        label_names: Names of the classes of a tile label, in its order.
        target_unit: Unit of continuous labels; None if it is unknown.
    """

    modalities: dict[str, Modality]
    labels: Sequence[str] = ()
    ignore_index: int | None = None
    label_names: Sequence[str] = ()
    target_unit: str | None = None
    values: dict[str, ModalityValues] = field(init=False)
    counts: LabelCounts = field(init=False)
    #: Continuous labels.
    target: ModalityValues = field(init=False)
    #: Tiles that were read.
    tiles: int = 0
    #: Tiles with at least one label.
    labelled_tiles: int = 0
    #: Unit of the counts, ``'pixels'`` or ``'tiles'``, or ``'values'`` for continuous labels; empty without labels.
    counted: str = ''

    def __post_init__(self) -> None:
        self.values = {name: ModalityValues(len(modality.bands)) for name, modality in self.modalities.items()}
        self.counts = LabelCounts.none(self.labels, self.ignore_index)
        self.target = ModalityValues(1)

    def observe(self, name: str, found: Any) -> None:
        """Add a part of a tile: image, dates and valid of the modality *name*, or the mask or label."""
        if name in self.values:
            self.values[name].add(found, self.modalities[name])
        elif name == 'mask' and isinstance(found, Tensor) and found.is_floating_point():
            self.target.add_mask(found)
            self.labelled_tiles += bool(found.isfinite().any())
            self.counted = 'values'
        elif name in ('mask', 'label') and isinstance(found, Tensor) and self.labels:
            if name == 'mask':
                self.counts.add_mask(found, self.labels, self.ignore_index)
            else:
                self.counts.add_label(found, self.label_names)
            self.labelled_tiles += self.counts.labelled > 0
            self.counted = 'pixels' if name == 'mask' else 'tiles'

    def merge(self, other: 'SplitValues') -> None:
        """Add another summary."""
        self.tiles += other.tiles
        self.labelled_tiles += other.labelled_tiles
        self.counted = self.counted or other.counted
        for name, values in self.values.items():
            values.merge(other.values[name])
        self.target.merge(other.target)
        add_counts(self.counts, other.counts)


def add_counts(counts: LabelCounts, other: LabelCounts) -> None:
    """Add the labels of other tiles to *counts*."""
    for name in counts.pixels:
        counts.pixels[name] += other.pixels[name]
        counts.tiles[name] += other.tiles[name]
    counts.total += other.total
    counts.total_tiles += other.total_tiles
    counts.ignored += other.ignored


def joined(splits: Mapping[str, SplitValues]) -> SplitValues:
    """Return the summary of all splits together, at least one."""
    first = next(iter(splits.values()))
    every = SplitValues(first.modalities, first.labels, first.ignore_index, first.label_names, first.target_unit)
    for values in splits.values():
        every.merge(values)
    return every


def summarize(splits: Mapping[str, SplitValues]) -> dict[str, list[dict[str, Any]]]:
    """Return the summary of all splits in plain types, rows by table; empty if there is no split.

    ``modalities`` has dates and coverage; ``bands`` values of valid pixels, also of continuous labels; ``splits`` and
    ``classes`` labels. Unknown values are None.
    """
    if not splits:
        return {}
    every = joined(splits)
    return {
        'modalities': [_coverage(modality, every) for modality in every.modalities.values()],
        'bands': [row for modality in every.modalities.values() for row in _bands(modality, every)] + _target(every),
        'splits': [_labelled(split, values) for split, values in splits.items() if every.counted],
        'classes': [row for split, values in splits.items() if every.counted for row in _classes(split, values)],
    }


def _coverage(modality: Modality, every: SplitValues) -> dict[str, Any]:
    values = every.values[modality.name]
    days = [str(np.datetime64(day, 'D')) for day in (min(values.days), max(values.days))] if values.days else [None] * 2
    return {
        'modality': modality.name,
        'kind': modality.kind,
        'unit': modality.unit,
        'gsd': modality.gsd,
        'temporal': modality.temporal,
        'tiles': len(values.dates),
        'of': every.tiles,
        'dates': len(values.days),
        'dates_per_tile': statistics.median(values.dates) if values.dates else None,
        'first': days[0],
        'last': days[1],
    }


def _bands(modality: Modality, every: SplitValues) -> list[dict[str, Any]]:
    summaries = every.values[modality.name].summaries()
    return [
        {'modality': modality.name, 'band': band, 'unit': modality.unit} | _numbers(summary)
        for band, summary in zip(modality.bands, summaries, strict=True)
    ]


def _target(every: SplitValues) -> list[dict[str, Any]]:
    if every.counted != 'values':
        return []
    return [{'modality': 'mask', 'band': 'value', 'unit': every.target_unit} | _numbers(every.target.summaries()[0])]


def _numbers(summary: BandSummary) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in summary._asdict().items()}


def _labelled(split: str, values: SplitValues) -> dict[str, Any]:
    counts, target = values.counts, values.target
    is_continuous = values.counted == 'values'
    return {
        'split': split,
        'counted': values.counted,
        'tiles': values.tiles,
        'labelled_tiles': values.labelled_tiles,
        'labelled': int(target.moments.count[0]) if is_continuous else counts.labelled,
        'of': target.pixels if is_continuous else counts.total,
    }


def _classes(split: str, values: SplitValues) -> list[dict[str, Any]]:
    counts = values.counts
    total = counts.labelled if values.counted == 'pixels' else values.tiles
    return [
        {'split': split, 'class': name, 'tiles': counts.tiles[name], 'pixels': pixels, 'share': pixels / max(1, total)}
        for name, pixels in counts.pixels.items()
    ]
