# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""What all transforms share: draw once a tile, then change the whole batch by it."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torchgeo.datasets.utils import Sample

from ..modality import Modality, as_modalities

#: What was drawn for a batch: tensors by name, which belong to the transform that drew them.
Params = dict[str, Tensor]


class Transform(nn.Module, ABC):
    """A batch goes in and a new one comes out; what is drawn can be kept and used again.

    ``transform(batch)`` is ``transform.replay(batch, transform.draw(batch))``, and
    ``transform(batch, params)`` is ``transform.replay(batch, params)``. One sample without
    a leading dimension is taken for a batch of one. Draws come from PyTorch's generator
    of the batch's device.

    Args:
        modalities: The modalities whose tensors are to be changed; others pass.
        same_on_batch: Whether all samples share one draw.
    """

    def __init__(self, modalities: Mapping[str, Modality] | Iterable[Modality], same_on_batch: bool = False) -> None:
        super().__init__()
        self.modalities = as_modalities(modalities)
        self.same_on_batch = same_on_batch

    @abstractmethod
    def draw(self, batch: Mapping[str, Tensor]) -> Params:
        """Draw what is left to chance, for each sample of a batch."""

    @abstractmethod
    def replay(self, batch: Mapping[str, Tensor], params: Params) -> Sample:
        """Change a batch as *params* says; nothing is left to chance."""

    def forward(self, batch: Mapping[str, Tensor], params: Params | None = None) -> Sample:
        """Change a batch or a sample.

        Args:
            batch: A batch or a sample; it is not changed.
            params: What :meth:`draw` gave, to have the same again; drawn anew by default.

        Returns:
            A new dictionary that shares whatever does not change.

        Raises:
            TypeError: If *batch* is a bare tensor.
        """
        refuse_tensor(self, batch)
        single = any(batch[m.valid_key].ndim == 1 for m in self.present(batch))
        batch = {key: value[None] for key, value in batch.items()} if single else batch
        changed = self.replay(batch, self.draw(batch) if params is None else params)
        return {key: value[0] for key, value in changed.items()} if single else changed

    def present(self, batch: Mapping[str, Tensor]) -> Iterator[Modality]:
        """Yield the modalities whose keys are in a batch."""
        return (m for m in self.modalities.values() if m.valid_key in batch)

    def random(self, batch: Mapping[str, Tensor], *shape: int) -> Tensor:
        """Uniform numbers from 0 to 1, ``(B, *shape)``, one draw for all samples if they share it."""
        like = next(iter(batch.values()))
        numbers = torch.rand(1 if self.same_on_batch else len(like), *shape, dtype=torch.float32, device=like.device)
        return numbers.expand(len(like), *shape)

    def extra_repr(self) -> str:
        """Return the names of the modalities."""
        return ', '.join(self.modalities)


def refuse_tensor(module: nn.Module, batch: object) -> None:
    """Raise if a transform of batches is handed a bare tensor, as Kornia's containers do."""
    if isinstance(batch, Tensor):
        raise TypeError(
            f'{type(module).__name__} got a Tensor of shape {tuple(batch.shape)}, expected a batch, a dictionary '
            'of tensors; MultimodalAugmentation hands one over, containers of Kornia do not'
        )


def keep_some(there: Tensor, chance: Tensor | float, random: Tensor, tickets: Tensor) -> Tensor:
    """Return flags of what is kept: each is dropped with its own probability, but never the last one.

    Where all would go, one of them stays, each equally likely.

    Args:
        there: Flags ``(..., N)`` of what is there.
        chance: Probability of going, of a shape that broadcasts.
        random: Uniform numbers ``(..., N)`` that decide.
        tickets: Uniform numbers ``(..., N)``; the highest is the one that would stay.

    Returns:
        Flags ``(..., N)``, none where nothing is there.
    """
    kept = there & (random >= chance)
    last = torch.zeros_like(there).scatter(-1, tickets.masked_fill(~there, -1.0).argmax(-1, keepdim=True), True)
    return torch.where(kept.any(-1, keepdim=True), kept, there & last)


def probability(value: float, name: str = 'p') -> float:
    """Return a probability, or raise an error if it is not in [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f'{name} is {value}, expected a probability between 0 and 1')
    return float(value)


def probabilities(value: float | Mapping[str, float], names: Collection[str]) -> dict[str, float]:
    """Return the probability of each name, 0 for names that are not in *value*, or raise an error."""
    told = value if isinstance(value, Mapping) else dict.fromkeys(names, value)
    if unknown := [name for name in told if name not in names]:
        raise ValueError(f'p names {unknown}, expected some of {list(names)}')
    return {name: probability(told.get(name, 0.0), f'p of {name!r}') for name in names}


def interval(value: tuple[float, float], name: str, least: float) -> tuple[float, float]:
    """Two numbers in order, none below *least*, or the error that says what is wrong."""
    low, high = value
    if not least <= low <= high < float('inf'):
        raise ValueError(f'{name} is {value}, expected two numbers in order, at least {least}')
    return float(low), float(high)
