# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""ModalityDropout: learn to do without."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torchgeo.datasets.utils import Sample

from ..modality import Modality, as_modalities


class ModalityDropout(nn.Module):
    """Each sample loses some of its modalities, never its last one; only ``valid`` changes.

    Every modality that a sample has is dropped with its own probability, independently.
    Where that would leave nothing, one of those just dropped stays, each equally likely.
    So of k modalities with the same *p*, one is dropped with probability
    ``p - p ** k / k``. The draws come from PyTorch's generator of the batch's device, in
    training and evaluation alike.

    Args:
        modalities: The modalities of the batch.
        p: Probability of dropping each, or by name; those not named are never dropped.
        keep: Names of modalities that are never dropped, whatever *p* says.

    Raises:
        ValueError: If a probability is not between 0 and 1, or a name is unknown.
    """

    def __init__(
        self,
        modalities: Mapping[str, Modality] | Iterable[Modality],
        p: float | Mapping[str, float] = 0.2,
        keep: Iterable[str] = (),
    ) -> None:
        """Work out one probability a modality."""
        super().__init__()
        self.modalities = as_modalities(modalities)
        chances = dict(p) if isinstance(p, Mapping) else dict.fromkeys(self.modalities, p)
        keep = (keep,) if isinstance(keep, str) else tuple(keep)
        for argument, names in (('p', chances), ('keep', keep)):
            unknown = [name for name in names if name not in self.modalities]
            if unknown:
                raise ValueError(f'{argument} names {unknown}, expected some of {list(self.modalities)}')
        wrong = {name: chance for name, chance in chances.items() if not 0 <= chance <= 1}
        if wrong:
            raise ValueError(f'p is {wrong}, expected probabilities between 0 and 1')
        self.p = {name: 0.0 if name in keep else float(chances.get(name, 0.0)) for name in self.modalities}

    def forward(self, batch: Mapping[str, Tensor]) -> Sample:
        """Drop modalities of each sample.

        Args:
            batch: A batch or a sample; it is not changed.

        Returns:
            A new dictionary that shares everything but ``valid_*``.

        Raises:
            TypeError: If *batch* is a bare tensor.
        """
        if isinstance(batch, Tensor):
            raise TypeError(
                f'{type(self).__name__} got a Tensor of shape {tuple(batch.shape)}, expected a batch, a dictionary '
                'of tensors; MultimodalAugmentation hands one over, containers of Kornia do not'
            )
        present = [m for m in self.modalities.values() if m.valid_key in batch]
        if not present:
            return dict(batch)
        available = torch.stack([batch[m.valid_key].any(-1) for m in present], dim=-1)
        kept = self.draw(available, [self.p[m.name] for m in present])
        return {**batch, **{m.valid_key: batch[m.valid_key] & kept[..., i, None] for i, m in enumerate(present)}}

    def draw(self, available: Tensor, p: list[float]) -> Tensor:
        """Flags ``(..., M)`` of what stays, where *available* has flags of what is there."""
        chance = torch.tensor(p, device=available.device)
        kept = available & (torch.rand(available.shape, device=available.device) >= chance)
        tickets = torch.rand(available.shape, device=available.device).masked_fill(~available, -1.0)
        winner = torch.zeros_like(available).scatter(-1, tickets.argmax(-1, keepdim=True), True)
        return torch.where(kept.any(-1, keepdim=True), kept, available & winner)
