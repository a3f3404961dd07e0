# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Objects of a tile: clusters of its patches without labels, and their mean embeddings."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..utils import distributed as processes
from ..utils.tensors.prototypes import PrototypeBank

#: Minimum number of patches in an object, the sum of their assignments.
SMALLEST = 1.0


class Objects(NamedTuple):
    """Mean embeddings of the objects of each tile.

    Attributes:
        means: Mean of each of K clusters in each of S sources, ``(S, B, K, D)``.
        present: Objects of which a source observed at least one patch, ``(B, K, S)``.
    """

    means: Tensor
    present: Tensor


class PatchClusters(nn.Module):
    """Clusters of the patches of all tiles of a step, without labels.

    Patches are assigned to K prototypes of a :class:`.PrototypeBank`. The clusters have the same size over all tiles of
    all ranks, but a tile may lack some of them. This is the unsupervised clustering of the object level of SkySense
    (Guo et al., arXiv 2312.10115), from its description. There the clusters are those of a single image; here
    prototypes are shared, so that cluster k is a similar object in all tiles.

    Args:
        count: Number K of clusters.
        dim: Width D of the features.
        momentum: Momentum of the prototypes.
    """

    def __init__(self, count: int, dim: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.bank = PrototypeBank(1, count, dim, momentum)

    def forward(
        self,
        features: Float[Tensor, 'b n d'],
        counted: Bool[Tensor, 'b n'],
        counts: Sequence[int],
        update: bool = False,
    ) -> Float[Tensor, 'b n k']:
        """Return the assignment of each patch, without gradient; 0 for patches that are not counted.

        All ranks call this function, whose only collective gathers their features. They assign the patches of all
        ranks, so assignments and prototypes are those of a single process with the joint batch.

        Args:
            features: Features of B tiles of this rank.
            counted: Patches to assign.
            counts: Number of tiles of each rank.
            update: Whether to update the prototypes.
        """
        rows = torch.cat([features.detach().float(), counted.unsqueeze(-1).float()], -1)
        everyone = torch.cat(processes.gather(rows, counts))
        x, chosen = everyone[..., :-1], everyone[..., -1] > 0.5
        assignment = self.bank.assign(x.flatten(0, 1), chosen.flatten()).unflatten(0, chosen.shape)
        if update:
            self.bank.update(x, chosen)
        return assignment[processes.own_rows(counts)]


def mean_of_sources(tokens: Float[Tensor, 's b n d'], observed: Bool[Tensor, 'b n s']) -> Float[Tensor, 'b n d']:
    """Return the mean of the normalised tokens of each patch over the sources that observed it, or 0."""
    seen = observed.movedim(-1, 0).unsqueeze(-1)
    return F.normalize(tokens.float(), dim=-1).masked_fill(~seen, 0).sum(0) / seen.sum(0).clamp(min=1)


def pool_objects(
    tokens: Float[Tensor, 's b n d'], assignment: Float[Tensor, 'b n k'], observed: Bool[Tensor, 'b n s']
) -> Objects:
    """Return the mean token of each cluster in each tile and source, weighted by the assignment.

    Args:
        tokens: Tokens of S sources, such as sensors or views, on the same patches.
        assignment: Assignment of each patch to K clusters.
        observed: Patches that each source observed.
    """
    with torch.autocast(tokens.device.type, enabled=False):
        weights = torch.einsum('bnk,bns->sbnk', assignment, observed.to(assignment.dtype))
        sizes = weights.sum(2)
        sums = torch.einsum('sbnk,sbnd->sbkd', weights, tokens.to(weights.dtype))
        means = sums / sizes.clamp(min=1e-6).unsqueeze(-1)
    return Objects(means, (sizes >= SMALLEST).movedim(0, -1))
