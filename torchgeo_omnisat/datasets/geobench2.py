# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""GEO-Bench-2: PASTIS, TreeSatAI and BioMassters from its tortilla files, with its splits."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torchgeo.datasets.utils import Path as PathLike
from torchgeo.datasets.utils import Sample

from ..modality import Modality
from ..utils.checks import check_choice, check_integer
from ..utils.plurals import counted
from .base import MultimodalDataset, pick, tensors
from .biomassters import seconds
from .common.arguments import SPLITS, choose_modalities, leave_out, not_found, select_bands
from .common.plotting import S1_COMPOSITES, S2_COMPOSITES, Composite, Palette
from .common.series import (
    S2_BANDS,
    S2_FACTS,
    Merge,
    backscatter_mean,
    choose_dates,
    finite_mean,
    merge_days,
    parse_dates,
)
from .io.files import has_values, measured, occurring
from .io.tortilla import Entry, read_tortilla
from .pastis import CLASSES as CROPS
from .pastis import COLORS, SOURCES
from .treesatai import COMPOSITES as TREE_COMPOSITES
from .treesatai import EXTENT, GENERA, MARGIN
from .treesatai import MODALITIES as TREE_MODALITIES

#: Months in the order of BioMassters, from September.
MONTHS = (
    'September', 'October', 'November', 'December', 'January', 'February', 'March', 'April', 'May', 'June', 'July',
    'August',
)  # fmt: skip
#: Other names of the splits in the files.
NAMES = {'validation': 'val'}


@dataclass(frozen=True)
class Benchmark:
    """A dataset of GEO-Bench-2.

    Args:
        modalities: Modalities with all bands in the files.
        composites: Band combinations for figures.
        merges: Function that merges the frames of one day, by modality.
        classes: Names of the classes; empty for values.
        colors: Their colours.
        ignore_index: Class that is ignored; None if there is none.
    """

    modalities: Mapping[str, Modality]
    composites: Mapping[str, tuple[Composite, ...]]
    merges: Mapping[str, Merge] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    colors: tuple[str, ...] = ()
    ignore_index: int | None = None


_TREES_S2 = ('B02', 'B03', 'B04', 'B08', 'B05', 'B06', 'B07', 'B8A', 'B11', 'B12', 'B01', 'B09')
_ORBITS = ('VV_asc', 'VH_asc', 'VV_desc', 'VH_desc')
#: Datasets by name.
BENCHMARKS: dict[str, Benchmark] = {
    'pastis': Benchmark(
        {source.modality.name: source.modality for source in SOURCES if source.dates is not None},
        {source.modality.name: source.composites for source in SOURCES if source.dates is not None},
        {source.modality.name: source.merge for source in SOURCES if source.dates is not None},
        CROPS,
        COLORS,
        len(CROPS) - 1,
    ),
    'treesatai': Benchmark(
        {
            'aerial': TREE_MODALITIES['aerial'],
            's1': Modality('s1', ('VV', 'VH', 'VV/VH'), 10.0, False, 'radar'),
            's2': Modality('s2', _TREES_S2, 10.0, False, 'optical', 'dn'),
        },
        {'aerial': TREE_COMPOSITES['aerial'], 's1': S1_COMPOSITES, 's2': S2_COMPOSITES},
        classes=GENERA,
    ),
    'biomassters': Benchmark(
        {
            's1': Modality('s1', _ORBITS, 10.0, True, 'radar', 'db'),
            's2': Modality('s2', S2_BANDS, 10.0, True, **S2_FACTS),
        },
        {'s1': (Composite('VV', ('VV_asc',)), Composite('VV', ('VV_desc',))), 's2': S2_COMPOSITES},
        {'s1': backscatter_mean, 's2': finite_mean},
    ),
}
#: Names of the files of PASTIS in a sample, by modality.
_PASTIS = {'s2': 's2', 's1a': 's1a', 's1d': 's1d', 'mask': 'semantic'}


class GeoBench2(MultimodalDataset):
    """Datasets of GEO-Bench-2 in its files and splits: ``pastis``, ``treesatai`` or ``biomassters``.

    =============  ==========================================================  ====================================
    name           modalities                                                  label
    =============  ==========================================================  ====================================
    pastis         s2, s1a, s1d: time series of PASTIS-R                       ``mask`` of 20 classes, void ignored
    treesatai      aerial (NIR G B R, 0.2 m), s2 and s1 (10 m), single images  ``label`` of 15 genera
    biomassters    s1 (both orbits) and s2, twelve months                      ``mask``: biomass of each pixel
    =============  ==========================================================  ====================================

    The splits of ``pastis`` are those of the official split 1. A sample is as of :class:`.PASTISMultimodal`, without
    ``bounds``. Missing orbits and nodata are NaN.

    Sentinel images of ``treesatai`` are stored with 304 x 304 pixels, copies of the 6 x 6 pixels of 10 m, which are
    restored. Its Sentinel-1 was written as unsigned integers. Values above 32767 are read as negative decibels without
    decimals, which follows from the published statistics. A genus occurs if it is listed, however small its fraction.

    Months of ``biomassters`` are the 15th of each month from September 2020, since the years are unknown. Its cloud
    probability is not read.

    Reading requires pyarrow: ``pip install 'torchgeo_omnisat[parquet]'``.

    Source: https://huggingface.co/aialliance; GEO-Bench-2: https://github.com/The-AI-Alliance/GEO-Bench-2.
    """

    layout: ClassVar[str] = 'GEO-Bench-2'

    def __init__(
        self,
        root: PathLike = 'data',
        name: Literal['pastis', 'treesatai', 'biomassters'] = 'pastis',
        split: str = 'train',
        modalities: Sequence[str] | None = None,
        bands: Mapping[str, Sequence[str]] | None = None,
        max_dates: int | None = None,
        exclude: Collection[str] = (),
        transforms: Callable[[Sample], Sample] | None = None,
    ) -> None:
        """Read the tables of the files; no image is opened.

        Args:
            root: Directory with the files of the dataset, such as ``geobench_pastis.0000.part.tortilla``.
            name: ``'pastis'``, ``'treesatai'`` or ``'biomassters'``.
            split: ``'train'``, ``'val'`` or ``'test'``.
            modalities: Names of the modalities to read; None for all.
            bands: Bands to keep by modality.
            max_dates: Maximum number of days per time series, evenly spread; None for all.
            exclude: Names of samples to exclude (:attr:`ids`, of any split).
            transforms: Transform applied to each sample.

        Raises:
            DatasetNotFoundError: If no file is found, or no file contains samples of the split.
            ImportError: If pyarrow is not installed.
            ValueError: If an argument or a file is invalid.
        """
        check_choice(name=(name, tuple(BENCHMARKS)), split=(split, SPLITS))
        check_integer(1, max_dates=max_dates)
        super().__init__(root, split)
        self.name, self.max_dates, self.transforms = name, max_dates, transforms
        self.benchmark = BENCHMARKS[name]
        self.labels, self.ignore_index = list(self.benchmark.classes) or None, self.benchmark.ignore_index
        if self.benchmark.colors:
            self.palette = Palette(self.benchmark.classes, self.benchmark.colors)
        self.composites = self.benchmark.composites
        every = dict(self.benchmark.modalities)
        kept = choose_modalities(modalities, every, every, root)
        self.modalities = select_bands({key: every[key] for key in kept}, bands)
        self.files = sorted(self.path.glob(f'*{name}*.tortilla'))
        if not self.files:
            raise not_found(self, f'Expected files such as geobench_{name}.tortilla there.')
        entries = [entry for path in self.files for entry in read_tortilla(path)]
        found = [entry for entry in entries if _split_of(entry) == split]
        if not found:
            held = sorted({str(_split_of(entry)) for entry in entries})
            raise not_found(self, f'Expected samples of the split {split!r} in {self.files[0]}, got {held}.')
        known = {_name_of(entry) for entry in entries}
        names = [_name_of(entry) for entry in found]
        self.entries, self.excluded = leave_out(found, names, exclude, known, self.path)

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def ids(self) -> list[str]:
        """Name of each sample."""
        return [_name_of(entry) for entry in self.entries]

    @property
    def all_modalities(self) -> dict[str, Modality]:
        """Modalities with all bands in the files."""
        return {name: self.benchmark.modalities[name] for name in self.modalities}

    def image_files(self, name: str, indices: Iterable[int]) -> list[Path]:
        """Return the files of some samples."""
        return sorted({self.entries[index].path for index in indices})

    def __getitem__(self, index: int) -> Sample:
        """Return a sample."""
        entry = self.entries[index]
        readers = {'pastis': self._pastis, 'treesatai': self._treesatai, 'biomassters': self._biomassters}
        sample = readers[self.name](entry, entry.entries())
        return sample if self.transforms is None else self.transforms(sample)

    def _pastis(self, entry: Entry, parts: Sequence[Entry]) -> Sample:
        inside = {part.id: part for part in parts}
        expected = 'integers (3, H, W), of which the first channel is classes 0 to 19'
        array = _one(inside, _PASTIS['mask'], entry).array('data', expected)
        if array.ndim != 3 or len(array) != 3 or array.dtype.kind == 'f':
            raise ValueError(f'the mask of {entry.where} is {array.dtype} {array.shape}, expected {expected}')
        mask = np.array(array[0], dtype=np.int64)
        if mask.min(initial=0) < 0 or mask.max(initial=0) >= len(CROPS):
            raise ValueError(f'the mask of {entry.where} has {mask.min()} to {mask.max()}, expected {expected}')
        sample: Sample = {'mask': torch.from_numpy(mask)}
        sources = {source.modality.name: source for source in SOURCES}
        for name in self.modalities:
            part, source = _one(inside, _PASTIS[name], entry), sources[name]
            days = parse_dates(part.fields.get('dates') or (), f'dates of {part.where}')
            shape = (len(days), len(source.modality.bands), *mask.shape)
            image = part.array('data', f'{source.dtype} {shape}: {counted(len(days), "date")}')
            if image.shape != shape:
                raise ValueError(
                    f'{part.where} has shape {image.shape}, expected {shape}: {counted(len(days), "date")}'
                )
            frames = choose_dates(days, None, self.max_dates)
            values = measured(image[frames], source.dtype, source.nodata, part.path)
            sample |= self._series(name, values, days[frames])
        sample['label'] = torch.from_numpy(occurring(mask, len(CROPS) - 1)[1:])
        return sample

    def _biomassters(self, entry: Entry, parts: Sequence[Entry]) -> Sample:
        sample: Sample = {}
        biomass = [part for part in parts if part.fields.get('modality') == 'AGBM']
        if len(biomass) != 1:
            raise ValueError(f'{entry.where} has {counted(len(biomass), "file")} of biomass, expected one')
        values = measured(biomass[0].raster('biomass (1, H, W)'), 'float32', None, entry.path)
        sample['mask'] = torch.from_numpy(values[0])
        for name, modality in self.benchmark.modalities.items():
            if name not in self.modalities:
                continue
            months = {_month(part): part for part in parts if part.fields.get('modality') == name.upper()}
            days = np.array([seconds(month) // 86400 for month in sorted(months)], dtype=np.int64)
            frames = choose_dates(days, None, self.max_dates)
            if not len(frames):
                continue
            chosen = [months[sorted(months)[frame]] for frame in frames]
            images = [part.raster(counted(len(modality.bands), 'band')) for part in chosen]
            shape = (len(modality.bands), *values.shape[1:])
            wrong = [image.shape for image in images if len(image) < shape[0] or image.shape[1:] != shape[1:]]
            if wrong:
                raise ValueError(f'{name} of {entry.where} has shape {wrong[0]}, expected {shape}')
            stacked = np.stack([image[: shape[0]] for image in images])
            read = measured(stacked, str(stacked.dtype), -9999.0 if name == 's1' else None, entry.path)
            if name == 's2':
                np.copyto(read, np.nan, where=(read == 0).all(1, keepdims=True))
            sample |= self._series(name, read, days[frames])
        return sample

    def _treesatai(self, entry: Entry, parts: Sequence[Entry]) -> Sample:
        inside, sample = {part.id: part for part in parts}, cast(Sample, {})
        for name in self.modalities:
            part = _one(inside, name, entry)
            stored = part.raster(counted(len(self.benchmark.modalities[name].bands), 'band'))
            every = self.benchmark.modalities[name]
            side = every.pixels(EXTENT)
            if name == 'aerial' and stored.shape[1:] == (side + 2 * MARGIN,) * 2:
                stored = stored[:, MARGIN:-MARGIN, MARGIN:-MARGIN]
            elif name != 'aerial' and stored.shape[1] > side:
                centres = ((np.arange(side) + 0.5) * stored.shape[1] / side).astype(np.int64)
                stored = stored[:, centres][:, :, centres]
            if stored.shape != (len(every.bands), side, side):
                raise ValueError(f'{part.where} has shape {stored.shape}, expected {(len(every.bands), side, side)}')
            if name == 's1' and stored.dtype == np.uint16:
                stored = stored.view(np.int16)
            image = pick(self.modalities[name], every.bands, measured(stored, str(stored.dtype), None, part.path))
            valid = has_values(image.reshape(1, -1))
            sample |= tensors(self.modalities[name], image, np.zeros(1, dtype=np.int64), valid)
        listed = entry.fields.get('species_labels') or ()
        if unknown := [genus for genus in listed if genus not in GENERA]:
            raise ValueError(f'species_labels of {entry.where} has {unknown[0]!r}, expected some of {GENERA}')
        sample['label'] = torch.tensor([float(genus in listed) for genus in GENERA])
        return sample

    def _series(self, name: str, image: NDArray[np.float32], days: NDArray[np.int64]) -> Sample:
        image, days = merge_days(image, days, self.benchmark.merges[name])
        image = pick(self.modalities[name], self.benchmark.modalities[name].bands, image)
        return tensors(self.modalities[name], image, days, has_values(image.reshape(len(days), -1)))


def _split_of(entry: Entry) -> str | None:
    split = entry.fields.get('tortilla:data_split')
    return NAMES.get(str(split), str(split))


def _name_of(entry: Entry) -> str:
    return str(entry.fields.get('patch_id') or entry.id)


def _month(part: Entry) -> int:
    month = part.fields.get('month')
    if month not in MONTHS:
        raise ValueError(f'month of {part.where} is {month!r}, expected one of {MONTHS}')
    return MONTHS.index(cast(str, month))


def _one(parts: Mapping[str, Entry], name: str, entry: Entry) -> Entry:
    if name not in parts:
        raise ValueError(f'{entry.where} has the files {sorted(parts)}, expected {name!r} among them')
    return parts[name]


def label_arguments(name: str) -> dict[str, Any]:
    """Return the attributes of a datamodule that describe the labels of a dataset."""
    check_choice(name=(name, tuple(BENCHMARKS)))
    classes = list(BENCHMARKS[name].classes)
    return {'labels': classes, 'num_classes': len(classes), 'ignore_index': BENCHMARKS[name].ignore_index}
