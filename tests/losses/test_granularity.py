# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from torchgeo_omnisat.evaluation.retrieval import effective_rank, spread
from torchgeo_omnisat.losses import GrainDistillation, GrainHead, granularity, pool_tile
from torchgeo_omnisat.utils.tensors.prototypes import sinkhorn


def test_is_the_cross_entropy_of_the_assignment() -> None:
    random = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(3, 2, 5, 4, generator=random), torch.randn(2, 5, 4, generator=random)
    observed, counted = torch.rand(2, 5, 3, generator=random) < 0.6, torch.rand(2, 5, generator=random) < 0.8
    found = GrainDistillation(temperature=0.2, epsilon=0.1)(student, teacher, observed, counted)
    q = sinkhorn(teacher.flatten(0, 1), counted.flatten(), 0.1).unflatten(0, (2, 5))
    terms = [
        torch.nn.functional.cross_entropy(student[s, b, n] / 0.2, q[b, n])
        for s in range(3)
        for b in range(2)
        for n in range(5)
        if observed[b, n, s] and counted[b, n]
    ]
    torch.testing.assert_close(found.loss, torch.stack(terms).mean())
    assert 1 <= found.used <= 4


def test_without_a_common_place_is_zero() -> None:
    scores, nothing = torch.randn(1, 2, 3, 4, requires_grad=True), torch.zeros(2, 3, dtype=torch.bool)
    found = GrainDistillation()(scores, scores[0].detach(), ~nothing.unsqueeze(-1), nothing)
    found.loss.backward()
    assert found.loss == 0
    assert scores.grad is not None
    assert not scores.grad.any()


def test_a_single_place_teaches_nothing() -> None:
    """Its balanced assignment is uniform, which would train the student to assign it to all prototypes."""
    scores, counted = torch.randn(2, 2, 1, 4, requires_grad=True), torch.tensor([[True], [False]])
    found = GrainDistillation()(scores, scores[0].detach(), torch.ones(2, 1, 2, dtype=torch.bool), counted)
    found.loss.backward()
    assert found.loss == 0
    assert scores.grad is not None
    assert not scores.grad.any()
    assert found.used > 1


def test_tile_is_the_mean_of_what_a_source_observed() -> None:
    tokens = torch.arange(12.0).view(2, 1, 3, 2)
    observed = torch.tensor([[[1, 0], [0, 0], [1, 1]]], dtype=torch.bool)
    assert pool_tile(tokens, observed).tolist() == [[[[2, 3]]], [[[10, 11]]]]


def learn(steps: int = 150) -> tuple[Tensor, Tensor, Tensor]:
    """Distil a moving average of a head into it from noisy views of tiles; return rank, spread, and used prototypes."""
    torch.manual_seed(0)
    head, teacher, loss = GrainHead(8, 16, 12), GrainHead(8, 16, 12), GrainDistillation()
    teacher.load_state_dict(head.state_dict())
    optimizer = torch.optim.AdamW(head.parameters(), 1e-2)
    tiles, seen = torch.randn(32, 1, 8), torch.ones(32, 1, 1, dtype=torch.bool)
    for _ in range(steps):
        views = tiles + 0.3 * torch.randn(2, 32, 1, 8)
        with torch.no_grad():
            expected = teacher.score(teacher.embed(views[0]))
        found = loss(head.score(head.embed(views[1:])), expected, seen, seen[..., 0])
        optimizer.zero_grad()
        found.loss.backward()
        optimizer.step()
        with torch.no_grad():
            for own, theirs in zip(teacher.parameters(), head.parameters(), strict=True):
                own.lerp_(theirs, 0.05)
    embeddings = head.embed(tiles.unsqueeze(0)).detach()
    return effective_rank(embeddings, seen)[0], spread(embeddings, seen)[0], found.used


def softmax_alone(scores: Tensor, counted: Tensor, epsilon: float, **_: Any) -> Tensor:
    return (scores / epsilon).softmax(1)


@pytest.mark.parametrize('assign', [sinkhorn, softmax_alone])
def test_collapse_is_visible(assign: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the balance of the assignment, few prototypes are used, and the embeddings are less spread."""
    monkeypatch.setattr(granularity, 'sinkhorn', assign)
    rank, spread_of, used = learn()
    if assign is sinkhorn:
        assert rank > 7
        assert spread_of > 0.85
        assert used > 11
    else:
        assert rank < 7
        assert spread_of < 0.75
        assert used < 5


def test_constant_embeddings_have_collapsed() -> None:
    tiles, seen = torch.randn(1, 32, 1, 8, generator=torch.Generator().manual_seed(0)), torch.ones(32, 1, 1) > 0
    head = GrainHead(8, 16, 12)
    with torch.no_grad():
        head.mlp.fc2.weight.zero_()
        head.mlp.fc2.bias.copy_(torch.arange(16.0))
    scores = head.score(head.embed(tiles)).detach()
    assert spread(head.embed(tiles), seen)[0] < 1e-3
    # All assignments are equal, so that the teacher has nothing to teach, and the loss is that of equal chances.
    found = GrainDistillation()(torch.zeros_like(scores), scores[0], seen, seen[..., 0])
    assert found.loss == pytest.approx(torch.log(torch.tensor(12.0)).item())
