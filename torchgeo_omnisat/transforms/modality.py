# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Dropout of modalities."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torchgeo.datasets.utils import Sample

from ..utils.tensors.devices import constant
from .base import Modalities, Params, Transform, keep_some, probabilities


class ModalityDropout(Transform):
    """Drop random modalities of each sample, but never all; only ``valid`` changes.

    Each available modality of a sample is dropped independently with its probability. If all
    would be dropped, one of them is kept, with equal probability. Hence each of k modalities with
    the same *p* is dropped with probability ``p - p ** k / k``. Random numbers come from PyTorch's
    global generator of the batch's device, both in training and in evaluation.

    Args:
        modalities: Modalities of the batch.
        p: Probability of dropping a modality, or probabilities by name, 0 for missing names.
        keep: Names of modalities that are never dropped, regardless of *p*.
        same_on_batch: Whether all samples share one draw. Samples with different available
            modalities may still lose different ones.
    """

    def __init__(
        self,
        modalities: Modalities,
        p: float | Mapping[str, float] = 0.2,
        keep: Iterable[str] = (),
        same_on_batch: bool = False,
    ) -> None:
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
        chance = constant([self.p[m.name] for m in present], there.device, torch.float32)
        random, priority = self.random(batch, 2, len(present)).unbind(1)
        return {'kept': keep_some(there, chance, random, priority)}

    def replay(self, batch: Mapping[str, Tensor], params: Params) -> Sample:
        """Drop modalities; all tensors but ``valid_*`` are shared with *batch*."""
        present = enumerate(self.present(batch))
        return {**batch, **{m.valid_key: batch[m.valid_key] & params['kept'][:, i, None] for i, m in present}}
