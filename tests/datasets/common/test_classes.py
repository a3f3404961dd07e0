# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Codes of label files: which class each stands for, and which stands for none."""

from typing import Any

import numpy as np
import pytest

from torchgeo_omnisat.datasets.common.classes import GREATEST_CODE, NO_LABEL, UNKNOWN, ClassMap, class_names, code_of


@pytest.mark.parametrize('value', [10, 10.0, '10', '10.0', ' 10 ', np.uint8(10), np.float32(10)])
def test_a_number_is_one_code_however_it_is_written(value: Any) -> None:
    assert code_of(value) == '10'
    assert ClassMap(('tree', 'shrub'), {20: 'tree', 10: 'shrub'}).number(value) == 1
    assert ClassMap(('tree', 'shrub'), {'20': 'tree', '10': 'shrub'}).number(value) == 1


def test_leading_zeros_are_kept() -> None:
    codes = ClassMap((), {'010': 'tree', 10: 'shrub', '1.5': 'rock'})
    assert [codes.number(value) for value in ('010', '10', 10, '1.5')] == [0, 1, 1, 2]
    assert codes.number('0010') == UNKNOWN


def test_several_codes_may_be_one_class_or_none() -> None:
    codes = ClassMap((), {201: 'wheat', '311': 'maize', 6798: 'wheat', 0: None}, other='rest')
    assert codes.labels == ['wheat', 'maize', 'rest'] == class_names({201: 'wheat', 311: 'maize', 1: 'wheat'}, 'rest')
    assert [codes.number(code) for code in (201, '311', 6798.0, 0, 99, 'fallow')] == [0, 1, 0, NO_LABEL, 2, 2]
    pixels = np.array([201, 311, 6798, 0, 99, np.nan, 0.5], np.float32)
    assert codes.pixels(pixels).tolist() == [0, 1, 0, NO_LABEL, 2, NO_LABEL, UNKNOWN]


def test_without_a_mapping_pixels_are_positions_or_names_that_are_numbers() -> None:
    assert ClassMap(('a', 'b'), ignore_index=255).pixels(np.array([0, 1, 2, -1, 255])).tolist() == [
        0, 1, UNKNOWN, UNKNOWN, NO_LABEL,
    ]  # fmt: skip
    by_name = ClassMap(('1', '2', '3'))
    assert by_name.pixels(np.array([1, 2, 3, 0])).tolist() == [0, 1, 2, UNKNOWN]
    assert by_name.number(3) == by_name.number('3') == 2
    assert ClassMap().pixels(np.array([7, -3, 1.5])).tolist() == [7, -3, UNKNOWN]
    with pytest.raises(ValueError, match=r"\['1'\].*classes.*mask"):
        ClassMap(('1', 'b'))


def test_numbers_that_float32_cannot_tell_apart_are_none() -> None:
    codes = ClassMap((), {GREATEST_CODE + 1: 'a', 5: 'b'}, other='c')
    assert codes.pixels(np.array([GREATEST_CODE + 1, 5], np.float32)).tolist() == [UNKNOWN, 1]
    assert codes.number(GREATEST_CODE + 1) == 0


def test_unknown_codes_are_one_error_with_all_of_them() -> None:
    error = ClassMap((), {10: 'tree'}).unknown({60.0: 7, 20.0: 1, 'x': 3}, ['l.tif'])
    assert all(text in str(error) for text in ('l.tif', '60 (7 pixels)', '20 (1 pixel)', "'x' (3 pixels)", 'tree'))
    assert 'whole numbers' in str(ClassMap(('a', 'b')).unknown({1.5: 4}, ['l.tif']))


@pytest.mark.parametrize(
    ('labels', 'classes', 'other', 'value'),
    [
        (('a', 'b'), {1: 'c'}, None, "'c'"),
        (('a', 'b'), {1: 'a'}, 'd', "'d'"),
        (('a', 'b'), None, 'a', "'a'"),
        ((), {1: 'a', '1': 'b'}, None, "'1'"),
        ((), {'a': [1, 2]}, None, r'\[1, 2\]'),
        ((), {}, None, '{}'),
        (('a', 'a'), None, None, r"\['a'\]"),
    ],
)
def test_a_mapping_that_is_none_is_refused(labels: Any, classes: Any, other: Any, value: str) -> None:
    with pytest.raises(ValueError, match=value):
        ClassMap(labels, classes, other)
