# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Base class and helper functions of transforms."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torchgeo.datasets.utils import Sample

from ..modality import Modality, as_modalities

#: Modalities of a batch, by name or in order.
Modalities = Mapping[str, Modality] | Iterable[Modality]
#: Random parameters of a batch: tensors by name, specific to the transform.
Params = dict[str, Tensor]


class Transform(nn.Module, ABC):
    """Base class of transforms of batches, whose random parameters can be stored and applied again.

    ``transform(batch)`` is ``transform.replay(batch, transform.draw(batch))``, and
    ``transform(batch, params)`` is ``transform.replay(batch, params)``. A sample without
    batch dimension is treated as a batch of one. Random numbers come from PyTorch's global
    generator of the batch's device.

    Args:
        modalities: Modalities to transform; others are not changed.
        same_on_batch: Whether all samples share one draw.
    """

    def __init__(self, modalities: Modalities, same_on_batch: bool = False) -> None:
        super().__init__()
        self.modalities = as_modalities(modalities)
        self.same_on_batch = same_on_batch

    @abstractmethod
    def draw(self, batch: Mapping[str, Tensor]) -> Params:
        """Draw the random parameters for each sample of a batch."""

    @abstractmethod
    def replay(self, batch: Mapping[str, Tensor], params: Params) -> Sample:
        """Transform a batch deterministically with given parameters."""

    def forward(self, batch: Mapping[str, Tensor], params: Params | None = None) -> Sample:
        """Transform a batch or a sample; the result shares the tensors that do not change.

        Args:
            batch: Batch or sample; it is not changed.
            params: Result of :meth:`draw`, to repeat a transform; drawn by default.

        Raises:
            TypeError: If *batch* is a tensor.
        """
        refuse_tensor(self, batch)
        single = any(batch[m.valid_key].ndim == 1 for m in self.present(batch))
        batch = {key: value[None] for key, value in batch.items()} if single else batch
        changed = self.replay(batch, self.draw(batch) if params is None else params)
        return {key: value[0] for key, value in changed.items()} if single else changed

    def present(self, batch: Mapping[str, Tensor]) -> Iterator[Modality]:
        """Yield the modalities whose keys are in a batch."""
        return (m for m in self.modalities.values() if m.valid_key in batch)

    def with_images(self, batch: Mapping[str, Tensor], change: Callable[[Modality, Tensor], Tensor]) -> Sample:
        """Return the batch with the image of each present modality changed by a function."""
        return {**batch, **{m.image_key: change(m, batch[m.image_key]) for m in self.present(batch)}}

    def random(self, batch: Mapping[str, Tensor], *shape: int) -> Tensor:
        """Return uniform random numbers in [0, 1), ``(B, *shape)``, equal for all samples if ``same_on_batch``."""
        like = next(iter(batch.values()))
        numbers = torch.rand(1 if self.same_on_batch else len(like), *shape, dtype=torch.float32, device=like.device)
        return numbers.expand(len(like), *shape)

    def extra_repr(self) -> str:
        """Return the names of the modalities."""
        return ', '.join(self.modalities)


def refuse_tensor(module: nn.Module, batch: object) -> None:
    """Raise TypeError if the input is a tensor, as passed by Kornia's containers, instead of a batch."""
    if isinstance(batch, Tensor):
        raise TypeError(
            f'{type(module).__name__} got a Tensor of shape {tuple(batch.shape)}, expected a batch, a dictionary of '
            'tensors: use MultimodalAugmentation instead of the containers of Kornia'
        )


def keep_some(available: Tensor, chance: Tensor | float, random: Tensor, priority: Tensor) -> Tensor:
    """Return flags of items to keep: each is dropped with its own probability, but never all of them.

    If all items would be dropped, one of them is kept, with equal probability.

    Args:
        available: Flags ``(..., N)`` of available items.
        chance: Probability of dropping an item, of a shape that broadcasts.
        random: Uniform random numbers ``(..., N)``; an item is dropped if its number is below *chance*.
        priority: Uniform random numbers ``(..., N)``; the item with the largest one is kept if all would be dropped.

    Returns:
        Flags ``(..., N)``, all False where no item is available.
    """
    kept = available & (random >= chance)
    last = torch.zeros_like(available).scatter(
        -1, priority.masked_fill(~available, -1.0).argmax(-1, keepdim=True), True
    )
    return torch.where(kept.any(-1, keepdim=True), kept, available & last)


def probability(value: float, name: str = 'p') -> float:
    """Return a probability as float; raise ValueError if it is not in [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f'{name} is {value}, expected a probability between 0 and 1')
    return float(value)


def probabilities(value: float | Mapping[str, float], names: Collection[str]) -> dict[str, float]:
    """Return the probability of each name, 0 for names missing in *value*; raise ValueError if it is invalid."""
    configured = value if isinstance(value, Mapping) else dict.fromkeys(names, value)
    if unknown := [name for name in configured if name not in names]:
        raise ValueError(f'p has {unknown}, expected some of {list(names)}')
    return {name: probability(configured.get(name, 0.0), f'p of {name!r}') for name in names}


#: Probability, or minimum and maximum of a probability that is drawn.
Chance = float | tuple[float, float]


def probability_ranges(value: Chance | Mapping[str, Chance], names: Collection[str]) -> dict[str, tuple[float, float]]:
    """Return minimum and maximum of the probability of each name, 0 for names missing in *value*.

    Raises:
        ValueError: If a name is unknown, or numbers are not in [0, 1] or unordered.
    """
    configured = value if isinstance(value, Mapping) else dict.fromkeys(names, value)
    if unknown := [name for name in configured if name not in names]:
        raise ValueError(f'p has {unknown}, expected some of {list(names)}')
    found = {}
    for name in names:
        chance = configured.get(name, 0.0)
        both = tuple(chance) if isinstance(chance, Sequence) else (chance, chance)
        if len(both) != 2 or not 0 <= both[0] <= both[1] <= 1:
            raise ValueError(f'p of {name!r} is {chance}, expected a probability between 0 and 1, or two in order')
        found[name] = float(both[0]), float(both[1])
    return found


def interval(value: tuple[float, float], name: str, least: float) -> tuple[float, float]:
    """Return minimum and maximum as floats; raise ValueError if they are unordered or below *least*."""
    low, high = value
    if not least <= low <= high < float('inf'):
        raise ValueError(f'{name} is {value}, expected two numbers in order, at least {least}')
    return float(low), float(high)


def deprecated_argument[T](value: T, name: str, old_value: T | None, old_name: str) -> T:
    """Return the value of an argument that may be given under its earlier name, and warn in that case.

    Args:
        value: Value under the present name.
        name: Present name.
        old_value: Value under the earlier name; None if it is not used.
        old_name: Earlier name.
    """
    if old_value is None:
        return value
    warnings.warn(f'{old_name} is deprecated, use {name} instead', DeprecationWarning, stacklevel=3)
    return old_value
