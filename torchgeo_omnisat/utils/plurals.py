# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Numbers with their nouns in messages."""

import re


def counted(number: int, one: str, several: str | None = None) -> str:
    """Return a number with its noun, such as ``'1 class'`` and ``'2 classes'``.

    Args:
        number: Number.
        one: Noun of the number 1.
        several: Noun of other numbers; by default the regular plural of *one*.
    """
    if number == 1:
        return f'{number} {one}'
    return f'{number} {several or plural(one)}'


def plural(noun: str) -> str:
    """Return the regular plural of a noun."""
    noun = re.sub(r'(?<![aeiou])y$', 'ie', noun)
    return noun + ('es' if re.search(r'(?:s|x|sh|tch)$', noun) else 's')
