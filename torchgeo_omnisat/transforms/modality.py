# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""ModalityDropout: learn to do without."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torchgeo.datasets.utils import Sample

from ..modality import Modality
from .base import Params, Transform, keep_some, probabilities


class ModalityDropout(Transform):
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
        same_on_batch: Whether all samples share one draw. Two samples that have different
            modalities may still lose different ones.

    Raises:
        ValueError: If a probability is not between 0 and 1, or a name is unknown.
    """

    def __init__(
        self,
        modalities: Mapping[str, Modality] | Iterable[Modality],
        p: float | Mapping[str, float] = 0.2,
        keep: Iterable[str] = (),
        same_on_batch: bool = False,
    ) -> None:
        """Work out one probability a modality."""
        super().__init__(modalities, same_on_batch)
        keep = (keep,) if isinstance(keep, str) else tuple(keep)
        if unknown := [name for name in keep if name not in self.modalities]:
            raise ValueError(f'keep names {unknown}, expected some of {list(self.modalities)}')
        self.p = {name: 0.0 if name in keep else chance for name, chance in probabilities(p, self.modalities).items()}

    def draw(self, batch: Mapping[str, Tensor]) -> Params:
        """Draw flags ``kept`` (B, M) of the modalities that are kept, among those whose keys are in the batch."""
        present = list(self.present(batch))
        if not present:
            return {}
        there = torch.stack([batch[m.valid_key].any(-1) for m in present], dim=-1)
        chance = torch.tensor([self.p[m.name] for m in present], dtype=torch.float32, device=there.device)
        random, tickets = self.random(batch, 2, len(present)).unbind(1)
        return {'kept': keep_some(there, chance, random, tickets)}

    def replay(self, batch: Mapping[str, Tensor], params: Params) -> Sample:
        """Drop modalities; everything but ``valid_*`` is shared with *batch*."""
        present = enumerate(self.present(batch))
        return {**batch, **{m.valid_key: batch[m.valid_key] & params['kept'][:, i, None] for i, m in present}}
