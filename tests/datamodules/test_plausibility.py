"""Pixel values that contradict the unit that is stated, or the statistics of a checkpoint."""

from typing import Any

import pytest

from torchgeo_omnisat.datamodules.common.plausibility import BandSummary, implausible, implausible_statistics
from torchgeo_omnisat.modality import Modality

RADAR = {'bands': ('VV', 'VH'), 'gsd': 10.0, 'temporal': True, 'kind': 'radar'}
OPTICAL = {'bands': ('B02', 'B08'), 'gsd': 10.0, 'temporal': True, 'kind': 'optical'}
POWER = [BandSummary(0.001, 0.06, 3.0, 0.1), BandSummary(0.001, 0.01, 0.9, 0.02)]
DECIBELS = [BandSummary(-25.0, -11.0, 8.0, 4.0), BandSummary(-33.0, -18.0, 1.0, 4.0)]
REFLECTANCE = [BandSummary(-0.01, 0.05, 1.2, 0.05), BandSummary(0.0, 0.3, 1.3, 0.1)]
NUMBERS = [BandSummary(1.0, 500.0, 17000.0, 900.0), BandSummary(1.0, 3000.0, 16000.0, 900.0)]
BYTES = [BandSummary(0.0, 90.0, 255.0, 40.0), BandSummary(0.0, 120.0, 255.0, 40.0)]


@pytest.mark.parametrize(
    ('facts', 'unit', 'bands', 'cause'),
    [
        (RADAR, 'db', POWER, 'power'),
        (RADAR, 'power', DECIBELS, 'decibels'),
        (RADAR, 'db', NUMBERS, 'amplitude'),
        (OPTICAL, 'reflectance', NUMBERS, 'dn'),
        (OPTICAL, 'reflectance', BYTES, '255'),
        (OPTICAL, 'dn', REFLECTANCE, 'reflectance'),
    ],
)
def test_values_in_another_unit_are_named(facts, unit, bands, cause):
    (found,) = implausible(Modality('source', unit=unit, **facts), bands)
    assert found.startswith('source: ')
    assert all(word in found for word in (cause, *facts['bands']))


@pytest.mark.parametrize(
    ('facts', 'unit', 'bands'),
    [
        (RADAR, 'db', DECIBELS),
        (RADAR, 'power', POWER),
        (OPTICAL, 'reflectance', REFLECTANCE),
        (OPTICAL, 'dn', NUMBERS),
        (OPTICAL, 'dn', BYTES),
        (RADAR, 'unknown', NUMBERS),
    ],
)
def test_values_in_the_stated_unit_are_plausible(facts, unit, bands):
    assert implausible(Modality('source', unit=unit, **facts), bands) == []


@pytest.mark.parametrize('value', [-9999.0, 65535.0, 3.4e38])
def test_nodata_that_counts_is_named_whatever_the_unit(value):
    bad = NUMBERS[1]._replace(**{'minimum' if value < 0 else 'maximum': value})
    (found,) = implausible(Modality('source', **OPTICAL), [NUMBERS[0], bad])
    assert 'B08' in found
    assert f'{value:g}' in found
    assert 'B02' not in found


def test_zeros_of_all_bands_may_be_nodata():
    many = [summary._replace(zero=0.3) for summary in NUMBERS]
    (found,) = implausible(Modality('source', **OPTICAL), many)
    assert '30%' in found
    assert 'nodata: 0' in found
    assert implausible(Modality('source', **OPTICAL), [NUMBERS[0], many[1]]) == []  # dark in one band


def test_constant_and_empty_bands_are_named():
    nan = float('nan')
    bands = [BandSummary(7.0, 7.0, 7.0, 0.0), BandSummary(nan, nan, nan, nan, 0.0)]
    constant, empty = implausible(Modality('source', **OPTICAL), bands)
    assert 'B02' in constant
    assert '7' in constant
    assert 'B08' in empty
    sea = Modality('dem', ('height',), 30.0, False, kind='elevation', unit='metres')
    assert implausible(sea, [BandSummary(0.0, 0.0, 0.0, 0.0)]) == []


def test_there_is_one_summary_for_each_band():
    with pytest.raises(ValueError, match=r'1 .*B08'):
        implausible(Modality('source', **OPTICAL), NUMBERS[:1])


@pytest.mark.parametrize(
    ('unit', 'mean', 'likely'),
    [
        ('power', (-12.0, -18.0), 'look like decibels'),
        ('db', (0.08, 0.02), 'look like linear power'),
        ('power', (0.08, 0.02), ''),
        ('db', (-12.0, -18.0), ''),
        ('unknown', (-12.0, 4000.0), ''),
    ],
)
def test_statistics_alone(unit: Any, mean: tuple[float, float], likely: str) -> None:
    radar = Modality('s1', ('VV', 'VH'), 10.0, True, 'radar', unit)
    found = implausible_statistics(radar, mean, (2.0, 3.0))
    assert (likely in found[0]) if likely else not found
