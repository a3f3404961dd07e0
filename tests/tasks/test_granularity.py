# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.trainer.states import TrainerFn, TrainerState
from torch import nn

from torchgeo_omnisat.batch import collate
from torchgeo_omnisat.tasks import OmniSatPretraining, OmniSatSegmentation
from torchgeo_omnisat.tasks.distillation.teacher import Teacher

from .. import processes
from . import granularity_step
from .granularity_step import TERMS
from .helpers import MODALITIES, TOLD, make_datamodule, make_sample, make_trainer
from .test_pretraining import KNOWN, gradients

GRAINS = ('pixel', 'object', 'image')
NOTHING = {'tile_weight': 0.0, 'patch_weight': 0.0, 'reconstruction_weight': 0.0}


def make_task(**kwargs: Any) -> OmniSatPretraining:
    torch.manual_seed(0)
    return OmniSatPretraining(**KNOWN | {'exclude_within': None} | kwargs)


def make_batch(count: int = 4) -> dict[str, torch.Tensor]:
    samples = [make_sample(index, ('s2', 's1a', 'spot') if index else ('s2',)) for index in range(count)]
    for index, sample in enumerate(samples):
        del sample['mask'], sample['bounds']
        sample['coordinates'] = torch.tensor([2.0 + 10 * index, 48.0], dtype=torch.float64)
    return collate(samples, MODALITIES)


@pytest.mark.parametrize('hide', ['tokens', 'pixels'])
@pytest.mark.parametrize(
    'terms', [{'object_weight': 1.0}, *({'granularity': [grain]} for grain in GRAINS), TERMS], ids=lambda t: '+'.join(t)
)
def test_each_term_trains_backbone_and_heads(terms: dict[str, Any], hide: Any) -> None:
    task = make_task(**{**NOTHING, 'modality_dropout': 0.0, 'hide': hide, **terms})
    loss, _ = task.compute(make_batch(), 'train', 0)
    found = gradients(task, loss)
    parts = ['backbone.encoders.s2', 'backbone.encoders.spot', 'backbone.fusion', 'granularity']
    for part in parts:
        assert any(value.any() for name, value in found.items() if name.startswith(f'model.{part}')), part
    assert not any('teacher' in name for name in found)


def test_micro_batches_are_the_same_step() -> None:
    results = []
    for size in (None, 2):
        task = make_task(micro_batch_size=size, **TERMS)
        loss, _ = task.compute(make_batch(), 'train', 0)
        results.append((loss, gradients(task, loss)))
    torch.testing.assert_close(results[1][0], results[0][0])
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], gradient, rtol=1e-3, atol=1e-5, msg=name)


def test_absent_modality_has_no_influence() -> None:
    losses = []
    for value in (0.0, 1e3):
        batch = make_batch()
        batch['image_spot'][0] = value  # tile 0 has S2 only
        losses.append(make_task(**TERMS).compute(batch, 'train', 0)[0])
    assert losses[0] == losses[1]


def test_collapse_is_logged(tmp_path: Path) -> None:
    """Heads with a constant output are seen in spread, and in the loss of equal chances."""

    def fit(collapsed: bool) -> dict[str, float]:
        task = make_task(**NOTHING, **TERMS, lr=0.0)
        if collapsed:
            with torch.no_grad():
                heads = [*task.model.granularity.heads.values(), *task.model.teacher.heads.values()]
                for head in [*(head.mlp for head in heads), *task.model.granularity.object_heads]:
                    head.fc2.weight.zero_()
        trainer = make_trainer(tmp_path, max_steps=1, limit_val_batches=0)
        samples = [make_sample(index) for index in range(6)]
        trainer.fit(task, torch.utils.data.DataLoader(samples, 6, collate_fn=lambda s: collate(s, MODALITIES)))
        return {name: float(value) for name, value in trainer.callback_metrics.items()}

    fine, collapsed = fit(False), fit(True)
    for name in ('object', *(f'teacher_{grain}' for grain in GRAINS)):
        for source in (*MODALITIES, 'fused'):
            assert fine[f'train_{name}_spread/{source}'] > 0.05
            assert collapsed[f'train_{name}_spread/{source}'] < 1e-3
            assert fine[f'train_{name}_rank/{source}'] > 2
    for grain in GRAINS:
        assert 1 <= fine[f'train_teacher_{grain}_prototypes'] <= 8


def test_collapse_of_the_backbone_is_logged() -> None:
    """Heads can spread tokens that are almost equal, so the tokens are measured too."""
    found = {}
    for collapsed in (False, True):
        task, logged = make_task(**TERMS), {}
        task.log = lambda name, value, logged=logged, **_: logged.update({name: float(value)})
        if collapsed:
            with torch.no_grad():
                task.model.backbone.fusion.out_norm.weight.mul_(1e-3)
                task.model.backbone.fusion.out_norm.bias.fill_(1.0)
        task.compute(make_batch(), 'val', 0)
        found[collapsed] = logged
    assert found[False]['val_fused_spread/all'] > 0.05
    assert found[True]['val_fused_spread/all'] < 2e-3
    assert found[True]['val_teacher_pixel_spread/fused'] < found[False]['val_teacher_pixel_spread/fused']
    assert found[False]['val_fused_rank/all'] > 2


@pytest.mark.parametrize('precision', ['bf16-true', 'bf16-mixed'])
def test_half_precision(precision: Any, root: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_steps=2, precision=precision, limit_val_batches=1)
    trainer.fit(OmniSatPretraining('omnisat_tiny', **TERMS), make_datamodule(root))
    assert trainer.callback_metrics['train_loss'].isfinite()
    assert trainer.callback_metrics['train_teacher_object_loss'].isfinite()


def test_average_of_the_weights_has_the_prototypes(root: Path, tmp_path: Path) -> None:
    task = OmniSatPretraining('omnisat_tiny', ema=0.9, **TERMS)
    trainer = make_trainer(tmp_path, max_steps=3, limit_val_batches=0, enable_checkpointing=True)
    trainer.fit(task, make_datamodule(root))
    trainer.save_checkpoint(tmp_path / 'last.ckpt')
    saved = torch.load(tmp_path / 'last.ckpt', weights_only=True)
    average, current = saved['state_dict'], saved['current_model_state']
    names = [name for name in average if '.bank.' in name and 'teacher' not in name]
    assert average['model.backbone.context.bank.updates'].max() == 3
    assert len(names) == 4
    assert all(torch.equal(average[name], current[name]) for name in names)


@pytest.mark.parametrize('precision', ['bf16-true', '16-true'])
def test_average_of_the_weights_needs_resolution(precision: str) -> None:
    task = OmniSatPretraining('omnisat_tiny', ema=0.999)
    trainer: Any = SimpleNamespace(precision=precision, state=TrainerState(fn=TrainerFn.FITTING), callbacks=[])
    task._trainer = trainer
    with pytest.raises(ValueError, match=f'ema is 0.999 .* {precision}'):
        task.configure_callbacks()
    trainer.state.fn = TrainerFn.TESTING
    task.configure_callbacks()


class TestTeacher:
    @pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float32])
    def test_moves_in_half_precision(self, dtype: torch.dtype) -> None:
        backbone, heads = nn.Linear(8, 8), nn.ModuleDict()
        teacher: Any = Teacher(backbone, heads, 0.99).to(dtype)  # type: ignore[arg-type]
        before = teacher.backbone.weight.float()
        backbone.weight.data.mul_(1.05)
        backbone.to(dtype)
        for step in range(200):
            teacher.update(backbone, heads)
            if step == 100:
                teacher.load_state_dict(teacher.state_dict())
        expected = torch.lerp(backbone.weight.float(), before, 0.99**200)
        torch.testing.assert_close(teacher.backbone.weight.float(), expected, rtol=8e-3, atol=0)

    def test_is_a_moving_average_outside_of_the_optimiser(self, root: Path, tmp_path: Path) -> None:
        seed_everything(0, verbose=False)
        task = OmniSatPretraining('omnisat_tiny', granularity=['image'], teacher_decay=0.75)
        states: list[dict[str, torch.Tensor]] = []

        class Watch(ModelCheckpoint):
            def on_train_batch_start(self, trainer: Any, module: Any, *_: Any) -> None:
                states.append({name: value.clone() for name, value in module.model.state_dict().items()})

        trainer = make_trainer(tmp_path, max_steps=2, enable_checkpointing=True, callbacks=[Watch(tmp_path)])
        trainer.fit(task, make_datamodule(root))
        states.append(task.model.state_dict())
        prefix, moved = 'granularity.teacher.', 0
        for before, after in pairwise(states):
            for name in (name for name in before if name.startswith(prefix)):
                student = name.removeprefix(prefix)
                student = f'granularity.{student}' if student.startswith('heads') else student
                torch.testing.assert_close(after[name], 0.75 * before[name] + 0.25 * after[student])
                moved += int(not torch.equal(after[name], before[name]))
        assert moved > 50
        optimised = {p for group in trainer.optimizers[0].param_groups for p in group['params']}
        assert not optimised & set(task.model.teacher.parameters())

    def test_is_evaluated_while_the_student_trains(self) -> None:
        task, modes = make_task(granularity=['image']).train(), []
        fusion = task.model.teacher.backbone.fusion
        fusion.register_forward_hook(lambda module, *_: modes.append(module.training))
        task.compute(make_batch(), 'train', 0)
        assert modes == [False]
        assert fusion.training

    def test_student_is_handed_over(self, root: Path, tmp_path: Path) -> None:
        terms = {**TERMS, 'teacher_decay': 0.999}
        task = OmniSatPretraining('omnisat_tiny', lr=0.1, **terms)
        trainer = make_trainer(tmp_path)
        trainer.fit(task, make_datamodule(root))
        trainer.save_checkpoint(tmp_path / 'last.ckpt')
        told = TOLD | {'modalities': task.modalities, 'weights': str(tmp_path / 'last.ckpt')}
        with_context = OmniSatSegmentation(**told, backbone_args=terms['backbone_args']).model.backbone.state_dict()
        without = OmniSatSegmentation(**told).model.backbone.state_dict()
        student, teacher = task.model.backbone.state_dict(), task.model.teacher.backbone.state_dict()
        assert with_context['context.bank.updates'].any()
        for name, value in student.items():
            assert torch.equal(with_context[name], value), name
            assert name.startswith('context') or torch.equal(without[name], value), name
        assert any(not torch.equal(teacher[name], value) for name, value in student.items())
        loaded = OmniSatPretraining.load_from_checkpoint(tmp_path / 'last.ckpt')
        assert all(torch.equal(value, task.state_dict()[name]) for name, value in loaded.state_dict().items())


@pytest.mark.slow
def test_resumed_exactly(root: Path, tmp_path: Path) -> None:
    def fit(resume: Path | None) -> dict[str, torch.Tensor]:
        seed_everything(3 if resume is None else 100, verbose=False)
        task = OmniSatPretraining('omnisat_tiny', **TERMS)
        saver = ModelCheckpoint(tmp_path, '{step}', save_top_k=-1, every_n_train_steps=2)
        trainer = make_trainer(
            tmp_path, max_steps=4, enable_checkpointing=True, callbacks=[saver], limit_val_batches=0, logger=False
        )
        trainer.fit(task, make_datamodule(root), ckpt_path=resume, weights_only=True)
        return {name: value.clone() for name, value in task.state_dict().items()}

    whole, resumed = fit(None), fit(tmp_path / 'step=2.ckpt')
    assert any('teacher' in name for name in whole)
    for name, value in whole.items():
        assert torch.equal(resumed[name], value), name


@pytest.mark.slow
@pytest.mark.parametrize('case', list(granularity_step.CASES))
def test_two_processes_equal_one(folders: list[Path], case: str) -> None:
    one, *two = (
        torch.load(folder / f'{case}-{rank}.pt', weights_only=True)
        for folder, rank in ((folders[0], 0), (folders[1], 0), (folders[1], 1))
    )
    assert one['state']['model.backbone.context.bank.updates'].sum() >= 2
    for rank, process in enumerate(two):
        for step, whole in enumerate(one['assignments']):
            torch.testing.assert_close(process['assignments'][step], whole[3 * rank : 3 * rank + 3])
        for name, value in one['state'].items():
            if 'bank' in name or 'teacher' in name:
                torch.testing.assert_close(process['state'][name], value, rtol=1e-5, atol=1e-5, msg=name)
        assert set(process['metrics']) == set(one['metrics'])
        for name, value in one['metrics'].items():
            torch.testing.assert_close(process['metrics'][name], value, rtol=1e-4, atol=1e-4, msg=name)
        for name, gradient in one['gradients'].items():
            difference: Any = (process['gradients'][name] - gradient).norm()
            assert difference <= 1e-5 * max(1.0, float(gradient.norm())), name


@pytest.fixture(scope='module')
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """What one process and what two have written."""
    found = [tmp_path_factory.mktemp('one'), tmp_path_factory.mktemp('two')]
    for count, folder in enumerate(found, 1):
        processes.succeed(folder, granularity_step.main, count, folder)
    return found


@pytest.mark.parametrize(
    ('terms', 'named'),
    [
        ({'granularity': ['tile']}, 'tile'),
        ({'granularity': ['image'], 'teacher_decay': 1.0}, 'teacher_decay is 1.0'),
        ({'object_weight': -1.0}, '-1.0'),
        ({'object_clusters': 1}, 'object_clusters is 1'),
        ({'backbone_args': {'context_degrees': 10.0}, 'reconstruction_weight': 0.0}, 'context_degrees'),
        ({'backbone_args': {'context_degrees': 7.0}}, 'context_degrees is 7.0'),
        ({'backbone_args': {'context_degrees': 1.0, 'context_prototypes': 4096}}, 'context_prototypes=4096'),
    ],
)
def test_refuses(terms: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make_task(**terms)


def test_teacher_refuses_shards() -> None:
    task = make_task(granularity=['image'])
    trainer: Any = SimpleNamespace(strategy=FSDPStrategy.__new__(FSDPStrategy))
    task._trainer = trainer
    with pytest.raises(ValueError, match='FSDPStrategy'):
        task.configure_model()
