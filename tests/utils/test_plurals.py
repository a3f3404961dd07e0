# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Numbers with their nouns."""

import pytest

from torchgeo_omnisat.utils.plurals import counted


@pytest.mark.parametrize(
    ('number', 'noun', 'expected'),
    [
        (1, 'file', '1 file'),
        (0, 'file', '0 files'),
        (2, 'labelled pixel', '2 labelled pixels'),
        (2, 'class', '2 classes'),
        (3, 'entry', '3 entries'),
        (3, 'day', '3 days'),
        (2, 'patch', '2 patches'),
        (2, 'epoch', '2 epochs'),
    ],
)
def test_nouns_agree_with_their_number(number: int, noun: str, expected: str) -> None:
    assert counted(number, noun) == expected


def test_verbs_agree_too() -> None:
    assert [counted(number, 'tile has', 'tiles have') for number in (1, 2)] == ['1 tile has', '2 tiles have']
