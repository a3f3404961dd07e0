# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Other precisions: what rounding would spoil is computed in single, and as much is learnt."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor
from torchgeo.main import main

from torchgeo_omnisat.evaluation import ProbeCallback
from torchgeo_omnisat.models.encoders.series.temporal import AnnualDates, SinusoidDates, TemporalAttention
from torchgeo_omnisat.models.encoders.series.utae import collapse
from torchgeo_omnisat.models.fusion import ModalityAttention
from torchgeo_omnisat.tasks import OmniSatClassification, OmniSatPretraining, OmniSatSegmentation
from torchgeo_omnisat.tasks.segmentation import divergence
from torchgeo_omnisat.tasks.views import draw_views
from torchgeo_omnisat.transforms import Normalize

from .helpers import TOLD, command, make_batch, make_datamodule, make_trainer

HALF = 'bf16-mixed'
NARROW = {'widths': [16, 16], 'image_widths': [8, 8, 16, 16]}
#: Precisions in which parameters are kept too.
TRUE = {'bf16-true': torch.bfloat16, '16-true': torch.float16, '64-true': torch.float64}


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
            seen, valid = torch.ones(300, 1, 4, 4, dtype=torch.bool), torch.ones(1, 300, dtype=torch.bool)
            out = collapse(level, torch.full((300, 16, 1, 1), 1 / 300), seen, index, valid)
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


@pytest.mark.slow
@pytest.mark.parametrize('kind', [OmniSatSegmentation, OmniSatPretraining])
def test_as_much_is_learnt(kind: Any, root: Path, tmp_path: Path) -> None:
    """From one seed, the loss of validation within 5 %; of one model, its outputs within 4 %, its loss within 0.5 %."""
    single, half = fit(kind, '32-true', root, tmp_path), fit(kind, HALF, root, tmp_path)
    loss, out = validate(single, '32-true', root, tmp_path)
    assert validate(half, HALF, root, tmp_path)[0] == pytest.approx(loss, rel=0.05)
    half_loss, half_out = validate(single, HALF, root, tmp_path)
    assert half_loss == pytest.approx(loss, rel=0.005)
    assert 0 < (half_out - out).norm() < 0.04 * out.norm()


def fit(kind: Any, precision: str, root: Path, folder: Path) -> Any:
    seed_everything(0, verbose=False)
    # From equal tokens the contrastive losses start so steep that seeds of pre-training differ by 17 % at 1e-3.
    task = kind('omnisat_tiny', lr=1e-4 if kind is OmniSatPretraining else 1e-3)
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


@pytest.mark.parametrize(
    'precision', ['bf16-true', *(pytest.param(p, marks=pytest.mark.slow) for p in ('16-true', '64-true'))]
)
@pytest.mark.parametrize('kind', [OmniSatSegmentation, OmniSatClassification, OmniSatPretraining])
def test_whole_model_in_another_precision(kind: Any, precision: str, root: Path, tmp_path: Path) -> None:
    """Fit, validate, test and predict; georeference, dates and raw images come to each step as they were read."""
    data, steps = make_datamodule(root.with_name(f'{root.name}-small'), size=16), []
    task = kind('omnisat_tiny', backbone_args=NARROW)
    read = {}
    for split in ('train', 'val', 'test'):
        dataset = data.make_dataset(split)
        read |= {tuple(s['bounds'][:6].tolist()): s for s in (dataset[i] for i in range(len(dataset)))}
    for stage in ('training', 'validation', 'test', 'predict'):
        watch(task, f'{stage}_step', steps)
    probe = ProbeCallback(max_tiles=4)
    few = {'limit_val_batches': 1, 'limit_test_batches': 1, 'limit_predict_batches': 1, 'callbacks': [probe]}
    trainer = make_trainer(tmp_path, precision=precision, max_steps=2, max_epochs=1, limit_train_batches=2, **few)
    plugin = trainer.precision_plugin
    before = plugin.convert_input(torch.ones(1)).dtype
    trainer.fit(task, data)
    assert trainer.callback_metrics['train_loss'].isfinite()
    assert {p.dtype for p in task.parameters()} == {TRUE[precision]}
    trainer.validate(task, data, verbose=False)
    trainer.test(task, data, verbose=False)
    (found,) = trainer.predict(task, data) or ()
    assert plugin.convert_input(torch.ones(1)).dtype == before == TRUE[precision]
    assert [name for name, _ in steps] == ['training_step'] * 2 + ['validation_step'] * 2 + [
        'test_step',
        'predict_step',
    ]
    for _, batch in steps:
        for row, bounds in enumerate(batch['bounds']):
            sample = read[tuple(bounds[:6].tolist())]
            for key in ('bounds', 'dates_s2', 'transform'):
                if key in sample:
                    value = batch[key][row][: len(sample[key])]
                    assert (value.dtype, value.tolist()) == (sample[key].dtype, sample[key].tolist())
    wanted = torch.float64 if precision == '64-true' else torch.float32
    values = found.get('probabilities', found.get('fused'))
    assert values.isfinite().all()
    assert values.dtype == (torch.float32 if kind is OmniSatClassification else wanted)
    assert torch.equal(found['bounds'], steps[-1][1]['bounds'])


def watch(task: Any, name: str, steps: list[Any]) -> None:
    """Keep what a step is given."""
    step = getattr(task, name)

    def watched(batch: Any, *args: Any) -> Any:
        steps.append((name, batch))
        return step(batch, *args)

    setattr(task, name, watched)


@pytest.mark.parametrize('dtype', TRUE.values())
def test_no_gradient_takes_a_step_beyond_the_learning_rate(dtype: torch.dtype) -> None:
    """The square of a small gradient is 0 in float16, and Adam would divide by epsilon alone."""
    told = {**TOLD, 'backbone_args': NARROW, 'lr': 0.01, 'weight_decay': 0.0, 'scheduler': 'plateau'}
    task: Any = OmniSatSegmentation(**told).to(dtype)
    setup = task.configure_optimizers()
    for gradient in (1e-6, 1e-5, 1e-4, 1e-3, 3e-3, 7e-3, 0.02, 1.0):
        for p in task.parameters():
            p.data.zero_()
            p.grad = torch.full_like(p, gradient)
        setup['optimizer'].state.clear()
        setup['optimizer'].step()
        assert max(p.abs().max().item() for p in task.parameters()) < 1.1 * 0.01, gradient


@pytest.mark.parametrize('precision', TRUE)
def test_images_are_normalised_before_they_are_cast(precision: str, root: Path, tmp_path: Path) -> None:
    """Digital numbers of 10000 have 6 to 8 bits left in half precision, a tenth of a standard deviation."""
    data, given = make_datamodule(root.with_name(f'{root.name}-small'), size=16), []
    task = OmniSatSegmentation('omnisat_tiny', backbone_args=NARROW)
    trainer = make_trainer(tmp_path, precision=precision, max_steps=1, limit_val_batches=0, limit_predict_batches=1)
    trainer.fit(task, data)
    task.model.backbone.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    trainer.predict(task, data)
    samples = [data.predict_dataset[index] for index in range(2)]
    expected = Normalize(data.modalities.values(), data.mean, data.std)(data.collate_fn(samples))
    for key in ('image_s2', 'image_s1a'):
        assert expected[key].dtype == torch.float32
        assert torch.equal(given[0][key], expected[key].to(TRUE[precision]))


@pytest.mark.parametrize('dtype', TRUE.values())
def test_dates_are_encoded_in_single(dtype: torch.dtype) -> None:
    """Half precision would round day 17 903 to a whole quarter."""
    torch.manual_seed(0)
    dates = 17_900 + torch.tensor([[0, 3, 6, 40]])
    valid = torch.ones_like(dates, dtype=torch.bool)
    published = SinusoidDates(32, 4)
    assert torch.equal(published.to(dtype)(dates, valid), SinusoidDates(32, 4)(dates, valid))
    annual = AnnualDates(8)
    expected = annual(dates, valid)
    torch.testing.assert_close(annual.to(dtype)(dates, valid).float(), expected, rtol=0, atol=0.02)


@pytest.mark.parametrize('dtype', TRUE.values())
def test_precision_changes_no_draw(dtype: torch.dtype) -> None:
    """What is hidden and dropped is the same, and so is what is read, whatever PyTorch makes by default."""
    dropout = OmniSatSegmentation(**TOLD, modality_dropout=0.5).dropout
    found = []
    for default in (torch.float32, dtype):
        torch.set_default_dtype(default)
        try:
            torch.manual_seed(0)
            batch = make_batch()
            draws = draw_views((1, 2), [3], 3, (4, 4), 0.3, torch.device('cpu'), (8, 8), 5)
            found.append((dropout(batch)['valid_s2'], *draws, batch['image_s2']))
        finally:
            torch.set_default_dtype(torch.float32)
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.dtype in (torch.bool, torch.float32, torch.int64)
        if ours.shape != batch['image_s2'].shape:
            assert torch.equal(ours, theirs)


def test_statistics_are_not_rounded() -> None:
    """An image in half precision is normalised in single."""
    modality = TOLD['modalities']['spot']
    normalize = Normalize([modality], {'spot': [1003.0]}, {'spot': [500.0]})
    image = torch.full((1, 1, 2, 2), 1000.0).bfloat16()
    out = normalize({'image_spot': image, 'valid_spot': torch.ones(1, 1, dtype=torch.bool)})['image_spot']
    assert torch.equal(out, torch.full((1, 1, 2, 2), -0.006).bfloat16())


@pytest.mark.parametrize('kind', [OmniSatSegmentation, OmniSatPretraining])
def test_float16_with_a_gradient_scaler(kind: Any, root: Path, tmp_path: Path) -> None:
    """Lightning gives the CPU bfloat16 for 16-mixed, so its plugin is passed. The losses are those in single."""
    losses = {}
    for precision in ('32-true', '16-mixed'):
        seed_everything(0, verbose=False)
        data, steps = make_datamodule(root.with_name(f'{root.name}-small'), size=16), []
        task = kind('omnisat_tiny', backbone_args=NARROW, lr=1e-4)
        plugins = [MixedPrecision('16-mixed', 'cpu', torch.amp.GradScaler('cpu', init_scale=2.0**10))]
        settings = {'plugins': plugins} if precision == '16-mixed' else {}
        watch(task, 'training_step', steps)
        trainer = make_trainer(tmp_path, max_steps=3, limit_val_batches=1, **settings)
        trainer.fit(task, data)
        assert trainer.precision_plugin.precision == precision
        assert {p.dtype for p in task.parameters()} == {torch.float32}
        assert {batch['bounds'].dtype for _, batch in steps} == {torch.float64}
        losses[precision] = trainer.callback_metrics['val_loss'].item()
    assert losses['16-mixed'] == pytest.approx(losses['32-true'], rel=0.01)
    assert losses['16-mixed'] != losses['32-true']
