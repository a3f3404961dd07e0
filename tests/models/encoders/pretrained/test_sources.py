# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Files of pre-trained weights."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torchgeo.models import Presto_Weights

from torchgeo_omnisat import Modality
from torchgeo_omnisat.models.encoders.pretrained.dictionary import DictionaryEncoder
from torchgeo_omnisat.models.encoders.pretrained.images.croma import FAMILY
from torchgeo_omnisat.models.encoders.pretrained.images.foundation import find_weights
from torchgeo_omnisat.models.encoders.pretrained.series.weights import read_weights
from torchgeo_omnisat.models.encoders.pretrained.sources import find_file, find_source
from torchgeo_omnisat.models.encoders.weights import published

SPOT = Modality('spot', ('R', 'G', 'B'), 2.0, False)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('USERPROFILE', str(tmp_path))
    torch.save(nn.Linear(1, 1).state_dict(), tmp_path / 'my weights.pt')
    torch.save({'state_dict': {'in_conv.conv.conv.0.weight': torch.ones(1)}}, tmp_path / 'utae.pth.tar')
    return tmp_path


def test_the_home_folder_in_a_path_is_expanded(home: Path) -> None:
    path, expected = '~/my weights.pt', home / 'my weights.pt'
    assert find_file('spot', path, [], True) == expected
    source = find_source('resnet18', 'spot', SPOT.bands, path, False, None)
    weights = find_weights(SPOT, FAMILY, None, path, None)
    assert source.address == weights.address == str(expected)
    assert weights.read is not None
    state, origin = read_weights(path, Presto_Weights, 'MIT')
    assert origin.source == str(expected)
    assert {*source.read()} == {*weights.read()} == {*state} == {'weight', 'bias'}
    model = nn.Linear(1, 1)
    assert torch.equal(DictionaryEncoder(SPOT, model, 1, 1, weights=path).model.weight, state['weight'])
    assert {*published('~/utae.pth.tar')} == {'in_conv.conv.conv.0.weight'}


@pytest.mark.usefixtures('home')
def test_a_missing_file_of_the_home_folder_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r'none\.pt'):
        find_source('resnet18', 'spot', SPOT.bands, '~/none.pt', False, None).read()
