# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

import io
import struct
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torchgeo.datasets import DatasetNotFoundError

from tests.conftest import SHARED
from tests.tortilla_tree import hdf5, row, tortilla, write_geobench2
from torchgeo_omnisat.batch import check, collate
from torchgeo_omnisat.datasets import GeoBench2
from torchgeo_omnisat.datasets.io.tortilla import read_tortilla
from torchgeo_omnisat.datasets.treesatai import GENERA

MINI = SHARED / 'biomassters-mini'


def day(date: str) -> int:
    return int(np.datetime64(date).astype(int))


@pytest.fixture(scope='module')
def trees(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp('geobench2')
    return {name: write_geobench2(folder / name, name) for name in ('pastis', 'treesatai', 'biomassters')}


@pytest.mark.parametrize('name', ['pastis', 'treesatai', 'biomassters'])
def test_samples_keep_the_contract(trees: dict[str, Path], name: str) -> None:
    counts = {}
    for split in ('train', 'val', 'test'):
        dataset = GeoBench2(trees[name], name, split)
        batch = collate([dataset[index] for index in range(len(dataset))], dataset.modalities)
        check(batch, dataset.modalities)
        counts[split] = len(dataset)
        assert len(set(dataset.ids)) == len(dataset)
        assert len(dataset.plot(dataset[0]).axes) > 0
    assert counts == {'train': 3, 'val': 1, 'test': 1}


def test_pastis_is_as_published(trees: dict[str, Path]) -> None:
    dataset = GeoBench2(trees['pastis'], 'pastis')
    sample = dataset[1]
    assert dataset.ids == ['10000', '10001', '10002']
    parts = {part.id: part for part in dataset.entries[1].entries()}
    stored = parts['s2'].array('data', 'integers')
    assert sample['dates_s2'].tolist() == [day(d) for d in ('2018-09-20', '2018-09-25', '2018-10-10', '2019-03-01')]
    assert sample['valid_s2'].tolist() == [True, False, True, True]
    assert np.array_equal(sample['image_s2'][[0, 2, 3]], stored[[0, 3, 2]].astype(np.float32))
    assert sample['image_s2'][1].isnan().all()
    assert torch.equal(
        sample['mask'], torch.from_numpy(parts['semantic'].array('data', 'integers')[0].astype(np.int64))
    )
    assert (len(dataset.labels), dataset.ignore_index, len(sample['label'])) == (20, 19, 18)
    few = GeoBench2(trees['pastis'], 'pastis', modalities=('s1a',), bands={'s1a': ('VH',)}, max_dates=2)[1]
    assert few['image_s1a'].shape == (2, 1, 16, 16)
    assert np.array_equal(few['image_s1a'][0, 0], parts['s1a'].array('data', 'numbers')[0, 1].astype(np.float32))


def test_sentinel_images_of_treesatai_are_restored(trees: dict[str, Path]) -> None:
    dataset = GeoBench2(trees['treesatai'], 'treesatai')
    sample = dataset[0]
    parts = {part.id: part for part in dataset.entries[0].entries()}
    stored = {name: part.raster('bands') for name, part in parts.items()}
    assert sample['image_s2'].shape == (12, 6, 6)
    place = np.arange(304) * 6 // 304
    assert np.array_equal(sample['image_s2'].numpy()[:, place][:, :, place], stored['s2'].astype(np.float32))
    assert np.array_equal(sample['image_aerial'], stored['aerial'][:, 2:-2, 2:-2].astype(np.float32))
    assert -25 < sample['image_s1'][:2].min() < sample['image_s1'][:2].max() < 0
    assert [GENERA[index] for index in sample['label'].nonzero().flatten()] == ['Abies', 'Tilia']


def test_months_of_biomassters(trees: dict[str, Path]) -> None:
    dataset = GeoBench2(trees['biomassters'], 'biomassters')
    sample = dataset[0]
    assert sample['dates_s1'].tolist() == [day(d) for d in ('2020-09-15', '2020-10-15', '2020-11-15', '2021-07-15')]
    assert sample['dates_s2'].tolist() == [day('2020-10-15'), day('2020-11-15')]
    assert sample['image_s1'][:, 2:].isnan().all()
    assert sample['image_s1'][:, :2].isfinite().all()
    assert sample['image_s2'].shape == (2, 10, 16, 16)
    assert sample['image_s2'].isnan().any(1).sum((1, 2)).tolist() == [1, 1]
    assert sample['mask'].dtype == torch.float32
    assert 0 < sample['mask'].max() < 300


def test_parts_are_read_as_one(trees: dict[str, Path], tmp_path: Path) -> None:
    root = write_geobench2(tmp_path, 'pastis', parts=2)
    one, parts = GeoBench2(trees['pastis'], 'pastis'), GeoBench2(root, 'pastis')
    assert sorted(parts.ids) == sorted(one.ids)
    assert len({entry.path for entry in parts.entries}) == 2
    for index, name in enumerate(parts.ids):
        assert torch.equal(parts[index]['image_s2'].nan_to_num(), one[one.ids.index(name)]['image_s2'].nan_to_num())


@pytest.mark.skipif(not MINI.is_dir(), reason='the shared data are not here')
def test_published_file() -> None:
    counts = {split: len(GeoBench2(MINI, 'biomassters', split)) for split in ('train', 'val', 'test')}
    assert counts == {'train': 5, 'val': 2, 'test': 2}
    dataset = GeoBench2(MINI, 'biomassters')
    samples = [dataset[index] for index in range(len(dataset))]
    check(collate(samples, dataset.modalities), dataset.modalities)
    sample = samples[0]
    assert (sample['image_s1'].shape, sample['image_s2'].shape) == ((12, 4, 32, 32), (11, 10, 32, 32))
    assert sample['image_s1'][:, 2:].isnan().all()  # the descending orbit is nodata in the file
    assert -30 < sample['image_s1'].nan_to_num(-12).min() < 10
    assert day('2020-12-15') not in sample['dates_s2'].tolist()  # the month that the file lacks
    assert sample['mask'].max() == pytest.approx(291.48514)


class TestErrors:
    def write(self, root: Path, content: bytes) -> Path:
        path = root / 'pastis.tortilla'
        path.write_bytes(content)
        return path

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(DatasetNotFoundError, match='geobench_pastis'):
            GeoBench2(tmp_path)

    def test_other_file(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, b'PK\x03\x04' + bytes(300))
        with pytest.raises(ValueError, match=path.name):
            GeoBench2(tmp_path)

    def test_incomplete_file(self, trees: dict[str, Path], tmp_path: Path) -> None:
        content = (trees['pastis'] / 'geobench_pastis.tortilla').read_bytes()
        self.write(tmp_path, content[:-100])
        with pytest.raises(ValueError, match='incomplete'):
            GeoBench2(tmp_path)
        self.write(tmp_path, b'#y' + struct.pack('<QQQ', 200, 20, 1).ljust(198, b'\0') + b'no table at all here')
        with pytest.raises(ValueError, match='Parquet'):
            GeoBench2(tmp_path)

    def test_file_beyond_the_container(self, tmp_path: Path) -> None:
        content = bytearray(tortilla([row('one', 'HDF5', 'train', bytes(50_000))]))
        offset, length = struct.unpack('<QQ', content[2:18])
        short = content[:200] + content[offset:]
        short[2:18] = struct.pack('<QQ', 200, length)
        path = self.write(tmp_path, bytes(short))
        with pytest.raises(ValueError, match='50200'):
            read_tortilla(path)

    def test_external_data_are_refused(self, tmp_path: Path) -> None:
        memory = io.BytesIO()
        with h5py.File(memory, 'w') as file:
            file['data'] = h5py.ExternalLink(str(tmp_path / 'secret.h5'), 'data')
        (tmp_path / 'secret.h5').write_bytes(hdf5(np.zeros(3)))
        path = self.write(tmp_path, tortilla([row('one', 'HDF5', 'train', memory.getvalue())]))
        with pytest.raises(ValueError, match=r"'one'.*in the file itself"):
            read_tortilla(path)[0].array('data', 'numbers')

    def test_missing_part(self, tmp_path: Path) -> None:
        inside = tortilla([row('s2', 'HDF5', 'train', hdf5(np.zeros((1, 10, 4, 4), np.int16)), dates=[20190101])])
        self.write(tmp_path, tortilla([row('sample_0', 'TORTILLA', 'train', inside)]))
        with pytest.raises(ValueError, match='semantic'):
            GeoBench2(tmp_path)[0]

    def test_dates_must_match(self, tmp_path: Path) -> None:
        mask = row('semantic', 'HDF5', 'train', hdf5(np.zeros((3, 4, 4), np.uint8)), dates=[])
        series = row('s2', 'HDF5', 'train', hdf5(np.zeros((2, 10, 4, 4), np.int16)), dates=[20190101])
        self.write(tmp_path, tortilla([row('sample_0', 'TORTILLA', 'train', tortilla([series, mask]))]))
        with pytest.raises(ValueError, match=r'\(2, 10, 4, 4\)'):
            GeoBench2(tmp_path, modalities=('s2',))[0]

    def test_unknown_name(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match='flair2'):
            GeoBench2(tmp_path, 'flair2')  # type: ignore[arg-type]
