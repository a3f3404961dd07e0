# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

import json
import pickle
import re
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
from torch import nn

from torchgeo_omnisat.modality import Modality, as_modalities, half_up, subset_name, subsets

S2 = Modality('s2', ('B02', 'B03', 'B04'), 10.0, True)
SPOT = Modality(name='spot', bands=('R', 'G', 'B'), gsd=1, temporal=False)


class TestModality:
    def test_keys(self) -> None:
        assert S2.keys == (S2.image_key, S2.dates_key, S2.valid_key) == ('image_s2', 'dates_s2', 'valid_s2')

    def test_is_a_frozen_value(self) -> None:
        assert Modality('s2', ['B02', 'B03', 'B04'], 10, True) == S2  # type: ignore[arg-type]
        assert len({S2, Modality('s2', ('B02', 'B03', 'B04'), 10.0, True), SPOT}) == 2
        assert pickle.loads(pickle.dumps(S2)) == S2
        with pytest.raises(FrozenInstanceError):
            S2.gsd = 20.0  # type: ignore[misc]

    def test_names_that_a_module_dict_owns(self) -> None:
        owned = {*dir(nn.ModuleDict()), *dir(nn.ParameterDict())}
        names = [name for name in owned if re.fullmatch('[a-z][a-z0-9_]*', name)]
        assert len(names) > 50
        for name in (*names, 'fusion', 'encoders', 'mask', 'class'):
            with pytest.raises(ValueError, match=repr(name)):
                Modality(name, ('x',), 10, True)

    def test_facts(self) -> None:
        known = Modality('s2', ('B02', 'B03', 'B04'), 10, True, 'optical', 'dn', (490, 560, 665))  # type: ignore[arg-type]
        assert known.agrees(S2)
        assert S2.agrees(known)
        assert known.select(('B04', 'B02')).wavelengths == (665.0, 490.0)
        assert Modality(**known.as_dict()) == known
        assert Modality(**S2.as_dict()) == S2
        assert 'kind' not in S2.as_dict()
        for change in ({'kind': 'radar'}, {'unit': 'db'}, {'wavelengths': (1, 2, 3)}, {'gsd': 20}, {'temporal': False}):
            assert not known.agrees(replace(known, **change))
        assert known.agrees(replace(known, wavelengths=(492.7, 559.8, 664.6)))  # a catalogue's and the maker's

    def test_joined_keeps_what_either_knows(self) -> None:
        kind, unit = replace(S2, kind='optical'), replace(S2, unit='dn', wavelengths=(490.0, 560.0, 665.0))
        assert kind.joined(unit) == unit.joined(kind) == replace(unit, kind='optical')
        assert S2.joined(S2) == S2

    @pytest.mark.parametrize(
        ('fact', 'value'),
        [('kind', 'sar'), ('unit', 'dB'), ('unit', None), ('wavelengths', (490.0,)), ('wavelengths', (0.0, 1.0, 2.0))],
    )
    def test_facts_that_are_none(self, fact: str, value: Any) -> None:
        with pytest.raises(ValueError, match=fact):
            replace(S2, **{fact: value})

    @pytest.mark.parametrize(
        ('gsd', 'metres', 'pixels'), [(10, 40, 4), (1, 40, 40), (0.2, 102.4, 512), (10.24, 102.4, 10), (0.2, 60, 300)]
    )
    def test_pixels(self, gsd: float, metres: float, pixels: int) -> None:
        assert Modality('a', ('x',), gsd, False).pixels(metres) == pixels

    @pytest.mark.parametrize('metres', [15.0, 4.0, 0.0, -40.0, 40.01, float('nan'), float('inf')])
    def test_pixels_are_whole(self, metres: float) -> None:
        with pytest.raises(ValueError, match=rf"{metres} m.*10\.0 m pixels.*'s2'"):
            S2.pixels(metres)

    def test_select(self) -> None:
        assert S2.select(('B04', 'B02')) == Modality('s2', ('B04', 'B02'), 10.0, True)
        with pytest.raises(ValueError, match=r"bands \['B99'\].*'s2'.*\['B02', 'B03', 'B04'\]"):
            S2.select(('B02', 'B99'))
        with pytest.raises(ValueError, match='distinct'):
            S2.select(())

    @pytest.mark.parametrize(
        ('changed', 'match'),
        [
            ({'name': 'S2'}, "modality name 'S2' must be a lower-case letter followed by"),
            ({'name': '2s'}, "modality name '2s' must be"),
            ({'name': 's.2'}, r"modality name 's\.2' must be"),
            ({'name': ''}, "modality name '' must be"),
            ({'bands': ()}, r'bands .* must be distinct and at least one, got \(\)'),
            ({'bands': ('B02', 'B02')}, 'must be distinct'),
            ({'bands': 'B02'}, "bands of 's2' must be a sequence of names, got 'B02'"),
            ({'gsd': 0}, "gsd of 's2' must be a positive number of metres, got 0"),
            ({'gsd': -10.0}, 'got -10'),
            ({'gsd': float('nan')}, 'got nan'),
            ({'gsd': float('inf')}, 'got inf'),
        ],
    )
    def test_refuses(self, changed: dict[str, Any], match: str) -> None:
        with pytest.raises(ValueError, match=match):
            Modality(**({'name': 's2', 'bands': ('B02',), 'gsd': 10.0, 'temporal': True} | changed))


class TestAsModalities:
    def test_survives_json(self) -> None:
        stored = json.loads(json.dumps([m.as_dict() for m in (SPOT, S2)]))
        again = as_modalities(stored)
        assert again == {'spot': SPOT, 's2': S2}
        assert list(again) == ['spot', 's2']
        assert as_modalities(again) == as_modalities([SPOT, S2.as_dict()]) == again

    def test_refuses_none_and_twins(self) -> None:
        with pytest.raises(ValueError, match=r"distinct.*\['s2', 's2'\]"):
            as_modalities([S2, S2.select(('B02',))])
        with pytest.raises(ValueError, match=r'modalities.*\[\]'):
            as_modalities([])

    def test_a_key_is_the_name(self) -> None:
        assert as_modalities({'s2': S2.as_dict()}) == {'s2': S2}
        with pytest.raises(ValueError, match=r"'s2'.*key 'sentinel2'"):
            as_modalities({'sentinel2': S2, 'spot': SPOT})


class TestSubsets:
    def test_are_all_that_are_not_empty(self) -> None:
        found = subsets(['s2', 's1a', 'spot'])
        assert len(found) == len(set(found)) == 7
        assert found[0] == ('s2', 's1a', 'spot')
        assert [len(subset) for subset in found] == [3, 2, 2, 2, 1, 1, 1]

    def test_name_is_sorted(self) -> None:
        assert subset_name(('spot', 's2', 's1a')) == 's1a+s2+spot'


class TestSubsetsOfMany:
    def test_up_to_five_all(self) -> None:
        assert [len(subsets('abcdefg'[:count])) for count in range(1, 6)] == [1, 3, 7, 15, 31]

    def test_more_are_all_all_but_one_and_single_ones(self) -> None:
        found = subsets('abcdefg')
        assert found[0] == tuple('abcdefg')
        assert found[1:8] == [tuple(n for n in 'abcdefg' if n != gone) for gone in 'gfedcba']
        assert found[8:] == [(name,) for name in 'abcdefg']
        assert len(subsets('abcdefg', 'all')) == 127
        assert len(subsets('abcdef')) == 13

    def test_some_by_name(self) -> None:
        assert subsets(['s2', 's1a', 'spot'], ['spot', 's1a+s2']) == [('s2', 's1a', 'spot'), ('s2', 's1a'), ('spot',)]

    @pytest.mark.parametrize(('which', 'named'), [('most', 'most'), (['s2', 's2+dem'], 's2[+]dem'), ([''], "''")])
    def test_refused(self, which: Any, named: str) -> None:
        with pytest.raises(ValueError, match=named):
            subsets(['s2', 's1a'], which)


@pytest.mark.parametrize(
    ('count', 'whole'),
    [(0.5, 1), (1.5, 2), (2.5, 3), (3.5, 4), (2.4999999, 3), (2.499, 2), (2.6, 3), (-0.5, 0), (7, 7)],
)
def test_halves_go_up(count: float, whole: int) -> None:
    assert half_up(count) == whole
