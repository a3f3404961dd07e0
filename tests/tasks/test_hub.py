# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

import json
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from torchgeo_omnisat.__main__ import main
from torchgeo_omnisat.tasks import OmniSatPretraining, OmniSatSegmentation, export_hub, load_hub
from torchgeo_omnisat.transforms import Normalize

from .helpers import MODALITIES, TOLD, make_batch

TWO = [MODALITIES['s2'].as_dict(), MODALITIES['s1a'].as_dict()]
PRE: dict[str, Any] = {'backbone': 'omnisat_tiny', 'modalities': TWO, 'patch_size': 40.0}
MEAN = {'s2': [1.0, 2.0, 3.0], 's1a': [-12.0, -18.0]}
STD = {'s2': [2.0, 2.0, 2.0], 's1a': [3.0, 4.0]}


@pytest.fixture(scope='module')
def task() -> OmniSatPretraining:
    torch.manual_seed(3)
    return OmniSatPretraining(**PRE, mean=MEAN, std=STD)


@pytest.fixture
def folder(task: OmniSatPretraining, tmp_path: Path) -> Path:
    export_hub(task, tmp_path / 'hub')
    return tmp_path / 'hub'


def save(task: Any, path: Path) -> Path:
    torch.save({'state_dict': task.state_dict(), 'hyper_parameters': dict(task.hparams)}, path)
    return path


def two(batch: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in batch.items() if 'spot' not in key}


class TestFolder:
    def test_layout(self, folder: Path, task: OmniSatPretraining) -> None:
        assert sorted(path.name for path in folder.iterdir()) == ['config.json', 'model.safetensors']
        config = json.loads((folder / 'config.json').read_text())
        assert config['library_name'] == 'torchgeo_omnisat'
        assert (config['modalities'], config['mean'], config['std']) == (TWO, MEAN, STD)
        tensors, own = load_file(folder / 'model.safetensors'), task.model.backbone.state_dict()
        assert tensors.keys() == own.keys()
        assert all(torch.equal(tensors[key], own[key]) for key in own)

    def test_round_trip(self, folder: Path, task: OmniSatPretraining) -> None:
        batch = two(make_batch())
        with torch.no_grad():
            expected, found = (model(batch).fused for model in (task.model.backbone.eval(), load_hub(folder)))
        assert torch.equal(found, expected)

    def test_command_line(self, task: OmniSatPretraining, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = save(task, tmp_path / 'last.ckpt')
        assert main(['export', '--ckpt', str(path), '--output', str(tmp_path / 'out' / 'hub')]) == 0
        assert f'--model.weights {tmp_path / "out" / "hub"}' in capsys.readouterr().out
        assert load_hub(tmp_path / 'out' / 'hub').modalities.keys() == {'s2', 's1a'}
        with pytest.raises(SystemExit, match='1'):
            main(['export', '--ckpt', str(path), '--output', str(tmp_path / 'none'), '--dates', '7'])
        assert '--dates' in capsys.readouterr().err
        torch.save({'conv': torch.zeros(2)}, path)
        with pytest.raises(SystemExit, match='1'):
            main(['export', '--ckpt', str(path), '--output', str(tmp_path / 'none')])
        assert 'expected a checkpoint of one of our tasks' in capsys.readouterr().err
        assert not (tmp_path / 'none').exists()


class TestHandover:
    @pytest.mark.parametrize('kind', ['folder', 'file', 'checkpoint'])
    def test_new_modality_leaves_the_old_ones_as_they_were(
        self, task: OmniSatPretraining, folder: Path, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        checkpoint = save(task, tmp_path / 'last.ckpt')
        weights = {'folder': folder, 'file': folder / 'model.safetensors', 'checkpoint': checkpoint}[kind]
        torch.manual_seed(4)
        with caplog.at_level('INFO'):
            new = OmniSatSegmentation(**TOLD, weights=str(weights))
        assert f'Weights from {weights}: loaded: s2, s1a, fusion; new: spot; ignored: nothing' in caplog.text
        batch = make_batch()
        old_backbone, backbone = task.model.backbone.eval(), new.model.backbone.eval()
        with torch.no_grad():
            expected, alone, joint = old_backbone(two(batch)), backbone(two(batch)), backbone(batch)
        assert torch.equal(alone.fused, expected.fused)
        for name in ('s2', 's1a'):
            assert torch.equal(joint.tokens[name], expected.tokens[name])
        assert not torch.equal(joint.fused, expected.fused)
        with torch.no_grad():
            assert torch.equal(backbone.restrict(joint, ('s2', 's1a')).fused, expected.fused)

    def test_another_backbone_is_named(self, folder: Path) -> None:
        with pytest.raises(ValueError, match=r"backbone='omnisat_tiny'"):
            OmniSatSegmentation(**TOLD | {'backbone': 'omnisat_small'}, weights=str(folder))


class Data:
    """What a task asks of a datamodule."""

    def __init__(self, mean: dict[str, list[float]]) -> None:
        self.modalities = MODALITIES
        self.mean = {name: torch.tensor(numbers) for name, numbers in mean.items()}
        self.std = {name: torch.full((len(numbers),), 5.0) for name, numbers in mean.items()}


class TestStatistics:
    def meet(self, weights: Path, measured: dict[str, list[float]], **told: Any) -> OmniSatSegmentation:
        task = OmniSatSegmentation(**TOLD, weights=str(weights), **told)
        task._trainer = SimpleNamespace(predicting=False)
        task._check_datamodule(Data(measured))
        return task

    def test_old_modalities_keep_theirs_and_new_ones_take_those_of_the_data(self, folder: Path) -> None:
        mean = {'s2': [2.0, 3.0, 4.0], 's1a': [-11.0, -17.0], 'spot': [100.0]}
        task = self.meet(folder, mean)
        assert task.hparams['mean'] == MEAN | {'spot': [100.0]}
        assert task.hparams['std'] == STD | {'spot': [5.0]}
        raw, data = make_batch(), Data(mean)
        seen = task.renormalise(Normalize(MODALITIES, data.mean, data.std)(raw))
        expected = Normalize(MODALITIES, task.hparams['mean'], task.hparams['std'])(raw)
        for name in MODALITIES:
            assert torch.allclose(seen[f'image_{name}'], expected[f'image_{name}'], atol=1e-5)

    def test_told_ones_come_first(self, folder: Path) -> None:
        mean = {'s2': [2.0, 3.0, 4.0], 's1a': [-11.0, -17.0], 'spot': [100.0]}
        told = {'mean': mean, 'std': {name: [1.0] * len(numbers) for name, numbers in mean.items()}}
        assert self.meet(folder, MEAN | {'spot': [0.0]}, **told).hparams['mean'] == mean

    def test_other_units_are_noticed(self, folder: Path) -> None:
        with pytest.warns(UserWarning, match=r"'s1a'.*\b4\.2 "):
            self.meet(folder, {'s2': MEAN['s2'], 's1a': [0.5, -18.0], 'spot': [0.0]})


class TestErrors:
    @pytest.mark.parametrize(
        ('content', 'reason'),
        [
            ('{', 'Expecting property name'),
            ('[1]', 'list indices'),
            ('{}', 'modalities'),
            ('"' + 'x' * 10 + '"', 'string indices'),
            ('[' * 100000, 'recursion'),
        ],
    )
    def test_damaged_configuration(self, folder: Path, content: str, reason: str) -> None:
        (folder / 'config.json').write_text(content)
        with pytest.raises(ValueError, match=rf'config\.json.*{reason}.*export_hub'):
            OmniSatSegmentation(**TOLD, weights=str(folder))

    @pytest.mark.parametrize(
        'changes',
        [
            {'modalities': [{'name': 's2', 'bands': ['B02'], 'gsd': -1, 'temporal': True}]},
            {'backbone_args': {'encoders': {'s2': 'hf-hub:someone/something'}}},
            {'backbone': ['omnisat_tiny']},
            {'mean': {'s2': 'abc'}},
        ],
    )
    def test_hostile_configuration(self, folder: Path, changes: dict[str, Any]) -> None:
        config = json.loads((folder / 'config.json').read_text())
        (folder / 'config.json').write_text(json.dumps(config | changes))
        with pytest.raises(ValueError, match=r'config\.json'):
            load_hub(folder)

    @pytest.mark.parametrize(
        'changes', [{'backbone': 'omnisat_small'}, {'backbone': 'os'}, {'backbone_args': {'a': 1}}]
    )
    def test_configuration_of_another_model(self, folder: Path, changes: dict[str, Any]) -> None:
        config = json.loads((folder / 'config.json').read_text())
        (folder / 'config.json').write_text(json.dumps(config | changes))
        with pytest.raises(ValueError, match=str(folder)):
            load_hub(folder)

    @pytest.mark.parametrize('damage', [b'', b'x' * 50, struct.pack('<Q', 2**62) + b'{}', None])
    def test_damaged_tensors(self, folder: Path, damage: bytes | None) -> None:
        path = folder / 'model.safetensors'
        path.write_bytes(path.read_bytes()[:5000] if damage is None else damage)
        for weights in (folder, path):
            with pytest.raises(ValueError, match=r'model\.safetensors'):
                OmniSatSegmentation(**TOLD, weights=str(weights))

    @pytest.mark.parametrize('name', ['config.json', 'model.safetensors'])
    def test_missing_file(self, folder: Path, name: str) -> None:
        (folder / name).unlink()
        with pytest.raises(FileNotFoundError, match=name):
            OmniSatSegmentation(**TOLD, weights=str(folder))

    def test_tensors_of_something_else(self, folder: Path) -> None:
        save_file({'conv': torch.zeros(2)}, folder / 'model.safetensors')
        with pytest.raises(ValueError, match=str(folder)):
            OmniSatSegmentation(**TOLD, weights=str(folder))
        with pytest.raises(ValueError, match=str(folder)):
            load_hub(folder)
