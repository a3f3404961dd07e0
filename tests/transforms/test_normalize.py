# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from torchgeo_omnisat.modality import Modality, as_modalities
from torchgeo_omnisat.transforms import Denormalize, Normalize

S2 = Modality('s2', ('B02', 'B03'), 10.0, True)
SPOT = Modality('spot', ('R', 'G', 'B'), 5.0, False)
MODALITIES = as_modalities([S2, SPOT])
MEAN = {'s2': torch.tensor([1000.0, 2000.0]), 'spot': [90.0, 100.0, 110.0]}
STD = {'s2': torch.tensor([100.0, 0.0]), 'spot': [10.0, 20.0, 30.0]}


@pytest.fixture
def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        'image_s2': torch.randn(2, 3, 2, 4, 4, generator=generator) * 300 + 1000,
        'dates_s2': torch.arange(6).view(2, 3),
        'valid_s2': torch.tensor([[True, True, True], [True, True, False]]),
        'image_spot': torch.rand(2, 3, 8, 8, generator=generator) * 255,
        'dates_spot': torch.zeros(2, 1, dtype=torch.int64),
        'valid_spot': torch.ones(2, 1, dtype=torch.bool),
        'mask': torch.zeros(2, 4, 4, dtype=torch.int64),
    }


def first(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value[0] for key, value in batch.items()}


class TestNormalize:
    def test_matches_naive_loop(self, batch: dict[str, Tensor]) -> None:
        normal = Normalize(MODALITIES, MEAN, STD)(batch)
        for t in range(3):
            assert torch.allclose(normal['image_s2'][1, t, 0], (batch['image_s2'][1, t, 0] - 1000) / 100)
        for c in range(3):
            expected = (batch['image_spot'][0, c] - MEAN['spot'][c]) / STD['spot'][c]
            assert torch.allclose(normal['image_spot'][0, c], expected)

    @pytest.mark.parametrize(
        ('mean', 'std', 'constant'),
        [
            (2000.0, 0.0, True),
            (2000.0, 1e-30, True),
            (0.0, 1e-30, True),
            (2000.0, 5e-4, True),  # neighbouring float32 numbers are 1.2e-4 apart there
            (-2000.0, 5e-4, True),
            (2000.0, 0.1, False),
            (0.0, 1e-8, False),  # such as a concentration
        ],
    )
    def test_constant_band_is_zero_whatever_it_holds(
        self, batch: dict[str, Tensor], mean: float, std: float, constant: bool
    ) -> None:
        batch['image_s2'][0, 0, 1, 0, 0] = torch.nan
        statistics = {'mean': {**MEAN, 's2': [1000.0, mean]}, 'std': {**STD, 's2': [100.0, std]}}
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter('always')
            normal = Normalize(MODALITIES, **statistics)(batch)['image_s2']
        raw = Denormalize(MODALITIES, **statistics)({**batch, 'image_s2': normal})['image_s2']
        assert len(said) == constant
        assert all('s2: B03' in str(one.message) for one in said)
        assert normal[0, 0, 1, 0, 0].isnan()
        assert bool(normal[:, :, 1].nan_to_num().any()) == (not constant)
        assert normal[:, :, 0].any()
        if constant:
            assert raw[0, 0, 1].nan_to_num(mean).eq(mean).all()

    def test_an_image_measured_by_itself(self, batch: dict[str, Tensor]) -> None:
        batch['image_s2'][:, :, 1] = 0.1  # whose mean is not quite 0.1
        assert not Normalize(MODALITIES)(batch)['image_s2'][:, :, 1].any()

    def test_leaves_its_input_and_all_else_alone(self, batch: dict[str, Tensor]) -> None:
        before = copy.deepcopy(batch)
        normal = Normalize(MODALITIES, MEAN, STD)(batch)
        assert list(normal) == list(batch)
        assert all(torch.equal(batch[key], before[key]) for key in batch)
        assert all(normal[key] is batch[key] for key in batch if not key.startswith('image'))

    def test_nan_stays(self, batch: dict[str, Tensor]) -> None:
        batch['image_s2'][0, 1, 0, 2, 2] = torch.nan
        normal = Normalize(MODALITIES, MEAN, STD)(batch)['image_s2']
        assert torch.equal(normal.isnan(), batch['image_s2'].isnan())

    def test_batch_of_one_sample_is_that_sample(self, batch: dict[str, Tensor]) -> None:
        for normalize in (Normalize(MODALITIES, MEAN, STD), Normalize(MODALITIES)):
            normal = normalize(batch)
            alone = normalize(first(batch))
            assert torch.equal(alone['image_s2'], normal['image_s2'][0])
            assert torch.equal(alone['image_spot'], normal['image_spot'][0])

    def test_absent_modality(self, batch: dict[str, Tensor]) -> None:
        left = {key: value for key, value in batch.items() if not key.endswith('spot')}
        assert Normalize(MODALITIES, MEAN, STD)(left).keys() == left.keys()

    def test_without_statistics_measures_each_image(self, batch: dict[str, Tensor]) -> None:
        batch['image_s2'][1, 2] = 1e6
        batch['image_s2'][0, 0, 0, 0, 0] = torch.nan
        batch['image_s2'][0, :, 1] = 7
        normal = Normalize(MODALITIES)(batch)
        values = normal['image_s2'][1, :2, 0]
        assert values.mean().item() == pytest.approx(0, abs=1e-5)
        assert values.std(correction=0).item() == pytest.approx(1, abs=1e-4)
        values = normal['image_s2'][0, :, 0]
        assert values[values.isfinite()].mean().item() == pytest.approx(0, abs=1e-5)
        assert values.isnan().sum() == 1
        assert not normal['image_s2'][0, :, 1].any()
        assert normal['image_spot'].mean((-2, -1)).abs().max() < 1e-5

    def test_keeps_half_precision_and_pickles(self, batch: dict[str, Tensor]) -> None:
        normalize = pickle.loads(pickle.dumps(Normalize(MODALITIES, MEAN, STD)))
        batch['image_spot'] = batch['image_spot'].half()
        assert normalize(batch)['image_spot'].dtype == torch.float16

    def test_refuses_a_bare_tensor(self) -> None:
        with pytest.raises(TypeError, match=r'Normalize.*Tensor.*shape \(3, 8, 8\).*MultimodalAugmentation'):
            Normalize(MODALITIES, MEAN, STD)(torch.zeros(3, 8, 8))

    @pytest.mark.parametrize(
        ('mean', 'std', 'match'),
        [
            ({'s2': [0, 0]}, STD, r"mean .*\['s2'\].*'spot'"),
            (MEAN | {'s2': [1.0]}, STD, r"mean of 's2' is \[1\.0\], expected 2 finite numbers$"),
            (MEAN | {'s2': [1.0, float('nan')]}, STD, r"mean of 's2' is \[1\.0, nan\], expected 2 finite"),
            (MEAN, STD | {'spot': [1, 1, -1]}, r"std of 'spot' is \[1\.0, 1\.0, -1\.0\], "),
            (MEAN, None, 'got only mean'),
        ],
    )
    def test_refuses(self, mean: Any, std: Any, match: str) -> None:
        with pytest.raises(ValueError, match=match):
            Normalize(MODALITIES, mean, std)


class TestDenormalize:
    def test_undoes(self, batch: dict[str, Tensor]) -> None:
        batch['image_s2'][:, :, 1] = 2000  # the constant band
        batch['image_s2'][0, 0, 0, 0, 0] = torch.nan
        again = Denormalize(MODALITIES, MEAN, STD)(Normalize(MODALITIES, MEAN, STD)(batch))
        for key, value in batch.items():
            assert torch.allclose(again[key], value, rtol=1e-5, atol=1e-3, equal_nan=True)
