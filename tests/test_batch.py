# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

import pickle
from functools import partial

import pytest
import torch
from torch import Tensor
from torchgeo.datasets import unbind_samples

from torchgeo_omnisat.batch import available, check, collate, drop
from torchgeo_omnisat.modality import Modality, as_modalities
from torchgeo_omnisat.transforms import MultimodalAugmentation, Normalize, RandomTemporalDropout, TemporalSubsample

S2 = Modality('s2', ('B02', 'B03'), 10.0, True)
S1 = Modality('s1a', ('VV', 'VH'), 10.0, True)
SPOT = Modality('spot', ('R', 'G', 'B'), 5.0, False)
MODALITIES = as_modalities([S2, S1, SPOT])


def test_batch_without_any_modality_has_no_size() -> None:
    with pytest.raises(ValueError, match='valid_s2'):
        available({}, MODALITIES)


def sample(s2: int = 0, s1: int = 0, spot: bool = False, seed: int = 0) -> dict[str, Tensor]:
    """A tile of 40 m with this many dates; a modality with none is absent."""
    generator = torch.Generator().manual_seed(seed)
    made = {'mask': torch.randint(0, 20, (4, 4), generator=generator), 'bounds': torch.arange(9.0).double() + 0.1}
    for modality, count in ((S2, s2), (S1, s1), (SPOT, int(spot))):
        if count:
            side = modality.pixels(40)
            image = torch.randn(count, len(modality.bands), side, side, generator=generator)
            made[modality.image_key] = image if modality.temporal else image[0]
            made[modality.dates_key] = 17_800 + torch.arange(count)
            made[modality.valid_key] = torch.ones(count, dtype=torch.bool)
    return made


class TestCollate:
    def test_coordinates_are_those_of_the_bounds_or_of_the_samples(self) -> None:
        samples = [sample(s2=2), sample(s2=1)]
        for one, x in zip(samples, (700_000.0, torch.nan), strict=True):
            one['bounds'] = torch.tensor([x, x + 40, 10, 6_600_000, 6_600_040, 10, 0, 0, 1], dtype=torch.float64)
        batch = collate(samples, MODALITIES, crs='EPSG:2154')
        assert batch['coordinates'].dtype == torch.float64
        assert batch['coordinates'][0].tolist() == pytest.approx([3.0, 46.5], abs=1e-3)  # origin of Lambert-93
        assert batch['coordinates'][1].isnan().all()
        samples[0]['coordinates'] = torch.tensor([5.0, 50.0], dtype=torch.float64)
        batch = collate(samples, MODALITIES, crs='EPSG:2154')
        assert batch['coordinates'][0].tolist() == [5.0, 50.0]
        assert batch['coordinates'][1].isnan().all()
        assert 'coordinates' not in collate([sample(s2=1)], MODALITIES)

    def test_coordinates_of_some_samples(self) -> None:
        samples = [sample(s2=1), sample(s2=1)]
        samples[0]['coordinates'] = torch.tensor([5.0, 50.0])
        samples[0]['valid_location'] = torch.tensor([False])
        batch = collate(samples, MODALITIES, crs='EPSG:4326')
        assert batch['coordinates'].tolist() == [[5.0, 50.0], [pytest.approx(0.6), pytest.approx(3.6)]]
        assert batch['valid_location'].tolist() == [[False], [True]]
        assert collate(samples, MODALITIES)['coordinates'][1].isnan().all()

    @pytest.mark.parametrize('place', [[48.0, 112.0], [400.0, 0.0], [torch.inf, 0.0], [2.0, 48.0, 0.0]])
    def test_refuses_coordinates_that_are_no_place(self, place: list[float]) -> None:
        samples = [sample(s2=1), sample(s2=1)]
        samples[1]['coordinates'] = torch.tensor(place)
        with pytest.raises(ValueError, match='coordinates of sample 1 is'):
            collate(samples, MODALITIES)

    def test_refuses_bounds_without_columns(self) -> None:
        one = sample(s2=1)
        one['bounds'] = torch.arange(4.0)
        with pytest.raises(ValueError, match=r'bounds has shape \(1, 4\)'):
            collate([one], MODALITIES, crs='EPSG:4326')

    def test_pads_what_is_shorter(self) -> None:
        samples = [sample(s2=2), sample(s2=5, seed=1), sample(s2=1, seed=2)]
        batch = collate(samples, MODALITIES)
        assert batch['image_s2'].shape == (3, 5, 2, 4, 4)
        assert batch['valid_s2'].sum(1).tolist() == [2, 5, 1]
        for row, one in enumerate(samples):
            count = len(one['dates_s2'])
            assert torch.equal(batch['image_s2'][row, :count], one['image_s2'])
            assert torch.equal(batch['dates_s2'][row, :count], one['dates_s2'])
            for key in S2.keys:
                assert not batch[key][row, count:].any()
        check(batch, MODALITIES)

    def test_empty_series_have_one_invalid_date(self) -> None:
        """Transforms and models reduce over dates, which fails without any."""
        empty = {key: value[:0] if 's2' in key else value for key, value in sample(s2=2, s1=1).items()}
        batch = collate([empty, empty], MODALITIES)
        assert batch['image_s2'].shape == (2, 1, 2, 4, 4)
        assert available(batch, MODALITIES).tolist() == [[False, True, False]] * 2
        for transform in (RandomTemporalDropout, TemporalSubsample, Normalize, MultimodalAugmentation):
            assert not transform(MODALITIES)(batch)['valid_s2'].any()

    def test_fills_in_what_is_missing(self) -> None:
        batch = collate([sample(s2=2), sample(s1=3, spot=True), sample(s2=1, s1=1)], MODALITIES)
        assert batch['image_spot'].shape == (3, 3, 8, 8)
        assert batch['dates_spot'].shape == batch['valid_spot'].shape == (3, 1)
        assert available(batch, MODALITIES).tolist() == [
            [True, False, False],
            [False, True, True],
            [True, True, False],
        ]
        assert not batch['image_spot'][[0, 2]].any()

    def test_modality_that_no_sample_has_is_absent(self) -> None:
        batch = collate([sample(s2=2), sample(s2=1)], MODALITIES)
        assert not any('s1a' in key or 'spot' in key for key in batch)
        assert torch.equal(available(batch, MODALITIES), torch.tensor([[True, False, False]] * 2))

    def test_order_of_samples_and_of_modalities_does_not_matter(self) -> None:
        samples = [sample(s2=2), sample(s2=4, s1=1, seed=1)]
        batch, turned = collate(samples, MODALITIES), collate(samples[::-1], as_modalities([SPOT, S1, S2]))
        assert batch.keys() == turned.keys()
        assert all(torch.equal(batch[key], turned[key].flip(0)) for key in batch)

    def test_keeps_flags_nan_and_double_precision(self) -> None:
        one, two = sample(s2=3), sample(s2=2)
        one['valid_s2'][1] = False
        one['image_s2'][0, 0, 0, 0] = torch.nan
        batch = collate([one, two], MODALITIES)
        assert batch['valid_s2'].tolist() == [[True, False, True], [True, True, False]]
        assert batch['image_s2'].isnan().sum() == 1
        assert batch['bounds'].dtype == torch.float64
        assert batch['bounds'][0, 1].item() == 1.1

    def test_samples_are_not_changed(self) -> None:
        one = sample(s2=2)
        before = {key: value.clone() for key, value in one.items()}
        collate([one, sample(s2=3)], MODALITIES)['image_s2'].zero_()
        assert all(torch.equal(one[key], before[key]) for key in before)

    def test_comes_apart_in_torchgeo(self) -> None:
        batch = collate([sample(s2=2), sample(s2=3, spot=True)], MODALITIES)
        parts = unbind_samples(batch)
        assert parts[0].keys() == batch.keys()
        for part in parts:
            check(part, MODALITIES, batched=False)
        again = collate(parts, MODALITIES)
        assert all(torch.equal(again[key], batch[key]) for key in batch)

    def test_can_be_sent_to_workers(self) -> None:
        collated = pickle.loads(pickle.dumps(partial(collate, modalities=MODALITIES)))([sample(s2=1)])
        assert collated['image_s2'].shape == (1, 1, 2, 4, 4)

    def test_refuses_nothing(self) -> None:
        with pytest.raises(ValueError, match='sample'):
            collate([], MODALITIES)

    def test_refuses_tiles_of_different_size(self) -> None:
        other = sample(s2=1)
        other['image_s2'] = torch.zeros(1, 2, 8, 8)
        with pytest.raises(ValueError, match=r'image_s2.*sizes \[\(4, 4\), \(8, 8\)\].*tiles.*size'):
            collate([sample(s2=2), other], MODALITIES)

    def test_refuses_keys_that_only_some_have(self) -> None:
        other = sample(s2=1)
        del other['mask']
        with pytest.raises(ValueError, match=r"'mask'.*samples \[1\].*2"):
            collate([sample(s2=2), other], MODALITIES)

    def test_refuses_keys_of_unequal_shape(self) -> None:
        other = sample(s2=1) | {'mask': torch.zeros(3, 3, dtype=torch.int64)}
        with pytest.raises(ValueError, match=r"'mask'.*shapes \[\(3, 3\), \(4, 4\)\].*shape"):
            collate([sample(s2=2), other], MODALITIES)


class TestCheck:
    @pytest.mark.parametrize(
        ('changed', 'match'),
        [
            ({'image_dem': torch.zeros(1, 4, 4)}, r"sample 0 holds \['image_dem'\], expected no images but"),
            ({'image': torch.zeros(1, 4, 4)}, r"holds \['image'\], expected no images but \['image_s1a', 'image_s2'"),
            ({'dates_s1a': torch.zeros(1, dtype=torch.int64)}, r"has \['dates_s1a'\] alone, expected \['image_s1a'"),
            ({'image_s2': torch.zeros(2, 3, 4, 4)}, r'image_s2 .* \(2, 3, 4, 4\), expected \(T, 2, H, W\)'),
            ({'image_s2': torch.zeros(2, 4, 4)}, r'image_s2 .* \(2, 4, 4\), expected \(T, 2, H, W\)'),
            ({'image_spot': torch.zeros(1, 3, 8, 8)}, r'image_spot .* expected \(3, H, W\)'),
            ({'dates_s2': torch.zeros(3, dtype=torch.int64)}, r'dates_s2 of sample 0 is \(3,\) .*, expected \(2,\)'),
            ({'dates_s2': torch.zeros(2)}, r'dates_s2 .* torch\.float32, expected \(2,\) torch\.int64'),
            ({'valid_s2': torch.ones(2)}, r'valid_s2 .* torch\.float32, expected \(2,\) torch\.bool'),
            ({'valid_spot': torch.ones(2, dtype=torch.bool)}, r'valid_spot .* \(2,\) .*, expected \(1,\)'),
        ],
    )
    def test_refuses(self, changed: dict[str, Tensor], match: str) -> None:
        with pytest.raises(ValueError, match=match):
            collate([sample(s2=2, spot=True) | changed], MODALITIES)

    def test_names_the_batch(self) -> None:
        batch = collate([sample(s2=2)], MODALITIES)
        batch['image_s2'] = batch['image_s2'][:, :1]
        with pytest.raises(ValueError, match=r'dates_s2.*batch.*\(1, 2\) torch.int64.*\(1, 1\)'):
            check(batch, MODALITIES)
        with pytest.raises(ValueError, match=r'expected \(B, T, 2, H, W\)'):
            check(batch | {'image_s2': torch.zeros(1, 2, 3, 4, 4)}, MODALITIES)


class TestDrop:
    def test_shares_the_rest(self) -> None:
        batch = collate([sample(s2=2, s1=1, spot=True)], MODALITIES)
        left = drop(batch, [S1, SPOT])
        assert set(left) == {*S2.keys, 'mask', 'bounds'}
        assert left['image_s2'] is batch['image_s2']
        assert 'image_spot' in batch
