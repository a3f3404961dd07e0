# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Cosine of embeddings from some of the modalities and from all of them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from ..modality import Which, subset_name, subsets
from ..models import OmniSat
from ..models.embedding import DenseEmbedding, any_observed
from ..utils.atomic import atomic_file
from ..utils.tensors.devices import WIDE


class CosineRow(NamedTuple):
    """Agreement of the embeddings from one subset of the modalities with those from all.

    Attributes:
        subset: Name of the subset, such as ``'s1a+s2'``.
        modalities: Number of its modalities.
        cosine: Mean cosine; NaN without embeddings.
        embeddings: Number of compared pixels or patches, which the subset observed.
    """

    subset: str
    modalities: int
    cosine: float
    embeddings: int


class EmbeddingCosine(Metric):
    """Mean cosine of the embeddings from each subset of the modalities and from all of them.

    Args:
        names: Names of M modalities.
        which: Subsets to compare; see :func:`.subsets`. The full set is left out.
    """

    sums: Tensor
    counts: Tensor
    full_state_update = False

    def __init__(self, names: Iterable[str], which: Which = 'auto') -> None:
        super().__init__()
        names = tuple(names)
        self.subsets = [subset for subset in subsets(names, which) if len(subset) < len(names)]
        self.add_state('sums', torch.zeros(len(self.subsets), dtype=WIDE), dist_reduce_fx='sum')
        self.add_state('counts', torch.zeros(len(self.subsets), dtype=torch.int64), dist_reduce_fx='sum')

    def update(self, subset: tuple[str, ...], cosine: Tensor, observed: Tensor) -> None:
        """Add the cosines of embeddings that the subset *observed*; both have the same shape."""
        row = self.subsets.index(subset)
        self.sums[row] += cosine.to(WIDE).masked_fill(~observed, 0).sum()
        self.counts[row] += observed.sum()

    def compute(self) -> list[CosineRow]:
        """Return one row per subset, the largest subsets first."""
        totals = zip(self.subsets, self.sums.tolist(), self.counts.tolist(), strict=True)
        return [
            CosineRow(subset_name(subset), len(subset), total / count if count else math.nan, count)
            for subset, total, count in totals
        ]


def compare_subsets(
    cosines: EmbeddingCosine, backbone: OmniSat, dense: DenseEmbedding | None, batch: Mapping[str, Tensor]
) -> None:
    """Add the cosines of the embeddings of a batch: dense ones if there is a head of them, or else fused tokens."""
    out = backbone(batch)
    whole = out.fused if dense is None else dense(out)
    for subset in cosines.subsets:
        if not set(subset) & set(out.maps):
            continue
        part = backbone.restrict(out, subset)
        if dense is None:
            embeddings, seen = part.fused, backbone.observed_patches(part.maps, out.grid).any(-1)
        else:
            embeddings = dense(part)
            seen = any_observed(part, (whole.shape[-2], whole.shape[-1]))
        dim = 1 if dense is not None else -1
        cosines.update(subset, F.cosine_similarity(embeddings.float(), whole.float(), dim=dim), seen)


def write_cosines(rows: Sequence[CosineRow], path: Path, data: str) -> None:
    """Write the rows as CSV."""
    table = pd.DataFrame([{**row._asdict(), 'data': data} for row in rows])
    with atomic_file(path) as temporary:
        table.to_csv(temporary, index=False, float_format='%.6f', na_rep='nan')
