# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from torchgeo_omnisat.utils.tensors.prototypes import PrototypeBank, sinkhorn


def clusters(spread: float = 0.05) -> tuple[Tensor, Tensor]:
    """Features (64, 8) near four directions that differ little from their mean, and the direction of each."""
    random = torch.Generator().manual_seed(0)
    directions = torch.randn(4, 8, generator=random)
    kind = torch.arange(64) % 4
    return 10 + directions[kind] + spread * torch.randn(64, 8, generator=random), kind


class TestSinkhorn:
    def test_rows_sum_to_one_and_columns_are_equal(self) -> None:
        scores = torch.randn(40, 5, generator=torch.Generator().manual_seed(1))
        q = sinkhorn(scores, torch.ones(40, dtype=torch.bool), epsilon=0.5, iterations=200)
        torch.testing.assert_close(q.sum(1), torch.ones(40))
        torch.testing.assert_close(q.sum(0), torch.full((5,), 8.0))
        # Q = diag(u) exp(scores / epsilon) diag(v): its logarithm minus the scores has rank one in the sense of sums.
        rest = q.log() - scores / 0.5
        rest = rest - rest[:1] - rest[:, :1] + rest[:1, :1]
        torch.testing.assert_close(rest, torch.zeros_like(rest), atol=1e-4, rtol=0)

    def test_constant_scores_are_assigned_equally(self) -> None:
        scores = torch.tensor([5.0, 0.0, -5.0]).repeat(6, 1)  # softmax alone would give all to the first
        torch.testing.assert_close(sinkhorn(scores, torch.ones(6, dtype=torch.bool)), torch.full((6, 3), 1 / 3))

    def test_rows_that_are_not_counted_have_no_influence(self) -> None:
        scores = torch.randn(6, 3, generator=torch.Generator().manual_seed(2))
        counted = torch.tensor([True, True, False, True, True, False])
        other = scores.masked_fill(~counted.unsqueeze(1), torch.nan)
        q = sinkhorn(other, counted)
        assert not q[~counted].any()
        torch.testing.assert_close(q[counted], sinkhorn(scores[counted], counted[counted]))

    def test_half_precision_is_computed_in_double(self) -> None:
        scores = torch.randn(6, 3, generator=torch.Generator().manual_seed(3)).bfloat16()
        with torch.autocast('cpu', torch.bfloat16):
            q = sinkhorn(scores, torch.ones(6, dtype=torch.bool))
        assert q.dtype == torch.float32
        torch.testing.assert_close(q, sinkhorn(scores.float(), torch.ones(6, dtype=torch.bool)))


class TestBank:
    def test_finds_clusters_whose_cosine_is_near_one(self) -> None:
        x, kind = clusters()
        assert F.cosine_similarity(x.unsqueeze(0), x.unsqueeze(1), dim=-1).min() > 0.95
        bank, counted = PrototypeBank(1, 4, 8, momentum=0.5), torch.ones(64, dtype=torch.bool)
        for _ in range(30):
            bank.update(x.unsqueeze(0), counted.unsqueeze(0), torch.zeros(1, dtype=torch.int64))
        found = bank.assign(x, counted).argmax(1)
        assert len(set(zip(kind.tolist(), found.tolist(), strict=True))) == len(set(found.tolist())) == 4
        centres = torch.stack([x[found == k].mean(0) for k in range(4)])
        torch.testing.assert_close(bank.prototypes[0], centres, atol=0.02, rtol=0)

    def test_moving_average(self) -> None:
        x, _ = clusters()
        bank, counted = PrototypeBank(2, 4, 8, momentum=0.9), torch.ones(1, 64, dtype=torch.bool)
        untouched = bank.prototypes[0].clone()
        bank.update(x.unsqueeze(0), counted, torch.tensor([1]))
        first, q = bank.prototypes[1].clone(), bank.assign(2 * x, counted[0], 1)
        torch.testing.assert_close(first.mean(0), x.mean(0), atol=0.05, rtol=0)
        bank.update(2 * x.unsqueeze(0), counted, torch.tensor([1]))
        torch.testing.assert_close(bank.prototypes[1], 0.9 * first + 0.1 * (q.T @ (2 * x)) / q.sum(0).unsqueeze(1))
        assert bank.updates.tolist() == [0, 2]
        assert torch.equal(bank.prototypes[0], untouched)

    @pytest.mark.parametrize(('counted', 'region'), [(3, 0), (64, -1)], ids=['fewer than prototypes', 'unknown region'])
    def test_is_not_updated(self, counted: int, region: int) -> None:
        x, _ = clusters()
        bank = PrototypeBank(1, 4, 8)
        before = bank.prototypes.clone()
        bank.update(x.unsqueeze(0), (torch.arange(64) < counted).unsqueeze(0), torch.tensor([region]))
        assert not bank.updates.any()
        assert torch.equal(bank.prototypes, before)
