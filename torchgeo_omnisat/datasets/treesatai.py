# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""TreeSatAI Time-Series: which trees grow on a plot, seen from the air and for a year from space."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import rasterio
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from torch import Tensor
from torchgeo.datasets import DatasetNotFoundError, NonGeoDataset
from torchgeo.datasets.utils import Path as PathLike
from torchgeo.datasets.utils import Sample

from ..modality import Modality
from .download import obtain
from .figures import Palette, draw
from .files import measured, read_raster
from .series import choose_dates, finite_mean, merge_days, parse_day
from .treesatai_layout import (
    ARCHIVES,
    COMPOSITES,
    EXTENT,
    GENERA,
    LABELS,
    MARGIN,
    MODALITIES,
    SERIES,
    THRESHOLD,
    find_series,
    open_series,
    read_days,
    read_frames,
    read_hidden,
    read_labels,
    read_split,
)

#: Seconds in a day.
DAY = 86400


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
    the plot; and ``bounds`` (9,) in TorchGeo's order, as in
    :class:`~torchgeo_omnisat.datasets.PASTISMultimodal` (NaN where the aerial image, which
    alone tells the place, is not there). There is no mask.

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
        missing: Literal['error', 'allow'] = 'error',
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
                from the sample.
            cloud_probability: From which probability on, in %, a pixel is snow or cloud.
            cloud_cover: Which share of such pixels makes a date not valid; above 1 for none.
            missing: What a file is that the list names and the disk lacks: an ``'error'``,
                or, if ``'allow'``, a modality absent from that sample.
            transforms: What to do with a sample.
            download: Whether to download the archives (22 GB) that are not there.
            checksum: Whether to check MD5 sums, where they are known.

        Raises:
            DatasetNotFoundError: If nothing is there and *download* is False.
            FileNotFoundError: If a file is missing.
            ValueError: If an argument or a file is not as described.
        """
        for name, value, options in (
            ('split', split, ('train', 'val', 'test', None)),
            ('missing', missing, ('error', 'allow')),
        ):
            if value not in options:
                raise ValueError(f'{name} is {value!r}, expected one of {list(options)}')
        if max_dates is not None and max_dates < 1:
            raise ValueError(f'max_dates is {max_dates}, expected None or at least 1')
        self.root, self.split, self.missing = root, split, missing
        self.max_dates, self.date_range = max_dates, date_range
        self.cloud_probability, self.cloud_cover = cloud_probability, cloud_cover
        self.transforms, self.download, self.checksum = transforms, download, checksum
        self._span = None if date_range is None else _span(date_range)
        self.path = Path(root).expanduser()
        self._verify(modalities)
        self._series = find_series(self.path / 'sentinel-ts')
        self._aerial = {path.stem: path for path in (self.path / 'aerial').glob('*.tif')}
        self.modalities = self._choose(modalities, bands)
        self.shares = read_labels(self.path / LABELS)
        self.names = sorted({*self._series, *self._aerial}) if split is None else read_split(self.path, split)
        self._check_files()
        self.crs = self._place(self.names[0])[0]

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
            sample |= self._read_aerial(name)
        series = [modality for modality in self.modalities.values() if modality.temporal]
        if series and not (self.missing == 'allow' and name not in self._series):
            path = self._files('s2').get(name, self.path / 'sentinel-ts' / f'{name}_<year>.h5')
            with open_series(path) as file:
                for modality in series:
                    sample |= self._read_series(file, modality, path)
        shares = self.shares[name]
        sample['label'] = torch.tensor([shares.get(genus, 0.0) > THRESHOLD for genus in self.classes]).float()
        sample['bounds'] = self._bounds(name, sample)
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

    def _listed(self, values: Tensor) -> str:
        """Names of the genera above one half."""
        held = [genus for genus, value in zip(self.classes, values.tolist(), strict=True) if value > 0.5]
        return ', '.join(held) or 'none'

    def _read_aerial(self, name: str) -> Sample:
        """The three tensors of the aerial image, cut to the plot."""
        if self.missing == 'allow' and name not in self._aerial:
            return {}
        modality, every = self.modalities['aerial'], self.all_modalities['aerial'].bands
        path = self._aerial.get(name, self.path / 'aerial' / f'{name}.tif')
        side = modality.pixels(self.extent)
        shape = (len(every), side + 2 * MARGIN, side + 2 * MARGIN)
        expected = f'uint8 {shape}: {self.extent} m of {modality.gsd} m pixels and {MARGIN} more on every side'
        array, nodata = read_raster(path, expected, shape)
        channels = [every.index(band) for band in modality.bands]
        image = measured(array[channels, MARGIN:-MARGIN, MARGIN:-MARGIN], 'uint8', nodata, path)
        valid = np.isfinite(image).any(keepdims=True).reshape(1)
        parts = (image, np.zeros(1, dtype=np.int64), valid)
        return dict(zip(modality.keys, map(torch.from_numpy, parts), strict=True))

    def _read_series(self, file: Mapping[str, object], modality: Modality, path: Path) -> Sample:
        """The three tensors of a series, one frame a day."""
        series, every = SERIES[modality.name], self.all_modalities[modality.name].bands
        days = read_days(file, series, path)
        side = modality.pixels(self.extent)
        hidden = read_hidden(file, series, (len(days), side, side), self.cloud_probability, path)
        clear = hidden < self.cloud_cover
        frames = self._frames(days, clear)
        if len(frames) == 0:
            return {}
        image = read_frames(file, series, (len(days), len(every), side, side), frames, path)
        image, merged = merge_days(image, days[frames], finite_mean)
        image = image[:, [every.index(band) for band in modality.bands]]
        image = 10 * np.log10(image) if series.radar else np.ascontiguousarray(image)
        valid = np.isin(merged, days[clear]) & np.isfinite(image).any((1, 2, 3))
        return dict(zip(modality.keys, map(torch.from_numpy, (image, merged, valid)), strict=True))

    def _frames(self, days: NDArray[np.int64], clear: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Which frames to read, in the order of time; hidden ones of a day with a clear one never."""
        if self.max_dates is not None and clear.any():
            frames = np.flatnonzero(clear)
        else:
            frames = np.flatnonzero(clear | ~np.isin(days, days[clear]))
        return frames[choose_dates(days[frames], self._span, self.max_dates)]

    def _place(self, name: str) -> tuple[CRS | None, tuple[float, float, float, float]]:
        """The system of coordinates, and xmin, ymin, xmax, ymax of a plot, from its aerial image."""
        path = self._aerial.get(name)
        if path is None:
            return None, (float('nan'),) * 4
        try:
            with rasterio.open(path) as source:
                x, y = source.xy(source.height / 2 - 0.5, source.width / 2 - 0.5)
                crs = source.crs
        except RasterioError as error:
            raise ValueError(f'{path} cannot be read ({error}), expected the aerial image of a plot') from error
        half = self.extent / 2
        return crs, (x - half, y - half, x + half, y + half)

    def _bounds(self, name: str, sample: Sample) -> Tensor:
        """Where and when, in TorchGeo's order."""
        xmin, ymin, xmax, ymax = self._place(name)[1]
        tmin = tmax = float('nan')
        dates = [sample[m.dates_key] for m in self.modalities.values() if m.temporal and m.dates_key in sample]
        if dates:
            tmin, tmax = (torch.cat(dates).min().item() * DAY, (torch.cat(dates).max().item() + 1) * DAY)
        res = min(modality.gsd for modality in self.modalities.values())
        return torch.tensor((xmin, xmax, res, ymin, ymax, res, tmin, tmax, 1), dtype=torch.float64)

    def _files(self, name: str) -> dict[str, Path]:
        """Files of a modality by plot."""
        return self._series if name in SERIES else self._aerial

    def _choose(self, names: Sequence[str] | None, bands: Mapping[str, Sequence[str]] | None) -> dict[str, Modality]:
        """The modalities with the bands that are asked for."""
        held = [name for name in self.all_modalities if self._files(name)]
        if names is not None and (isinstance(names, str) or not names):
            raise ValueError(f'modalities is {names!r}, expected a tuple of names, such as {tuple(held)}')
        for name in names or ():
            if name not in held:
                known = name in self.all_modalities
                why = f'of which {self.path} has no file' if known else f'which is none of {list(self.all_modalities)}'
                raise ValueError(f'modalities names {name!r}, {why}; expected some of {held}')
        chosen = {name: self.all_modalities[name] for name in (held if names is None else names)}
        unknown = [name for name in bands or {} if name not in chosen]
        if unknown:
            raise ValueError(f'bands names the modalities {unknown}, expected some of {list(chosen)}')
        return chosen | {name: chosen[name].select(kept) for name, kept in (bands or {}).items()}

    def _check_files(self) -> None:
        """Refuse a plot without a label, and, unless that is allowed, without a file."""
        unlabelled = [name for name in self.names if name not in self.shares]
        if unlabelled:
            raise ValueError(
                f'{self.path / LABELS} has no entry for {unlabelled[0]!r}, expected one for each of the '
                f'{len(self.names)} plots, of which {len(unlabelled)} have none'
            )
        for folder, files in (('aerial', self._aerial), ('sentinel-ts', self._series)):
            if self.missing == 'allow' or not any(self._files(name) is files for name in self.modalities):
                continue
            lost = [name for name in self.names if name not in files]
            if lost:
                raise FileNotFoundError(
                    f'{self.path / folder} has no file of {lost[0]!r}, expected one for each of the {len(self.names)} '
                    f"plots, of which {len(lost)} have none (missing='allow' takes them for never acquired)"
                )

    def _verify(self, names: Sequence[str] | None) -> None:
        """See that labels, images and lists are there, unpacked or downloaded if need be."""
        images = {'sentinel-ts' if name in SERIES else 'aerial' for name in names or self.all_modalities}
        there = {key: obtain(ARCHIVES[key], self.path, self.download, self.checksum) for key in ('labels', *images)}
        if not (there['labels'] and any(there[key] for key in images)):
            error = DatasetNotFoundError(self)
            error.args = (f'{error} Expected the directories labels, aerial and sentinel-ts there, or their archives.',)
            raise error
        if self.split is not None and not any(self.path.glob('*_filenames.lst')):
            obtain(ARCHIVES['split'], self.path, self.download, self.checksum)


def _span(date_range: tuple[str, str]) -> tuple[int, int]:
    """First and last day as days since 1970-01-01."""
    if isinstance(date_range, str) or len(date_range) != 2:
        raise ValueError(f"date_range is {date_range!r}, expected two dates such as ('2019-03-01', '2019-10-31')")
    first, last = (parse_day(day, 'date_range') for day in date_range)
    if first > last:
        raise ValueError(f'date_range is {date_range!r}, expected the first day not to come after the last')
    return first, last
