# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Exported programs give what the model gives, from raw images."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch

from torchgeo_omnisat.__main__ import main
from torchgeo_omnisat.tasks import (
    OmniSatClassification,
    OmniSatPretraining,
    OmniSatRegression,
    OmniSatSegmentation,
    Predictor,
    SupervisedTask,
)  # fmt: skip
from torchgeo_omnisat.tasks.deployment import export
from torchgeo_omnisat.tasks.deployment.export import (
    ENDINGS,
    RawModel,
    example_batch,
    export_model,
    largest_difference,
    rounding_error,
)

from .helpers import MODALITIES, TOLD

MEAN = {name: [100.0 + k for k in range(len(m.bands))] for name, m in MODALITIES.items()}
STD = {name: [20.0 + k for k in range(len(m.bands))] for name, m in MODALITIES.items()}
SMALL: dict[str, Any] = {
    'backbone': 'omnisat_tiny',
    'backbone_args': {'embed_dim': 16, 'widths': (16, 16), 'image_widths': (8, 8, 16, 16)},
    'patch_size': 40.0,
    'mean': MEAN,
    'std': STD,
}
S2 = {'s2': MODALITIES['s2']}


@pytest.fixture(autouse=True)
def _shapes_are_not_checked() -> Iterator[None]:
    """Checks of jaxtyping are not traced; users have none."""
    jaxtyping.config.update('jaxtyping_disable', True)
    yield
    jaxtyping.config.update('jaxtyping_disable', False)


def save(task: Any, folder: Path) -> Path:
    content = {'state_dict': task.state_dict(), 'hyper_parameters': dict(task.hparams)}
    torch.save(content | {'pytorch-lightning_version': '2.6.0'}, folder / 'a.ckpt')
    return folder / 'a.ckpt'


def segmentation(modalities: Any, **arguments: Any) -> OmniSatSegmentation:
    torch.manual_seed(0)
    told = {'modalities': modalities, 'backbone_args': SMALL['backbone_args'] | arguments}
    task = OmniSatSegmentation(**(TOLD | SMALL | told))
    for parameter in task.parameters():  # no residual or head that is zero at first
        parameter.data += 0.02 * torch.randn_like(parameter)
    return task


def tile(model: RawModel, seed: int = 1) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Images and dates for a Predictor, and their batch for a program."""
    generator = torch.Generator().manual_seed(seed)
    batch = example_batch(model, 8, 2, 1)
    for modality in model.modalities.values():
        image = batch[modality.image_key]
        batch[modality.image_key] = 100 + 20 * torch.randn(image.shape, generator=generator)
        batch[modality.valid_key] = torch.ones_like(batch[modality.valid_key])
    images = {name: batch[m.image_key][0].numpy() for name, m in model.modalities.items()}
    dates = {name: batch[m.dates_key][0].numpy() for name, m in model.modalities.items() if m.temporal}
    return images, dates, batch


@pytest.mark.slow
def test_a_program_predicts_as_the_predictor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = save(segmentation(S2, encoders={'location': 'scaled'}, context_degrees=30.0), tmp_path)
    words = ['--ckpt', str(checkpoint), '--format', 'torch', '--size', '8', '--dates', '2']
    assert main(['export', *words, '--output', str(tmp_path / 'out' / 'm.pt2')]) == 0
    printed = capsys.readouterr().out
    assert 'batch size: any' in printed
    assert 'checked' in printed
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == ['m.json', 'm.pt2']
    program, predictor = torch.export.load(tmp_path / 'out' / 'm.pt2').module(), Predictor(checkpoint)
    images, dates, batch = tile(RawModel(checkpoint))
    with torch.no_grad():
        found = program(batch)
        several = program({key: torch.cat([value] * 5) for key, value in reversed(batch.items())})
    place = batch['coordinates'][0].tolist()
    expected = predictor(images, dates, place)['probabilities']
    np.testing.assert_allclose(found['logits'].softmax(1)[0], expected, atol=3e-5)
    np.testing.assert_allclose(found['embeddings'][0], predictor.embed(images, dates, place), atol=3e-5)
    assert np.abs(predictor(images, dates)['probabilities'] - expected).max() > 1e-4
    np.testing.assert_allclose(several['logits'][4], found['logits'][0], atol=3e-5)
    assert (found['logits'][:, 4] == -torch.inf).all()  # ignored
    told = json.loads((tmp_path / 'out' / 'm.json').read_text())
    assert told['inputs']['image_s2'] == {'shape': ['batch', 2, 3, 8, 8], 'dtype': 'float32'}
    assert told['outputs'].keys() == {'embeddings', 'logits'}
    assert (told['mean'], told['std']) == ({'s2': MEAN['s2']}, {'s2': STD['s2']})
    assert told['labels'] == TOLD['labels']
    assert told['modalities'][0]['bands'] == ['B02', 'B03', 'B04']


@pytest.mark.parametrize('kind', ['classification', 'regression', 'pretraining'])
def test_outputs_of_other_tasks(kind: str, tmp_path: Path) -> None:
    task: Any
    if kind == 'classification':
        task = OmniSatClassification(label_names=['x', 'y', 'z'], modalities=MODALITIES, **SMALL)
    elif kind == 'regression':
        task = OmniSatRegression(label_gsd=10.0, target_mean=7.0, target_std=2.0, modalities=MODALITIES, **SMALL)
    else:
        task = OmniSatPretraining(modalities=MODALITIES, **SMALL)
    checkpoint = save(task, tmp_path)
    model = RawModel(checkpoint)
    images, dates, batch = tile(model)
    with torch.no_grad():
        found = model(batch)
    assert found['embeddings'].shape == (1, 2, 2, 16)
    if isinstance(task, SupervisedTask):
        predictor = Predictor(checkpoint)
        np.testing.assert_allclose(found['embeddings'][0], predictor.embed(images, dates), atol=1e-6)
        name = 'values' if kind == 'regression' else 'probabilities'
        value = found['values'] if kind == 'regression' else found['logits'].sigmoid()
        np.testing.assert_allclose(value[0], predictor(images, dates)[name], atol=1e-5)
    else:
        assert list(found) == ['embeddings']


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['torch', 'onnx'])
def test_every_sensor_with_nodata_and_invalid_dates(kind: Any, tmp_path: Path) -> None:
    if kind == 'onnx':
        for name in ('onnx', 'onnxscript', 'onnxruntime'):
            pytest.importorskip(name)
    path = tmp_path / f'm{ENDINGS[kind]}'
    task = segmentation(MODALITIES, image_widths=(32, 32, 32, 32))
    written = export_model(save(task, tmp_path), path, kind, 8, 4)
    assert written.difference is not None
    assert written.difference <= 3e-5
    assert written.rounding <= 3e-5
    assert written.any_batch
    if kind == 'onnx':
        import onnxruntime

        session = onnxruntime.InferenceSession(path)
        told = json.loads(path.with_suffix('.json').read_text())
        for entries, key in ((session.get_inputs(), 'inputs'), (session.get_outputs(), 'outputs')):
            for entry in entries:
                assert entry.shape[1:] == told[key][entry.name]['shape'][1:]
                assert isinstance(entry.shape[0], str)


@pytest.mark.slow
def test_onnx_of_pixels_that_do_not_divide_those_of_the_labels(tmp_path: Path) -> None:
    for name in ('onnx', 'onnxscript', 'onnxruntime'):
        pytest.importorskip(name)
    sensors = {'s2': MODALITIES['s2'], 'spot': replace(MODALITIES['spot'], gsd=1.5)}
    mean, std = ({name: each[name] for name in sensors} for each in (MEAN, STD))
    told = {'modalities': sensors, 'patch_size': 30.0, 'mean': mean, 'std': std}
    torch.manual_seed(0)
    task = OmniSatSegmentation(**(TOLD | SMALL | told))
    written = export_model(save(task, tmp_path), tmp_path / 'm.onnx', 'onnx', 9, 2)
    assert written.difference is not None
    assert written.difference <= 3e-5


def test_rounding_of_a_narrow_encoder_is_amplified(tmp_path: Path) -> None:
    """A group of two channels at one pixel: the sign of their difference is left, however small it is."""
    model, narrow = (RawModel(save(segmentation(sensors), tmp_path)) for sensors in (S2, MODALITIES))
    errors = []
    for one in (model, narrow):
        example = example_batch(one, 8, 4, 3)
        with torch.no_grad():
            errors.append(rounding_error(one, example, one(example)))
            assert rounding_error(one, example, one(example)) == errors[-1]
    assert 0 < errors[0] < 3e-5 < errors[1] < 1e-2


@pytest.mark.parametrize(
    ('added', 'rounding', 'most'), [(1e-3, 1e-6, 3e-5), (1e-2, 1e-4, 8e-4), (5e-4, 1e-4, None), (0.2, 0.1, 1e-2)]
)
def test_a_program_may_differ_as_rounding_does(
    added: float, rounding: float, most: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = save(segmentation(S2), tmp_path)

    def trace(model: RawModel, size: int, dates: int) -> Any:
        class Other(torch.nn.Module):
            def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
                return {name: value + added for name, value in expected.items()}

        example = example_batch(model, size, dates, 1)
        expected = model(example)
        return torch.export.export(Other(), (example,)), False

    monkeypatch.setattr(export, '_trace', trace)
    monkeypatch.setattr(export, 'rounding_error', lambda *_: rounding)
    if most is None:
        assert export_model(checkpoint, tmp_path / 'm.pt2', 'torch', 8, 2).rounding == rounding
    else:
        with pytest.raises(ValueError, match=rf'm\.pt2 differ .* {most:.0e}'):
            export_model(checkpoint, tmp_path / 'm.pt2', 'torch', 8, 2)
        assert not list(tmp_path.glob('m.*'))


def test_differences() -> None:
    one = {'x': torch.tensor([1.0, -torch.inf, 200.0])}
    assert largest_difference(one, one) == 0
    assert largest_difference({'x': torch.tensor([1.0, -torch.inf, 200.2])}, one) == pytest.approx(1e-3, rel=1e-3)
    for wrong in ([1.0, 0.0, 200.0], [torch.nan, -torch.inf, 200.0], [1.0]):
        assert largest_difference({'x': torch.tensor(wrong)}, one) == float('inf')


def test_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = save(segmentation(S2), tmp_path)
    with pytest.raises(ValueError, match=r"'m\.onnx'.*\.pt2"):
        export_model(checkpoint, Path('m.onnx'), 'torch', 8, 2)
    with pytest.raises(ValueError, match='dates'):
        export_model(checkpoint, tmp_path / 'm.pt2', 'torch', 8)
    words = ['export', '--ckpt', str(checkpoint), '--output', str(tmp_path / 'm.pt2'), '--format', 'torch']
    with pytest.raises(SystemExit):
        main(words)
    assert '--size' in capsys.readouterr().err
    (tmp_path / 'b').mkdir()
    blind = save(OmniSatSegmentation(**TOLD), tmp_path / 'b')
    with pytest.raises(ValueError, match='mean and std'):
        export_model(blind, tmp_path / 'm.pt2', 'torch', 8, 2)
    assert not list(tmp_path.glob('m.*'))
