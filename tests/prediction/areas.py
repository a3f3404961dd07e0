# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Areas that are made up when they are read: smooth fields on a plane, from a seed."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from pyproj import CRS
from rasterio import Affine
from torch import Tensor
from torch.utils.data import DataLoader

from torchgeo_omnisat.batch import collate
from torchgeo_omnisat.grid import Grid
from torchgeo_omnisat.modality import Modality
from torchgeo_omnisat.prediction import Strip, Tiling, area_loader

MODALITIES = {
    's2': Modality('s2', ('B02', 'B03'), 10, True),
    's1a': Modality('s1a', ('VV',), 10, True),
    'dem': Modality('dem', ('elevation',), 20, False),
}
#: The same with a sensor that is finer than the labels.
FINE = {**MODALITIES, 'spot': Modality('spot', ('R',), 2.5, False)}
LABELS = ['water', 'field', 'town']
TOLD: dict[str, Any] = {
    'backbone': 'omnisat_tiny',
    'modalities': MODALITIES,
    'num_classes': 3,
    'labels': LABELS,
    'patch_size': 40.0,
    'label_gsd': 10.0,
}


def make_grid(height: int, width: int) -> Grid:
    return Grid(CRS.from_epsg(32631), Affine(10, 0, 600000, 0, -10, 5600000), height, width)


def field(rows: NDArray[Any], columns: NDArray[Any], phase: float) -> NDArray[np.float32]:
    """A value at every pixel, the same whichever window it is read in."""
    y, x = np.meshgrid(rows, columns, indexing='ij')
    return (np.sin(x / 7 + phase) + np.cos(y / 5 - 2 * phase) + np.sin((x + 2 * y) / 11)).astype(np.float32)


class PlaneTiles:
    """Windows of such a plane; *covers* says which columns a modality measured."""

    def __init__(self, modalities: Sequence[str], covers: dict[str, tuple[int, int]] | None = None) -> None:
        self.modalities, self.covers = modalities, covers or {}

    def __getitem__(self, window: Sequence[int]) -> dict[str, Tensor]:
        row, column, height, width = window
        sample = {'window': torch.tensor([row, column, height, width])}
        for number, name in enumerate(self.modalities):
            modality, step = FINE[name], FINE[name].gsd / 10
            rows, columns = np.arange(row, row + height, step), np.arange(column, column + width, step)
            dates = 2 if modality.temporal else 1
            phases = [[number + band + 0.1 * date for band in range(len(modality.bands))] for date in range(dates)]
            image = np.array([[field(rows, columns, phase) for phase in of_date] for of_date in phases])
            first, last = self.covers.get(name, (-(10**9), 10**9))
            image[..., (columns < first) | (columns >= last)] = np.nan
            if np.isnan(image).all():
                continue
            frames = torch.from_numpy(image.astype(np.float32))
            sample[modality.image_key] = frames if modality.temporal else frames[0]
            sample[modality.dates_key] = 18000 + 30 * torch.arange(dates)
            sample[modality.valid_key] = torch.ones(dates, dtype=torch.bool)
        return sample


class PlaneDataModule(LightningDataModule):
    """What a writer needs of a datamodule with an area."""

    plan: Any = None

    def __init__(
        self,
        height: int = 72,
        width: int = 88,
        size: int = 32,
        overlap: float = 0.25,
        modalities: Sequence[str] = ('s2',),
        covers: dict[str, tuple[int, int]] | None = None,
        batch_size: int = 3,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.grid, self.batch_size, self.num_workers = make_grid(height, width), batch_size, num_workers
        self.tiling = Tiling(height, width, size, overlap, patch=4)
        self.predict_dataset = PlaneTiles(modalities, covers)
        self.collate_fn = partial(collate, modalities=FINE if 'spot' in modalities else MODALITIES)

    def predict_dataloader(self) -> DataLoader[Any]:
        return area_loader(self)


def is_cog(path: Path) -> bool:
    """Whether what describes the images comes first, then overviews from the least, then the image.

    GDAL says so of a file in bands from 3.12 at the latest; it lays 3.9's out the same.
    """
    with rasterio.open(path) as file:
        levels = [*reversed(range(len(file.overviews(1)))), None]
        heads, blocks = (
            [int(file.get_tag_item(f'{kind}_OFFSET{place}', 'TIFF', bidx=1, ovr=level)) for level in levels]
            for kind, place in (('IFD', ''), ('BLOCK', '_0_0'))
        )
        said = file.tags(ns='IMAGE_STRUCTURE').get('LAYOUT') == 'COG'
    old = tuple(map(int, rasterio.__gdal_version__.split('.')[:2])) < (3, 12)
    return (said or old) and max(heads) < blocks[0] and blocks == sorted(blocks)


def strip_names(strips: Sequence[Strip]) -> list[tuple[int, int]]:
    return [tuple(strip) for strip in strips]
