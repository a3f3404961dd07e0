# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

import math
from itertools import combinations, permutations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from torchgeo_omnisat.losses import CrossModalInfoNCE


def make(modalities: int = 3, tiles: int = 7, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Embeddings with NaN where a random availability lacks them."""
    generator = torch.Generator().manual_seed(seed)
    available = torch.rand(tiles, modalities, generator=generator) < 0.6
    embeddings = torch.randn(modalities, tiles, 5, generator=generator)
    return embeddings.masked_fill(~available.T.unsqueeze(-1), torch.nan).requires_grad_(), available


def naive(x: Tensor, available: Tensor, temperature: Tensor, exclude: Tensor | None = None) -> Tensor:
    """Tile by tile, pair by pair, in both directions."""
    losses = []
    for a, b in permutations(range(len(x)), 2):
        both = [i for i in range(x.shape[1]) if available[i, a] and available[i, b]]
        for i in both:
            others = [j for j in both if j == i or exclude is None or not exclude[i, j]]
            similar = [torch.dot(x[a, i], x[b, j]) / x[a, i].norm() / x[b, j].norm() / temperature for j in others]
            own = similar[others.index(i)]
            losses.append(-torch.log(own.exp() / sum(s.exp() for s in similar)))
    return torch.stack(losses).mean()


def gradients(value: Tensor, *inputs: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(value, inputs))


@pytest.mark.parametrize('apart', [False, True])
@pytest.mark.parametrize('modalities', [2, 3, 4])
@pytest.mark.parametrize('seed', range(3))
def test_loss_matches_naive_loop(modalities: int, seed: int, apart: bool) -> None:
    x, available = make(modalities, seed=seed)
    exclude = torch.rand(7, 7, generator=torch.Generator().manual_seed(seed)) < 0.4 if apart else None
    loss = CrossModalInfoNCE(0.2)
    given = loss(x, available, exclude)
    expected = naive(x, available, loss.log_temperature[0].exp(), exclude)
    torch.testing.assert_close(given, expected)
    actual = gradients(given, x, loss.log_temperature)
    torch.testing.assert_close(actual, gradients(expected, x, loss.log_temperature), rtol=1e-5, atol=1e-6)
    assert not actual[0][~available.T].any()


@pytest.mark.parametrize('modalities', [2, 3, 4])
def test_exclusion_of_each_pair_matches_naive_loop(modalities: int) -> None:
    x, available = make(modalities, seed=modalities)
    pairs = list(combinations(range(modalities), 2))
    exclude = torch.rand(len(pairs), 7, 7, generator=torch.Generator().manual_seed(1)) < 0.4
    loss = CrossModalInfoNCE(0.2)
    given, terms = loss(x, available, exclude), []
    for (a, b), flags in zip(pairs, exclude, strict=True):
        both = (available[:, a] & available[:, b]).sum()
        if both:
            terms.append((naive(x[[a, b]], available[:, [a, b]], torch.tensor(0.2), flags), both))
    expected = sum(value * count for value, count in terms) / sum(count for _, count in terms)
    torch.testing.assert_close(given, expected)
    same = loss(x, available, exclude[:1].expand(len(pairs), -1, -1))
    torch.testing.assert_close(same, loss(x, available, exclude[0]))
    if modalities > 2:
        assert abs(same - given) > 1e-4


def test_two_modalities_are_as_open_clip() -> None:
    image, text = (F.normalize(torch.randn(8, 16), dim=-1) for _ in range(2))
    scale, labels = 1 / 0.07, torch.arange(8)
    expected = (F.cross_entropy(scale * image @ text.T, labels) + F.cross_entropy(scale * text @ image.T, labels)) / 2
    loss = CrossModalInfoNCE(0.07)(torch.stack([3 * image, text / 5]), torch.ones(8, 2, dtype=torch.bool))
    torch.testing.assert_close(loss, expected)


def test_absent_modality_is_invisible() -> None:
    x, available = make()
    loss = CrossModalInfoNCE()
    values = [loss(x.masked_fill(~available.T.unsqueeze(-1), other), available) for other in (0.0, 1e30, torch.inf)]
    assert values[0] == values[1] == values[2] == loss(x, available)


def test_figures_of_each_pair() -> None:
    x = torch.eye(3).repeat(3, 1, 1)
    x[2] = x[2].roll(1, 0)  # the third modality finds the wrong tile
    available = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 1, 0]], dtype=torch.bool)
    found = CrossModalInfoNCE(1.0).contrast(x, available)
    assert found.pairs == ((0, 1), (0, 2), (1, 2))
    assert found.counts.tolist() == [3, 2, 2]
    assert found.top1.tolist() == [1, 0, 0]
    assert found.top5.tolist() == [1, 1, 1]
    right = math.log((math.e + 2) / math.e)
    torch.testing.assert_close(found.losses[0], torch.tensor(right))
    torch.testing.assert_close(found.loss, (found.losses * found.counts).sum() / found.counts.sum())
    none = CrossModalInfoNCE().contrast(x, available & torch.tensor([True, True, False]))
    assert none.losses.isnan().tolist() == none.top1.isnan().tolist() == [False, True, True]


def test_figures_count_better_candidates() -> None:
    """How often fewer than one, or fewer than five, candidates resemble a tile as much as its own other view."""
    x = torch.randn(2, 12, 4, generator=torch.Generator().manual_seed(2))
    found = CrossModalInfoNCE(1.0).contrast(x, torch.ones(12, 2, dtype=torch.bool))
    scores = F.normalize(x[0], dim=-1) @ F.normalize(x[1], dim=-1).T
    ahead = [int((row >= row[own]).sum()) - 1 for table in (scores, scores.T) for own, row in enumerate(table)]
    assert {0, 5} <= set(ahead)  # five is not among five
    assert found.top1.item() == pytest.approx(sum(count < 1 for count in ahead) / 24)
    assert found.top5.item() == pytest.approx(sum(count < 5 for count in ahead) / 24)


def test_collapse_finds_nothing() -> None:
    found = CrossModalInfoNCE().contrast(torch.ones(2, 8, 4), torch.ones(8, 2, dtype=torch.bool))
    assert found.top1.tolist() == found.top5.tolist() == [0]
    torch.testing.assert_close(found.loss, torch.tensor(math.log(8)))


def test_no_pair_gives_nothing_to_learn() -> None:
    x = torch.randn(2, 4, 3, requires_grad=True)
    available = torch.tensor([[True, False], [False, True]] * 2)
    loss = CrossModalInfoNCE()(x, available)
    loss.backward()
    assert loss == 0
    assert x.grad is not None
    assert not x.grad.any()


def test_temperature_is_clamped_and_comes_back() -> None:
    loss = CrossModalInfoNCE(0.07, min_temperature=0.05, max_temperature=0.5)
    assert loss.log_temperature.shape == (1,)
    for value, limit in ((-9.0, 0.05), (3.0, 0.5)):
        loss.log_temperature.data.fill_(value)
        torch.testing.assert_close(loss.temperature, torch.tensor([limit]))
        outwards = 1 if value < 0 else -1
        for sign, passes in ((outwards, False), (-outwards, True)):
            (gradient,) = gradients(sign * loss.temperature.sum(), loss.log_temperature)
            assert bool(gradient) is passes


def test_half_precision_is_computed_in_single() -> None:
    x, available = make()
    x = x.detach()
    loss = CrossModalInfoNCE()
    expected = loss(x.bfloat16().float(), available)
    with torch.autocast('cpu', torch.bfloat16):
        assert loss(x.bfloat16(), available) == expected
        assert loss(x, available) == loss(x.float(), available)
    assert expected.dtype == torch.float32


@pytest.mark.parametrize(
    ('modalities', 'tiles', 'message'),
    [
        (1, 4, '1 modality'),
        (2, 1, '1 tile'),
    ],
)
def test_nothing_to_compare_is_refused(modalities: int, tiles: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CrossModalInfoNCE()(torch.randn(modalities, tiles, 3), torch.ones(tiles, modalities, dtype=torch.bool))


def test_bad_input_is_refused() -> None:
    x, available = torch.randn(2, 4, 3), torch.ones(4, 2, dtype=torch.bool)
    x[1, 2, 0] = torch.nan
    loss = CrossModalInfoNCE()
    with pytest.raises(ValueError, match=r'modalities \[1\] .* tiles \[2\]'):
        loss(x, available)
    available[2, 1] = False
    assert loss(x, available).isfinite()
    with pytest.raises(ValueError, match=r'exclude is \[\(4, 3\)\] .*\(B, 4\)'):
        loss(x, available, torch.zeros(4, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r'temperature.*2\.0.*0\.01.*1\.0'):
        CrossModalInfoNCE(2.0)
