# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Monthly composites against loops, and what must not matter."""

import numpy as np
import pytest
import torch

from torchgeo_omnisat import Modality
from torchgeo_omnisat.models import OmniSatSegmenter, late_fusion
from torchgeo_omnisat.models.encoders.bands import add_missing
from torchgeo_omnisat.models.encoders.series.monthly import MonthlyEncoder, interpolate


def days(*dates):
    return torch.from_numpy(np.array(dates, 'datetime64[D]').astype(np.int64))


#: Two dates in one month, one month without a date, a date in the next year.
DATES = days('2020-11-03', '2020-11-30', '2021-01-15', '2021-02-01', '2021-03-31')


@pytest.fixture
def series():
    torch.manual_seed(0)
    image = 3 + torch.randn(4, 5, 2, 3, 3, dtype=torch.float64)
    image[0, 2, :, 1, 1] = torch.nan
    return image, DATES.repeat(4, 1), torch.ones(4, 5, dtype=torch.bool)


@pytest.fixture
def encoder(series):
    torch.manual_seed(0)
    encoder = MonthlyEncoder(2, width=8, months=6).double()
    encoder(*series)
    return encoder.eval()


def test_composites(series, encoder):
    image, _, valid = series
    valid = valid.clone()
    valid[1, 0] = False
    place = torch.tensor([0, 0, 2, 3, 4]).repeat(4, 1)
    found = encoder.composites(image, valid[..., None, None, None] & image.isfinite(), place)
    torch.testing.assert_close(found[0, 0], image[0, :2].mean(0))
    torch.testing.assert_close(found[1, 0], image[1, 1])
    torch.testing.assert_close(found[:, 3], image[:, 3])
    assert found[:, [1, 5]].isnan().all()
    assert found[0, 2, :, 1, 1].isnan().all()
    pixel = interpolate(found)[1, :, :, 2, 0]
    pixel[5] = 0  # after the last month of the training
    pixel = pixel.flatten()
    expected = torch.nn.functional.gelu(encoder.hidden(pixel))
    torch.testing.assert_close(encoder(image, DATES.repeat(4, 1), valid)[0][1, :, 2, 0], expected)


def test_interpolation():
    nan = torch.nan
    x = torch.tensor([[nan, 1.0, nan, nan, 4.0, nan], [nan] * 6, [2.0] * 6])
    expected = torch.tensor([[1.0, 1, 2, 3, 4, 4], [0] * 6, [2.0] * 6])
    torch.testing.assert_close(interpolate(x[..., None, None, None])[..., 0, 0, 0], expected)


def test_order_padding_and_values_without_influence(series, encoder):
    image, dates, valid = series
    (expected,) = encoder(image, dates, valid)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(encoder(image[:, order], dates[:, order], valid)[0], expected)
    padded = [
        torch.cat([x, torch.full_like(x[:, :2], value)], 1) for x, value in zip(series, (7, 0, False), strict=True)
    ]
    torch.testing.assert_close(encoder(*padded)[0], expected)
    torch.testing.assert_close(encoder(image[1:2], dates[1:2], valid[1:2])[0], expected[1:2])
    hidden = image.clone()
    hidden[:, :, 1] = torch.nan  # a missing band has no influence, whatever its weights are
    (before,) = encoder(hidden, dates, valid)
    with torch.no_grad():
        encoder.hidden.weight[:, 1::2] += 1
    torch.testing.assert_close(encoder(hidden, dates, valid)[0], before)
    assert not torch.allclose(encoder(image, dates, valid)[0], expected)


def test_another_year_is_the_same_season(series, encoder):
    image, dates, valid = series
    (expected,) = encoder(image, dates, valid)
    later = days('2023-11-03', '2023-11-30', '2024-01-15', '2024-02-01', '2024-03-31').repeat(4, 1)
    torch.testing.assert_close(encoder(image, later, valid)[0], expected)
    without = valid.clone()
    without[:, :2] = False  # the series begins later in the same season
    zeros = image.clone()
    zeros[:, :2] = torch.nan
    torch.testing.assert_close(encoder(image, later, without)[0], encoder(zeros, dates, valid)[0])


def months(first, last):
    return torch.arange(*(int(np.datetime64(month, 'M').astype(int)) for month in (first, last)))[None]


@pytest.mark.parametrize(
    ('train', 'test', 'start'),
    [
        (('2020-10', '2021-10'), ('2021-04', '2021-10'), 6),  # the first half is missing
        (('2021-01', '2022-01'), ('2024-07', '2024-10'), 6),  # and in another year
        (('2021-02', '2021-10'), ('2022-01', '2022-12'), -1),  # one month more at the start
        (('2020-08', '2022-04'), ('2021-08', '2022-04'), 12),  # the second of two years
        (('2021-06', '2021-07'), ('2022-05', '2022-06'), 11),  # a single month of another season
        (('2021-06', '2021-07'), ('2018-07', '2018-08'), 1),
        (('2021-01', '2022-01'), ('2019-01', '2022-01'), -24),  # a longer series
    ],
)
def test_place_of_other_months(train, test, start):
    encoder = MonthlyEncoder(1)
    for first, last in (train, test):
        month = months(first, last)
        place = encoder.place(month, month > 0)
        encoder.eval()
    assert place[0].tolist() == list(range(start, start + month.shape[1]))


def test_first_batch_of_several_years():
    encoder = MonthlyEncoder(1)
    month = torch.cat([months('2018-03', '2018-10'), months('2021-04', '2021-11')])
    assert encoder.place(month, month > 0).tolist() == [list(range(7)), list(range(1, 8))]
    assert encoder.length == 8


def test_the_calendar_is_saved(series, encoder):
    other = MonthlyEncoder(2, width=8, months=6).double()
    other.load_state_dict(encoder.state_dict())
    other(series[0], series[1] + 365, series[2])  # in training mode; it does not change
    torch.testing.assert_close(other.eval()(*series)[0], encoder(*series)[0])


def test_only_months_of_the_training_are_used(series, encoder):
    image, dates, valid = series
    (expected,) = encoder(image, dates, valid)
    with torch.no_grad():
        encoder.hidden.weight[:, 10:] += 1  # of the sixth month
    torch.testing.assert_close(encoder(image, dates, valid)[0], expected)
    longer = dates.clone()
    longer[0, 4] = days('2021-04-30')[0]
    encoder.train()(image, longer, valid)
    assert (encoder.length, encoder.start) == (6, (2020 - 1970) * 12 + 10)
    assert not torch.allclose(encoder.eval()(image, dates, valid)[0], expected)


def test_the_calendar_grows_to_both_sides_without_moving_weights(series):
    image, dates, valid = series
    encoder = MonthlyEncoder(2, width=8, months=8).double()
    encoder(image[:, 3:], dates[:, 3:], valid[:, 3:])  # February and March
    (before,) = encoder.eval()(image[:, 3:], dates[:, 3:], valid[:, 3:])
    weight = encoder.hidden.weight.detach().clone()
    (extending,) = encoder.train()(image, dates, valid)
    assert (encoder.start, encoder.length, encoder.earlier) == (610, 5, 3)
    torch.testing.assert_close(encoder.eval()(image, dates, valid)[0], extending)
    with torch.no_grad():
        encoder.hidden.weight[:, 4:10] += 1  # of the three months that no date is in, April to June
    torch.testing.assert_close(encoder.eval()(image, dates, valid)[0], encoder(image, dates, valid)[0])
    with torch.no_grad():
        encoder.hidden.weight.copy_(weight)
        encoder.hidden.weight[:, 10:] = 0  # of November to January
    torch.testing.assert_close(encoder(image, dates, valid)[0], before)
    encoder.hidden.weight.data[:, 10:12] = 1  # of November, the mean of two dates
    (expected,) = encoder(image, dates, valid)
    assert not torch.allclose(expected, before)
    changed = image.clone()
    changed[:, 0] += 1
    changed[:, 1] -= 1
    torch.testing.assert_close(encoder(changed, dates, valid)[0], expected)


@pytest.mark.parametrize('order', [(0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 1, 0), (2, 0, 1)])
@pytest.mark.parametrize('together', [True, False])
def test_all_months_have_one_place_in_any_order(order, together):
    encoder = MonthlyEncoder(1)
    series = [months('2020-06', '2020-08'), months('2021-04', '2021-06'), months('2022-04', '2022-08')]
    if together:
        month = torch.full((3, 4), -1)
        for row, index in enumerate(order):
            month[row, : series[index].shape[1]] = series[index]
        encoder.place(month, month >= 0)
    else:
        for index in order:
            encoder.place(series[index], series[index] > 0)
    assert encoder.length == 4
    assert encoder.eval().place(series[2], series[2] > 0).tolist() == [[0, 1, 2, 3]]


def test_calendars_may_begin_in_1969():
    encoder = MonthlyEncoder(1)
    for first, last in (('1970-01', '1970-04'), ('1970-12', '1971-03'), ('1970-01', '1970-05')):
        month = months(first, last)
        encoder.place(month, month >= 0)
    assert (encoder.start, encoder.length, encoder.earlier) == (-1, 5, 1)


def test_a_month_that_does_not_fit_leaves_the_calendar():
    encoder = MonthlyEncoder(1, months=12)
    season = months('2020-03', '2020-11')
    encoder.place(season, season > 0)
    wrong = season.clone()
    wrong[0, 0] = months('2019-03', '2020-01')[0, 0]
    assert encoder.place(wrong, wrong > 0).tolist() == [[-12, *range(1, 8)]]
    assert (encoder.start, encoder.length, encoder.earlier) == (season[0, 0], 8, 0)


def test_batches_without_dates_set_no_calendar():
    encoder = MonthlyEncoder(1)
    month = months('2020-03', '2020-11')
    encoder.place(month, month < 0)
    assert (encoder.start, encoder.length, encoder.earlier) == (-1, 0, 0)


def test_a_state_from_before_calendars_grew(series, encoder):
    state = {name: value for name, value in encoder.state_dict().items() if name != 'earlier'}
    model = torch.nn.ModuleDict({'encoder': MonthlyEncoder(2, width=8, months=6).double()})
    model.load_state_dict({f'encoder.{name}': value for name, value in state.items()})
    torch.testing.assert_close(model['encoder'].eval()(*series)[0], encoder(*series)[0])
    assert 'earlier' not in state
    own = model['encoder'].state_dict()
    assert add_missing(state, own).keys() == own.keys()  # also if only the backbone is loaded


def test_dates_without_values_do_not_extend_the_calendar(series, encoder):
    image, dates, valid = (x.clone() for x in series)
    dates[:, 4] = days('2021-04-30')[0]
    valid[0, 4] = False
    image[1:, 4] = torch.nan
    encoder.train()(image, dates, valid)
    assert (encoder.length, encoder.start) == (5, (2020 - 1970) * 12 + 10)


def test_later_months_fill_missing_ones(series, encoder):
    image, dates, valid = (x.clone() for x in series)
    dates[:, 4] = days('2021-04-30')[0]  # after the training, so that the last month of it is missing
    interpolated = torch.cat([image, (image[:, 3:4] + image[:, 4:5]) / 2], 1)
    march = torch.cat([dates, days('2021-03-31').repeat(4, 1)], 1)
    (expected,) = encoder(interpolated, march, torch.cat([valid, valid[:, :1]], 1))
    torch.testing.assert_close(encoder(image, dates, valid)[0], expected)


def test_months():
    with pytest.raises(ValueError, match='months is 0, expected at least 1'):
        MonthlyEncoder(2, months=0)


def export(encoder, series):
    batch = torch.export.Dim('batch', min=1)
    return torch.export.export(encoder, series, dynamic_shapes=({0: batch},) * 3, strict=False)


def test_export(series, encoder):
    one = tuple(value[:1] for value in series)
    torch.testing.assert_close(export(encoder, series).module()(*one), encoder(*one))


@pytest.mark.slow
def test_export_to_onnx(series, encoder):
    for name in ('onnx', 'onnxscript'):
        pytest.importorskip(name)
    torch.onnx.export(export(encoder, series), dynamo=True, verbose=False)


def test_linear_late_fusion_sees_single_pixels(series):
    image, dates, valid = (x.float() if x.is_floating_point() else x for x in series)
    modality = Modality('s2', ('a', 'b'), 10.0, True)
    backbone = late_fusion([modality], encoders={'s2': 'monthly'}, linear=True)
    model = OmniSatSegmenter(backbone, num_classes=3, label_gsd=10.0)
    model({'image_s2': image, 'dates_s2': dates, 'valid_s2': valid})
    changed = image.clone()
    changed[:, :, :, 0, 0] += 1
    one, other = (model.eval()({'image_s2': x, 'dates_s2': dates, 'valid_s2': valid}) for x in (image, changed))
    assert one.shape == (4, 3, 3, 3)
    differs = (one - other).abs().amax((0, 1)) > 1e-6
    assert differs[0, 0]
    assert differs.sum() == 1
