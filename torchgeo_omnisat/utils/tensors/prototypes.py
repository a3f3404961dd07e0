# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Prototypes: balanced assignment by the algorithm of Sinkhorn and Knopp, and moving averages of what is assigned."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .devices import wide

#: Temperature of the assignment to a :class:`PrototypeBank`, in standard deviations of its scores.
SHARPNESS = 0.25
#: Iterations of the assignment to a :class:`PrototypeBank`.
ITERATIONS = 10


def sinkhorn(
    scores: Float[Tensor, 'r k'],
    counted: Bool[Tensor, ' r'],
    epsilon: float = 0.05,
    iterations: int = 3,
    total: Callable[[Tensor], Tensor] = lambda x: x,
) -> Float[Tensor, 'r k']:
    """Assign rows to prototypes of equal size: ``Q = diag(u) exp(scores / epsilon) diag(v)``.

    The factors u and v are such that each row sums to 1, and each of the K columns to the number of rows divided by K.
    They are found by alternate division by the sums of columns and rows (Cuturi, "Sinkhorn Distances", arXiv 1306.0895;
    with three iterations as in Caron et al., "SwAV", arXiv 2006.09882, section 3.1). It is computed without gradient,
    and in double precision where the device has it.

    Args:
        scores: Similarity of each row and prototype.
        counted: Rows to assign; the others are 0 in the output and have no influence.
        epsilon: Temperature; assignments are sharper if it is lower.
        iterations: Number of iterations.
        total: Sum over the ranks, if each has some of the rows; then all ranks call this function.
    """
    with torch.no_grad(), torch.autocast(scores.device.type, enabled=False):
        dtype = wide(scores.device)
        weights = counted.unsqueeze(1).to(dtype)
        tiny = torch.finfo(dtype).tiny
        q = (scores.detach().to(dtype).masked_fill(~counted.unsqueeze(1), 0) / epsilon).softmax(1) * weights
        for _ in range(iterations):
            q = q / total(q.sum(0)).clamp(min=tiny)
            q = q / q.sum(1, keepdim=True).clamp(min=tiny) * weights
        return q.to(torch.promote_types(scores.dtype, torch.float32))


class PrototypeBank(nn.Module):
    """K prototypes for each of R regions, which follow the features that are assigned to them.

    The prototypes P of a region are updated with the assignment S of its features F: ``P <- m P + (1 - m) S^T F``,
    where the columns of S are divided by their sums, and m is the momentum. This is the update of the geo-context
    prototypes of SkySense (Guo et al., arXiv 2312.10115), as public summaries quote it; the equation could not be
    compared with the paper.

    S is the balanced assignment by cosine similarity (:func:`sinkhorn`), rounded to one prototype per feature. Without
    rounding, the prototypes of similar features converge to their mean. The cosines are centred over features and
    prototypes, which does not change a balanced assignment, and divided by their standard deviation, so that the
    temperature is relative. A prototype without a feature keeps its value.

    The first update of a region replaces its random prototypes. An update needs at least K features.

    Args:
        regions: Number R of regions.
        count: Number K of prototypes of a region.
        dim: Width D of the features.
        momentum: Momentum m.
    """

    prototypes: Tensor
    updates: Tensor

    def __init__(self, regions: int, count: int, dim: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        # The same for all regions, from a generator of its own: other weights do not depend on the bank.
        first = torch.randn(count, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
        self.register_buffer('prototypes', first.repeat(regions, 1, 1))
        self.register_buffer('updates', torch.zeros(regions, dtype=torch.int64))

    @torch.no_grad()
    def assign(
        self, features: Float[Tensor, 's d'], counted: Bool[Tensor, ' s'], region: int = 0
    ) -> Float[Tensor, 's k']:
        """Return the assignment of features to the prototypes of a region: one 1 per counted feature, else 0."""
        with torch.autocast(features.device.type, enabled=False):
            dtype = wide(features.device)
            weights = counted.unsqueeze(1).to(dtype)
            x = F.normalize(features.detach().to(dtype), dim=-1).masked_fill(~counted.unsqueeze(1), 0)
            scores = x @ F.normalize(self.prototypes[region].to(dtype), dim=-1).T
            count = weights.sum().clamp(min=1)
            scores = scores - scores.mean(1, keepdim=True)
            scores = (scores - scores.sum(0) / count) * weights
            scale = (scores.square().sum() / (count * scores.shape[1])).sqrt()
            soft = sinkhorn(scores / scale.clamp(min=1e-12), counted, SHARPNESS, ITERATIONS)
            chosen = torch.zeros_like(soft, dtype=torch.float32).scatter(1, soft.argmax(1, keepdim=True), 1.0)
            return chosen * counted.unsqueeze(1)

    @torch.no_grad()
    def update(
        self, features: Float[Tensor, 'g n d'], counted: Bool[Tensor, 'g n'], regions: Int[Tensor, ' g'] | None = None
    ) -> None:
        """Update the prototypes with the features of G tiles, the same on all ranks.

        On an accelerator, the host waits once for the regions, and not without them.

        Args:
            features: N features of each tile.
            counted: Features to use.
            regions: Region of each tile, -1 if it is unknown; None for region 0.
        """
        x = features.flatten(0, 1).float()
        for region in [0] if regions is None else sorted(set(regions.tolist())):
            if region < 0:
                continue
            chosen = (counted if regions is None else counted & (regions == region).unsqueeze(1)).flatten()
            assignment = self.assign(x, chosen, region)
            sizes = assignment.sum(0).unsqueeze(1)
            means = assignment.T @ x.masked_fill(~chosen.unsqueeze(1), 0) / sizes.clamp(min=1)
            before = self.prototypes[region]
            moved = self.momentum * before + (1 - self.momentum) * means
            after = torch.where(sizes > 0, torch.where(self.updates[region] > 0, moved, means), before)
            enough = chosen.sum() >= len(before)
            self.prototypes[region] = torch.where(enough, after, before)
            self.updates[region] += enough
