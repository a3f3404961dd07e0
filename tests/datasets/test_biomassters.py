# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""BioMassters through the adapters, on generated files in its layout."""

import calendar
import io
import struct
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from lightning.pytorch import Trainer

from tests.biomassters_tree import write_biomassters
from tests.conftest import SHARED
from torchgeo_omnisat.datamodules import MappedDataModule
from torchgeo_omnisat.datasets import BioMasstersSeries
from torchgeo_omnisat.tasks import OmniSatRegression

MODALITIES = [
    {'name': 's1', 'bands': ['VV', 'VH', 'VVd', 'VHd'], 'gsd': 10, 'temporal': True, 'kind': 'radar', 'unit': 'db'},
    {'name': 's2', 'bands': [f'B{i}' for i in range(10)], 'gsd': 10, 'temporal': True, 'kind': 'optical', 'unit': 'dn'},
]
KEYS = {
    's1': {'key': 'image_S1', 'dates': 'dates_S1', 'nodata': -9999},
    's2': {'key': 'image_S2', 'dates': 'dates_S2', 'channels': list(range(10))},
    'mask': {'key': 'label', 'continuous': True, 'value_unit': 't', 'nodata': -1},
}
CHIPS = 10


@pytest.fixture(scope='module')
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_biomassters(tmp_path_factory.mktemp('biomassters'), CHIPS)


def make(root: Path, fractions: list[float] | None = None) -> MappedDataModule:
    dataset = {'class_path': 'torchgeo_omnisat.datasets.BioMasstersSeries', 'init_args': {'root': str(root)}}
    return MappedDataModule(dataset, MODALITIES, KEYS, 40.0, batch_size=2, fractions=fractions or [0.6, 0.2, 0.2])


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
        make(root, fractions=fractions)


def parts_of(data: bytes) -> list[tuple[pd.Series, bytes]]:
    """Rows of the index of a tortilla file, a Parquet table, and the bytes that each describes."""
    start, length = struct.unpack('<qq', data[2:18])
    table = pd.read_parquet(io.BytesIO(data[start : start + length]))
    places = zip(table['tortilla:offset'], table['tortilla:length'], strict=True)
    return [(row, data[o : o + n]) for (_, row), (o, n) in zip(table.iterrows(), places, strict=True)]


@pytest.fixture(scope='module')
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine real chips of GEO-Bench-2, unpacked to the layout of BioMassters."""
    path = SHARED / 'biomassters-mini' / 'biomassters.tortilla'
    if not path.is_file():
        pytest.skip(f'{path} is not there')
    pytest.importorskip('pyarrow')
    return unpack(path, tmp_path_factory.mktemp('real'))


def unpack(path: Path, root: Path) -> Path:
    """The chips of a tortilla file in the layout of BioMassters."""
    rows = []
    for folder in ('train_features', 'train_agbm'):
        (root / folder).mkdir(parents=True)
    for _, sample in parts_of(path.read_bytes()):
        files = parts_of(sample)
        chip = files[0][0]['tortilla:id'].split('_')[0]
        for row, data in files:
            if row['modality'] not in ('S1', 'S2'):
                (root / 'train_agbm' / f'{chip}_agbm.tif').write_bytes(data)
                continue
            month = (list(calendar.month_name).index(row['month']) - 9) % 12
            name = f'{chip}_{row["modality"]}_{month:02d}.tif'
            (root / 'train_features' / name).write_bytes(data)
            rows.append((chip, name, f'{chip}_agbm.tif', row['modality'], 'train', month))
    columns = ['chip_id', 'filename', 'corresponding_agbm', 'satellite', 'split', 'month']
    pd.DataFrame(rows, columns=columns).to_csv(root / BioMasstersSeries.metadata_filename, index=False)
    return root


def test_real_chips_are_read_and_trained_on(real: Path, tmp_path: Path) -> None:
    datamodule = make(real)
    dataset = datamodule.make_dataset('train')
    samples = [dataset[index] for index in range(len(dataset))]
    assert {len(sample['dates_s1']) for sample in samples} == {12}
    assert min(len(sample['dates_s2']) for sample in samples) < 12  # some months have no Sentinel-2 image
    quiet: dict[str, Any] = {'accelerator': 'cpu', 'logger': False, 'enable_progress_bar': False, 'max_steps': 2}
    task = OmniSatRegression('omnisat_tiny')
    trainer = Trainer(**quiet, default_root_dir=tmp_path, enable_checkpointing=False, num_sanity_val_steps=0)
    trainer.fit(task, datamodule=datamodule)
    (scores,) = trainer.test(task, datamodule=datamodule, verbose=False)
    assert 0 < datamodule.target_mean < 500
    assert {'test_MAE', 'test_RMSE', 'test_R2', 'test_R2/s1', 'test_R2/s2'} <= set(scores)
