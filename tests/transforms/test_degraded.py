# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Each degradation takes what it says, by draws that do not depend on the batch."""

import math
from typing import Any

import pytest
import torch
from scipy.ndimage import label
from torch import Tensor

from torchgeo_omnisat.transforms import CloudCover, FewerDates, GaussianNoise, PartialCover

from .tiles import SENSORS, random_tiles, same

KINDS: dict[type[Any], dict[str, Any]] = {
    FewerDates: {'fraction': 1.0},
    CloudCover: {'fraction': 0.0},
    GaussianNoise: {'snr': math.inf},
    PartialCover: {'fraction': 1.0},
}
CHANGED = {
    FewerDates: {'valid_s2', 'valid_s1a'},
    CloudCover: {'image_s2', 'valid_s2'},
    GaussianNoise: {'image_s2', 'image_s1a', 'image_spot'},
    PartialCover: {'image_spot'},
}


def tiles(count: int = 3, dates: int = 8) -> dict[str, Tensor]:
    """Tiles of the places 5, 6 ..., the first of which has a frame that is not valid."""
    batch = random_tiles(count, dates)
    batch['valid_s2'][0, 2] = False
    return batch | {'index': torch.arange(count) + 5}


@pytest.mark.parametrize('kind', KINDS)
class TestEach:
    def test_its_default_changes_what_it_concerns(self, kind: type[Any]) -> None:
        batch = tiles()
        before = {key: value.clone() for key, value in batch.items()}
        changed = kind(SENSORS)(batch)
        assert {key for key in batch if not same({'': changed[key]}, {'': batch[key]})} == CHANGED[kind]
        assert same(batch, before)

    def test_nothing_is_nothing(self, kind: type[Any]) -> None:
        assert same(kind(SENSORS, **KINDS[kind])(tiles()), tiles())

    def test_a_draw_belongs_to_seed_place_and_modality(self, kind: type[Any]) -> None:
        """Not to the batch, its order, its padding, or what was drawn before."""
        transform, batch = kind(SENSORS), tiles()
        whole = transform(batch)
        for row in (2, 0):
            alone = {key: value[[row]] for key, value in batch.items()}
            padded = dict(alone)
            for name in ('s2', 's1a'):
                image, dates, valid = (alone[f'{what}_{name}'] for what in ('image', 'dates', 'valid'))
                padded[f'image_{name}'] = torch.cat([image, torch.full_like(image[:, :2], 7)], 1)
                padded[f'dates_{name}'] = torch.cat([dates, dates[:, :2]], 1)
                padded[f'valid_{name}'] = torch.cat([valid, valid[:, :2] & False], 1)
            found = transform(padded)
            cut = {key: value[:, : whole[key].shape[1]] if value.ndim > 1 else value for key, value in found.items()}
            for other in (transform(alone), cut):
                assert same(other, {key: value[[row]] for key, value in whole.items()})
        key = next(iter(CHANGED[kind]))
        others = [kind(SENSORS, seed=1)(batch), transform(batch | {'index': batch['index'] + 8})]
        assert not any(same({'': other[key]}, {'': whole[key]}) for other in others)

    def test_without_places_draws_are_pytorchs(self, kind: type[Any]) -> None:
        batch = {key: value for key, value in tiles().items() if key != 'index'}
        torch.manual_seed(3)
        one, other = kind(SENSORS)(batch), kind(SENSORS)(batch)
        torch.manual_seed(3)
        assert same(one, kind(SENSORS)(batch))
        assert not same(one, other)

    def test_nonsense_is_refused(self, kind: type[Any]) -> None:
        argument = next(iter(KINDS[kind]))
        with pytest.raises(ValueError, match=rf'{argument}.*(nan|-?inf)'):
            kind(SENSORS, **{argument: -math.inf if argument == 'snr' else math.nan})
        with pytest.raises(ValueError, match=r'seed.*-1.*0'):
            kind(SENSORS, seed=-1)


def test_fewer_dates_are_a_share_of_the_valid_ones() -> None:
    batch = tiles()
    kept = {share: FewerDates(SENSORS, share)(batch)['valid_s2'] for share in (1.0, 0.5, 0.25, 0.1, 0.0)}
    assert [valid.sum(1).tolist() for valid in kept.values()] == [[7, 8, 8], [4, 4, 4], [2, 2, 2], [1, 1, 1], [1, 1, 1]]
    assert not any(valid[0, 2] for valid in kept.values())
    assert (kept[0.1] <= kept[0.25]).all()
    assert (kept[0.25] <= kept[0.5]).all()


def test_the_earlier_name_of_the_fraction() -> None:
    with pytest.warns(DeprecationWarning, match='fraction'):
        assert FewerDates(SENSORS, share=0.25).fraction == 0.25


def test_clouds_hide_a_share_in_blobs() -> None:
    batch = random_tiles(2, 10) | {'index': torch.arange(2)}
    batch['image_s2'] = torch.rand(2, 10, 2, 32, 32)
    hidden = {share: CloudCover(SENSORS, share)(batch)['image_s2'].isnan() for share in (0.2, 0.5, 0.8, 1.0)}
    for share, there in hidden.items():
        assert there.float().mean().item() == pytest.approx(share, abs=1e-3)
        assert (there[:, :, 0] == there[:, :, 1]).all()
    assert (hidden[0.2] <= hidden[0.5]).all()
    frames = hidden[0.2][0, :, 0].numpy()
    assert label(frames)[1] < 20  # single pixels would be hundreds
    parts = hidden[0.5].float().mean((2, 3, 4))
    assert [kind.any().item() for kind in (parts == 0, (parts > 0) & (parts < 1), parts == 1)] == [True] * 3
    nothing = CloudCover(SENSORS, 1.0)(batch)
    assert not nothing['valid_s2'].any()
    assert nothing['valid_s1a'].all()


def test_a_date_that_is_hidden_is_not_valid() -> None:
    changed = CloudCover(SENSORS, 0.5)(tiles())
    gone = changed['image_s2'].isnan().flatten(2).all(-1)
    assert gone.any()
    assert not gone.all()
    assert (changed['valid_s2'] == tiles()['valid_s2'] & ~gone).all()


def test_noise_has_the_deviation_that_it_says() -> None:
    batch = tiles()
    batch['image_s2'][0, 0] = torch.nan
    for snr in (20.0, 0.0, -6.0):
        noise = {name: GaussianNoise(SENSORS, snr)(batch)[f'image_{name}'] - batch[f'image_{name}'] for name in SENSORS}
        for values in noise.values():
            added = values[values.isfinite() & (values != 0)]
            assert added.std().item() == pytest.approx(10 ** (-snr / 20), rel=0.1)
            assert abs(added.mean().item()) < 0.1 * 10 ** (-snr / 20)
        assert noise['s2'][0, 0].isnan().all()
        assert not noise['s2'][0, 2].any()  # this frame is not valid


def test_an_image_covers_one_side() -> None:
    batch = random_tiles(40) | {'index': torch.arange(40)}
    covered = {share: ~PartialCover(SENSORS, share)(batch)['image_spot'].isnan() for share in (0.5, 0.25, 0.0)}
    assert covered[0.25].float().mean((1, 2, 3)).eq(0.25).all()
    assert not covered[0.0].any()
    sides = covered[0.5][:, 0]
    halves = {tuple(side.nonzero().float().mean(0).tolist()) for side in sides}
    assert halves == {(3.5, 7.5), (11.5, 7.5), (7.5, 3.5), (7.5, 11.5)}
    assert sides.sum((1, 2)).eq(128).all()
    assert (covered[0.25] <= covered[0.5]).all()


def test_an_image_of_which_nothing_is_left_is_not_valid() -> None:
    batch = random_tiles()
    batch['image_spot'][0] = torch.nan
    assert PartialCover(SENSORS, 0.01)(batch)['valid_spot'].tolist() == [[False]] * 3
    assert PartialCover(SENSORS, 0.5)(batch)['valid_spot'].tolist() == [[False], [True], [True]]


def test_all_share_one_draw_if_asked_to() -> None:
    seen = ~PartialCover(SENSORS, 0.5, same_on_batch=True)(random_tiles(20))['image_spot'].isnan()
    assert (seen == seen[0]).all()
