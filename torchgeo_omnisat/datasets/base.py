# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Base class of the datasets, and functions that build samples."""

import warnings
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor
from torchgeo.datasets import NonGeoDataset
from torchgeo.datasets.utils import Path as PathLike
from torchgeo.datasets.utils import Sample

from ..modality import Modality
from ..utils.checks import check_choice, check_integer
from ..utils.plurals import counted
from .common.arguments import MISSING, parse_span
from .common.integrity import SAMPLE, Part
from .common.plotting import Composite, Palette, draw_any, plot_sample
from .common.series import when


class MultimodalDataset(NonGeoDataset):
    """Abstract base class of datasets with several modalities.

    A subclass sets :attr:`modalities` and implements ``__len__`` and ``__getitem__``, which returns a sample as in
    :mod:`torchgeo_omnisat.batch`. Other members that :class:`.MultimodalDataModule` needs have defaults.
    """

    #: Modalities by name, with the bands that are read.
    modalities: dict[str, Modality]
    #: Directory of the dataset and its statistics.
    path: Path
    #: Directory or address that the dataset was created with.
    root: Any
    #: Name of the split; None without splits.
    split: Any = 'train'
    #: Name of the file layout in reports of ``check``; defaults to the class name.
    layout: ClassVar[str] = ''
    #: Names of the samples excluded by ``exclude``.
    excluded: Sequence[str] = ()
    #: Names of the classes, for figures; None for their indices.
    labels: Any = None
    #: Label ignored in training and metrics; None if there is none.
    ignore_index: Any = None
    #: Band combinations of each modality for figures.
    composites: Mapping[str, Sequence[Composite]] = MappingProxyType({})
    #: Names and colours of the classes for figures; None for :attr:`labels` in default colours.
    palette: Palette | None = None

    def __init__(self, root: PathLike = 'data', split: str = 'train') -> None:
        """Initialize the dataset.

        Args:
            root: Directory of the dataset.
            split: ``'train'``, ``'val'`` or ``'test'``.
        """
        self.root, self.path, self.split = root, Path(root).expanduser(), split

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Name the layout after the first class that has it."""
        super().__init_subclass__(**kwargs)
        cls.layout = cls.layout or cls.__name__

    @property
    def all_modalities(self) -> dict[str, Modality]:
        """Modalities with all bands in the files; defaults to :attr:`modalities`."""
        return self.modalities

    @property
    def ids(self) -> list[str]:
        """Name of each sample; defaults to its index."""
        return [str(index) for index in range(len(self))]

    @property
    def positions(self) -> NDArray[np.float64] | None:
        """Centre of each sample ``(N, 2)`` in metres; None if unknown."""
        return None

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """Return a sample.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file has unexpected content.
        """

    def image_files(self, name: str, indices: Iterable[int]) -> Sequence[str | Path]:
        """Return the files that a modality of some samples is read from; empty if unknown.

        Statistics are recomputed if one of them changes.
        """
        return []

    def parts(self, index: int) -> Iterator[Part]:
        """Yield the modalities and labels of a sample, for ``python -m torchgeo_omnisat check``.

        By default, the sample is read as a whole, and its files are not named. Subclasses yield the files of each part
        and their expected content.
        """
        try:
            sample = self[index]
        except Exception:  # which is raised again by the one who reads the part
            yield Part(SAMPLE, (), partial(self.__getitem__, index))
            return
        for modality in self.modalities.values():
            yield Part(modality.name, (), lambda: sample, None, modality, absent=modality.image_key not in sample)
        for name in ('mask', 'label'):
            if name in sample:
                yield Part(name, (), partial(sample.get, name), fault='label')

    def plot(self, sample: Sample, show_titles: bool = True, suptitle: str | None = None) -> Figure:
        """Plot every modality of a sample, the mask and, if there is one, the prediction.

        Args:
            sample: Sample in raw units, optionally with ``prediction`` (H, W).
            show_titles: Whether to write titles.
            suptitle: Title of the figure.

        Raises:
            RGBBandsMissingError: If no modality has the bands of its :attr:`composites`.
        """
        if self.palette is not None:
            return plot_sample(sample, self.modalities, self.composites, self.palette, show_titles, suptitle)
        return draw_any(sample, self.modalities, self.labels, self.ignore_index, show_titles, suptitle)


class PublishedDataset(MultimodalDataset):
    """Base class of published datasets, with the arguments that they share."""

    #: Names of the samples that are excluded because they have none of the modalities.
    unseen: list[str]
    #: Samples, each with a unique ``id``; not of datasets that override :attr:`ids` and ``__len__``.
    patches: list[Any]

    def __init__(
        self,
        root: PathLike = 'data',
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
        allow_outside: bool = False,
    ) -> None:
        """Initialize without reading files.

        Args:
            root: Directory of the dataset.
            modalities: Names of the modalities to read; None for all that are in *root*.
            bands: Bands to keep by modality, such as ``{'s1a': ('VV', 'VH')}``.
            max_dates: Maximum number of days per time series, evenly spread over valid ones; None for all.
            date_range: First and last day, inclusive, such as ``('2018-10-01', '2019-03-31')``. Time
                series without a date in this range are left out of the sample.
            cloud_probability: Minimum probability in % of a pixel of snow or cloud.
            cloud_cover: Minimum fraction of such pixels of a date that is not valid; above 1 to keep all dates.
            missing: How to handle missing files: ``'error'`` raises, ``'allow'`` leaves the modality out of
                the sample, and ``'check'``, for the command `check`, defers all errors to ``parts``.
                Samples without any of *modalities* are excluded with a warning (``unseen``).
            exclude: Names of samples to exclude (:attr:`ids`, of any split).
            transforms: Transform applied to each sample.
            download: Whether to download missing archives.
            checksum: Whether to check the checksum of archives.
            allow_outside: Whether symbolic links in *root* may lead out of it.
        """
        check_choice(missing=(missing, MISSING))
        check_integer(1, max_dates=max_dates)
        self.root, self.path = root, Path(root).expanduser()
        self.max_dates, self.date_range, self._span = max_dates, date_range, parse_span(date_range)
        self.cloud_probability, self.cloud_cover = cloud_probability, cloud_cover
        self.missing, self.transforms, self.download, self.checksum = missing, transforms, download, checksum
        self.allow_outside = allow_outside
        self.unseen = []

    @property
    def ids(self) -> list[str]:
        """Name of each sample."""
        return [str(patch.id) for patch in self.patches]

    def __len__(self) -> int:
        return len(self.patches)


def refuse_missing(lost: Sequence[Path], count: int) -> None:
    """Raise an error for samples without a file."""
    if lost:
        raise FileNotFoundError(
            f'{lost[0]} does not exist, expected one for each of {counted(count, "sample")}, missing for {len(lost)} '
            "(missing='allow' treats them as not acquired)"
        )


def keep_seen[T](
    samples: Sequence[T], ids: Sequence[str], seen: Iterable[bool], names: Iterable[str], where: object
) -> tuple[list[T], list[str]]:
    """Return the samples with at least one modality and the names of the others; warn of their number.

    *seen* are flags of the samples with an image, as far as known without opening any. Raise FileNotFoundError if there
    is none.
    """
    flags = list(seen)
    unseen = [name for name, flag in zip(ids, flags, strict=True) if not flag]
    if unseen and len(unseen) == len(samples):
        raise FileNotFoundError(
            f'{where} has no image of {list(names)} of any of {counted(len(samples), "sample")}, the first of which is '
            f'{ids[0]!r}; expected modalities that some of them have'
        )
    if unseen:
        warnings.warn(
            f'{len(unseen)} of {counted(len(samples), "sample")} of {where} without an image of {list(names)}: left '
            f'out, such as {unseen[0]!r}',
            stacklevel=3,
        )
    return [sample for sample, flag in zip(samples, flags, strict=True) if flag], unseen


def pick(modality: Modality, bands: Sequence[str], image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Select the bands of a modality from an image ``(..., C, H, W)`` with *bands*, in its order."""
    if modality.bands == tuple(bands):
        return image
    return np.ascontiguousarray(image[..., [bands.index(band) for band in modality.bands], :, :])


def tensors(
    modality: Modality, image: NDArray[np.float32], days: NDArray[np.int64], valid: NDArray[np.bool_]
) -> Sample:
    """Return *image* ``(T, C, H, W)`` or ``(C, H, W)``, *days* ``(T,)`` and *valid* ``(T,)`` of a modality."""
    return dict(zip(modality.keys, map(torch.from_numpy, (image, days, valid)), strict=True))


def blank(modality: Modality, metres: float) -> Sample:
    """Return image, dates and valid of a modality without a valid pixel."""
    side = modality.pixels(metres)
    image = np.full((*(1,) * modality.temporal, len(modality.bands), side, side), np.nan, dtype=np.float32)
    return tensors(modality, image, np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.bool_))


def bounds_of(extent: Sequence[float], gsd: float, sample: Sample) -> Tensor:
    """Return the ``bounds`` (9,) of a sample with dates, from xmin, ymin, xmax, ymax; NaN where unknown."""
    xmin, ymin, xmax, ymax = extent
    tmin, tmax = when(value for key, value in sample.items() if key.startswith('dates_'))
    return torch.tensor((xmin, xmax, gsd, ymin, ymax, gsd, tmin, tmax, 1), dtype=torch.float64)
