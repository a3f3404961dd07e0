# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Dataset of image chips and masks with the same file names, each chip in its own CRS."""

import copy
import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import shapely
import torch
from geopandas import GeoDataFrame
from numpy.typing import NDArray
from pyproj import CRS
from rasterio import Affine
from torch import Tensor
from torchgeo.datasets.utils import Path as PathLike
from torchgeo.datasets.utils import Sample

from ...grid import Grid
from ...modality import Modality
from ...utils.checks import EmptySplitError, check_choice
from ...utils.plurals import counted
from ...utils.tensors.coordinates import COORDINATES, centre_coordinates
from ..base import MultimodalDataset, bounds_of
from ..common.arguments import MISSING, SPLITS, leave_out
from ..common.classes import ClassMap
from ..common.integrity import Expected, Part
from ..geo.config import image_dataset, label_dataset
from ..geo.parts import expected_files
from ..geo.sources import common_step
from ..rasters.frames import ALWAYS, scene_files
from ..rasters.georeference import crs_code
from ..rasters.timeseries import read_modality
from .files import ChipFiles, ChipGrid, ChipLabels, centres, nowhere
from .splits import split_chips

#: Readers of the files of a chip.
CHIP_READERS = {'raster': ChipFiles}


class _Crop(NamedTuple):
    """Window of a chip, in metres from its upper left corner."""

    top: float
    left: float
    height: float
    width: float

    def of(self, image: Tensor, gsd: float) -> Tensor:
        """Crop an image (..., H, W)."""
        top, left, height, width = (round(length / gsd) for length in self)
        if (top, left, height, width) == (0, 0, *image.shape[-2:]):
            return image
        return image[..., top : top + height, left : left + width].contiguous()


class ImageChips(MultimodalDataset):
    """Dataset of image chips, small images with masks of the same file names.

    Each sensor has a folder, and so do the masks. Files of the same name are one chip. Pixels are never
    resampled: each chip keeps its CRS, and may be a PNG or TIFF without georeference. A sensor without a file
    of a chip is missing from that sample.

    A sample has ``image_<name>``, ``dates_<name>`` and ``valid_<name>`` of every available sensor (see
    :mod:`torchgeo_omnisat.batch`), NaN where pixels are not valid; ``mask`` (H, W); and ``bounds`` (9,) and
    ``transform`` (9,) in the CRS of the chip (:attr:`chip_crs`), NaN if it is not georeferenced.
    """

    layout: ClassVar[str] = 'Chips'

    def __init__(
        self,
        root: PathLike = 'data',
        rasters: Mapping[str, Mapping[str, Any]] | None = None,
        mask: Mapping[str, Any] | None = None,
        labels: Sequence[str] = (),
        split: str | None = 'train',
        splits: Mapping[str, Any] | None = None,
        tile_size: float | None = None,
        label_gsd: float | None = None,
        ignore_index: int = 255,
        missing: Literal['error', 'allow', 'check'] = 'allow',
        exclude: Collection[str] = (),
        transforms: Callable[[Sample], Sample] | None = None,
    ) -> None:
        """Initialize the dataset from the headers of all files; no pixel is read.

        Args:
            root: Directory of the data.
            rasters: Settings by name of the modality: ``path``, a folder below *root*; ``gsd``; and arguments of
                :class:`.RasterTimeSeries`. ``temporal`` defaults to False. ``filename_regex`` has a group ``id``
                for the id of a chip, and ``date`` for a time series. By default the id is the name without
                extension, up to the date of a time series. Folders below *path* are part of the id.
            mask: Settings of the masks, rasters of one band: those of images, and ``classes`` and ``other``
                if pixels are codes. None if there are no masks.
            labels: Names of the classes.
            split: ``'train'``, ``'val'`` or ``'test'``; ``'all'`` or None for every chip.
            splits: Settings of the split, see :func:`.split_chips`. Defaults to 60, 20 and 20 % of blocks of 5 km.
            tile_size: Side in metres of a centre crop of each chip. By default samples are whole chips, which
                must have the same size.
            label_gsd: GSD of the labels in metres, a multiple of that of the masks. Defaults to that of the
                masks, or of the first of *rasters*.
            ignore_index: Index of pixels without a label.
            missing: Handling of chips without a file of a sensor: ``'error'`` raises; ``'allow'`` leaves the
                modality out of the sample; ``'check'`` defers all errors. A missing mask is always an error,
                except for *split* ``'all'``, whose samples have no masks.
            exclude: Ids of samples to exclude.
            transforms: Transform applied to each sample.

        Raises:
            DatasetNotFoundError: If a folder has no matching file.
            FileNotFoundError: If a folder or a file is missing.
            ValueError: If an argument is invalid, or the files of a chip do not match.
        """
        check_choice(missing=(missing, MISSING), split=(split, (*SPLITS, 'all', None)))
        if not rasters:
            raise ValueError("rasters is empty, expected settings by name such as {'s2': {'path': 's2', 'gsd': 10}}")
        self.root, self.path = root, Path(root).expanduser()
        self.splits = splits or {'fractions': (0.6, 0.2, 0.2)}
        self.tile_size, self.ignore_index, self.labels = tile_size, ignore_index, list(labels)
        self.transforms = transforms
        self.files = {name: self._open(name, settings) for name, settings in rasters.items()}
        self.masks: ChipLabels | None = None
        if mask is not None:
            files, coded = self._open('mask', mask), {key: mask.get(key) for key in ('classes', 'other')}
            self.masks = ChipLabels(files, ClassMap(self.labels, coded['classes'], coded['other'], ignore_index))
        self._index()
        self._set_grids(label_gsd)
        self._keep(split or 'all', missing, exclude, split not in ('all', None))

    @property
    def modalities(self) -> dict[str, Modality]:
        """Modalities by name."""
        return {name: next(iter(self.files[name].modalities.values())) for name in self.names}

    @modalities.setter
    def modalities(self, chosen: Mapping[str, Modality]) -> None:
        """Set the modalities to read."""
        self.names = tuple(chosen)

    @property
    def crs(self) -> CRS | None:
        """CRS of the first chip that has one; others may be in another."""
        return next(filter(None, self.chip_crs), None)

    @property
    def chip_crs(self) -> list[CRS | None]:
        """CRS of each chip; None for one without georeference."""
        return [place.crs for place in self._places]

    @property
    def positions(self) -> NDArray[np.float64] | None:
        """Centres (N, 2) in metres in an equal-area projection; None if a chip is not georeferenced."""
        shapes = np.array([self._outlines[name] for name in self.ids])
        return None if shapely.is_empty(shapes).any() else centres(shapes)

    @cached_property
    def assigned(self) -> dict[str, list[str]]:
        """Ids of the chips of each split."""
        names = {
            chip: [os.path.basename(path) for source, places in rows.items() for path in self._paths(source, places)]
            for chip, rows in self._rows.items()
        }
        return split_chips(names, np.array([self._outlines[name] for name in names]), self.splits, self.path)

    def part(
        self,
        split: str,
        missing: Literal['error', 'allow', 'check'] = 'allow',
        exclude: Collection[str] = (),
        with_masks: bool = True,
    ) -> 'ImageChips':
        """Return the chips of a split, without reading headers again.

        Args:
            split: ``'train'``, ``'val'``, ``'test'`` or ``'all'``.
            missing: See the constructor.
            exclude: See the constructor.
            with_masks: Whether samples must have masks.
        """
        if split != 'all':
            _ = self.assigned  # computed once for all parts
        part = copy.copy(self)
        part._keep(split, missing, exclude, with_masks and split != 'all')
        return part

    @property
    def ids(self) -> list[str]:
        """Name of each chip."""
        return self._ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        """Return the sample of a chip.

        Returns:
            Sample with images, dates, valid flags, mask, bounds and transform.

        Raises:
            ValueError: If a file cannot be read, does not match the others, or has codes without a class.
        """
        name = self.ids[index]
        self._check_faults(name)
        sample: Sample = {}
        for modality in self.modalities.values():
            sample |= self._read_images(modality, name)
        if self.masks is not None and self.with_masks and 'mask' in self._rows[name]:
            sample['mask'] = self.read_mask(index)
        place = self._places[index]
        corners = place.grid.bounds if place.crs is not None else (math.nan,) * 4
        sample['bounds'] = bounds_of(corners, place.grid.step if place.crs is not None else math.nan, sample)
        if place.crs is not None:
            sample[COORDINATES] = centre_coordinates(sample['bounds'], place.crs)
        transform = torch.tensor(tuple(place.grid.transform)[:9], dtype=torch.float64)
        sample['transform'] = transform if place.crs is not None else torch.full_like(transform, math.nan)
        return sample if self.transforms is None else self.transforms(sample)

    def image_files(self, name: str, indices: Iterable[int]) -> list[str]:
        """Return the files of a modality of several chips."""
        chips = [chip for chip in (self.ids[index] for index in indices) if name in self._rows[chip]]
        paths = [path for chip in chips for path in self._paths(name, self._rows[chip][name])]
        return [file for path in paths for file in scene_files(self.files[name], path)]

    def parts(self, index: int) -> Iterator[Part]:
        """Yield the files of a chip, for ``torchgeo_omnisat.datasets.common.integrity``."""
        name = self.ids[index]
        fault = 'shape' if name in self.faults else 'unreadable'
        for modality in self.modalities.values():
            expected = self._expected(modality.name, name)
            absent = modality.name not in self._rows[name] and self.missing == 'allow'
            read = partial(self._checked, name, expected, partial(self._read_images, modality, name))
            yield Part(modality.name, expected, read, None, modality, fault, absent)
        if self.masks is not None:
            expected = self._expected('mask', name)
            read = partial(self._checked, name, expected, partial(self.read_mask, index, strict=False))
            yield Part('mask', expected, read, fault='shape' if name in self.faults else 'label')

    def read_mask(self, index: int, strict: bool = True) -> Tensor:
        """Return the class indices (H, W) of a chip.

        Args:
            index: Index of the chip.
            strict: Whether a code that is not a class is an error; otherwise its pixels have no label.

        Raises:
            ValueError: If the file cannot be read, or *strict* and a code is not a class.
        """
        name = self.ids[index]
        assert self.masks is not None
        own = self._grids[name]['mask']
        height, width = (round(length / self.label_gsd) for length in own.size)
        part = self.masks.of(self._index_of('mask', name))
        classes = part.read(nowhere(height, width, self.label_gsd), ALWAYS, self.ignore_index, strict)
        return self._crop(name).of(classes, self.label_gsd)

    def masked(self) -> list[int]:
        """Return the indices of the chips with a mask that matches the images."""
        return [index for index, name in enumerate(self.ids) if 'mask' in self._rows[name] and name not in self.faults]

    def nodata_classes(self, indices: Sequence[int]) -> dict[str, tuple[float, int]]:
        """Return nodata value and class index of masks whose nodata value is also a class code, by path."""
        paths = [self._grids[self.ids[index]]['mask'].path for index in indices]
        return {} if self.masks is None else self.masks.nodata_of(paths)

    def describe_crs(self, name: str) -> str:
        """Describe the CRSs of the files of a modality, such as ``EPSG:32631 and 2 more``."""
        stated = [grids[name].crs for grids in self._grids.values() if name in grids]
        codes = [code for code, _ in Counter(map(crs_code, stated)).most_common()]
        return codes[0] + f' and {len(codes) - 1} more' * (len(codes) > 1)

    def _open(self, name: str, settings: Mapping[str, Any]) -> ChipFiles:
        """Open the files of a modality or of the masks, which may be in the folders of splits."""
        path = settings.get('path')
        if 'class_path' in settings or not isinstance(path, str):
            raise ValueError(f'settings of {name!r} are {dict(settings)}, expected path, the folder of its chips')
        given: dict[str, Any] = {'cache': False, **settings}
        bases = {self.path / path: ''}
        if not (self.path / path).exists():
            folders = [folder for folder in self.splits.get('folders', ()) if folder is not None]
            above = {self.path / folder / path: folder for folder in folders if (self.path / folder / path).is_dir()}
            if above:
                bases, given['path'] = above, [str(Path(folder) / path) for folder in above.values()]
        files: Any
        if name == 'mask':
            files = label_dataset(given, self.path, self.labels, self.ignore_index, ChipFiles)
        else:
            files = image_dataset(name, given, self.path, CHIP_READERS)
        if not isinstance(files, ChipFiles):
            raise ValueError(f'settings of {name!r} are {dict(settings)}, expected masks that are rasters')
        gsd = None if settings.get('gsd') is None else float(settings['gsd'])
        if (
            name == 'mask' and gsd is None and not files.located
        ):  # masks without georeference have the size of their images
            image = next(iter(self.files.values()))
            gsd = image.side * image.width / files.width
        files.settle_gsd(gsd)
        chips = [_full_id(path, chip, bases) for path, chip in zip(files.index.filepath, files.index.chip, strict=True)]
        files.index['chip'] = chips
        files.bases = bases
        _check_duplicates(name, files)
        return files

    def _index(self) -> None:
        self.names = tuple(self.files)
        sources = {**self.files, **({} if self.masks is None else {'mask': self.masks.dataset})}
        self._sources: dict[str, ChipFiles] = sources
        groups = {name: files.index.groupby('chip').indices for name, files in sources.items()}
        chips = sorted({chip for name in self.files for chip in groups[name]})
        self._rows = {chip: {name: rows[chip] for name, rows in groups.items() if chip in rows} for chip in chips}
        if self.masks is not None and (lost := sorted(set(groups['mask']) - set(chips))):
            text = (
                f'{len(lost)} of {counted(len(groups["mask"]), "mask")} without an image of its name, such as '
                f'{lost[0]!r}'
            )
            if len(lost) == len(groups['mask']):
                raise ValueError(
                    f'{text}, where images have names such as {chips[0]!r}: expected equal names; set filename_regex '
                    "with a group for the id, such as '(?P<id>.*)_mask'"
                )
            warnings.warn(text, stacklevel=3)

    def _set_grids(self, label_gsd: float | None) -> None:
        #: File and error message of a faulty chip, by id.
        self.faults: dict[str, tuple[str, str]] = {}
        self._grids: dict[str, dict[str, ChipGrid]] = {}
        self._outlines: dict[str, Any] = {}
        for chip, rows in self._rows.items():
            self._grids[chip] = self._grids_of(chip, rows)
            self._outlines[chip] = self._outline(chip, rows)
        own = next(iter(self.files.values())).side if self.masks is None else self.masks.dataset.side
        self.label_gsd = own if label_gsd is None else float(label_gsd)
        ratio = self.label_gsd / own
        if self.masks is not None and (ratio < 1 - 1e-6 or abs(ratio - round(ratio)) > 1e-6):
            raise ValueError(f'label_gsd is {label_gsd}, expected a multiple of the {own:g} m of the masks')
        self._check_sizes()

    def _grids_of(self, chip: str, rows: Mapping[str, NDArray[np.intp]]) -> dict[str, ChipGrid]:
        """Return the pixel grid of each sensor of a chip; collect files that do not match."""
        grids: dict[str, ChipGrid] = {}
        for name, places in rows.items():
            files = self._sources[name]
            for path in self._paths(name, places):
                if path in files.unlike:
                    self.faults.setdefault(chip, (path, files.unlike[path]))
                if path not in files.headers:
                    continue
                try:
                    grid = files.grid_of(path)
                except ValueError as error:
                    self.faults.setdefault(chip, (path, str(error)))
                    continue
                grids.setdefault(name, grid)
                finest = min(grids.values(), key=lambda one: (one.crs is None, one.gsd))
                if difference := finest.differs(grid):
                    text = f'{difference}, expected the same ground within half a pixel of the finer one'
                    self.faults.setdefault(chip, (path, text))
        return grids

    def _outline(self, chip: str, rows: Mapping[str, NDArray[np.intp]]) -> Any:
        shapes = (self._sources[name].index.geometry.iloc[places[0]] for name, places in rows.items())
        return next((shape for shape in shapes if not shape.is_empty), shapely.Polygon())

    def _check_sizes(self) -> None:
        every = [(chip, name, grid) for chip, grids in self._grids.items() for name, grid in grids.items()]
        if self.tile_size is not None:
            lengths = [self.label_gsd, *(files.side for files in self._sources.values())]
            self._step = common_step(lengths)
            if self.tile_size <= 0 or abs(self.tile_size / self._step - round(self.tile_size / self._step)) > 1e-6:
                raise ValueError(
                    f'tile_size is {self.tile_size:g} m, expected a multiple of {self._step:g} m, where pixels of all '
                    'modalities align'
                )
            for chip, _, grid in every:
                if min(grid.size) < self.tile_size - grid.gsd / 2:
                    self._add_size_fault(chip, grid, f'{self.tile_size:g} m a side', every)
            return
        labelled = next(iter(self.files)) if self.masks is None else 'mask'
        shapes = {name: Counter[tuple[int, int]]() for name in self._sources}
        for _, name, grid in every:
            shapes[name][grid.grid.height, grid.grid.width] += 1
        for chip, name, grid in every:
            (height, width), count = shapes[name].most_common(1)[0]
            if (grid.grid.height, grid.grid.width) != (height, width):
                self._add_size_fault(chip, grid, f'{height} x {width} as {counted(count, "file")} of {name!r}', every)
            rests = [abs(length - round(length / self.label_gsd) * self.label_gsd) for length in grid.size]
            if name == labelled and max(rests) > grid.gsd / 4:
                text = (
                    f'{grid.path} has {grid.grid.height} x {grid.grid.width} pixels ({grid.size[0]:g} x '
                    f'{grid.size[1]:g} m), expected a whole number of labels of {self.label_gsd:g} m: change label_gsd '
                    'or cut chips by tile_size'
                )
                self.faults.setdefault(chip, (grid.path, text))

    def _add_size_fault(
        self, chip: str, grid: ChipGrid, expected: str, every: Sequence[tuple[str, str, ChipGrid]]
    ) -> None:
        lengths = [self.label_gsd, *(files.side for files in self._sources.values())]
        smallest, step = min(min(one.size) for _, _, one in every), common_step(lengths)
        largest = math.floor(smallest / step + 1e-6) * step
        height, width = grid.grid.height, grid.grid.width
        text = (
            f'{grid.path} has {height} x {width} pixels ({grid.size[0]:g} x {grid.size[1]:g} m), expected {expected}: '
            f'tile_size cuts all chips to one size, at most {largest:g}'
        )
        self.faults.setdefault(chip, (grid.path, text))

    def _keep(
        self, split: str, missing: Literal['error', 'allow', 'check'], exclude: Collection[str], with_masks: bool
    ) -> None:
        """Keep the chips of a split, and raise an error if one is faulty or a file is missing."""
        self.split, self.missing, self.with_masks = split, missing, with_masks
        ids = list(self._rows) if split == 'all' else self.assigned[split]
        if not ids:
            raise EmptySplitError(
                f'split {dict(self.splits)} has no chip for {split!r}, expected some of {len(self._rows)}'
            )
        self._ids, self.excluded = leave_out(ids, ids, exclude, self._rows, self.path)
        self._places = [self._place(name) for name in self.ids]
        if missing == 'check':
            return
        for name in self.ids:
            self._check_faults(name)
        wanted = [*(self.files if missing == 'error' else ()), *(['mask'] if self.masks and self.with_masks else [])]
        for source in wanted:
            lost = [name for name in self.ids if source not in self._rows[name]]
            if lost:
                expected = self._expected_file(self._sources[source], lost[0])[0].path
                raise FileNotFoundError(
                    f'{expected} does not exist, expected one for each of '
                    f'{counted(len(self.ids), "chip")} of {split!r}, missing for {len(lost)}: '
                    'leave them out of split, or list them by check --output and exclude'
                )

    def _check_faults(self, name: str) -> None:
        if name in self.faults:
            more = f' (as {counted(len(self.faults) - 1, "more chip")})' if len(self.faults) > 1 else ''
            raise ValueError(self.faults[name][1] + more)

    def _checked(self, name: str, files: Sequence[Expected], read: Callable[[], Any]) -> Any:
        path, text = self.faults.get(name, ('', ''))
        if any(str(file.path) == path for file in files):
            raise ValueError(text)
        return read()

    def _read_images(self, modality: Modality, name: str) -> Sample:
        if modality.name not in self._rows[name]:
            return {}
        rows, grid = self._index_of(modality.name, name), self._grids[name][modality.name].grid
        sample = read_modality(self.files[modality.name], rows, grid, modality)
        image = self._crop(name).of(sample[modality.image_key], modality.gsd)
        if image is not sample[modality.image_key]:
            frames = image if modality.temporal else image[None]
            sample[modality.valid_key] &= frames.isfinite().flatten(1).any(1)
        return sample | {modality.image_key: image}

    def _index_of(self, source: str, name: str) -> GeoDataFrame:
        rows = self._sources[source].index.iloc[self._rows[name][source]]
        return rows.iloc[np.argsort(rows.index.left.to_numpy(), kind='stable')]

    def _expected(self, source: str, name: str) -> tuple[Expected, ...]:
        files = self._sources[source]
        there = source in self._rows[name]
        return expected_files(files, self._index_of(source, name)) if there else self._expected_file(files, name)

    def _expected_file(self, files: ChipFiles, name: str) -> tuple[Expected, ...]:
        suffix = os.path.splitext(files.index.filepath.iloc[0])[1]
        base, above = next((pair for pair in files.bases.items() if name.startswith(f'{pair[1]}/')), (None, ''))
        folder = base or next(iter(files.bases))
        name = name.removeprefix(f'{above}/') if base else name
        return (Expected(folder / f'{name}{suffix}', optional=files.name != 'mask'),)

    def _paths(self, source: str, places: NDArray[np.intp]) -> list[str]:
        paths: list[str] = self._sources[source].index.filepath.iloc[places].tolist()
        return paths

    def _crop(self, name: str) -> _Crop:
        grids = self._grids[name]
        height, width = min(grids.values(), key=lambda grid: grid.gsd).size
        if self.tile_size is None:
            return _Crop(0, 0, height, width)
        top, left = (
            math.floor((length - self.tile_size) / 2 / self._step + 1e-6) * self._step for length in (height, width)
        )
        return _Crop(max(0, top), max(0, left), self.tile_size, self.tile_size)

    def _place(self, name: str) -> ChipGrid:
        finest = min(self._grids[name].values(), key=lambda one: (one.crs is None, one.gsd), default=None)
        if finest is None:
            crs: Any = None
            return ChipGrid('', None, Grid(crs, Affine(1, 0, 0, 0, -1, 0), 1, 1), 1.0)
        crop, (x, y), unit = self._crop(name), finest.grid.corner, finest.grid.step / finest.gsd
        step = self.label_gsd * unit
        height, width = (max(1, round(length / self.label_gsd)) for length in (crop.height, crop.width))
        transform = Affine(step, 0, x + crop.left * unit, 0, -step, y - crop.top * unit)
        return ChipGrid(finest.path, finest.crs, Grid(finest.grid.crs, transform, height, width), self.label_gsd)


def _full_id(path: str, chip: str, bases: Mapping[Path, str]) -> str:
    """Return the id of a chip, prefixed with the folders of its file."""
    base = next(base for base in bases if Path(path).is_relative_to(base))
    folder = Path(path).parent.relative_to(base)
    return '/'.join([*filter(None, [bases[base]]), *folder.parts, chip])


def _check_duplicates(name: str, files: ChipFiles) -> None:
    index = files.index
    keys = list(zip(index.chip, index.index.left, strict=True))
    first: dict[Any, str] = {}
    for key, path in zip(keys, index.filepath, strict=True):
        if key in first:
            day = '' if key[1] == ALWAYS[0] else f' on {key[1]:%Y-%m-%d}'
            raise ValueError(
                f'{first[key]} and {path} are both the chip {key[0]!r} of {name!r}{day}, expected one file with all '
                "bands for each chip and date; the group 'id' of filename_regex identifies chips, and temporal: true "
                'reads several dates'
            )
        first[key] = path
