# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Distillation of a teacher into a student at three granularities: patches, objects and tiles."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from timm.layers import Mlp
from torch import Tensor, nn

from ..utils import distributed as processes
from ..utils.tensors.prototypes import sinkhorn

#: Granularities, fine to coarse: a patch of the ground grid (the pixel of its feature map), an object, a tile.
GRAINS = ('pixel', 'object', 'image')


class Distillation(NamedTuple):
    """Output of :class:`GrainDistillation` over all ranks.

    Attributes:
        loss: Scalar loss with gradient.
        used: Number of prototypes that the student uses: the exponential of the entropy of its mean prediction, from 1
            if it has collapsed to the number of prototypes.
    """

    loss: Tensor
    used: Tensor


class GrainHead(nn.Module):
    """Projection to the unit sphere, and cosines with learned prototypes (Caron et al., "SwAV", arXiv 2006.09882).

    Args:
        dim: Width D of the tokens.
        width: Width P of the projection.
        prototypes: Number K of prototypes.
    """

    def __init__(self, dim: int, width: int, prototypes: int) -> None:
        super().__init__()
        self.mlp = Mlp(dim, dim, width)
        self.prototypes = nn.Parameter(torch.randn(prototypes, width))

    def embed(self, tokens: Float[Tensor, '... d']) -> Float[Tensor, '... p']:
        """Return unit vectors in single precision."""
        return F.normalize(self.mlp(tokens.to(self.prototypes.dtype)).float(), dim=-1)

    def score(self, embeddings: Float[Tensor, '... p']) -> Float[Tensor, '... k']:
        """Return the cosine of embeddings and prototypes."""
        with torch.autocast(embeddings.device.type, enabled=False):
            return embeddings @ F.normalize(self.prototypes.float(), dim=-1).T


class GrainDistillation(nn.Module):
    """Cross-entropy between the prototypes that a teacher and a student assign, at one granularity.

    For teacher scores T and student scores S of the same place, the loss is the mean of ``-sum_k q_k log p_k``. Here
    ``p = softmax(S / temperature)``, and q is the balanced assignment of T (:func:`.sinkhorn`) over the places of all
    ranks. The balance replaces the centring of DINO (Caron et al., arXiv 2104.14294): a teacher with constant output
    cannot assign everything to one prototype. SkySense (Guo et al., arXiv 2312.10115) averages such a loss over pixels,
    objects and images, of each modality and of the fused features. This is from its description; the equations could
    not be compared with the paper. It compares two augmentations of an image, each modality with itself. Here, the
    teacher has all modalities, and the student some of them with masked patches, or a single modality.

    Args:
        temperature: Temperature of the student.
        epsilon: Temperature of the assignment of the teacher.
    """

    def __init__(self, temperature: float = 0.1, epsilon: float = 0.05) -> None:
        super().__init__()
        self.temperature, self.epsilon = temperature, epsilon

    def forward(
        self,
        student: Float[Tensor, 's b n k'],
        teacher: Float[Tensor, 'b n k'],
        observed: Bool[Tensor, 'b n s'],
        counted: Bool[Tensor, 'b n'],
    ) -> Distillation:
        """Return the loss, 0 without a common place or with a single place; all ranks call this function.

        The balanced assignment of a single place is uniform, whatever it shows, so that it teaches nothing.

        Args:
            student: Scores of S sources and K prototypes at N places of B tiles.
            teacher: Scores of the teacher at the same places.
            observed: Places that each source observed.
            counted: Places that the teacher observed.
        """
        with torch.autocast(teacher.device.type, enabled=False):
            flat = teacher.detach().float().flatten(0, 1)
            target = sinkhorn(flat, counted.flatten(), self.epsilon, total=processes.total)
            both = (observed & counted.unsqueeze(-1)).movedim(-1, 0)
            logs = (student.float() / self.temperature).log_softmax(-1)
            each = -(target.unflatten(0, counted.shape) * logs).sum(-1)
            loss, count = processes.shared_mean(each.masked_fill(~both, 0).sum(), both.sum())
            mean = processes.total(logs.exp().masked_fill(~both.unsqueeze(-1), 0).sum((0, 1, 2))) / count.clamp(min=1)
            used = torch.special.entr(mean).sum().exp()
        return Distillation(loss * (processes.total(counted.sum()) > 1), used)


def pool_tile(tokens: Float[Tensor, 's b n d'], observed: Bool[Tensor, 'b n s']) -> Float[Tensor, 's b 1 d']:
    """Return the mean token of each tile over the patches that a source observed."""
    seen = observed.movedim(-1, 0).unsqueeze(-1)
    return tokens.masked_fill(~seen, 0).sum(2, keepdim=True) / seen.sum(2, keepdim=True).clamp(min=1)
