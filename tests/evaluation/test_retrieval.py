# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from torchgeo_omnisat.evaluation.retrieval import (
    PatchRetrieval,
    draw_similarity,
    effective_rank,
    position_variance,
    spread,
)

NAMES = ('s2', 's1a', 'spot')


def make(noise: float, batches: int = 3) -> list[tuple[Tensor, Tensor]]:
    """Tokens (3, 2, 4, 8) of batches: the first two modalities alike but for noise, the third never there."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(batches):
        ground = torch.randn(2, 4, 8, generator=generator)
        tokens = torch.stack([ground, ground + noise * torch.randn(2, 4, 8, generator=generator), ground])
        seen = torch.ones(2, 4, 3, dtype=torch.bool)
        seen[..., 2] = False
        seen[0, 0, 0] = False
        made.append((tokens, seen))
    return made


def retrieve(batches: list[tuple[Tensor, Tensor]], candidates: int, seed: int = 0) -> PatchRetrieval:
    retrieval = PatchRetrieval(NAMES, candidates)
    generator = torch.Generator().manual_seed(seed)
    for tokens, seen in batches:
        retrieval.update(tokens, seen, generator)
    return retrieval


class TestPatchRetrieval:
    def test_matches_naive_search(self) -> None:
        batches = make(noise=1.5)
        (found,) = retrieve(batches, 100).compute().values()
        pairs = [
            (tokens[0, b, n], tokens[1, b, n])
            for tokens, seen in batches
            for b in range(2)
            for n in range(4)
            if seen[b, n, 0] and seen[b, n, 1]
        ]
        hits = {1: 0, 5: 0}
        for way in (0, 1):
            for own, pair in enumerate(pairs):
                cosines = [float(F.cosine_similarity(pair[way], other[1 - way], dim=0)) for other in pairs]
                better = sum(cosine > cosines[own] for cosine in cosines)
                for k in hits:
                    hits[k] += better < k
        assert found.candidates == len(pairs) == 21
        assert found.top1 == pytest.approx(hits[1] / 42)
        assert found.top5 == pytest.approx(hits[5] / 42)
        assert 0 < found.top1 < found.top5 < 1
        assert found.similarity.shape == (21, 21)

    def test_pair_that_never_meets_is_left_out(self) -> None:
        assert set(retrieve(make(0), 100).compute()) == {('s2', 's1a')}

    def test_collapse_finds_nothing(self) -> None:
        batches = [(torch.ones_like(tokens), seen) for tokens, seen in make(0)]
        (found,) = retrieve(batches, 100).compute().values()
        assert (found.top1, found.top5) == (0, 0)

    def test_candidates_come_from_all_batches_alike(self) -> None:
        batches = [(torch.full_like(tokens, i), seen) for i, (tokens, seen) in enumerate(make(0, 4))]
        counts = torch.zeros(4)
        for seed in range(40):
            retrieval = retrieve(batches, 5, seed)
            kept = retrieval._kept['s2', 's1a']
            assert kept.shape == (5, 1 + 2 * 8)
            counts += kept[:, 1].long().bincount(minlength=4)
        assert counts.sum() == 200
        assert (counts > 30).all()


class TestSpread:
    def test_everywhere_is_one_and_collapse_is_zero(self) -> None:
        x = torch.randn(2, 400, 5, 16, generator=torch.Generator().manual_seed(0))
        x[1] = 3.0
        everywhere, nowhere = spread(x, torch.ones(400, 5, 2, dtype=torch.bool)).tolist()
        assert everywhere == pytest.approx(1, abs=0.02)
        assert nowhere == pytest.approx(0, abs=1e-5)

    def test_counts_what_is_there(self) -> None:
        x = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
        available = torch.tensor([[True, False]] * 4 + [[False, False]] * 2)
        found = spread(x, available)
        expected = F.normalize(x[0, :4], dim=-1).std(0, correction=0).mean() * 2
        torch.testing.assert_close(found[0], expected.double())
        assert found[1].isnan()


class TestEffectiveRank:
    def test_number_of_equal_directions(self) -> None:
        x = torch.cat([torch.eye(8)[:3], -torch.eye(8)[:3]]).expand(2, 5, 6, 8)
        available = torch.tensor([True, False]).expand(5, 6, 2)
        used, unused = effective_rank(x, available).tolist()
        assert used == pytest.approx(3, abs=1e-3)
        assert unused != unused
        assert effective_rank(torch.ones(1, 4, 8), torch.ones(4, 1, dtype=torch.bool)).item() == pytest.approx(1)


class TestPositionVariance:
    @pytest.mark.parametrize(('weight', 'expected'), [(0.0, 0.0), (1.0, 0.5), (1e3, 1.0)])
    def test_sum_of_position_and_ground(self, weight: float, expected: float) -> None:
        random = torch.Generator().manual_seed(0)
        position, ground = torch.randn(1, 40, 32, generator=random), torch.randn(30, 40, 32, generator=random)
        found = position_variance(weight * position + ground, torch.ones(30, 40, dtype=torch.bool)).item()
        assert found == pytest.approx(expected, abs=0.02)

    def test_counts_what_is_available(self) -> None:
        random = torch.Generator().manual_seed(0)
        x = torch.randn(1, 20, 16, generator=random).repeat(4, 1, 1)
        available = torch.rand(4, 20, generator=random) > 0.3
        x[~available] = torch.randn(int((~available).sum()), 16, generator=random)
        assert position_variance(x, available).item() == pytest.approx(1)
        assert position_variance(x[:1], available[:1]).isnan()


def test_figure_of_similarities() -> None:
    figure = draw_similarity({'a': torch.eye(3), 'b': torch.eye(5)}, 'synthetic')
    assert [ax.get_title() for ax in figure.axes if ax.images] == ['a', 'b']
    assert draw_similarity({}, 'nothing').axes
