# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""MappedDataset: samples shaped like TorchGeo's, made up, in our keys."""

from typing import Any

import pytest
import torch
from torchgeo.datasets import NonGeoDataset

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
    with pytest.raises(ValueError, match=r'label is the number 3, expected num_classes'):
        MappedDataset(dataset.dataset, [S2], {'s2': 'image', 'label': 'label'})[0]


def test_like_bigearthnet_and_sen12ms() -> None:
    image = torch.arange(14.0)[:, None, None].expand(14, 4, 4)
    made = Made(image=image, label=torch.tensor([0, 1, 1]), mask=torch.ones(1, 4, 4))
    keys = {'s1': {'key': 'image', 'channels': [0, 1]}, 's2': {'key': 'image', 'channels': range(2, 14), 'nodata': 2}}
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
    with pytest.raises(ValueError, match=r"dates of 's2' are .* expected 4"):
        MappedDataset(Made(image=image), [series], {'s2': {'key': 'image', 'dates': days[:2]}})[0]


def test_errors() -> None:
    made = Made(image=torch.zeros(5, 4, 4))
    with pytest.raises(ValueError, match=r"keys has \[\], expected \['s2'\]"):
        MappedDataset(made, [S2], {})
    with pytest.raises(ValueError, match=r"keys maps 's2' to 'img', expected one of \['image'\]"):
        MappedDataset(made, [S2], {'s2': 'img'})[0]
    with pytest.raises(ValueError, match=r"'image' is \(5, 4, 4\) for 's2', expected 12 channels"):
        MappedDataset(made, [S2], {'s2': 'image'})[0]
