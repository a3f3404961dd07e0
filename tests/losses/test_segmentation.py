# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

import pytest
import torch
from torch import Tensor

from torchgeo_omnisat.losses import CrossEntropyDice

IGNORED = 3
WEIGHTS = (1.0, 2.0, 0.5, 1.0, 4.0)


def naive(logits: Tensor, mask: Tensor, ignore_index: int | None, weights: Tensor, dice_weight: float) -> Tensor:
    """Pixel by pixel, class by class."""
    probabilities = logits.softmax(1)
    pixels = [(b, i, j) for b in range(len(mask)) for i in range(mask.shape[1]) for j in range(mask.shape[2])]
    pixels = [(b, i, j) for b, i, j in pixels if mask[b, i, j] != ignore_index]
    losses = [-weights[mask[p]] * probabilities[p[0], mask[p], p[1], p[2]].log() for p in pixels]
    entropy = torch.stack(losses).sum() / sum(weights[mask[p]] for p in pixels)
    dices, total = [], torch.tensor(0.0)
    for k in range(logits.shape[1]):
        if k == ignore_index:
            continue
        total = total + weights[k]
        expected = sum(float(mask[p] == k) for p in pixels)
        if expected:
            given = sum(probabilities[b, k, i, j] for b, i, j in pixels)
            both = sum(probabilities[b, k, i, j] for b, i, j in pixels if mask[b, i, j] == k)
            dices.append(weights[k] * (1 - 2 * both / (given + expected)))
    return entropy + dice_weight * torch.stack(dices).sum() / total


@pytest.mark.parametrize('ignore_index', [None, IGNORED, 255])
@pytest.mark.parametrize('weights', [None, WEIGHTS])
@pytest.mark.parametrize('dice_weight', [0.0, 1.0, 0.3])
def test_loss_matches_naive_loop(
    ignore_index: int | None, weights: tuple[float, ...] | None, dice_weight: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 4, 3, generator=generator).requires_grad_()
    mask = torch.randint(0, 4, (2, 4, 3), generator=generator)  # no pixel has class 4
    if ignore_index == 255:
        mask[0, :2] = 255
    loss = CrossEntropyDice(ignore_index, weights, dice_weight)(logits, mask)
    expected = naive(logits, mask, ignore_index, torch.tensor(weights or [1.0] * 5), dice_weight)
    torch.testing.assert_close(loss, expected)
    gradients = [torch.autograd.grad(value, logits)[0] for value in (loss, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize('weights', [None, WEIGHTS])
def test_nothing_labelled_gives_nothing_to_learn(weights: tuple[float, ...] | None) -> None:
    logits = torch.randn(2, 5, 4, 4).requires_grad_()
    loss = CrossEntropyDice(IGNORED, weights)(logits, torch.full((2, 4, 4), IGNORED))
    loss.backward()
    assert loss == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_ignored_pixels_are_invisible() -> None:
    logits = torch.randn(1, 5, 4, 4)
    mask = torch.randint(0, 3, (1, 4, 4))
    mask[:, 0] = IGNORED
    other = logits.clone()
    other[:, :, 0] = torch.randn(5, 4)
    loss = CrossEntropyDice(IGNORED)
    torch.testing.assert_close(loss(other, mask), loss(logits, mask))


def test_half_precision_does_not_overflow() -> None:
    logits = torch.full((1, 2, 256, 256), 8.0, dtype=torch.float16)
    mask = torch.zeros(1, 256, 256, dtype=torch.int64)
    loss = CrossEntropyDice()(logits, mask)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, CrossEntropyDice()(logits.float(), mask))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float64])
def test_weights_in_another_precision(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, mask = torch.randn(2, 5, 4, 4, generator=generator), torch.randint(0, 5, (2, 4, 4), generator=generator)
    expected = CrossEntropyDice(class_weights=WEIGHTS)(logits.to(dtype), mask)
    torch.testing.assert_close(CrossEntropyDice(class_weights=WEIGHTS).to(dtype)(logits.to(dtype), mask), expected)


@pytest.mark.parametrize(('classes', 'weights'), [(1, None), (2, (1.0, 0.0))])
def test_only_the_ignored_class_has_a_weight(classes: int, weights: tuple[float, ...] | None) -> None:
    logits = torch.randn(1, classes, 4, 4).requires_grad_()
    loss = CrossEntropyDice(0, weights)(logits, torch.full((1, 4, 4), classes - 1))
    loss.backward()
    assert loss == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_weights_are_in_no_checkpoint() -> None:
    assert not CrossEntropyDice(class_weights=WEIGHTS).state_dict()


@pytest.mark.parametrize(
    ('loss', 'size', 'label', 'message'),
    [
        (CrossEntropyDice(), (2, 4, 4), 7, r'\[7\].* 0 to 4$'),
        (CrossEntropyDice(IGNORED), (2, 4, 4), -1, r'\[-1\].* 0 to 4 .*3$'),
        (CrossEntropyDice(), (2, 8, 8), 0, r'\(2, 8, 8\), expected \(2, 4, 4\)'),
        (
            CrossEntropyDice(class_weights=(1.0, 2.0)),
            (2, 4, 4),
            0,
            'class_weights has 2 .* 5 classes',
        ),
    ],
)
def test_bad_input_is_refused(loss: CrossEntropyDice, size: tuple[int, ...], label: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CrossEntropyDice.forward.__wrapped__(loss, torch.randn(2, 5, 4, 4), torch.full(size, label))


@pytest.mark.parametrize('weights', [(1.0, -1.0), (0.0, 0.0), (1.0, float('nan'))])
def test_bad_weights_are_refused(weights: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match='class_weights'):
        CrossEntropyDice(class_weights=weights)


def test_bad_dice_weight_is_refused() -> None:
    with pytest.raises(ValueError, match=r'dice_weight.*-1'):
        CrossEntropyDice(dice_weight=-1.0)
