# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""BioMassters with the acquisition months of its time series."""

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import rasterio
import torch
from torch import Tensor
from torchgeo.datasets import BioMassters
from torchgeo.datasets.utils import Path, Sample

#: Year of the first month of all series, September, because the years of the samples are not published.
YEAR = 2020


class BioMasstersSeries(BioMassters):
    """TorchGeo's ``BioMassters`` with the month of each image, for :class:`.MappedDataset`.

    Samples are time series of up to twelve months from September to August. They have ``dates_S1`` and ``dates_S2``,
    the 15th of each month in seconds since 1970 (the first September is that of 2020), because months may be missing.
    Pixels keep the precision of the files, such as decibels with decimals, which TorchGeo truncates to integers.

    Args:
        root: Directory of the dataset.
        split: ``'train'``, or ``'test'``, which has no published labels.
        sensors: Sensors to read.
    """

    def __init__(
        self, root: Path = 'data', split: Literal['train', 'test'] = 'train', sensors: Sequence[Any] = ('S1', 'S2')
    ) -> None:
        super().__init__(root, split, list(sensors), as_time_series=True)

    def __getitem__(self, index: int) -> Sample:
        """Return a sample with the dates of its images; a sensor without any image is left out."""
        rows = self.df[self.df['num_index'] == index].sort_values(['satellite', 'num_month'])
        sample: Sample = {}
        for sensor in self.sensors:
            of_sensor = rows[rows['satellite'] == sensor]
            if len(of_sensor):
                sample[f'image_{sensor}'] = self._load_input(of_sensor['filename'].tolist())
                sample[f'dates_{sensor}'] = torch.tensor([seconds(month) for month in of_sensor['num_month']])
        if self.split == 'train':
            sample['label'] = self._load_target(rows['corresponding_agbm'].unique()[0])
        return sample

    def _load_input(self, filenames: list[Path]) -> Tensor:
        images = []
        for name in filenames:
            with rasterio.open(os.path.join(self.root, f'{self.split}_features', name)) as file:
                images.append(file.read().astype(np.float32))
        return torch.from_numpy(np.stack(images))


def seconds(month: int) -> int:
    """Return the middle of a month after September as seconds since 1970-01-01."""
    years, months = divmod(8 + int(month), 12)
    return int(datetime(YEAR + years, months + 1, 15, tzinfo=UTC).timestamp())
