# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Objects and self-distillation in pre-training, at the granularities of patches, objects and tiles."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from timm.layers import Mlp
from torch import Tensor, nn

from ...losses import (
    GrainDistillation,
    GrainHead,
    Objects,
    PatchClusters,
    PatchContrastiveLoss,
    mean_of_sources,
    pool_objects,
    pool_tile,
)
from ...models import OmniSat
from ...utils.distributed import gather_flagged
from .teacher import Teacher

#: Name of the fused tokens among the sources; the others are modalities.
FUSED = 'fused'
#: Maximum number of patches of a tile from which statistics of collapse are computed.
MOST_PATCHES = 64


class Compared(NamedTuple):
    """Loss of one granularity, and embeddings that show whether it collapses.

    Attributes:
        loss: Scalar loss with gradient.
        embeddings: Embeddings of S sources in the tiles of all ranks, ``(S, G, N, P)``, without gradient.
        available: Flags of the embeddings, ``(G, N, S)``.
        used: Number of prototypes that the student uses; None for a contrastive loss.
    """

    loss: Tensor
    embeddings: Tensor
    available: Tensor
    used: Tensor | None = None


class Granularity(nn.Module):
    """Heads and losses of objects and of a student with a teacher.

    There are M + 1 sources: the tokens of each modality of a tile, and the fused tokens of its masked view, which lacks
    some modalities. The contrast of objects compares the sources with each other (:class:`.PatchContrastiveLoss` of the
    projected mean of each cluster). The student compares each source with the fused tokens of the teacher, which has
    all modalities without masking.

    Args:
        backbone: Backbone of the student.
        grains: Granularities of the teacher, some of :data:`.GRAINS`; empty for no teacher.
        objects: Whether to contrast objects.
        width: Width P of the projections.
        clusters: Number of clusters of patches.
        prototypes: Number of learned prototypes of each granularity.
        decay: Decay of the teacher.
        temperature: Temperature of the contrast of objects.
    """

    def __init__(
        self,
        backbone: OmniSat,
        grains: Sequence[str],
        objects: bool,
        width: int,
        clusters: int,
        prototypes: int,
        decay: float,
        temperature: float,
    ) -> None:
        super().__init__()
        dim, sources = backbone.embed_dim, [*backbone.modalities, FUSED]
        self.object_heads = nn.ModuleList(Mlp(dim, dim, width) for _ in sources if objects)
        self.heads = nn.ModuleDict({grain: GrainHead(dim, width, prototypes) for grain in grains})
        self.clusters = PatchClusters(clusters, dim) if objects or 'object' in grains else None
        self.teacher = Teacher(backbone, self.heads, decay) if grains else None
        self.contrast = PatchContrastiveLoss(temperature, negatives='everywhere')
        self.distillation = GrainDistillation()

    def forward(
        self,
        tokens: Float[Tensor, 'm b n d'],
        fused: Float[Tensor, 'b n d'],
        taught: Float[Tensor, 'b n d'] | None,
        observed: Bool[Tensor, 'b n m'],
        exclude: Bool[Tensor, 'b g'] | None,
        counts: Sequence[int],
        update: bool,
    ) -> dict[str, Compared]:
        """Return the enabled losses by name; all ranks call this function.

        Args:
            tokens: Tokens of each modality.
            fused: Fused tokens of the masked view.
            taught: Fused tokens of the teacher, if there is one.
            observed: Patches that each modality observed.
            exclude: Tiles that are not negatives, see :func:`.too_close`.
            counts: Number of tiles of each rank.
            update: Whether to update the clusters.
        """
        anything = observed.any(-1, keepdim=True)
        sources, seen = torch.cat([tokens, fused.unsqueeze(0)]), torch.cat([observed, anything], -1)
        targets = (torch.zeros_like(fused) if taught is None else taught).unsqueeze(0)
        objects = known = Objects(sources[:, :, :0], seen[:, :0])
        found = {}
        if self.clusters is not None:
            features = mean_of_sources(tokens, observed) if taught is None else taught
            assignment = self.clusters(features, anything[..., 0], counts, update)
            objects, known = pool_objects(sources, assignment, seen), pool_objects(targets, assignment, anything)
        if self.object_heads:
            own = objects.means.to(tokens.dtype)
            means = torch.stack([head(x) for head, x in zip(self.object_heads, own, strict=True)])
            contrast = self.contrast.compare(means, objects.present, exclude, counts)
            found['object'] = Compared(contrast.loss, contrast.tokens, contrast.available)
        for grain in self.heads:
            if grain == 'pixel':
                found[f'teacher_{grain}'] = self._distil(grain, sources, targets, seen, counts)
            elif grain == 'object':
                found[f'teacher_{grain}'] = self._distil(grain, objects.means, known.means, objects.present, counts)
            else:
                tiles = pool_tile(sources, seen), pool_tile(targets, anything)
                found[f'teacher_{grain}'] = self._distil(grain, *tiles, seen.any(1, keepdim=True), counts)
        return found

    def _distil(
        self,
        grain: str,
        sources: Float[Tensor, 's b n d'],
        targets: Float[Tensor, '1 b n d'],
        seen: Bool[Tensor, 'b n s'],
        counts: Sequence[int],
    ) -> Compared:
        """Compare the sources with the teacher; the last of them, the fused one, is there if any is."""
        assert self.teacher is not None
        head: Any = self.heads[grain]
        teacher: Any = self.teacher.heads[grain]
        embeddings = head.embed(sources)
        scores = teacher.score(teacher.embed(targets[0]))
        distilled = self.distillation(head.score(embeddings), scores, seen, seen[..., -1])
        step = -(-embeddings.shape[2] // MOST_PATCHES)
        some, flags = gather_flagged(embeddings.detach()[:, :, ::step].movedim(0, 2), seen[:, ::step], counts)
        return Compared(distilled.loss, some.movedim(2, 0), flags, distilled.used)
