# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""TreeSatAI Time-Series: which trees grow on a plot, seen from the air and for a year from space."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from torch import Tensor
from torchgeo.datasets import NonGeoDataset
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
from .download import obtain
from .figures import Palette, draw
from .files import measured, read_raster
from .fingerprint import state_of
from .integrity import Dates, Expected, Part
from .opening import open_raster
from .samples import blank, bounds_of, keep_seen, pick, refuse_missing, tensors
from .series import finite_mean, merge_days
from .treesatai_layout import (
    ARCHIVES,
    COMPOSITES,
    EXTENT,
    GENERA,
    LABELS,
    MARGIN,
    MODALITIES,
    NOWHERE,
    SERIES,
    THRESHOLD,
    Bounds,
    around,
    check_shares,
    find_series,
    listed,
    read_labels,
    read_split,
)
from .treesatai_series import open_series, plan, read_file_days, read_frames, survey


class TreeSatAITimeSeries(NonGeoDataset):
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
                nothing yet, for whoever asks for :meth:`parts`. A plot with nothing of
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
        self.shares = read_labels(self.path / LABELS, strict=missing != 'check')
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
        """Number of plots."""
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
        return draw(images, self.modalities, COMPOSITES, Palette(self.classes, ()), show_titles, suptitle)

    def parts(self, index: int) -> Iterator[Part]:
        """The label and the modalities of a plot, to be checked; several frames of one day are usual."""
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
        """The file of the series of a plot, or what it is called."""
        return self._series.get(name, self.path / 'sentinel-ts' / f'{name}_<year>.h5')

    def _aerial_file(self, name: str) -> Path:
        """The aerial image of a plot."""
        return self._aerial.get(name, self.path / 'aerial' / f'{name}.tif')

    def _listed(self, values: Tensor) -> str:
        """Names of the genera above one half."""
        held = [genus for genus, value in zip(self.classes, values.tolist(), strict=True) if value > 0.5]
        return ', '.join(held) or 'none'

    def _read_aerial(self, name: str) -> tuple[Sample, Bounds]:
        """The three tensors of the aerial image, cut to the plot, and where that is."""
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
        """The three tensors of each of some series, one frame a day."""
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
                image, merged = merge_days(read_frames(file, series, frames), days, finite_mean)
                image = pick(modality, every, image)
                image = 10 * np.log10(image) if series.radar else image
                valid = clear & np.isfinite(image).any((1, 2, 3))
                sample |= tensors(modality, image, merged.copy(), valid)
        return sample

    def _place(self, name: str) -> tuple[CRS | None, Bounds]:
        """The system of coordinates, and xmin, ymin, xmax, ymax of a plot, from its aerial image."""
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
        """The modalities with the bands that are asked for."""
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
