# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Statistics: mean and deviation of every band, measured once and kept."""

import contextlib
import hashlib
import json
import os
import uuid
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Mean and standard deviation, one number a band.
Bands = tuple[Tensor, Tensor]


class Moments:
    """Mean and deviation of bands over any number of images, one image in memory at a time.

    Images join by Chan's update, in float64, so a mean that is large beside the
    deviation costs no digits.
    """

    def __init__(self, bands: int) -> None:
        """Start from nothing.

        Args:
            bands: Number of bands.
        """
        self.count: NDArray[np.float64] = np.zeros(bands)
        self.mean: NDArray[np.float64] = np.zeros(bands)
        self.squares: NDArray[np.float64] = np.zeros(bands)

    def add(self, image: Tensor) -> None:
        """Let the finite pixels of images ``(..., C, H, W)`` join, frame by frame."""
        for frame in image.reshape(-1, *image.shape[-3:]).numpy():
            values = frame.reshape(len(frame), -1).astype(np.float64)
            finite = np.isfinite(values)
            count = finite.sum(1)
            mean = np.where(finite, values, 0).sum(1) / np.maximum(count, 1)
            squares = np.where(finite, values - mean[:, None], 0)
            total = self.count + count
            share = count / np.maximum(total, 1)
            step = mean - self.mean
            self.squares += (squares**2).sum(1) + step**2 * self.count * share
            self.mean += step * share
            self.count = total

    def as_dict(self) -> dict[str, list[float]]:
        """Mean and deviation as in PASTIS's NORM files; empty lists if a band has no pixel."""
        if not self.count.all():
            return {'mean': [], 'std': []}
        return {'mean': self.mean.tolist(), 'std': np.sqrt(self.squares / self.count).tolist()}


def read_statistics(path: Path, key: str, bands: int) -> Bands:
    """One entry of a file such as ``{"Fold_1": {"mean": [...], "std": [...]}}``.

    Args:
        path: The JSON file.
        key: The entry.
        bands: How many numbers each list is to hold.

    Returns:
        Mean and standard deviation, float64.

    Raises:
        ValueError: If the file is not of that form.
    """
    expected = f"expected {key!r} with 'mean' and 'std' of {bands} finite numbers each"
    try:
        mean, std = as_bands(json.loads(path.read_text())[key])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{path} cannot be used ({type(error).__name__}: {error}), {expected}') from error
    for kind, value in (('mean', mean), ('std', std)):
        if tuple(value.shape) != (bands,) or not value.isfinite().all() or (kind == 'std' and value.lt(0).any()):
            raise ValueError(f'{kind} of {key!r} in {path} is {value.tolist()}, {expected}')
    return mean, std


def as_bands(entry: Mapping[str, Any]) -> Bands:
    """The numbers of one entry as float64 tensors."""
    mean, std = (torch.tensor(entry[kind], dtype=torch.float64) for kind in ('mean', 'std'))
    return mean, std


def keep_statistics(
    root: Path, filename: str, counts: Mapping[str, int], measure: Callable[[str], Moments]
) -> dict[str, dict[str, Any]]:
    """Entries of a statistics file that is written where it is not there yet.

    The file lies in *root*, or, where that is read-only, in PyTorch's cache directory. It
    is written under a temporary name and renamed, so that processes which measure at the
    same time only do so twice.

    Args:
        root: The dataset.
        filename: Name of the file.
        counts: What is to be there: how many samples each entry is measured over. An entry
            measured over another number is measured again.
        measure: Measures one entry.

    Returns:
        Mean and std, lists which are empty if there was nothing to measure, by entry.
    """
    digest = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]
    places = [root / filename, Path(torch.hub.get_dir()) / 'torchgeo_omnisat' / digest / filename]
    kept = next((entries for place in places if (entries := _load(place, counts)).keys() >= counts.keys()), None)
    if kept is None:
        kept = _load(places[0], counts) | _load(places[1], counts)
        for key, count in counts.items():
            if key not in kept:
                kept[key] = {**measure(key).as_dict(), 'samples': count}
        _save(places, kept)
    return kept


def _load(path: Path, counts: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """Entries that still hold; what is damaged is as good as absent."""
    try:
        entries = json.loads(path.read_text())
        return {
            key: entry
            for key, entry in entries.items()
            if entry['samples'] == counts.get(key, entry['samples']) and len(entry['mean']) == len(entry['std'])
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _save(places: list[Path], entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Write to the first place that can be written."""
    for place in places:
        temporary = place.with_name(f'.{place.name}.{uuid.uuid4().hex}')
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(entries, indent=1))
            os.replace(temporary, place)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
        else:
            return
    warnings.warn(f'statistics could not be kept in any of {[str(p) for p in places]}', stacklevel=2)
