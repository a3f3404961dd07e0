# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Half precision: what rounding would spoil is computed in single, and as much is learnt."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything
from torch import Tensor
from torchgeo.main import main

from torchgeo_omnisat.models.fusion import ModalityAttention
from torchgeo_omnisat.models.temporal import TemporalAttention
from torchgeo_omnisat.models.utae import collapse
from torchgeo_omnisat.tasks import OmniSatPretraining, OmniSatSegmentation
from torchgeo_omnisat.tasks.segmentation import divergence
from torchgeo_omnisat.transforms import Normalize

from .helpers import command, make_datamodule, make_trainer

HALF = 'bf16-mixed'


def autocast() -> torch.autocast:
    return torch.autocast('cpu', torch.bfloat16)


def test_dates_are_weighed_in_single() -> None:
    torch.manual_seed(0)
    attention = TemporalAttention(32, (32,), 64)
    x = 5 + torch.randn(2, 60, 9, 32).bfloat16()
    dates, seen = 17_900 + torch.arange(60).repeat(2, 1), torch.rand(2, 60, 9) < 0.7
    with autocast():
        found = attention(x, dates, seen)
    for half, single in zip(found, attention(x.float(), dates, seen), strict=True):
        assert torch.equal(half, single)


def test_many_dates_add_up() -> None:
    """In bfloat16 a sum of 300 dates would stop growing where a date is less than its last bit."""
    level = torch.ones(300, 16, 4, 4).bfloat16()
    with autocast():
        for index in (None, torch.arange(300)):
            seen = torch.ones(300, 1, 4, 4, dtype=torch.bool)
            out = collapse(level, torch.full((300, 16, 1, 1), 1 / 300), seen, index, torch.Size((1, 300)))
            torch.testing.assert_close(out, torch.ones(1, 16, 4, 4), rtol=1e-5, atol=0)


def test_modalities_are_weighed_in_single() -> None:
    torch.manual_seed(0)
    attention = ModalityAttention(('s2', 's1a', 'spot'), 32, 4)
    tokens, seen = torch.randn(2, 5, 3, 32).bfloat16(), torch.rand(2, 5, 3) < 0.7
    with autocast():
        found = attention.weigh(tokens, seen)[1]
    assert torch.equal(found, attention.weigh(tokens.float(), seen)[1])


def test_distillation_is_computed_in_single() -> None:
    student, teacher = torch.randn(2, 2, 5, 3, 3).bfloat16()
    counted = torch.ones(2, 3, 3, dtype=torch.bool)
    assert divergence(student, teacher, counted) == divergence(student.float(), teacher.float(), counted)


@pytest.mark.parametrize('kind', [OmniSatSegmentation, OmniSatPretraining])
def test_as_much_is_learnt(kind: Any, root: Path, tmp_path: Path) -> None:
    """From one seed, the loss of validation within 5 %; of one model, its outputs within 2 %, its loss within 0.5 %."""
    single, half = fit(kind, '32-true', root, tmp_path), fit(kind, HALF, root, tmp_path)
    loss, out = validate(single, '32-true', root, tmp_path)
    assert validate(half, HALF, root, tmp_path)[0] == pytest.approx(loss, rel=0.05)
    half_loss, half_out = validate(single, HALF, root, tmp_path)
    assert half_loss == pytest.approx(loss, rel=0.005)
    assert 0 < (half_out - out).norm() < 0.02 * out.norm()


def fit(kind: Any, precision: str, root: Path, folder: Path) -> Any:
    seed_everything(0, verbose=False)
    task = kind('omnisat_tiny', lr=1e-3)
    make_trainer(folder, precision=precision, max_steps=6, limit_val_batches=0).fit(task, make_datamodule(root))
    return task


def validate(task: Any, precision: str, root: Path, folder: Path) -> tuple[float, Tensor]:
    data, trainer = make_datamodule(root), make_trainer(folder, precision=precision)
    (scores,) = trainer.validate(task, data, verbose=False)
    samples = [data.val_dataset[index] for index in range(2)]
    batch = Normalize(data.modalities.values(), data.mean, data.std)(data.collate_fn(samples))
    with torch.no_grad(), trainer.precision_plugin.forward_context():
        out = task.eval()(batch)
    return scores['val_loss'], (out if isinstance(out, Tensor) else out.fused).float()


def test_probabilities_are_single(tmp_path: Path, root: Path) -> None:
    """NumPy, and so a map, has no bfloat16; and classes that differ by less than its step would be tied."""
    data = make_datamodule(root)
    task = OmniSatSegmentation('omnisat_tiny')
    trainer = make_trainer(tmp_path, precision=HALF, limit_predict_batches=1, max_steps=1, limit_val_batches=0)
    trainer.fit(task, data)
    (batch,) = trainer.predict(task, data) or ()
    assert batch['probabilities'].dtype == torch.float32
    torch.testing.assert_close(batch['probabilities'].sum(1), torch.ones(2, 32, 32))


@pytest.mark.parametrize('model', ['omnisat', 'omnisat_pretraining'])
def test_command_line(model: str, root: Path, tmp_path: Path) -> None:
    words = command(root, tmp_path, 'fit', '--model.backbone', 'omnisat_tiny')
    words[words.index('omnisat')] = model
    main([*words, '--trainer.precision', HALF, '--trainer.fast_dev_run', 'true'])
