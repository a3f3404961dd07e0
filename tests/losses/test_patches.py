# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

import math
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

from torchgeo_omnisat.losses import PatchContrastiveLoss, contrastive
from torchgeo_omnisat.losses.contrastive import _seen

PUBLISHED = Path(__file__).parents[3] / 'shared' / 'fixtures' / 'contrastive.pt'


def make(modalities: int = 3, tiles: int = 3, patches: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Tokens, and a random availability of each patch."""
    generator = torch.Generator().manual_seed(seed)
    available = torch.rand(tiles, patches, modalities, generator=generator) < 0.6
    return torch.randn(modalities, tiles, patches, 5, generator=generator).requires_grad_(), available


def naive(
    x: Tensor, available: Tensor, temperature: float, exclude: Tensor | None = None, place: bool = False
) -> Tensor:
    """Token by token; *available* by patch."""
    tokens = [(m, b, p) for m in range(len(x)) for b in range(x.shape[1]) for p in range(x.shape[2])]
    tokens = [(m, b, p) for m, b, p in tokens if available[b, p, m]]
    losses = []
    for m, b, p in tokens:

        def weight(other: tuple[int, int, int], x: Tensor = x[m, b, p], y: Tensor = x) -> Tensor:
            return (torch.cosine_similarity(x, y[other], dim=0) / temperature).exp()

        positives = [(n, c, q) for n, c, q in tokens if (c, q) == (b, p) and n != m]
        compared = [(n, c, q) for n, c, q in tokens if (n, c) != (m, b)]
        compared = [(n, c, q) for n, c, q in compared if exclude is None or not exclude[b, c]]
        if place:
            compared = [(n, c, q) for n, c, q in compared if c != b and q == p] + positives
        if positives:
            losses.append(-torch.log(sum(map(weight, positives)) / sum(map(weight, compared))))
    return torch.stack(losses).mean()


@pytest.mark.skipif(not PUBLISHED.exists(), reason='the published figures are not beside this checkout')
@pytest.mark.parametrize('block_size', [4, 1024])
@pytest.mark.parametrize('case', ['m3_b3', 'm2_b2', 'm3_b1'])
def test_published(case: str, block_size: int) -> None:
    published = torch.load(PUBLISHED, weights_only=True)[case]
    tokens = torch.stack(list(published['tokens'].values())).requires_grad_()
    available = torch.ones(tokens.shape[1], len(tokens), dtype=torch.bool)
    loss = PatchContrastiveLoss(block_size=block_size)(tokens, available)
    torch.testing.assert_close(loss, published['loss'], rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(loss, tokens)
    torch.testing.assert_close(gradient, torch.stack(list(published['grads'].values())), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('by_patch', [False, True])
@pytest.mark.parametrize('block_size', [1, 5, 64])
@pytest.mark.parametrize('seed', range(3))
def test_loss_matches_naive_loop(seed: int, block_size: int, by_patch: bool) -> None:
    x, available = make(seed=seed)
    if not by_patch:
        available = available[:, :1].expand_as(available)
    close = torch.zeros(3, 3, dtype=torch.bool)
    close[0, 2] = close[2, 0] = True
    for exclude in (None, close):
        given = PatchContrastiveLoss(0.2, block_size=block_size)(x, available if by_patch else available[:, 0], exclude)
        expected = naive(x, available, 0.2, exclude)
        torch.testing.assert_close(given, expected)
        (actual,), (wanted,) = torch.autograd.grad(given, x), torch.autograd.grad(expected, x)
        torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-6)
        assert not actual[available.permute(2, 0, 1).logical_not()].any()


@pytest.mark.parametrize('by_patch', [False, True])
@pytest.mark.parametrize('seed', range(3))
def test_loss_of_the_same_place_matches_naive_loop(seed: int, by_patch: bool) -> None:
    x, available = make(tiles=4, seed=seed)
    if not by_patch:
        available = available[:, :1].expand_as(available)
    close = torch.zeros(4, 4, dtype=torch.bool)
    close[0, 2] = close[2, 0] = True
    loss = PatchContrastiveLoss(0.2, negatives='place')
    for exclude in (None, close):
        given = loss(x, available if by_patch else available[:, 0], exclude)
        expected = naive(x, available, 0.2, exclude, place=True)
        torch.testing.assert_close(given, expected)
        (actual,), (wanted,) = torch.autograd.grad(given, x), torch.autograd.grad(expected, x)
        torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-6)
        assert not actual[available.permute(2, 0, 1).logical_not()].any()


@pytest.mark.parametrize('block_size', [4, 1024])
def test_masks_on_an_accelerator_equal_the_selection(block_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    exclude = torch.tensor([[False, True, False], [True, False, False], [False, False, False]])
    results = []
    for readable in (True, False):
        monkeypatch.setattr(contrastive, 'readable', lambda x, readable=readable: readable)
        tokens, available = make()
        loss = PatchContrastiveLoss(0.5, block_size=block_size)(tokens, available, exclude)
        results.append((loss, *torch.autograd.grad(loss, tokens)))
    torch.testing.assert_close(results[1], results[0])


def test_place_alone_wins_nothing_against_the_same_place() -> None:
    place = torch.randn(1, 1, 6, 5).expand(2, 4, 6, 5)
    available = torch.ones(4, 2, dtype=torch.bool)
    everywhere, same = (PatchContrastiveLoss(negatives=where)(place, available) for where in ('everywhere', 'place'))
    assert same == pytest.approx(math.log(7))  # three other tiles in two modalities, and the positive
    assert everywhere < 0.75 * math.log(2 * 4 * 6 - 6)


@pytest.mark.parametrize('negatives', ['everywhere', 'place'])
def test_gradient_is_exact(negatives: Literal['everywhere', 'place']) -> None:
    x, available = make()
    loss = PatchContrastiveLoss(0.3, block_size=4, negatives=negatives)
    assert torch.autograd.gradcheck(lambda x: loss(x, available), x.detach().double().requires_grad_())


@pytest.mark.parametrize('negatives', ['everywhere', 'place'])
def test_absent_modality_is_invisible(negatives: Literal['everywhere', 'place']) -> None:
    x, available = make()
    loss = PatchContrastiveLoss(negatives=negatives)
    gone = ~available.permute(2, 0, 1).unsqueeze(-1)
    for other in (torch.nan, torch.inf, 1e30):
        strange = x.detach().masked_fill(gone, other).requires_grad_()
        given = loss(strange, available)
        given.backward()
        assert given == loss(x, available)
        assert strange.grad is not None
        assert not strange.grad.masked_select(gone).any()


@pytest.mark.parametrize('negatives', ['everywhere', 'place'])
@pytest.mark.parametrize('available', [torch.zeros(2, 2, dtype=torch.bool), torch.tensor([[True, False]] * 2)])
def test_no_pair_gives_nothing_to_learn(available: Tensor, negatives: Literal['everywhere', 'place']) -> None:
    x = torch.randn(2, 2, 4, 3, requires_grad=True)
    loss = PatchContrastiveLoss(negatives=negatives)(x, available)
    loss.backward()
    assert loss == 0
    assert x.grad is not None
    assert not x.grad.any()


def test_memory_does_not_grow_with_the_square() -> None:
    x = torch.randn(2, 2, 300, 4, requires_grad=True)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for value in out if isinstance(out, tuple | list) else [out]:
                largest = max(largest, value.numel() if isinstance(value, Tensor) else 0)
            return out

    with Watch():
        PatchContrastiveLoss(block_size=32)(x, torch.ones(2, 2, dtype=torch.bool)).backward()
    assert largest == x.numel()  # all similarities would be 300 times as many


def test_half_precision_is_computed_in_single() -> None:
    x, available = make()
    x = x.detach().bfloat16()
    loss = PatchContrastiveLoss()
    with torch.autocast('cpu', torch.bfloat16):
        assert loss(x, available) == loss(x.float(), available)


def test_bad_input_is_refused() -> None:
    x, available = torch.randn(2, 3, 4, 5), torch.ones(3, 2, dtype=torch.bool)
    loss = PatchContrastiveLoss()
    with pytest.raises(ValueError, match='1 modality'):
        loss(x[:1], available[:, :1])
    with pytest.raises(ValueError, match=r'available.*\(2, 2\).*\(B, M\).*\(B, N, M\)'):
        _seen(x, available[:2])
    with pytest.raises(ValueError, match=r'exclude.*\(3, 4\).*\(3, 3\)'):
        loss(x, available, torch.zeros(3, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r'temperature.*0\.01.*0\.02'):
        PatchContrastiveLoss(0.01)
    with pytest.raises(ValueError, match=r'exclude.*\(3, 4\).*\(3, 3\)'):
        PatchContrastiveLoss(negatives='place')(x, available, torch.zeros(3, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r'block_size.*0'):
        PatchContrastiveLoss(block_size=0)
    x[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match='1 available tokens'):
        loss(x, available)


def test_one_tile_will_do() -> None:
    x, available = torch.randn(2, 1, 4, 3), torch.ones(1, 2, dtype=torch.bool)
    assert PatchContrastiveLoss()(x, available) > 0
    assert PatchContrastiveLoss(negatives='place')(x, available) == 0
