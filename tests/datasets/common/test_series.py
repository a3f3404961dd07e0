# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

import re
from datetime import date

import numpy as np
import pandas as pd
import pytest

from torchgeo_omnisat.datasets.common.series import (
    backscatter_mean,
    choose_dates,
    finite_mean,
    merge_days,
    parse_dates,
    parse_day,
)


class TestParseDates:
    def test_agrees_with_the_calendar(self) -> None:
        days = np.datetime64('1970-01-01') + np.arange(0, 40000, 37)
        stamps = [int(str(day).replace('-', '')) for day in days]
        assert np.array_equal(parse_dates(stamps, 'here'), days.astype(int))

    def test_frames_are_numbers_not_words(self) -> None:
        dates = {str(i): 20190101 + i for i in (10, 9, 2, 1, 0, 3)}
        first = parse_day('2019-01-01', 'here')
        assert (parse_dates(dates, 'here') - first).tolist() == [0, 1, 2, 3, 9, 10]

    @pytest.mark.parametrize('stamp', [20190229, 20190001, 20191301, 20190100, 201901011, -20190101, 19691231, None])
    def test_refuses_what_is_no_date(self, stamp: int) -> None:
        with pytest.raises(ValueError, match=r'dates'):
            parse_dates([20190101, stamp], 'here')


class TestParseDay:
    @pytest.mark.parametrize(
        'value', ['2021-07-09', '20210709', 20210709, date(2021, 7, 9), '2021-07-09T23:00Z', '2021-07-10T00:30+02:00']
    )
    def test_reads_dates_and_times(self, value: object) -> None:
        assert parse_day(value, 'here') == parse_dates([20210709], 'here')[0]

    @pytest.mark.parametrize(
        'value', ['NaT', '', None, 'today', '2021', '2021-07', '2021-02-29', True, 18817, 2021.5, pd.NaT]
    )
    def test_refuses_what_is_no_date(self, value: object) -> None:
        """NumPy reads most of these: as the day of today, the first of a month, or 300 billion years ago."""
        with pytest.raises(ValueError, match=re.escape(f'here holds {value!r}')):
            parse_day(value, 'here')


class TestChooseDates:
    def test_reads_in_the_order_of_time(self) -> None:
        days = np.array([30, 10, 20, 10])
        assert choose_dates(days).tolist() == [1, 3, 2, 0]

    def test_span_includes_both_ends(self) -> None:
        days = np.arange(10)
        assert choose_dates(days, (3, 5)).tolist() == [3, 4, 5]
        assert choose_dates(days, (20, 30)).tolist() == []

    @pytest.mark.parametrize('count', [1, 2, 5, 9, 10, 11])
    def test_spreads_over_what_is_left(self, count: int) -> None:
        chosen = choose_dates(np.arange(20), (0, 9), count)
        assert len(set(chosen)) == min(count, 10)
        assert abs(chosen.mean() - 4.5) <= 0.5
        assert np.ptp(np.diff(chosen)) <= 1 if count > 1 else chosen == [5]


class TestMergeDays:
    def test_leaves_distinct_days_alone(self) -> None:
        image, days = np.ones((3, 1, 2, 2), np.float32), np.array([1, 2, 3])
        assert merge_days(image, days, finite_mean)[0] is image

    def test_matches_naive_loop(self) -> None:
        rng = np.random.default_rng(0)
        image = rng.normal(size=(9, 2, 4, 4)).astype(np.float32)
        image[rng.random(image.shape) < 0.3] = np.nan
        days = np.array([1, 1, 2, 5, 5, 5, 5, 8, 8])
        merged, unique = merge_days(image, days, finite_mean)
        assert unique.tolist() == [1, 2, 5, 8]
        for day, frame in zip(unique, merged, strict=True):
            for place in np.ndindex(frame.shape):
                values = [v for v in image[(days == day), *place] if np.isfinite(v)]
                assert frame[place] == pytest.approx(np.mean(values)) if values else np.isnan(frame[place])

    def test_backscatter_is_averaged_as_power(self) -> None:
        frames = np.array([[-10, -20, 10], [-20, -20, 0], [np.nan, -30, np.nan]], np.float32)[..., None, None]
        vv, vh, ratio = backscatter_mean(frames)[:, 0, 0]
        assert vv == pytest.approx(10 * np.log10((0.1 + 0.01) / 2), abs=1e-5)
        assert vh == pytest.approx(10 * np.log10((0.01 + 0.01 + 0.001) / 3), abs=1e-5)
        assert ratio == pytest.approx(vv - vh)
        nothing = backscatter_mean(np.full((2, 3, 1, 1), np.nan, np.float32))
        assert nothing.dtype == np.float32
        assert np.isnan(nothing).all()
