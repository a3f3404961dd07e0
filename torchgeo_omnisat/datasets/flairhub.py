# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""FLAIR-HUB: what TorchGeo's loader reads, with dates, clouds, and the keys of a batch."""

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from einops import EinopsError
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from torchgeo.datasets import FLAIRHUB
from torchgeo.datasets.utils import Path as PathLike
from torchgeo.datasets.utils import Sample

from ..modality import Modality
from .arguments import MISSING, check_choice, check_max_dates, choose_modalities, leave_out, not_found, select_bands
from .figures import draw
from .files import occurring
from .flairhub_layout import (
    CLOUDS,
    COMPOSITES,
    MODALITIES,
    PRODUCTS,
    SPLITS,
    TYPES,
    Files,
    choose_domains,
    damaged,
    dates_of,
    expect,
    holds,
    ignored,
    label_product,
    lacking_labels,
    measured_of,
    palette,
    size_of,
)
from .flairhub_tables import area_of, key_of, read_splits, read_tables, table_of
from .frames import decibel_mean
from .integrity import Part
from .opening import open_raster
from .samples import bounds_of, keep_seen, pick, refuse_missing, tensors
from .series import choose_clear, finite_mean, merge_days


class FLAIRHUBMultimodal(FLAIRHUB):
    """FLAIR-HUB as TorchGeo's :class:`~torchgeo.datasets.FLAIRHUB` reads it, and what that leaves out.

    ==========  ==============================================  =======  ========================
    name        bands                                           gsd      units
    ==========  ==============================================  =======  ========================
    aerial      R G B NIR                                       0.2 m    0 to 255
    spot        R G B NIR                                       1.6 m    reflectance x 10000
    dem         DSM DTM                                         0.2 m    metres
    aerial_rlt  PAN, a photograph of the 1950s                  0.4 m    0 to 255, no date
    s2          B02 B03 B04 B05 B06 B07 B08 B8A B11 B12         10.24 m  reflectance x 10000
    s1a         VV, VH, ascending orbit                         10.24 m  power, read as dB
    s1d         VV, VH, descending orbit                        10.24 m  power, read as dB
    ==========  ==============================================  =======  ========================

    A patch is 102.4 m wide. A sample has ``image_<name>``, ``dates_<name>`` and ``valid_<name>``
    of each modality that is there (see :mod:`torchgeo_omnisat.batch`), in raw units with NaN
    where nothing was measured; ``mask`` (H, W) of classes and ``label`` (K,), which of the K
    scored classes occur; and ``bounds`` (9,).

    The classes are TorchGeo's: 19 of land cover, of which the last, undefined, is ignored (clear
    cut, ligneous and mixed, 15 to 17, hardly occur); or 23, 31 or 46 crops and background, none
    ignored. Dates come from the tables of ``GLOBAL_ALL_MTD``. A date of Sentinel-2 is not valid
    if at least *cloud_cover* of its pixels are snow or cloud with a probability of at least
    *cloud_probability* %. Dates are in the order of time, and frames of one day are merged,
    clear ones alone where there are any.

    Source: https://huggingface.co/datasets/IGNF/FLAIR-HUB; licence: Etalab 2.0. If you use this
    dataset in your research, please cite https://doi.org/10.48550/arXiv.2506.07080
    """

    #: Metres a pixel of the mask.
    label_gsd = MODALITIES['aerial'].gsd
    layout: ClassVar[str] = 'FLAIR-HUB'
    #: Of the transforms in the files.
    crs = CRS.from_epsg(2154)
    splits: ClassVar[tuple[str, ...]] = ('train', 'val', 'test')
    all_modalities: ClassVar[dict[str, Modality]] = MODALITIES

    def __init__(
        self,
        root: PathLike = 'data',
        split: str = 'train',
        modalities: Sequence[str] | None = None,
        bands: Mapping[str, Sequence[str]] | None = None,
        domains: Sequence[str] | None = None,
        split_column: str = 'split_1',
        dataset_type: str = 'land_cover',
        decibels: bool = False,
        cloud_probability: float = 60,
        cloud_cover: float = 0.5,
        max_dates: int | None = None,
        missing: Literal['error', 'allow', 'check'] = 'error',
        exclude: Collection[str] = (),
        transforms: Callable[[Sample], Sample] | None = None,
        download: bool = False,
        checksum: bool = False,
    ) -> None:
        """Let TorchGeo list the files, and read the tables of dates; no image is opened.

        Args:
            root: Directory that holds ``D004-2021_AERIAL_RGBI`` and so on, or their archives.
            split: ``'train'``, ``'val'`` or ``'test'``.
            modalities: Names of the modalities to read; None for all that the root holds.
            bands: Bands to keep by modality, such as ``{'aerial': ('R', 'G', 'B')}``.
            domains: Domains and years such as ``('D004-2021',)``; None for those that the root
                holds, or, with *download*, for all, 750 GB.
            split_column: Which of the official splits to follow.
            dataset_type: ``'land_cover'``, ``'crop_type'``, ``'crop_type_2'`` or
                ``'crop_type_3'``.
            decibels: Whether Sentinel-1 is stored in dB and not as power.
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
            download: Whether to download the archives that are not there.
            checksum: Whether to check the SHA-256 of archives.

        Raises:
            DatasetNotFoundError: If nothing of the split is there and *download* is False.
            FileNotFoundError: If a file is missing.
            ValueError: If an argument or a table is not as described.
        """
        check_choice(
            split=(split, self.splits),
            split_column=(split_column, SPLITS),
            dataset_type=(dataset_type, TYPES),
            missing=(missing, MISSING),
        )
        check_max_dates(max_dates)
        self.path, self.dataset_type = Path(root).expanduser(), cast(Any, dataset_type)
        self.missing, self.max_dates, self.decibels = missing, max_dates, decibels
        self.cloud_probability, self.cloud_cover = cloud_probability, cloud_cover
        self.domain_years = choose_domains(  # type: ignore[misc]
            self.path, domains, self.domain_years, label_product(dataset_type), download
        )
        names = self._choose(modalities, download)
        self.modalities = select_bands({name: MODALITIES[name] for name in names}, bands)
        asked = [PRODUCTS[name].name for name in names] + [CLOUDS] * ('s2' in names)
        self._prepare = transforms
        super().__init__(
            self.path,
            cast(Any, split),
            cast(Any, split_column),
            None,
            download,
            checksum,
            asked,
            cast(Any, dataset_type),
        )
        chosen = {f'{domain}-{year}' for domain, years in self.domain_years.items() for year in years}
        found = [files for files in self.files if str(files['patch_id']).partition('_')[0] in chosen]
        splits = self._ensure_splits_available()
        if missing == 'check':
            named = {'val': 'valid'}.get(split, split)
            ours = [patch for patch, held in read_splits(splits, split_column).items() if held == named]
            found += lacking_labels(self.path, ours, chosen, found, label_product(dataset_type), self.bands)
        self.files = sorted(found, key=lambda files: str(files['patch_id']))
        if not self.files:
            expected = f'expected one of the domains {sorted(chosen)[:5]} in {splits.name}'
            raise not_found(self, f'Split {split!r} of {split_column!r} has no patch in {self.path}, {expected}.')
        known = read_splits(splits, SPLITS[0]) if exclude else ()
        self.files, self.excluded = leave_out(self.files, self.ids, exclude, known, self.path)
        self.classes = tuple(palette(dataset_type).labels)
        self.ignore_index = ignored(dataset_type)
        self._check_files()
        self._days, self._undated = read_tables(self.path, self.modalities, self.ids, tell=missing == 'check')

    @property
    def ids(self) -> list[str]:
        """The name of each sample."""
        return [str(files['patch_id']) for files in self.files]

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
        files = self.files[index]
        loaded = self._load(index)
        mask = loaded['mask']
        if mask.min() < 0 or mask.max() >= len(self.classes):
            found = f'{int(mask.min())} to {int(mask.max())}'
            raise ValueError(f'{files["mask"]} holds classes {found}, expected 0 to {len(self.classes) - 1}')
        sample: Sample = {}
        for modality in self.modalities.values():
            sample |= self._read(files, modality, loaded, mask.shape)
        sample['mask'] = mask
        sample['label'] = torch.from_numpy(
            occurring(mask.numpy(), len(self.classes) if self.ignore_index is None else self.ignore_index)
        )
        with open_raster(str(files['mask'])) as source:
            extent = (np.nan,) * 4 if source.transform.is_identity else source.bounds
        sample['bounds'] = bounds_of(extent, self.label_gsd, sample)
        return sample if self._prepare is None else self._prepare(sample)

    def plot(  # type: ignore[override]
        self, sample: Sample, show_titles: bool = True, suptitle: str | None = None
    ) -> Figure:
        """Show every modality, some valid dates of the series, the mask and, if there, the prediction.

        Args:
            sample: A sample of this dataset; one with ``prediction`` (H, W) is compared.
            show_titles: Whether to write what is what.
            suptitle: A title for the whole figure.

        Returns:
            The figure.

        Raises:
            RGBBandsMissingError: If no modality has bands that make a picture.
        """
        return draw(sample, self.modalities, COMPOSITES, palette(self.dataset_type), show_titles, suptitle)

    def parts(self, index: int) -> Iterator[Part]:
        """The mask and the modalities of a patch, to be checked."""
        files, size = self.files[index], size_of(self.files[index])
        yield Part('mask', expect(files, None, size, self.dataset_type), partial(self._load_mask, files['mask']))
        for name, modality in self.modalities.items():
            product = PRODUCTS[name]
            dates = None
            if product.table is not None:
                table, key = table_of(self.path, product.table), key_of(str(files['patch_id']), modality)
                dates = dates_of(table, self._days[name].get(key), self._undated[name].get(key))
            read = partial(self._read_alone, files, modality, size)
            yield Part(name, expect(files, product, size, self.dataset_type, dates), read, dates, modality)

    def image_files(self, name: str, indices: Iterable[int]) -> list[Path]:
        """Return the files that a modality of some samples is read from, whether they are there or not.

        Args:
            name: The modality.
            indices: Numbers of the samples.
        """
        products = [PRODUCTS[name].name, *([CLOUDS] if name == 's2' else [])]
        rows = [self.files[index] for index in indices]
        return [Path(files[product]) for files in rows for product in products if product in files]

    def _load(self, index: int) -> Sample:
        """What TorchGeo's loader gives for a patch, of the files that are there."""
        files = self.files[index]
        lost = [band for band in self.bands if not Path(files[band]).exists()]
        if lost and self.missing == 'error':
            raise FileNotFoundError(
                f'{files[lost[0]]} does not exist, expected it beside {files["mask"]} '
                "(missing='allow' takes it for never acquired)"
            )
        loader = copy.copy(self)
        loader.bands = [band for band in self.bands if band not in lost]
        try:
            return FLAIRHUB.__getitem__(loader, index)
        except (RasterioError, EinopsError) as error:
            path = damaged(files, ('mask', *loader.bands))
            raise ValueError(f'{path} cannot be read ({error}), expected a raster of FLAIR-HUB') from error

    def _read(self, files: Files, modality: Modality, loaded: Sample, size: Sequence[int]) -> Sample:
        """The three tensors of a modality, if it was loaded."""
        product = PRODUCTS[modality.name]
        key = self.modality_key_map[product.name]
        if key not in loaded:
            return {}
        image = measured_of(files, product, loaded[key].numpy(), size, self.decibels)
        return (self._series if modality.temporal else self._image)(files, modality, image, loaded)

    def _read_alone(self, files: Files, modality: Modality, size: Sequence[int]) -> Sample:
        """The three tensors of a modality, of whose patch nothing else is loaded."""
        product = PRODUCTS[modality.name]
        bands = [(product.name, len(modality.bands))] + [(CLOUDS, 2)] * (modality.name == 's2')
        loaded: Sample = {}
        for band, count in bands:
            if Path(files[band]).exists():
                load = partial(self._load_time_series, num_bands=count) if modality.temporal else self._load_image
                loaded[self.modality_key_map[band]] = load(files[band])
        return self._read(files, modality, loaded, size)

    def _image(self, files: Files, modality: Modality, image: NDArray[np.float32], loaded: Sample) -> Sample:
        """The three tensors of a single image."""
        day = self._days.get(modality.name, {}).get(str(files['patch_id']), 0)
        valid = np.isfinite(image).any(keepdims=True).reshape(1)
        return tensors(modality, pick(modality, MODALITIES[modality.name].bands, image), np.array([day]), valid)

    def _series(self, files: Files, modality: Modality, image: NDArray[np.float32], loaded: Sample) -> Sample:
        """The three tensors of a series, one frame a day."""
        product = PRODUCTS[modality.name]
        days = self._days[modality.name][area_of(str(files['patch_id']))]
        if len(days) != len(image):
            table = table_of(self.path, str(product.table))
            raise ValueError(f'{files[product.name]} holds {len(image)} dates, expected {len(days)} as in {table}')
        clear = np.ones(len(days), dtype=bool)
        if modality.name == 's2' and self.modality_key_map[CLOUDS] in loaded:
            masks = loaded[self.modality_key_map[CLOUDS]].numpy()
            if masks.shape != (len(days), 2, *image.shape[2:]):
                expected = f'{(len(days), 2, *image.shape[2:])}, snow and cloud'
                raise ValueError(f'{files[CLOUDS]} holds probabilities {masks.shape}, expected {expected}')
            clear = (masks >= self.cloud_probability).any(1).mean((1, 2)) < self.cloud_cover
        frames = choose_clear(days, clear, max_dates=self.max_dates)
        merge = decibel_mean if product.radar and self.decibels else finite_mean
        image, merged = merge_days(image[frames], days[frames], merge)
        if product.radar and not self.decibels:
            image = 10 * np.log10(image)
        valid = np.isin(merged, days[clear]) & np.isfinite(image).any((1, 2, 3))
        return tensors(modality, pick(modality, MODALITIES[modality.name].bands, image), merged, valid)

    def _check_files(self) -> None:
        """Refuse patches without an image, unless that is allowed, and leave out those without any."""
        self.unseen: list[str] = []
        for band in self.bands if self.missing == 'error' else ():
            paths = [Path(files[band]) for files in self.files]
            refuse_missing([path for path in paths if not path.exists()], len(paths))
        if self.missing == 'allow':
            products = [PRODUCTS[name].name for name in self.modalities]
            seen = [any(Path(files[product]).exists() for product in products) for files in self.files]
            self.files, self.unseen = keep_seen(self.files, self.ids, seen, self.modalities, self.path)

    def _verify(self) -> None:
        """TorchGeo's check of every domain, of the modalities that it has if some may be missing."""
        bands, years = self.bands, self.domain_years
        try:
            for domain, year in ((domain, year) for domain, held in years.items() for year in held):
                self.domain_years = {domain: [year]}  # type: ignore[misc]
                strict = self.missing == 'error' or self.download
                self.bands = [band for band in bands if strict or holds(self.path, f'{domain}-{year}', band)]
                super()._verify()
        finally:
            self.bands, self.domain_years = bands, years  # type: ignore[misc]

    def _choose(self, names: Sequence[str] | None, download: bool) -> list[str]:
        """The modalities that are asked for; None is those of which any domain has files."""
        domains = [f'{domain}-{year}' for domain, years in self.domain_years.items() for year in years]
        held = [name for name, product in PRODUCTS.items() if any(holds(self.path, d, product.name) for d in domains)]
        return choose_modalities(names, MODALITIES if download or not held else held, MODALITIES, self.path)
