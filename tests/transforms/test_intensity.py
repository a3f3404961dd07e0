# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torchgeo_omnisat import Modality
from torchgeo_omnisat.transforms import CloudCover, RandomBandDropout, RandomClouds, RandomJitter, RandomSpeckle
from torchgeo_omnisat.transforms.intensity import describe_not_simulated

from .tiles import S1A, S2, SENSORS, random_tiles


def constant(modality: Modality, value: float, count: int = 4, dates: int = 4, side: int = 32) -> dict[str, Tensor]:
    shape = (count, dates, len(modality.bands), side, side)
    return {
        modality.image_key: torch.full(shape, value),
        modality.dates_key: torch.zeros(count, dates, dtype=torch.int64),
        modality.valid_key: torch.ones(count, dates, dtype=torch.bool),
    }


class TestRandomSpeckle:
    @pytest.mark.parametrize('looks', [1.0, 4.4, 20.0])
    @pytest.mark.parametrize('decibel', [True, False])
    def test_mean_stays_and_variance_is_one_over_looks(self, looks: float, decibel: bool) -> None:
        torch.manual_seed(0)
        modality = Modality('s1', ('VV', 'VH'), 10, True, 'radar', 'db' if decibel else 'power')
        batch = constant(modality, -13.0 if decibel else 0.05, side=80)
        image = RandomSpeckle([modality], looks)(batch)['image_s1'].double()
        power = 10 ** ((image + 13) / 10) if decibel else image / 0.05
        count = power.numel()
        assert abs(power.mean() - 1) < 3 * (1 / looks / count) ** 0.5
        kurtosis = 3 + 6 / looks  # of a gamma distribution
        assert abs(power.var() * looks - 1) < 3 * ((kurtosis - 1) / count) ** 0.5
        vv, vh = power[:, :, 0].flatten(), power[:, :, 1].flatten()
        assert abs(torch.corrcoef(torch.stack([vv, vh]))[0, 1]) < 3 / len(vv) ** 0.5

    def test_the_ratio_stays_the_ratio(self) -> None:
        batch = random_tiles()
        image = RandomSpeckle(SENSORS)(batch)['image_s1a']
        assert not torch.allclose(image[:, :, 0], batch['image_s1a'][:, :, 0], atol=0.1)
        assert torch.allclose(image[:, :, 2], image[:, :, 0] - image[:, :, 1], atol=1e-5)
        linear = Modality('s1a', ('VH', 'VV/VH', 'VV'), 10, True, 'radar', 'power')
        power = torch.rand(2, 3, 3, 8, 8) + 0.1
        power[:, :, 1] = power[:, :, 2] / power[:, :, 0]
        changed = RandomSpeckle([linear])(constant(linear, 0.0, 2, 3, 8) | {'image_s1a': power})
        vh, ratio, vv = changed['image_s1a'].unbind(2)
        assert torch.allclose(ratio, vv / vh, rtol=1e-4)
        assert not torch.allclose(vv, power[:, :, 2], rtol=0.1)

    def test_a_ratio_alone_is_noisier(self) -> None:
        ratio = Modality('s1a', ('VV-VH',), 10, True, 'radar', 'db')
        noise = RandomSpeckle([ratio], 10.0)(constant(ratio, 6.0))['image_s1a'] - 6
        single = RandomSpeckle([S1A], 10.0)(constant(S1A, 6.0))['image_s1a'][:, :, 0] - 6
        assert (noise.var() / single.var()).item() == pytest.approx(2, rel=0.1)

    def test_only_radar_changes_and_nan_stays(self) -> None:
        batch = random_tiles()
        batch['image_s1a'][0, 1, :, 2:4] = torch.nan
        after = RandomSpeckle(SENSORS)(batch)
        assert [key for key in batch if after[key] is not batch[key]] == ['image_s1a']
        assert torch.equal(after['image_s1a'].isnan(), batch['image_s1a'].isnan())

    def test_probability_is_per_sample(self) -> None:
        torch.manual_seed(0)
        batch = constant(S1A, -10.0, count=2000, dates=1, side=2)
        changed = (RandomSpeckle([S1A], p=0.3)(batch)['image_s1a'] != -10).flatten(1)[:, :8]
        assert (changed.any(-1) == changed.all(-1)).all()
        assert abs(changed[:, 0].float().mean() - 0.3) < 3 * (0.21 / 2000) ** 0.5

    def test_power_stays_positive_and_keeps_its_mean(self) -> None:
        torch.manual_seed(0)
        power = Modality('s1', ('VV', 'VH'), 10, True, 'radar', 'power')
        batch = constant(power, 0.0, 4, 4, 64) | {'image_s1': 0.02 + 0.1 * torch.rand(4, 4, 2, 64, 64)}
        image = RandomSpeckle([power])(batch)['image_s1']
        assert image.min() > 0
        assert image.max() < 1
        assert image.mean().item() == pytest.approx(0.07, rel=0.01)
        assert (image / batch['image_s1']).var().item() == pytest.approx(0.1, rel=0.05)

    @pytest.mark.parametrize('unit', ['db', 'power'])
    def test_a_band_that_is_no_polarisation_stays(self, unit: Any) -> None:
        radar = Modality('s1', ('VV', 'angle', 'B1'), 10, True, 'radar', unit)
        change = RandomSpeckle([radar])(constant(radar, 0.5))['image_s1'] != 0.5
        assert change[:, :, 0].float().mean() > 0.99
        assert not change[:, :, 1:].any()

    def test_a_difference_of_powers_is_no_ratio(self) -> None:
        power = Modality('s1', ('VV', 'VV-VH'), 10, True, 'radar', 'power')
        assert RandomSpeckle([power])(constant(power, 0.5))['image_s1'][:, :, 1].eq(0.5).all()

    @pytest.mark.parametrize('unit', ['dn', 'unknown'])
    def test_amplitude_and_radar_of_unknown_unit_stay(self, unit: Any) -> None:
        radar = Modality('s1', ('VV', 'VH'), 10, True, 'radar', unit)
        batch = constant(radar, 0.05)
        assert RandomSpeckle([radar])(batch)['image_s1'] is batch['image_s1']

    def test_an_argument_states_the_unit_of_what_states_none(self) -> None:
        unknown = Modality('s1', ('VV', 'VH'), 10, True)
        assert RandomSpeckle([unknown], decibel=False)(constant(unknown, 0.05))['image_s1'].min() > 0
        assert RandomSpeckle([unknown], decibel=True)(constant(unknown, 0.05))['image_s1'].min() < 0
        with pytest.raises(ValueError, match=r"decibel is True.*'s1'.*'power'"):
            RandomSpeckle([Modality('s1', ('VV',), 10, True, 'radar', 'power')], decibel=True)


@pytest.mark.parametrize(
    ('bands', 'kind'),
    [
        (('B1', 'B2'), None),  # what rasters without descriptions are called
        (('B04', 'B08'), None),
        (('VV', 'VH'), None),
        (('B1', 'B2'), 'radar'),
        (('B1',), 'elevation'),
        (('B10', 'B11'), 'thermal'),
        (('VV', 'VH'), 'other'),
    ],
)
def test_names_of_bands_state_nothing(bands: tuple[str, ...], kind: Any) -> None:
    torch.manual_seed(0)
    modality = Modality('a', bands, 10, True, kind, 'db' if kind == 'radar' else 'unknown')
    batch = constant(modality, 0.05)
    for transform in (RandomClouds([modality], 1.0), RandomSpeckle([modality]), CloudCover([modality], 0.9)):
        changed = transform(batch)
        assert [key for key in batch if changed[key] is not batch[key]] == []


class TestRandomClouds:
    @pytest.mark.parametrize(('unit', 'least', 'most'), [('dn', 3000, 9000), ('reflectance', 0.3, 0.9)])
    def test_brightness_suits_the_unit(self, unit: Any, least: float, most: float) -> None:
        torch.manual_seed(0)
        colours = Modality('planet', ('blue', 'green'), 3, True, 'optical', unit)
        image = RandomClouds([colours], 1.0)(constant(colours, 0.0, count=50))['image_planet']
        brightest = image.flatten(2).amax(-1)
        assert least < brightest[brightest > 0].min() < brightest.max() < most
        assert brightest.max() > 0.9 * most

    def test_a_series_of_unknown_unit_needs_a_brightness(self) -> None:
        torch.manual_seed(0)
        colours = Modality('planet', ('blue', 'green'), 3, True, 'optical')
        batch = constant(colours, 100.0)
        assert RandomClouds([colours], 1.0)(batch)['image_planet'] is batch['image_planet']
        assert RandomClouds([colours], 1.0, brightness=(200.0, 200.0))(batch)['image_planet'].max() == 200
        assert CloudCover([colours], 0.5)(batch)['image_planet'].isnan().float().mean() == 0.5

    def test_a_single_image_has_none(self) -> None:
        photo = Modality('aerial', ('blue', 'green'), 3, False, 'optical', 'dn')
        batch = constant(photo, 100.0)
        assert RandomClouds([photo], 1.0)(batch)['image_aerial'] is batch['image_aerial']

    def test_some_dates_of_the_optical_series(self) -> None:
        torch.manual_seed(0)
        batch = constant(S2, 500.0, count=500, dates=6, side=8) | {
            k: v for k, v in random_tiles(500).items() if 's1' in k
        }
        after = RandomClouds(SENSORS, p=0.3)(batch)
        assert [key for key in batch if after[key] is not batch[key]] == ['image_s2']
        hit = (after['image_s2'] != 500).flatten(2).any(-1)
        assert (~hit).any(-1).all()
        assert abs(hit.float().mean() - (0.3 - 0.3**6 / 6)) < 3 * (0.21 / 3000) ** 0.5
        assert after['image_s2'].min() >= 500
        assert after['image_s2'].max() <= 9000

    def test_blobs_are_contiguous_and_cover_what_was_asked(self) -> None:
        torch.manual_seed(0)
        batch = constant(S2, 0.0, count=60, dates=2, side=64)
        for cover in (0.2, 0.5, 0.8):
            clouds = RandomClouds([S2], 1.0, (cover, cover), (1000.0, 1000.0))
            veil = clouds(batch)['image_s2'][:, :, 0] > 500
            veil = veil[veil.flatten(2).any(-1)]
            assert abs(veil.float().mean() - cover) < 0.02
            rolled = veil[:, :, 1:] != veil[:, :, :-1]
            assert rolled.float().mean() < 0.1  # noise would change at every other pixel

    def test_all_bands_alike_at_any_resolution(self) -> None:
        torch.manual_seed(0)
        clouds, coarse = RandomClouds([S2], 1.0, brightness=(1000.0, 1000.0)), constant(S2, 0.0, side=16)
        params = clouds.draw(coarse)
        one = clouds(coarse, params)['image_s2']
        fine = clouds(constant(S2, 0.0, side=64), params)['image_s2']
        assert torch.equal(one[:, :, 0], one[:, :, 1])
        pooled = torch.nn.functional.avg_pool2d(fine.flatten(0, 1), 4).view(one.shape)
        assert (pooled - one).abs().mean() < 30

    def test_dates_with_clouds_are_marked_invalid(self) -> None:
        torch.manual_seed(0)
        batch = constant(S2, 0.0)
        assert RandomClouds([S2], 0.9)(batch)['valid_s2'].all()
        after = RandomClouds([S2], 0.9, mark_invalid=True)(batch)
        hit = after['image_s2'].flatten(2).any(-1)
        assert hit.any()
        assert torch.equal(after['valid_s2'], ~hit)
        with pytest.warns(DeprecationWarning, match='mark_invalid'):
            assert RandomClouds([S2], told=True).mark_invalid


class TestRandomBandDropout:
    def test_rate_and_the_last_band(self) -> None:
        torch.manual_seed(0)
        batch = constant(S1A, -10.0, count=5000, dates=2, side=1)
        for p in (0.2, 1.0):
            lost = RandomBandDropout([S1A], p)(batch)['image_s1a'].isnan()[..., 0, 0]
            assert torch.equal(lost[:, 0], lost[:, 1])
            expected = p - p**3 / 3
            assert abs(lost.float().mean() - expected) < 3 * (expected * (1 - expected) / 5000) ** 0.5
            assert (~lost).any(-1).all()
        assert batch['image_s1a'].eq(-10).all()

    @pytest.mark.parametrize('modality', [S2, SENSORS['spot']])
    def test_the_last_band_with_pixels_stays(self, modality: Modality) -> None:
        """Other bands may be missing, or observed on dates that are not valid alone."""
        batch = random_tiles(50)
        image = batch[modality.image_key]
        image[..., 1:, :, :] = torch.nan
        image[0] = 0  # padding
        batch[modality.valid_key][0] = False
        if modality.temporal:
            image[:, 2] = 1
            batch[modality.valid_key][:, 2] = False
        changed = RandomBandDropout([modality], 1.0)(batch)[modality.image_key]
        assert changed[..., 0, :, :].isfinite().all()
        assert changed[0].eq(image[0]).all()


class TestRandomJitter:
    def test_gain_and_shift_of_a_sample(self) -> None:
        torch.manual_seed(0)
        after = RandomJitter([S2], 0.1)(constant(S2, 2.0, count=500, side=2))['image_s2'].flatten(1)
        assert (after == after[:, :1]).all()
        assert (after - 2).abs().max() <= 0.3 + 1e-6
        assert (after[:, 0].mean() - 2).abs() < 3 * (0.05 * 0.01 / 3 * 100 / 500) ** 0.5


class TestSayUnknown:
    def test_one_line_with_what_each_lacks(self) -> None:
        unknown = [
            Modality('s1', ('VV',), 10, True),
            Modality('dem', ('B1',), 10, False, unit='metres'),
            Modality('s1d', ('B1', 'B2'), 10, True, 'radar', 'db'),
            Modality('s2', ('B02',), 10, True, 'optical'),
            Modality('palsar', ('HH',), 10, True, 'radar'),
        ]
        line = describe_not_simulated(unknown)
        assert '\n' not in line
        for told in (
            's1 (kind and unit unknown)',
            'dem (kind unknown)',
            's1d (no band of B1, B2',
            's2 (unit unknown)',
            'palsar (unit unknown)',
            'kind: radar, unit: db',
        ):
            assert told in line

    def test_nothing_where_all_is_known(self) -> None:
        elevation = Modality('dem', ('B1',), 10, False, 'elevation')
        amplitude = Modality('s1', ('VV',), 10, True, 'radar', 'dn')
        assert describe_not_simulated([*SENSORS.values(), elevation, amplitude]) == ''


@pytest.mark.parametrize(
    ('transform', 'arguments', 'message'),
    [
        (RandomSpeckle, {'looks': 0.0}, 'looks is 0.0, expected a positive number'),
        (RandomSpeckle, {'p': -1.0}, 'p is -1.0'),
        (RandomClouds, {'cover': (0.5, 1.5)}, 'cover is 1.5'),
        (RandomClouds, {'cover': (0.5, 0.2)}, r'cover is \(0.5, 0.2\)'),
        (RandomClouds, {'blobs': 0}, 'blobs is 0'),
        (RandomBandDropout, {'p': 1.1}, 'p is 1.1'),
        (RandomJitter, {'strength': -0.1}, 'strength is -0.1'),
    ],
)
def test_bad_arguments_are_refused(transform: type[nn.Module], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        transform(SENSORS, **arguments)
