# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Cross-modal retrieval of patches, and statistics that show collapsed embeddings."""

import math
from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from ..utils import distributed as processes
from ..utils.figures import plain_text
from ..utils.tensors.devices import wide


class Found(NamedTuple):
    """Retrieval accuracy between two modalities.

    Attributes:
        top1: Top-1 accuracy in both directions; ties count as errors.
        top5: Top-5 accuracy in both directions.
        candidates: Number of candidates; the chance level of top1 is its inverse.
        similarity: Cosine similarities of the first 64 candidates, on the CPU.
    """

    top1: float
    top5: float
    candidates: int
    similarity: Tensor


class PatchRetrieval:
    """Retrieval on a random sample of the patches that both modalities of a pair observed."""

    def __init__(self, names: Iterable[str], candidates: int) -> None:
        self.candidates = candidates
        self.pairs = list(combinations(enumerate(names), 2))
        self._kept: dict[tuple[str, str], Tensor] = {}

    def update(self, tokens: Tensor, observed: Tensor, generator: torch.Generator) -> None:
        """Add the patches of tokens ``(M, B, N, D)`` that are observed ``(B, N, M)`` to the random sample."""
        for (i, first), (j, second) in self.pairs:
            both = observed[..., i] & observed[..., j]
            ticket = torch.rand(int(both.sum()), 1, generator=generator, dtype=torch.float32).to(tokens.device)
            rows = torch.cat([ticket, tokens[i][both].float(), tokens[j][both].float()], dim=1)
            kept = self._kept.get((first, second))
            self._kept[first, second] = self._lowest(rows if kept is None else torch.cat([kept, rows]))

    def compute(self) -> dict[tuple[str, str], Found]:
        """Return the retrieval rates by pair over the patches of all ranks; pairs need at least two patches."""
        found = {}
        for pair, kept in self._kept.items():
            rows = self._lowest(torch.cat(processes.gather(kept)))[:, 1:]
            if len(rows) > 1:
                first, second = (F.normalize(x, dim=-1) for x in rows.chunk(2, dim=1))
                found[pair] = _found(first @ second.T)
        return found

    def _lowest(self, rows: Tensor) -> Tensor:
        return rows[rows[:, 0].argsort()[: self.candidates]]


def _found(similarity: Tensor) -> Found:
    """Return the accuracy in both directions from similarities, whose diagonal is correct.

    Ties are errors. torchmetrics' top-k accuracy ranks ties by index, so that collapsed embeddings would have
    matches (``test_collapse_finds_nothing``).
    """
    right = similarity.diagonal()
    ahead = torch.cat([(similarity >= right.unsqueeze(1)).sum(1), (similarity >= right).sum(0)]) - 1
    top1, top5 = (float((ahead < k).float().mean()) for k in (1, 5))
    return Found(top1, top5, len(right), similarity[:64, :64].cpu())


def spread(embeddings: Tensor, available: Tensor) -> Tensor:
    """Return the spread of embeddings ``(M, ..., D)``: near 1 if uniformly distributed, 0 if collapsed, or NaN.

    It is the standard deviation of each dimension of the normalised available embeddings, averaged over the dimensions,
    times the square root of their number; equal on all ranks for equal inputs.
    """
    counted = available.movedim(-1, 0).flatten(1)
    x = F.normalize(embeddings.detach().float().flatten(1, -2), dim=-1).masked_fill(~counted.unsqueeze(-1), 0)
    count = counted.sum(1, keepdim=True)
    x = x.to(wide(x.device))
    means, squares = x.sum(1) / count, x.square().sum(1) / count
    return (squares - means.square()).clamp(min=0).sqrt().mean(1) * math.sqrt(embeddings.shape[-1])


def effective_rank(embeddings: Tensor, available: Tensor) -> Tensor:
    """Return the effective rank of embeddings ``(M, ..., D)``: from 1 to D, or NaN without available ones.

    It is the exponential of the entropy of the normalised singular values (Roy and Vetterli, "The Effective Rank",
    EUSIPCO 2007) of the centred, normalised available embeddings. A low rank with a high :func:`spread` means that few
    dimensions carry all the information.
    """
    counted = available.movedim(-1, 0).flatten(1)
    x = F.normalize(embeddings.detach().float().flatten(1, -2), dim=-1).to(wide(embeddings.device))
    ranks = []
    for vectors, chosen in zip(x, counted, strict=True):
        centred = vectors[chosen] - vectors[chosen].mean(0)
        values = torch.linalg.eigvalsh(centred.mT @ centred).clamp(min=0).sqrt()
        fractions = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
        ranks.append(torch.special.entr(fractions).sum().exp() if chosen.any() else x.new_tensor(torch.nan))
    return torch.stack(ranks)


def position_variance(embeddings: Tensor, available: Tensor) -> Tensor:
    """Return the fraction of the variance of embeddings that their position in the tile explains, or NaN.

    It compares the mean cosine s of different tiles at the same position with the mean cosine a of different tiles at
    any position: ``(s - a) / (1 - a)``, the intraclass correlation of positions. It is 1 if embeddings depend on their
    position alone, and about 0 if they do not depend on it: the estimate is unbiased, so it may be negative.

    Args:
        embeddings: Embeddings ``(G, N, D)`` of the same N positions in G tiles.
        available: Flags ``(G, N)`` of the available embeddings.
    """
    dtype = wide(embeddings.device)
    x = F.normalize(embeddings.detach().to(dtype), dim=-1).masked_fill(~available.unsqueeze(-1), 0)
    here, tiles = available.sum(0).to(dtype), available.sum(1).to(dtype)
    count = tiles.sum()
    same = (x.sum(0).square().sum() - count) / (here * (here - 1)).sum()
    anywhere = (x.sum((0, 1)).square().sum() - x.sum(1).square().sum()) / (count.square() - tiles.square().sum())
    return (same - anywhere) / (1 - anywhere)


@plain_text()  # a class may be called $x$
def draw_similarity(similarities: Mapping[str, Tensor], title: str) -> Figure:
    """Draw matrices of cosine similarities; the diagonal is bright where modalities agree."""
    count = max(1, len(similarities))
    figure, axes = plt.subplots(1, count, figsize=(3.2 * count + 1, 3.6), squeeze=False, layout='constrained')
    for ax, (name, matrix) in zip(axes[0], similarities.items(), strict=False):
        shown = ax.imshow(matrix.float().numpy(), vmin=-1, vmax=1, cmap='RdBu_r', interpolation='nearest')
        ax.set_title(name, fontsize='small')
        figure.colorbar(shown, ax=ax, shrink=0.8)
    figure.suptitle(title, fontsize='medium')
    return figure
