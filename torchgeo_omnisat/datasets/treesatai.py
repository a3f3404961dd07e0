# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""TreeSatAI Time-Series: which trees grow on a plot, seen from the air and for a year from space."""

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import h5py
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.transform import Affine
from torch import Tensor
from torchgeo.datasets import TreeSatAI
from torchgeo.datasets.utils import Path as PathLike
from torchgeo.datasets.utils import Sample

from ..modality import Modality
from .arguments import (
    MISSING,
    check_choice,
    check_max_dates,
    choose_modalities,
    leave_out,
    not_found,
    parse_span,
    select_bands,
)
from .base import MultimodalDataset, blank, bounds_of, keep_seen, pick, refuse_missing, tensors
from .integrity import Dates, Expected, Part
from .io.decoding import GREATEST
from .io.download import Archive, obtain
from .io.files import measured, read_json, read_raster, refuse_special
from .io.fingerprint import State, state_of
from .io.opening import open_raster
from .plotting import S1_COMPOSITES, S2_COMPOSITES, Composite, Palette, plot_sample
from .series import S2_BANDS, S2_FACTS, choose_clear, finite_mean, merge_days, parse_dates

REPOSITORY = 'IGNF/TreeSatAI-Time-Series'
#: Archives by the directory that they unpack to, with the SHA-256 that Hugging Face states of each.
ARCHIVES: dict[str, Archive] = {
    name: Archive(REPOSITORY, f'{name}.zip', name, digest)
    for name, digest in (
        ('labels', 'fb32a4be77c8fbbcd8bd1ad7f47c6fd17d2c0ecfaa6b23e6f4d3c856e54d52a5'),
        ('split', '9d24732c11cb048fd09ed0eabe111e9bbe299b78a4a710e4c9fd7d552244dbcd'),
        ('aerial', '158bfb707406c9ecf27e3df1b3838d9d3e014b4024fd54bd3a6f692d9938c01c'),
        ('sentinel-ts', '06648ae998ec185c39747a06a8957e311e8df854af8a1fa59329b6a2c7db48d7'),
    )
}
LABELS = 'labels/TreeSatBA_v9_60m_multi_labels.json'

#: Side of a plot in metres; the aerial images have two pixels more on every side.
EXTENT, MARGIN = 60.0, 2
#: xmin, ymin, xmax, ymax in metres.
type Bounds = tuple[float, float, float, float]
NOWHERE: Bounds = (float('nan'),) * 4
#: A genus counts where it covers more of the plot than this share.
THRESHOLD = 0.07


@dataclass(frozen=True)
class Series:
    """Where a series lies in a file.

    Args:
        prefix: What its data, masks and products begin with.
        date_field: Which part of a product's name, between underscores, is its date.
        radar: Whether it is linear power, to be read as dB.
    """

    prefix: str
    date_field: int
    radar: bool = False


SERIES = {'s2': Series('sen-2', 2), 's1a': Series('sen-1-asc', 4, True), 's1d': Series('sen-1-des', 4, True)}
#: Every modality with all its bands.
MODALITIES: dict[str, Modality] = {
    's2': Modality('s2', S2_BANDS, 10.0, True, **S2_FACTS),
    's1a': Modality('s1a', ('VV', 'VH'), 10.0, True, 'radar', 'db'),
    's1d': Modality('s1d', ('VV', 'VH'), 10.0, True, 'radar', 'db'),
    'aerial': Modality('aerial', ('NIR', 'G', 'B', 'R'), 0.2, False, 'optical', 'dn'),
}
COMPOSITES: dict[str, tuple[Composite, ...]] = {
    's2': S2_COMPOSITES,
    's1a': S1_COMPOSITES,
    's1d': S1_COMPOSITES,
    'aerial': (
        Composite('true colour', ('R', 'G', 'B'), alike=True),
        Composite('infrared', ('NIR',)),
    ),
}
#: The genera, in the order of the label.
GENERA: tuple[str, ...] = TreeSatAI.classes


def read_label_fractions(path: Path, strict: bool = True) -> dict[str, dict[str, float]]:
    """Read the fraction of each plot that each genus covers, by the name of the plot.

    Args:
        path: The JSON file.
        strict: Whether to refuse what is no share of a genus.

    Returns:
        Shares from 0 to 1 by genus, by name without ``.tif``.

    Raises:
        ValueError: If the file is not of that form, or names an unknown genus.
    """
    expected = '{"<name>.tif": [["Betula", 0.72], ...]}'
    try:
        plots = {
            name.removesuffix('.tif'): {str(genus): float(share) for genus, share in shares}
            for name, shares in read_json(path, expected).items()
        }
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f'{path} cannot be read ({error}), expected {expected}') from error
    for name in plots if strict else ():
        check_shares(path, plots, name)
    return plots


def check_shares(path: Path, plots: Mapping[str, Mapping[str, float]], name: str) -> None:
    """Refuse a plot whose label is not there, or is no share of a genus.

    Args:
        path: The file that the plots are from, for an error.
        plots: Shares by genus, by name.
        name: Which plot.

    Raises:
        FileNotFoundError: If it has no label.
        ValueError: If its label is wrong.
    """
    expected = f'expected [["<genus>", <share from 0 to 1>], ...] of {list(GENERA)}'
    if name not in plots:
        raise FileNotFoundError(f'{path} has no entry for {name!r}, {expected}')
    wrong = {genus: share for genus, share in plots[name].items() if genus not in GENERA or not 0 <= share <= 1.001}
    if wrong:
        raise ValueError(f'{name!r} in {path} has {wrong}, {expected}')


def listed(root: Path) -> set[str]:
    """Names in the published lists of all splits, without ``.tif``."""
    paths = [*root.glob('*_filenames.lst'), *root.glob('split/*_filenames.lst')]
    return {Path(line.strip()).name.removesuffix('.tif') for path in paths for line in path.read_text().splitlines()}


def read_split(root: Path, split: str) -> list[str]:
    """Names of the plots of a split, from the published lists.

    Where there is no list for validation (the first release, on Zenodo, has none), a tenth of
    the training list is held out: the names whose SHA-256 comes first.

    Args:
        root: The dataset; the lists lie in it or in its directory ``split``.
        split: ``'train'``, ``'val'`` or ``'test'``.

    Returns:
        The names without ``.tif``, in the order of the list.

    Raises:
        FileNotFoundError: If the list is not there.
        ValueError: If it is empty.
    """
    lists = {}
    for kind in ('train', 'val', 'test'):
        places = [root / 'split' / f'{kind}_filenames.lst', root / f'{kind}_filenames.lst']
        found = next((place for place in places if place.is_file()), None)
        if found is not None:
            lines = (Path(line.strip()).name.removesuffix('.tif') for line in found.read_text().splitlines())
            lists[kind] = [line for line in lines if line]
        elif kind == split and not (kind == 'val' and 'train' in lists):
            raise FileNotFoundError(
                f'{places[0]} does not exist, expected the list of files of split {split!r}; '
                'split=None takes everything that is there'
            )
    if 'train' in lists and 'val' not in lists:
        ranked = sorted(lists['train'], key=lambda name: hashlib.sha256(name.encode()).digest())
        lists['val'] = ranked[: max(1, len(ranked) // 10)]
    names = lists[split]
    if split == 'train':
        held_out = set(lists['val'])
        names = [name for name in names if name not in held_out]
    if not names:
        raise ValueError(f'split {split!r} of {root} is empty, expected at least one file in its list')
    return names


def around(transform: Affine, shape: Sequence[int]) -> Bounds:
    """Return the plot in the middle of an image of the given shape."""
    height, width = shape[-2:]
    x = transform.c + transform.a * width / 2 + transform.b * height / 2
    y = transform.f + transform.d * width / 2 + transform.e * height / 2
    return x - EXTENT / 2, y - EXTENT / 2, x + EXTENT / 2, y + EXTENT / 2


def find_series(directory: Path) -> dict[str, Path]:
    """Files of series by the name of their plot.

    Args:
        directory: Where files ``<name>_<year>.h5`` lie.

    Raises:
        ValueError: If a plot has files of two years.
    """
    found: dict[str, Path] = {}
    for path in sorted(directory.glob('*.h5')):
        match = re.fullmatch(r'(.+)_\d{4}', path.stem)
        name = match[1] if match else path.stem
        if name in found:
            raise ValueError(f'{path} and {found[name]} are of one plot, expected one file a plot')
        found[name] = path
    return found


EXPECTED = 'HDF5 with series of Sentinel-1 and -2'
#: Names of products that a series may have at most.
_MOST_DATES = 10_000


@contextmanager
def open_series(path: Path) -> Iterator[h5py.File]:
    """Open a file of series; every fault of its structure is an error with its name.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is truncated, no HDF5, or lacks a dataset.
    """
    refuse_special(path, EXPECTED)
    try:
        with h5py.File(path, 'r') as file:
            yield file
    except (OSError, KeyError, RuntimeError, TypeError) as error:
        raise ValueError(f'{path} cannot be read ({error}), expected {EXPECTED}') from error


def dataset_of(file: h5py.File, key: str) -> h5py.Dataset:
    """Return a dataset whose values lie in the file itself.

    Raises:
        KeyError: If there is none, or if its values lie in other files, which a file from elsewhere
            must not choose.
    """
    if not isinstance(file.get(key, getlink=True), h5py.HardLink):
        raise KeyError(f'{key} is no dataset of the file itself')
    found = file[key]
    if not isinstance(found, h5py.Dataset) or found.external or found.is_virtual:
        raise KeyError(f'{key} is no dataset of the file itself')
    return found


def read_days(file: h5py.File, series: Series, path: Path) -> bytes:
    """Days since 1970-01-01 of the frames, as bytes of int64, from the names of their products."""
    key = f'{series.prefix}-products'
    stored = dataset_of(file, key)
    if stored.ndim != 1 or len(stored) > _MOST_DATES or stored.dtype.kind not in 'OSU':
        raise ValueError(f'{key} of {path} is {stored.dtype} {stored.shape}, expected names of products (T,)')
    try:
        return _product_days(tuple(stored[()].tolist()), series.date_field)
    except (ValueError, AttributeError) as error:
        raise ValueError(f'{key} of {path}: {error}') from error


@lru_cache(maxsize=512)
def _product_days(products: Sequence[bytes | str], place: int) -> bytes:
    """Days since 1970-01-01 in the names of products, which all plots under an orbit share."""
    stamps = []
    for stored in products:
        name = stored.decode() if isinstance(stored, bytes) else stored
        parts = name.split('_', place + 1)
        if len(parts) <= place:
            raise ValueError(f'has {name!r}, expected a date in field {place} of the name')
        stamps.append(parts[place][:8])
    return parse_dates(stamps, 'the names of products').tobytes()


def read_file_days(path: Path, series: Series) -> NDArray[np.int64]:
    """Days since 1970-01-01 of the frames of a file that is not open yet."""
    with open_series(path) as file:
        return np.frombuffer(read_days(file, series, path), dtype=np.int64)


def read_hidden(
    file: h5py.File, series: Series, shape: Sequence[int], probability: float, path: Path
) -> NDArray[np.float64]:
    """Share of each frame that is under snow or clouds.

    Args:
        file: The open file.
        series: Which series; one without masks is hidden nowhere.
        shape: T, H and W of its images.
        probability: From which probability on, in %, a pixel is hidden. One whose
            probability is not known is hidden too.
        path: The file, for an error.

    Returns:
        Shares (T,) from 0 to 1.

    Raises:
        ValueError: If the masks do not fit the images.
    """
    key = f'{series.prefix}-masks'
    if series.radar or key not in file:
        return np.zeros(shape[0])
    dataset = dataset_of(file, key)
    if dataset.ndim != 4 or dataset.shape[1] < 2 or (dataset.shape[0], *dataset.shape[2:]) != tuple(shape):
        expected = f'({shape[0]}, 2, {shape[1]}, {shape[2]}), snow and cloud first, or more channels that are empty'
        raise ValueError(f'{key} of {path} has shape {dataset.shape}, expected {expected}')
    clear = (dataset[:, :2] < probability).all(1)
    hidden: NDArray[np.float64] = 1 - clear.mean((1, 2))
    return hidden


def read_clear(
    file: h5py.File, series: Series, shape: Sequence[int], probability: float, cover: float, path: Path
) -> bytes:
    """Read which frames are not under snow or clouds, packed into bits.

    Args:
        file: The open file.
        series: Which series.
        shape: T, C, H and W of its images.
        probability: From which probability on, in %, a pixel is hidden.
        cover: Which share of such pixels makes a frame not clear.
        path: The file, for an error.
    """
    hidden = read_hidden(file, series, (shape[0], *shape[2:]), probability, path)
    return np.packbits(hidden < cover).tobytes()


@lru_cache(maxsize=2**16)
def survey(
    path: Path, state: State | None, names: Sequence[str], extent: float, probability: float, cover: float
) -> tuple[tuple[bytes, bytes], ...]:
    """Read dates and clouds of series, once for as long as a file does not change.

    Args:
        path: The file.
        state: Its state.
        names: The modalities.
        extent: Side of the plot in metres.
        probability: From which probability on, in %, a pixel is hidden by snow or clouds.
        cover: Which share of such pixels makes a frame not clear.

    Returns:
        For each modality days since 1970-01-01 as bytes of int64, and which frames are clear, packed into bits.
    """
    found = []
    with open_series(path) as file:
        for name in names:
            days = read_days(file, SERIES[name], path)
            images = images_of(file, name, len(days) // 8, extent, path)
            found.append((days, read_clear(file, SERIES[name], images.shape, probability, cover, path)))
    return tuple(found)


def images_of(file: h5py.File, name: str, count: int, extent: float, path: Path) -> h5py.Dataset:
    """Return the images of a series, ``(T, C, H, W)``, not read yet.

    Args:
        file: The open file.
        name: The modality.
        count: Number of dates.
        extent: Side of the plot in metres.
        path: The file, for an error.

    Raises:
        ValueError: If they have another shape or are no numbers.
    """
    modality, key = MODALITIES[name], f'{SERIES[name].prefix}-data'
    side = modality.pixels(extent)
    shape, dataset = (count, len(modality.bands), side, side), dataset_of(file, key)
    if dataset.shape != shape or dataset.dtype.kind not in 'iuf':
        what = f'{count} products of {shape[1]} bands and {side} by {side} pixels'
        raise ValueError(f'{key} of {path} is {dataset.dtype} {dataset.shape}, expected {shape}: {what}')
    return dataset


@lru_cache(maxsize=4096)
def plan(
    days: bytes, clear: bytes, span: tuple[int, int] | None, max_dates: int | None
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Which frames of a series are read, their days, and on which of these, each once, anything is clear.

    Args:
        days: Days since 1970-01-01 of the T frames, as bytes of int64.
        clear: Which frames are not under clouds, packed into bits.
        span: First and last day to keep.
        max_dates: How many days to keep.
    """
    every = np.frombuffer(days, dtype=np.int64)
    flags = np.unpackbits(np.frombuffer(clear, dtype=np.uint8), count=len(every)).astype(bool)
    frames = choose_clear(every, flags, span, max_dates)
    return frames, every[frames], np.isin(np.unique(every[frames]), every[flags])


def read_series_frames(file: h5py.File, series: Series, frames: NDArray[np.int64]) -> NDArray[np.float32]:
    """Read some frames of a series, NaN where nothing was measured, radar still in linear power.

    Sentinel-2 was not measured where all its bands are zero, Sentinel-1 where a band is.

    Args:
        file: The open file, which :func:`survey` has checked.
        series: Which series.
        frames: Indices of the frames, in the order in which they are wanted.
    """
    first, last = int(frames.min()), int(frames.max())
    stored = _rows(file, f'{series.prefix}-data', first, last + 1)
    if not (len(frames) == len(stored) and (frames[1:] - frames[:-1] == 1).all()):
        stored = stored[frames - first]
    image: NDArray[np.float32] = stored.astype(np.float32, copy=False)
    known = (
        (image > 0) & (image <= GREATEST)
        if series.radar
        else (np.abs(image) <= GREATEST) & (image != 0).any(1, keepdims=True)
    )
    if not known.all():
        image[~known] = np.nan
    return image


def _rows(file: h5py.File, key: str, first: int, stop: int) -> NDArray[Any]:
    """Read part of the first axis of a dataset by h5py's low level, in a third of the time of its high one."""
    dataset = h5py.h5d.open(file.id, key.encode())
    rows = np.empty((stop - first, *dataset.shape[1:]), dataset.dtype)
    space = dataset.get_space()
    space.select_hyperslab((first, *(0,) * (rows.ndim - 1)), rows.shape)
    dataset.read(h5py.h5s.create_simple(rows.shape), space, rows)
    return rows


class TreeSatAITimeSeries(MultimodalDataset):
    """TreeSatAI Time-Series: forest plots of 60 m in Lower Saxony, and their tree genera.

    ======  ==============================================  =======  ====================
    name    bands                                           gsd      stored as
    ======  ==============================================  =======  ====================
    s2      B02 B03 B04 B05 B06 B07 B08 B8A B11 B12         10 m     reflectance x 10000
    s1a     VV, VH, ascending orbit                         10 m     power, read as dB
    s1d     VV, VH, descending orbit                        10 m     power, read as dB
    aerial  NIR G B R                                       0.2 m    0 to 255, no date
    ======  ==============================================  =======  ====================

    A sample has ``image_<name>``, ``dates_<name>`` and ``valid_<name>`` of each modality
    that is there (see :mod:`torchgeo_omnisat.batch`), in raw units with NaN where nothing
    was measured; ``label`` (15,), 1 for each of :attr:`classes` that covers more than 7 % of
    the plot; and ``bounds`` (9,), NaN where the aerial image, which alone tells the place, is
    not there. There is no mask.

    Dates come from the names of the products, in the order of time. Frames of one day are
    merged, Sentinel-1 in linear power, clear ones alone if there are any. A date of
    Sentinel-2 stays but is not valid if at least *cloud_cover* of its pixels are snow or
    cloud with a probability of at least *cloud_probability* %. Of the aerial image the
    central 300 of 304 pixels are read.

    Source: https://huggingface.co/datasets/IGNF/TreeSatAI-Time-Series; licence: CC-BY-4.0.
    If you use this dataset in your research, please cite:

    * TreeSatAI: https://doi.org/10.5194/essd-15-681-2023
    * Time-Series: https://doi.org/10.1007/978-3-031-73390-1_24
    """

    layout: ClassVar[str] = 'TreeSatAI'
    classes: ClassVar[tuple[str, ...]] = GENERA
    all_modalities: ClassVar[dict[str, Modality]] = MODALITIES
    extent = EXTENT

    def __init__(
        self,
        root: PathLike = 'data',
        split: str | None = 'train',
        modalities: Sequence[str] | None = None,
        bands: Mapping[str, Sequence[str]] | None = None,
        max_dates: int | None = None,
        date_range: tuple[str, str] | None = None,
        cloud_probability: float = 60,
        cloud_cover: float = 0.5,
        missing: Literal['error', 'allow', 'check'] = 'error',
        exclude: Collection[str] = (),
        transforms: Callable[[Sample], Sample] | None = None,
        download: bool = False,
        checksum: bool = False,
    ) -> None:
        """Read the labels and the list of the split, and see that the files are there.

        Args:
            root: Directory that holds ``labels``, ``aerial``, ``sentinel-ts`` and ``split``,
                or their archives; the lists of the splits may lie in it too.
            split: ``'train'``, ``'val'`` or ``'test'``; None for everything that is there.
                Without a list for validation a tenth of the training list is held out,
                the names whose SHA-256 comes first.
            modalities: Names of the modalities to read; None for all that the root holds.
            bands: Bands to keep by modality, such as ``{'s1a': ('VV',)}``.
            max_dates: How many days of a series to read, spread evenly over the clear ones
                if there are any; None for all.
            date_range: First and last day to read. A series without a date in it is absent
                from the sample; if nothing else is there, it is one image that is not valid.
            cloud_probability: From which probability on, in %, a pixel is snow or cloud.
            cloud_cover: Which share of such pixels makes a date not valid; above 1 for none.
            missing: What a file is that the list names and the disk lacks: an ``'error'``,
                or, if ``'allow'``, a modality absent from that sample; ``'check'`` refuses
                nothing yet, so that :meth:`parts` can be checked. A plot with nothing of
                *modalities* is left out with a warning (:attr:`unseen`).
            exclude: Names of samples to leave out (:attr:`ids`, of any split).
            transforms: What to do with a sample.
            download: Whether to download the archives (22 GB) that are not there.
            checksum: Whether to check the SHA-256 of archives.

        Raises:
            DatasetNotFoundError: If nothing is there and *download* is False.
            FileNotFoundError: If a file is missing.
            ValueError: If an argument or a file is not as described.
        """
        check_choice(split=(split, ('train', 'val', 'test', None)), missing=(missing, MISSING))
        check_max_dates(max_dates)
        self.root, self.split, self.missing = root, split, missing
        self.max_dates, self.date_range = max_dates, date_range
        self.cloud_probability, self.cloud_cover = cloud_probability, cloud_cover
        self.transforms, self.download, self.checksum = transforms, download, checksum
        self._span = parse_span(date_range)
        self.path = Path(root).expanduser()
        self._verify(modalities)
        self._series = find_series(self.path / 'sentinel-ts')
        self._aerial = {path.stem: path for path in (self.path / 'aerial').glob('*.tif')}
        self.modalities = self._choose(modalities, bands)
        self.shares = read_label_fractions(self.path / LABELS, strict=missing != 'check')
        self.names = sorted({*self._series, *self._aerial}) if split is None else read_split(self.path, split)
        known = {*listed(self.path), *self.shares, *self._series, *self._aerial}
        self.names, self.excluded = leave_out(self.names, self.names, exclude, known, self.path)
        self.unseen: list[str] = []
        if missing != 'check':
            self._check_files()
        self.crs = None if missing == 'check' else self._place(self.names[0])[0]

    @property
    def ids(self) -> list[str]:
        """The name of each sample."""
        return self.names

    def __len__(self) -> int:
        """Return the number of plots."""
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        """One plot.

        Args:
            index: Its place among the plots of the split.

        Returns:
            The sample.

        Raises:
            FileNotFoundError: If one of its files is missing.
            ValueError: If one of its files is not as described.
        """
        name = self.names[index]
        sample: Sample = {}
        if 'aerial' in self.modalities:
            image, place = self._read_aerial(name)
            sample |= image
        else:
            place = self._place(name)[1]
        series = [modality for modality in self.modalities.values() if modality.temporal]
        if series and not (self.missing == 'allow' and name not in self._series):
            sample |= self._read_series(name, series)
        if not any(modality.image_key in sample for modality in self.modalities.values()):
            sample |= blank(next(iter(self.modalities.values())), self.extent)
        sample['label'] = self._label(name)
        sample['bounds'] = bounds_of(place, min(modality.gsd for modality in self.modalities.values()), sample)
        return sample if self.transforms is None else self.transforms(sample)

    def plot(self, sample: Sample, show_titles: bool = True, suptitle: str | None = None) -> Figure:
        """Show every modality and some of its dates under the genera and, if there, the prediction.

        Args:
            sample: A sample of this dataset; one with ``prediction`` (15,), of which what is
                above one half is taken for there, is compared.
            show_titles: Whether to write what is what.
            suptitle: A title for the whole figure instead of the genera.

        Returns:
            The figure.

        Raises:
            RGBBandsMissingError: If no modality has bands that make a picture.
        """
        if suptitle is None and show_titles:
            said = {key: sample[key] for key in ('label', 'prediction') if key in sample}
            suptitle = '\n'.join(f'{key}: {self._listed(value)}' for key, value in said.items()) or None
        images = {key: value for key, value in sample.items() if key not in ('label', 'prediction')}
        return plot_sample(images, self.modalities, COMPOSITES, Palette(self.classes, ()), show_titles, suptitle)

    def parts(self, index: int) -> Iterator[Part]:
        """Yield the label and the modalities of a plot, for checks; several frames of one day are usual."""
        name = self.names[index]
        labels = self.path / LABELS
        yield Part('label', (Expected(labels),), partial(self._checked_label, name), fault='label')
        for modality in self.modalities.values():
            every, side = self.all_modalities[modality.name].bands, modality.pixels(self.extent)
            if modality.name in SERIES:
                path, prefix = self._series_file(name), SERIES[modality.name].prefix
                shape = (None, len(every), side, side)
                images = Expected(path, shape, 'float32', f'{prefix}-data', series=True, optional=True)
                products = Expected(path, (None,), 'any', f'{prefix}-products', optional=True)
                dates = Dates(path, partial(read_file_days, path, SERIES[modality.name]), ordered=False)
                yield Part(
                    modality.name, (images, products), partial(self._read_series, name, [modality]), dates, modality
                )
            else:
                path = self._aerial_file(name)
                image = Expected(path, (len(every), *(side + 2 * MARGIN,) * 2), 'uint8', optional=True, crs=0)
                yield Part(modality.name, (image,), lambda: self._read_aerial(name)[0], None, modality)

    def image_files(self, name: str, indices: Iterable[int]) -> list[Path]:
        """Return the files that a modality of some samples is read from, whether they are there or not.

        Args:
            name: The modality.
            indices: Numbers of the samples.
        """
        place = self._series_file if name in SERIES else self._aerial_file
        return [place(self.names[index]) for index in indices]

    def _label(self, name: str) -> Tensor:
        """Return which genera (K,) a plot has, as 0 or 1."""
        shares = self.shares[name]
        return torch.tensor([shares.get(genus, 0.0) > THRESHOLD for genus in self.classes]).float()

    def _checked_label(self, name: str) -> Tensor:
        check_shares(self.path / LABELS, self.shares, name)
        return self._label(name)

    def _series_file(self, name: str) -> Path:
        """Return the path of the time series of a plot."""
        return self._series.get(name, self.path / 'sentinel-ts' / f'{name}_<year>.h5')

    def _aerial_file(self, name: str) -> Path:
        """Return the path of the aerial image of a plot."""
        return self._aerial.get(name, self.path / 'aerial' / f'{name}.tif')

    def _listed(self, values: Tensor) -> str:
        """Names of the genera above one half."""
        held = [genus for genus, value in zip(self.classes, values.tolist(), strict=True) if value > 0.5]
        return ', '.join(held) or 'none'

    def _read_aerial(self, name: str) -> tuple[Sample, Bounds]:
        """Read the three tensors of the aerial image, cropped to the plot, and the bounds of the plot."""
        if self.missing == 'allow' and name not in self._aerial:
            return {}, NOWHERE
        modality, every = self.modalities['aerial'], self.all_modalities['aerial'].bands
        path = self._aerial_file(name)
        shape = (len(every), *(modality.pixels(self.extent) + 2 * MARGIN,) * 2)
        expected = f'uint8 {shape}: {self.extent} m of {modality.gsd} m pixels and {MARGIN} more on every side'
        array, nodata, transform, shown = read_raster(path, expected, shape)
        channels = [every.index(band) for band in modality.bands]
        inside = slice(MARGIN, -MARGIN)
        shown = None if shown is None else shown[inside, inside]
        image = measured(array[channels, inside, inside], 'uint8', nodata, path, shown=shown)
        valid = np.isfinite(image).any(keepdims=True).reshape(1)
        parts = (image, np.zeros(1, dtype=np.int64), valid)
        return tensors(modality, *parts), around(transform, array.shape)

    def _read_series(self, name: str, modalities: Sequence[Modality]) -> Sample:
        """Read the three tensors of some time series, with one frame per day."""
        path = self._series_file(name)
        sample: Sample = {}
        names, clouds = tuple(modality.name for modality in modalities), (self.cloud_probability, self.cloud_cover)
        found = survey(path, state_of(path), names, self.extent, *clouds)
        with open_series(path) as file:
            for modality, (stored, shown) in zip(modalities, found, strict=True):
                series, every = SERIES[modality.name], self.all_modalities[modality.name].bands
                frames, days, clear = plan(stored, shown, self._span, self.max_dates)
                if len(frames) == 0:
                    continue
                image, merged = merge_days(read_series_frames(file, series, frames), days, finite_mean)
                image = pick(modality, every, image)
                image = 10 * np.log10(image) if series.radar else image
                valid = clear & np.isfinite(image).any((1, 2, 3))
                sample |= tensors(modality, image, merged.copy(), valid)
        return sample

    def _place(self, name: str) -> tuple[CRS | None, Bounds]:
        """Return the CRS and the bounds xmin, ymin, xmax, ymax of a plot, from its aerial image."""
        path = self._aerial.get(name)
        if path is None:
            return None, NOWHERE
        try:
            with open_raster(str(path)) as source:
                return source.crs, around(source.transform, source.shape)
        except RasterioError as error:
            raise ValueError(f'{path} cannot be read ({error}), expected the aerial image of a plot') from error

    def _files(self, name: str) -> dict[str, Path]:
        """Files of a modality by plot."""
        return self._series if name in SERIES else self._aerial

    def _choose(self, names: Sequence[str] | None, bands: Mapping[str, Sequence[str]] | None) -> dict[str, Modality]:
        """Return the modalities with the requested bands."""
        held = [name for name in self.all_modalities if self._files(name)]
        chosen = choose_modalities(names, held, self.all_modalities, self.path)
        return select_bands({name: self.all_modalities[name] for name in chosen}, bands)

    def _check_files(self) -> None:
        """Refuse a plot without a label, and, unless that is allowed, without a file; leave out those without any."""
        unlabelled = [name for name in self.names if name not in self.shares]
        if unlabelled:
            raise ValueError(
                f'{self.path / LABELS} has no entry for {unlabelled[0]!r}, expected one for each of the '
                f'{len(self.names)} plots, of which {len(unlabelled)} have none'
            )
        for name in self.modalities if self.missing == 'error' else ():
            place = self._series_file if name in SERIES else self._aerial_file
            refuse_missing([place(plot) for plot in self.names if plot not in self._files(name)], len(self.names))
        seen = [any(plot in self._files(name) for name in self.modalities) for plot in self.names]
        self.names, self.unseen = keep_seen(self.names, self.names, seen, self.modalities, self.path)

    def _verify(self, names: Sequence[str] | None) -> None:
        """See that labels, images and lists are there, unpacked or downloaded if need be."""
        images = {'sentinel-ts' if name in SERIES else 'aerial' for name in names or self.all_modalities}
        there = {key: obtain(ARCHIVES[key], self.path, self.download, self.checksum) for key in ('labels', *images)}
        if not (there['labels'] and any(there[key] for key in images)):
            raise not_found(self, 'Expected the directories labels, aerial and sentinel-ts there, or their archives.')
        if self.split is not None and not any(self.path.glob('*_filenames.lst')):
            obtain(ARCHIVES['split'], self.path, self.download, self.checksum)
