# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""`check` reads the samples of datasets that do not describe their files."""

from pathlib import Path
from typing import Any

import torch
from torchgeo.datasets import NonGeoDataset

from torchgeo_omnisat.datamodules import MappedDataModule
from torchgeo_omnisat.validation import walk

S2 = {'name': 's2', 'bands': ['B04', 'B08'], 'gsd': 10.0, 'temporal': False}


class Ponds(NonGeoDataset):
    """A good sample, one that is mostly nodata, and one that cannot be read."""

    def __init__(self, split: str = 'train') -> None:
        self.split = split

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == 2:
            raise ValueError('ponds/2.tif is truncated')
        image = torch.full((2, 8, 8), 1000.0)
        image[:, : 6 * index] = torch.nan
        return {'image': image, 'mask': torch.arange(64).reshape(8, 8) % 2}


def test_samples_are_read_as_a_whole(tmp_path: Path) -> None:
    datamodule = MappedDataModule(
        {'class_path': f'{__name__}.Ponds'}, [S2], {'s2': 'image', 'mask': 'mask'}, 20.0, ['land', 'pond']
    )
    report = walk(datamodule)
    found = {(problem.sample, problem.part, problem.kind) for problem in report.faults}
    assert found == {('1', 's2', 'nan'), ('2', 'sample', 'unreadable')}
    assert any('ponds/2.tif is truncated' in problem.reason for problem in report.faults)
    assert report.samples == {'train': 3, 'val': 3, 'test': 3}
    (red, _) = report.statistics['bands']
    assert red['mean'] == 1000
    pixels = {(row['split'], row['class']): row['pixels'] for row in report.statistics['classes']}
    assert (pixels['train', 'land'], pixels['train', 'pond']) == (64, 64)
