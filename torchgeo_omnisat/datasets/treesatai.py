# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""TreeSatAI Time-Series: tree genera from aerial images and Sentinel-1 and -2 time series."""

import hashlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar

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
from ..utils.checks import check_choice
from ..utils.plurals import counted
from ..utils.reading import refuse_special
from ..utils.signatures import with_arguments_of
from ..utils.tensors.observed import MAX_RAW
from .base import PublishedDataset, blank, bounds_of, keep_seen, pick, refuse_missing, tensors
from .common.arguments import SPLITS, choose_modalities, leave_out, not_found, select_bands
from .common.integrity import Dates, Expected, Part
from .common.plotting import S1_COMPOSITES, S2_COMPOSITES, Composite, Palette, plot_sample
from .common.series import S2_BANDS, S2_FACTS, choose_clear, finite_mean, merge_days, parse_dates
from .io.download import Archive, obtain
from .io.files import measured, read_json, read_raster
from .io.fingerprint import State, state_of
from .io.links import refuse_outside
from .io.opening import open_raster

REPOSITORY = 'IGNF/TreeSatAI-Time-Series'
#: Archives by the directory that they contain, with their SHA-256 on Hugging Face.
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

#: Side of a plot in metres, and margin of the aerial images on every side in pixels.
EXTENT, MARGIN = 60.0, 2
#: xmin, ymin, xmax, ymax in metres.
type Bounds = tuple[float, float, float, float]
NOWHERE: Bounds = (float('nan'),) * 4
#: A genus occurs if it covers more than this fraction of the plot.
THRESHOLD = 0.07


@dataclass(frozen=True)
class Series:
    """Keys and encoding of a time series in a file.

    Args:
        prefix: Prefix of the keys of data, masks and products.
        date_field: Index of the date in a product name that is split at underscores.
        radar: Whether values are linear power, which is converted to dB.
    """

    prefix: str
    date_field: int
    radar: bool = False


SERIES = {'s2': Series('sen-2', 2), 's1a': Series('sen-1-asc', 4, True), 's1d': Series('sen-1-des', 4, True)}
#: Modalities with all bands.
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
    'aerial': (Composite('true colour', ('R', 'G', 'B'), alike=True), Composite('infrared', ('NIR',))),
}
#: Genera in the order of the label.
GENERA: tuple[str, ...] = TreeSatAI.classes


def read_label_fractions(path: Path, strict: bool = True) -> dict[str, dict[str, float]]:
    """Read the fraction (0 to 1) of each plot that each genus covers, by name; validate it if *strict*."""
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
    """Validate the label of a plot."""
    expected = f'expected [["<genus>", <share from 0 to 1>], ...] of {list(GENERA)}'
    if name not in plots:
        raise FileNotFoundError(f'{path} has no entry for {name!r}, {expected}')
    wrong = {genus: share for genus, share in plots[name].items() if genus not in GENERA or not 0 <= share <= 1.001}
    if wrong:
        raise ValueError(f'{name!r} in {path} has {wrong}, {expected}')


def listed(root: Path) -> set[str]:
    """Return the names in the published lists of all splits, without ``.tif``."""
    paths = [*root.glob('*_filenames.lst'), *root.glob('split/*_filenames.lst')]
    for path in paths:
        refuse_special(path, 'the names of files')
    return {Path(line.strip()).name.removesuffix('.tif') for path in paths for line in path.read_text().splitlines()}


def read_split(root: Path, split: str) -> list[str]:
    """Read the names of the plots of a split from the published lists, in their order.

    If there is no list for validation (as in the first release, on Zenodo), a tenth of the training list is used: the
    names with the smallest SHA-256.
    """
    lists = {}
    for kind in SPLITS:
        places = [root / 'split' / f'{kind}_filenames.lst', root / f'{kind}_filenames.lst']
        found = next((place for place in places if place.is_file()), None)
        if found is not None:
            lines = (Path(line.strip()).name.removesuffix('.tif') for line in found.read_text().splitlines())
            lists[kind] = [line for line in lines if line]
        elif kind == split and not (kind == 'val' and 'train' in lists):
            raise FileNotFoundError(
                f'{places[0]} does not exist, expected the list of files of split {split!r}; '
                'split=None uses all existing files'
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
    """Return the bounds of the plot at the centre of an image of the given shape."""
    height, width = shape[-2:]
    x = transform.c + transform.a * width / 2 + transform.b * height / 2
    y = transform.f + transform.d * width / 2 + transform.e * height / 2
    return x - EXTENT / 2, y - EXTENT / 2, x + EXTENT / 2, y + EXTENT / 2


def find_series(directory: Path) -> dict[str, Path]:
    """Return the files ``<name>_<year>.h5`` of time series by name of the plot, one each."""
    found: dict[str, Path] = {}
    for path in sorted(directory.glob('*.h5')):
        match = re.fullmatch(r'(.+)_\d{4}', path.stem)
        name = match[1] if match else path.stem
        if name in found:
            raise ValueError(f'{path} and {found[name]} are of one plot, expected one file per plot')
        found[name] = path
    return found


EXPECTED = 'HDF5 with series of Sentinel-1 and -2'
#: Maximum number of products of a time series.
_MOST_DATES = 10_000


@contextmanager
def open_series(path: Path) -> Iterator[h5py.File]:
    """Open a file of time series, so that errors of its structure are ValueErrors that name the file."""
    refuse_special(path, EXPECTED)
    try:
        with h5py.File(path, 'r') as file:
            yield file
    except (OSError, KeyError, RuntimeError, TypeError) as error:
        raise ValueError(f'{path} cannot be read ({error}), expected {EXPECTED}') from error


def dataset_of(file: h5py.File, key: str) -> h5py.Dataset:
    """Return an HDF5 dataset that is stored in the file itself.

    Others are a KeyError: a downloaded file must not select files to read.
    """
    if not isinstance(file.get(key, getlink=True), h5py.HardLink):
        raise KeyError(f'{key} is not a dataset in the file itself')
    found = file[key]
    if not isinstance(found, h5py.Dataset) or found.external or found.is_virtual:
        raise KeyError(f'{key} is not a dataset in the file itself')
    return found


def read_days(file: h5py.File, series: Series, path: Path) -> bytes:
    """Return days since 1970-01-01 of the frames, as bytes of int64, from the product names."""
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
    """Parse the dates in product names; they are cached, because plots of an orbit share them."""
    stamps = []
    for stored in products:
        name = stored.decode() if isinstance(stored, bytes) else stored
        parts = name.split('_', place + 1)
        if len(parts) <= place:
            raise ValueError(f'has {name!r}, expected a date in field {place} of the name')
        stamps.append(parts[place][:8])
    return parse_dates(stamps, 'the names of products').tobytes()


def read_file_days(path: Path, series: Series) -> NDArray[np.int64]:
    """Open a file and return days since 1970-01-01 of its frames."""
    with open_series(path) as file:
        return np.frombuffer(read_days(file, series, path), dtype=np.int64)


def read_hidden(
    file: h5py.File, series: Series, shape: Sequence[int], probability: float, path: Path
) -> NDArray[np.float64]:
    """Return the fraction (T,) of pixels of each frame ``(T, H, W)`` that snow or clouds cover; 0 without masks.

    *probability* is the minimum in % of a covered pixel. Pixels with unknown probability are covered.
    """
    key = f'{series.prefix}-masks'
    if series.radar or key not in file:
        return np.zeros(shape[0])
    dataset = dataset_of(file, key)
    if dataset.ndim != 4 or dataset.shape[1] < 2 or (dataset.shape[0], *dataset.shape[2:]) != tuple(shape):
        expected = f'({shape[0]}, 2, {shape[1]}, {shape[2]}), snow and cloud first, or more channels that are empty'
        raise ValueError(f'{key} of {path} has shape {dataset.shape}, expected {expected}')
    clear = (dataset[:, :2] < probability).all(1)
    hidden: NDArray[np.float64] = (~clear).mean((1, 2))
    return hidden


def read_clear(
    file: h5py.File, series: Series, shape: Sequence[int], probability: float, cover: float, path: Path
) -> bytes:
    """Return flags of frames of which snow or clouds cover a fraction less than *cover*, packed into bits."""
    hidden = read_hidden(file, series, (shape[0], *shape[2:]), probability, path)
    return np.packbits(hidden < cover).tobytes()


@lru_cache(maxsize=2**16)
def survey(
    path: Path, state: State | None, names: Sequence[str], extent: float, probability: float, cover: float
) -> tuple[tuple[bytes, bytes], ...]:
    """Read days, as bytes of int64, and flags of clear frames, packed into bits, of each modality of a plot.

    The result is cached until the *state* of the file changes.
    """
    found = []
    with open_series(path) as file:
        for name in names:
            days = read_days(file, SERIES[name], path)
            images = images_of(file, name, len(days) // 8, extent, path)
            found.append((days, read_clear(file, SERIES[name], images.shape, probability, cover, path)))
    return tuple(found)


def images_of(file: h5py.File, name: str, count: int, extent: float, path: Path) -> h5py.Dataset:
    """Return the HDF5 dataset of the images of a time series, ``(T, C, H, W)``, without reading them."""
    modality, key = MODALITIES[name], f'{SERIES[name].prefix}-data'
    side = modality.pixels(extent)
    shape, dataset = (count, len(modality.bands), side, side), dataset_of(file, key)
    if dataset.shape != shape or dataset.dtype.kind not in 'iuf':
        what = f'{counted(count, "product")} of {counted(shape[1], "band")} and {side} by {side} pixels'
        raise ValueError(f'{key} of {path} is {dataset.dtype} {dataset.shape}, expected {shape}: {what}')
    return dataset


@lru_cache(maxsize=4096)
def plan(
    days: bytes, clear: bytes, span: tuple[int, int] | None, max_dates: int | None
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Return indices of the frames to read, their days, and flags of their distinct days with a clear frame.

    *days* and *clear* are those of :func:`survey`.
    """
    every = np.frombuffer(days, dtype=np.int64)
    flags = np.unpackbits(np.frombuffer(clear, dtype=np.uint8), count=len(every)).astype(bool)
    frames = choose_clear(every, flags, span, max_dates)
    return frames, every[frames], np.isin(np.unique(every[frames]), every[flags])


def read_series_frames(file: h5py.File, series: Series, frames: NDArray[np.int64]) -> NDArray[np.float32]:
    """Read frames of a time series with NaN for nodata; radar is in linear power.

    Nodata are Sentinel-2 pixels that are zero in all bands, and Sentinel-1 values that are zero.
    """
    first, last = int(frames.min()), int(frames.max())
    stored = _rows(file, f'{series.prefix}-data', first, last + 1)
    if not (len(frames) == len(stored) and (frames[1:] - frames[:-1] == 1).all()):
        stored = stored[frames - first]
    image: NDArray[np.float32] = stored.astype(np.float32, copy=False)
    known = (
        (image > 0) & (image <= MAX_RAW)
        if series.radar
        else (np.abs(image) <= MAX_RAW) & (image != 0).any(1, keepdims=True)
    )
    if not known.all():
        image[~known] = np.nan
    return image


def _rows(file: h5py.File, key: str, first: int, stop: int) -> NDArray[Any]:
    """Read rows of a dataset with h5py's low-level API, which takes a third of the time of the high-level one."""
    dataset = h5py.h5d.open(file.id, key.encode())
    rows = np.empty((stop - first, *dataset.shape[1:]), dataset.dtype)
    if rows.shape == dataset.shape:  # without a selection, in half the time
        dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, rows)
        return rows
    space = dataset.get_space()
    space.select_hyperslab((first, *(0,) * (rows.ndim - 1)), rows.shape)
    dataset.read(h5py.h5s.create_simple(rows.shape), space, rows)
    return rows


class TreeSatAITimeSeries(PublishedDataset):
    """TreeSatAI Time-Series dataset: forest plots of 60 m in Lower Saxony and their tree genera.

    ======  ==============================================  =======  ====================
    name    bands                                           GSD      stored as
    ======  ==============================================  =======  ====================
    s2      B02 B03 B04 B05 B06 B07 B08 B8A B11 B12         10 m     reflectance x 10000
    s1a     VV, VH, ascending orbit                         10 m     power, read as dB
    s1d     VV, VH, descending orbit                        10 m     power, read as dB
    aerial  NIR G B R                                       0.2 m    0 to 255, no date
    ======  ==============================================  =======  ====================

    A sample has ``image_<name>``, ``dates_<name>`` and ``valid_<name>`` of each available
    modality (see :mod:`torchgeo_omnisat.batch`), in raw units with NaN for nodata; ``label``
    (15,), 1 for each of :attr:`classes` that covers more than 7 % of the plot; and ``bounds``
    (9,), NaN without an aerial image, because only this has a georeference. There is no mask.

    Dates come from product names and are sorted. Frames of one day are merged, Sentinel-1 in
    linear power, from clear frames only if there are any. A date of Sentinel-2 is in the sample
    but not valid if at least a fraction *cloud_cover* of its pixels are snow or cloud with a
    probability of at least *cloud_probability* %. Aerial images of 304 x 304 pixels are cropped
    to the central 300 x 300.

    Source: https://huggingface.co/datasets/IGNF/TreeSatAI-Time-Series; licence: CC-BY-4.0.
    If you use this dataset in your research, please cite:

    * TreeSatAI: https://doi.org/10.5194/essd-15-681-2023
    * Time-Series: https://doi.org/10.1007/978-3-031-73390-1_24
    """

    layout: ClassVar[str] = 'TreeSatAI'
    classes: ClassVar[tuple[str, ...]] = GENERA
    all_modalities: ClassVar[dict[str, Modality]] = MODALITIES
    extent = EXTENT

    @with_arguments_of(PublishedDataset, is_last=True)
    def __init__(
        self,
        root: PathLike = 'data',
        split: str | None = 'train',
        modalities: Sequence[str] | None = None,
        bands: Mapping[str, Sequence[str]] | None = None,
        *,
        exclude: Collection[str] = (),
        **kwargs: Any,
    ) -> None:
        """Read the labels and the list of the split, and check that files exist.

        A sample without a date in *date_range* and without another modality gets one invalid image. The archives
        have 22 GB.

        Args:
            root: Directory with ``labels``, ``aerial``, ``sentinel-ts`` and ``split``, or their
                archives; the lists of the splits may also be in it.
            split: ``'train'``, ``'val'`` or ``'test'``; None for all existing files. Without a list
                for validation, a tenth of the training list is used, with the smallest SHA-256.
            modalities: Names of the modalities to read; None for all that are in *root*.
            bands: Bands to keep by modality, such as ``{'s1a': ('VV',)}``.
            exclude: Names of samples to exclude (:attr:`ids`, of any split).
            **kwargs: Arguments of all published datasets.

        Raises:
            DatasetNotFoundError: If the dataset is not found and *download* is False.
            FileNotFoundError: If a file is missing.
            ValueError: If an argument or a file is invalid.
        """
        check_choice(split=(split, (*SPLITS, None)))
        super().__init__(root, **kwargs)
        self.split = split
        self._verify(modalities)
        refuse_outside(self.path, ('aerial', 'labels', 'sentinel*', 'split', '*.lst'), self.allow_outside)
        self._series = find_series(self.path / 'sentinel-ts')
        self._aerial = {path.stem: path for path in (self.path / 'aerial').glob('*.tif')}
        self.modalities = self._choose(modalities, bands)
        self.shares = read_label_fractions(self.path / LABELS, strict=self.missing != 'check')
        self.names = sorted({*self._series, *self._aerial}) if split is None else read_split(self.path, split)
        known = {*listed(self.path), *self.shares, *self._series, *self._aerial}
        self.names, self.excluded = leave_out(self.names, self.names, exclude, known, self.path)
        if self.missing != 'check':
            self._check_files()
        self.crs = None if self.missing == 'check' else self._place(self.names[0])[0]

    @property
    def ids(self) -> list[str]:
        """Name of each sample."""
        return self.names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        """Return the sample of a plot."""
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
        """Plot every modality and some of its dates, with the genera and, if available, the prediction.

        Raises:
            RGBBandsMissingError: If no modality has the bands of a plot.
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
        """Return the files of a modality and some samples, including files that do not exist."""
        place = self._series_file if name in SERIES else self._aerial_file
        return [place(self.names[index]) for index in indices]

    def _label(self, name: str) -> Tensor:
        shares = self.shares[name]
        return torch.tensor([shares.get(genus, 0.0) > THRESHOLD for genus in self.classes]).float()

    def _checked_label(self, name: str) -> Tensor:
        check_shares(self.path / LABELS, self.shares, name)
        return self._label(name)

    def _series_file(self, name: str) -> Path:
        return self._series.get(name, self.path / 'sentinel-ts' / f'{name}_<year>.h5')

    def _aerial_file(self, name: str) -> Path:
        return self._aerial.get(name, self.path / 'aerial' / f'{name}.tif')

    def _listed(self, values: Tensor) -> str:
        held = [genus for genus, value in zip(self.classes, values.tolist(), strict=True) if value > 0.5]
        return ', '.join(held) or 'none'

    def _read_aerial(self, name: str) -> tuple[Sample, Bounds]:
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
        return self._series if name in SERIES else self._aerial

    def _choose(self, names: Sequence[str] | None, bands: Mapping[str, Sequence[str]] | None) -> dict[str, Modality]:
        held = [name for name in self.all_modalities if self._files(name)]
        chosen = choose_modalities(names, held, self.all_modalities, self.path)
        return select_bands({name: self.all_modalities[name] for name in chosen}, bands)

    def _check_files(self) -> None:
        """Raise an error for missing labels or files, unless files may be missing; exclude plots without any file."""
        unlabelled = [name for name in self.names if name not in self.shares]
        if unlabelled:
            raise ValueError(
                f'{self.path / LABELS} has no entry for {unlabelled[0]!r}, expected one for each plot (missing for '
                f'{len(unlabelled)} of {len(self.names)})'
            )
        for name in self.modalities if self.missing == 'error' else ():
            place = self._series_file if name in SERIES else self._aerial_file
            refuse_missing([place(plot) for plot in self.names if plot not in self._files(name)], len(self.names))
        seen = [any(plot in self._files(name) for name in self.modalities) for plot in self.names]
        self.names, self.unseen = keep_seen(self.names, self.names, seen, self.modalities, self.path)

    def _verify(self, names: Sequence[str] | None) -> None:
        images = {'sentinel-ts' if name in SERIES else 'aerial' for name in names or self.all_modalities}
        there = {key: obtain(ARCHIVES[key], self.path, self.download, self.checksum) for key in ('labels', *images)}
        if not (there['labels'] and any(there[key] for key in images)):
            raise not_found(self, 'Expected the directories labels, aerial and sentinel-ts there, or their archives.')
        if self.split is not None and not any(self.path.glob('*_filenames.lst')):
            obtain(ARCHIVES['split'], self.path, self.download, self.checksum)
