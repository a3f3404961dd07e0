# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""FLAIR: land cover of France from aerial images and a year of Sentinel-2."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.transform import array_bounds
from torch import Tensor
from torchgeo.datasets import NonGeoDataset
from torchgeo.datasets.utils import Path as PathLike
from torchgeo.datasets.utils import Sample

from ..modality import Modality
from .arguments import MISSING, check_choice, check_max_dates, choose_modalities, leave_out, not_found, select_bands
from .download import obtain
from .figures import Palette, draw
from .files import measured, occurring, read_raster
from .flair_areas import expect_series, find_super_area, open_super_area, read_centroids, read_products, window_around
from .flair_layout import (
    ARCHIVES,
    CENTROIDS,
    CLASSES,
    COLORS,
    COMPOSITES,
    DIRECTORIES,
    FILES,
    METADATA,
    MODALITIES,
    Patch,
    class_names,
    find_patches,
    read_aerial_dates,
    read_mask,
    read_size,
    split_of,
)
from .integrity import Expected, Part
from .samples import bounds_of, keep_seen, pick, refuse_missing, tensors
from .series import choose_clear, finite_mean, merge_days

#: nDSM as stored, a metre.
_STEPS = 5


class FLAIR(NonGeoDataset):
    """FLAIR #1 and #2: aerial images with heights, Sentinel-2 around them, and land cover.

    ======  ==============================================  =======  =========================
    name    bands                                           gsd      units
    ======  ==============================================  =======  =========================
    aerial  R G B NIR, 0 to 255, and nDSM                   0.2 m    nDSM in metres above the
                                                                     ground, at most 51
    s2      B02 B03 B04 B05 B06 B07 B08 B8A B11 B12         10.24 m  reflectance x 10000
    ======  ==============================================  =======  =========================

    A patch is 102.4 m wide. Its Sentinel-2 images are the 10 x 10 pixels around its
    centroid in the super-area of its zone; these are 10 m wide, and taken for 10.24 m so
    that they are the tile. nDSM is stored in fifths of a metre and saturates at 51 m.

    A sample has ``image_<name>``, ``dates_<name>`` and ``valid_<name>`` of each modality
    that is there (see :mod:`torchgeo_omnisat.batch`), in raw units; ``mask`` (H, W) and
    ``label`` (K,), which of the K scored classes occur; and ``bounds`` (9,).

    With 13 classes, as in the benchmark: building, pervious surface, impervious surface, bare
    soil, water, coniferous, deciduous, brushwood, vineyard, herbaceous vegetation, agricultural
    land, plowed land (0 to 11), and other (12), which is to be ignored. With 19, none is, and
    other is swimming pool, snow, clear cut, mixed, ligneous, greenhouse and other (12 to 18).

    The day of an aerial image is that of ``flair_aerial_metadata.json``, 0 if that is not
    there. Sentinel-2 dates come from the names of the products. A date is not valid if
    at least *cloud_cover* of its pixels in the patch are snow or cloud with a probability of
    at least *cloud_probability* %. A pixel that is 0 in all bands was not measured, nor is
    one beyond the edge of the super-area. Frames of one day are merged, clear ones alone
    where there are any.

    Training, validation and test split the domains as FLAIR #2 does. Licence: Etalab 2.0.
    If you use this dataset in your research, please cite:

    * FLAIR #1: https://doi.org/10.48550/arXiv.2211.12979
    * FLAIR #2: https://doi.org/10.48550/arXiv.2310.13336
    """

    #: Metres a pixel of the mask.
    label_gsd = MODALITIES['aerial'].gsd
    layout: ClassVar[str] = 'FLAIR'
    #: Of the transforms in the files; the masks name no CRS that others know.
    crs = CRS.from_epsg(2154)
    splits: ClassVar[tuple[str, ...]] = tuple(DIRECTORIES)
    all_modalities: ClassVar[dict[str, Modality]] = MODALITIES

    def __init__(
        self,
        root: PathLike = 'data',
        split: str = 'train',
        modalities: Sequence[str] | None = None,
        bands: Mapping[str, Sequence[str]] | None = None,
        num_classes: int = 13,
        cloud_probability: float = 60,
        cloud_cover: float = 0.5,
        max_dates: int | None = None,
        missing: Literal['error', 'allow', 'check'] = 'error',
        exclude: Collection[str] = (),
        transforms: Callable[[Sample], Sample] | None = None,
        download: bool = False,
        checksum: bool = False,
    ) -> None:
        """List the files and read what is said of them; no image is opened.

        Args:
            root: Directory that holds ``flair_labels_train``, ``flair_aerial_train`` and so
                on, or archives of them.
            split: ``'train'``, ``'val'`` or ``'test'``.
            modalities: ``'aerial'``, ``'s2'`` or both; None for all that the root holds.
            bands: Bands to keep by modality, such as ``{'aerial': ('R', 'G', 'B')}``.
            num_classes: 13 or 19.
            cloud_probability: From which probability on, in %, a pixel is snow or cloud.
            cloud_cover: Which share of such pixels makes a date not valid; above 1 for none.
            max_dates: How many days of a series to read, spread evenly over those that are
                valid; None for all.
            missing: What an image is that a patch with labels lacks: an ``'error'``, or, if
                ``'allow'``, a modality absent from that sample; ``'check'`` refuses nothing
                yet, for whoever asks for :meth:`parts`. A patch with nothing of *modalities*
                is left out with a warning (:attr:`unseen`).
            exclude: Names of samples to leave out (:attr:`ids`, of any split).
            transforms: What to do with a sample.
            download: Whether to download what is not there: the archives of the modalities
                asked for, 50.7 GB (aerial) and 22.8 GB (s2) for training and validation.
            checksum: Whether to check the MD5 of archives.

        Raises:
            DatasetNotFoundError: If the split is not there and *download* is False.
            FileNotFoundError: If a file is missing.
            ValueError: If an argument is not as described.
        """
        check_choice(split=(split, self.splits), missing=(missing, MISSING))
        check_choice(num_classes=(num_classes, (13, len(CLASSES))))
        check_max_dates(max_dates)
        choose_modalities(modalities, MODALITIES, MODALITIES, root)
        self.root, self.path, self.split = root, Path(root).expanduser(), split
        self.num_classes, self.missing, self.max_dates = num_classes, missing, max_dates
        self.cloud_probability, self.cloud_cover = cloud_probability, cloud_cover
        self.transforms, self.download, self.checksum = transforms, download, checksum
        self.ignore_index = 12 if num_classes == 13 else None
        self.classes, self.colors = class_names(num_classes), (*COLORS[: num_classes - 1], COLORS[-1])
        self._obtain(modalities)
        self.patches = self._list(exclude)
        wanted = modalities is None or 's2' in modalities
        zones = {(patch.domain, patch.zone) for patch in self.patches} if wanted else set()
        place = self.path / DIRECTORIES[split]['s2']
        strict = missing != 'check'
        self._areas = {(domain, zone): find_super_area(place / domain / zone, strict) for domain, zone in zones}
        self.modalities = select_bands(self._choose(modalities), bands)
        patches = self.patches if 's2' in self.modalities else []
        self._centroids = read_centroids(self.path / CENTROIDS, patches, strict) if patches else {}
        self._days = read_aerial_dates(sorted(self.path.glob(METADATA)), self.patches)

    @property
    def ids(self) -> list[str]:
        """The name of each sample."""
        return [patch.id for patch in self.patches]

    def __len__(self) -> int:
        """Number of patches."""
        return len(self.patches)

    def __getitem__(self, index: int) -> Sample:
        """One patch.

        Args:
            index: Its place among the patches of the split.

        Returns:
            The sample.

        Raises:
            FileNotFoundError: If one of its files is missing.
            ValueError: If one of its files is not as described.
        """
        patch = self.patches[index]
        stored, transform = read_mask(self._file('labels', patch))
        readers = {'aerial': self._read_aerial, 's2': self._read_s2}
        sample: Sample = {}
        for name in self.modalities:
            sample |= readers[name](patch, (stored.shape[0], stored.shape[1]))
        classes = self._classes(stored)
        scored = self.num_classes if self.ignore_index is None else self.ignore_index
        sample['mask'] = classes
        sample['label'] = torch.from_numpy(occurring(classes.numpy(), scored))
        extent = (np.nan,) * 4 if transform.is_identity else array_bounds(*stored.shape, transform)
        sample['bounds'] = bounds_of(extent, self.label_gsd, sample)
        return sample if self.transforms is None else self.transforms(sample)

    def plot(self, sample: Sample, show_titles: bool = True, suptitle: str | None = None) -> Figure:
        """Show every modality, some valid dates of Sentinel-2, the mask and, if there, the prediction.

        Args:
            sample: A sample of this dataset; one with ``prediction`` (H, W) is compared.
            show_titles: Whether to write what is what.
            suptitle: A title for the whole figure.

        Returns:
            The figure.

        Raises:
            RGBBandsMissingError: If no modality has bands that make a picture.
        """
        palette = Palette(self.classes, self.colors)
        return draw(sample, self.modalities, COMPOSITES, palette, show_titles, suptitle)

    def parts(self, index: int) -> Iterator[Part]:
        """The mask and the modalities of a patch, to be checked; published masks have no CRS."""
        patch = self.patches[index]
        path, code = self._file('labels', patch), self.crs.to_epsg()
        size = read_size([path, self._file('aerial', patch)])
        mask = Expected(path, (1, *size), 'uint8', classes=(1, len(CLASSES)), crs=code, crs_unused=True)
        yield Part('mask', (mask,), lambda: self._classes(read_mask(path)[0]))
        if 'aerial' in self.modalities:
            shape = (len(MODALITIES['aerial'].bands), *size)
            image = Expected(self._file('aerial', patch), shape, 'uint8', optional=True, crs=code)
            yield Part('aerial', (image,), partial(self._read_aerial, patch, size), None, self.modalities['aerial'])
        if 's2' in self.modalities:
            area = self._areas[patch.domain, patch.zone]
            files, dates = expect_series(area, self._file('s2', patch), self.path / CENTROIDS)
            yield Part('s2', files, partial(self._read_s2, patch, size), dates, self.modalities['s2'])

    def image_files(self, name: str, indices: Iterable[int]) -> list[Path]:
        """Return the files that a modality of some samples is read from, whether they are there or not.

        Args:
            name: The modality.
            indices: Numbers of the samples.
        """
        patches = [self.patches[index] for index in indices]
        if name == 'aerial':
            return [self._file('aerial', patch) for patch in patches]
        areas = {self._areas[patch.domain, patch.zone] for patch in patches} - {None}
        files = [path for area in areas if area for path in (area.data, area.masks, area.products)]
        return [*files, self.path / CENTROIDS]

    def _classes(self, stored: NDArray[np.uint8]) -> Tensor:
        """Return the classes (H, W) of numbers from 1; rare ones are one class."""
        return (torch.from_numpy(stored) - 1).clamp_(max=self.num_classes - 1).long()

    def _read_aerial(self, patch: Patch, size: tuple[int, int]) -> Sample:
        """The aerial image, heights in metres."""
        path, asked, modality = self._file('aerial', patch), self.modalities['aerial'], MODALITIES['aerial']
        if self.missing == 'allow' and not path.exists():
            return {}
        shape = (len(modality.bands), *size)
        raster = read_raster(path, f'uint8 {shape}: {modality.bands} on the pixels of its labels', shape)
        image = measured(raster.array, 'uint8', None, path, shown=raster.shown)
        image[modality.bands.index('nDSM')] /= _STEPS
        days = np.array([self._days.get(patch.number, 0)], dtype=np.int64)
        return tensors(asked, pick(asked, modality.bands, image), days, np.ones(1, dtype=bool))

    def _read_s2(self, patch: Patch, size: tuple[int, int]) -> Sample:
        """The part of the super-area's series that the patch covers."""
        area = self._areas[patch.domain, patch.zone]
        if area is None:
            return {}
        days = read_products(area.products)
        data, masks = open_super_area(area, len(days))
        try:
            counts = [MODALITIES['s2'].pixels(pixels * self.label_gsd) for pixels in size]
        except ValueError as error:
            raise ValueError(f'{self._file("labels", patch)} has {size} pixels: {error}') from None
        if patch.number not in self._centroids:
            raise FileNotFoundError(f'{self.path / CENTROIDS} has no centre of IMG_{patch.number}.tif')
        centre = self._centroids[patch.number]
        where = f'{self.path / CENTROIDS} puts IMG_{patch.number}.tif at {centre}'
        (rows, columns), beyond = window_around(centre, counts, data.shape[2:], where)
        snow_or_cloud = (masks[:, :, rows, columns] >= self.cloud_probability).any(1)
        clear = snow_or_cloud.mean((1, 2)) < self.cloud_cover
        frames = choose_clear(days, clear, max_dates=self.max_dates)
        if len(frames) == 0:
            return {}
        image = measured(data[frames, :, rows, columns], str(data.dtype), None, area.data)
        image[np.broadcast_to((image == 0).all(1, keepdims=True), image.shape)] = np.nan
        image = np.pad(image, ((0, 0), (0, 0), *beyond), constant_values=np.nan)
        image, merged = merge_days(image, days[frames], finite_mean)
        valid = np.isin(merged, days[clear]) & np.isfinite(image).any((1, 2, 3))
        asked = self.modalities['s2']
        return tensors(asked, pick(asked, MODALITIES['s2'].bands, image), merged, valid)

    def _file(self, what: str, patch: Patch) -> Path:
        """The aerial image or the mask of a patch, or what the series of its zone is called."""
        place = self.path / DIRECTORIES[self.split][what] / patch.domain / patch.zone
        return place / FILES[what].format(patch.number)

    def _obtain(self, modalities: Sequence[str] | None) -> None:
        """Unpack or download what is not there; refuse a root without labels or images."""
        has = partial(obtain, root=self.path, download=self.download, checksum=self.checksum)
        names = tuple(MODALITIES if modalities is None else modalities)
        places = DIRECTORIES[self.split]
        held = {what: has(ARCHIVES[places[what]]) for what in ('labels', *names)}
        enough = any if modalities is None else all
        if not held['labels'] or not enough(held[name] for name in names):
            lacking = [places[what] for what, there in held.items() if not there]
            raise not_found(self, f'Expected {lacking} there, or archives of them.')
        for name, beside in (('aerial', METADATA), ('s2', CENTROIDS)):
            if held.get(name):
                has(ARCHIVES[beside])

    def _list(self, exclude: Collection[str]) -> list[Patch]:
        """Patches of the split, those with labels or an aerial image, in a fixed order."""
        places = DIRECTORIES[self.split]
        labelled = find_patches(self.path / places['labels'], 'msk', 'MSK')
        self._photographed = find_patches(self.path / places['aerial'], 'img', 'IMG')
        found = labelled | self._photographed
        patches = sorted(patch for patch in found if split_of(patch.domain) == self.split)
        if not patches:
            held = sorted({patch.domain for patch in found})
            raise not_found(self, f'Expected domains of the split {self.split!r} in {places["labels"]}, got {held}.')
        ours = {name for name in exclude if split_of(name) == self.split}
        known = {patch.id for patch in found}
        patches, self.excluded = leave_out(patches, [patch.id for patch in patches], ours, known, self.path)
        if self.missing != 'check' and (lost := [patch for patch in patches if patch not in labelled]):
            path = self._file('labels', lost[0])
            raise FileNotFoundError(
                f'{path} does not exist, expected labels for each aerial image, of which {len(lost)} have none'
            )
        return patches

    def _choose(self, names: Sequence[str] | None) -> dict[str, Modality]:
        """The modalities that are asked for; None is those of which any patch has an image."""
        lost = {
            'aerial': [patch for patch in self.patches if patch not in self._photographed],
            's2': [patch for patch in self.patches if not self._areas.get((patch.domain, patch.zone))],
        }
        chosen = [name for name in MODALITIES if len(lost[name]) < len(self.patches)] if names is None else names
        if not chosen:
            raise not_found(self, f'Expected images of the {len(self.patches)} patches of {self.split!r}.')
        for name in chosen:
            if self.missing == 'error' or len(lost[name]) == len(self.patches):
                refuse_missing([self._file(name, patch) for patch in lost[name]], len(self.patches))
        self.unseen: list[str] = []
        if self.missing != 'check':
            seen = [any(patch not in lost[name] for name in chosen) for patch in self.patches]
            self.patches, self.unseen = keep_seen(self.patches, self.ids, seen, chosen, self.path)
        return {name: MODALITIES[name] for name in chosen}
