# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

import pytest
import torch

from torchgeo_omnisat.losses import MultiLabelLoss


def make(count: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(count, 3, generator=generator, requires_grad=True)
    return logits, torch.randint(0, 2, (count, 3), generator=generator).float()


def test_bce_matches_naive_loop() -> None:
    logits, label = make()
    each = [
        -torch.log(p if y else 1 - p) for p, y in zip(logits.sigmoid().flatten(), label.flatten().tolist(), strict=True)
    ]
    torch.testing.assert_close(MultiLabelLoss('bce')(logits, label), torch.stack(each).mean())


def test_asymmetric_matches_naive_loop() -> None:
    logits, label = make()
    each = []
    for p, y in zip(logits.sigmoid().flatten(), label.flatten().tolist(), strict=True):
        denied = (p - 0.05).clamp(min=0)
        each.append(-(1 - p) * torch.log(p) if y else -(denied**4) * torch.log(1 - denied))
    torch.testing.assert_close(MultiLabelLoss()(logits, label), torch.stack(each).mean())


@pytest.mark.parametrize('kind', ['asymmetric', 'bce'])
def test_size_of_the_batch_does_not_matter(kind: str) -> None:
    logits, label = make()
    loss = MultiLabelLoss(kind)
    torch.testing.assert_close(loss(logits, label), loss(logits.repeat(3, 1), label.repeat(3, 1)))


@pytest.mark.parametrize('kind', ['asymmetric', 'bce'])
def test_gradient_goes_the_right_way_and_is_finite(kind: str) -> None:
    logits, label = torch.tensor([[60.0, -60.0, 0.0, 0.0]], requires_grad=True), torch.tensor([[0.0, 1.0, 1.0, 0.0]])
    MultiLabelLoss(kind)(logits, label).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad[0, 2] < 0 < logits.grad[0, 3]


def test_half_precision_is_computed_in_single() -> None:
    logits, label = make()
    assert MultiLabelLoss()(logits.half(), label).dtype == torch.float32


def test_unknown() -> None:
    with pytest.raises(ValueError, match=r"loss.*'ce'"):
        MultiLabelLoss('ce')


def test_labels_are_0_or_1() -> None:
    with pytest.raises(ValueError, match=r'label is 2\.0, expected 0 or 1'):
        MultiLabelLoss()(torch.zeros(1, 3), torch.tensor([[0.0, 1.0, 2.0]]))


@pytest.mark.parametrize('kind', ['asymmetric', 'bce'])
@pytest.mark.parametrize('dtype', [torch.int64, torch.bool, torch.float64])
def test_type_of_the_label_does_not_matter(kind: str, dtype: torch.dtype) -> None:
    logits, label = make()
    loss = MultiLabelLoss(kind)
    torch.testing.assert_close(loss(logits, label.to(dtype)), loss(logits, label))


@pytest.mark.parametrize('kind', ['asymmetric', 'bce'])
def test_one_label_is_not_repeated_for_all_classes(kind: str) -> None:
    with pytest.raises(ValueError, match=r'label has shape \(4, 1\), .* \(4, 3\)'):
        MultiLabelLoss.forward.__wrapped__(MultiLabelLoss(kind), make()[0], torch.ones(4, 1))
