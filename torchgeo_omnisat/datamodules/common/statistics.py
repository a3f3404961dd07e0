# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Mean and standard deviation of each band, computed in one pass and stored.

Each entry contains the fingerprint of its files (:mod:`torchgeo_omnisat.datasets.io.fingerprint`) and is computed
again if the size or modification time of a file has changed. Files are checked once per use. Entries without a
fingerprint, such as handwritten ones, are always valid.
"""

import contextlib
import hashlib
import json
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from torchgeo.datasets.utils import Sample
from tqdm import tqdm

from ...datasets.common.labelcounts import evenly_spaced, label_of
from ...datasets.io.fingerprint import Fingerprint, Stamp, describe_change, stamps
from ...modality import Modality
from ...utils.atomic import atomic_file, cache_folder
from ...utils.plurals import counted
from ...utils.reading import load_json


def stream(function: Callable[[Any], Any], length: int, num_workers: int, title: str, first: int = 0) -> Iterator[Any]:
    """Call a function of the indices *first* to *length* - 1 in worker processes, and yield the results in order."""
    loader: DataLoader[Any] = DataLoader(
        range(first, length),  # type: ignore[arg-type]
        batch_size=None,
        num_workers=num_workers,
        collate_fn=function,  # which workers call
        generator=torch.Generator(),  # or the seed of the workers would be drawn from the user's
    )
    yield from tqdm(loader, initial=first, total=length, desc=title, unit=' samples', disable=None, leave=False)


#: File with the statistics of a dataset.
FILENAME = 'STATISTICS.json'
#: Seconds between two writes of partial results.
EVERY = 10.0
#: Deviations beyond this are squared in float64; sums of smaller squares stay in float32.
LARGE = 1e15

#: Mean and standard deviation per band.
BandMoments = tuple[Tensor, Tensor]
#: By modality and group: lists ``mean`` and ``std``, empty without valid pixels; the number of ``samples`` that were
#: read, ``of`` their total; and the fingerprint of their ``files``, if the dataset lists them.
Entries = dict[str, dict[str, dict[str, Any]]]


class Moments:
    """Running mean and standard deviation of bands, with one image in memory at a time.

    Counts, means and sums of squared deviations are merged in float64 (Chan, Golub and LeVeque, 1979), so that a
    mean much larger than the standard deviation does not cost precision. Images stay in float32.
    """

    def __init__(self, bands: int) -> None:
        self.count: NDArray[np.float64] = np.zeros(bands)
        self.mean: NDArray[np.float64] = np.zeros(bands)
        self.squares: NDArray[np.float64] = np.zeros(bands)

    def add(self, image: Tensor) -> None:
        """Add the finite pixels of images ``(..., C, H, W)``."""
        for frame in image.reshape(-1, *image.shape[-3:]).numpy():
            values = frame.reshape(len(frame), -1)
            finite = np.isfinite(values)
            count = finite.sum(1)
            some = np.maximum(count, 1)
            mean = np.sum(values, 1, where=finite, dtype=np.float64) / some
            # Deviations from about the mean are small, so float32 is precise enough.
            about = mean.astype(values.dtype)
            deviation = np.where(finite, values - about[:, None], 0)
            if max(deviation.max(initial=0), -deviation.min(initial=0)) > LARGE:
                deviation = deviation.astype(np.float64)
            squares = np.square(deviation).sum(1, dtype=np.float64) - count * (mean - about) ** 2
            self._join(count, mean, np.maximum(squares, 0))

    def merge(self, other: 'Moments') -> None:
        """Add the pixels of another instance."""
        self._join(other.count, other.mean, other.squares)

    def as_dict(self) -> dict[str, list[float]]:
        """Return mean and standard deviation as in PASTIS's NORM files; empty lists if a band has no pixel."""
        if not self.count.all():
            return {'mean': [], 'std': []}
        return {'mean': self.mean.tolist(), 'std': np.sqrt(self.squares / self.count).tolist()}

    def state(self) -> dict[str, list[float]]:
        """Return the state to resume from, bit for bit."""
        return {name: value.tolist() for name, value in vars(self).items()}

    @classmethod
    def restore(cls, state: Mapping[str, Sequence[float]]) -> Self:
        """Create an instance from a state."""
        moments = cls(len(state['count']))
        for name in vars(moments):
            setattr(moments, name, np.array(state[name], dtype=np.float64))
        return moments

    def _join(self, count: NDArray[Any], mean: NDArray[np.float64], squares: NDArray[np.float64]) -> None:
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
    """Compute the statistics of valid dates and finite pixels in one pass over the samples, by group.

    Samples are added in order, so that the result does not depend on the number of workers, or on interruptions. Of all
    samples, *most* evenly spaced ones are read. Partial results are written to the file *keep*, from which a later call
    with the same *about* resumes, and which is deleted at the end.
    """
    places = evenly_spaced(len(groups), most)
    found = {name: {group: Moments(len(m.bands)) for group in groups} for name, m in modalities.items()}
    sizes, seen = Counter(groups), Counter(groups[place] for place in places)
    prints: dict[str, dict[str, Any]] = {}  # computed before files are read
    for name in modalities:
        for group in seen:
            if files := measured_files(dataset, name, [place for place in places if groups[place] == group]):
                prints.setdefault(name, {})[group] = asdict(Fingerprint.of(*files))
    what = [about, type(dataset).__name__, list(groups), list(places), [m.as_dict() for m in modalities.values()]]
    what.append(prints)
    digest = hashlib.sha256(json.dumps(what, default=str).encode()).hexdigest()
    first = 0 if keep is None else _resume(keep, digest, found)
    title, saved = f'Statistics of {", ".join(modalities)}', -np.inf
    results = stream(partial(_sample_moments, dataset, modalities, places), len(places), num_workers, title, first)
    with isolate_rng(include_cuda=False):  # random draws do not depend on stored statistics
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
    """Return stamps of the files of a modality and names of the samples; None if files are not known."""
    image_files = getattr(dataset, 'image_files', None)
    paths = [] if image_files is None else image_files(name, indices)
    if not paths:
        return None
    ids = getattr(dataset, 'ids', None)
    return stamps(paths, dataset.path), [] if ids is None else [ids[index] for index in indices]


def changed(dataset: Any, entries: Entries, name: str, groups: Sequence[str]) -> str:
    """Return how the files of a modality have changed since they were measured; empty if they have not."""
    known = {group: entries[name][group] for group in dict.fromkeys(groups)}
    whole = all(entry.get('samples') == entry.get('of') for entry in known.values())
    most = len(groups) if whole else sum(entry.get('samples', 0) for entry in known.values())
    places = evenly_spaced(len(groups), most)
    for group, entry in known.items():
        then = entry.get('files')
        if not isinstance(then, Mapping):
            continue
        now = measured_files(dataset, name, [place for place in places if groups[place] == group])
        if now is not None and Fingerprint.of(*now).digest != then.get('digest'):
            return describe_change(then, now[0])
    return ''


def read_statistics(path: Path, key: str, bands: int) -> BandMoments:
    """Read mean and standard deviation of an entry of a file such as ``{"Fold_1": {"mean": [...], ...}}``."""
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
    """Return mean and standard deviation of an entry as float64 tensors."""
    mean, std = (torch.tensor(entry[kind], dtype=torch.float64) for kind in ('mean', 'std'))
    return mean, std


def places_of(root: Path) -> list[Path]:
    """Return the possible files with the statistics of a dataset: in *root*, or, if read-only, in PyTorch's cache."""
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
    """Return whether there are statistics of all groups of a modality, with the same numbers of samples.

    An entry without ``of``, such as a handwritten one, is valid for any number.
    """
    known = entries.get(name, {})
    return all(
        group in known and known[group].get('of', count) == count and len(known[group]['mean']) in (0, bands)
        for group, count in groups.items()
    )


def save_statistics(root: Path, entries: Entries) -> Path | None:
    """Add entries to the statistics of the dataset in *root*; return the file, or None with a warning."""
    known = load_statistics(root)
    merged = known | {name: known.get(name, {}) | groups for name, groups in entries.items()}
    for place in places_of(root):
        with contextlib.suppress(OSError):
            _write(place, merged)
            return place
    places = places_of(root)
    hint = ', and the user has no home directory: set TORCH_HOME to a writable directory' * (len(places) == 1)
    warnings.warn(f'statistics cannot be written to any of {[str(p) for p in places]}{hint}', stacklevel=2)
    return None


#: Name of the statistics of continuous masks.
TARGET = 'mask_values'


class MaskImages:
    """Masks of a dataset as the images of one modality, for statistics."""

    def __init__(self, dataset: Any, gsd: float) -> None:
        self.dataset, self.path, self.ids = dataset, dataset.path, dataset.ids
        self.modalities = {TARGET: Modality(TARGET, ('value',), gsd, False)}

    def __getitem__(self, index: int) -> Sample:
        """Return the mask of a sample as an image; empty without a mask."""
        found = label_of(self.dataset, index, ('mask',))
        if 'mask' not in found:
            return {}
        mask = torch.as_tensor(found['mask']).float()
        modality = self.modalities[TARGET]
        return {modality.image_key: mask[None], modality.valid_key: mask.isfinite().any()[None]}

    def image_files(self, name: str, indices: Sequence[int]) -> list[str]:
        """Return the files of the labels, if the dataset lists them."""
        label_files = getattr(self.dataset, 'label_files', None)
        return [] if label_files is None else list(label_files())


def measure_target(datamodule: Any) -> tuple[float, float]:
    """Return mean and standard deviation of the continuous masks of the training split.

    They are stored like those of the bands, and computed again if a file of the labels has changed.

    Raises:
        ValueError: If no pixel has a value.
    """
    train = datamodule.make_dataset('train', **datamodule.whole_series())
    masks, groups = MaskImages(train, datamodule.label_gsd), datamodule.groups(train)
    entries = load_statistics(train.path)
    sizes = Counter(groups)
    if not is_measured(entries, TARGET, sizes, 1) or changed(masks, entries, TARGET, groups):
        measured = measure(masks, masks.modalities, groups, datamodule.max_measured)
        save_statistics(train.path, measured)
        entries = {**entries, **measured}
    found = [as_bands(entries[TARGET][group]) for group in sizes if entries[TARGET][group]['mean']]
    if not found:
        raise ValueError(
            f'no pixel of {counted(len(groups), "training mask")} of {train.path} has a value, expected some for '
            'their mean and standard deviation'
        )
    mean, std = torch.stack([torch.stack(pair) for pair in found]).mean(0).flatten().tolist()
    return mean, std


def settings_group(settings: Any) -> str:
    """Return the name of the training group of a dataset whose statistics depend on plain settings."""
    digest = hashlib.sha256(json.dumps(settings, default=str, sort_keys=True).encode()).hexdigest()[:12]
    return f'train {digest}'


def partial_of(root: Path) -> Path | None:
    """Return the file for partial results of the dataset in *root*; None if there is no writable directory."""
    for place in places_of(root):
        with contextlib.suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            if os.access(place.parent, os.W_OK):
                return place.with_name(f'.{place.name}.partial')
    return None


def _sample_moments(
    dataset: Any, modalities: Mapping[str, Modality], places: Sequence[int], place: int
) -> dict[str, Moments]:
    sample: Sample = dataset[places[place]]
    found = {}
    for name, modality in modalities.items():
        if modality.image_key in sample:
            image, valid = sample[modality.image_key], sample[modality.valid_key]
            found[name] = Moments(len(modality.bands))
            found[name].add(image[valid] if modality.temporal else image[None][valid])
    return found


def _states(found: Mapping[str, Mapping[str, Moments]]) -> dict[str, dict[str, Any]]:
    return {name: {group: one.state() for group, one in parts.items()} for name, parts in found.items()}


def _resume(keep: Path, digest: str, found: dict[str, dict[str, Moments]]) -> int:
    state = _read(keep)
    if state.get('pass') != digest:
        return 0
    for name, parts in state['moments'].items():
        found[name] |= {group: Moments.restore(one) for group, one in parts.items()}
    return int(state['done'])


def _is_entry(entry: Any) -> bool:
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
    try:
        content = load_json(path)
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _write(path: Path, content: Mapping[str, Any]) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1))
