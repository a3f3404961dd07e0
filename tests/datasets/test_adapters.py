# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""MappedDataset: TorchGeo's datasets on made-up files, and samples shaped like theirs, in our keys."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from torchgeo.datasets import SEN12MS, SSL4EOS12, BigEarthNet, EuroSAT, NonGeoDataset

from tests.geo_tree import write
from torchgeo_omnisat.batch import check, collate
from torchgeo_omnisat.datasets import MappedDataset
from torchgeo_omnisat.modality import Modality

S2 = Modality('s2', tuple(f'B{i}' for i in range(12)), 10, False)
S1 = Modality('s1', ('VV', 'VH'), 10, False)


class Made(NonGeoDataset):
    """One synthetic sample again and again."""

    def __init__(self, **sample: Any) -> None:
        self.sample = sample

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Any:
        return self.sample


def read(dataset: MappedDataset) -> Any:
    check(dataset[0], dataset.modalities, batched=False)
    return collate([dataset[i] for i in range(len(dataset))], dataset.modalities)


def test_like_eurosat() -> None:
    image = torch.arange(12.0)[:, None, None].expand(12, 4, 4)
    dataset = MappedDataset(
        Made(image=image, label=torch.tensor(3)), [S2], {'s2': 'image', 'label': 'label'}, num_classes=5
    )
    batch = read(dataset)
    assert batch['image_s2'].shape == (3, 12, 4, 4)
    assert batch['label'].tolist() == [[0, 0, 0, 1, 0]] * 3
    with pytest.raises(ValueError, match=r'label.*3.*num_classes'):
        MappedDataset(dataset.dataset, [S2], {'s2': 'image', 'label': 'label'})[0]


def test_coordinates_of_keys_and_of_bounds() -> None:
    image, utm = torch.ones(12, 4, 4), 'EPSG:32631'
    keys: dict[str, Any] = {'s2': 'image', 'coordinates': {'x': 'lon', 'y': 'lat'}}
    made = Made(image=image, lon=torch.tensor(7.5), lat=45.25, bounds=torch.full((9,), torch.nan))
    batch = read(MappedDataset(made, [S2], keys))
    assert batch['coordinates'].dtype == torch.float64
    assert batch['coordinates'].tolist() == [[7.5, 45.25]] * 3
    north: Any = {'x': 'x', 'y': 'y', 'crs': utm}
    made = Made(image=image, x=torch.tensor([499_990.0, 500_010.0]), y=torch.tensor([0.0, 0.0]))
    assert read(MappedDataset(made, [S2], keys | {'coordinates': north}))['coordinates'][0].tolist() == pytest.approx(
        [3, 0]
    )
    bounds = torch.tensor([500_000.0, 500_000.0, 10, 0.0, 0.0, 10, 0, 1, 1], dtype=torch.float64)
    located = Made(image=image, bounds=bounds, crs=utm)
    assert read(MappedDataset(located, [S2], {'s2': 'image'}))['coordinates'][0].tolist() == pytest.approx([3, 0])
    located.sample.pop('crs')
    assert 'coordinates' not in MappedDataset(located, [S2], {'s2': 'image'})[0]
    located.crs = utm  # type: ignore[attr-defined]
    assert MappedDataset(located, [S2], {'s2': 'image'})[0]['coordinates'].tolist() == pytest.approx([3, 0])
    assert 'coordinates' not in MappedDataset(Made(image=image, lon=1.0, lat=1.0), [S2], {'s2': 'image'})[0]


@pytest.mark.parametrize(('place', 'named'), [({'x': 'lon'}, "'lon'"), ({'x': 'east', 'y': 'lat'}, 'east')])
def test_coordinates_that_are_not_there(place: Any, named: str) -> None:
    made = Made(image=torch.ones(12, 4, 4), lon=1.0, lat=1.0)
    with pytest.raises(ValueError, match=named):
        MappedDataset(made, [S2], {'s2': 'image', 'coordinates': place})[0]


def test_like_bigearthnet_and_sen12ms() -> None:
    image = torch.arange(14.0)[:, None, None].expand(14, 4, 4)
    made = Made(image=image, label=torch.tensor([0, 1, 1]), mask=torch.ones(1, 4, 4))
    keys: dict[str, Any] = {
        's1': {'key': 'image', 'channels': [0, 1]},
        's2': {'key': 'image', 'channels': range(2, 14), 'nodata': 2},
    }
    batch = read(MappedDataset(made, [S1, S2], {**keys, 'mask': 'mask', 'label': 'label'}))
    assert batch['image_s1'][0, :, 0, 0].tolist() == [0, 1]
    assert batch['image_s2'][0, 0].isnan().all()
    assert batch['image_s2'][0, 1:, 0, 0].tolist() == list(range(3, 14))
    assert batch['mask'].shape == (3, 4, 4)
    assert batch['label'][0].tolist() == [0, 1, 1]


def test_like_ssl4eo_seasons_one_behind_the_other() -> None:
    series = Modality('s2', ('R', 'G'), 10, True)
    image = torch.arange(8.0)[:, None, None].expand(8, 4, 4)
    days = ['2020-03-01', '2020-06-01', '2020-09-01', '2020-12-01']
    batch = read(MappedDataset(Made(image=image), [series], {'s2': {'key': 'image', 'dates': days}}))
    assert batch['image_s2'][0, :, :, 0, 0].tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert batch['dates_s2'][0].diff().tolist() == [92, 92, 91]
    with pytest.raises(ValueError, match=r"dates.*'s2'.*4"):
        MappedDataset(Made(image=image), [series], {'s2': {'key': 'image', 'dates': days[:2]}})[0]


@pytest.mark.parametrize('shape', [(0, 2, 4, 4), (0, 4, 4)])
def test_series_without_dates(shape: tuple[int, ...]) -> None:
    series = Modality('s2', ('R', 'G'), 10, True)
    keys: dict[str, Any] = {'s2': {'key': 'image', 'dates': 'when'}}
    sample = MappedDataset(Made(image=torch.zeros(shape), when=torch.zeros(0)), [series], keys)[0]
    assert [len(sample[key]) for key in series.keys] == [0, 0, 0]


def flat(*values: int) -> Any:
    """An image of 8 x 8 px, each band of one number."""
    return np.broadcast_to(np.array(values, np.uint16)[:, None, None], (len(values), 8, 8))


def test_eurosat_itself(tmp_path: Path) -> None:
    for number, name in enumerate(('Forest', 'River')):
        write(tmp_path / EuroSAT.base_dir / name / f'{name}_1.tif', flat(*range(100 * number, 100 * number + 13)))
    (tmp_path / 'eurosat-train.txt').write_text('Forest_1.jpg\nRiver_1.jpg\n')
    given = EuroSAT(tmp_path, bands=('B04', 'B8A'), checksum=False)
    dataset = MappedDataset(given, [Modality('s2', ('B04', 'B8A'), 10, False)], {'s2': 'image', 'label': 'label'}, 10)
    batch = collate([dataset[0], dataset[1]], dataset.modalities)
    check(batch, dataset.modalities)
    assert batch['image_s2'][..., 0, 0].tolist() == [[3, 12], [103, 112]]
    assert batch['label'].argmax(1).tolist() == [0, 1]


def test_bigearthnet_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BigEarthNet, 'image_size', (8, 8))
    bands = [f'B{number:02}' for number in range(1, 13) if number != 10]
    for number, band in enumerate(bands + ['B8A']):
        write(
            tmp_path / f'BigEarthNet-v1.0/one/one_{band}.tif',
            flat(80 if band == 'B8A' else number)[:, ::2, ::2],
            step=20,
        )
    for number, band in enumerate(('VH', 'VV')):
        write(tmp_path / f'BigEarthNet-S1-v1.0/two/two_{band}.tif', flat(200 + number))
    (tmp_path / 'BigEarthNet-S1-v1.0/two/two_labels.json').write_text(json.dumps({'labels': ['Pastures']}))
    for split in 'train', 'val', 'test':
        (tmp_path / f'bigearthnet-{split}.csv').write_text('one,two\n')
    s2 = Modality('s2', (*bands[:8], 'B8A', *bands[8:]), 10, False)
    keys: dict[str, Any] = {
        's1': {'key': 'image', 'channels': [1, 0]},
        's2': {'key': 'image', 'channels': range(2, 14)},
        'label': 'label',
    }
    dataset = MappedDataset(BigEarthNet(str(tmp_path), checksum=False), [S1, s2], keys)
    check(dataset[0], dataset.modalities, batched=False)
    assert dataset[0]['image_s1'][:, 0, 0].tolist() == [201, 200]
    assert dataset[0]['image_s2'][:, 7, 7].tolist() == [*range(8), 80, 8, 9, 10]
    assert dataset[0]['label'].nonzero().tolist() == [[4]]


def test_sen12ms_itself(tmp_path: Path) -> None:
    for season in SEN12MS.light_filenames[:4]:
        (tmp_path / season).mkdir()
    for name, image in (('lc', flat(7, 1, 2, 3)), ('s1', flat(20, 21)), ('s2', flat(*range(13)))):
        write(tmp_path / f'ROIs1158_spring/{name}_1/ROIs1158_spring_{name}_1_p30.tif', image)
    for split in 'train', 'test':
        (tmp_path / f'{split}_list.txt').write_text('ROIs1158_spring_s2_1_p30.tif\n')
    s2 = Modality('s2', SEN12MS.BAND_SETS['s2-all'], 10, False)
    keys: dict[str, Any] = {
        's1': {'key': 'image', 'channels': [0, 1]},
        's2': {'key': 'image', 'channels': range(2, 15)},
        'mask': 'mask',
    }
    given = SEN12MS(tmp_path, checksum=False)
    dataset = MappedDataset(given, [S1, s2], keys)
    check(dataset[0], dataset.modalities, batched=False)
    assert dataset[0]['image_s1'][:, 0, 0].tolist() == [20, 21]
    assert dataset[0]['image_s2'][:, 0, 0].tolist() == list(range(13))
    assert torch.equal(dataset[0]['mask'], torch.full((8, 8), 7))
    with pytest.raises(ValueError, match=r'mask.*\(8, 8\).*layers.*channels'):
        MappedDataset(given, [S1, s2], keys | {'mask': {'key': 'mask', 'channels': [0]}})[0]


def test_ssl4eo_itself_gives_seasons_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SSL4EOS12, 'size', 8)
    names = SSL4EOS12.metadata['s2a']['bands']
    for number, month in enumerate(('01', '04', '07', '10')):
        for band, name in enumerate(names):
            folder = tmp_path / f's2a/0000000/2021{month}05T104629_20210105T104624_T31UFS'
            write(folder / f'{name}.tif', flat(100 * number + band))
    series = Modality('s2', names, 10, True)
    dataset = MappedDataset(
        SSL4EOS12(tmp_path, 's2a', seasons=4, checksum=False), [series], {'s2': {'key': 'image', 'dates': 't'}}
    )
    for _ in range(5):
        sample = dataset[0]
        check(sample, dataset.modalities, batched=False)
        assert sample['dates_s2'].numpy().astype('datetime64[D]').astype(str).tolist() == [
            f'2021-{month}-05' for month in ('01', '04', '07', '10')
        ]
        assert sample['image_s2'][:, 1, 0, 0].tolist() == [1, 101, 201, 301]
    with pytest.raises(ValueError, match=r"dates.*'s2'.*'time'.*\['image'.*'t'"):
        MappedDataset(dataset.dataset, [series], {'s2': {'key': 'image', 'dates': 'time'}})[0]


def test_errors() -> None:
    made = Made(image=torch.zeros(5, 4, 4))
    with pytest.raises(ValueError, match=r"keys.*\[\].*\['s2'\]"):
        MappedDataset(made, [S2], {})
    with pytest.raises(ValueError, match=r"keys maps 's2'.*'img'.*\['image'\]"):
        MappedDataset(made, [S2], {'s2': 'img'})[0]
    with pytest.raises(ValueError, match=r"'image'.*\(5, 4, 4\).*'s2'.*12 channels"):
        MappedDataset(made, [S2], {'s2': 'image'})[0]


@pytest.mark.parametrize('mask', [torch.full((4, 4), 0.5), torch.full((4, 4), torch.nan), torch.ones(4, 4) * 1j])
def test_masks_that_are_no_whole_numbers_are_refused(mask: torch.Tensor) -> None:
    made = Made(image=torch.zeros(2, 4, 4), mask=mask)
    with pytest.raises(ValueError, match=r"'mask'.*pixels"):
        MappedDataset(made, [S1], {'s1': 'image', 'mask': 'mask'})[0]
    whole = MappedDataset(
        Made(image=torch.zeros(2, 4, 4), mask=torch.ones(4, 4)), [S1], {'s1': 'image', 'mask': 'mask'}
    )
    assert whole[0]['mask'].tolist() == [[1] * 4] * 4


def test_what_is_not_finite_was_not_measured() -> None:
    image = torch.ones(12, 4, 4)
    image[0, 0] = torch.tensor([torch.inf, -torch.inf, 1e30, torch.nan])
    found = read(MappedDataset(Made(image=image), [S2], {'s2': 'image'}))['image_s2']
    assert found.isnan().sum().item() == 12  # of three samples
    assert found.nan_to_num().max() == 1
    with pytest.raises(ValueError, match=r"'image'.*'s2'.*complex64 pixels"):
        MappedDataset(Made(image=image.to(torch.complex64)), [S2], {'s2': 'image'})[0]


def test_files_beside_those_of_foreign_datasets_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / 'a.tif', np.ones((12, 4, 4), np.uint8))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, 'r+') as file:
        file.write_mask(np.eye(4, dtype=np.uint8) * 255)
    monkeypatch.setenv('GDAL_DISABLE_READDIR_ON_OPEN', 'EMPTY_DIR')

    class Masked(Made):
        def __getitem__(self, index: int) -> Any:
            with rasterio.open(path) as file:
                return {'image': torch.from_numpy(file.read(masked=True).astype(np.float32).filled(np.nan))}

    assert MappedDataset(Masked(), [S2], {'s2': 'image'})[0]['image_s2'].isfinite().sum().item() == 48
