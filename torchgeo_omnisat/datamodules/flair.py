# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""FLAIR in its official domains."""

import warnings
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torchgeo.datasets import DatasetNotFoundError, NonGeoDataset
from tqdm import tqdm

from ..datasets import FLAIR
from ..datasets.flair_layout import AERIAL_MEAN, AERIAL_STD, MODALITIES, class_names
from ..datasets.writing import is_synthetic
from .base import MultimodalDataModule
from .statistics import Bands, Moments, as_bands, keep_statistics

#: At most so many patches, spread evenly over the split, are read to measure Sentinel-2.
MEASURED = 1000


class FLAIRDataModule(MultimodalDataModule):
    """FLAIR #1 and #2, trained, validated and tested on FLAIR #2's domains.

    A split is asked for when a stage needs it, so a root without the test domains trains.

    Aerial images are normalised by the published statistics of the training domains.
    Sentinel-2 is measured once, over the valid dates of up to 1000 patches of the training
    split, and kept as ``STATISTICS_FLAIR.json``. That file may say ``aerial`` too, which
    then takes the place of what is published.
    """

    patch_size = 10.24
    label_gsd = FLAIR.label_gsd

    def __init__(
        self,
        root: str = 'data',
        modalities: tuple[str, ...] | None = None,
        bands: dict[str, tuple[str, ...]] | None = None,
        num_classes: int = 13,
        batch_size: int = 4,
        num_workers: int = 0,
        cloud_probability: float = 60,
        cloud_cover: float = 0.5,
        max_dates: int | None = None,
        missing: Literal['error', 'allow'] = 'error',
        download: bool = False,
        checksum: bool = False,
        dihedral: bool = True,
        temporal_dropout: float = 0.2,
        speckle: float = 10.0,
        jitter: float = 0.05,
    ) -> None:
        """Keep the arguments; nothing is read yet.

        Args:
            root: Directory of the dataset (see :class:`~torchgeo_omnisat.datasets.FLAIR`).
            modalities: ``'aerial'``, ``'s2'`` or both; None for all that the root holds.
            bands: Bands to keep by modality, such as ``{'aerial': ('R', 'G', 'B')}``.
            num_classes: 13, of which ``'other'``, the last, is ignored, or 19.
            batch_size: Samples in a batch.
            num_workers: Processes that read.
            cloud_probability: From which probability on, in %, a pixel is snow or cloud.
            cloud_cover: Which share of such pixels makes a date not valid.
            max_dates: How many days of a series to read, spread evenly; None for all.
            missing: ``'allow'`` takes a missing image for a modality that was not acquired.
            download: Whether to download what a stage needs.
            checksum: Whether to check the MD5 of archives.
            dihedral: Whether to turn and mirror training tiles.
            temporal_dropout: Probability of losing each date of a training series; 0 for none.
            speckle: Looks of the speckle added to radar images in training; 0 for none.
            jitter: Greatest change of gain and offset in training, in deviations; 0 for none.

        Raises:
            ValueError: If there is no such number of classes.
        """
        if num_classes not in (13, 19):
            raise ValueError(f'num_classes is {num_classes!r}, expected one of [13, 19]')
        super().__init__(
            FLAIR,
            batch_size=batch_size,
            num_workers=num_workers,
            dihedral=dihedral,
            temporal_dropout=temporal_dropout,
            speckle=speckle,
            jitter=jitter,
            root=root,
            modalities=modalities,
            bands=bands,
            num_classes=num_classes,
            cloud_probability=cloud_probability,
            cloud_cover=cloud_cover,
            max_dates=max_dates,
            missing=missing,
            download=download,
            checksum=checksum,
        )
        self.num_classes = num_classes
        self.labels = list(class_names(num_classes))
        self.ignore_index = 12 if num_classes == 13 else None

    @property
    def synthetic(self) -> bool:
        """Whether the patches are made up, so that whoever shows results from them says so."""
        return is_synthetic(Path(self.kwargs['root']).expanduser())

    def make_dataset(self, split: str) -> FLAIR:
        """The dataset of ``'train'``, ``'val'`` or ``'test'``."""
        return FLAIR(split=split, **self.kwargs)

    def statistics(self, dataset: NonGeoDataset) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Mean and deviation of every band.

        Args:
            dataset: Any split, which says where the files are and what bands are in use.

        Returns:
            Mean and standard deviation by modality.

        Raises:
            ValueError: If there is nothing to measure.
        """
        assert isinstance(dataset, FLAIR)
        source = self._series(dataset) if 's2' in dataset.modalities else dataset
        indices = np.linspace(0, len(source) - 1, min(len(source), MEASURED)).round().astype(int)

        def measure(key: str) -> Moments:
            moments = Moments(len(MODALITIES[key].bands))
            for index in tqdm(indices.tolist(), desc=f'Statistics of {key}', disable=None, leave=False):
                sample = source[index]
                if MODALITIES[key].image_key in sample:
                    moments.add(sample[MODALITIES[key].image_key][sample[MODALITIES[key].valid_key]])
            return moments

        counts = {'s2': len(indices)} if 's2' in dataset.modalities else {}
        other = f'_{source.split}' if counts and source.split != 'train' else ''
        kept = keep_statistics(dataset.path, f'STATISTICS_FLAIR{other}.json', counts, measure)
        mean, std = {}, {}
        for name, modality in dataset.modalities.items():
            if name in kept and not kept[name]['mean']:
                raise ValueError(
                    f'{name!r} has not one valid date in {len(indices)} patches of the split {source.split!r} of '
                    f'{dataset.path}, expected some to measure its mean and deviation; leave it out of modalities'
                )
            channels = [MODALITIES[name].bands.index(band) for band in modality.bands]
            numbers = as_bands(kept[name]) if name in kept else _published()
            mean[name], std[name] = (number[channels].float() for number in numbers)
        return mean, std

    def _series(self, dataset: FLAIR) -> FLAIR:
        """The Sentinel-2 of the training split, or, where that is not there, of *dataset*'s."""
        whole = {**self.kwargs, 'modalities': ('s2',), 'bands': None, 'max_dates': None, 'download': False}
        try:
            return FLAIR(split='train', **whole)
        except DatasetNotFoundError:
            warnings.warn(
                f"{dataset.path} holds no training split, so 's2' is measured on {dataset.split!r}; "
                'a checkpoint brings the statistics that it was trained with',
                stacklevel=2,
            )
            return FLAIR(split=dataset.split, **whole)


def _published() -> Bands:
    """The published statistics of the aerial bands."""
    return torch.tensor(AERIAL_MEAN, dtype=torch.float64), torch.tensor(AERIAL_STD, dtype=torch.float64)
