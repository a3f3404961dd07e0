# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

import pytest
import torch
from torch import Tensor

from torchgeo_omnisat.transforms import RandomDateShift, RandomTemporalDropout, TemporalSubsample

from .tiles import S2, SENSORS, random_tiles


def series(count: int, dates: int) -> dict[str, Tensor]:
    """Frames that know their number, in an order that is not that of time."""
    frames = torch.arange(dates).expand(count, dates)
    return {
        'image_s2': frames[..., None, None, None].expand(count, dates, 2, 1, 1).float(),
        'dates_s2': 17000 + frames * 10,
        'valid_s2': torch.ones(count, dates, dtype=torch.bool),
    }


def assert_rate(rate: float, expected: float, count: int) -> None:
    assert abs(rate - expected) <= 3 * (expected * (1 - expected) / count) ** 0.5, (rate, expected)


class TestRandomTemporalDropout:
    @pytest.mark.parametrize('p', [0.0, 0.2, 0.7])
    def test_rate(self, p: float) -> None:
        torch.manual_seed(0)
        lost = ~RandomTemporalDropout([S2], p)(series(4000, 5))['valid_s2']
        assert_rate(lost.float().mean().item(), p - p**5 / 5, 20000)

    def test_range_is_drawn_for_each_series(self) -> None:
        """Of 1000 dates, about as many series keep each fraction between 25 % and all."""
        torch.manual_seed(0)
        kept = RandomTemporalDropout([S2], (0.0, 0.75))(series(2000, 1000))['valid_s2'].float().mean(-1)
        counts = torch.histc(kept, 5, 0.25, 1.0)
        assert counts.sum() > 1950
        for count in counts.tolist():
            assert_rate(count / 2000, 0.2, 2000)
        fixed = RandomTemporalDropout(SENSORS, {'s2': [0.5, 0.5], 's1a': 0.5})
        assert fixed.p == {'s2': (0.5, 0.5), 's1a': (0.5, 0.5), 'spot': (0.0, 0.0)}

    def test_one_date_always_stays(self) -> None:
        batch = series(200, 5)
        batch['valid_s2'][:, 1] = False
        batch['valid_s2'][0] = False
        kept = RandomTemporalDropout([S2], 1.0)(batch)['valid_s2']
        assert kept.sum(-1).tolist() == [0] + [1] * 199
        assert not (kept & ~batch['valid_s2']).any()
        assert kept.any(0).tolist() == [True, False, True, True, True]

    def test_only_series_lose_dates_and_only_those_named(self) -> None:
        batch = random_tiles(50)
        after = RandomTemporalDropout(SENSORS, {'s1a': 1.0, 'spot': 1.0})(batch)
        assert after['valid_s1a'].sum(-1).eq(1).all()
        for key in batch:
            assert (after[key] is batch[key]) == (key not in ('valid_s1a', 'valid_s2'))
        assert after['valid_s2'].all()

    @pytest.mark.parametrize(
        ('p', 'message'),
        [
            (1.5, "p of 's2' is 1.5"),
            ({'z': 0.1}, r"p has \['z'\]"),
            ((0.6, 0.2), r'is \(0.6, 0.2\)'),
            ((0.1,), r'is \(0.1,\)'),
        ],
    )
    def test_bad_arguments_are_refused(self, p: float | dict[str, float], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            RandomTemporalDropout([S2], p)


class TestTemporalSubsample:
    def test_order_is_kept_and_all_dates_are_drawn(self) -> None:
        torch.manual_seed(0)
        after = TemporalSubsample([S2], 3)(series(3000, 8))
        frames = after['image_s2'][:, :, 0, 0, 0]
        assert frames.shape == (3000, 3)
        assert (frames.diff(dim=-1) > 0).all()
        assert torch.equal(after['dates_s2'], 17000 + 10 * frames.long())
        for share in frames.flatten().long().bincount(minlength=8) / 3000:
            assert_rate(share.item(), 3 / 8, 3000)

    @pytest.mark.parametrize('training', [True, False])
    def test_invalid_dates_go_first(self, training: bool) -> None:
        batch = series(100, 8)
        batch['valid_s2'] = torch.rand(100, 8, generator=torch.Generator().manual_seed(0)) < 0.4
        after = TemporalSubsample([S2], 3).train(training)(batch)['valid_s2']
        assert torch.equal(after.sum(-1), batch['valid_s2'].sum(-1).clamp(max=3))

    def test_evaluation_is_even_in_time(self) -> None:
        batch = series(2, 7)
        days = torch.tensor([0, 1, 2, 3, 50, 51, 100])
        batch['dates_s2'] = torch.stack([17000 + days, 17000 + days.flip(0)])
        batch['valid_s2'][0, 6] = False
        subsample = TemporalSubsample([S2], 3).eval()
        after = subsample(batch)
        assert (after['dates_s2'] - 17000).tolist() == [[0, 3, 51], [100, 50, 0]]
        assert torch.equal(after['dates_s2'], subsample(batch)['dates_s2'])
        assert (TemporalSubsample([S2], 1).eval()(batch)['dates_s2'] - 17000).tolist() == [[3], [50]]

    def test_each_frame_is_chosen_once(self) -> None:
        batch = series(1, 5)
        batch['dates_s2'] = torch.tensor([[0, 0, 0, 0, 9]])
        frames = TemporalSubsample([S2], 4).eval()(batch)['image_s2'][0, :, 0, 0, 0]
        assert len(frames.unique()) == 4

    def test_short_series_stay(self) -> None:
        batch = random_tiles()
        after = TemporalSubsample(SENSORS)(batch)
        assert all(torch.equal(after[key], batch[key]) for key in batch)

    def test_bad_arguments_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r'max_dates.*0.*1'):
            TemporalSubsample([S2], 0)


class TestRandomDateShift:
    def test_one_shift_for_all_modalities(self) -> None:
        torch.manual_seed(0)
        batch = random_tiles(500)
        batch['valid_s2'][:, 1] = False
        batch['dates_spot'][:] = 17900
        batch['dates_spot'][0] = 0
        after = RandomDateShift(SENSORS, 3)(batch)
        shift = after['dates_s1a'] - batch['dates_s1a']
        assert shift[:, 0].unique().tolist() == [-3, -2, -1, 0, 1, 2, 3]
        assert (shift == shift[:, :1]).all()
        assert torch.equal((after['dates_s2'] - batch['dates_s2'])[:, 0], shift[:, 0])
        assert torch.equal(after['dates_s2'][:, 1], batch['dates_s2'][:, 1])
        assert torch.equal((after['dates_spot'] - batch['dates_spot'])[1:, 0], shift[1:, 0])
        assert after['dates_spot'][0] == 0

    def test_bad_arguments_are_refused(self) -> None:
        with pytest.raises(ValueError, match='days is -1'):
            RandomDateShift(SENSORS, -1)
