# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""BioMassters through the adapters, on generated files in its layout."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from tests.geo_tree import write
from torchgeo_omnisat.datamodules import MappedDataModule
from torchgeo_omnisat.datasets import BioMasstersSeries

MODALITIES = [
    {'name': 's1', 'bands': ['VV', 'VH', 'VVd', 'VHd'], 'gsd': 10, 'temporal': True, 'kind': 'radar', 'unit': 'db'},
    {'name': 's2', 'bands': [f'B{i}' for i in range(10)], 'gsd': 10, 'temporal': True, 'kind': 'optical', 'unit': 'dn'},
]
KEYS = {
    's1': {'key': 'image_S1', 'dates': 'dates_S1', 'nodata': -9999},
    's2': {'key': 'image_S2', 'dates': 'dates_S2', 'channels': list(range(10))},
    'mask': {'key': 'label', 'continuous': True, 'value_unit': 't', 'nodata': -1},
}
MONTHS = {'S1': (0, 4, 11), 'S2': (0, 4)}
CHIPS = 10


@pytest.fixture(scope='module')
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten chips of 16 pixels with three months of Sentinel-1 and two of Sentinel-2; Sentinel-1 shows the biomass."""
    root, rng, rows = tmp_path_factory.mktemp('biomassters'), np.random.default_rng(0), []
    for number in range(CHIPS):
        chip, biomass = f'{number:08x}', rng.uniform(0, 300, (4, 4)).repeat(4, 0).repeat(4, 1).astype(np.float32)
        for sensor, months in MONTHS.items():
            for month in months:
                name = f'{chip}_{sensor}_{month:02d}.tif'
                count = 4 if sensor == 'S1' else 11
                image = -12.7 + biomass / 30 + rng.normal(size=(count, 16, 16))
                image = np.float32(image) if sensor == 'S1' else np.uint16(1000 + 100 * image**2)
                write(root / 'train_features' / name, image, crs=None)
                rows.append((chip, name, f'{chip}_agbm.tif', sensor, 'train', month))
        if number == 0:
            biomass[:8] = -1
        write(root / 'train_agbm' / f'{chip}_agbm.tif', biomass, crs=None)
    columns = ['chip_id', 'filename', 'corresponding_agbm', 'satellite', 'split', 'month']
    pd.DataFrame(rows, columns=columns).to_csv(root / BioMasstersSeries.metadata_filename, index=False)
    return root


def make(root: Path) -> MappedDataModule:
    dataset = {'class_path': 'torchgeo_omnisat.datasets.BioMasstersSeries', 'init_args': {'root': str(root)}}
    return MappedDataModule(dataset, MODALITIES, KEYS, 40.0, batch_size=2, fractions=[0.6, 0.2, 0.2])


def test_months_decibels_and_labels(root: Path) -> None:
    dataset = make(root).make_dataset('train')
    sample = dataset[0]
    assert sample['image_s1'].shape == (3, 4, 16, 16)
    assert sample['image_s2'].shape == (2, 10, 16, 16)
    days = sample['dates_s1'].numpy().astype('datetime64[D]').astype(str).tolist()
    assert days == ['2020-09-15', '2021-01-15', '2021-08-15']
    assert not torch.equal(sample['image_s1'], sample['image_s1'].round())
    assert sample['mask'].dtype == torch.float32
    assert sample['mask'].shape == (16, 16)


def test_fractions_divide_all_samples_once(root: Path) -> None:
    datamodule = make(root)
    parts = [datamodule.make_dataset(split).indices for split in ('train', 'val', 'test')]
    assert [len(part) for part in parts] == [6, 2, 2]
    assert sorted(index for part in parts for index in part) == list(range(CHIPS))
    assert [list(make(root).make_dataset('val').indices)] == [list(parts[1])]


def test_target_statistics_are_those_of_the_training_labels(root: Path) -> None:
    datamodule = make(root)
    datamodule.setup('fit')
    values = torch.stack([sample['mask'] for sample in map(datamodule.train_dataset.__getitem__, range(6))])
    known = values[values.isfinite()].double()
    assert datamodule.target_mean == pytest.approx(known.mean().item(), rel=1e-5)
    assert datamodule.target_std == pytest.approx(known.std(correction=0).item(), rel=1e-5)
    assert datamodule.target_unit == 't'
    assert not (values == -1).any()
    sample = datamodule.train_dataset[0]
    figure = datamodule.train_dataset.plot({**sample, 'prediction': sample['mask']})
    assert 'prediction' in {ax.get_title() for ax in figure.axes}


@pytest.mark.parametrize('fractions', [[0.5, 0.5], [0.9, 0.2, 0.1], [1.2, -0.1, -0.1]])
def test_invalid_fractions(root: Path, fractions: list[float]) -> None:
    with pytest.raises(ValueError, match=r'0\.5|0\.9|1\.2'):
        MappedDataModule({'class_path': 'x.Y'}, MODALITIES, KEYS, 40.0, fractions=fractions)
