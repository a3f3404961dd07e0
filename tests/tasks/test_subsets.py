# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Learning from all modalities and from some of them, encoded once."""

from typing import Any

import pytest
import torch
from torch import Tensor

from torchgeo_omnisat.batch import available, collate, drop
from torchgeo_omnisat.tasks import OmniSatSegmentation
from torchgeo_omnisat.tasks.segmentation import divergence

from .helpers import MODALITIES, TOLD, make_batch, make_sample

ROUNDING: dict[str, Any] = {'rtol': 1e-4, 'atol': 1e-6}


def make_task(seed: int = 0, **told: Any) -> OmniSatSegmentation:
    torch.manual_seed(seed)
    return OmniSatSegmentation(**TOLD | {'expert_weight': 0.0} | told)


def gradients(task: OmniSatSegmentation, loss: Tensor) -> dict[str, Tensor]:
    task.zero_grad()
    loss.backward()
    return {k: torch.zeros_like(p) if p.grad is None else p.grad.clone() for k, p in task.named_parameters()}


def mixed_batch() -> dict[str, Tensor]:
    """Samples that have all modalities, two of them, and one."""
    samples = [make_sample(0), make_sample(1), make_sample(2, ('s2', 's1a')), make_sample(3, ('spot',))]
    return collate(samples, MODALITIES)


@pytest.mark.parametrize('backbone', ['omnisat_tiny', 'late_fusion'])
@pytest.mark.parametrize(('weight', 'distill'), [(1.0, 0.0), (0.5, 0.3), (0.0, 1.0)])
def test_loss_and_gradient_are_those_of_two_passes(backbone: str, weight: float, distill: float) -> None:
    small = {'widths': [16, 32], 'image_widths': [16, 16, 32, 32]}
    told = {'backbone': backbone, 'backbone_args': small, 'modality_dropout': 0.6}
    task, batch = make_task(subset_weight=weight, distill=distill, **told), mixed_batch()
    torch.manual_seed(4)
    logits, loss = task.learn(batch)
    found = gradients(task, loss)
    torch.manual_seed(4)
    less = task.dropout(batch)
    assert not torch.equal(available(less, MODALITIES), available(batch, MODALITIES))
    full, part = task.model(batch), task.model(less)
    naive = (task.criterion(full, batch['mask']) + weight * task.criterion(part, batch['mask'])) / (1 + weight)
    if distill:
        log_p, log_q = part[:, :4].log_softmax(1), full.detach()[:, :4].log_softmax(1)
        of_pixels = (log_q.exp() * (log_q - log_p)).sum(1)
        naive = naive + distill * of_pixels[batch['mask'] != 4].mean()
    torch.testing.assert_close(logits, full)
    torch.testing.assert_close(loss, naive)
    for key, gradient in gradients(task, naive).items():
        torch.testing.assert_close(found[key], gradient, **ROUNDING, msg=lambda text, key=key: f'{key}: {text}')


def test_off_it_is_as_before() -> None:
    """The model sees what dropout leaves and nothing else, drawn as ever."""
    task, batch = make_task(modality_dropout=0.6, subset_weight=0.0), mixed_batch()
    torch.manual_seed(4)
    logits, loss = task.learn(batch)
    after = torch.rand(1)
    torch.manual_seed(4)
    expected = task(task.dropout(batch))
    assert torch.equal(after, torch.rand(1))
    assert torch.equal(logits, expected)
    assert torch.equal(loss, task.criterion(expected, batch['mask']))


def test_it_changes_what_is_learnt() -> None:
    grown = []
    for told in ({'subset_weight': 0.0}, {}, {'subset_weight': 0.0, 'distill': 1.0}, {'subset_weight': 2.0}):
        task = make_task(modality_dropout=0.6, **told)
        torch.manual_seed(4)
        grown.append(torch.cat([g.flatten() for g in gradients(task, task.learn(mixed_batch())[1]).values()]))
    assert not any(torch.allclose(one, other) for i, one in enumerate(grown) for other in grown[:i])


@pytest.mark.parametrize(('told', 'times'), [({}, 2), ({'modality_dropout': 0.0}, 1), ({'names': ('s2',)}, 1)])
def test_decoded_twice_only_if_modalities_can_be_dropped(
    told: dict[str, Any], times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = told.pop('names', tuple(MODALITIES))
    chosen = {name: MODALITIES[name] for name in names}
    task, decoded = make_task(modalities=chosen, **told), []
    decode = task.model.decode

    def count(*args: Any) -> Tensor:
        decoded.append(args)
        return decode(*args)

    monkeypatch.setattr(task.model, 'decode', count)
    task.learn(collate([make_sample(0, names), make_sample(1, names)], chosen))
    assert len(decoded) == times


def test_hidden_modalities_have_no_influence() -> None:
    """As if they had never been there, sample by sample; and as by ``restrict`` where all samples lose the same."""
    model, batch = make_task().model.eval(), make_batch()
    with torch.no_grad():
        out = model.backbone(batch)
        kept = torch.tensor([[True, False, True], [False, True, False], [True, True, True]])
        found = model.backbone.hide(out, kept)
        for row in range(3):
            gone = [m for m, held in zip(MODALITIES.values(), kept[row], strict=True) if not held]
            alone = model.backbone(drop({key: value[[row]] for key, value in batch.items()}, gone))
            torch.testing.assert_close(found.fused[[row]], alone.fused, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(model.decode(found)[[row]], model.decode(alone), rtol=1e-4, atol=1e-5)
            for name, token in found.tokens.items():
                wanted = alone.tokens.get(name, torch.zeros_like(token[[row]]))
                torch.testing.assert_close(token[[row]], wanted, rtol=1e-4, atol=1e-5)
        assert torch.equal(found.available, kept)
        same = model.backbone.hide(out, torch.tensor([[True, False, False]] * 3))
        torch.testing.assert_close(same.fused, model.backbone.restrict(out, ['s2']).fused)


def test_divergence() -> None:
    student, teacher = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(2, 3, 4, 4, requires_grad=True)
    counted = torch.rand(2, 4, 4) < 0.5
    divergence(student, teacher, counted).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert (student.grad.abs().sum(1) > 0).equal(counted)
    assert divergence(student, student, counted).item() == pytest.approx(0, abs=1e-6)
    assert divergence(student, teacher, counted & False).item() == 0


@pytest.mark.parametrize('name', ['subset_weight', 'distill'])
def test_nonsense_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f'{name} .*-1'):
        make_task(**{name: -1})
