# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Statistics: mean and standard deviation of every band, measured in one pass and kept.

An entry keeps the fingerprint of the files that were measured (:mod:`torchgeo_omnisat.datasets.io.fingerprint`) and
is measured anew when one of them has another size or modification time. The status of each measured file is
asked for once whenever statistics are wanted. Entries without a fingerprint, such as ones written by hand, hold
whatever the files are.
"""

import contextlib
import hashlib
import json
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchgeo.datasets.utils import Sample
from tqdm import tqdm

from ..datasets.io.fingerprint import Fingerprint, Stamp, describe_change, stamps
from ..modality import Modality
from ..utils.atomic import atomic_file
from ..utils.cache import cache_folder
from ..utils.jsonfile import load_json


class _Each(Dataset[Any]):
    """The result of a function at every place."""

    def __init__(self, function: Callable[[int], Any], length: int) -> None:
        self.function, self.length = function, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        return self.function(index)


def stream(function: Callable[[int], Any], length: int, num_workers: int, title: str, first: int = 0) -> Iterator[Any]:
    """Call a function in worker processes, with a progress bar where someone looks at it.

    Args:
        function: What to call with the places *first* to *length* - 1.
        length: How many places there are.
        num_workers: Number of processes; 0 for this one.
        title: What the bar says.
        first: Where to begin.

    Yields:
        The results in the order of the places, whichever worker had them.
    """
    places = range(first, length)
    loader: DataLoader[Any] = DataLoader(
        _Each(function, length),
        batch_size=None,
        sampler=places,
        num_workers=num_workers,
        collate_fn=_as_it_is,
        generator=torch.Generator(),  # or the seed of the workers would be drawn from the user's
    )
    yield from tqdm(loader, initial=first, total=length, desc=title, unit=' samples', disable=None, leave=False)


def _as_it_is(result: Any) -> Any:
    """No tensor is made of what a function found out."""
    return result


#: File with the statistics of a dataset.
FILENAME = 'STATISTICS.json'
#: Seconds after which what a pass has so far is kept once more.
EVERY = 10.0
#: Deviations beyond this are squared in float64; sums of smaller squares stay in float32.
LARGE = 1e15

#: Mean and standard deviation, one number a band.
BandMoments = tuple[Tensor, Tensor]
#: By modality and group: lists ``mean`` and ``std``, empty where there is nothing to measure, how
#: many ``samples`` were measured ``of`` how many, and the fingerprint of their ``files``, if a dataset tells them.
Entries = dict[str, dict[str, dict[str, Any]]]


class Moments:
    """Mean and standard deviation of bands over any number of images, one image in memory at a time.

    What is joined is a number of pixels, their mean and their sum of squared deviations (Chan,
    Golub and LeVeque, 1979), in float64, so a mean that is large beside the deviation costs no
    digits. The images themselves stay as they are, in float32.
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
            values = frame.reshape(len(frame), -1)
            finite = np.isfinite(values)
            count = finite.sum(1)
            some = np.maximum(count, 1)
            mean = np.sum(values, 1, where=finite, dtype=np.float64) / some
            # Deviations from about the mean are small, so float32 has all the digits that count.
            about = mean.astype(values.dtype)
            deviation = np.where(finite, values - about[:, None], 0)
            if max(deviation.max(initial=0), -deviation.min(initial=0)) > LARGE:
                deviation = deviation.astype(np.float64)
            squares = np.square(deviation).sum(1, dtype=np.float64) - count * (mean - about) ** 2
            self._join(count, mean, np.maximum(squares, 0))

    def merge(self, other: 'Moments') -> None:
        """Let what others measured join."""
        self._join(other.count, other.mean, other.squares)

    def as_dict(self) -> dict[str, list[float]]:
        """Mean and standard deviation as in PASTIS's NORM files; empty lists if a band has no pixel."""
        if not self.count.all():
            return {'mean': [], 'std': []}
        return {'mean': self.mean.tolist(), 'std': np.sqrt(self.squares / self.count).tolist()}

    def state(self) -> dict[str, list[float]]:
        """All that is needed to go on later, bit by bit."""
        return {name: value.tolist() for name, value in vars(self).items()}

    @classmethod
    def restore(cls, state: Mapping[str, Sequence[float]]) -> Self:
        """Go on from a state."""
        moments = cls(len(state['count']))
        for name in vars(moments):
            setattr(moments, name, np.array(state[name], dtype=np.float64))
        return moments

    def _join(self, count: NDArray[Any], mean: NDArray[np.float64], squares: NDArray[np.float64]) -> None:
        """Two sets of pixels become one."""
        total = self.count + count
        share = count / np.maximum(total, 1)
        step = mean - self.mean
        self.squares = self.squares + squares + step**2 * self.count * share
        self.mean = self.mean + step * share
        self.count = total


def measure(
    dataset: Any,
    modalities: Mapping[str, Modality],
    groups: Sequence[str],
    most: int | None = None,
    num_workers: int = 0,
    keep: Path | None = None,
    about: Any = None,
) -> Entries:
    """Measure the valid dates and finite pixels of every modality in one pass over the samples.

    Samples join in their order, so the number of workers changes nothing, nor does a pass
    that was cut off and continued.

    Args:
        dataset: Gives the samples.
        modalities: What to measure.
        groups: The group of each sample; each group is measured by itself.
        most: At most so many samples, spread evenly, are read; None for all.
        num_workers: Processes that read.
        keep: File for what the pass has so far, every few seconds, from where a later call goes
            on. It is removed in the end.
        about: Plain values that tell this pass from others; another pass's file is not used.

    Returns:
        Mean and standard deviation by modality and group.
    """
    places = range(len(groups)) if most is None or most >= len(groups) else _spread(len(groups), most)
    found = {name: {group: Moments(len(m.bands)) for group in groups} for name, m in modalities.items()}
    sizes, seen = Counter(groups), Counter(groups[place] for place in places)
    prints: dict[str, dict[str, Any]] = {}  # taken before anything is read
    for name in modalities:
        for group in seen:
            if files := measured_files(dataset, name, [place for place in places if groups[place] == group]):
                prints.setdefault(name, {})[group] = Fingerprint.of(*files).as_dict()
    what = [about, type(dataset).__name__, list(groups), list(places), [m.as_dict() for m in modalities.values()]]
    what.append(prints)
    digest = hashlib.sha256(json.dumps(what, default=str).encode()).hexdigest()
    first = 0 if keep is None else _resume(keep, digest, found)
    title, saved = f'Statistics of {", ".join(modalities)}', -np.inf
    results = stream(partial(_sample_moments, dataset, modalities, places), len(places), num_workers, title, first)
    with isolate_rng(include_cuda=False):  # a run that measures draws what one that finds statistics does
        for done, moments in enumerate(results, first + 1):
            for name, part in moments.items():
                found[name][groups[places[done - 1]]].merge(part)
            if keep is not None and time.monotonic() - saved > EVERY:
                _write(keep, {'pass': digest, 'done': done, 'moments': _states(found)})
                saved = time.monotonic()
    if keep is not None:
        keep.unlink(missing_ok=True)
    return {
        name: {
            group: {
                **one.as_dict(),
                'samples': seen[group],
                'of': sizes[group],
                **({'files': prints[name][group]} if group in prints.get(name, {}) else {}),
            }
            for group, one in parts.items()
        }
        for name, parts in found.items()
    }


def measured_files(dataset: Any, name: str, indices: Sequence[int]) -> tuple[list[Stamp], list[str]] | None:
    """Return size and time of the files that samples of a modality are read from, and the names of these samples.

    Args:
        dataset: The dataset, which tells its files by ``image_files(name, indices)``.
        name: The modality.
        indices: Numbers of the samples.

    Returns:
        What :meth:`.Fingerprint.of` takes; None if the dataset tells no files.
    """
    told = getattr(dataset, 'image_files', None)
    paths = [] if told is None else told(name, indices)
    if not paths:
        return None
    ids = getattr(dataset, 'ids', None)
    return stamps(paths, dataset.path), [] if ids is None else [ids[index] for index in indices]


def changed(dataset: Any, entries: Entries, name: str, groups: Sequence[str]) -> str:
    """Return how the files of a modality differ from those that were measured; nothing if they do not.

    Args:
        dataset: The dataset.
        entries: Statistics of every group.
        name: The modality.
        groups: The group of each sample.
    """
    known = {group: entries[name][group] for group in dict.fromkeys(groups)}
    whole = all(entry.get('samples') == entry.get('of') for entry in known.values())
    most = len(groups) if whole else sum(entry.get('samples', 0) for entry in known.values())
    places = range(len(groups)) if most >= len(groups) else _spread(len(groups), most)
    for group, entry in known.items():
        then = entry.get('files')
        if not isinstance(then, Mapping):
            continue
        now = measured_files(dataset, name, [place for place in places if groups[place] == group])
        if now is not None and Fingerprint.of(*now).digest != then.get('digest'):
            return describe_change(then, now[0])
    return ''


def read_statistics(path: Path, key: str, bands: int) -> BandMoments:
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
        mean, std = as_bands(load_json(path)[key])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f'{path} cannot be used ({type(error).__name__}: {error}), {expected}') from error
    for kind, value in (('mean', mean), ('std', std)):
        if tuple(value.shape) != (bands,) or not value.isfinite().all() or (kind == 'std' and value.lt(0).any()):
            raise ValueError(f'{kind} of {key!r} in {path} is {value.tolist()}, {expected}')
    return mean, std


def as_bands(entry: Mapping[str, Any]) -> BandMoments:
    """Return the numbers of one entry as float64 tensors."""
    mean, std = (torch.tensor(entry[kind], dtype=torch.float64) for kind in ('mean', 'std'))
    return mean, std


def places_of(root: Path) -> list[Path]:
    """Where the statistics of a dataset may be: in *root*, or, where that is read-only, in PyTorch's cache."""
    digest = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]
    places = [root / FILENAME]
    with contextlib.suppress(FileNotFoundError):
        places.append(cache_folder() / 'torchgeo_omnisat' / digest / FILENAME)
    return places


def load_statistics(root: Path) -> Entries:
    """Load the statistics of the dataset in *root*; damaged entries are ignored."""
    entries: Entries = {}
    for place in reversed(places_of(root)):
        for name, groups in _read(place).items():
            if isinstance(groups, Mapping):
                entries[name] = entries.get(name, {}) | {key: e for key, e in groups.items() if _is_entry(e)}
    return entries


def is_measured(entries: Entries, name: str, groups: Mapping[str, int], bands: int) -> bool:
    """Whether every group of a modality was measured, and has the samples that it had then.

    Args:
        entries: Statistics.
        name: The modality.
        groups: How many samples each group has. An entry that does not say ``of`` how many it
            is, such as one written by hand, holds for any number.
        bands: How many numbers each list is to hold.
    """
    known = entries.get(name, {})
    return all(
        group in known and known[group].get('of', count) == count and len(known[group]['mean']) in (0, bands)
        for group, count in groups.items()
    )


def save_statistics(root: Path, entries: Entries) -> Path | None:
    """Add to the statistics of the dataset in *root*.

    The file is written under a temporary name and renamed, so that processes which measure at
    the same time only do so twice.

    Args:
        root: The dataset.
        entries: Statistics.

    Returns:
        The file; None, with a warning, if none can be written.
    """
    known = load_statistics(root)
    merged = known | {name: known.get(name, {}) | groups for name, groups in entries.items()}
    for place in places_of(root):
        with contextlib.suppress(OSError):
            _write(place, merged)
            return place
    places = places_of(root)
    hint = ', and this user has no home: set TORCH_HOME to a folder that can be written' * (len(places) == 1)
    warnings.warn(f'statistics could not be kept in any of {[str(p) for p in places]}{hint}', stacklevel=2)
    return None


def partial_of(root: Path) -> Path | None:
    """Where a pass over the dataset in *root* keeps what it has so far; None if nowhere can be written."""
    for place in places_of(root):
        with contextlib.suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            if os.access(place.parent, os.W_OK):
                return place.with_name(f'.{place.name}.partial')
    return None


def _sample_moments(
    dataset: Any, modalities: Mapping[str, Modality], places: Sequence[int], place: int
) -> dict[str, Moments]:
    """Return the moments of one sample."""
    sample: Sample = dataset[places[place]]
    found = {}
    for name, modality in modalities.items():
        if modality.image_key in sample:
            image, valid = sample[modality.image_key], sample[modality.valid_key]
            found[name] = Moments(len(modality.bands))
            found[name].add(image[valid] if modality.temporal else image[None][valid])
    return found


def _spread(count: int, most: int) -> list[int]:
    """Return evenly spaced indices, at most *most* of *count*."""
    chosen: list[int] = np.linspace(0, count - 1, most).round().astype(int).tolist()
    return chosen


def _states(found: Mapping[str, Mapping[str, Moments]]) -> dict[str, dict[str, Any]]:
    """All moments as plain numbers."""
    return {name: {group: one.state() for group, one in parts.items()} for name, parts in found.items()}


def _resume(keep: Path, digest: str, found: dict[str, dict[str, Moments]]) -> int:
    """Fill in what an earlier pass had; how many samples that is."""
    state = _read(keep)
    if state.get('pass') != digest:
        return 0
    for name, parts in state['moments'].items():
        found[name] |= {group: Moments.restore(one) for group, one in parts.items()}
    return int(state['done'])


def _is_entry(entry: Any) -> bool:
    """Whether that is an entry that can be used."""
    if not isinstance(entry, Mapping):
        return False
    lists = [entry.get('mean'), entry.get('std')]
    numbers = [number for part in lists if isinstance(part, list) for number in part]
    return (
        all(isinstance(part, list) for part in lists)
        and len(lists[0] or ()) == len(lists[1] or ())
        and all(isinstance(number, int | float) and np.isfinite(number) for number in numbers)
    )


def _read(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty if there is none."""
    try:
        content = load_json(path)
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1))
