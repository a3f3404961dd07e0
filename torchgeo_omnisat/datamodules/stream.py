# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Stream: what worker processes find out of every sample, in order, one at a time in memory."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm


class _Each(Dataset[Any]):
    """The result of a function at every place."""

    def __init__(self, function: Callable[[int], Any], length: int) -> None:
        self.function, self.length = function, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        return self.function(index)


def stream(function: Callable[[int], Any], length: int, num_workers: int, title: str, first: int = 0) -> Iterator[Any]:
    """Call a function in worker processes, with a progress bar where someone looks at it.

    Args:
        function: What to call with the places *first* to *length* - 1.
        length: How many places there are.
        num_workers: Number of processes; 0 for this one.
        title: What the bar says.
        first: Where to begin.

    Yields:
        The results in the order of the places, whichever worker had them.
    """
    places = range(first, length)
    loader: DataLoader[Any] = DataLoader(
        _Each(function, length),
        batch_size=None,
        sampler=places,
        num_workers=num_workers,
        collate_fn=_as_it_is,
        generator=torch.Generator(),  # or the seed of the workers would be drawn from the user's
    )
    yield from tqdm(loader, initial=first, total=length, desc=title, unit=' samples', disable=None, leave=False)


def _as_it_is(result: Any) -> Any:
    """No tensor is made of what a function found out."""
    return result
